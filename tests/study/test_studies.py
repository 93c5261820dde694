"""The studies that are shipped: each is read, and every variant is built on every data set, at both ends of ranges."""

import re
from pathlib import Path

import pytest

from ika_lightning.study.cells import cells_of, words_of
from ika_lightning.study.check import check_data_set
from ika_lightning.study.definition import read_study

FOLDER = Path(__file__).parents[2] / "studies"
PAGE = FOLDER.parent / "docs" / "study.md"
FILES = sorted(FOLDER.glob("*.yaml"))
PARTS = [(file.stem, data) for file in FILES for data in read_study(file).data]


def test_there_is_one_for_each_kind_of_data() -> None:
    names = ["ablations", "concrete", "graphs", "regression", "series", "text", "translation", "translation_short"]
    assert [file.stem for file in FILES] == names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_first_lines_say_how_to_run_it_and_what_it_takes(file: Path) -> None:
    head = re.split(r"^baseline", file.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    assert f"#   python -m ika_lightning study --config studies/{file.name} --jobs 2\n" in head
    # comments break lines anywhere
    said = " ".join(line.removeprefix("#").strip() for line in head.splitlines())
    assert re.search(r"Budget: .*(hours?) of one core", said)


def test_the_file_of_the_documentation_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "studies").mkdir()
    (tmp_path / "configs").symlink_to(PAGE.parents[1] / "configs")
    (tmp_path / "studies" / "mine.yaml").write_text("data: {}\n")
    file = tmp_path / "studies" / "example.yaml"
    file.write_text(example)
    study = read_study(file)
    assert len(list(cells_of(study))) == 3 * (20 + 3) and study.tuning is not None and study.tuning.trials == 8


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", PAGE.read_text()))
def test_links_of_the_documentation_lead_somewhere(target: str) -> None:
    assert (PAGE.parent / target).is_file()


@pytest.mark.parametrize(("study", "name"), PARTS, ids=map("-".join, PARTS))
def test_every_cell_has_words_of_its_own(study: str, name: str) -> None:
    cells = [cell for cell in cells_of(read_study(FOLDER / f"{study}.yaml")) if cell.data.name == name]
    trained = [cell for cell in cells if cell.variant.reference is None]
    words = {tuple(words_of(cell.data, cell.variant, cell.repeat, {})) for cell in trained}
    assert len(words) == len(trained) > 0 and len({cell.name for cell in cells}) == len(cells)


@pytest.mark.filterwarnings("ignore:.* are also in training")  # what the benchmarks are like
@pytest.mark.parametrize(
    ("study", "name"),
    # a second for each variant
    [each if each[0] == "concrete" else pytest.param(*each, marks=pytest.mark.slow) for each in PARTS],
    ids=map("-".join, PARTS),
)
def test_everything_can_be_built_and_is_measured(
    study: str, name: str, benchmark_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IKA_DATA", str(benchmark_root))
    read = read_study(FOLDER / f"{study}.yaml")
    measures = check_data_set(read, read.data[name]).run(tmp_path).measures
    assert measures is not None
    tuned = [read.tuning.metric] if read.tuning is not None else []
    assert {metric.partition("/")[2] for metric in [*read.report, *tuned]} <= set(measures)
