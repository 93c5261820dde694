"""Every shipped configuration is built and takes a step of training, validation and test."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from tiny_encoders import write_encoder

import ika_lightning.tasks
from ika_lightning.cli import main
from ika_lightning.cli.command import CHECKPOINT, EARLY_STOPPING, GROUPS
from ika_lightning.data.datasets import DATASETS

FOLDER = Path(__file__).parents[1] / "configs"
OVERLAYS = sorted(FOLDER.joinpath("trainer").glob("*.yaml"))
CONFIGS = sorted(set(FOLDER.rglob("*.yaml")) - set(OVERLAYS))
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
SHIPPED = {"co2", "airline_passengers", "languages", "dates", "karate", "digits"}
# What makes a short run out of a training, and out of a network one that a test can wait for.
SHORT = {
    "regression": ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5"],
    "text_classification": [
        "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--trainer.limit_val_batches", "2",
    ],
    "node_classification": ["--trainer.max_epochs", "1"],
    "translation": [
        "--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--trainer.limit_val_batches", "1",
        "--trainer.check_val_every_n_epoch", "1", "--data.batch_tokens", "256", "--data.batch_size", "4",
        "--model.width", "16", "--model.depth", "1",
    ],
}  # fmt: skip


def test_there_is_one_for_each_measured_data_set() -> None:
    there = {task: {file.stem for file in CONFIGS if file.parent.name == task} for task in SHORT}
    assert there == {
        "regression": {"co2", "airline_passengers", "boston", "concrete", "parkinsons"},
        "text_classification": {"languages", "trec", "sst2", "mr", "subj", "trec_minilm", "sst2_minilm"},
        "translation": {"dates", "multi30k", "iwslt14"},
        "node_classification": {"karate", "digits", "cora", "citeseer", "pubmed"},
    }
    for task, names in there.items():
        assert {DATASETS[name.removesuffix("_minilm")].task.replace(" ", "_") for name in names} == {task}


@pytest.mark.filterwarnings("ignore:.* are also in training")  # what the benchmarks are like
@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_it_runs(config: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = (yaml.safe_load(config.read_text())[part]["init_args"] for part in ("model", "data"))
    name = data["name"]
    if name == "pubmed":
        pytest.skip("its files are not all in the benchmark data: the test of its data module says which")
    where = "iwslt14_root" if name == "iwslt14" else "benchmark_root"
    root = [] if name in SHIPPED else ["--data.root", str(request.getfixturevalue(where))]
    # of one data set of each task at least
    pictures = [] if name in SHIPPED else ["--pictures", "0"]
    monkeypatch.chdir(tmp_path)
    encoder = []
    if "pretrained" in model:
        # one of the hub would be downloaded; this one's tokens are letters, so texts are longer
        folder = write_encoder(tmp_path / "encoder", max_position_embeddings=512)
        encoder = ["--model.pretrained", str(folder), "--data.max_length", "512"]
        encoder += ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    main(["fit", "--config", str(config), *SHORT[config.parent.name], *root, *encoder, *pictures, *QUIET])
    (best,) = tmp_path.glob("runs/*/version_0/checkpoints/best.ckpt")
    assert best.parts[-4] == name
    main(["test", "--ckpt_path", str(best), "--trainer.limit_test_batches", "1", *root, *QUIET])
    layers = (made.get("attention") or made["conv"] for made in (load(best).hparams, model))
    kept, given = (layer["class_path"].rpartition(".")[2] for layer in layers)
    assert kept == given


def load(checkpoint: Path) -> LightningModule:
    """Load a model in Python as a person would, by the name of its class."""
    name = yaml.safe_load(torch.load(checkpoint, weights_only=True)["config"])["model"]["class_path"]
    model = getattr(ika_lightning.tasks, name.rpartition(".")[2]).load_from_checkpoint(checkpoint, weights_only=True)
    assert model.net is not None
    return model


# What a file may say although it is the default, and why.
SAID_ALL_THE_SAME = {
    "seed_everything": "what a figure is repeated with stands beside it",
    "model.attention": "the choice that everybody looks for, and overrides",
    "model.optimizer.lr": "the number that everybody looks for, and overrides",
}


def test_it_says_only_what_differs_from_the_defaults() -> None:
    found = {f"{file.parent.name}/{file.stem}": set(defaults_in(file)) for file in CONFIGS}
    assert {name: places - SAID_ALL_THE_SAME.keys() for name, places in found.items()} == {
        name: set() for name in found
    }
    assert set().union(*found.values()) == SAID_ALL_THE_SAME.keys()


def defaults_in(file: Path) -> Iterator[str]:
    """The places of a file that say what is the default."""
    preset = {"checkpoint": CHECKPOINT, "early_stopping": EARLY_STOPPING, "trainer": {"log_every_n_steps": 10}}
    for section, value in yaml.safe_load(file.read_text()).items():
        if section == "seed_everything":
            yield from [section] * (value == 0)
        elif section in GROUPS:
            yield from defaults_among(value, GROUPS[section], section, preset.get(section, {}))
        else:
            yield from defaults_among(value["init_args"], find(value["class_path"]), section, {})


def defaults_among(arguments: dict[str, Any], owner: Any, place: str, preset: dict[str, Any]) -> Iterator[str]:
    """The places of those arguments of a class that are its defaults, and of what is in them."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(owner).parameters.items()} | preset
    for name, value in arguments.items():
        here, default = f"{place}.{name}", defaults[name]
        named = value if isinstance(value, list) else [value]
        if all(isinstance(item, dict) and "class_path" in item for item in named):
            for item in named:
                inside = item.get("init_args", {})
                if not inside and find(item["class_path"]) is default:
                    yield here
                yield from defaults_among(inside, find(item["class_path"]), here, {})
        elif value == (list(default) if isinstance(default, tuple) else default):
            yield here


def find(path: str) -> Any:
    """A class by its full or short name."""
    module, _, name = path.rpartition(".")
    places = [module] if module else ["ika_lightning.tasks", "ika_lightning.data", "ika_lightning.attention"]
    return next(found for place in places if (found := getattr(import_module(place), name, None)))


@pytest.mark.parametrize("config", [*CONFIGS, *OVERLAYS], ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_its_first_lines_say_how_to_run_it(config: Path) -> None:
    name = f"configs/{config.parent.name}/{config.name}"
    (command,) = [line for line in config.read_text().splitlines()[:4] if line.startswith("#   ")]
    words = command.removeprefix("#   python -m ika_lightning fit --config ").split(" --config ")
    assert words[-1] == name and all((FOLDER.parent / file).is_file() for file in words)


def test_the_overlays_are_there() -> None:
    assert [file.stem for file in OVERLAYS] == ["bf16", "cpu", "ddp", "fsdp", "gpu", "multi_node"]


# A data set of each task that needs no files, as small as can be.
SMALL = {
    "regression/airline_passengers": ["--trainer.limit_train_batches", "1", "--model.width", "16"],
    "text_classification/languages": [
        "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1", "--model.width", "16",
    ],
    "translation/dates": [*SHORT["translation"], "--trainer.limit_train_batches", "1"],
    "node_classification/karate": [],
}  # fmt: skip
# What a machine without a GPU has to be told, for an overlay to be tried all the same.
ON_CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_nodes", "1"]


@pytest.fixture(params=SMALL, ids=lambda name: name.split("/")[0])
def small(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a short training of each task."""
    monkeypatch.chdir(tmp_path)
    config = FOLDER / f"{request.param}.yaml"
    return [
        "fit",
        "--config",
        str(config),
        *SMALL[request.param],
        "--trainer.max_epochs",
        "1",
        "--pictures",
        "0",
        *QUIET,
    ]


@pytest.mark.filterwarnings("ignore:It is recommended to use .*sync_dist")  # metrics do it themselves
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda file: file.stem)
def test_overlay_with_each_task(overlay: Path, small: list[str], tmp_path: Path) -> None:
    main([*small[:3], "--config", str(overlay), *small[3:], *ON_CPU])
    (saved,) = tmp_path.glob("runs/*/version_0/config.yaml")
    trainer, wanted = yaml.safe_load(saved.read_text())["trainer"], yaml.safe_load(overlay.read_text())["trainer"]
    told = {word.removeprefix("--trainer.") for word in ON_CPU}
    assert {key: trainer[key] for key in wanted if key not in told | {"strategy"}} == {
        key: value for key, value in wanted.items() if key not in told | {"strategy"}
    }
    strategy = wanted.get("strategy", "auto")
    assert trainer["strategy"] == strategy or trainer["strategy"]["class_path"] == strategy["class_path"]
    assert trainer["logger"]["class_path"].endswith("TensorBoardLogger")  # of the task's file
    (best,) = tmp_path.glob("runs/*/version_0/checkpoints/best.ckpt")
    assert load(best).hparams["num_heads"] > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("name", ["gpu", "fsdp"])
def test_overlay_for_gpus_without_one(name: str, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*small, "--config", str(FOLDER / "trainer" / f"{name}.yaml")])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: --trainer.accelerator gpu: PyTorch finds no GPU that it can use; install its build for your GPU "
        f"(this is {torch.__version__}), or train without: --trainer.accelerator cpu\n"
    )


def test_later_files_win_and_options_win_over_files(capsys: pytest.CaptureFixture[str]) -> None:
    def merged(*words: str) -> dict:
        with pytest.raises(SystemExit):
            main(["fit", *words, "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)["trainer"]

    co2 = ["--config", str(FOLDER / "regression" / "co2.yaml")]
    cpu, ddp = (["--config", str(FOLDER / "trainer" / f"{name}.yaml")] for name in ("cpu", "ddp"))
    assert (merged(*co2, *cpu, *ddp)["strategy"], merged(*co2, *ddp, *cpu)["strategy"]) == ("ddp", "auto")
    assert merged(*co2, *cpu)["gradient_clip_val"] == merged(*co2)["gradient_clip_val"] == 1.0
    assert int(merged("--trainer.devices", "3", *co2, *cpu)["devices"]) == 3  # the parser may leave a number a text
    assert merged(*co2, "--trainer.devices=3", *cpu)["accelerator"] == "cpu"
