"""What is done, and who does what: a study's books in a storage of Optuna's, which processes and machines share.

A book is a study of Optuna's. An entry is one of its trials, made when a process begins with something, in the state
"running", and completed with the result. Who is to do a thing that two begin with at the same time is decided by the
storage, which gives entries their numbers: the one with the lower number. An entry of a process that is no longer alive
counts for nothing, so what it was doing is begun anew.

A process is alive if it holds the lock of its folder, which the system takes back however a process ends. Where the
folder is not to be seen, as on another machine without a common disk, it is alive if it has said so lately.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

__all__ = ["Entry", "Ledger", "open_storage"]

JOURNAL = "study.journal"
_LOCK = "alive.lock"
# How often a process says that it is alive, and after how long a silence it is not, in seconds.
_BEAT, _SILENCE = 60.0, 600.0
# Attributes of trials in the storage.
_KEY, _OWNER, _ABOUT = "key", "owner", "about"
# The book in which processes say that they are alive: when they did so last, by the clock of their machine.
_PRESENCE = "presence"


@dataclass(frozen=True)
class Entry:
    """A thing that is being done, or is done.

    Args:
        key: What it is called in its book.
        done: Whether it is done.
        value: What it has led to, if it is done.
        params: The settings of a trial.
        about: What else was noted down.
    """

    key: str
    done: bool
    value: float | None
    params: Mapping[str, Any]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """The right to do a thing.

    Args:
        trial: The trial in the storage.
    """

    trial: int


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """Open the storage of a study.

    Args:
        folder: Where its journal is, if no other storage is named.
        url: A database, as Optuna calls it, such as ``postgresql://user@host/studies``.

    Raises:
        ValueError: If it cannot be opened.
    """
    if url is None:
        file = folder / JOURNAL
        return JournalStorage(JournalFileBackend(str(file), lock_obj=_JournalLock(file)))
    try:
        return get_storage(url)
    except Exception as error:  # whatever the driver of a database raises
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"--storage {url}: cannot be opened: {said}") from error


class _JournalLock(JournalFileOpenLock):
    """Holds a journal while a line is added, by a lock that the system takes back from a process that is killed.

    Such a process may leave half a line, after which Optuna could read nothing any more: the next that holds the
    journal takes it away.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._lock = FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        with self._journal.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._lock.release()


class Ledger:
    """The books of a study, as a process sees them.

    Args:
        storage: Where they are.
        folder: Where processes on the same disk see one another; it is made if need be.
    """

    def __init__(self, storage: BaseStorage, folder: Path) -> None:
        self._storage, self._folder = storage, folder
        self._owner = uuid.uuid4().hex
        self._host = socket.gethostname()
        self._books: dict[str, int] = {}
        # threads of a process that want the same thing take turns
        self._mutex = threading.RLock()
        self._gone: set[str] = set()
        self.own_folder = folder / self._owner
        self.own_folder.mkdir(parents=True)
        self._lock = FileLock(self.own_folder / _LOCK, timeout=0)
        self._lock.acquire()
        self._next_beat = 0.0
        self.beat()
        self._sweep()

    def close(self) -> None:
        """Take leave: what this process had begun with and not released is begun anew by others."""
        self.note(_PRESENCE, self._owner, 0.0)
        self._lock.release()
        shutil.rmtree(self.own_folder, ignore_errors=True)

    # --- Reading ------------------------------------------------------------------------------------------------------

    def entries(self, book: str) -> list[Entry]:
        """What is done, and what is being done by a process that is alive, each once."""
        with self._mutex:
            found: dict[str, Entry] = {}
            for trial in self._trials(book):
                if not self._counts(trial):
                    continue
                key, done = trial.user_attrs[_KEY], trial.state == TrialState.COMPLETE
                if key not in found or (done and not found[key].done):
                    about = trial.user_attrs.get(_ABOUT, {})
                    found[key] = Entry(key, done, trial.value if done else None, trial.params, about)
            return list(found.values())

    def _trials(self, book: str) -> Iterable[FrozenTrial]:
        return self._storage.get_all_trials(self._book(book), deepcopy=False)

    def _counts(self, trial: FrozenTrial) -> bool:
        if _KEY not in trial.user_attrs:
            return False
        if trial.state == TrialState.RUNNING:
            return self._is_alive(trial.user_attrs[_OWNER])
        return trial.state == TrialState.COMPLETE

    # --- Writing ------------------------------------------------------------------------------------------------------

    def claim(
        self,
        book: str,
        key: str,
        params: Mapping[str, Any] | None = None,
        distributions: Mapping[str, BaseDistribution] | None = None,
    ) -> Claim | None:
        """Begin with something, unless it is done or another does it.

        Args:
            book: The book.
            key: What to do.
            params: The settings of a trial.
            distributions: Their ranges.

        Returns:
            The right to do it; None if it is not this process that does it.
        """
        with self._mutex:
            if any(entry.key == key for entry in self.entries(book)):
                return None
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=dict(params or {}),
                distributions=dict(distributions or {}),
                user_attrs={_KEY: key, _OWNER: self._owner, "host": self._host},
            )
            mine = self._storage.create_new_trial(self._book(book), template_trial=template)
            number = self._storage.get_trial_number_from_id(mine)
            rivals = (trial for trial in self._trials(book) if trial.user_attrs.get(_KEY) == key)
            if min(trial.number for trial in rivals if self._counts(trial)) == number:
                return Claim(mine)
            self._storage.set_trial_state_values(mine, TrialState.FAIL)
            return None

    def finish(self, claim: Claim, value: float, about: Mapping[str, Any]) -> None:
        """Note down a result.

        Args:
            claim: What was done.
            value: What Optuna is to know of it.
            about: What else there is to say, as JSON knows it.
        """
        with self._mutex:
            self._storage.set_trial_user_attr(claim.trial, _ABOUT, dict(about))
            self._storage.set_trial_state_values(claim.trial, TrialState.COMPLETE, values=[value])

    def release(self, claim: Claim, reason: str) -> None:
        """Give something up that was begun, for others to begin with."""
        with self._mutex:
            self._storage.set_trial_user_attr(claim.trial, "given up", reason)
            self._storage.set_trial_state_values(claim.trial, TrialState.FAIL)

    def note(self, book: str, key: str, value: Any) -> None:
        """Note down something about a whole book."""
        with self._mutex:
            self._storage.set_study_user_attr(self._book(book), key, value)

    def noted(self, book: str, key: str) -> Any:
        """What was noted down about a book; None if nothing was."""
        with self._mutex:
            return self._storage.get_study_user_attrs(self._book(book)).get(key)

    def open(self, book: str, direction: Literal["min", "max"] = "min") -> None:
        """Make a book, unless there is one of this name.

        Args:
            book: Its name.
            direction: Whether the least value of it is the best, or the greatest.
        """
        with self._mutex:
            if book in self._books:
                return
            chosen = StudyDirection.MINIMIZE if direction == "min" else StudyDirection.MAXIMIZE
            try:
                self._books[book] = self._storage.create_new_study([chosen], book)
            except optuna.exceptions.DuplicatedStudyError:
                self._books[book] = self._storage.get_study_id_from_name(book)

    def _book(self, book: str) -> int:
        self.open(book)
        return self._books[book]

    # --- Who is alive -------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Say that this process is alive, if it has not lately."""
        with self._mutex:
            if time.monotonic() >= self._next_beat:
                self._next_beat = time.monotonic() + _BEAT
                self.note(_PRESENCE, self._owner, time.time())

    def _sweep(self) -> None:
        """Take away what processes have left that were killed before they began with anything."""
        for lock in self._folder.glob(f"*/{_LOCK}"):
            # one that begins just now may have made its lock, and not hold it yet
            with suppress(FileNotFoundError):
                if time.time() - lock.stat().st_mtime > _BEAT:
                    self._is_alive(lock.parent.name)

    def _is_alive(self, owner: str) -> bool:
        if owner == self._owner:
            return True
        if owner in self._gone:
            return False
        lock = self._folder / owner / _LOCK
        if lock.is_file():
            try:
                with FileLock(lock, timeout=0):
                    pass
            except Timeout:
                return True
            # said before the folder goes, or others would take its last word for its silence
            self.note(_PRESENCE, owner, 0.0)
            shutil.rmtree(lock.parent, ignore_errors=True)
        elif time.time() - (self.noted(_PRESENCE, owner) or 0.0) < _SILENCE:
            return True
        self._gone.add(owner)
        return False
