"""The trainings of a study, each in a process of its own, by the code of the command line.

A process begins where another has imported everything already, where the system can fork: then it costs milliseconds,
and still shares nothing with the trainings before it, neither random numbers nor memory. Elsewhere it imports anew.
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

import ika_lightning
from ika_lightning.cli.checkpoint import read_checkpoint
from ika_lightning.cli.command import MEASURED, Command
from ika_lightning.cli.explain import UsageError, user_message
from ika_lightning.data import RegressionData
from ika_lightning.data.base import DataModule
from ika_lightning.data.fingerprint import fingerprint
from ika_lightning.output import write_output
from ika_lightning.protocols import HasFingerprints
from ika_lightning.study.cells import DIGITS
from ika_lightning.study.references import make_reference, score
from ika_lightning.tasks import Task
from ika_lightning.trust import named_places

__all__ = ["Check", "Checked", "Fit", "FitAndTest", "FitReference", "Job", "JobFailed", "Outcome", "Worker", "keep_log"]

# Nobody looks on: what is shown and logged of a training changes nothing of what it learns.
QUIET = (
    "--pictures=0",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)
LOG = "log.txt"
FAILED = "failed"
_MEGABYTE = 2**20
Result = TypeVar("Result")

# what is imported stays, and is not looked through for garbage again in each process that begins here
gc.freeze()


class JobFailed(Exception):
    """A job that ended with an error, which this says in one line.

    Args:
        message: The line.
        log: What it had printed until then, and the traceback.
    """

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True)
class Outcome:
    """What a training led to, and what it took.

    Args:
        measures: What was measured, by name.
        seconds: Of the training, by the clock.
        processor_seconds: Of the training, of all its threads together.
        peak_memory: Of the process, in MB; on a GPU what tensors took there. None where the system does not tell.
        updates: Of the weights, until the best checkpoint; None of a reference.
    """

    measures: Mapping[str, float]
    seconds: float
    processor_seconds: float
    peak_memory: float | None
    updates: int | None = None


@dataclass(frozen=True)
class Job(ABC, Generic[Result]):
    """Something to do in a process of its own."""

    @abstractmethod
    def run(self, folder: Path) -> Result:
        """Do it.

        Args:
            folder: An empty folder to write to.
        """


# --- Trainings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit(Job[Outcome]):
    """Train, and say what validation has measured of the best checkpoint.

    Args:
        words: What comes after ``fit`` on the command line.
    """

    words: list[str]

    @override
    def run(self, folder: Path) -> Outcome:
        _, outcome = _fit(self.words, folder)
        return outcome


@dataclass(frozen=True)
class FitAndTest(Job[Outcome]):
    """Train, and test the best checkpoint, once.

    Args:
        words: What comes after ``fit`` on the command line.
    """

    words: list[str]

    @override
    def run(self, folder: Path) -> Outcome:
        best, outcome = _fit(self.words, folder)
        return replace(outcome, measures={**outcome.measures, **_test(best)})


@dataclass(frozen=True)
class FitReference(Job[Outcome]):
    """Fit a reference on what is there for training and validation, and test it, once.

    Args:
        words: What comes after ``fit`` on the command line, for the data.
        reference: The class, by its path.
        arguments: Its arguments.
    """

    words: list[str]
    reference: str
    arguments: Mapping[str, Any]

    @override
    def run(self, folder: Path) -> Outcome:
        data = _table(_Build(["fit", *self.words, *_quiet(folder)]).datamodule, self.reference)
        data.prepare_data()
        data.setup("fit")
        parts = [rows for part in ("train", "val") if (rows := _rows(data, part)) is not None]
        features, target = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        model = make_reference(self.reference, self.arguments)
        start, processor = time.perf_counter(), time.process_time()
        model.fit(features, target)
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        data.setup("test")
        test = _rows(data, "test")
        if test is None:
            raise UsageError(f"{self.reference}: there are no rows for testing; give --data.test_fraction")
        return Outcome(score(model.predict(test[0]), test[1]), seconds, processor, _peak_memory())


def _fit(words: list[str], folder: Path) -> tuple[Path, Outcome]:
    """Train; return the best checkpoint, and what validation has measured of it."""
    start, processor = time.perf_counter(), time.process_time()
    trainer = Command(["fit", *words, *_quiet(folder)]).trainer
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    callback = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint) or not callback.best_model_path:
        raise UsageError("the training has kept no best checkpoint: it has to validate, and to save checkpoints")
    best = Path(callback.best_model_path)
    kept = read_checkpoint(best)
    return best, Outcome(dict(kept[MEASURED]), seconds, processor, _peak_memory(), kept["global_step"])


def _test(best: Path) -> dict[str, float]:
    """Test a checkpoint, which may name what the study names."""
    config = yaml.safe_load(read_checkpoint(best)["config"])
    trust = [f"--trust={name}" for name in sorted(set(_classes(config)))]
    tested = Command(["test", f"--ckpt_path={best}", "--trainer.enable_progress_bar=false", *trust]).trainer
    return {name: float(value) for name, value in tested.callback_metrics.items()}


def _classes(config: Any) -> Iterator[str]:
    """Go through the classes that a configuration names, but for those that checkpoints may name anyway."""
    match config:
        case {"class_path": str(name), **others}:
            if name.partition(".")[0] not in ("ika_lightning", "torch", "lightning", "torch_geometric"):
                yield name
            yield from _classes(others)
        case dict():
            for value in config.values():
                yield from _classes(value)
        case list():
            for value in config:
                yield from _classes(value)


def _quiet(folder: Path) -> list[str]:
    return [*QUIET, f"--trainer.default_root_dir={folder}"]


def _table(data: LightningDataModule, reference: str) -> RegressionData:
    if not isinstance(data, RegressionData):
        raise UsageError(f"{reference}: a reference learns from a table (RegressionData), not {type(data).__name__}")
    return data


def _rows(data: RegressionData, part: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Features, (r, f), and targets in their own unit, (r,), of a part; None if there is none."""
    if part == "val" and not data.val_dataloader():
        return None
    rows = data.encoded(part)
    return rows.features.numpy(), data.target_mean + data.target_std * rows.target.double().numpy()


def _peak_memory() -> float | None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / _MEGABYTE
    if sys.platform == "win32":
        return None
    import resource

    # in bytes on macOS, in kilobytes elsewhere
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MEGABYTE


# --- Looking before ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """What is known of a data set before the first training.

    Args:
        fingerprint: A hash of the files that its configuration names, and of what is read for training.
        measures: Names of what validation and testing measure, without either's name; None if the model does not tell.
    """

    fingerprint: str
    measures: list[str] | None


@dataclass(frozen=True)
class Check(Job[Checked]):
    """Build everything that a study will train on a data set, train nothing, and read what there is for training.

    Args:
        baseline: What comes after ``fit`` on the command line for the baseline.
        variants: The same for all variants, several times each to try both ends of ranges, by what errors call it.
        references: Of outside references, the class by its path, and its arguments, by what errors call it.
    """

    baseline: list[str]
    variants: list[tuple[str, list[str]]] = field(default_factory=list)
    references: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)

    @override
    def run(self, folder: Path) -> Checked:
        for name, words in self.variants:
            try:
                _Build(["fit", *words, *_quiet(folder)])
            except Exception as error:
                if (message := user_message(error)) is None:
                    raise
                raise UsageError(f"{name}: {message}") from error
        built = _Build(["fit", *self.baseline, *_quiet(folder)])
        data = built.datamodule
        for name, path, arguments in self.references:
            try:
                _table(data, path)
                make_reference(path, arguments)
            except (UsageError, ValueError) as error:
                raise UsageError(f"{name}: {error}") from error
        data.prepare_data()
        data.setup("fit")
        return Checked(_fingerprint(built), _measures(built))


class _Build(Command):
    """Parses and builds what a subcommand needs, and does not run it."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        pass


def _fingerprint(built: Command) -> str:
    data, config = built.datamodule, built.config.fit.as_dict()
    named = {text for part in ("model", "data") for _, text in named_places(config[part])}
    files = {name: Path(name) for name in named if name and Path(name).is_file()}
    if isinstance(data, DataModule) and (known := data.corpus.dataset) is not None:
        files |= {part: known.file(part, data.corpus.root) for part in known.files}
    content = [[name, hashlib.sha256(file.read_bytes()).hexdigest()] for name, file in sorted(files.items())]
    read = sorted(data.fingerprints.items()) if isinstance(data, HasFingerprints) else []
    return fingerprint(content, [list(item) for item in read])[:DIGITS]


def _measures(built: Command) -> list[str] | None:
    model, trainer = built.model, built.trainer
    if not isinstance(model, Task):
        return None
    # some measures depend on the data, which a model knows by its trainer
    model.trainer, trainer.datamodule = trainer, built.datamodule  # type: ignore[attr-defined]
    model.hparams.update(model.read_sizes(built.datamodule) or {})
    return sorted(model.make_metrics())


# --- Processes --------------------------------------------------------------------------------------------------------


class Worker:
    """Makes processes, each for a job, and ends those that run when it is told to.

    Args:
        threads: Threads of each process.
        folder: Where each job gets a folder of its own, as long as it runs.
    """

    def __init__(self, threads: int, folder: Path) -> None:
        self._threads, self._folder = threads, folder
        self._context: ForkServerContext | SpawnContext = multiprocessing.get_context("spawn")
        if sys.platform == "linux":
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload([__name__])
        self._running: set[BaseProcess] = set()
        self._lock = threading.Lock()
        self._numbers = count()
        self.is_stopped = False

    def run(self, job: Job[Result]) -> Result:
        """Do a job in a process of its own.

        Args:
            job: The job.

        Raises:
            JobFailed: If it ends with an error, or is ended.
        """
        folder = self._folder / f"job{next(self._numbers)}"
        folder.mkdir(parents=True)
        try:
            kind, content = self._run(job, folder)
            if kind == "error":
                log = folder / LOG
                raise JobFailed(content, log.read_text(errors="replace") if log.is_file() else "")
            return content
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, job: Job[Result], folder: Path) -> tuple[str, Any]:
        receive, send = self._context.Pipe(duplex=False)
        here = _Surroundings(os.getcwd(), dict(os.environ), self._threads)
        process = self._context.Process(target=_serve, args=(job, folder, here, send))
        with self._lock:
            if self.is_stopped:
                return "error", "stopped"
            process.start()
            self._running.add(process)
        send.close()
        try:
            return receive.recv()
        except EOFError:
            process.join()
            return "error", f"its process ended with exit code {process.exitcode}"
        finally:
            receive.close()
            process.join()
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """End all processes, and start no more."""
        with self._lock:
            self.is_stopped = True
            for process in self._running:
                process.kill()


def keep_log(folder: Path, name: str, failure: JobFailed) -> str:
    """Keep what a job has printed that has failed.

    Args:
        folder: The folder of a study's results.
        name: What failed.
        failure: How.

    Returns:
        An ending for a message that says where; empty if nothing was printed.
    """
    if not failure.log:
        return ""
    file = folder / FAILED / f"{name.replace('/', '-').replace(' ', '-')}.log"
    file.parent.mkdir(exist_ok=True)
    write_output(file, failure.log.encode())
    return f" (see {file})"


@dataclass(frozen=True)
class _Surroundings:
    """What a process takes over from the one that started it, and not from where it begins."""

    folder: str
    environment: Mapping[str, str]
    threads: int

    def enter(self) -> None:
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        torch.set_num_threads(self.threads)


def _serve(job: Job[Any], folder: Path, here: _Surroundings, send: Connection) -> None:
    """Do a job, in a new process."""
    # Ctrl-C goes to all processes; the one that started this ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    here.enter()
    with open(folder / LOG, "w") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    # what a run notes down as its command, and by what processes of its own would begin
    if isinstance(job, Fit | FitAndTest):
        sys.argv = [str(Path(ika_lightning.__file__).with_name("__main__.py")), "fit", *job.words]
    try:
        send.send(("done", job.run(folder)))
    except BaseException as error:
        traceback.print_exc()
        message = user_message(error) or traceback.format_exception_only(error)[-1].strip()
        send.send(("error", " ".join(message.split())))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _end_with_parent() -> None:
    """End as soon as the process has gone that started this one, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
