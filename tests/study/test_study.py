"""A study from its file to its report, as a person runs it."""

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from study_files import STUDY, command, results, run, write_study

from ika_lightning.cli import main

Done = tuple[Path, "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]
# rates so low that a higher one is better
RANGES = {"model.optimizer.lr": {"low": 0.0001, "high": 0.0003}}
SMALL = {"tune": {**STUDY["tune"], "ranges": RANGES}}
WORDS = ("study", "--config", "small.yaml")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A folder with a study that has run to its end, two trainings at a time, and what it has said."""
    folder = tmp_path_factory.mktemp("done")
    write_study(folder, SMALL)
    return folder, run(folder, *WORDS, "--jobs", "2")


@pytest.mark.slow
class TestToItsEnd:
    def test_says_what_it_does_and_where_the_report_is(self, done: Done) -> None:
        _, said = done
        assert said.returncode == 0, said.stderr
        lines = said.stdout.splitlines()
        assert lines[-1] == "report: results/small/report.html"
        trials = [
            line for line in lines if re.match(r"hills/\w+ trial \d: val/rmse [\d.]+ with model.optimizer.lr", line)
        ]
        cells = [line for line in lines if re.match(r"hills/\w+/[35]: test/rmse [\d.]+; \d of 6 cells done", line)]
        assert (len(trials), len(cells), len(lines)) == (6, 6, 13)
        assert "about" in lines[0] and "to go" in lines[0] and "6 of 6 cells done" in lines[-2]

    def test_table_has_a_row_for_each_cell(self, done: Done) -> None:
        table = pd.read_csv(done[0] / "results" / "small" / "results.csv")
        assert (
            list(table["variant"]) == ["DotProduct", "MIKAN", "trees"] * 2
            and list(table["repeat"]) == [3] * 3 + [5] * 3
        )
        numbers = table[["test/rmse", "test/r2", "seconds", "processor_seconds", "peak_memory_mb"]].to_numpy()
        assert np.isfinite(numbers).all()
        assert table["configuration"].nunique() == 3
        assert table["code"].nunique() == table["data_hash"].nunique() == 1
        assert table["torch"].str.match(r"\d+\.\d+").all() and table["changed"].isna().all()

    def test_the_range_was_widened_for_all_variants_alike(self, done: Done) -> None:
        said = done[1].stdout
        rates = {
            (variant, int(number)): float(rate)
            for variant, number, rate in re.findall(
                r"hills/(\w+) trial (\d): .*? with model.optimizer.lr ([\d.]+);", said
            )
        }
        for number in (1, 2, 3):
            assert rates["DotProduct", number] == rates["MIKAN", number]
        assert all(0.0001 <= rates["MIKAN", number] <= 0.0003 for number in (1, 2))
        assert 0.0003 <= rates["MIKAN", 3] <= 0.0004

    def test_test_rows_were_served_once_in_a_cell_after_tuning(self, done: Done) -> None:
        served = [line.split() for line in (done[0] / "watched").read_text().splitlines()]
        tests = [(seed, process) for part, seed, process in served if part == "test"]
        # two variants that are trained, two seeds, a process for each
        assert sorted(seed for seed, _ in tests) == ["3", "3", "5", "5"]
        assert len(set(tests)) == 4
        for _, process in tests:
            own = [part for part, _, other in served if other == process]
            # the last that its process was served, after a training
            assert own.count("test") == 1 and own[-1] == "test" and "train" in own
        # the seed 5 was not tuned on
        assert [part for part, seed, _ in served if seed == "5"].count("train") == 2

    def test_trees_are_scikit_learn_s(self, done: Done) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        from ika_lightning.data import RegressionData

        data = RegressionData(path=str(done[0] / "hills.csv"), target="y", seed=3)
        data.setup()
        x, y = (
            np.concatenate([getattr(data.encoded(part), name).numpy() for part in ("train", "val")])
            for name in ("features", "target")
        )
        model = ExtraTreesRegressor(random_state=0).fit(x, data.target_mean + data.target_std * y.astype(float))
        test = data.encoded("test")
        truth = data.target_mean + data.target_std * test.target.double().numpy()
        rmse = np.sqrt(np.mean((model.predict(test.features.numpy()) - truth) ** 2))
        table = results(done[0])
        assert table[table["variant"] == "trees"]["test/rmse"].iloc[0] == pytest.approx(rmse)

    def test_numbers_are_those_of_fit_and_test(self, done: Done, tmp_path: Path) -> None:
        folder = done[0]
        row = results(folder).query("variant == 'MIKAN' and repeat == 5").iloc[0]
        chosen = [f"--{option}={value!r}" for option, value in json.loads(row["chosen"]).items()]
        repeat = ["--data.seed=5", "--seed_everything=5"]
        words = ["--config", "hills.yaml", *chosen, *repeat, "--trainer.logger.save_dir", str(tmp_path)]
        assert run(folder, "fit", *words).returncode == 0
        (best,) = tmp_path.glob("*/version_0/checkpoints/best.ckpt")
        tested = run(folder, "test", "--ckpt_path", str(best), "--trust", "watched.WatchedData")
        found = dict(re.findall(r"(test/\w+)[^\w-]+(-?[\d.]+)", tested.stdout))
        assert float(found["test/rmse"]) == row["test/rmse"] and float(found["test/r2"]) == row["test/r2"]

    def test_one_cell_alone_gives_the_same_number(self, done: Done, tmp_path: Path) -> None:
        write_study(tmp_path, SMALL)
        said = run(tmp_path, *WORDS, "--only", "hills/MIKAN/5")
        assert said.returncode == 0, said.stderr
        row = results(done[0]).query("variant == 'MIKAN' and repeat == 5").iloc[0]
        assert said.stdout.splitlines()[-2:] == [f"{name}: {float(row[name])!r}" for name in ("test/rmse", "test/r2")]
        # trials of both variants, by which it is known that the range is widened, and this cell
        assert len(said.stdout.splitlines()) == 6 + 1 + 2

    def test_what_is_done_is_not_done_again(self, done: Done) -> None:
        folder = done[0]
        before = results(folder), (folder / "watched").read_text().count("test")
        said = run(folder, *WORDS)
        assert (said.returncode, said.stdout) == (0, "report: results/small/report.html\n")
        pd.testing.assert_frame_equal(results(folder), before[0])
        assert (folder / "watched").read_text().count("test") == before[1]
        assert not list((folder / "results" / "small" / "running").iterdir())

    def test_report(self, done: Done) -> None:
        output = done[0] / "results" / "small"
        report, page = ((output / f"report.{kind}").read_text() for kind in ("md", "html"))
        table = results(done[0])
        mean = table[table["variant"] == "MIKAN"]["test/rmse"].mean()
        (line,) = re.findall(r"^\| MIKAN \| ([\d.]+) ± [\d.]+ \| 2 \|", report, re.MULTILINE)[:1]
        assert abs(float(line) - mean) < 0.06 * mean
        for text in ("6 of 6 cells are done", "gain over DotProduct", "Test data was used once"):
            assert text in report and text in page
        assert page.count("<img") == 3 and page.count('src="data:image/png;base64,') == 3 and "http" not in page
        assert sorted(re.findall(r"\]\((\w+\.png)\)", report)) == ["gains.png", "repeats.png", "time.png"]
        assert all(
            (output / name).read_bytes().startswith(b"\x89PNG") for name in ("gains.png", "repeats.png", "time.png")
        )
        # the range was widened once, and the best is at the end of what it became or inside
        assert "model.optimizer.lr" in report


@pytest.mark.slow
def test_ctrl_c_leaves_a_report_and_the_same_command_goes_on(done: Done, tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    words, options = command(tmp_path, *WORDS, "--jobs", "2")
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options
    ) as one:
        assert one.stdout is not None and one.stderr is not None
        while "1 of 6 cells done" not in one.stdout.readline():
            assert one.poll() is None
        # as a terminal does, to all processes
        os.killpg(one.pid, signal.SIGINT)
        said = one.stderr.read()
    assert one.returncode == 130
    assert said == "interrupted; the report so far is results/small/report.html; the same command goes on\n"
    some = results(tmp_path)
    assert (
        1 <= len(some) < 6 and f"{len(some)} of 6 cells are done" in (tmp_path / "results/small/report.md").read_text()
    )
    assert run(tmp_path, *WORDS, "--jobs", "2").returncode == 0
    pd.testing.assert_frame_equal(results(tmp_path), results(done[0]))


@pytest.mark.slow
def test_killed_ten_times_the_table_is_the_same(tmp_path: Path) -> None:
    """Each time after something is done, and at whatever moment of what follows."""
    longer = {**SMALL, "repeats": {**STUDY["repeats"], "values": [3, 5, 7, 11]}}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        write_study(tmp_path / name, longer)
    words, options = command(tmp_path / "killed", *WORDS, "--jobs", "2")
    moments, kills = random.Random(0), 0
    while kills < 10:
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as one:
            assert one.stdout is not None
            if "report" in one.stdout.readline():
                break
            time.sleep(moments.uniform(0.0, 4.0))
            one.kill()
            kills += 1
    # a study that was quick has come to its end before
    assert kills >= 5
    for name in ("whole", "killed"):
        assert run(tmp_path / name, *WORDS, "--jobs", "2").returncode == 0
    whole = results(tmp_path / "whole")
    pd.testing.assert_frame_equal(results(tmp_path / "killed"), whole)
    assert len(whole) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: the following arguments are required: -c/--config; try: python -m ika_lightning study --help\n"),
        (["--config", "nowhere.yaml"], "error: no study file at nowhere.yaml\n"),
        ([*WORDS[1:], "--jobs", "0"], "error: --jobs must be at least 1, got 0\n"),
        ([*WORDS[1:], "--changed", "maybe"], "error: argument --changed: invalid choice: 'maybe'"),
        ([*WORDS[1:], "--only", "hills/MIKAM/3"], "error: --only hills/MIKAM/3: unknown variant 'MIKAM' (did you mean"),
        ([*WORDS[1:], "--output", "small.yaml"], "error: cannot write small.yaml: File exists\n"),
        ([*WORDS[1:], "--output", "hills.csv/x"], "error: cannot write hills.csv/x: Not a directory\n"),
        ([*WORDS[1:], "--storage", "nothing://x"], "error: --storage nothing://x: cannot be opened: "),
    ],
)
def test_mistakes_take_a_line(words: list[str], message: str, tmp_path: Path) -> None:
    write_study(tmp_path, SMALL)
    with (
        contextlib.chdir(tmp_path),
        pytest.raises(SystemExit) as end,
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        main(["study", *words])
    assert end.value.code == 2
    assert said.getvalue().startswith(message) and said.getvalue().count("\n") == 1


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path, SMALL)
    # permissions themselves do not stop the superuser
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    with contextlib.chdir(tmp_path), pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as said:
        main([*WORDS, "--output", "closed"])
    assert said.getvalue() == "error: cannot write closed: no permission; choose another --output\n"


def test_other_commands_do_without_optuna() -> None:
    code = "import sys, ika_lightning, ika_lightning.cli.command; assert 'optuna' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


def test_without_optuna_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path, SMALL)
    monkeypatch.setattr("ika_lightning.cli.study.find_spec", lambda name: None)
    with contextlib.chdir(tmp_path), pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as said:
        main([*WORDS])
    assert said.getvalue() == "error: study needs Optuna: pip install 'ika-lightning[study]'\n"
