"""Which folder a run has: its own, from the first moment to the last.

A folder is claimed by making it, which one process alone can do, and held by a lock on its ``run.lock`` while the
training lives. The system takes the locks of a process back however it ends: they tell which runs are alive, whatever
has become of the numbers of processes, and on a shared disk for all machines.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ika_lightning.cli.checkpoint import DamagedCheckpoint, known_checkpoints, read_checkpoint, read_config
from ika_lightning.cli.explain import UsageError
from ika_lightning.cli.record import differences
from ika_lightning.internals import version_of
from ika_lightning.output import OutputError, remove_parts, write_output
from ika_lightning.trust import check_callbacks, named_places

__all__ = ["CONFIG", "RECORD", "Place", "Run", "file_loggers", "other_processes_run", "own_run"]

CONFIG = "config.yaml"
RECORD = "run.yaml"
LOCK = "run.lock"
CHECKPOINTS = "checkpoints"
# What a training writes into its folder before its first checkpoint.
_BEGINNING = (CONFIG, RECORD, "hparams.yaml", "metrics.csv", "events.out.tfevents.*")
# What file systems say that have no locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
# Tells the processes that this one starts what they go on from.
_TOLD = "IKA_LIGHTNING_CKPT_PATH"


@dataclass(frozen=True)
class Place:
    """Where the runs of a name are.

    Args:
        roots: The folders with a folder for each run: of the first logger, which has the checkpoints as well, and of
            others.
        version: The name of the run's folder, if it was chosen.
        dirpath: Where checkpoints go, if that was chosen.
    """

    roots: tuple[Path, ...]
    version: str | None = None
    dirpath: Path | None = None

    @classmethod
    def of(cls, trainer: Trainer, otherwise: Path) -> Place:
        """Return where a trainer's loggers write, or ``otherwise`` if none of them writes files.

        Raises:
            UsageError: If a name or a version leads out of the folder that it is to be in.
        """
        loggers, checkpoint = file_loggers(trainer), trainer.checkpoint_callback
        roots = dict.fromkeys(_root_of(logger) for logger in loggers)
        versions = sorted({_folder_name(version) for logger in loggers if (version := version_of(logger)) is not None})
        if len(versions) > 1:
            raise UsageError(f"--trainer.logger: the loggers of a run have one version, not {' and '.join(versions)}")
        dirpath = checkpoint.dirpath if isinstance(checkpoint, ModelCheckpoint) else None
        return cls(tuple(roots) or (otherwise,), versions[0] if versions else None, Path(dirpath) if dirpath else None)


@dataclass(frozen=True)
class Run:
    """A run, as far as its folder goes.

    Args:
        checkpoint: What it goes on from, if anything.
        folder: Its folder; None in a process that does not write it.
        checkpoints: The folder of its checkpoints; None in a process that does not write them.
        step: The number of updates at which it goes on; None if it is new.
        origin: The checkpoint, if it is one of another run.
        about: When it was started, which process trains it, and where its checkpoints are.
    """

    checkpoint: Path | None
    folder: Path | None = None
    checkpoints: Path | None = None
    step: int | None = None
    origin: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> int | str | None:
        """The version as loggers call it: the number in ``version_3``, the name of any other folder."""
        if self.folder is None:
            return None
        number = _number(self.folder)
        return number if self.folder.name == f"version_{number}" else self.folder.name


def file_loggers(trainer: Trainer) -> list[TensorBoardLogger | CSVLogger]:
    """Return those of a trainer's loggers that have a folder for each run."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]


@contextmanager
def own_run(place: Place, wanted: str | None, config: Mapping[str, Any]) -> Iterator[Run]:
    """Have a folder that no other training has, for as long as the ``with`` block takes.

    If the block ends with an error before there is a checkpoint, what was made is taken back.

    Args:
        place: Where the runs of this name are.
        wanted: What to go on from: the file of a checkpoint, ``"last"`` for the newest run, or None to begin.
        config: The configuration of the training.

    Yields:
        The run. Processes that are started meanwhile are told what it goes on from.

    Raises:
        UsageError: If there is nothing to go on from, or it is another run's, or that is alive.
        OSError: If the folder cannot be made or written to.
    """
    with _Folders() as folders:
        past = _find(place, wanted, config)
        if past is not None:
            _hold(past, place, folders)
        checkpoint, saved = _checkpoint(past, wanted, say=True)
        folder = past or _claim(place, folders)
        checkpoints = _hold_checkpoints(folder, place, folders)
        if saved is not None and checkpoint is not None:
            check_callbacks(saved.get("callbacks"), checkpoint)
            before = read_config(saved, checkpoint) or {}
            _check_optimizers(before, config, checkpoint)
            if past is None:
                print(f"note: {folder} is a new run, which goes on from {checkpoint}", file=sys.stderr)
            if before and (found := differences(before, config)):
                print(f"note: going on with another configuration: {'; '.join(found)}", file=sys.stderr)
        elif past is not None:
            print(f"note: {folder} has no checkpoint yet; it begins anew", file=sys.stderr)
        for written in (folder, checkpoints):
            remove_parts(written)
        about = {
            "started": datetime.fromtimestamp(_started(folder), UTC).isoformat(),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "checkpoints": CHECKPOINTS if place.dirpath is None else str(checkpoints.resolve()),
        }
        write_output(folder / RECORD, yaml.safe_dump(_record(folder) | about, sort_keys=False).encode())
        step = saved["global_step"] if saved else None if past is None else 0
        with _telling(checkpoint):
            yield Run(checkpoint, folder, checkpoints, step, checkpoint if past is None else None, about)


@contextmanager
def other_processes_run(place: Place, wanted: str | None, config: Mapping[str, Any]) -> Iterator[Run]:
    """Take part in a run whose folder another process has.

    Args:
        place: Where the runs of this name are.
        wanted: What to go on from, as for :func:`own_run`.
        config: The configuration of the training.

    Yields:
        The run: what the process that started this one goes on from; else what is found here.

    Raises:
        UsageError: If there is nothing to go on from.
    """
    told = os.environ.get(_TOLD)
    if told is None:
        checkpoint, _ = _checkpoint(_find(place, wanted, config), wanted, say=False)
    else:
        checkpoint = Path(told) if told else None
    with _telling(checkpoint):
        yield Run(checkpoint)


@contextmanager
def _telling(checkpoint: Path | None) -> Iterator[None]:
    before = os.environ.get(_TOLD)
    os.environ[_TOLD] = str(checkpoint or "")
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TOLD]
        else:
            os.environ[_TOLD] = before


# --- Finding a run ----------------------------------------------------------------------------------------------------


def _root_of(logger: TensorBoardLogger | CSVLogger) -> Path:
    name = Path(logger.name)
    if name.is_absolute() or ".." in name.parts:
        raise UsageError(
            f"--trainer.logger.name {name} leads out of {logger.save_dir}; give a name alone, and where it goes as "
            "--trainer.logger.save_dir"
        )
    return Path(logger.save_dir, name)


def _folder_name(version: int | str) -> str:
    if isinstance(version, int):
        return f"version_{version}"
    if Path(version).parts != (version,) or version == "..":
        raise UsageError(f"--trainer.logger.version {version!r} is not the name of a folder")
    return version


def _find(place: Place, wanted: str | None, config: Mapping[str, Any]) -> Path | None:
    """The folder of the run to go on with; None for a new one."""
    if wanted is None:
        return None
    runs = _runs(place)
    if wanted == "last":
        if not runs:
            where = place.roots[0] / (place.version or "")
            raise UsageError(f"--ckpt_path last: no last.ckpt below {where} to go on from{known_checkpoints()}")
        folder = runs[-1]
    else:
        # where the file is, and where it is if it is a link
        homes = {Path(wanted).parent.resolve(), Path(wanted).resolve().parent}
        found = [run for run in runs if _checkpoints_of(run).resolve() in homes]
        if not found:
            return None
        folder = found[-1]
    changed = differences(_read_yaml(folder / CONFIG), config, decisive=True)
    if changed and wanted != "last" and place.version is None:
        return None
    if changed:
        raise UsageError(
            f"--ckpt_path {wanted}: {folder} is a run with other options ({'; '.join(changed)}); give the same to go "
            "on with it, or the file of its checkpoint to begin a new run with that"
        )
    return folder


def _runs(place: Place) -> list[Path]:
    """The folders of the runs that there are, the newest last."""
    root = place.roots[0]
    folders = [root / place.version] if place.version else list(root.iterdir()) if root.is_dir() else []
    runs = []
    for folder in folders:
        number = _number(folder)
        signs = any((folder / name).exists() for name in (LOCK, RECORD, CONFIG, CHECKPOINTS))
        # another process may be removing it
        with suppress(FileNotFoundError):
            if folder.is_dir() and (signs or number is not None):
                runs.append((_started(folder), number or 0, folder))
    return [folder for *_, folder in sorted(runs)]


def _number(folder: Path) -> int | None:
    found = re.fullmatch(r"version_(\d+)", folder.name)
    return int(found[1]) if found else None


def _started(folder: Path) -> float:
    """When a run was started, in seconds; if it does not say so, when its configuration or its folder was written."""
    started = _record(folder).get("started")
    if started is not None:
        return datetime.fromisoformat(started).timestamp()
    written = [file for file in (folder / RECORD, folder / CONFIG) if file.is_file()]
    return (written or [folder])[0].stat().st_mtime


def _record(folder: Path) -> dict[str, Any]:
    return _read_yaml(folder / RECORD)


def _read_yaml(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _checkpoints_of(folder: Path) -> Path:
    """The folder of a run's checkpoints."""
    if (recorded := _record(folder).get("checkpoints")) is not None:
        return folder / recorded
    chosen = (_read_yaml(folder / CONFIG).get("checkpoint") or {}).get("dirpath")
    return Path(chosen) if chosen else folder / CHECKPOINTS


def _checkpoint(folder: Path | None, wanted: str | None, say: bool) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint to go on from, and what is in it; of the newest run, the newest that is whole."""
    if wanted is None:
        return None, None
    if wanted != "last":
        return Path(wanted), read_checkpoint(Path(wanted))
    assert folder is not None
    there = sorted(_checkpoints_of(folder).glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    # those that a training goes on from bit by bit are tried first
    exact = ["before_last.ckpt", "last.ckpt"]
    there.sort(key=lambda file: exact.index(file.name) if file.name in exact else -1)
    damaged: list[Path] = []
    for file in reversed(there):
        try:
            saved = read_checkpoint(file)
        except DamagedCheckpoint:
            damaged.append(file)
            continue
        if "optimizer_states" in saved:
            if damaged and say:
                print(f"note: {damaged[0]} is damaged, or was cut short; going on from {file}", file=sys.stderr)
            return file, saved
    if there or (folder / "metrics.csv").is_file():
        raise UsageError(f"--ckpt_path last: {folder} has no whole checkpoint to go on from; begin without --ckpt_path")
    return None, None


def _check_optimizers(before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse an optimizer or a scheduler that would be handed the state of another.

    Optimizers end in an error of their own; schedulers take whatever they are given. That a checkpoint is of another
    model is said when its weights are loaded.
    """

    def names(config: Mapping[str, Any]) -> dict[str, str]:
        # a class may be told with its module or without
        return {place: name.rpartition(".")[2] for place, name in named_places(config)}

    was, wanted = names(before), names(now)
    for option in ("optimizer", "scheduler") if was.get("model") == wanted.get("model") else ():
        old, new = was.get(f"model.{option}"), wanted.get(f"model.{option}")
        if old and new and old != new:
            raise UsageError(
                f"{checkpoint} was trained with {old}, whose state {new} cannot go on with: leave out "
                f"--model.{option}, or begin a new training"
            )


# --- Holding it -------------------------------------------------------------------------------------------------------


class _Folders:
    """The folders that this process holds; on an error, those that it made go again, if there is no checkpoint yet."""

    def __init__(self) -> None:
        self.checkpoints: Path | None = None
        self._held: list[Path] = []
        self._locks: list[FileLock] = []
        self._made: list[Path] = []

    def __enter__(self) -> _Folders:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None and not (self.checkpoints and any(self.checkpoints.glob("*.ckpt"))):
            self.remove()
        for lock in self._locks:
            lock.release()

    def hold(self, folder: Path) -> bool:
        """Lock a folder; return whether that was possible, as no other process holds it."""
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise OutputError(folder / LOCK, error) from error
            print(f"note: {folder} cannot be locked; see to it that no other process trains in it", file=sys.stderr)
        else:
            self._locks.append(lock)
        self._held.append(folder)
        return True

    def make(self, folder: Path) -> bool:
        """Make a folder and those above it; return False if it is there."""
        above = [parent for parent in reversed(folder.parents) if not parent.exists()]
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileNotFoundError:
            # another process has just removed the one above, which it had made
            return self.make(folder)
        except OSError as error:
            if isinstance(error, FileExistsError) and folder.parent.is_dir():
                return False
            raise OutputError(folder, error) from error
        self._made += [*above, folder]
        return True

    def remove(self) -> None:
        """Remove what was made, as far as nobody else has put anything there, and hold nothing any more."""
        with suppress(OSError):
            for folder in set(self._held).intersection(self._made):
                for pattern in _BEGINNING:
                    for file in folder.glob(pattern):
                        file.unlink()
                if (folder / CHECKPOINTS).is_dir():
                    (folder / CHECKPOINTS).rmdir()
                # before it is released, for nobody to get a lock that is about to go; Windows does so itself
                if [path.name for path in folder.iterdir()] == [LOCK] and os.name == "posix":
                    (folder / LOCK).unlink()
        for lock in self._locks:
            lock.release()
        for folder in reversed(self._made):
            with suppress(OSError):
                folder.rmdir()
        self._held, self._locks, self._made = [], [], []


def _claim(place: Place, folders: _Folders) -> Path:
    """Make the folder of a new run, which nobody else has."""
    there = [path for root in place.roots if root.is_dir() for path in root.iterdir()]
    first = 1 + max((number for path in there if (number := _number(path)) is not None), default=-1)
    for name in [place.version] if place.version else (f"version_{number}" for number in count(first)):
        wanted = [root / name for root in place.roots]
        if all(folders.make(folder) and folders.hold(folder) for folder in wanted):
            return wanted[0]
        folders.remove()
    raise UsageError(
        f"{wanted[0]} is there already: go on with it with --ckpt_path last, or give another --trainer.logger.version"
    )


def _hold(past: Path, place: Place, folders: _Folders) -> None:
    """Lock the folder of a run that goes on."""
    for folder in [past, *(root / past.name for root in place.roots[1:])]:
        folders.make(folder)
        if not folders.hold(folder):
            about = _record(folder)
            who = f" (process {about['process']} on {about['host']})" if "process" in about else ""
            raise UsageError(f"{folder} is the folder of a training that is running{who}; wait for its end, or end it")


def _hold_checkpoints(folder: Path, place: Place, folders: _Folders) -> Path:
    """Return the folder of a run's checkpoints, held if it is not inside the run's own."""
    checkpoints = place.dirpath or folder / CHECKPOINTS
    if place.dirpath is not None:
        folders.make(checkpoints)
        its_own = _checkpoints_of(folder).resolve() == checkpoints.resolve()
        if not folders.hold(checkpoints) or (any(checkpoints.glob("*.ckpt")) and not its_own):
            raise UsageError(
                f"--checkpoint.dirpath {checkpoints} has the checkpoints of another run; give another folder, or go on "
                "with that run with --ckpt_path last"
            )
    folders.checkpoints = checkpoints
    return checkpoints
