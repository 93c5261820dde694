"""What is done when, by whom and how often, with trainings that take no time."""

import hashlib
import multiprocessing
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from study_files import STUDY, results, write_study

from ika_lightning.study.books import Books
from ika_lightning.study.cells import find_cell
from ika_lightning.study.check import check_study
from ika_lightning.study.definition import read_study
from ika_lightning.study.ledger import Ledger, open_storage
from ika_lightning.study.report import CSV, MARKDOWN, write_report
from ika_lightning.study.run import Runner
from ika_lightning.study.table import to_csv
from ika_lightning.study.worker import Check, Checked, Fit, FitAndTest, FitReference, Job, JobFailed, Outcome, Worker

Words = tuple[str, ...]
METRICS = ["loss", "r2", "rmse"]


def number(*parts: Any) -> float:
    """A number from 0 to 1 that is the same for the same parts, in all processes."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 16**8


class Pretender(Worker):
    """Trains nothing, and is quick about it: what is measured is a function of the words."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(1, Path("nowhere"))
        self.jobs: list[Job[Any]] = []
        self.seconds = seconds
        self.fails: Callable[[list[str]], str | None] = lambda words: None
        self.fingerprint = "data"
        self.best = 0.01

    def run(self, job: Any) -> Any:
        self.jobs.append(job)
        if isinstance(job, Check):
            return Checked(self.fingerprint, METRICS)
        time.sleep(self.seconds * number(job.words, "seconds"))
        if self.is_stopped:
            raise JobFailed("stopped", "")
        if (message := self.fails(job.words)) is not None:
            raise JobFailed(message, f"Traceback\n{message}\n")
        rates = [float(word.partition("=")[2]) for word in job.words if word.startswith("--model.optimizer.lr=")]
        error = abs(rates[0] - self.best) if rates else 0.5
        noise = [word for word in job.words if "lr" not in word and not word.endswith("hills.yaml")]
        measures = {"val/rmse": error}
        if not isinstance(job, Fit):
            measures = {"test/rmse": error + number(noise), "test/r2": number(noise, "r2")}
        return Outcome(measures, 1.0, 1.0, 100.0)

    def of(self, *kinds: type) -> list[Words]:
        return [tuple(job.words) for job in self.jobs if isinstance(job, kinds)]  # type: ignore[attr-defined]


class Running:
    """A study in a folder, and processes that run it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "results" / "small"
        self.output.mkdir(parents=True, exist_ok=True)
        self.said: list[str] = []

    def run(self, worker: Worker, only: str | None = None, jobs: int = 1, changed: Any = "refuse") -> Runner:
        """Run it as the command does."""
        study = read_study(self.folder / "small.yaml")
        ledger = Ledger(open_storage(self.output, None), self.output / "running")
        try:
            data = list(study.data.values())
            books = Books(study, ledger, check_study(study, data, ledger, worker, self.output, jobs))
            wanted = books.cells() if only is None else [find_cell(study, only)]
            runner = Runner(books, wanted, changed, worker, self.output, jobs, self.said.append)
            runner.run()
            self.rows = books.rows(books.finished(), changed)
            (self.output / CSV).write_bytes(to_csv(self.rows))
            return runner
        finally:
            ledger.close()

    def report(self) -> str:
        """Write the report, and return what it says."""
        write_report(read_study(self.folder / "small.yaml"), self.rows, self.output)
        return (self.output / MARKDOWN).read_text()


@pytest.fixture
def running(tmp_path: Path) -> Running:
    write_study(tmp_path)
    return Running(tmp_path)


def change(folder: Path, **changes: Any) -> None:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}, sort_keys=False))


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_study_to_its_end(running: Running, jobs: int) -> None:
    worker = Pretender()
    worker.best = 0.04
    running.run(worker, jobs=jobs)
    tuned = Counter("--model.attention=DotProduct" in words for words in worker.of(Fit))
    # two trials of each variant, and one beyond the end that is the best
    assert sorted(tuned.values()) == [3, 3] and {words[-1] for words in worker.of(Fit)} == {"--seed_everything=3"}
    assert Counter(words[-1] for words in worker.of(FitAndTest)) == {"--seed_everything=3": 2, "--seed_everything=5": 2}
    assert len(worker.of(FitReference)) == 2 and len(running.rows) == 6
    assert [(row.variant, row.repeat) for row in running.rows] == [
        (variant, repeat) for repeat in "35" for variant in ("DotProduct", "MIKAN", "trees")
    ]
    assert "6 of 6 cells done" in running.said[-1]


def test_test_rows_are_touched_once_in_a_cell_after_all_tuning(running: Running) -> None:
    worker = Pretender()
    running.run(worker, jobs=3)
    kinds = [type(job) for job in worker.jobs]
    tests = worker.of(FitAndTest, FitReference)
    # no cell twice, and no trial after the first cell that waits for it
    assert len(tests) == len(set(tests)) == 6
    assert max(at for at, kind in enumerate(kinds) if kind is Fit) < min(
        at for at, kind in enumerate(kinds) if kind is FitAndTest
    )
    chosen = {word for words in worker.of(FitAndTest) for word in words if "lr" in word}
    assert chosen <= {word for words in worker.of(Fit) for word in words}


class TestWidening:
    def rates(self, worker: Pretender, variant: str) -> list[float]:
        words = [
            each for each in worker.of(Fit) if ("--model.attention=DotProduct" in each) == (variant == "DotProduct")
        ]
        return [float(word.partition("=")[2]) for each in words for word in each if "lr" in word]

    def test_of_one_is_of_all(self, running: Running) -> None:
        worker = Pretender()
        worker.best = 0.04
        running.run(worker)
        one, other = (self.rates(worker, variant) for variant in ("DotProduct", "MIKAN"))
        assert one == other and len(one) == 3
        assert all(0.01 <= rate <= 0.03 for rate in one[:2]) and 0.03 <= one[2] <= 0.04
        row = running.rows[0]
        assert row.chosen["model.optimizer.lr"] == one[2]
        # the end of the range as it is now
        assert row.at_ends == ({"model.optimizer.lr": "high"} if one[2] >= 0.037 else {})

    def test_is_not_where_the_best_is_inside(self, running: Running) -> None:
        worker = Pretender()
        # the middle of what two trials try
        worker.best = 0.02
        change(running.folder, tune={**STUDY["tune"], "trials": 5})
        running.run(worker)
        assert len(self.rates(worker, "MIKAN")) == 5 and running.rows[0].at_ends == {}

    def test_a_variant_that_comes_later_has_the_same_ranges(self, running: Running) -> None:
        worker = Pretender()
        worker.best = 0.04
        running.run(worker)
        later = Pretender()
        given = yaml.safe_load((running.folder / "small.yaml").read_text())
        change(running.folder, variants={**given["variants"], "RBF": {"overrides": {"model.attention": "RBF"}}})
        running.run(later)
        assert len(later.of(Fit)) == 3 and len(later.of(FitAndTest)) == 2
        assert self.rates(later, "RBF") == self.rates(worker, "MIKAN")


@pytest.mark.parametrize("sampler", ["quasi-random", "tpe"])
def test_each_repeat_may_tune_for_itself(running: Running, sampler: str) -> None:
    change(running.folder, tune={**STUDY["tune"], "repeats": "each", "sampler": sampler, "trials": 4})
    worker = Pretender()
    running.run(worker, jobs=2)
    seeds = Counter(words[-1] for words in worker.of(Fit))
    assert set(seeds) == {"--seed_everything=3", "--seed_everything=5"} and min(seeds.values()) >= 8


def test_cells_are_refitted_and_trials_are_not(running: Running) -> None:
    change(running.folder, refit={"data.val_fraction": 0.0, "checkpoint.monitor": None})
    worker = Pretender()
    running.run(worker)
    refit = {"--data.val_fraction=0.0", "--checkpoint.monitor=null"}
    assert all(refit < {*words} for words in worker.of(FitAndTest, FitReference))
    assert not any(refit & {*words} for words in worker.of(Fit))
    # and is looked at before the first training
    assert isinstance(worker.jobs[0], Check)
    assert {refit < {*words} for _, words in worker.jobs[0].variants} == {False, True}
    assert "with data.val_fraction=0.0, checkpoint.monitor=null, unlike the trials." in running.report()


def test_nothing_need_be_tuned(running: Running) -> None:
    given = yaml.safe_load((running.folder / "small.yaml").read_text())
    del given["tune"]
    (running.folder / "small.yaml").write_text(yaml.safe_dump(given))
    worker = Pretender()
    running.run(worker)
    assert worker.of(Fit) == [] and len(running.rows) == 6 and running.rows[0].chosen == {}
    assert "Nothing was tuned" in running.report()


def test_one_cell_alone(running: Running, tmp_path: Path) -> None:
    running.run(Pretender())
    whole = {(row.variant, row.repeat): row.measures for row in running.rows}
    (tmp_path / "alone").mkdir()
    write_study(tmp_path / "alone")
    alone, worker = Running(tmp_path / "alone"), Pretender()
    alone.run(worker, only="hills/MIKAN/5")
    (row,) = alone.rows
    assert row.measures == whole["MIKAN", "5"] and len(worker.of(FitAndTest)) == 1 and worker.of(FitReference) == []


def test_what_is_done_is_not_done_again(running: Running) -> None:
    running.run(Pretender())
    before, again = results(running.folder), Pretender()
    running.run(again)
    assert [type(job) for job in again.jobs] == [Check]
    # nor are variants built again, which were
    assert again.jobs[0].variants == []  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(results(running.folder), before)


class TestFailures:
    def test_others_go_on_and_the_next_time_it_is_tried_again(self, running: Running) -> None:
        worker = Pretender()
        worker.fails = lambda words: (
            "no luck" if "--model.attention=DotProduct" not in words and words[-1].endswith("5") else None
        )
        runner = running.run(worker, jobs=2)
        assert dict(runner.failed) == {"hills/MIKAN/5": "no luck", "hills/trees/5": "no luck"}
        assert len(running.rows) == 4
        (line,) = [line for line in running.said if line.startswith("hills/MIKAN/5")]
        log = running.output / "failed" / "hills-MIKAN-5.log"
        assert line == f"hills/MIKAN/5 failed: no luck (see {log})" and "Traceback" in log.read_text()
        again = Pretender()
        assert not running.run(again).failed and len(running.rows) == 6
        assert len(again.jobs) == 3

    def test_cells_do_not_begin_without_their_tuning(self, running: Running) -> None:
        worker = Pretender()
        worker.fails = lambda words: "no luck" if "--model.attention=DotProduct" in words and len(words) < 9 else None
        runner = running.run(worker)
        assert set(runner.failed) == {"hills/DotProduct trial 1", "hills/DotProduct trial 2"}
        # whether a range is widened depends on all variants
        assert {row.variant for row in running.rows} == {"trees"}

    def test_a_training_that_comes_to_nothing_is_the_worst(self, running: Running) -> None:
        class Diverging(Pretender):
            def run(self, job: Any) -> Any:
                outcome = super().run(job)
                nan = {"val/rmse": float("nan"), "test/rmse": float("nan"), "test/r2": float("nan")}
                return Outcome(nan, 1.0, 1.0, None) if isinstance(job, Fit | FitAndTest) else outcome

        running.run(Diverging())
        assert len(running.rows) == 6
        table = results(running.folder)
        assert table["test/rmse"].isna().sum() == 4
        again = Diverging()
        running.run(again)
        assert len(again.jobs) == 1

    def test_what_is_reported_has_to_be_measured(self, running: Running) -> None:
        class Silent(Pretender):
            def run(self, job: Any) -> Any:
                outcome = super().run(job)
                return Outcome({"test/mae": 1.0}, 1.0, 1.0, None) if isinstance(job, FitAndTest) else outcome

        runner = running.run(Silent())
        wanted = "the test has not measured test/r2, test/rmse; there are 'test/mae'"
        assert runner.failed["hills/MIKAN/3"] == wanted


class TestChanges:
    """Results that are not what they would be today."""

    def refused(self, running: Running, worker: Worker) -> str:
        with pytest.raises(ValueError) as error:
            running.run(worker)
        return str(error.value)

    def test_of_the_configuration(self, running: Running) -> None:
        running.run(Pretender())
        given = yaml.safe_load((running.folder / "small.yaml").read_text())
        trees = {**given["variants"]["trees"], "arguments": {"random_state": 1}}
        change(running.folder, variants={**given["variants"], "trees": trees})
        assert self.refused(running, Pretender()) == (
            f"{running.folder}/small.yaml: 2 finished cells, such as hills/trees/3, are results of another "
            "configuration (2); give --changed rerun to do them again, --changed keep to report them as they are, or "
            "another --output"
        )
        kept, anew = Pretender(), Pretender()
        running.run(kept, changed="keep")
        assert len(kept.jobs) == 1 and [row.changed for row in running.rows] == [(), (), ("configuration",)] * 2
        assert "2 of them are results of another configuration" in running.report()
        running.run(anew, changed="rerun")
        assert len(anew.of(FitReference)) == 2 and len(anew.jobs) == 3
        assert {row.changed for row in running.rows} == {()}

    def test_of_data_and_code(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        running.run(Pretender())
        other = Pretender()
        other.fingerprint = "other data"
        assert "6 finished cells, such as hills/DotProduct/3, are results of another data (6);" in self.refused(
            running, other
        )
        monkeypatch.setattr("ika_lightning.study.check.code_version", lambda: "new")
        assert "another data (6), code (6);" in self.refused(running, other)
        assert "another code (6);" in self.refused(running, Pretender())
        # all that was tuned is tuned anew
        anew = Pretender()
        running.run(anew, changed="rerun")
        assert len(anew.of(Fit)) >= 4 and len(anew.of(FitAndTest)) == 4
        monkeypatch.undo()
        back = Pretender()
        running.run(back)
        assert len(back.jobs) == 1

    def test_more_and_fewer_repeats(self, running: Running) -> None:
        running.run(Pretender())
        before, more = results(running.folder), Pretender()
        options = STUDY["repeats"]["options"]
        change(running.folder, repeats={"options": options, "values": [3, 5, 7]})
        running.run(more)
        assert len(more.of(FitAndTest, FitReference)) == 3 and more.of(Fit) == []
        pd.testing.assert_frame_equal(results(running.folder)[:6], before)


class TestMeasures:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"report": {"test/rsme": "min"}}, "report: test/rsme is not measured on hills (did you mean 'rmse'?)"),
            (
                {"tune": {**STUDY["tune"], "metric": "val/bleu"}},
                "tune.metric: val/bleu is not measured on hills; there are 'val/",
            ),
        ],
    )
    def test_that_there_are_not(self, running: Running, changes: dict[str, Any], message: str) -> None:
        change(running.folder, **changes)
        worker = Pretender()
        with pytest.raises(ValueError, match=re.escape(message)):
            running.run(worker)
        assert [type(job) for job in worker.jobs] == [Check]


def test_two_processes_share_the_work(running: Running) -> None:
    workers = [Pretender(0.2), Pretender(0.2)]
    threads = [threading.Thread(target=Running(running.folder).run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cells = [words for worker in workers for words in worker.of(FitAndTest, FitReference)]
    assert len(cells) == len(set(cells)) == 6
    assert all(worker.of(Fit, FitAndTest, FitReference) for worker in workers)
    pretender = Pretender()
    running.run(pretender)
    assert len(pretender.jobs) == 1 and len(running.rows) == 6


# --- Interrupted ------------------------------------------------------------------------------------------------------

# More cells than a process can do before it is killed.
LONG = {"repeats": {**STUDY["repeats"], "values": [3, 5, 7, 11, 13]}, "tune": {**STUDY["tune"], "trials": 4}}


def pretend(folder: Path, begun: Any) -> None:
    """Run a study with trainings of a quarter of a second, two at a time, in a process that may be killed."""
    begun.set()
    Running(folder).run(Pretender(0.5), jobs=2)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_table_is_the_same(running: Running, tmp_path: Path, kills: int) -> None:
    change(running.folder, **LONG)
    (tmp_path / "killed").mkdir()
    write_study(tmp_path / "killed", LONG)
    running.run(Pretender(), jobs=2)
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["ika_lightning.study.worker"])
    moments = random.Random(kills)
    for last in [False] * kills + [True]:
        begun = context.Event()
        process = context.Process(target=pretend, args=(tmp_path / "killed", begun))
        process.start()
        assert begun.wait(120)
        if not last:
            time.sleep(moments.uniform(0.0, 1.0))
            process.kill()
        process.join()
        assert process.exitcode == (0 if last else -signal.SIGKILL)
    killed = results(tmp_path / "killed")
    pd.testing.assert_frame_equal(killed, results(running.folder))
    assert len(killed) == 15
