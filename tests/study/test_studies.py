"""The studies that are shipped: each is read, and every variant on every data set is built, at both ends of its ranges."""

import re
from pathlib import Path

import pytest

from ika_lightning.study.cells import cells_of, words_of
from ika_lightning.study.definition import Study, read_study
from ika_lightning.study.run import corners
from ika_lightning.study.worker import Check

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "studies").glob("*.yaml"))


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


@pytest.fixture(
    params=[(file, data) for file in FILES for data in read_study(file).data],
    ids=lambda each: f"{each[0].stem}-{each[1]}",
)
def part(request: pytest.FixtureRequest) -> tuple[Study, str]:
    """A data set of a study."""
    file, data = request.param
    return read_study(file), data


def test_every_cell_has_words_of_its_own(part: tuple[Study, str]) -> None:
    study, data = part
    cells = [cell for cell in cells_of(study) if cell.data.name == data and cell.variant.reference is None]
    words = {tuple(words_of(cell.data, cell.variant, cell.repeat, {})) for cell in cells}
    assert len(words) == len(cells) == len({cell.name for cell in cells})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* are also in training")  # what the benchmarks are like
def test_everything_can_be_built_and_is_measured(
    part: tuple[Study, str], benchmark_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, name = part
    monkeypatch.setenv("IKA_DATA", str(benchmark_root))
    data = study.data[name]
    trained = [variant for variant in study.variants.values() if variant.reference is None]
    words = [
        (variant.name, words_of(data, variant, data.repeats.values[-1], settings))
        for variant in trained
        for settings in corners(study, variant)
    ]
    references = [
        (variant.name, variant.reference, variant.overrides)
        for variant in study.variants.values()
        if variant.reference is not None
    ]
    baseline = words_of(data, study.variants[study.baseline], data.repeats.values[0], {})
    measures = Check(baseline, words, references).run(tmp_path).measures
    assert measures is not None
    tuned = [study.tuning.metric] if study.tuning is not None else []
    assert {metric.partition("/")[2] for metric in [*study.report, *tuned]} <= set(measures)
