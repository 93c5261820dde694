"""What a report says of results, and that it can be read alone."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ika_lightning.study.cells import Identity
from ika_lightning.study.comparison import compare
from ika_lightning.study.definition import DataSet, Range, Repeats, Study, Tuning, Variant
from ika_lightning.study.drawing import forest, strip, time_beside
from ika_lightning.study.report import write_report
from ika_lightning.study.statistics import holm, paired
from ika_lightning.study.table import Row

SPLITS = tuple(range(7))
VARIANTS = ("plain", "better", "worse | <b>", "noise")


def make_study(data: tuple[str, ...] = ("hills",), tuning: Tuning | None = None) -> Study:
    sets = {name: DataSet(name, Path("x.yaml"), {}, Repeats(("seed_everything",), SPLITS)) for name in data}
    variants = {name: Variant(name) for name in VARIANTS}
    return Study("made", Path("made.yaml"), sets, variants, "plain", tuning, {"test/rmse": "min", "test/r2": "max"})


def make_rows(study: Study, repeats: tuple[int, ...] = SPLITS) -> list[Row]:
    """Results of which one variant is better by about one, one is worse, and one is the same but for chance."""
    rng = np.random.default_rng(0)
    rows = []
    for data in study.data:
        for repeat in repeats:
            hard = rng.normal(10.0, 3.0)
            for variant, gain in zip(VARIANTS, (0.0, 1.0, -1.0, 0.0), strict=True):
                rmse = hard - gain + 0.1 * rng.normal()
                measures = {"test/rmse": rmse, "test/r2": 1 - rmse / 50}
                versions = {"torch": "2.13.0"}
                identity = Identity("a", "b", "c")
                rows.append(
                    Row(data, variant, str(repeat), identity, measures, 3.0 + gain, 3.0, 99.0, versions=versions)
                )
    return rows


def test_verdicts_are_those_of_the_statistics() -> None:
    study = make_study()
    rows = make_rows(study)
    found = {(each.metric, each.variant): each for each in compare(study, rows)}
    assert len(found) == 8
    for metric, less in (("test/rmse", True), ("test/r2", False)):
        values = {name: {row.repeat: row.measures[metric] for row in rows if row.variant == name} for name in VARIANTS}
        wanted = {name: paired(values[name], values["plain"], less_is_better=less) for name in VARIANTS[1:]}
        adjusted = holm({name: each.p for name, each in wanted.items()})
        for name, each in wanted.items():
            here = found[metric, name]
            assert (here.paired, here.p) == (each, adjusted[name])
            assert here.mean.value == pytest.approx(np.mean(list(values[name].values())))
        assert found[metric, "plain"].paired is None and math.isnan(found[metric, "plain"].p)
        # less of one measure and more of the other is the same
        assert [found[metric, name].verdict for name in VARIANTS] == ["", "better", "worse", ""]


def without(rows: list[Row], place: int, measures: dict[str, float]) -> list[Row]:
    return [*rows[:place], replace(rows[place], measures=measures), *rows[place + 1 :]]


def test_what_is_not_measured_is_left_out() -> None:
    """A reference does not measure everything."""
    study = make_study()
    rows = without(make_rows(study), 1, {"test/r2": 0.5})
    rmse, r2 = [each for each in compare(study, rows) if each.variant == "better"]
    assert (rmse.mean.count, r2.mean.count) == (6, 7) and rmse.paired is not None and rmse.paired.count == 6
    assert rmse.verdict == "better" and rmse.lost == ()


@pytest.mark.parametrize("nothing", [math.nan, math.inf])
def test_a_variant_of_which_a_training_diverged_is_no_better(nothing: float, tmp_path: Path) -> None:
    """The repeats that are left are those that went well."""
    study = make_study()
    rows = without(make_rows(study), 1, {"test/rmse": nothing, "test/r2": nothing})
    rmse, _ = [each for each in compare(study, rows) if each.variant == "better"]
    assert (rmse.lost, rmse.mean.count, rmse.paired, rmse.verdict) == (("0",), 6, None, "")
    # the others are compared as ever
    assert [each.verdict for each in compare(study, rows) if each.metric == "test/rmse"] == ["", "", "worse", ""]
    write_report(study, rows, tmp_path)
    said = (tmp_path / "report.md").read_text()
    assert "28 of 28 cells are done. 1 of them came to no number." in said
    assert "better came to no number in repeat 0: a training diverged." in said
    (line,) = [line for line in said.splitlines() if line.startswith("| better | ") and "6 of 7" in line][:1]
    assert "[" not in line


def test_nothing_is_compared_to_a_baseline_that_diverged(tmp_path: Path) -> None:
    study = make_study()
    rows = without(make_rows(study), 4, {"test/rmse": math.nan, "test/r2": 0.1})
    rmse = [each for each in compare(study, rows) if each.metric == "test/rmse"]
    assert [each.paired for each in rmse] == [None] * 4 and rmse[0].lost == ("1",)
    write_report(study, rows, tmp_path)
    assert "plain came to no number in repeat 1: a training diverged. What" in (tmp_path / "report.md").read_text()


def test_a_variant_that_always_diverges_is_in_the_table(tmp_path: Path) -> None:
    study = make_study()
    rows = [
        replace(row, measures={"test/rmse": math.nan, "test/r2": math.nan}) if row.variant == "noise" else row
        for row in make_rows(study)
    ]
    write_report(study, rows, tmp_path)
    assert "| noise |  | 0 of 7 |" in (tmp_path / "report.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study of two data sets."""
    folder = tmp_path_factory.mktemp("report")
    study = make_study(("hills", "dales"))
    assert write_report(study, make_rows(study), folder) == folder / "report.html"
    return folder


class TestFiles:
    def test_are_all_there_and_the_page_needs_none_of_them(self, folder: Path) -> None:
        files = {"gains.png", "repeats.png", "report.html", "report.md", "results.csv", "time.png"}
        assert {file.name for file in folder.iterdir()} == files
        page = (folder / "report.html").read_text()
        assert page.count("<img") == 3 == page.count('src="data:image/png;base64,')
        assert not re.search(r"https?://|<script|<link", page)

    def test_names_are_text(self, folder: Path) -> None:
        page, report = (folder / "report.html").read_text(), (folder / "report.md").read_text()
        assert "worse | &lt;b&gt;" in page and "<b>" not in page
        assert r"| worse \| <b> | 0 | 2: hills, dales | 0 |" in report
        assert "| better | 2: hills, dales | 0 | 0 |" in report

    def test_a_line_of_the_table(self, folder: Path) -> None:
        report = (folder / "report.md").read_text()
        study = make_study(("hills", "dales"))
        each = next(each for each in compare(study, make_rows(study)) if each.variant == "better")
        assert each.paired is not None
        pair = each.paired
        # to the second digit of half the interval
        assert 0.01 < (pair.high - pair.low) / 2 < 1
        places = 2 if (pair.high - pair.low) / 2 >= 0.1 else 3
        gain, low, high = (f"{value:+.{places}f}" for value in (pair.gain, pair.low, pair.high))
        assert f"| 7 | {gain} [{low}, {high}] | < 0.001, better | 7, 0, 0 | 4 |" in report

    def test_of_what_there_is_not_yet(self, tmp_path: Path) -> None:
        study = make_study()
        write_report(study, [], tmp_path)
        assert "0 of 28 cells are done." in (tmp_path / "report.md").read_text()
        write_report(study, make_rows(study, (3,)), tmp_path)
        report = (tmp_path / "report.md").read_text()
        # of one pair there is a gain, and nothing to be sure of
        assert "4 of 28 cells are done." in report and re.search(r"\| 1 \| \+[\d.]+ \|  \| 1, 0, 0 \|", report)
        # nor of a baseline that is not there
        write_report(study, [row for row in make_rows(study, (3,)) if row.variant == "noise"], tmp_path)
        assert "1 of 28 cells are done." in (tmp_path / "report.md").read_text()

    def test_what_tuning_chose(self, tmp_path: Path) -> None:
        tuning = Tuning("val/rmse", "min", 3, {"lr": Range(0.1, 0.2)}, repeats=(0, 1))
        study = make_study(tuning=tuning)
        rows = [replace(row, chosen={"lr": 0.123456}, at_ends={"lr": "low"}) for row in make_rows(study)[:1]]
        write_report(study, rows, tmp_path)
        report = (tmp_path / "report.md").read_text()
        assert "| hills | plain | lr | 0.1235 | low |" in report and "the best may lie beyond" in report
        assert "Tuning: 3 trials of each variant" in report and "(repeats 0, 1)" in report


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_pictures_have_a_panel_for_each_data_set(count: int) -> None:
    study = make_study(tuple(f"set {number}" for number in range(count)))
    found = [each for each in compare(study, make_rows(study, (0, 1, 2))) if each.metric == "test/rmse"]
    for draw in (forest, strip, time_beside):
        figure = draw(found, "plain")
        assert [panel.get_title() for panel in figure.axes] == list(study.data)
    panel = forest(found, "plain").axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == list(VARIANTS[1:])
    # right of the line is better
    better = next(each for each in found if each.variant == "better")
    assert better.paired is not None
    (ends,) = [list(line.get_xdata()) for line in panel.lines if list(line.get_ydata()) == [0, 0]]
    assert ends == [better.paired.low, better.paired.high] and ends[0] > 0
