"""Trainings in processes of their own, and what is looked at before the first."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from study_files import write_study
from typing_extensions import override

from ika_lightning.cli.explain import UsageError
from ika_lightning.data import RegressionData
from ika_lightning.study.references import make_reference, score
from ika_lightning.study.worker import Check, Fit, FitAndTest, FitReference, Job, JobFailed, Worker

WORDS = ["--config", "hills.yaml", "--seed_everything=3", "--data.seed=3"]
TREES = ("sklearn.ensemble.ExtraTreesRegressor", {"random_state": 0})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a study's files are, and the processes run; with an empty folder for a job."""
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WATCHED", str(tmp_path / "watched"))
    (tmp_path / "job").mkdir()
    return tmp_path


def served(folder: Path) -> list[str]:
    """The parts of the data whose rows were asked for, in turn."""
    return [line.split()[0] for line in (folder / "watched").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:.*Lightning")
def test_a_training_and_its_test(folder: Path) -> None:
    outcome = FitAndTest(WORDS).run(folder / "job")
    assert {"val/rmse", "test/rmse", "test/r2"} <= outcome.measures.keys()
    assert all(np.isfinite(value) for name, value in outcome.measures.items() if name != "val/r2")
    assert outcome.processor_seconds > 0 and outcome.seconds > 0
    # two batches of twenty, in one epoch or two
    assert outcome.updates in (2, 4)
    parts = served(folder)
    assert parts.count("test") == 1 and parts[-1] == "test"
    # nothing but its own folder is written to
    assert {file.name for file in folder.iterdir()} == {"hills.csv", "hills.yaml", "small.yaml", "watched", "job"}


@pytest.mark.filterwarnings("ignore:.*Lightning", "ignore:Total length", "ignore:The dirpath has changed")
def test_without_validation_the_last_weights_are_tested(folder: Path) -> None:
    words = ["--data.val_fraction=0.0", "--checkpoint.monitor=null", "--early_stopping.strict=false"]
    outcome = FitAndTest([*WORDS, *words]).run(folder / "job")
    assert outcome.measures.keys() == {"test/loss", "test/rmse", "test/mae", "test/r2"} and outcome.updates == 6
    assert "val" not in served(folder)


def test_a_trial_does_not_touch_test_rows(folder: Path) -> None:
    outcome = Fit(WORDS).run(folder / "job")
    assert not any(name.startswith("test/") for name in outcome.measures) and "val/rmse" in outcome.measures
    assert "test" not in served(folder) and "train" in served(folder)


def test_a_reference_learns_from_training_and_validation_rows(folder: Path) -> None:
    outcome = FitReference(WORDS, *TREES).run(folder / "job")
    data = RegressionData(path="hills.csv", target="y", seed=3)
    data.setup()
    parts = {part: data.encoded(part) for part in ("train", "val", "test")}
    target = {part: data.target_mean + data.target_std * rows.target.double().numpy() for part, rows in parts.items()}
    x = np.concatenate([parts[part].features.numpy() for part in ("train", "val")])
    model = make_reference(*TREES)
    model.fit(x, np.concatenate([target["train"], target["val"]]))
    assert outcome.measures == score(model.predict(parts["test"].features.numpy()), target["test"])


class TestCheck:
    def test_reads_what_there_is_and_says_what_will_be_measured(self, folder: Path) -> None:
        check = Check(WORDS, [("hills/MIKAN", WORDS)], [("hills/trees", *TREES)])
        checked = check.run(folder / "job")
        assert checked.measures == ["coverage", "loss", "mae", "r2", "rmse", "width"]
        # rows are read, and none are served
        assert not (folder / "watched").exists()
        again = Check(WORDS).run(folder / "job")
        assert again == checked
        with (folder / "hills.csv").open("a") as file:
            file.write("0.5,0.5,0.5\n")
        assert Check(WORDS).run(folder / "job").fingerprint != checked.fingerprint

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("--model.widht=3", "hills/x: --model.widht: Regression has no such option; did you mean width"),
            ("--model.kl_weight=-1", "hills/x: kl_weight must be at least 0, got -1"),
            ("--data.path=nowhere.csv", None),
            ("--trainer.max_epoch=3", "hills/x: unknown option --trainer.max_epoch"),
        ],
    )
    def test_an_option_that_the_configuration_does_not_take(self, word: str, message: str | None, folder: Path) -> None:
        check = Check(WORDS, [("hills/x", [*WORDS, word])])
        if message is None:
            # a file that is not there is found by what reads it
            with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
                Check([*WORDS, word]).run(folder / "job")
        else:
            with pytest.raises(UsageError, match=re.escape(message)):
                check.run(folder / "job")

    @pytest.mark.parametrize(
        ("path", "arguments", "message"),
        [
            ("sklearn.ensemble.Trees", {}, "hills/x: there is no class sklearn.ensemble.Trees"),
            ("Trees", {}, "hills/x: there is no class Trees"),
            (TREES[0], {"trees": 3}, f"hills/x: {TREES[0]} cannot be made: "),
            ("pathlib.Path", {}, "hills/x: pathlib.Path is no reference: it needs the methods fit and predict"),
        ],
    )
    def test_a_reference_that_is_none(self, path: str, arguments: dict[str, Any], message: str, folder: Path) -> None:
        with pytest.raises(UsageError, match=re.escape(message)):
            Check(WORDS, [], [("hills/x", path, arguments)]).run(folder / "job")

    def test_a_reference_takes_a_table(self, folder: Path) -> None:
        words = ["--model", "NodeClassification", "--data", "NodeClassificationData", "--data.name", "karate"]
        with pytest.raises(
            UsageError, match=r"hills/x: .*ExtraTrees.* learns from a table \(RegressionData\), not Node"
        ):
            Check(words, [], [("hills/x", *TREES)]).run(folder / "job")
        assert Check(words).run(folder / "job").measures == ["accuracy", "f1", "loss"]


@pytest.mark.parametrize(("predicted", "shape"), [(np.zeros(2), "(2,)"), (np.zeros((3, 1)), "(3, 1)")])
def test_a_reference_predicts_a_number_for_each_row(predicted: np.ndarray, shape: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{shape} predictions for (3,) rows")):
        score(predicted, np.zeros(3))


# --- Processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look(Job[dict[str, Any]]):
    """Says where it runs."""

    @override
    def run(self, folder: Path) -> dict[str, Any]:
        return {
            "folder": str(folder), "cwd": os.getcwd(), "watched": os.environ["WATCHED"],
            "threads": torch.get_num_threads(), "process": os.getpid(),
        }  # fmt: skip


@dataclass(frozen=True)
class Fail(Job[None]):
    """Ends with an error."""

    kind: str

    @override
    def run(self, folder: Path) -> None:
        print("so far so good", flush=True)
        os.write(2, b"and better\n")
        match self.kind:
            case "mistake":
                raise UsageError("a line\nthat helps")
            case "bug":
                raise KeyError("width")
            case "leaves":
                raise SystemExit(3)
            case "crash":
                os._exit(7)


@pytest.fixture
def worker(folder: Path) -> Iterator[Worker]:
    made = Worker(1, folder / "jobs")
    yield made
    made.stop()
    # no folder of a job is left
    assert not (folder / "jobs").is_dir() or not list((folder / "jobs").iterdir())


def test_a_process_is_where_this_one_is(worker: Worker, folder: Path) -> None:
    found = [worker.run(Look()) for _ in range(2)]
    for each in found:
        assert Path(each["folder"]).parent == folder / "jobs" and each["cwd"] == str(folder)
        assert each["watched"] == str(folder / "watched") and each["threads"] == 1
    assert len({each["process"] for each in found} | {os.getpid()}) == 3
    assert len({each["folder"] for each in found}) == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mistake", "a line that helps"),
        ("bug", "KeyError: 'width'"),
        ("leaves", "SystemExit: 3"),
        ("crash", "its process ended with exit code 7"),
    ],
)
def test_how_a_process_ended_is_said(worker: Worker, kind: str, message: str) -> None:
    with pytest.raises(JobFailed) as failure:
        worker.run(Fail(kind))
    assert str(failure.value) == message
    assert "so far so good\nand better\n" in failure.value.log


def test_a_worker_that_is_stopped_begins_with_nothing(worker: Worker) -> None:
    worker.stop()
    with pytest.raises(JobFailed, match="stopped"):
        worker.run(Look())
