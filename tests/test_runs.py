"""Runs that can be repeated, gone on with, and that end with one line when something is wrong."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from contextlib import chdir
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

import ika_lightning
from ika_lightning.cli import main
from ika_lightning.cli.record import differences
from ika_lightning.data import RegressionData
from ika_lightning.tasks import Regression

REGRESSION = [
    "--model", "Regression", "--data", "RegressionData", "--data.name", "airline_passengers", "--data.batch_size", "32",
    "--model.width", "8", "--model.depth", "1", "--model.num_heads", "2", "--model.dropout", "0.2",
    "--model.attention.num_samples", "4",
]  # fmt: skip
KARATE = ["--model", "NodeClassification", "--data", "NodeClassificationData", "--data.name", "karate"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
QUIET += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--pictures", "0"]
CSV = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs", "--trainer.logger.name"]
RUN = Path("runs/airline_passengers/version_0")
EMBEDDED = Path(ika_lightning.__file__).parent / "data" / "embedded"


class Terminated(Regression):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def error_of(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*args])
    stderr = capsys.readouterr().err
    assert end.value.code == 2
    message = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(message) == 1 and stderr.endswith(f"{message[0]}\n"), stderr
    return message[0].removeprefix("error: ")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    with chdir(folder):
        main(["fit", *REGRESSION, *QUIET])
    return folder


@pytest.fixture
def trained(trained_once: Path) -> Path:
    """The last checkpoint of a training of two epochs, which a test may change."""
    shutil.copytree(trained_once, Path(), dirs_exist_ok=True)
    return RUN / "checkpoints" / "last.ckpt"


def test_the_same_seed_gives_the_same_metrics() -> None:
    long = ["--trainer.max_epochs", "20"]  # so that there are figures of callbacks, too
    for name in ("a", "b"):
        main(["fit", *REGRESSION, *QUIET, *long, *CSV, name, "--trainer.deterministic", "true"])
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    one, other = (Path("runs", name, "version_0", "metrics.csv").read_bytes() for name in ("a", "b"))
    assert one == other and b"gradient/norm" in one.splitlines()[0]


def test_a_run_says_what_it_is_made_of(trained) -> None:
    record = yaml.safe_load((RUN / "run.yaml").read_text())
    assert record["command"] == sys.argv[1:]
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["data"]) == {"table", "train", "val", "test"}
    assert record["git"] is None
    assert torch.load(trained, weights_only=True)["run"] == record
    subprocess.run(
        ["sh", "-c", f"git init -q && git add {RUN / 'run.yaml'} && git -c user.name=x -c user.email=x commit -qm x"],
        check=True,
    )  # fmt: skip
    main(["fit", *KARATE, *QUIET])
    record = yaml.safe_load(Path("runs/karate/version_0/run.yaml").read_text())
    assert len(record["git"]) == 40 and set(record["data"]) == {"graph", "train", "val", "test"}


def test_a_training_that_diverges_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e38", "--model.scheduler", "null"]
    main(["fit", *REGRESSION, *QUIET, *options])
    said = capsys.readouterr()
    assert "val/loss:         nan" in said.out or "val/loss:         inf" in said.out
    assert (
        "note: the training has diverged: val/loss was no number, or infinite, in all validations; train " in said.err
    )


class TestGoingOn:
    def test_what_differs_is_said(self, trained, capsys):
        # only what results may depend on
        more = ["--trainer.max_epochs", "3", "--trainer.gradient_clip_val", "null"]
        main(["fit", *REGRESSION, *QUIET, "--ckpt_path", "last", *more])
        notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        assert notes == ["note: going on with another configuration: trainer.max_epochs: 2 -> 3"]

    def test_what_makes_another_run_is_refused(self, trained, capsys):
        before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
        more = ["--trainer.max_epochs", "3", "--data.seed", "1", "--seed_everything", "2"]
        assert error_of(capsys, "fit", *REGRESSION, *QUIET, "--ckpt_path", "last", *more) == (
            f"--ckpt_path last: {RUN} is a run with other options (seed_everything: 0 -> 2; data.seed: 0 -> 1); give "
            "the same to go on with it, or the file of its checkpoint to begin a new run with that"
        )
        assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before
        # its file begins a new run, which says where it comes from and what else has changed
        with pytest.warns(UserWarning, match="other rows are drawn for (train|val) than"):
            main(["fit", *REGRESSION, *QUIET, "--ckpt_path", str(trained), *more])
        new = RUN.with_name("version_1")
        notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        assert notes[0] == f"note: {new} is a new run, which goes on from {trained}"
        changed = ["data.seed: 0 -> 1", "seed_everything: 0 -> 2", "trainer.max_epochs: 2 -> 3"]
        assert sorted(notes[1].removeprefix("note: going on with another configuration: ").split("; ")) == changed
        assert notes[2].startswith("note: going on with other versions or data than before: data.train: ")
        assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before
        assert yaml.safe_load((new / "config.yaml").read_text())["ckpt_path"] == str(trained)
        assert torch.load(new / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 3

    @pytest.mark.parametrize("rows", ["others of one file", "another file"])
    def test_other_rows_are_measured_before_it_goes_on(self, trained, rows: str) -> None:
        """Or the best would be what was measured on rows of before, and so the first to be saved."""
        more, name = ["--trainer.max_epochs", "4"], "airline_passengers"
        if rows == "another file":
            header, *lines = (EMBEDDED / f"{name}.csv").read_text().splitlines()
            _, month, date, target = header.split(",")
            cells = [f"{a},{b},{1000 * int(y)}" for _, a, b, y in (line.split(",") for line in lines)]
            Path("mine.csv").write_text("\n".join([f"{month},{date},{target}", *cells]) + "\n")
            more += ["--data.name", "null", "--data.path", "mine.csv", "--data.target", target]
            name = "mine"
        else:
            more += ["--data.seed", "1"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "other rows are drawn for (train|val|test) than")
            main(["fit", *REGRESSION, *QUIET, "--ckpt_path", str(trained), *more])
        (best,) = max(Path("runs", name).glob("version_*")).glob("checkpoints/best.ckpt")
        model = Regression.load_from_checkpoint(best, weights_only=True)
        data = RegressionData.load_from_checkpoint(best, weights_only=True)
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        (found,) = trainer.validate(model, data, verbose=False)
        measured = torch.load(best, weights_only=True)["measured"]
        assert measured["val/loss"] == pytest.approx(found["val/loss"], rel=1e-5)

    def test_nothing_is_said_if_nothing_differs(self, trained, capsys):
        main(["fit", *REGRESSION, *QUIET, "--ckpt_path", "last"])
        assert "note: " not in capsys.readouterr().err

    def test_a_damaged_checkpoint_gives_way_to_the_one_before(self, trained, capsys):
        whole = torch.load(trained, weights_only=True)
        trained.write_bytes(trained.read_bytes()[:-100])
        assert error_of(capsys, "fit", *REGRESSION, *QUIET, "--ckpt_path", str(trained)).startswith(
            f"{trained} is not a checkpoint, or was cut short; the one before is {trained.parent}/"
        )
        main(["fit", *REGRESSION, *QUIET, "--ckpt_path", "last"])
        before = trained.with_name("before_last.ckpt")
        notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        assert notes == [f"note: {trained} is damaged, or was cut short; going on from {before}"]
        resumed = torch.load(trained, weights_only=True)
        assert resumed["epoch"] == 2
        for name, value in whole["state_dict"].items():
            assert torch.equal(resumed["state_dict"][name], value)
        assert torch.load(before, weights_only=True)["global_step"] < resumed["global_step"]

    def test_none_that_is_whole(self, trained, capsys):
        for file in trained.parent.iterdir():
            file.write_bytes(file.read_bytes()[:-100])
        assert error_of(capsys, "fit", *REGRESSION, *QUIET, "--ckpt_path", "last") == (
            f"--ckpt_path last: {RUN} has no whole checkpoint to go on from; begin without --ckpt_path"
        )

    def test_code_is_refused(self, trained, capsys):
        torch.save(torch.load(trained, weights_only=True) | {"x": Path("a")}, trained)
        message = error_of(capsys, "fit", *REGRESSION, *QUIET, "--ckpt_path", "last")
        assert "which takes running code from the file to load: refused" in message

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (KARATE, "is not one of NodeClassification"),
            (
                ["--model.width", "16"],
                "the checkpoint has another network, with width=8 (here 16); give ",
            ),
        ],
    )
    def test_a_checkpoint_of_something_else(self, options, message, trained, capsys):
        options = options if options is KARATE else [*REGRESSION, *options]
        assert message in error_of(capsys, "fit", *options, *QUIET, "--ckpt_path", str(trained))

    def test_terminated(self, capsys):
        model = ["Terminated" if word == "Regression" else word for word in REGRESSION]
        with pytest.raises(SystemExit) as end:
            main(["fit", *model, *QUIET])
        assert end.value.code == 128 + signal.SIGTERM
        last = str(RUN / "checkpoints" / "last.ckpt")
        assert capsys.readouterr().err.splitlines()[-1] == f"terminated; the last checkpoint is {last}"
        assert torch.load(last, weights_only=True)["epoch"] == 1


class TestWhatTheMachineRefuses:
    def test_a_full_disk(self, trained, capsys, monkeypatch):
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        before = trained.read_bytes()
        monkeypatch.setattr(os, "fsync", full)
        more = ["--ckpt_path", "last", "--trainer.max_epochs", "3"]
        assert error_of(capsys, "fit", *REGRESSION, *QUIET, *more) == (
            f"cannot write the checkpoint {trained}: No space left on device; the one before is kept"
        )
        assert trained.read_bytes() == before

    def test_a_folder_that_cannot_be_made(self, capsys):
        Path("runs").write_text("a file")
        message = "cannot write runs/airline_passengers/version_0: Not a directory"
        assert error_of(capsys, "fit", *REGRESSION, *QUIET) == message

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_cannot_be_written_to(self, capsys):
        Path("runs").mkdir(mode=0o500)
        message = "cannot write runs/airline_passengers/version_0: Permission denied"
        assert error_of(capsys, "fit", *REGRESSION, *QUIET) == message

    def test_a_port_in_use(self, capsys, monkeypatch):
        with socket.socket() as taken:
            taken.bind(("", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
                monkeypatch.setenv(name, value)
            alone = ["--trainer.strategy", "ddp", "--trainer.devices", "1"]
            assert error_of(capsys, "fit", *REGRESSION, *QUIET, *alone) == (
                f"port {port} of this machine, by which the processes were to meet, is in use; choose another with the "
                "environment variable MASTER_PORT"
            )

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine may have as many")
    def test_more_devices_than_there_are(self, capsys):
        message = error_of(capsys, "fit", *REGRESSION, *QUIET, "--trainer.accelerator", "gpu", "--trainer.devices", "9")
        assert "gpu" in message.lower()


def test_differences_of_configurations() -> None:
    old = {"model": {"class_path": "a.b.C", "init_args": {"width": 3}}, "trainer": {"logger": 1}, "gone": None, "a": 1}
    new = {"model": {"class_path": "C", "init_args": {"width": 4, "depth": 2}}, "trainer": {"logger": 2}, "a": 2}
    assert differences(old, new) == ["model.width: 3 -> 4", "a: 1 -> 2", "model.depth: null -> 2"]


def test_decisive_differences() -> None:
    old = {"seed_everything": 0, "data": {"class_path": "a.Data", "init_args": {"path": "a/x.csv", "root": "here"}}}
    old |= {"model": {"class_path": "Model", "init_args": {"compile": False}}, "trainer": {"precision": None}}
    assert differences(old, old, decisive=True) == []
    # where things are and how they are computed, and options of a later version
    new = {"seed_everything": 0, "data": {"class_path": "b.Data", "init_args": {"path": "a/x.csv", "root": "there"}}}
    new |= {"model": {"class_path": "m.Model", "init_args": {"compile": True, "new": 1}}, "trainer": {"devices": 2}}
    new["trainer"]["precision"] = None
    assert differences(old, new, decisive=True) == []
    assert differences(old, new) == [
        "data.root: here -> there", "model.compile: false -> true", "model.new: null -> 1", "trainer.devices: null -> 2"
    ]  # fmt: skip
    new["data"]["init_args"]["path"] = "b/y.csv"
    assert differences(old, new, decisive=True) == ["data.path: a/x.csv -> b/y.csv"]
