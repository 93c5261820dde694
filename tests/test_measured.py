"""The tables of what was measured say what the files of results say."""

import csv
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "measured.py"

pytest.importorskip("scipy", reason="intervals take scipy: pip install '.[study]'")


@pytest.fixture(scope="module")
def measured() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="measured"))


def rows_of(table: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in cells}


def test_pages_have_the_tables_of_the_results():
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), f"run python benchmarks/measured.py: {done.stdout}{done.stderr}"


def test_every_table_is_on_a_page(measured):
    pages = "".join((ROOT / name).read_text(encoding="utf-8") for name in measured.PAGES)
    assert {name for name in measured.TABLES if f"<!-- measured: {name} -->" in pages} == set(measured.TABLES)


def test_a_mean_is_that_of_the_file(measured):
    with (ROOT / "benchmarks" / "results" / "regression.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["data"], row["stage"]) == ("concrete", "test")]
    values = [float(row["rmse"]) for row in rows if row["attention"] == "IKANDirect"]
    usual = {row["split"]: float(row["rmse"]) for row in rows if row["attention"] == "DotProduct"}
    gain = mean(usual[row["split"]] - float(row["rmse"]) for row in rows if row["attention"] == "IKANDirect")

    shown = rows_of(measured.TABLES["regression"]())
    assert shown["attention"] == ["Boston", "Concrete"]
    assert (
        shown["IKANDirect"][1] == f"**{mean(values):.2f} ± {stdev(values) / len(values) ** 0.5:.2f} ({len(values)})**"
    )
    assert rows_of(measured.TABLES["regression-gains"]())["IKANDirect"][1].startswith(f"**{gain:+.2f} [")


def test_a_rate_is_chosen_by_validation_nodes(measured):
    with (ROOT / "benchmarks" / "results" / "node_classification.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["data"], row["conv"]) == ("citeseer", "GATConv")]
    first = {
        rate: mean(float(row["val"]) for row in rows if row["lr"] == rate and int(row["seed"]) < 3)
        for rate in {row["lr"] for row in rows}
    }
    assert len(set(first.values())) == len(first) == 2
    chosen = [100 * float(row["test"]) for row in rows if row["lr"] == max(first, key=first.__getitem__)]
    assert f"{mean(chosen):.2f} ± " in rows_of(measured.TABLES["nodes"]())["GATConv"][1]


def test_a_page_with_another_number_is_found_and_mended(tmp_path):
    for name in ("README.md", "docs/measured.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    script = Path(shutil.copy(SCRIPT, tmp_path / "benchmarks"))
    page = tmp_path / "docs" / "measured.md"
    right = page.read_text(encoding="utf-8")
    page.write_text(right.replace("4.78", "4.17"), encoding="utf-8")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(script), *words], cwd=ROOT, capture_output=True, text=True)

    done = run("--check")
    assert (done.returncode, done.stdout) == (1, "other tables than the results have: docs/measured.md\n")
    done = run()
    assert (done.returncode, done.stdout) == (0, "written: docs/measured.md\n")
    assert page.read_text(encoding="utf-8") == right
    assert run("--check").returncode == 0


def test_a_table_that_there_is_not_is_named(measured):
    with pytest.raises(ValueError, match=r"there is no table 'spead'; known are brief, regression"):
        measured.filled("<!-- measured: spead -->\n| a |\n")


def test_one_pair_has_no_interval(measured):
    fits = measured._tidy(
        measured.pd.DataFrame({"data": "x", "v": ["a", "b"], "k": [0, 0], "loss": [2.0, 1.5]}),
        variant="v",
        repeat="k",
        value="loss",
    )
    assert rows_of(measured.gains(fits, 1, "a", less_is_better=True, first="f")) == {
        "f": ["x"],
        "---": ["---"],
        "b": ["+0.5, one pair"],
    }
    assert rows_of(measured.means(fits, 1, less_is_better=True, first="f"))["b"] == ["**1.5 (1)**"]
