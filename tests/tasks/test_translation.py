import functools
import random
from pathlib import Path

import pytest
import sacrebleu
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect, attention_kl
from ika_lightning.cli import main
from ika_lightning.data import TranslationBatch, TranslationData
from ika_lightning.data.loader import Loader
from ika_lightning.tasks import InverseSquareRoot, Translation

SMALL = {"width": 16, "depth": 1, "num_heads": 2, "dropout": 0.0}


@pytest.fixture
def parallel(tmp_path: Path) -> dict[str, str]:
    """Files of sentences and of what they are from right to left."""
    rng = random.Random(0)
    for split, count in (("train", 1500), ("val", 40)):
        rows = [[rng.choice("abcdefgh") for _ in range(rng.randint(1, 6))] for _ in range(count)]
        (tmp_path / f"{split}.src").write_text("".join(" ".join(row) + "\n" for row in rows))
        (tmp_path / f"{split}.tgt").write_text("".join(" ".join(row[::-1]) + "\n" for row in rows))
    return {
        "source": str(tmp_path / "train.src"), "target": str(tmp_path / "train.tgt"),
        "val_source": str(tmp_path / "val.src"), "val_target": str(tmp_path / "val.tgt"),
        "test_source": str(tmp_path / "val.src"), "test_target": str(tmp_path / "val.tgt"),
    }  # fmt: skip


def data(parallel: dict[str, str], **options) -> TranslationData:
    return TranslationData(**{**parallel, "vocabulary": 280, "batch_tokens": 1000, **options})


def trainer(folder: Path, **options) -> Trainer:
    return Trainer(**{
        "default_root_dir": folder, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
        "log_every_n_steps": 1, **options,
    })  # fmt: skip


@pytest.fixture
def trained(parallel, tmp_path) -> tuple[Translation, TranslationData, Path]:
    seed_everything(0, verbose=False)
    model, text = Translation(functools.partial(MIKAN, p=1.8, num_samples=5), **SMALL), data(parallel)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model, text)
    fit.save_checkpoint(tmp_path / "model.ckpt")
    return model.eval(), text, tmp_path / "model.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize("attention", [DotProduct, RBF, IKANDirect, IKAN, MIKAN])
def test_it_learns_to_read_backwards(attention, parallel, tmp_path) -> None:
    """Words depend on the far end of the source, and validation sentences are new."""
    seed_everything(0, verbose=False)
    model = Translation(
        attention,
        **{**SMALL, "width": 32, "depth": 2},
        label_smoothing=0.0,
        optimizer=functools.partial(torch.optim.Adam, lr=5e-3, betas=(0.9, 0.98)),
        scheduler=functools.partial(InverseSquareRoot, warmup=100),
    )
    text = data(parallel)
    fit = trainer(tmp_path, max_epochs=60, check_val_every_n_epoch=60, gradient_clip_val=1.0)
    fit.fit(model, text)
    (measured,) = fit.test(model, text, verbose=False)
    assert fit.callback_metrics["train/loss"] < 0.05
    assert measured["test/loss"] < 0.1
    assert measured["test/bleu"] > 95
    assert measured["test/exact_match"] > 0.8


def test_training_loss_is_cross_entropy_and_kl(trained) -> None:
    model, text, _ = trained
    model.train()
    model.kl_weight = 3.0
    model.log = lambda *args, **kwargs: None
    batch = next(iter(text.train_dataloader()))
    torch.manual_seed(1)
    loss = model.training_step(batch, 0)
    torch.manual_seed(1)
    log_p = model.net(batch.source, batch.target[:, :-1]).log_softmax(-1)
    labels = batch.target[:, 1:]
    counted = labels != 0
    smoothed = -(0.9 * log_p.gather(2, labels.unsqueeze(2)).squeeze(2) + 0.1 * log_p.mean(-1))
    kl = attention_kl(model)
    assert kl > 0
    assert_close(loss, smoothed[counted].mean() + 3.0 * kl)


class TestAccumulation:
    """The gradient is that of the mean over all tokens of an update, however it is divided."""

    def step(self, batches: list[TranslationBatch], parallel, **options) -> torch.Tensor:
        seed_everything(3, verbose=False)
        optimizer = functools.partial(torch.optim.SGD, lr=1.0)
        model = Translation(IKANDirect, **SMALL, optimizer=optimizer).double()
        text = data(parallel)
        index = torch.arange(len(batches)).split(1)
        text.train_dataloader = lambda: Loader(index, lambda i: batches[i])
        fit = trainer(
            Path(), max_epochs=1, limit_val_batches=0, accumulate_grad_batches=len(batches), precision="64-true",
            **options,
        )  # fmt: skip
        fit.fit(model, text)
        assert fit.global_step == 1
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    def test_batches_of_an_update(self, parallel):
        text = data(parallel)
        text.setup("fit")
        batch = max(text.train_dataloader(), key=lambda batch: len(batch.number))
        parts = [TranslationBatch(*(x[rows] for x in batch[:3])) for rows in (slice(0, 20), slice(20, None))]
        assert len(parts[0].source) != len(parts[1].source)
        whole, cut = (self.step(batches, parallel, gradient_clip_val=0.7) for batches in ([batch], parts))
        assert_close(cut, whole, rtol=1e-10, atol=1e-12)

    def test_it_is_a_mean(self, parallel):
        text = data(parallel)
        text.setup("fit")
        batch = next(iter(text.train_dataloader()))
        twice = TranslationBatch(*(torch.cat([x, x]) for x in batch[:3]))
        assert_close(self.step([twice], parallel), self.step([batch], parallel), rtol=1e-10, atol=1e-12)


def test_scores_of_a_model(trained, tmp_path, capsys) -> None:
    model, text, _ = trained
    (measured,) = trainer(tmp_path).test(model, text, verbose=False)
    written, references, log_p, tokens = [], [], 0.0, 0
    for batch in text.test_dataloader():
        written += text.target_texts(best[0].tokens for best in model.search(model.net, batch.source))
        references += [target for _, target in batch.texts]
        labels = batch.target[:, 1:]
        scores = model(batch.source, batch.target[:, :-1])
        log_p -= F.cross_entropy(scores.mT, labels, ignore_index=0, reduction="sum").item()
        tokens += (labels != 0).sum().item()
    assert len(written) == 40
    bleu, chrf = (score(written, [references]).score for score in (sacrebleu.corpus_bleu, sacrebleu.corpus_chrf))
    assert measured["test/bleu"] == pytest.approx(bleu, rel=1e-5)
    assert measured["test/chrf"] == pytest.approx(chrf, rel=1e-5)
    assert measured["test/loss"] == pytest.approx(-log_p / tokens, rel=1e-5)
    # a model of one epoch gets none of these right; of a trained one, see the slow test above
    assert measured["test/exact_match"] == sum(map(str.__eq__, written, references)) / len(written)
    printed = capsys.readouterr().out.splitlines()
    version = f"version:{sacrebleu.__version__}"
    assert f"bleu {bleu:.2f} nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|{version}" in printed
    assert f"chrf {chrf:.2f} nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|{version}" in printed


def test_bleu_of_chinese_and_in_lowercase(trained, parallel, tmp_path, capsys) -> None:
    model, text, _ = trained
    for side in ("test_source", "test_target"):
        Path(parallel[side]).write_text("我 们 A\n在 雨 B\n")
    chinese = data(parallel, target_language="zh")
    chinese.load_state_dict(text.state_dict())
    type(chinese).compares_in_lowercase, kept = True, type(chinese).compares_in_lowercase
    try:
        trainer(tmp_path).test(model, chinese, verbose=False)
    finally:
        type(chinese).compares_in_lowercase = kept
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if "nrefs" in line]
    assert {words[0]: "case:lc" in words[2] for words in printed} == {
        "bleu": False, "chrf": False, "bleu_lowercase": True
    }  # fmt: skip
    assert all("tok:zh" in words[2] for words in printed if words[0] != "chrf")


class TestCheckpoint:
    def test_it_is_enough(self, trained, parallel, tmp_path):
        model, _, path = trained
        saved = torch.load(path, weights_only=True)
        assert saved["hyper_parameters"]["attention"]["init_args"] == {"p": 1.8, "num_samples": 5}
        for file in ("train.src", "train.tgt"):
            (tmp_path / file).unlink()
        loaded = Translation.load_from_checkpoint(path, weights_only=True).eval()
        new = TranslationData.load_from_checkpoint(path, predict_path=parallel["val_source"], weights_only=True)
        new.setup("predict")
        (batch,) = new.predict_dataloader()
        assert loaded.predict_step(batch, 0) == model.predict_step(batch, 0)

    def test_three_attentions(self, parallel, tmp_path):
        model = Translation(IKAN, DotProduct, functools.partial(RBF, p=1.0), **SMALL)
        fit = trainer(tmp_path, max_steps=1, limit_val_batches=0)
        fit.fit(model, data(parallel, joint=False))
        fit.save_checkpoint(tmp_path / "model.ckpt")
        loaded = Translation.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
        (layer,) = loaded.net.layers
        assert isinstance(layer.self_attention, DotProduct)
        assert layer.cross_attention.core.p == 1.0
        assert loaded.net.source_embedding is not loaded.net.target_embedding

    def test_other_vocabularies_are_refused(self, trained, parallel, tmp_path):
        _, _, path = trained
        untrained = Translation(functools.partial(MIKAN, p=1.8, num_samples=5), **SMALL)
        with pytest.raises(ValueError, match=r"with target_vocabulary=None, but the data has target_vocabulary=\d+; "):
            trainer(tmp_path, max_epochs=2).fit(
                untrained, data(parallel, joint=False), ckpt_path=path, weights_only=True
            )

    def test_a_foreign_one_is_refused(self):
        with pytest.raises(ValueError, match="not one of Translation: it does not say source_vocabulary"):
            Translation().on_load_checkpoint({"state_dict": {}})


def test_same_seed_same_weights(parallel, tmp_path) -> None:
    weights = []
    for _ in range(2):
        seed_everything(7, verbose=False)
        model = Translation(MIKAN, **{**SMALL, "dropout": 0.1})
        trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(model, data(parallel))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert_close(*weights, rtol=0, atol=0)
    assert weights[0].isfinite().all()


def test_samples_are_shown(parallel, tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path, name="runs")
    model = Translation(DotProduct, **SMALL)
    trainer(tmp_path, max_steps=2, val_check_interval=1, logger=logger).fit(model, data(parallel))
    events = EventAccumulator(logger.log_dir).Reload()
    shown = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("val/samples/text_summary")]
    assert len(shown) == 2  # not of the check before training, which comes before update 0
    lines = Path(parallel["val_source"]).read_text().splitlines()[:5]
    assert [row.split(" | ")[0].removeprefix("| ") for row in shown[-1].splitlines()[2:]] == lines
    assert [row.split(" | ")[1] for row in shown[-1].splitlines()[2:]] == [line[::-1] for line in lines]


def test_the_schedule_is_stepped_each_update(parallel, tmp_path) -> None:
    model = Translation(
        DotProduct,
        **SMALL,
        optimizer=functools.partial(torch.optim.SGD, lr=0.5),
        scheduler=functools.partial(InverseSquareRoot, warmup=10),
    )
    fit = trainer(tmp_path, max_steps=4, limit_val_batches=0)
    fit.fit(model, data(parallel))
    assert fit.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.25]  # of update 5


class TestCommandLine:
    @pytest.fixture
    def checkpoint(self, trained, parallel, tmp_path, monkeypatch) -> Path:
        monkeypatch.chdir(tmp_path)
        model = {"width": 16, "depth": 1, "num_heads": 2, "attention": "IKANDirect"}
        config = {
            "model": {"class_path": "Translation", "init_args": model},
            "data": {
                "class_path": "TranslationData",
                "init_args": {**parallel, "vocabulary": 280, "batch_tokens": 4000},
            },
            "trainer": {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        main(["fit", "--config", "config.yaml"])
        (path,) = tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt")
        return path

    def test_predict(self, checkpoint, tmp_path, capsys):
        (tmp_path / "in.txt").write_text("a b c\n\nd e\n")
        main(["predict", "--ckpt_path", str(checkpoint), "--input", "in.txt", "--output", "out.txt"])
        assert "3 predictions written to out.txt" in capsys.readouterr().out
        lines = (tmp_path / "out.txt").read_text().split("\n")
        assert len(lines) == 4 and lines[1] == lines[3] == ""

    def test_standard_input_to_standard_output(self, checkpoint, tmp_path, capsys, monkeypatch):
        (tmp_path / "in.txt").write_text("a b c\n\nd e\n")
        main(["predict", "--ckpt_path", str(checkpoint), "--input", "in.txt", "--output", "out.txt"])
        capsys.readouterr()
        with (tmp_path / "in.txt").open() as file:
            monkeypatch.setattr("sys.stdin", file)
            main(["predict", "--ckpt_path", str(checkpoint), "--input", "-", "--output", "-"])
        captured = capsys.readouterr()
        assert captured.out == (tmp_path / "out.txt").read_text()
        assert "3 predictions written to standard output" in captured.err
        assert not (tmp_path / "-").exists()

    def test_n_best(self, checkpoint, tmp_path):
        (tmp_path / "in.txt").write_text("a b c\nd e\n")
        words = ["predict", "--ckpt_path", str(checkpoint), "--input", "in.txt", "--output", "out.txt"]
        main([*words, "--model.n_best", "3"])
        rows = [line.split(" ||| ") for line in (tmp_path / "out.txt").read_text().splitlines()]
        assert [row[0] for row in rows] == ["0"] * 3 + ["1"] * 3
        scores = [float(row[2]) for row in rows]
        assert scores[:3] == sorted(scores[:3], reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and less than 1, got 1.0"),
        ({"n_best": 6}, "n_best must be from 1 to beam=5, got 6"),
        ({"beam": 0, "n_best": 1}, "beam"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0, got -1.0"),
    ],
)
def test_arguments(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Translation(**options)


def test_other_data_is_refused(tmp_path) -> None:
    class Pictures(LightningDataModule):
        def train_dataloader(self):
            return []

        val_dataloader = train_dataloader

    with pytest.raises(
        ValueError, match="Translation needs TranslationData, got Pictures; give --data TranslationData"
    ):
        trainer(tmp_path, max_epochs=1).fit(Translation(), Pictures())
