"""Texts on a pretrained encoder, from the folder to a checkpoint that does without it."""

import csv
import functools
import json
import warnings
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_encoders import POSITIONS, write_encoder
from torch.optim.lr_scheduler import OneCycleLR

from ika_lightning.attention import MIKAN, DotProduct, IKANDirect
from ika_lightning.attention.core import Core
from ika_lightning.cli import main
from ika_lightning.data import TextClassificationData
from ika_lightning.tasks import TextClassification

pytest.importorskip("transformers")

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
QUIET += ["--trainer.enable_model_summary", "false"]
FIT = ["fit", *QUIET, "--model", "TextClassification", "--data", "TextClassificationData", "--data.path", "texts.tsv"]
FIT += ["--data.max_length", str(POSITIONS), "--data.batch_size", "13", "--model.pretrained", "encoder"]
FIT += ["--model.attention=IKANDirect", "--model.attention.num_samples=5", "--pictures", "0"]
# a schedule that ends with the training would know where it is stopped
FIT += ["--model.kernel_lr", "0.01", "--model.scheduler", "null"]
SMALL = functools.partial(IKANDirect, num_samples=5)


def write_texts(file: str, classes: str = "xy") -> None:
    rows = [
        (classes[i % 2], f"{('red', 'blue')[i % 2]} {('cat', 'dog')[i % 3 % 2]} {chr(97 + i % 26)} {i}")
        for i in range(61)
    ]
    Path(file).write_text("".join(f"{label}\t{text}\n" for label, text in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained for two epochs, one that was stopped after the first, and no encoder."""
    folder = tmp_path_factory.mktemp("pretrained")
    with chdir(folder), warnings.catch_warnings():
        write_texts("texts.tsv")
        write_texts("others.tsv", "zx")
        write_encoder(Path("encoder"), "roberta")
        write_encoder(Path("other"), "bert")
        main([*FIT, "--trainer.max_epochs", "2"])
        main([*FIT, "--trainer.max_epochs", "1"])
        Path("encoder").rename("away")
        Path("new.txt").write_text("the red dog\n\nblue cat" + " a" * POSITIONS + "\n")
    return folder


@pytest.fixture(autouse=True)
def in_the_folder(folder: Path) -> Iterator[None]:
    with chdir(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* of the .* texts")
        yield


@pytest.fixture
def encoder() -> Iterator[str]:
    """The encoder, which is back for a test."""
    Path("encoder").symlink_to("away", target_is_directory=True)
    yield "encoder"
    Path("encoder").unlink()


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The line that a command is refused in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(command))
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and line.startswith("error: ")
    return line.removeprefix("error: ")


def checkpoint(run: int = 0, name: str = "best") -> str:
    return f"runs/texts/version_{run}/checkpoints/{name}.ckpt"


def read(file: str) -> dict:
    return torch.load(file, weights_only=True)


def trainer(**options) -> Trainer:
    return Trainer(**{
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False, **options,
    })  # fmt: skip


def texts(**options) -> TextClassificationData:
    return TextClassificationData(**{"path": "texts.tsv", "max_length": POSITIONS, "batch_size": 13, **options})


# --- A checkpoint is all that is needed -------------------------------------------------------------------------------


def test_a_checkpoint_holds_configuration_and_tokenizer():
    kept = read(checkpoint())
    assert json.loads(kept["hyper_parameters"]["encoder"])["model_type"] == "roberta"
    assert json.loads(kept["TextClassificationData"]["tokenizer"])["model"]["type"] == "WordPiece"


def test_it_is_tested_and_predicts_without_the_folder(capsys):
    main(["test", *QUIET, "--ckpt_path", checkpoint()])
    assert "test/accuracy" in capsys.readouterr().out
    main(["predict", *QUIET, "--ckpt_path", checkpoint(), "--input", "new.txt", "--output", "new.csv"])
    with Path("new.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    model = TextClassification.load_from_checkpoint(checkpoint())
    data = TextClassificationData.load_from_checkpoint(checkpoint(), predict_path="new.txt")
    (batch,) = [batch for batch in data.predict_dataloader()]
    with torch.no_grad():
        (logits,) = [model.eval()(batch.tokens)]
    # short texts come first, and the second text is the shortest
    found = dict(zip(batch.row.tolist(), logits.softmax(-1)[:, 0].tolist(), strict=True))
    assert [float(row["probability_x"]) for row in rows] == pytest.approx([found[row] for row in range(3)], rel=1e-4)
    assert batch.tokens.shape == (3, POSITIONS) and batch.counts["tokens"] == 2 + 5 + POSITIONS
    assert batch.tokens[-1, -1] == 2, "the token after a text stays when it is cut"


def test_it_goes_on_without_the_folder_bit_for_bit():
    main([*FIT, "--trainer.max_epochs", "2", "--ckpt_path", checkpoint(1, "last")])
    whole, resumed = (read(checkpoint(run, "last")) for run in (0, 1))
    assert whole["global_step"] == resumed["global_step"] == 8
    assert all(x.equal(resumed["state_dict"][name]) for name, x in whole["state_dict"].items())


def test_in_python_model_and_data_of_a_checkpoint_are_trained_further():
    model = TextClassification.load_from_checkpoint(checkpoint())
    data = TextClassificationData.load_from_checkpoint(checkpoint())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    trainer(max_steps=1).fit(model, data)
    assert any(not x.equal(before[name]) for name, x in model.net.state_dict(prefix="net.").items())


def test_a_report_has_pictures_of_every_layer():
    main(["report", *QUIET, "--ckpt_path", checkpoint(), "--output", "page"])
    names = {file.stem for file in Path("page").glob("*.svg")}
    for kind in ("attention", "similarity", "spectrum", "magnitude"):
        assert sum(name.startswith(f"{kind}-net.encoder.encoder.layer.") for name in names) == 2
    assert "Without examples" not in Path("page/report.html").read_text()


def test_pictures_name_the_tokens():
    model = TextClassification.load_from_checkpoint(checkpoint())
    data = TextClassificationData.load_from_checkpoint(checkpoint(), predict_path="new.txt")
    model._trainer = trainer()
    model.trainer.datamodule = data
    names, _ = model.attention_names(next(iter(data.predict_dataloader())), "")
    assert names[:2] == [["<s>", "</s>"], ["<s>", "the", "red", "dog", "</s>"]]


# --- Another encoder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["test", "predict --input new.txt", "report", "export"])
def test_a_checkpoint_of_another_encoder_is_refused(command, capsys):
    options = [*command.split(), *QUIET, "--ckpt_path", checkpoint(), "--model.pretrained", "other"]
    assert refusal(capsys, *options) == (
        "the checkpoint was trained with pretrained='encoder', and holds that encoder; here pretrained='other': leave "
        "it out, or say the same, which need not be there any more"
    )


def test_a_training_does_not_go_on_from_another_encoder(capsys):
    options = [*FIT, "--trainer.max_epochs", "2", "--model.pretrained", "other", "--ckpt_path", checkpoint()]
    assert "trained with pretrained='encoder'" in refusal(capsys, *options)


def test_a_new_training_starts_from_its_weights(encoder, capsys):
    options = [*FIT, "--trainer.max_epochs", "1", "--model.init_from", checkpoint()]
    main([*options, "--model.optimizer", "SGD", "--model.optimizer.lr", "0", "--model.kernel_lr", "1e-30"])
    assert "starting from the weights of" in capsys.readouterr().err
    found, start = (read(file)["state_dict"] for file in (checkpoint(2, "last"), checkpoint()))
    assert all(x.equal(start[name]) for name, x in found.items() if name.startswith("net.encoder"))
    main([*options, "--data.path", "others.tsv"])
    assert "the classifier starts anew, for the classes 'x', 'z'" in capsys.readouterr().err


def test_weights_of_another_encoder_are_refused(capsys):
    told = refusal(capsys, *FIT, "--model.pretrained", "other", "--model.init_from", checkpoint())
    assert told.endswith("pretrained='encoder' (here 'other'); give the model the options that it was trained with")
    with pytest.raises(ValueError, match=r"with pretrained='encoder' \(here None\); give the model the options"):
        trainer().fit(TextClassification(SMALL, init_from=checkpoint()), texts())


# --- Saying it once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [["--data.pretrained", "other"], ["--data.pretrained=other"], ["--config", "c.yaml"]])
def test_data_takes_it_from_the_model(given, capsys):
    Path("c.yaml").write_text("data:\n  class_path: TextClassificationData\n  init_args:\n    pretrained: other\n")
    told = refusal(capsys, *FIT, *given)
    assert told == "--data.pretrained: data takes it from the model; say it once, as --model.pretrained"


@pytest.mark.parametrize("of_model, of_data", [("other", None), (None, "other"), ("other", "away")])
def test_in_python_both_have_to_say_the_same(of_model, of_data):
    given = f"pretrained={of_model!r} and the data pretrained={of_data!r}; give both the same"
    with pytest.raises(ValueError, match=given):
        trainer().fit(TextClassification(SMALL, pretrained=of_model), texts(pretrained=of_data))


@pytest.mark.parametrize("options, message", [
    ({"width": 32}, "pretrained brings an encoder of its own size, pooling and dropout; leave out width=32"),
    ({"pooling": "mean"}, "leave out pooling='mean'"),
    ({"vectors": "glove.txt"}, "leave out vectors='glove.txt'"),
    ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], got 0.0"),
    ({"layer_decay": 1.5}, r"layer_decay must be in \(0, 1\], got 1.5"),
    ({"kernel_lr": 0.0}, "kernel_lr must be positive, got 0.0"),
    ({"pretrained": None, "layer_decay": 0.9}, "no encoder, which --model.pretrained names; leave out layer_decay=0.9"),
    ({"pretrained": None, "frozen_layers": 1}, "leave out frozen_layers=1"),
])  # fmt: skip
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TextClassification(**{"pretrained": "other", **options})


@pytest.mark.parametrize("option", [{"unit": "subword"}, {"vocab_size": 50}, {"min_count": 2}, {"lowercase": False}])
def test_the_encoder_brings_its_vocabulary(option):
    with pytest.raises(ValueError, match=f"pretrained brings a vocabulary of its own; leave out {next(iter(option))}="):
        texts(pretrained="other", **option)


def test_texts_are_no_longer_than_positions():
    with pytest.raises(ValueError, match=f"max_length=256 is more than the {POSITIONS} positions of the encoder; g"):
        trainer().fit(TextClassification(pretrained="other"), texts(pretrained="other", max_length=256))
    with pytest.raises(ValueError, match="max_length=2 leaves no room for a text between the 2 tokens that its tok"):
        trainer().fit(TextClassification(pretrained="other"), texts(pretrained="other", max_length=2))


def test_the_tokenizer_is_the_encoders_own(tmp_path):
    write_encoder(tmp_path / "small", vocab_size=9)
    write_encoder(tmp_path / "pads", pad_token_id=3)
    for name in ("small", "pads"):
        source = str(tmp_path / name)
        with pytest.raises(ValueError, match="the tokenizer has 66 tokens and pads with number 0, but the encoder"):
            trainer().fit(TextClassification(pretrained=source), texts(pretrained=source))


# --- Learning rates ---------------------------------------------------------------------------------------------------


def test_it_starts_with_the_encoders_weights_and_a_small_rate():
    model, data = TextClassification(DotProduct, pretrained="other"), texts(pretrained="other")
    run = trainer(max_steps=1)
    run.fit(model, data)
    assert [group["initial_lr"] for group in run.optimizers[0].param_groups] == [1e-4]
    from transformers import AutoModel

    weights = AutoModel.from_pretrained("other").state_dict()
    moved = [(x - weights[name]).abs().max() for name, x in model.net.encoder.state_dict().items()]
    # a step of Adam, at the tenth of the rate with which its warm-up begins
    assert max(moved) <= 1.1e-5 and any(moved)


def test_layers_and_kernels_have_rates_of_their_own():
    optimizer = functools.partial(torch.optim.SGD, lr=0.5)
    options = {"pretrained": "other", "layer_decay": 0.5, "kernel_lr": 3.0, "optimizer": optimizer, "scheduler": None}
    model, data = TextClassification(functools.partial(MIKAN, num_samples=5), **options), texts(pretrained="other")
    run = trainer(max_steps=1)
    run.fit(model, data)
    groups = run.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == [0.0625, 0.125, 0.25, 0.5, 3.0]
    embeddings, layers, top = model.net.split()
    parts = [embeddings, *layers, top, [x for x in model.modules() if isinstance(x, Core) for x in x.parameters()]]
    assert [list(map(id, group["params"])) for group in groups] == [list(map(id, part)) for part in parts]


@pytest.mark.parametrize("attention, rates", [(SMALL, [0.5, 0.25]), (DotProduct, [0.5])])
def test_kernels_have_a_rate_of_their_own_without_an_encoder(attention, rates):
    optimizer = functools.partial(torch.optim.SGD, lr=0.5)
    model = TextClassification(attention, width=8, num_heads=2, kernel_lr=0.25, optimizer=optimizer, scheduler=None)
    run = trainer(max_steps=1)
    run.fit(model, texts())
    groups = run.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == rates
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_scheduler_with_one_highest_rate_is_refused():
    cycle = functools.partial(OneCycleLR, max_lr=0.1, total_steps=10)
    model = TextClassification(SMALL, pretrained="other", kernel_lr=0.01, scheduler=cycle)
    with pytest.raises(
        ValueError, match=r"scheduler: OneCycleLR has one highest learning rate .* 0\.0001, 0\.01; take"
    ):
        trainer().fit(model, texts(pretrained="other"))
