import gzip
from collections import Counter
from pathlib import Path

import pytest

import ika_lightning.data

FILE = Path(ika_lightning.data.__file__).parent / "embedded" / "languages.tsv.gz"
ROWS = [line.split("\t") for line in gzip.decompress(FILE.read_bytes()).decode().removesuffix("\n").split("\n")]


def test_as_many_phrases_of_each_language() -> None:
    assert set(Counter(label for label, _ in ROWS).values()) == {400}
    assert len({label for label, _ in ROWS}) == 24


def test_no_phrase_twice_nor_in_two_languages() -> None:
    assert len({text.casefold() for _, text in ROWS}) == len(ROWS)


def test_it_is_what_the_generator_makes() -> None:
    babel = pytest.importorskip("babel")
    from ika_lightning.data.languages import generate

    if babel.__version__ != "2.18.0":
        pytest.skip(f"the file was made by Babel 2.18.0, and this is {babel.__version__}, with another edition of CLDR")
    assert gzip.decompress(generate()) == gzip.decompress(FILE.read_bytes())
