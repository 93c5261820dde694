"""Run a study: find what can be done next, do it, note down what came of it.

Several processes may do so at the same time, here and on other machines, by what their ledger says.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from ika_lightning import __version__
from ika_lightning.data.messages import quoted
from ika_lightning.study.books import Books, Changed, Finished, Group, State
from ika_lightning.study.cells import Cell, words_of
from ika_lightning.study.definition import Variant
from ika_lightning.study.ledger import Claim
from ika_lightning.study.progress import duration, seconds_to_go
from ika_lightning.study.table import Row
from ika_lightning.study.tuning import Trial, due
from ika_lightning.study.worker import Fit, FitAndTest, FitReference, Job, JobFailed, Outcome, Worker, keep_log

__all__ = ["Runner"]

# How often one looks what other processes have done, in seconds.
_PAUSE = 1.0


@dataclass(frozen=True)
class _TrialTask:
    """A trial that can be made."""

    group: Group
    variant: Variant
    trial: Trial

    @property
    def name(self) -> str:
        place = "/".join(filter(None, [self.group.data, self.variant.name, self.group.name]))
        return f"{place} trial {self.trial.number + 1}"


@dataclass(frozen=True)
class _CellTask:
    """A cell that can be trained and tested."""

    cell: Cell
    chosen: Mapping[str, Any] = field(default_factory=dict)
    at_ends: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.cell.name


_Task = _TrialTask | _CellTask


@dataclass(frozen=True)
class _Survey:
    """What is done, and how far the groups are whose tuning is still needed."""

    finished: Finished
    states: Mapping[Group, State]


class Runner:
    """Does what is not done yet of some cells, until there is nothing left that could be done.

    Args:
        books: What is done.
        wanted: The cells.
        changed: What becomes of results that would be others today.
        worker: Who trains.
        folder: The folder of the study's results.
        jobs: How many trainings run at a time.
        say: Takes lines about what goes on.

    Raises:
        ValueError: If there are results that would be others today, and nobody said what is to become of them.
    """

    def __init__(
        self,
        books: Books,
        wanted: Sequence[Cell],
        changed: Changed,
        worker: Worker,
        folder: Path,
        jobs: int,
        say: Callable[[str], None],
    ) -> None:
        self.study, self._books, self._wanted, self._changed = books.study, books, wanted, changed
        self._worker, self._folder, self._jobs, self._say = worker, folder, jobs, say
        self._stopped = threading.Event()
        self._turn = threading.Lock()
        self._failed: dict[str, str] = {}
        self._refuse_changed()

    @property
    def failed(self) -> Mapping[str, str]:
        """What has ended with an error, by the name of a cell or trial."""
        return self._failed

    def run(self) -> None:
        """Do it."""
        with ThreadPoolExecutor(self._jobs) as pool:
            working = {pool.submit(self._work) for _ in range(self._jobs)}
            try:
                while working:
                    ended, working = wait(working, _PAUSE)
                    for each in ended:
                        each.result()
                    self._books.beat()
            finally:
                # after Ctrl-C, trainings are ended, and what they were is released for others
                self._stopped.set()
                self._worker.stop()

    def _refuse_changed(self) -> None:
        finished = self._books.finished()
        others = [row for cell in self._wanted if (row := finished.others.get(cell.name))]
        if not others or self._changed != "refuse":
            return
        counts = {what: sum(what in row.changed for row in others) for what in ("configuration", "data", "code")}
        said = ", ".join(f"{what} ({number})" for what, number in counts.items() if number)
        first = "/".join((others[0].data, others[0].variant, others[0].repeat))
        raise ValueError(
            f"{self.study.file}: {len(others)} finished cells, such as {first}, are results of another {said}; give "
            "--changed rerun to do them again, --changed keep to report them as they are, or another --output"
        )

    def _work(self) -> None:
        """Do one thing after another."""
        while not self._stopped.is_set():
            # one at a time looks for work, or all would find the same
            with self._turn:
                found, waits = self._begin()
            if found is not None:
                self._do(*found)
            elif waits:
                self._stopped.wait(_PAUSE)
            else:
                return

    def _begin(self) -> tuple[tuple[_Task, Claim] | None, bool]:
        """Claim something to do; else say whether there may be something later."""
        survey, waits = self._survey(), False
        for task in self._due(survey):
            if task.name in self._failed:
                continue
            if isinstance(task, _CellTask):
                claim = self._books.claim_cell(task.cell)
            else:
                claim = self._books.claim_trial(task.group, task.variant, task.trial)
            if claim is not None:
                return (task, claim), False
            # another process was quicker, and may be ended
            waits = True
        trials = any(running for state in survey.states.values() for running in state.running.values())
        return None, waits or trials or bool(survey.finished.running & {cell.name for cell in self._wanted})

    def _survey(self) -> _Survey:
        finished = self._books.finished()
        groups = dict.fromkeys(self._books.group(cell) for cell in self._left(finished))
        return _Survey(finished, {group: self._books.state(group) for group in groups if group is not None})

    def _left(self, finished: Finished) -> list[Cell]:
        done = finished.rows.keys() | (finished.others.keys() if self._changed == "keep" else set())
        return [cell for cell in self._wanted if cell.name not in done]

    def _due(self, survey: _Survey) -> Iterator[_Task]:
        """Go through what can be begun now: trials before the cells that wait for them."""
        tuning = self.study.tuning
        for group, state in survey.states.items():
            assert tuning is not None
            for name, variant in self._books.tuned.items():
                ranges = self.study.ranges(variant)
                for trial in due(tuning, ranges, state.tried[name], state.running[name], state.wider or ()):
                    yield _TrialTask(group, variant, trial)
        for cell in self._left(survey.finished):
            if cell.name in survey.finished.running:
                continue
            if (tuned_in := self._books.group(cell)) is None:
                yield _CellTask(cell)
            elif (chosen := self._books.choice(survey.states[tuned_in], cell.variant)) is not None:
                yield _CellTask(cell, *chosen)

    def _do(self, task: _Task, claim: Claim) -> None:
        try:
            said = self._make_trial(task, claim) if isinstance(task, _TrialTask) else self._make_cell(task, claim)
        except JobFailed as failure:
            self._books.release(claim, str(failure))
            if not self._stopped.is_set():
                self._failed[task.name] = str(failure)
                self._say(f"{task.name} failed: {failure}{keep_log(self._folder, task.name, failure)}")
            return
        with self._turn:
            self._say(f"{task.name}: {said}; {self._progress()}")

    def _make_trial(self, task: _TrialTask, claim: Claim) -> str:
        assert self.study.tuning is not None
        metric = self.study.tuning.metric
        outcomes = []
        for repeat in task.group.repeats:
            words = words_of(self.study.data[task.group.data], task.variant, repeat, task.trial.settings)
            outcomes.append(self._worker.run(Fit(words)))
        missing = [outcome for outcome in outcomes if metric not in outcome.measures]
        if missing:
            raise JobFailed(f"{metric} was not measured; there are {quoted(sorted(missing[0].measures))}", "")
        value = fmean(outcome.measures[metric] for outcome in outcomes)
        self._books.finish_trial(claim, value, outcomes)
        settings = ", ".join(f"{option} {_short(setting)}" for option, setting in task.trial.settings.items())
        return f"{metric} {value:.5g} with {settings}"

    def _make_cell(self, task: _CellTask, claim: Claim) -> str:
        cell = task.cell
        words = words_of(cell.data, cell.variant, cell.repeat, task.chosen, refit=True)
        job: Job[Outcome]
        if cell.variant.reference is None:
            job = FitAndTest(words)
        else:
            job = FitReference(words, cell.variant.reference, cell.variant.overrides)
        outcome = self._worker.run(job)
        metric = next(iter(self.study.report))
        if cell.variant.reference is None and (missing := sorted(self.study.report.keys() - outcome.measures.keys())):
            measured = sorted(name for name in outcome.measures if name.startswith("test/"))
            raise JobFailed(f"the test has not measured {', '.join(missing)}; there are {quoted(measured)}", "")
        row = Row(
            data=cell.data.name,
            variant=cell.variant.name,
            repeat=str(cell.repeat),
            identity=self._books.identity(cell),
            measures=outcome.measures,
            seconds=outcome.seconds,
            processor_seconds=outcome.processor_seconds,
            peak_memory=outcome.peak_memory,
            updates=outcome.updates,
            chosen=task.chosen,
            at_ends=task.at_ends,
            versions=_versions(),
            host=platform.node(),
        )
        self._books.finish_cell(claim, row)
        return f"{metric} {outcome.measures.get(metric, float('nan')):.5g}"

    def _progress(self) -> str:
        survey = self._survey()
        cells = self._left(survey.finished)
        left: dict[tuple[str, str], int] = {}
        seconds: dict[tuple[str, str], list[float]] = {}
        for cell in cells:
            place = (cell.data.name, cell.variant.name)
            left[place] = left.get(place, 0) + 1
        for row in survey.finished.rows.values():
            seconds.setdefault((row.data, row.variant), []).append(row.seconds)
        running = len(survey.finished.running & {cell.name for cell in cells})
        for group, state in survey.states.items():
            for name, variant in self._books.tuned.items():
                place = (group.data, name)
                left[place] = left.get(place, 0) + self._books.trials_left(state, variant) * len(group.repeats)
                seconds.setdefault(place, []).extend(state.seconds[name])
                running += len(state.running[name])
        done = len(self._wanted) - len(cells)
        parts = [f"{done} of {len(self._wanted)} cells done", f"{running} running"]
        to_go = seconds_to_go(left, seconds, self._jobs)
        return ", ".join(parts if not cells or to_go is None else [*parts, f"about {duration(to_go)} to go"])


def _versions() -> dict[str, str]:
    """Versions of what computes."""
    libraries = ("torch", "lightning", "torch-geometric", "numpy", "scikit-learn")
    return {
        "ika-lightning": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
