import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ika_lightning import __version__
from ika_lightning.cli import SUBCOMMANDS, main

PROGRAM = "python -m ika_lightning"


class ToyMixer(nn.Module):
    def __init__(self, width: int, heads: int, *, dropout: float = 0.0):
        super().__init__()


class ToyMixerP(ToyMixer):
    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, p: float = 2.0):
        super().__init__(width, heads, dropout=dropout)
        if p < 1:
            raise ValueError(f"p must be at least 1, got {p}")


class ToyModel(LightningModule):
    """A straight line.

    Args:
        mixer: Not used, but configurable like attention.
        layers: How many.
        optimizer: What steps.
    """

    def __init__(
        self,
        mixer: Callable[[int, int], ToyMixer] = ToyMixerP,
        layers: int = 2,
        optimizer: OptimizerCallable = torch.optim.Adam,
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["mixer", "optimizer"])
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        if layers > 1000:
            raise AttributeError("a bug")
        self.mixer = mixer(8, 2)
        self.line = nn.Linear(3, 1)
        self.optimizer = optimizer

    def training_step(self, batch, index):
        return self.measure(batch, "train/loss")

    def validation_step(self, batch, index):
        self.measure(batch, "val/loss")

    def test_step(self, batch, index):
        self.measure(batch, "test/loss")

    def measure(self, batch, name):
        loss = (self.line(batch[0]) - batch[1]).square().mean()
        self.log(name, loss)
        return loss

    def predict_step(self, batch, index):
        return self.line(batch[0])

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class ToyInterrupted(ToyModel):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            raise KeyboardInterrupt


class ToyData(LightningDataModule):
    def __init__(
        self,
        path: str | None = None,
        batch_size: int = 16,
        predict_path: str | None = None,
        names: list[str] | None = None,
    ):
        super().__init__()
        self.batch_size = batch_size
        self.predict_path = predict_path

    def loader(self) -> DataLoader:
        x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader

    def write_predictions(self, path: Path, predictions: Tensor) -> None:
        path.write_text(
            f"{self.predict_path}\n" + "".join(f"{value:.4f}\n" for value in predictions.flatten().tolist())
        )


TOY = ["--model", "ToyModel", "--data", "ToyData"]
# the classes of this file, which its checkpoints name
TRUST = [word for name in ("ToyModel", "ToyData", "ToyMixerP") for word in ("--trust", f"{__name__}.{name}")]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
QUIET += ["--trainer.enable_model_summary", "false"]


def run(capsys, *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = 0
    try:
        main(list(args))
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def error_of(capsys, *args: str) -> str:
    """The message of a command that has to end with one line on stderr and exit code 2."""
    code, _, stderr = run(capsys, *args)
    assert code == 2
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    return stderr.removeprefix("error: ").rstrip()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """The folder of a training of two epochs."""
    with chdir(tmp_path_factory.mktemp("trained")):
        main(["fit", *TOY, *QUIET, "--trainer.max_epochs", "2"])
        return Path("runs/toymodel/version_0").resolve()


@pytest.fixture
def best(run_folder) -> str:
    return str(run_folder / "checkpoints" / "best.ckpt")


class TestFrontDoor:
    def test_help_names_the_subcommands(self, capsys):
        code, stdout, _ = run(capsys, "--help")
        assert code == 0
        assert all(name in stdout for name in SUBCOMMANDS)

    def test_version(self, capsys):
        assert run(capsys, "--version") == (0, f"ika-lightning {__version__}\n", "")

    def test_nothing_shows_help_and_fails(self, capsys):
        code, stdout, _ = run(capsys)
        assert (code, stdout.split()[0]) == (2, "usage:")

    def test_unknown_subcommand(self, capsys):
        assert error_of(capsys, "fti") == f"unknown subcommand 'fti'; did you mean fit? Try: {PROGRAM} --help"

    @pytest.mark.parametrize("option", ["--help", "--version"])
    def test_help_needs_no_torch(self, option):
        code = f"""
import sys
from ika_lightning.cli import main
try:
    main([{option!r}])
except SystemExit:
    sys.exit("torch" in sys.modules)
"""
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=_environment())
        assert done.returncode == 0


class TestHelp:
    def test_of_a_subcommand(self, capsys):
        code, stdout, _ = run(capsys, "fit", "--help")
        assert code == 0
        assert "--early_stopping.patience" in stdout and "--weights_only" not in stdout

    def test_of_evaluation_leaves_out_training(self, capsys):
        code, stdout, _ = run(capsys, "predict", "--help")
        assert code == 0
        assert "--input" in stdout and "--output" in stdout and "early_stopping" not in stdout

    def test_of_a_class(self, capsys):
        code, stdout, _ = run(capsys, "fit", "--model.help", "ToyModel")
        assert code == 0 and "--model.layers" in stdout

    def test_of_a_class_in_a_class(self, capsys):
        code, stdout, _ = run(capsys, "fit", "--model", "ToyModel", "--model.mixer.help", "ToyMixerP")
        assert code == 0 and "mixer.p" in stdout


# options after `fit --model ToyModel --data ToyData`, and the error
WRONG_OPTIONS = {
    "--trainer.max_epoch 3": (
        "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs, --trainer.min_epochs or "
        f"--trainer.max_steps? Try: {PROGRAM} fit --help"
    ),
    "--data.pth x": (
        f"--data.pth: ToyData has no such option; did you mean path? Try: {PROGRAM} fit --data.help ToyData"
    ),
    "--modle": f"unknown option --modle; did you mean --model or --model.help? Try: {PROGRAM} fit --help",
    "--early_stopping.patence 3": (
        "unknown option --early_stopping.patence; did you mean --early_stopping.patience, --early_stopping.strict "
        f"or --early_stopping.mode? Try: {PROGRAM} fit --help"
    ),
    "stray": f"unexpected argument 'stray'. Try: {PROGRAM} fit --help",
    "--model ToyModle": (f"--model: unknown class 'ToyModle'; did you mean ToyModel? Try: {PROGRAM} fit --help"),
    "--data ToyDta": f"--data: unknown class 'ToyDta'; did you mean ToyData? Try: {PROGRAM} fit --help",
    "--model.mixer=ToyMixerQ": (
        f"--model.mixer: unknown class 'ToyMixerQ'; did you mean ToyMixerP? Try: {PROGRAM} fit --model.help ToyModel"
    ),
    "--model.mixer=ToyMixerP --model.mixer.q=2": (
        "--model.mixer.q: ToyMixerP has no such option; choose from dropout, p. "
        f"Try: {PROGRAM} fit --model ToyModel --model.mixer.help ToyMixerP"
    ),
    "--trainer.logger TensorBordLogger": (
        "--trainer.logger: unknown class 'TensorBordLogger'; did you mean TensorBoardLogger, WandbLogger or "
        f"CometLogger? Try: {PROGRAM} fit --help"
    ),
    "--trainer.max_epochs three": (
        f"--trainer.max_epochs: expected int or null, got 'three'. Try: {PROGRAM} fit --help"
    ),
    "--early_stopping.patience x": f"--early_stopping.patience: expected int, got 'x'. Try: {PROGRAM} fit --help",
    "--model.layers two": (f"--model.layers: expected int, got 'two'. Try: {PROGRAM} fit --model.help ToyModel"),
    "--model.mixer.p=two": (
        f"--model.mixer.p: expected float, got 'two'. Try: {PROGRAM} fit --model ToyModel --model.mixer.help ToyMixerP"
    ),
    "--ckpt_path": f"argument --ckpt_path: expected one argument. Try: {PROGRAM} fit --help",
    "--data.names [No]": (
        "--data.names: expected list[str] or null, got 'False' (YAML takes words such as No and null, and numbers, for "
        f"no text: put text in quotes, '[\"No\"]'). Try: {PROGRAM} fit --data.help ToyData"
    ),
    "--trainer.logger CometLogger": (
        "Requirement 'comet-ml>=3.44.4' not met. HINT: Try running `pip install -U 'comet-ml>=3.44.4'`"
    ),
    "--model.layers 0": "layers must be at least 1, got 0",
    "--model.mixer.p 0.5": "p must be at least 1, got 0.5",
    "--ckpt_path last": "--ckpt_path last: no last.ckpt below runs/toymodel to go on from",
    "--ckpt_path best": (
        "--ckpt_path best means nothing in a new process: give the file of a checkpoint, or random weights would be "
        "used"
    ),
    "--ckpt_path no.ckpt": "no checkpoint at no.ckpt",
    "--config no.yaml": "no configuration file at no.yaml.",
    "--model.help ToyModle": (f"--model: unknown class 'ToyModle'; did you mean ToyModel? Try: {PROGRAM} fit --help"),
}


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS.items(), ids=WRONG_OPTIONS)
def test_wrong_option(options, message, capsys):
    assert error_of(capsys, "fit", *TOY, *QUIET, *options.split()) == message


def test_a_value_that_only_the_trainer_can_refuse(capsys):
    message = error_of(capsys, "fit", *TOY, "--trainer.accelerator", "abacus")
    assert message.startswith("You selected an invalid accelerator name: `accelerator='abacus'`.")


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(capsys):
    gpu = str(Path(__file__).parents[1] / "configs" / "trainer" / "gpu.yaml")
    for options in (["--trainer.accelerator", "gpu"], ["--config", gpu]):
        message = error_of(capsys, "fit", *TOY, *options)
        assert message.startswith("--trainer.accelerator gpu: PyTorch finds no GPU that it can use; install its build")
        assert message.endswith("or train without: --trainer.accelerator cpu")


def test_options_of_an_unknown_model(capsys):
    message = error_of(capsys, "fit", "--data", "ToyData", "--model.layers=3")
    assert message.startswith("--model.layers: of which model? Add --model NAME, which may be ")


def test_nothing_to_run(capsys):
    assert error_of(capsys, "fit") == (
        f"nothing says what to run: give --config FILE, or --model NAME and --data NAME. Try: {PROGRAM} fit --help"
    )


# the text of x.yaml, and the error
WRONG_FILES = {
    "trainer:\n  max_epoch: 3": (
        "x.yaml:2: trainer.max_epoch: no such option; did you mean trainer.max_epochs, trainer.min_epochs or "
        f"trainer.max_steps? Try: {PROGRAM} fit --help"
    ),
    "model:\n  class_path: ToyModel\n  init_args:\n    layer: 3": (
        "x.yaml:4: model.layer: ToyModel has no such option; did you mean layers? "
        f"Try: {PROGRAM} fit --model.help ToyModel"
    ),
    "model:\n  class_path: ToyModel\n  init_args:\n    layers: two": (
        f"x.yaml:4: model.layers: expected int, got 'two'. Try: {PROGRAM} fit --model.help ToyModel"
    ),
    "model: ToyModle": (f"x.yaml:1: model: unknown class 'ToyModle'; did you mean ToyModel? Try: {PROGRAM} fit --help"),
    "model: ToyModel\n  data: [1": "x.yaml:2: not valid YAML: mapping values are not allowed here",
    "words": "x.yaml: expected sections such as model, data and trainer",
}


def test_a_file_that_is_not_utf8(capsys):
    Path("x.yaml").write_bytes("model: ToyModel\ndata: Toy\u00e4\n".encode("latin-1"))
    assert error_of(capsys, "fit", "--config", "x.yaml") == (
        "x.yaml, line 2: byte 0xe4 is not UTF-8; save the file with UTF-8 encoding"
    )


def test_an_interval_beyond_an_epoch(capsys):
    message = error_of(capsys, "fit", *TOY, *QUIET, "--trainer.val_check_interval", "5")
    assert message.startswith("`val_check_interval` (5) must be less than or equal to the number of the training batc")


def test_without_what_windows_lacks():
    code = """
import builtins
found = builtins.__import__
def without(name, *args, **kwargs):
    scope = args[0] if args else kwargs.get("globals")
    if name in ("resource", "fcntl", "pwd", "grp") and (scope or {}).get("__name__", "").startswith("ika_lightning"):
        raise ImportError(f"no module {name} on Windows")
    return found(name, *args, **kwargs)
builtins.__import__ = without
from ika_lightning.cli import main
import ika_lightning.cli.command
from ika_lightning.callbacks import signals
assert signals.resource is None
main(["fit", "--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert (done.returncode, "--early_stopping.patience" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(("text", "message"), WRONG_FILES.items())
def test_wrong_file(text, message, capsys):
    Path("x.yaml").write_text(text)
    assert error_of(capsys, "fit", "--config", "x.yaml") == message


def test_the_name_of_a_file_misspelt(capsys):
    Path("boston.yaml").write_text("model: ToyModel")
    assert error_of(capsys, "fit", "-c", "bosten.yaml") == (
        "no configuration file at bosten.yaml; did you mean boston.yaml?"
    )


def test_a_bug_keeps_its_traceback():
    with pytest.raises(AttributeError, match="a bug"):
        main(["fit", *TOY, *QUIET, "--model.layers", "1001"])


def test_no_traceback_from_the_shell():
    result = subprocess.run(
        [sys.executable, "-m", "ika_lightning", "fit", "--modle", "x"],
        capture_output=True,
        text=True,
        env=_environment(),
    )
    assert result.returncode == 2
    assert result.stderr == (
        f"error: unknown option --modle; did you mean --model or --model.help? Try: {PROGRAM} fit --help\n"
    )


class TestFit:
    def test_says_where_the_results_are(self, capsys):
        code, stdout, _ = run(capsys, "fit", *TOY, *QUIET, "--trainer.max_epochs", "1")
        assert code == 0
        lines = stdout.splitlines()[-5:]
        folder = "runs/toymodel/version_0"
        assert lines[0] == f"best checkpoint:  {folder}/checkpoints/best.ckpt"
        assert lines[1].startswith("val/loss:         ") and float(lines[1].split()[1]) > 0
        assert lines[2] == "of epoch:         0"
        assert lines[3] == f"TensorBoard:      {folder} (tensorboard --logdir {folder})"
        assert lines[4] == f"to test it:       {PROGRAM} test --ckpt_path {folder}/checkpoints/best.ckpt"

    def test_another_logger_is_no_tensorboard(self, capsys):
        csv = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"]
        _, stdout, _ = run(capsys, "fit", *TOY, *QUIET, "--trainer.max_epochs", "1", *csv)
        assert stdout.splitlines()[-2] == "log:              csv/toymodel/version_0"

    def test_early_stopping_without_validation(self, capsys):
        options = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--early_stopping.patience", "2"]
        message = error_of(capsys, "fit", *TOY, *QUIET, *options)
        assert message.startswith(
            "early stopping watches val/loss, which this training does not measure: let it validate, or give "
            "another --early_stopping.monitor: train/loss"
        )

    def test_leaves_its_configuration(self, run_folder):
        text = (run_folder / "config.yaml").read_text()
        assert yaml.safe_load(text)["model"]["init_args"]["layers"] == 2
        assert yaml.safe_load(text)["seed_everything"] == 0
        for name in ("best", "last"):
            checkpoint = torch.load(run_folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
            assert checkpoint["config"] == text

    def test_leaves_nothing_else(self, run_folder):
        names = {path.name.split(".")[0] for path in run_folder.rglob("*")}
        assert names == {"checkpoints", "best", "last", "before_last", "config", "run", "hparams", "events"}

    def test_options_override_files_wherever_they_stand(self, capsys):
        Path("x.yaml").write_text("model: ToyModel\ndata: ToyData\ntrainer:\n  max_epochs: 7")
        _, stdout, _ = run(capsys, "fit", "--trainer.max_epochs", "5", "-c", "x.yaml", "--print_config")
        assert yaml.safe_load(stdout)["trainer"]["max_epochs"] == 5

    @pytest.mark.parametrize(
        ("words", "layer", "options"),
        [
            ([], "IKANDirect", {"init": "rbf", "p": 2.0}),
            (["--model.attention.p=1.5"], "IKANDirect", {"init": "rbf", "p": 1.5}),
            (["--model.attention.init=softmax"], "IKANDirect", {"init": "softmax"}),
            (["--model.attention=DotProduct"], "DotProduct", {"backend": "auto"}),
        ],
    )
    def test_the_attention_of_regression(self, words, layer, options, capsys):
        _, stdout, _ = run(capsys, "fit", "--model", "Regression", *words, "--print_config")
        named = yaml.safe_load(stdout)["model"]["init_args"]["attention"]
        assert named["class_path"] == f"ika_lightning.attention.{layer}"
        assert options.items() <= named["init_args"].items()

    def test_sections_of_its_callbacks(self, capsys):
        Path("x.yaml").write_text("early_stopping:\n  patience: 7\ncheckpoint:\n  monitor: val/rmse")
        _, stdout, _ = run(capsys, "fit", *TOY, "-c", "x.yaml", "--checkpoint.mode", "max", "--print_config")
        config = yaml.safe_load(stdout)
        assert config["early_stopping"]["patience"] == 7 and config["early_stopping"]["monitor"] == "val/loss"
        assert config["checkpoint"]["monitor"] == "val/rmse" and config["checkpoint"]["mode"] == "max"

    def test_resumes_in_its_own_folder(self, capsys):
        assert run(capsys, "fit", *TOY, *QUIET, "--trainer.max_epochs", "1")[0] == 0
        code, stdout, _ = run(capsys, "fit", *TOY, *QUIET, "--trainer.max_epochs", "3", "--ckpt_path", "last")
        assert code == 0 and "version_0" in stdout
        last = Path("runs/toymodel/version_0/checkpoints/last.ckpt")
        assert torch.load(last, weights_only=True)["epoch"] == 3
        code, *_ = run(capsys, "fit", "--ckpt_path", str(last), *TRUST, "--trainer.max_epochs", "4")
        assert code == 0
        assert torch.load(last, weights_only=True)["epoch"] == 4
        assert [path.name for path in Path("runs/toymodel").iterdir()] == ["version_0"]

    def test_twice_into_one_folder(self, capsys):
        version = ["--trainer.logger.version", "3", "--trainer.max_epochs", "1"]
        assert run(capsys, "fit", *TOY, *QUIET, *version)[0] == 0
        folder = Path("runs/toymodel/version_3")
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert error_of(capsys, "fit", *TOY, *QUIET, *version) == (
            f"{folder} is there already: go on with it with --ckpt_path last, or give another --trainer.logger.version"
        )
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        assert run(capsys, "fit", *TOY, *QUIET, *version, "--ckpt_path", "last", "--trainer.max_epochs", "2")[0] == 0
        names = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert names == ["before_last.ckpt", "best.ckpt", "last.ckpt"]
        assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2

    def test_without_a_logger(self, capsys):
        Path("config.yaml").write_text("mine")
        plain = ["--trainer.logger", "false", "--trainer.max_epochs", "1"]
        code, stdout, _ = run(capsys, "fit", *TOY, *QUIET, *plain)
        folder = Path("runs/toymodel/version_0")
        assert code == 0 and "TensorBoard" not in stdout
        assert stdout.splitlines()[-1] == f"to test it:       {PROGRAM} test --ckpt_path {folder}/checkpoints/best.ckpt"
        assert (folder / "config.yaml").is_file() and (folder / "checkpoints" / "best.ckpt").is_file()
        assert run(capsys, "fit", *TOY, *QUIET, *plain, "--ckpt_path", "last")[0] == 0
        assert sorted(path.name for path in Path().iterdir()) == ["config.yaml", "runs"]
        assert Path("config.yaml").read_text() == "mine"
        assert run(capsys, "fit", *TOY, *QUIET, *plain, "--trainer.default_root_dir", "here")[0] == 0
        assert Path("here/toymodel/version_0/checkpoints/last.ckpt").is_file()

    def test_interrupted(self, capsys):
        args = ["fit", "--model", "ToyInterrupted", "--data", "ToyData", *QUIET]
        code, _, stderr = run(capsys, *args)
        assert code == 130
        last = Path("runs/toyinterrupted/version_0/checkpoints/last.ckpt")
        shown = stderr.splitlines()[-1].removeprefix("interrupted; the last checkpoint is ")
        assert Path(shown).resolve() == last.resolve()
        assert last.is_file()


class TestEvaluation:
    def test_a_checkpoint_is_enough(self, best, capsys):
        code, stdout, _ = run(capsys, "test", "--ckpt_path", best, *TRUST)
        assert code == 0 and "test/loss" in stdout
        assert list(Path().iterdir()) == []

    def test_also_elsewhere(self, best, capsys):
        Path("moved.ckpt").write_bytes(Path(best).read_bytes())
        code, stdout, _ = run(capsys, "validate", "--ckpt_path", "moved.ckpt", *TRUST)
        assert code == 0 and "val/loss" in stdout

    def test_the_file_beside_it_is_enough(self, best, run_folder, capsys):
        checkpoint = torch.load(best, weights_only=True)
        del checkpoint["config"]
        Path("run/checkpoints").mkdir(parents=True)
        torch.save(checkpoint, "run/checkpoints/best.ckpt")
        message = error_of(capsys, "test", "--ckpt_path", "run/checkpoints/best.ckpt")
        assert message == "run/checkpoints/best.ckpt does not tell its configuration: give --config FILE as well"
        Path("run/config.yaml").write_text((run_folder / "config.yaml").read_text())
        assert run(capsys, "test", "--ckpt_path", "run/checkpoints/best.ckpt", *TRUST)[0] == 0

    def test_options_override_the_checkpoint(self, best, capsys):
        args = ["test", "--ckpt_path", best, *TRUST, "--data.batch_size", "5", "--print_config"]
        config = yaml.safe_load(run(capsys, *args)[1])
        assert config["data"]["init_args"]["batch_size"] == 5
        assert config["model"]["class_path"].endswith("ToyModel")
        assert config["trainer"]["logger"] is False

    def test_files_of_training_are_taken(self, best, capsys):
        Path("x.yaml").write_text(
            "model: ToyModel\ndata: ToyData\nearly_stopping:\n  patience: 3\n"
            "trainer:\n  logger:\n    class_path: CSVLogger\n    init_args: {save_dir: x}\n"
        )
        assert run(capsys, "test", "--config", "x.yaml", "--ckpt_path", best)[0] == 0
        assert [path.name for path in Path().iterdir()] == ["x.yaml"]

    def test_needs_a_checkpoint(self, best, capsys):
        assert error_of(capsys, "test", *TOY) == (
            "--ckpt_path FILE is missing: give the file of a checkpoint, or random weights would be used"
        )

    @pytest.mark.parametrize("word", ["last", "best", "hpc"])
    def test_a_word_is_no_checkpoint(self, word, capsys):
        old, new = Path("runs/a/version_0/checkpoints/last.ckpt"), Path("runs/b/version_0/checkpoints/last.ckpt")
        for age, path in enumerate((new, old)):
            path.parent.mkdir(parents=True)
            path.touch()
            os.utime(path, (1e9 - age, 1e9 - age))
        assert error_of(capsys, "test", *TOY, "--ckpt_path", word) == (
            f"--ckpt_path {word} means nothing in a new process: give the file of a checkpoint, or random weights "
            f"would be used; the newest here: {new}, {old}"
        )

    def test_weights_that_do_not_fit(self, best, capsys):
        checkpoint = torch.load(best, weights_only=True)
        checkpoint["state_dict"] = {"other": torch.ones(1)}
        torch.save(checkpoint, "x.ckpt")
        message = error_of(capsys, "test", "--ckpt_path", "x.ckpt", *TRUST)
        assert message.startswith("the checkpoint does not fit the model: ") and "line.weight" in message


def _cut(best: str) -> None:
    whole = Path(best).read_bytes()
    Path("x.ckpt").write_bytes(whole[: len(whole) // 2])


WRONG_CHECKPOINTS = {
    "missing": (lambda best: None, "no checkpoint at x.ckpt"),
    "cut": (_cut, "x.ckpt is not a checkpoint, or was cut short"),
    "empty": (lambda best: Path("x.ckpt").touch(), "x.ckpt is not a checkpoint, or was cut short"),
    "text": (lambda best: Path("x.ckpt").write_text("hello"), "x.ckpt is not a checkpoint, or was cut short"),
    "list": (lambda best: torch.save([1], "x.ckpt"), "x.ckpt is not a Lightning checkpoint: it holds no 'state_dict'"),
    "other framework": (
        lambda best: torch.save({"model": {}}, "x.ckpt"),
        "x.ckpt is not a Lightning checkpoint: it holds no 'state_dict'",
    ),
    "bare weights": (
        lambda best: torch.save({"state_dict": {}}, "x.ckpt"),
        "x.ckpt is not a Lightning checkpoint: it holds no 'pytorch-lightning_version'",
    ),
    "code": (
        lambda best: torch.save({"state_dict": {}, "run": os.system}, "x.ckpt"),
        "x.ckpt holds posix.system, which takes running code from the file to load: refused",
    ),
}


@pytest.mark.parametrize("case", WRONG_CHECKPOINTS)
@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_wrong_checkpoint(subcommand, case, best, capsys):
    write, message = WRONG_CHECKPOINTS[case]
    write(best)
    assert error_of(capsys, subcommand, *TOY, "--ckpt_path", "x.ckpt").startswith(message)


def test_weights_alone_cannot_be_trained_on(best, capsys):
    checkpoint = torch.load(best, weights_only=True)
    del checkpoint["optimizer_states"]
    torch.save(checkpoint, "x.ckpt")
    message = error_of(capsys, "fit", "--ckpt_path", "x.ckpt")
    assert message == "x.ckpt holds weights alone: a training cannot go on from it"


class TestPredict:
    def test_writes_and_says_so(self, best, capsys):
        code, stdout, _ = run(
            capsys, "predict", *QUIET, *TRUST, "--ckpt_path", best, "--input", "new.csv", "--output", "out.csv"
        )
        assert code == 0
        assert stdout.splitlines()[-1] == "64 predictions written to out.csv"
        lines = Path("out.csv").read_text().splitlines()
        assert lines[0] == "new.csv" and len(lines) == 65

    def test_an_output_that_cannot_be_written(self, best, capsys):
        message = error_of(capsys, "predict", *QUIET, *TRUST, "--ckpt_path", best, "--output", "no/out.csv")
        assert message == "cannot write no/out.csv: there is no folder no; create it first"

    def test_many_processes(self, best, capsys):
        message = error_of(capsys, "predict", *QUIET, *TRUST, "--ckpt_path", best, "--trainer.devices", "2")
        assert message == "predict runs in one process: use --trainer.devices 1"


def test_regression_from_one_end_to_the_other(capsys):
    args = ["--model", "Regression", "--data", "RegressionData", "--data.name", "co2", "--trainer.max_epochs", "1"]
    assert run(capsys, "fit", *args, *QUIET, "--model.width", "16", "--model.attention", "DotProduct")[0] == 0
    best = "runs/co2/version_0/checkpoints/best.ckpt"
    code, stdout, _ = run(capsys, "test", "--ckpt_path", best)
    assert code == 0 and "test/rmse" in stdout
    table = files("ika_lightning.data") / "embedded" / "co2.csv"
    assert run(capsys, "predict", "--ckpt_path", best, "--input", str(table))[0] == 0
    lines = Path("predictions.csv").read_text().splitlines()
    assert len(lines) == len(table.read_text().strip().splitlines())
    assert lines[0].endswith(",predicted_co2_ppm,predicted_co2_ppm_lower,predicted_co2_ppm_upper")


def test_a_regression_says_how_sure_it_is(capsys):
    args = ["--model", "Regression", "--data", "RegressionData", "--data.name", "co2", "--trainer.max_epochs", "1"]
    sure = ["--model.likelihood", "gaussian", "--model.ensemble", "2", "--model.width", "16", "--model.depth", "1"]
    sure += ["--pictures", "0"]
    assert run(capsys, "fit", *args, *QUIET, *sure)[0] == 0
    best = "runs/co2/version_0/checkpoints/best.ckpt"
    code, stdout, _ = run(capsys, "test", "--ckpt_path", best)
    assert code == 0 and {"test/nll", "test/crps", "test/coverage", "test/width"} <= set(stdout.split())
    table = str(files("ika_lightning.data") / "embedded" / "co2.csv")
    widths = []
    for interval in ([], ["--model.interval", "0.5"]):
        assert run(capsys, "predict", "--ckpt_path", best, "--input", table, *QUIET, *interval)[0] == 0
        written = pd.read_csv("predictions.csv").filter(like="predicted_co2_ppm")
        assert [name.removeprefix("predicted_co2_ppm") for name in written] == ["", "_std", "_lower", "_upper"]
        mean, std, lower, upper = written.to_numpy().T
        np.testing.assert_allclose((lower + upper) / 2, mean)
        assert (std > 0).all()
        widths.append(upper - lower)
    assert (widths[1] < widths[0]).all()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("likelihood", "poisson", "--model.likelihood: expected typing.Literal['gaussian'] or null, got 'poisson'."),
        ("interval", "1.5", "interval must be between 0 and 1, such as 0.9, got 1.5"),
        ("ensemble", "0", "ensemble must be at least 1, got 0"),
    ],
)
def test_options_of_a_regression_that_are_wrong(option, value, message, capsys):
    args = ["--model", "Regression", "--data", "RegressionData", "--data.name", "co2"]
    assert error_of(capsys, "fit", *args, f"--model.{option}", value).startswith(message)


class TestTextClassification:
    @pytest.fixture
    def rows(self) -> Path:
        Path("rows.tsv").write_text("".join(f"{'ab'[i % 2]}\t{['good', 'bad'][i % 2]} one {i}\n" for i in range(40)))
        return Path("rows.tsv")

    def fit(self, *options: str) -> tuple[str, ...]:
        args = ["--model", "TextClassification", "--data", "TextClassificationData", "--data.path", "rows.tsv"]
        return ("fit", *args, *QUIET, "--trainer.max_epochs", "1", "--pictures", "0", "--model.width", "16", *options)

    def test_from_one_end_to_the_other(self, rows, capsys, monkeypatch):
        options = ["--model.attention", "IKAN", "--model.attention.p=1.5", "--model.class_weights", "balanced"]
        code, _, stderr = run(capsys, *self.fit(*options, "--data.label", "1", "--data.text", "2"))
        assert code == 0, stderr
        best = "runs/rows/version_0/checkpoints/best.ckpt"
        code, stdout, _ = run(capsys, "test", "--ckpt_path", best)
        assert code == 0 and "test/f1" in stdout and "| true \\ predicted | a | b |" in stdout
        rows.unlink()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"bad one\ngood, good one\nbad\n")))
        assert run(capsys, "predict", "--ckpt_path", best, "--input", "-", "--output", "out.tsv")[0] == 0
        header, *lines = Path("out.tsv").read_text().splitlines()
        assert header.split("\t") == ["row", "text", "predicted_label", "probability_a", "probability_b"]
        assert [line.split("\t")[:2] for line in lines] == [["1", "bad one"], ["2", "good, good one"], ["3", "bad"]]

    def test_a_mistake_in_a_file_is_one_line(self, rows, capsys):
        with rows.open("a") as file:
            file.write("a good one\n")
        message = error_of(capsys, *self.fit())
        assert message == "rows.tsv, line 41: 1 columns where 2 are needed; separate label and text by a tab"


def _environment() -> dict[str, str]:
    """The package is importable from the folder of a test as well."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
