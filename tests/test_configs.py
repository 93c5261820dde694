"""Every shipped configuration is built and takes a step of training, validation and test."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule

import ika_lightning.tasks
from ika_lightning.cli import main
from ika_lightning.data.benchmarks import BENCHMARKS
from ika_lightning.data.corpora import CORPORA
from ika_lightning.data.node_classification import NAMES
from ika_lightning.data.sentences import SENTENCES

CONFIGS = sorted(Path(__file__).parents[1].joinpath("configs").rglob("*.yaml"))
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
SHIPPED = {"co2", "airline_passengers", "languages", "dates", "karate", "digits"}
# What makes a short run out of a training, and out of a network one that a test can wait for.
SHORT = {
    "regression": ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "20"],
    "text_classification": ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "20"],
    "node_classification": ["--trainer.max_epochs", "1"],
    "translation": [
        "--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--trainer.limit_val_batches", "1",
        "--trainer.check_val_every_n_epoch", "1", "--data.batch_tokens", "256", "--data.batch_size", "4",
        "--model.width", "16", "--model.depth", "1",
    ],
}  # fmt: skip


def test_there_is_one_for_each_data_set() -> None:
    there = {task: {file.stem for file in CONFIGS if file.parent.name == task} for task in SHORT}
    assert there == {
        "regression": set(BENCHMARKS),
        "text_classification": set(SENTENCES) - {"trec_fine"},  # an option of trec
        "translation": set(CORPORA),
        "node_classification": set(NAMES),
    }


@pytest.mark.filterwarnings("ignore:.* are also in training")  # what the benchmarks are like
@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_it_runs(config: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = yaml.safe_load(config.read_text())["data"]["init_args"]["name"]
    if name == "pubmed":
        pytest.skip("its files are not all in the benchmark data: the test of its data module says which")
    where = "iwslt14_root" if name == "iwslt14" else "benchmark_root"
    root = [] if name in SHIPPED else ["--data.root", str(request.getfixturevalue(where))]
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", str(config), *SHORT[config.parent.name], *root, *QUIET])
    (best,) = tmp_path.glob("runs/*/version_0/checkpoints/best.ckpt")
    assert best.parts[-4] == config.stem
    main(["test", "--ckpt_path", str(best), "--trainer.limit_test_batches", "1", *root, *QUIET])
    layer = load(best).hparams.get("attention") or load(best).hparams["conv"]
    assert layer["class_path"].rpartition(".")[2] in ("MIKAN", "KernelGATConv")


def load(checkpoint: Path) -> LightningModule:
    """Load a model in Python as a person would, by the name of its class."""
    name = yaml.safe_load(torch.load(checkpoint, weights_only=True)["config"])["model"]["class_path"]
    model = getattr(ika_lightning.tasks, name.rpartition(".")[2]).load_from_checkpoint(checkpoint, weights_only=True)
    assert model.net is not None
    return model


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_its_first_lines_say_how_to_run_it(config: Path) -> None:
    command = f"#   python -m ika_lightning fit --config configs/{config.parent.name}/{config.name}"
    assert command in config.read_text().splitlines()[:4]
