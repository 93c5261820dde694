"""Who does what, and what is done: one process for each thing, whatever becomes of others."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from ika_lightning.study import ledger as module
from ika_lightning.study.ledger import JOURNAL, Claim, Ledger, open_storage

Open = Callable[[], Ledger]

# Claims "a" and "b" of a book, finishes "b", says so, and waits to be killed.
DOOMED = """
import sys, time
from pathlib import Path
from ika_lightning.study.ledger import Ledger, open_storage
folder = Path(sys.argv[1])
ledger = Ledger(open_storage(folder, sys.argv[2] or None), folder / "running")
ledger.claim("book", "a")
ledger.finish(ledger.claim("book", "b"), 2.0, {"by": "doomed"})
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["journal", "database"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "journal" else f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture
def opens(url: str | None, tmp_path: Path) -> Iterator[Open]:
    """Open the ledger as another process would, as often as one likes."""
    opened: list[Ledger] = []

    def opens() -> Ledger:
        opened.append(Ledger(open_storage(tmp_path, url), tmp_path / "running"))
        return opened[-1]

    yield opens
    for each in opened:
        each.close()


def claimed(claim: Claim | None) -> Claim:
    assert claim is not None
    return claim


def test_a_result_is_there_for_others(opens: Open) -> None:
    one, other = opens(), opens()
    claim = claimed(one.claim("book", "a", {"lr": 0.3}, {"lr": FloatDistribution(0.1, 1.0)}))
    (entry,) = other.entries("book")
    assert (entry.key, entry.done, entry.value) == ("a", False, None)
    one.finish(claim, 1.5, {"seconds": [1.0, 2.0], "nested": {"x": None}})
    for ledger in (one, other, opens()):
        (entry,) = ledger.entries("book")
        assert (entry.done, entry.value, entry.params) == (True, 1.5, {"lr": 0.3})
        assert entry.about == {"seconds": [1.0, 2.0], "nested": {"x": None}}


def test_nobody_does_what_another_does_or_has_done(opens: Open) -> None:
    one, other = opens(), opens()
    claim = claimed(one.claim("book", "a"))
    assert other.claim("book", "a") is None and one.claim("book", "a") is None
    claimed(other.claim("book", "b"))
    claimed(other.claim("another book", "a"))
    one.finish(claim, 1.0, {})
    assert other.claim("book", "a") is None and one.claim("book", "a") is None


def test_what_is_released_is_there_for_others(opens: Open) -> None:
    one, other = opens(), opens()
    one.release(claimed(one.claim("book", "a")), "the disk is full")
    assert other.entries("book") == []
    claimed(other.claim("book", "a"))


def test_what_a_process_leaves_undone_is_there_for_others(opens: Open) -> None:
    one, other = opens(), opens()
    claimed(one.claim("book", "a"))
    one.close()
    assert not one.own_folder.exists()
    claimed(other.claim("book", "a"))


def test_a_killed_process_is_missed_at_once_and_its_results_are_not(
    opens: Open, url: str | None, tmp_path: Path
) -> None:
    opens()
    words = [sys.executable, "-c", DOOMED, str(tmp_path), url or ""]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as doomed:
        assert doomed.stdout is not None and doomed.stdout.readline() == "ready\n"
        ledger = opens()
        assert {entry.key: entry.done for entry in ledger.entries("book")} == {"a": False, "b": True}
        assert ledger.claim("book", "a") is None
        doomed.kill()
    assert {entry.key: entry.done for entry in ledger.entries("book")} == {"b": True}
    claimed(ledger.claim("book", "a"))
    assert ledger.claim("book", "b") is None
    # nor does another process wait for it, of which the folder was taken away
    assert opens().claim("book", "a") is None
    assert len(list((tmp_path / "running").iterdir())) == 3


def test_a_process_that_was_killed_before_it_began_leaves_nothing(opens: Open, tmp_path: Path) -> None:
    alive = opens()
    lock = tmp_path / "running" / "dead" / "alive.lock"
    lock.parent.mkdir()
    lock.touch()
    opens()
    # it may just be about to begin
    assert lock.exists()
    for each in (lock, alive.own_folder / "alive.lock"):
        os.utime(each, (0, 0))
    opens()
    assert not lock.parent.exists() and alive.own_folder.exists()


def test_of_many_that_begin_at_the_same_time_one_does_it(opens: Open) -> None:
    ledgers = [opens() for _ in range(4)]
    with ThreadPoolExecutor(len(ledgers)) as pool:
        for key in "abc":
            claims = list(pool.map(lambda ledger, key=key: ledger.claim("book", key), ledgers))
            assert sum(claim is not None for claim in claims) == 1


class TestElsewhere:
    """Machines that share a database and no disk."""

    def elsewhere(self, tmp_path: Path) -> Ledger:
        (tmp_path / "elsewhere").mkdir()
        return Ledger(open_storage(tmp_path, f"sqlite:///{tmp_path}/studies.db"), tmp_path / "elsewhere")

    @pytest.mark.parametrize("url", ["database"], indirect=True)
    def test_is_alive_as_long_as_it_says_so(self, opens: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        away, here = self.elsewhere(tmp_path), opens()
        claimed(away.claim("book", "a"))
        assert here.claim("book", "a") is None
        later = time.time() + module._SILENCE - 1
        monkeypatch.setattr(time, "time", lambda: later)
        assert here.claim("book", "a") is None
        away._next_beat = 0.0
        away.beat()
        monkeypatch.setattr(time, "time", lambda: later + module._SILENCE - 1)
        assert here.claim("book", "a") is None
        monkeypatch.setattr(time, "time", lambda: later + module._SILENCE + 1)
        claimed(opens().claim("book", "a"))
        away.close()


class TestJournal:
    @pytest.fixture
    def url(self) -> None:
        return None

    def test_half_a_line_is_taken_away(self, opens: Open, tmp_path: Path) -> None:
        one = opens()
        claim = claimed(one.claim("book", "a"))
        with (tmp_path / JOURNAL).open("ab") as file:
            file.write(b'{"op_code":4,"worker_id":"3')
        other = opens()
        assert [entry.key for entry in other.entries("book")] == ["a"]
        claimed(other.claim("book", "b"))
        one.finish(claim, 1.0, {})
        assert {entry.key: entry.done for entry in opens().entries("book")} == {"a": True, "b": False}

    def test_a_lock_that_a_killed_process_has_left_does_not_wait(self, opens: Open, tmp_path: Path) -> None:
        (tmp_path / f"{JOURNAL}.lock").touch()
        start = time.monotonic()
        claimed(opens().claim("book", "a"))
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////nowhere/at/all.db", "postgresql+nothing://x/y"])
def test_a_storage_that_cannot_be_opened(url: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--storage .*: cannot be opened: ") as error:
        open_storage(tmp_path, url)
    assert "\n" not in str(error.value)
