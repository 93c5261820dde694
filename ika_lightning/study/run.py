"""Run a study: find what can be done next, do it, note down what came of it.

Several processes may do so at the same time, here and on other machines, by what their ledger says.
"""

from __future__ import annotations

import platform
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

from ika_lightning import __version__
from ika_lightning.data.messages import closest, quoted
from ika_lightning.output import write_output
from ika_lightning.study.books import Books, Changed, Finished, Group, State
from ika_lightning.study.cells import Cell, Identity, code_version, configuration_hash, short_hash, words_of
from ika_lightning.study.definition import Choice, DataSet, Study, Variant
from ika_lightning.study.ledger import Claim, Ledger
from ika_lightning.study.progress import duration, seconds_to_go
from ika_lightning.study.table import Row
from ika_lightning.study.tuning import Trial, due
from ika_lightning.study.worker import Check, Checked, Fit, FitAndTest, FitReference, Job, JobFailed, Outcome, Worker

__all__ = ["Runner", "corners"]

FAILED = "failed"
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
    """Runs a study, or some of its cells.

    Args:
        study: The study.
        ledger: What is done, and who does what.
        folder: Where results go.
        worker: Who trains.
        jobs: How many trainings run at a time.
        say: Takes lines about what goes on.
    """

    def __init__(
        self,
        study: Study,
        ledger: Ledger,
        folder: Path,
        worker: Worker,
        jobs: int = 1,
        say: Callable[[str], None] = print,
    ) -> None:
        self.study, self._ledger, self._folder, self._worker = study, ledger, folder, worker
        self._jobs, self._say = jobs, say
        self._stopped = threading.Event()
        self._turn = threading.Lock()
        self._numbers = count()
        self._failed: dict[str, str] = {}

    @property
    def failed(self) -> Mapping[str, str]:
        """What has ended with an error, by the name of a cell or trial."""
        return self._failed

    # --- Before -------------------------------------------------------------------------------------------------------

    def prepare(self, data: Sequence[DataSet]) -> Books:
        """Look whether all can be trained, and find out what results are results of.

        Args:
            data: The data sets to look at.

        Raises:
            ValueError: If a configuration does not take an override, or something that is not measured is reported.
        """
        code = code_version()
        with ThreadPoolExecutor(max(1, self._jobs)) as pool:
            found = list(pool.map(lambda each: self._check(each, code), data))
        identities = {
            (each.name, variant.name): Identity(
                configuration_hash(self.study, each, variant), checked.fingerprint, code
            )
            for each, checked in zip(data, found, strict=True)
            for variant in self.study.variants.values()
        }  # fmt: skip
        return Books(self.study, self._ledger, identities)

    def _check(self, data: DataSet, code: str) -> Checked:
        """Build all variants on a data set, but for those that were built in the same way before."""
        book, repeat = f"{self.study.name}/checked", data.repeats.values[0]
        words: list[tuple[str, list[str]]] = []
        for name, variant in self.study.variants.items():
            if variant.reference is None:
                for settings in corners(self.study, variant):
                    words.append((f"{data.name}/{name}", words_of(data, variant, repeat, settings)))
        content = data.config.read_text(encoding="utf-8")
        keys = [short_hash([each, content, code]) for _, each in words]
        new = [each for each, key in zip(words, keys, strict=True) if not self._ledger.noted(book, key)]
        references = [
            (f"{data.name}/{name}", variant.reference, variant.overrides)
            for name, variant in self.study.variants.items()
            if variant.reference is not None
        ]
        baseline = self.study.variants[self.study.baseline]
        settings = corners(self.study, baseline)[0]
        check = Check(words_of(data, baseline, repeat, settings), new, references)
        try:
            checked = self._in_process(check)
        except JobFailed as failure:
            raise ValueError(f"{self.study.file}: {failure}{self._keep_log(data.name, failure)}") from failure
        if checked.measures is not None:
            for place, metric in self._metrics():
                stage, _, name = metric.partition("/")
                if name not in checked.measures:
                    there = [f"{stage}/{measure}" for measure in checked.measures]
                    raise ValueError(
                        f"{self.study.file}: {place}: {metric} is not measured on {data.name}"
                        f"{closest(name, checked.measures)}; there are {quoted(there, 20)}"
                    )
        for key in keys:
            self._ledger.note(book, key, True)
        return checked

    def _metrics(self) -> Iterator[tuple[str, str]]:
        yield from (("report", metric) for metric in self.study.report)
        if self.study.tuning is not None:
            yield "tune.metric", self.study.tuning.metric

    # --- Running ------------------------------------------------------------------------------------------------------

    def run(self, books: Books, wanted: Sequence[Cell], changed: Changed = "refuse") -> None:
        """Do what is not done yet, until there is nothing left that could be done.

        Args:
            books: What :meth:`prepare` has found.
            wanted: The cells to do.
            changed: What becomes of results that would be others today.

        Raises:
            ValueError: If there are such results, and nobody said what is to become of them.
        """
        self._refuse_changed(books.finished(), wanted, changed)
        with ThreadPoolExecutor(self._jobs) as pool:
            working = {pool.submit(self._work, books, wanted, changed) for _ in range(self._jobs)}
            try:
                while working:
                    ended, working = wait(working, _PAUSE)
                    for each in ended:
                        each.result()
                    self._ledger.beat()
            finally:
                # after Ctrl-C, trainings are ended, and what they were is released for others
                self._stopped.set()
                self._worker.stop()

    def _refuse_changed(self, finished: Finished, wanted: Sequence[Cell], changed: Changed) -> None:
        others = [row for cell in wanted if (row := finished.others.get(cell.name))]
        if not others or changed != "refuse":
            return
        counts = {what: sum(what in row.changed for row in others) for what in ("configuration", "data", "code")}
        said = ", ".join(f"{what} ({number})" for what, number in counts.items() if number)
        first = "/".join((others[0].data, others[0].variant, others[0].repeat))
        raise ValueError(
            f"{self.study.file}: {len(others)} finished cells, such as {first}, are results of another {said}; give "
            "--changed rerun to do them again, --changed keep to report them as they are, or another --output"
        )

    def _work(self, books: Books, wanted: Sequence[Cell], changed: Changed) -> None:
        """Do one thing after another."""
        while not self._stopped.is_set():
            # one at a time looks for work, or all would find the same
            with self._turn:
                found, waits = self._begin(books, wanted, changed)
            if found is not None:
                self._do(books, wanted, changed, *found)
            elif waits:
                self._stopped.wait(_PAUSE)
            else:
                return

    def _begin(self, books: Books, wanted: Sequence[Cell], changed: Changed) -> tuple[tuple[_Task, Claim] | None, bool]:
        """Claim something to do; else say whether there may be something later."""
        survey = self._survey(books, wanted, changed)
        for task in self._due(books, survey, wanted, changed):
            if task.name in self._failed:
                continue
            if isinstance(task, _CellTask):
                claim = books.claim_cell(task.cell)
            else:
                claim = books.claim_trial(task.group, task.variant, task.trial)
            if claim is not None:
                return (task, claim), False
        running = [name for state in survey.states.values() for name in state.running if state.running[name]]
        return None, bool(running or survey.finished.running & {cell.name for cell in wanted})

    def _survey(self, books: Books, wanted: Sequence[Cell], changed: Changed) -> _Survey:
        finished = books.finished()
        groups = [books.group(cell) for cell in self._left(finished, wanted, changed)]
        return _Survey(finished, {group: books.state(group) for group in dict.fromkeys(groups) if group is not None})

    @staticmethod
    def _left(finished: Finished, wanted: Sequence[Cell], changed: Changed) -> list[Cell]:
        done = finished.rows.keys() | (finished.others.keys() if changed == "keep" else set())
        return [cell for cell in wanted if cell.name not in done]

    def _due(self, books: Books, survey: _Survey, wanted: Sequence[Cell], changed: Changed) -> Iterator[_Task]:
        """Go through what can be begun now: trials before the cells that wait for them."""
        tuning = self.study.tuning
        for group, state in survey.states.items():
            assert tuning is not None
            for name, variant in books.tuned.items():
                ranges = self.study.ranges(variant)
                for trial in due(tuning, ranges, state.tried[name], state.running[name], state.wider or ()):
                    yield _TrialTask(group, variant, trial)
        for cell in self._left(survey.finished, wanted, changed):
            if cell.name in survey.finished.running:
                continue
            if (tuned_in := books.group(cell)) is None:
                yield _CellTask(cell)
            elif (chosen := books.choice(survey.states[tuned_in], cell.variant)) is not None:
                yield _CellTask(cell, *chosen)

    def _do(self, books: Books, wanted: Sequence[Cell], changed: Changed, task: _Task, claim: Claim) -> None:
        try:
            said = (
                self._make_trial(books, task, claim)
                if isinstance(task, _TrialTask)
                else self._make_cell(books, task, claim)
            )
        except JobFailed as failure:
            books.release(claim, str(failure))
            if not self._stopped.is_set():
                self._failed[task.name] = str(failure)
                self._say(f"{task.name} failed: {failure}{self._keep_log(task.name, failure)}")
            return
        with self._turn:
            self._say(f"{task.name}: {said}; {self._progress(books, wanted, changed)}")

    def _make_trial(self, books: Books, task: _TrialTask, claim: Claim) -> str:
        assert self.study.tuning is not None
        metric = self.study.tuning.metric
        outcomes = []
        for repeat in task.group.repeats:
            words = words_of(self.study.data[task.group.data], task.variant, repeat, task.trial.settings)
            outcomes.append(self._in_process(Fit(words)))
        missing = [outcome for outcome in outcomes if metric not in outcome.measures]
        if missing:
            raise JobFailed(f"{metric} was not measured; there are {quoted(sorted(missing[0].measures))}", "")
        value = fmean(outcome.measures[metric] for outcome in outcomes)
        books.finish_trial(claim, value, outcomes)
        settings = ", ".join(f"{option} {_short(setting)}" for option, setting in task.trial.settings.items())
        return f"{metric} {value:.5g} with {settings}"

    def _make_cell(self, books: Books, task: _CellTask, claim: Claim) -> str:
        cell = task.cell
        words = words_of(cell.data, cell.variant, cell.repeat, task.chosen)
        job: Job[Outcome]
        if cell.variant.reference is None:
            job = FitAndTest(words)
        else:
            job = FitReference(words, cell.variant.reference, cell.variant.overrides)
        outcome = self._in_process(job)
        metric = next(iter(self.study.report))
        if cell.variant.reference is None and (missing := sorted(self.study.report.keys() - outcome.measures.keys())):
            measured = sorted(name for name in outcome.measures if name.startswith("test/"))
            raise JobFailed(f"the test has not measured {', '.join(missing)}; there are {quoted(measured)}", "")
        row = Row(
            data=cell.data.name,
            variant=cell.variant.name,
            repeat=str(cell.repeat),
            identity=books.identity(cell),
            measures=outcome.measures,
            seconds=outcome.seconds,
            processor_seconds=outcome.processor_seconds,
            peak_memory=outcome.peak_memory,
            chosen=task.chosen,
            at_ends=task.at_ends,
            versions=_versions(),
            host=platform.node(),
        )
        books.finish_cell(claim, row)
        return f"{metric} {outcome.measures.get(metric, float('nan')):.5g}"

    def _in_process(self, job: Job[Any]) -> Any:
        folder = self._ledger.own_folder / str(next(self._numbers))
        folder.mkdir()
        try:
            return self._worker.run(job, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep_log(self, name: str, failure: JobFailed) -> str:
        """Keep what a process has printed; an ending for a message that says where."""
        if not failure.log:
            return ""
        file = self._folder / FAILED / f"{name.replace('/', '-').replace(' ', '-')}.log"
        file.parent.mkdir(exist_ok=True)
        write_output(file, failure.log.encode())
        return f" (see {file})"

    def _progress(self, books: Books, wanted: Sequence[Cell], changed: Changed) -> str:
        survey = self._survey(books, wanted, changed)
        cells = self._left(survey.finished, wanted, changed)
        left: dict[tuple[str, str], int] = {}
        seconds: dict[tuple[str, str], list[float]] = {}
        for cell in cells:
            place = (cell.data.name, cell.variant.name)
            left[place] = left.get(place, 0) + 1
        for row in survey.finished.rows.values():
            seconds.setdefault((row.data, row.variant), []).append(row.seconds)
        running = len(survey.finished.running & {cell.name for cell in cells})
        for group, state in survey.states.items():
            for name, variant in books.tuned.items():
                place = (group.data, name)
                left[place] = left.get(place, 0) + books.trials_left(state, variant) * len(group.repeats)
                seconds.setdefault(place, []).extend(state.seconds[name])
                running += len(state.running[name])
        done = len(wanted) - len(cells)
        parts = [f"{done} of {len(wanted)} cells done", f"{running} running"]
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


def corners(study: Study, variant: Variant) -> list[dict[str, Any]]:
    """The settings at the low ends of all ranges, and those at their high ends; the same once if nothing is tuned."""
    ranges = study.ranges(variant)
    if not ranges:
        return [{}]
    each = {
        name: range_.values if isinstance(range_, Choice) else (range_.low, range_.high)
        for name, range_ in ranges.items()
    }
    return [{name: values[place] for name, values in each.items()} for place in (0, -1)]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
