"""What the ledger says of a study: how far tuning is, which cells are done, and which results are of something else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ika_lightning.study.cells import Cell, Identity, cells_of, configuration_hash
from ika_lightning.study.definition import Study, Variant
from ika_lightning.study.ledger import Claim, Ledger
from ika_lightning.study.search import End, distribution, ends, widened
from ika_lightning.study.table import Row
from ika_lightning.study.tuning import Trial, Tried, best, budget, ends_to_widen
from ika_lightning.study.worker import Outcome

__all__ = ["Books", "Changed", "Finished", "Group", "State"]

#: What becomes of results whose configuration, data or code is not what it is today.
Changed = Literal["refuse", "keep", "rerun"]


@dataclass(frozen=True)
class Group:
    """What is tuned together: the variants on a data set, by the validation of some repeats.

    Args:
        data: The name of the data set.
        repeats: The repeats.
        name: What tells it from others of the data set; empty if it is the only one.
    """

    data: str
    repeats: tuple[Any, ...]
    name: str = ""


@dataclass(frozen=True)
class State:
    """How far a group is.

    Args:
        tried: Trials that are over, of each variant that is tuned, by their numbers.
        running: Numbers of those that are being made.
        wider: The ends beyond which is searched as well; None if that is not known yet.
        seconds: How long a training of each variant took.
    """

    tried: Mapping[str, Mapping[int, Tried]]
    running: Mapping[str, set[int]]
    wider: tuple[End, ...] | None
    seconds: Mapping[str, list[float]]


@dataclass(frozen=True)
class Finished:
    """How far the cells are.

    Args:
        rows: Results, by the names of cells.
        running: Names of cells that are being done.
        others: Results that are not what they would be today, by the names of cells.
        elsewhere: How many results are of cells that the study does not have.
    """

    rows: Mapping[str, Row]
    running: set[str]
    others: Mapping[str, Row]
    elsewhere: int


class Books:
    """A study's books.

    Args:
        study: The study.
        ledger: Where the books are.
        identities: What the results of each variant on each data set are results of.
    """

    def __init__(self, study: Study, ledger: Ledger, identities: Mapping[tuple[str, str], Identity]) -> None:
        self.study, self._ledger, self._identities = study, ledger, identities
        self._cells = f"{study.name}/cells"

    # --- Cells --------------------------------------------------------------------------------------------------------

    def cells(self) -> list[Cell]:
        """The cells of the data sets of which identities are known."""
        return [cell for cell in cells_of(self.study) if (cell.data.name, cell.variant.name) in self._identities]

    def finished(self) -> Finished:
        """How far the cells are."""
        cells = {cell.name: cell for cell in self.cells()}
        rows: dict[str, Row] = {}
        others: dict[str, Row] = {}
        every = {cell.name for cell in cells_of(self.study)}
        running, elsewhere = set(), 0
        for entry in self._ledger.entries(self._cells):
            name = entry.key.rpartition(" ")[0]
            if name not in cells:
                elsewhere += entry.done and name not in every
                continue
            cell = cells[name]
            if not entry.done:
                running |= {name} if entry.key == self._key(cell) else set()
                continue
            changed = tuple(Row.from_json(entry.about).identity.differences(self.identity(cell)))
            (others if changed else rows)[name] = Row.from_json(entry.about, changed)
        return Finished(rows, running, {name: row for name, row in others.items() if name not in rows}, elsewhere)

    def rows(self, finished: Finished, changed: Changed) -> list[Row]:
        """The results to report, in the order of the study.

        Args:
            finished: How far the cells are.
            changed: Whether those that would be others today are to be kept.
        """
        found = {**(finished.others if changed == "keep" else {}), **finished.rows}
        return [found[cell.name] for cell in self.cells() if cell.name in found]

    def claim_cell(self, cell: Cell) -> Claim | None:
        """Begin with a cell, unless it is done or another process does it."""
        return self._ledger.claim(self._cells, self._key(cell))

    def finish_cell(self, claim: Claim, row: Row) -> None:
        """Note down the result of a cell."""
        metric, mode = next(iter(self.study.report.items()))
        self._ledger.finish(claim, _sortable(row.measures.get(metric, math.nan), mode), row.to_json())

    def _key(self, cell: Cell) -> str:
        return f"{cell.name} {self.identity(cell).short}"

    def identity(self, cell: Cell) -> Identity:
        """What the result of a cell is one of today."""
        return self._identities[cell.data.name, cell.variant.name]

    # --- Tuning -------------------------------------------------------------------------------------------------------

    def group(self, cell: Cell) -> Group | None:
        """What a cell is tuned with; None if nothing of it is tuned."""
        tuning = self.study.tuning
        if tuning is None or not self.study.ranges(cell.variant):
            return None
        if tuning.repeats is None:
            return Group(cell.data.name, (cell.repeat,), str(cell.repeat))
        return Group(cell.data.name, tuning.repeats)

    @property
    def tuned(self) -> dict[str, Variant]:
        """The variants of which something is tuned."""
        return {name: variant for name, variant in self.study.variants.items() if self.study.ranges(variant)}

    def state(self, group: Group) -> State:
        """How far a group is."""
        assert self.study.tuning is not None
        tried: dict[str, dict[int, Tried]] = {name: {} for name in self.tuned}
        running: dict[str, set[int]] = {name: set() for name in self.tuned}
        seconds: dict[str, list[float]] = {name: [] for name in self.tuned}
        for name, variant in self.tuned.items():
            for entry in self._ledger.entries(self._book(group, variant)):
                number = int(entry.key)
                if entry.done and entry.value is not None:
                    tried[name][number] = Tried(entry.value, entry.params)
                    seconds[name] += entry.about["seconds"]
                else:
                    running[name].add(number)
        return State(tried, running, self._wider(group, tried), seconds)

    def _wider(self, group: Group, tried: Mapping[str, Mapping[int, Tried]]) -> tuple[End, ...] | None:
        """Which ends are widened: found once, for a variant that comes later to have the same."""
        assert self.study.tuning is not None
        book = self._group_book(group)
        if (noted := self._ledger.noted(book, "widened")) is not None:
            return tuple(End(*end) for end in noted)
        ranges = {name: self.study.ranges(variant) for name, variant in self.tuned.items()}
        found = ends_to_widen(self.study.tuning, ranges, tried)
        if found is not None:
            self._ledger.note(book, "widened", [[end.option, end.side] for end in found])
        return found

    def claim_trial(self, group: Group, variant: Variant, trial: Trial) -> Claim | None:
        """Begin with a trial, unless it is made or another process makes it."""
        assert self.study.tuning is not None
        book = self._book(group, variant)
        self._ledger.open(book, self.study.tuning.mode)
        distributions = {option: distribution(each) for option, each in trial.ranges.items()}
        return self._ledger.claim(book, str(trial.number), trial.settings, distributions)

    def finish_trial(self, claim: Claim, value: float, outcomes: list[Outcome]) -> None:
        """Note down what a trial has measured, on average over the repeats."""
        assert self.study.tuning is not None
        about = {"seconds": [outcome.seconds for outcome in outcomes]}
        self._ledger.finish(claim, _sortable(value, self.study.tuning.mode), about)

    def beat(self) -> None:
        """Say that this process is alive."""
        self._ledger.beat()

    def release(self, claim: Claim, reason: str) -> None:
        """Give up what was begun."""
        self._ledger.release(claim, reason)

    def trials_left(self, state: State, variant: Variant) -> int:
        """How many trials of a variant are not over, as far as that is known yet."""
        assert self.study.tuning is not None
        return budget(self.study.tuning, state.wider or ()) - len(state.tried[variant.name])

    def choice(self, state: State, variant: Variant) -> tuple[dict[str, Any], dict[str, str]] | None:
        """Return what tuning has chosen for a variant, and which of it is at an end; None if it is not over."""
        assert self.study.tuning is not None
        if state.wider is None or self.trials_left(state, variant):
            return None
        settings = dict(best(self.study.tuning, state.tried[variant.name]).settings)
        ranges = widened(self.study.ranges(variant), state.wider)
        return settings, {end.option: end.side for end in ends(ranges, settings)}

    def _book(self, group: Group, variant: Variant) -> str:
        identity = self._identities[group.data, variant.name]
        return "/".join(filter(None, [self.study.name, group.data, variant.name, group.name, identity.short]))

    def _group_book(self, group: Group) -> str:
        # of everything that its variants share
        some = self._identities[group.data, self.study.baseline]
        shared = Identity(
            configuration_hash(self.study, self.study.data[group.data], Variant("")), some.data, some.code
        )
        return "/".join(filter(None, [self.study.name, group.data, "ranges", group.name, shared.short]))


def _sortable(value: float, mode: str) -> float:
    """A number that Optuna takes: a training that has come to nothing is the worst."""
    if math.isfinite(value):
        return value
    return math.inf if mode == "min" else -math.inf
