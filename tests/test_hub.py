"""What is read of a pretrained encoder, and what is said of a folder that is none."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import POSITIONS, configuration, make_encoder, write_encoder

from ika_lightning.data.tokenizer import Tokenizer
from ika_lightning.hub import ENCODERS, build_encoder, count_positions, read_config, read_tokenizer, read_weights

pytest.importorskip("transformers")

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "encoder")


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_an_encoder_is_built_again_from_what_was_read(kind: str, tmp_path: Path) -> None:
    source = str(write_encoder(tmp_path / "encoder", kind))
    config = read_config(source)
    assert str(tmp_path) not in config and "transformers_version" not in config
    encoder, weights = build_encoder(config).eval(), read_weights(source)
    encoder.load_state_dict(weights)
    tokens = torch.tensor([[5, 6, 7]])
    assert encoder(tokens)[0].allclose(make_encoder(kind)(tokens)[0], atol=1e-6)
    assert all(x.dtype == torch.float32 for x in weights.values())


def test_weights_in_half_precision_are_read_in_float32(folder: Path) -> None:
    half = {name: x.half() for name, x in load_file(folder / WEIGHTS).items()}
    save_file(half, folder / WEIGHTS, metadata={"format": "pt"})
    edit(folder / "config.json", dtype="float16")
    assert {x.dtype for x in read_weights(str(folder)).values()} == {torch.float32}
    assert {x.dtype for x in build_encoder(read_config(str(folder))).parameters()} == {torch.float32}


@pytest.mark.parametrize("kind, first, last, padding", [("bert", [2], [3], 0), ("roberta", [0], [2], 1)])
def test_a_tokenizer_neither_cuts_nor_pads(kind: str, first, last, padding, tmp_path: Path) -> None:
    tokenizer = Tokenizer(read_tokenizer(str(write_encoder(tmp_path / "encoder", kind))))
    long = "the red cat " * 30
    assert list(map(len, tokenizer.encode(["red", long, ""]))) == [1, 90, 0]
    assert (tokenizer.first, tokenizer.last, tokenizer.padding) == (first, last, padding)
    again = Tokenizer(tokenizer.state())
    assert (again.first, again.last, again.padding) == (first, last, padding)
    assert again.encode(["red", long]) == tokenizer.encode(["red", long])
    # a special token as text is text
    assert len(tokenizer.encode(["[PAD] <pad>"])[0]) > 2


@pytest.mark.parametrize("kind", ENCODERS)
def test_there_are_as_many_positions_as_the_encoder_has(kind: str) -> None:
    count = count_positions(json.dumps(configuration(kind)))
    assert count == POSITIONS
    encoder = make_encoder(kind)
    assert encoder(torch.full((1, count), 7))[0].isfinite().all()
    # one that turns with the position has no end, but was trained to one
    if kind not in ("modernbert", "nomic_bert"):
        with pytest.raises((IndexError, RuntimeError)):
            encoder(torch.full((1, count + 1), 7))


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def take_other_special(folder: Path) -> None:
    edit(folder / "tokenizer.json", post_processor=None)


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (remove("config.json"), r"has no config.json that says a model_type; give a folder that save_pretrained has"),
    (lambda folder: (folder / "config.json").write_text("{"),
     r"cannot be read \(.*config.json.* is not a valid JSON"),
    (lambda folder: edit(folder / "config.json", model_type="mpnet"),
     r"is of model type 'mpnet', whose attention cannot be replaced; those that can be are bert, camembert, distil"),
    (lambda folder: edit(folder / "config.json", is_decoder=True), r"is a decoder \(is_decoder is true in its config"),
    (remove(WEIGHTS), r"the weights of .* cannot be read \(.*no file named model.safetensors.*\); give a folder that"),
    (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:3000]), r"the weights of .* ca"),
    (lose_a_weight, r"the weights of .* lack encoder.layer.1.output.dense.weight; give a folder that save_pretrained"),
    (lambda folder: edit(folder / "config.json", hidden_size=24), r"the weights of .* cannot be read \(.*; give a f"),
    (remove("tokenizer.json", "tokenizer_config.json"), r"has no tokenizer \(tokenizer.json, or a vocabulary\); give"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"the tokenizer of .* cannot be read \(.*\); give a"),
    (take_other_special, r"the tokenizer of .* has no tokens for padding and around a text, which encoders need; give"),
]  # fmt: skip


@pytest.mark.parametrize("destroy, message", BROKEN, ids=[message.split(";")[0] for _, message in BROKEN])
def test_a_folder_that_is_not_whole_is_refused_in_a_line(folder: Path, destroy, message: str) -> None:
    destroy(folder)
    with pytest.raises(ValueError, match=f"^pretrained: .*{message}") as caught:
        read_tokenizer(str(folder))
        read_weights(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["./nowhere", "~/nowhere", "/nowhere/at/all", "file"])
def test_a_folder_that_is_not_there(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for read in (read_tokenizer, read_config, read_weights):
        with pytest.raises(ValueError, match=f"^pretrained: there is no folder {source}; give that of an encoder, or"):
            read(source)


@pytest.mark.parametrize("name", ["some-encoder", "some/encoder"])
def test_a_name_without_a_connection(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for read in (read_tokenizer, read_config):
        with pytest.raises(ValueError, match=rf"there is no folder {name}, and .* cannot be had from the hub \(.*\)"):
            read(name)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for read in (read_tokenizer, read_config, build_encoder):
        with pytest.raises(ImportError, match=r"pip install 'ika-lightning\[huggingface\]'"):
            read(str(folder))


def test_nothing_of_it_is_imported_before_it_is_asked_for() -> None:
    # (torchmetrics and PyTorch Geometric import transformers themselves, wherever it is installed)
    script = "import sys, ika_lightning.cli.command as _\n"
    script += "ours = 'ika_lightning.models.pretrained', 'ika_lightning.attention.huggingface'\n"
    script += "print([name for name in ours if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
