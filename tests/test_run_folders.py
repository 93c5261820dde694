"""A run folder belongs to one run: whatever is killed, started at once, resumed by mistake, or refused by the disk."""

import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_cli import QUIET, TOY, TRUST, ToyData, ToyModel, run
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ika_lightning.callbacks import LastCheckpoint
from ika_lightning.cli import main, runs
from ika_lightning.cli.explain import user_message
from ika_lightning.cli.logs import quiet_threads
from ika_lightning.cli.runs import LOCK, Place, other_processes_run, own_run
from ika_lightning.output import write_output

LOGGERS = {
    "tensorboard": [],
    "csv": ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs"],
    "none": ["--trainer.logger", "false"],
}
ROOT = Path("runs/toymodel")
FIT = ["fit", *TOY, *QUIET, "--trainer.max_epochs"]

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork, which starts processes quickly")
pytestmark = [
    # Python's advice, from 3.12 on
    pytest.mark.filterwarnings("ignore:.*use of fork.* may lead to deadlocks"),
]


class ToyFailing(ToyModel):
    def setup(self, stage: str) -> None:
        raise ValueError("no such data")


class WrittenRows(ToyData):
    def write_predictions(self, path: Path, predictions: Tensor) -> None:
        write_output(path, "".join(f"{value}\n" for value in predictions.flatten().tolist()).encode())


class ToyWaiting(ToyModel):
    def on_train_start(self) -> None:
        Path("training").touch()
        wait_for(Path("go on"))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The message of a command that has to end with one line on stderr and exit code 2."""
    capsys.readouterr()
    code, _, stderr = run(capsys, *args)
    assert code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    return stderr.removeprefix("error: ").rstrip()


def files(folder: Path = Path()) -> dict[str, bytes]:
    """All files below a folder, and what is in them."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def epoch(folder: Path) -> int:
    return int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"])


def wait_for(*paths: Path, seconds: float = 60.0) -> None:
    for _ in range(int(seconds / 0.01)):
        if all(path.exists() for path in paths):
            return
        time.sleep(0.01)
    raise TimeoutError(f"{paths} are not there")


def start(*args: str, prepare: Callable[[], Any] = lambda: None, log: str = "log") -> BaseProcess:
    """Start a command in a process of its own, which does something else first."""

    def work() -> None:
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(handle, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        prepare()
        main(list(args))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def end(process: BaseProcess) -> int:
    process.join(timeout=60)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError("a process did not end")
    return process.exitcode


def killed_before_its_first_checkpoint(*args: str) -> None:
    def prepare() -> None:
        LastCheckpoint._save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    assert end(start(*FIT, "1", *args, prepare=prepare)) == -signal.SIGKILL


WAITING = ["fit", "--model", "ToyWaiting", "--data", "ToyData", *QUIET, "--trainer.max_epochs"]
WAITING_ROOT = Path("runs/toywaiting")


@forks
class TestTheNewestRun:
    def test_without_a_checkpoint_it_begins_anew(self, capsys):
        main([*FIT, "2"])
        finished = files(ROOT / "version_0")
        killed_before_its_first_checkpoint("--seed_everything", "1")
        capsys.readouterr()
        code, _, stderr = run(capsys, *FIT, "1", "--seed_everything", "1", "--ckpt_path", "last")
        assert code == 0
        assert stderr.splitlines() == [f"note: {ROOT}/version_1 has no checkpoint yet; it begins anew"]
        assert epoch(ROOT / "version_1") == 1
        assert files(ROOT / "version_0") == finished
        assert sorted(path.name for path in ROOT.iterdir()) == ["version_0", "version_1"]

    def test_with_other_options_it_is_refused(self, capsys):
        main([*FIT, "2"])
        killed_before_its_first_checkpoint("--seed_everything", "1")
        before = files()
        assert refused(capsys, *FIT, "2", "--ckpt_path", "last") == (
            f"--ckpt_path last: {ROOT}/version_1 is a run with other options (seed_everything: 1 -> 0); give the same "
            "to go on with it, or the file of its checkpoint to begin a new run with that"
        )
        assert files() == before

    def test_while_it_is_alive_it_is_refused(self, capsys):
        training = start(*WAITING, "2")
        wait_for(Path("training"))
        folder = WAITING_ROOT / "version_0"
        before = files(folder)
        last = str(folder / "checkpoints" / "last.ckpt")
        assert refused(capsys, *WAITING, "2", "--ckpt_path", "last") == (
            f"{folder} is the folder of a training that is running (process {training.pid} on {socket.gethostname()}); "
            "wait for its end, or end it"
        )
        assert files(folder) == before
        Path("go on").touch()
        assert end(training) == 0
        assert run(capsys, *WAITING, "3", "--ckpt_path", last)[0] == 0
        assert epoch(folder) == 3

    def test_is_not_the_one_that_runs_beside(self):
        first = start(*WAITING, "2")
        wait_for(Path("training"))
        Path("training").unlink()
        second = start(*WAITING, "1")
        wait_for(Path("training"))
        Path("training").unlink()
        second.kill()
        end(second)
        before = files(WAITING_ROOT / "version_0")
        resumed = start(*WAITING, "1", "--ckpt_path", "last", log="resumed")
        wait_for(Path("training"))
        assert files(WAITING_ROOT / "version_0") == before
        Path("go on").touch()
        assert [end(resumed), end(first)] == [0, 0]
        assert "version_1 has no checkpoint yet; it begins anew" in Path("resumed").read_text()
        assert (epoch(WAITING_ROOT / "version_0"), epoch(WAITING_ROOT / "version_1")) == (2, 1)

    def test_is_the_one_that_was_started_last(self, capsys):
        main([*FIT, "1"])
        main([*FIT, "1", "--trainer.logger.version", "named"])
        # going on with an older one does not make it newer
        older = ROOT / "version_0" / "checkpoints" / "last.ckpt"
        assert run(capsys, *FIT, "2", "--ckpt_path", str(older))[0] == 0
        assert run(capsys, *FIT, "3", "--ckpt_path", "last")[0] == 0
        assert (epoch(ROOT / "version_0"), epoch(ROOT / "named")) == (2, 3)

    def test_of_an_earlier_version_of_this_package(self, capsys):
        for number in (0, 1):
            main([*FIT, "1"])
            folder = ROOT / f"version_{number}"
            (folder / LOCK).unlink()
            (folder / "run.yaml").unlink()
            os.utime(folder / "config.yaml", (1e9 - number, 1e9 - number))
        assert run(capsys, *FIT, "2", "--ckpt_path", "last")[0] == 0
        assert (epoch(ROOT / "version_0"), epoch(ROOT / "version_1")) == (2, 1)

    def test_whose_checkpoints_were_deleted_is_left_alone(self, capsys):
        main([*FIT, "1", *LOGGERS["csv"], "--trainer.log_every_n_steps", "1"])
        shutil.rmtree(ROOT / "version_0" / "checkpoints")
        before = files()
        assert refused(capsys, *FIT, "2", *LOGGERS["csv"], "--ckpt_path", "last") == (
            f"--ckpt_path last: {ROOT}/version_0 has no whole checkpoint to go on from; begin without --ckpt_path"
        )
        assert files() == before


@forks
class TestAtOnce:
    @pytest.mark.parametrize("logger", LOGGERS)
    def test_two_begin(self, logger, capsys):
        """One is held between having looked which number is free and making the folder."""

        def prepare() -> None:
            make = runs._Folders.make

            def slowly(folders: Any, folder: Path) -> bool:
                Path("looked").touch()
                wait_for(Path("made"))
                return make(folders, folder)

            runs._Folders.make = slowly

        slow = start(*FIT, "2", *LOGGERS[logger], prepare=prepare)
        wait_for(Path("looked"))
        assert run(capsys, *FIT, "1", *LOGGERS[logger])[0] == 0
        assert [path.name for path in ROOT.iterdir()] == ["version_0"]
        before = files(ROOT / "version_0")
        Path("made").touch()
        assert end(slow) == 0, Path("log").read_text()
        assert sorted(path.name for path in ROOT.iterdir()) == ["version_0", "version_1"]
        assert files(ROOT / "version_0") == before
        assert (epoch(ROOT / "version_0"), epoch(ROOT / "version_1")) == (1, 2)

    def test_two_begin_with_one_version(self, capsys):
        training = start(*WAITING, "1", "--trainer.logger.version", "x")
        wait_for(Path("training"))
        before = files(WAITING_ROOT)
        assert refused(capsys, *WAITING, "1", "--trainer.logger.version", "x").startswith(
            f"{WAITING_ROOT}/x is there already: go on with it with --ckpt_path last, or give another"
        )
        assert files(WAITING_ROOT) == before
        Path("go on").touch()
        assert end(training) == 0

    def test_two_go_on(self, capsys):
        main([*FIT, "1"])

        def prepare() -> None:
            find = runs._find

            def slowly(*args: Any) -> Path | None:
                found = find(*args)
                Path("looked").touch()
                wait_for(Path("held"))
                return found

            runs._find = slowly

        slow = start(*FIT, "3", "--ckpt_path", "last", prepare=prepare)
        wait_for(Path("looked"))
        with own_run(Place((ROOT,)), "last", yaml.safe_load((ROOT / "version_0" / "config.yaml").read_text())):
            Path("held").touch()
            assert end(slow) == 2
        said = f"error: {ROOT}/version_0 is the folder of a training that is running"
        assert Path("log").read_text().startswith(said)
        assert epoch(ROOT / "version_0") == 1

    def test_one_begins_and_one_takes_its_folder_for_what_a_kill_left(self, capsys):
        """Between making the folder and locking it."""

        def prepare() -> None:
            hold = runs._Folders.hold

            def slowly(folders: Any, folder: Path) -> bool:
                Path("made").touch()
                wait_for(Path("taken"))
                return hold(folders, folder)

            runs._Folders.hold = slowly

        slow = start(*FIT, "2", prepare=prepare)
        wait_for(Path("made"))
        with own_run(Place((ROOT,)), "last", {}) as taken:
            assert taken.folder == ROOT / "version_0"
            Path("taken").touch()
            assert end(slow) == 0, Path("log").read_text()
        assert epoch(ROOT / "version_1") == 2
        assert sorted(path.name for path in (ROOT / "version_0").iterdir()) == [LOCK, "run.yaml"]


class TestNamesOfFolders:
    @pytest.mark.parametrize("logger", ["tensorboard", "csv"])
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["name", "../up"], "--trainer.logger.name ../up leads out of runs; give a name alone, and where it goes"),
            (["name", "a/../../up"], "--trainer.logger.name a/../../up leads out of runs; give a name alone"),
            (["name", "/tmp/up"], "--trainer.logger.name /tmp/up leads out of runs; give a name alone"),
            (["version", "../../up"], "--trainer.logger.version '../../up' is not the name of a folder"),
            (["version", ".."], "--trainer.logger.version '..' is not the name of a folder"),
            (["version", "."], "--trainer.logger.version '.' is not the name of a folder"),
            (["version", ""], "--trainer.logger.version '' is not the name of a folder"),
        ],
    )
    def test_that_lead_out_are_refused(self, options, message, logger, capsys):
        word, value = options
        command = [*FIT, "1", *LOGGERS[logger], f"--trainer.logger.{word}", value]
        assert refused(capsys, *command).startswith(message)
        assert list(Path().iterdir()) == []

    def test_that_stay_inside(self, capsys):
        assert run(capsys, *FIT, "1", "--trainer.logger.name", "a/b", "--trainer.logger.version", "c")[0] == 0
        assert epoch(Path("runs/a/b/c")) == 1
        # no other run of the name a
        assert refused(capsys, *FIT, "1", "--trainer.logger.name", "a", "--ckpt_path", "last").startswith(
            "--ckpt_path last: no last.ckpt below runs/a to go on from"
        )

    def test_a_folder_that_somebody_made(self, capsys):
        (ROOT / "mine").mkdir(parents=True)
        assert refused(capsys, *FIT, "1", "--trainer.logger.version", "mine").startswith(
            f"{ROOT}/mine is there already"
        )
        assert list((ROOT / "mine").iterdir()) == []
        # of numbers, the next is taken
        (ROOT / "version_7").symlink_to("nowhere")
        assert run(capsys, *FIT, "1")[0] == 0
        assert sorted(path.name for path in ROOT.iterdir()) == ["mine", "version_7", "version_8"]

    def test_two_loggers_have_one_version(self, capsys):
        Path("x.yaml").write_text(
            "trainer:\n  logger:\n"
            "  - {class_path: TensorBoardLogger, init_args: {save_dir: runs, name: null, default_hp_metric: false}}\n"
            "  - {class_path: CSVLogger, init_args: {save_dir: csv, name: null}}\n"
        )
        (ROOT / "version_0").mkdir(parents=True)
        assert run(capsys, *FIT, "1", "--config", "x.yaml")[0] == 0
        for folder in (ROOT, Path("csv/toymodel")):
            assert (folder / "version_1" / "hparams.yaml").is_file()
        assert run(capsys, *FIT, "2", "--config", "x.yaml", "--ckpt_path", "last")[0] == 0
        assert epoch(ROOT / "version_1") == 2
        assert [path.name for path in Path("csv/toymodel").iterdir()] == ["version_1"]


class TestCheckpointsElsewhere:
    ELSEWHERE = ("--checkpoint.dirpath", "kept/here")

    def test_are_found(self, capsys):
        main([*FIT, "1", *self.ELSEWHERE])
        assert not (ROOT / "version_0" / "checkpoints").exists()
        assert run(capsys, *FIT, "2", *self.ELSEWHERE, "--ckpt_path", "last")[0] == 0
        last = Path("kept/here/last.ckpt")
        assert torch.load(last, weights_only=True)["epoch"] == 2
        assert run(capsys, *FIT, "3", *self.ELSEWHERE, "--ckpt_path", str(last))[0] == 0
        assert torch.load(last, weights_only=True)["epoch"] == 3
        assert [path.name for path in ROOT.iterdir()] == ["version_0"]

    def test_of_an_earlier_version_of_this_package(self, capsys):
        main([*FIT, "1", *self.ELSEWHERE])
        for file in (ROOT / "version_0" / "run.yaml", ROOT / "version_0" / LOCK, Path("kept/here", LOCK)):
            file.unlink()
        assert run(capsys, *FIT, "2", *self.ELSEWHERE, "--ckpt_path", "last")[0] == 0
        assert torch.load("kept/here/last.ckpt", weights_only=True)["epoch"] == 2

    def test_belong_to_one_run(self, capsys):
        main([*FIT, "1", *self.ELSEWHERE])
        before = files()
        message = f"--checkpoint.dirpath {Path('kept/here').resolve()} has the checkpoints of another run; give another"
        assert refused(capsys, *FIT, "1", *self.ELSEWHERE).startswith(message)
        assert files() == before

    @forks
    def test_also_before_the_first_of_them(self, capsys):
        training = start(*WAITING, "1", *self.ELSEWHERE)
        wait_for(Path("training"))
        assert "has the checkpoints of another run" in refused(capsys, *FIT, "1", *self.ELSEWHERE)
        Path("go on").touch()
        assert end(training) == 0
        assert not ROOT.exists()


@forks
def test_what_a_kill_has_left_goes_at_the_next_start(capsys) -> None:
    def prepare() -> None:
        replace, count = Path.replace, 0

        def killed(path: Path, target: Path) -> Path:
            nonlocal count
            count += path.match("*.last.ckpt.*")
            if count == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(path, target)

        Path.replace = killed

    assert end(start(*FIT, "2", prepare=prepare)) == -signal.SIGKILL
    checkpoints = ROOT / "version_0" / "checkpoints"
    # as earlier versions of this package called them, with the number of a process that may be another's by now
    old = checkpoints / f".last.ckpt.{os.getpid()}.part"
    old.touch()
    mine = checkpoints / "mine.part"
    mine.touch()
    assert len(list(checkpoints.glob(".*.part"))) == 2
    # another run has nothing to do with it
    assert run(capsys, *FIT, "1")[0] == 0
    assert len(list(checkpoints.glob(".*.part"))) == 2
    shutil.rmtree(ROOT / "version_1")
    assert run(capsys, *FIT, "2", "--ckpt_path", "last")[0] == 0
    assert epoch(ROOT / "version_0") == 2
    names = ["before_last.ckpt", "best.ckpt", "last.ckpt", "mine.part"]
    assert sorted(path.name for path in checkpoints.iterdir()) == names


class TestAFailedStart:
    @pytest.mark.parametrize("logger", LOGGERS)
    def test_leaves_nothing(self, logger, capsys):
        command = ["fit", "--model", "ToyFailing", *TOY[2:], *QUIET, *LOGGERS[logger]]
        with pytest.raises(ValueError, match="no such data"):
            main(command)
        assert list(Path().iterdir()) == []
        Path("runs").mkdir()
        with pytest.raises(ValueError, match="no such data"):
            main(command)
        assert [str(path) for path in Path().rglob("*")] == ["runs"]

    def test_leaves_what_is_not_its_own(self, monkeypatch):
        def fail(*_: object) -> None:
            Path("runs/toymodel/version_0/mine.txt").write_text("x")
            raise KeyboardInterrupt

        monkeypatch.setattr(ToyModel, "on_train_start", fail)
        with pytest.raises(SystemExit) as end:
            main([*FIT, "1"])
        assert end.value.code == 130
        assert files() == {f"{ROOT}/version_0/mine.txt": b"x", f"{ROOT}/version_0/{LOCK}": b""}

    def test_of_a_run_that_goes_on_leaves_it_as_it_was(self, monkeypatch):
        main([*FIT, "1"])
        kept = {name: content for name, content in files().items() if "tfevents" not in name and "run.yaml" not in name}

        def fail(model: ToyModel, stage: str) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(ToyModel, "setup", fail)
        with pytest.raises(SystemExit):
            main([*FIT, "2", "--ckpt_path", "last"])
        assert kept.items() <= files().items()
        record = yaml.safe_load((ROOT / "version_0" / "run.yaml").read_text())
        assert record["versions"]["torch"] == torch.__version__

    def test_without_a_checkpoint_to_go_on_from(self, capsys):
        Path("x.ckpt").write_text("not one")
        assert "is not a checkpoint" in refused(capsys, *FIT, "1", "--ckpt_path", "x.ckpt")
        assert [path.name for path in Path().iterdir()] == ["x.ckpt"]


class TestADiskThatRefuses:
    @pytest.mark.parametrize("logger", LOGGERS)
    def test_while_a_run_begins(self, logger, capsys, file_size_limit: Callable[[int], AbstractContextManager[None]]):
        refusals = set()
        for size in (20, 600, 2000, 6000):
            with file_size_limit(size):
                capsys.readouterr()
                code, _, stderr = run(capsys, *FIT, "1", *LOGGERS[logger])
            *others, error = stderr.splitlines()
            assert code == 2 and all(line.startswith("no pictures are drawn") for line in others), stderr
            what, _, reason = error.removeprefix("error: cannot write ").rpartition(": ")
            assert reason == "File too large" and "runs/toymodel/version_0/" in what
            refusals.add(Path(what.split()[-1]).name.split(".")[0])
            assert list(Path().iterdir()) == []
        assert refusals == {"run", "config", "last"}

    @pytest.mark.parametrize("logger", LOGGERS)
    def test_while_a_run_goes_on(
        self, logger, capsys, file_size_limit: Callable[[int], AbstractContextManager[None]]
    ) -> None:
        main([*FIT, "1", *LOGGERS[logger], "--trainer.log_every_n_steps", "1"])
        before = {name: content for name, content in files().items() if "tfevents" not in name}
        for size in (20, 600, 6000, 9000):
            with file_size_limit(size):
                capsys.readouterr()
                code, _, stderr = run(capsys, *FIT, "2", *LOGGERS[logger], "--ckpt_path", "last")
            assert code == 2 and stderr.count("error: cannot write ") == 1, stderr
            assert stderr.endswith((": File too large\n", ": File too large; the one before is kept\n"))
            after = {name: content for name, content in files().items() if "tfevents" not in name}
            assert after.keys() == before.keys()
            # these say with what options it was gone on with, by which process, and from where
            assert {Path(name).name for name in after if after[name] != before[name]} <= {
                "config.yaml", "run.yaml", "before_last.ckpt"
            }  # fmt: skip
            for checkpoint in ROOT.rglob("*.ckpt"):
                torch.load(checkpoint, weights_only=True)
        assert run(capsys, *FIT, "2", *LOGGERS[logger], "--ckpt_path", "last")[0] == 0
        assert epoch(ROOT / "version_0") == 2

    @pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small disk, and Linux has tmpfs"
    )
    def test_a_small_disk(self, capsys):
        refusals = set()
        for pages in (1, 2, 3, 4, 5, 6, 9):
            disk = Path(f"disk{pages}")
            disk.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "tmpfs", str(disk)]
            if subprocess.run(mount, capture_output=True).returncode:
                pytest.skip("nothing can be mounted here")
            try:
                capsys.readouterr()
                code, _, stderr = run(capsys, *FIT, "3", "--trainer.logger.save_dir", str(disk))
                error = stderr.splitlines()[-1]
                assert code == 2 and stderr.count("error: ") == 1 and "Traceback" not in stderr
                assert error.startswith("error: cannot write ") and ": No space left on device" in error
                refusals.add(error.partition("/toymodel/version_0/")[2].partition(":")[0])
                for checkpoint in disk.rglob("*.ckpt"):
                    torch.load(checkpoint, weights_only=True)
                assert not list(disk.rglob("*.part"))
            finally:
                subprocess.run(["umount", str(disk)], check=True)
        assert refusals >= {"config.yaml", "run.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt"}
        assert any(name.startswith("events.out.tfevents.") for name in refusals)

    def test_event_files(self, capsys, file_size_limit: Callable[[int], AbstractContextManager[None]]):
        with file_size_limit(20), quiet_threads(), pytest.raises(OSError, match="File too large") as error:
            SummaryWriter("board")
        message = user_message(error.value)
        assert message is not None and re.fullmatch(r"cannot write board/events\S+: File too large", message)
        # which is a thread's, that has said nothing itself
        assert capsys.readouterr() == ("", "")
        # and which the logger makes another one of
        with pytest.raises(ValueError) as wrapped:
            raise ValueError("not supported") from error.value
        assert user_message(wrapped.value) == message

    def test_predictions(self, capsys, file_size_limit: Callable[[int], AbstractContextManager[None]]):
        main(["fit", *TOY[:2], "--data", "WrittenRows", *QUIET, "--trainer.max_epochs", "1"])
        trust = [*TRUST, "--trust", f"{__name__}.WrittenRows"]
        best = ["--ckpt_path", f"{ROOT}/version_0/checkpoints/best.ckpt", *QUIET, *trust]
        code, _, stderr = run(capsys, "predict", *best, "--output", "old.csv")
        assert code == 0, stderr
        before = files()
        with file_size_limit(100):
            for name in ("old.csv", "new.csv"):
                message = f"cannot write {name}: File too large"
                assert refused(capsys, "predict", *best, "--output", name) == message
        assert files() == before


def test_a_run_that_was_moved_keeps_its_best_checkpoint(capsys) -> None:
    main([*FIT, "2"])
    shutil.move("runs", "moved")
    moved = ["--trainer.logger.save_dir", str(Path("moved").resolve())]
    code, stdout, _ = run(capsys, *FIT, "3", *moved, "--ckpt_path", "last")
    assert code == 0
    folder = Path("moved/toymodel/version_0/checkpoints").resolve()
    (state,) = (
        state
        for name, state in torch.load(folder / "last.ckpt", weights_only=True)["callbacks"].items()
        if name.startswith("ModelCheckpoint")
    )
    assert state["dirpath"] == str(folder) and list(state["best_k_models"]) == [f"{folder}/best.ckpt"]
    assert "best checkpoint:  moved/toymodel/version_0/checkpoints/best.ckpt" in stdout


@pytest.mark.parametrize(
    ("option", "old", "new"),
    [
        ("optimizer", "Adam", "Adagrad"),
        ("scheduler", "ika_lightning.tasks.InverseSquareRoot", "torch.optim.lr_scheduler.ConstantLR"),
    ],
)
def test_the_state_of_another_class_is_refused(option: str, old: str, new: str, capsys) -> None:
    data = ["--data", "RegressionData", "--data.name", "airline_passengers", "--data.batch_size", "64"]
    model = ["--model", "Regression", "--model.width", "8", "--model.depth", "1", "--model.num_heads", "2"]
    words = ["fit", *model, *data, *QUIET, "--trainer.max_epochs"]
    main([*words, "1", f"--model.{option}", old])
    last = Path("runs/airline_passengers/version_0/checkpoints/last.ckpt").rename("last.ckpt")
    before = files()
    assert refused(capsys, *words, "2", f"--model.{option}", new, "--ckpt_path", str(last)) == (
        f"last.ckpt was trained with {old.rpartition('.')[2]}, whose state {new.rpartition('.')[2]} cannot go on with: "
        f"leave out --model.{option}, or begin a new training"
    )
    assert files() == before


class TestSeveralProcesses:
    def test_the_others_are_told(self):
        config = {"seed_everything": 0}
        place = Place((ROOT,))
        (ROOT / "version_0").mkdir(parents=True)
        with own_run(place, "last", config) as run, other_processes_run(place, "last", config) as told:
            # also if another run has been started meanwhile
            (ROOT / "version_1" / "checkpoints").mkdir(parents=True)
            (ROOT / "version_1" / "checkpoints" / "last.ckpt").touch()
            assert run.folder == ROOT / "version_0"
            assert told.checkpoint is None and told.folder is None
        assert "IKA_LIGHTNING_CKPT_PATH" not in os.environ
        assert [path.name for path in ROOT.iterdir() if (path / LOCK).exists()] == ["version_0"]

    @forks
    @pytest.mark.parametrize("go_on", [False, True])
    def test_one_has_the_folder(self, go_on):
        two = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2"]
        process = start(*FIT, "1", *two)
        assert end(process) == 0, Path("log").read_text()
        if go_on:
            assert end(start(*FIT, "2", *two, "--ckpt_path", "last")) == 0, Path("log").read_text()
        assert [path.name for path in ROOT.iterdir()] == ["version_0"]
        assert epoch(ROOT / "version_0") == 1 + go_on
        record = yaml.safe_load((ROOT / "version_0" / "run.yaml").read_text())
        assert go_on or record["process"] == process.pid
        assert torch.load(ROOT / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)["run"] == record

    def test_that_found_different_checkpoints(self, capsys, monkeypatch):
        monkeypatch.setattr(
            "lightning.pytorch.strategies.SingleDeviceStrategy.broadcast", lambda *_: "runs/toymodel/other.ckpt"
        )
        assert refused(capsys, *FIT, "1") == (
            "process 0 goes on from None, and process 0 from runs/toymodel/other.ckpt; give its file as --ckpt_path"
        )
