"""Random small files: what is read is what Python's csv and json read as text, or it is refused in one line.

``IKA_EXAMPLES=100000 python -m pytest tests/data/test_fuzz.py`` draws so many of each kind instead of a few.
"""

import csv
import io
import json
import math
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ika_lightning.data.cells import pack
from ika_lightning.data.encoders import TableEncoder
from ika_lightning.data.labelled import LABELS, TEXTS, read_labelled
from ika_lightning.data.numbers import NumberFormat, number_cells
from ika_lightning.data.table import read_table

many = settings(
    max_examples=int(os.environ.get("IKA_EXAMPLES", "50")),
    deadline=None,
    derandomize="IKA_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)

WORDS = [
    "label", "text", "Review", "v1", "NA", "None", "nan", "", "0_1", "007", "1,5", "1.5", "-3", "12 %", "$5", "1e5",
    "a", "b", "\ufeff", "é", "🤷🏽‍♀️", "\x00", "\x85", "\u2028", " ", "x\ty", 'say "so"', "a\nb", "a\rb",
]  # fmt: skip
cell = st.one_of(st.sampled_from(WORDS), st.text(st.sampled_from('ab01.,;"\t\n\r _%-'), max_size=5))
raw = st.text(st.sampled_from('ab01.,;"\t\n\r _'), max_size=40)
grid = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=7)
)


def joined(separator: str) -> st.SearchStrategy[str]:
    """Rows without quotes, whatever is in the cells."""
    return grid.map(lambda rows: "\n".join(separator.join(row) for row in rows))


def saved(content: bytes, name: str, read):
    """What a reader makes of a file, or the message with which it refuses it, which has to be one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            return read(str(path))
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
            return None


def parsed(text: str, separator: str = ",") -> list[list[str]] | None:
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if row]
    except csv.Error:
        return None


@many
@given(
    st.one_of(raw, grid.map(lambda rows: "\n".join(",".join(row) for row in rows))), st.sampled_from([",", ";", "\t"])
)
def test_any_text_as_a_table(text, separator) -> None:
    table = saved(text.encode(), "t.csv", lambda path: read_table(path, separator))
    rows = parsed(text.removeprefix("\ufeff"), separator)
    if table is not None:
        header, *others = rows
        assert table.columns.tolist() == [name.strip() for name in header]
        assert table.to_numpy().tolist() == others
    elif rows and len({len(row) for row in rows}) == 1 and len(rows) > 1:
        # nothing but the header can be wrong with it
        header = [name.strip() for name in rows[0]]
        numbers = all(not math.isnan(number_cells(pd.Series([name]))[0][0]) or name == "1e999" for name in header)
        lonely = len(header) == 1 and any(sign in rows[0][0] for sign in ";\t|,")
        assert "" in header or len(set(header)) < len(header) or numbers or lonely


@many
@given(grid, st.sampled_from(["t.csv", "t.tsv", "t.csv.gz"]))
def test_what_is_written_is_read_back(rows, name) -> None:
    columns = {f"column {number}": [row[number] for row in rows] for number in range(len(rows[0]))}
    table = saved(pack(columns, name), name, read_table)
    assert table is not None and table.to_dict("list") == columns


@many
@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=7), st.sampled_from(["t.csv", "t.tsv", "t.jsonl"]))
def test_labelled_texts_that_are_written_are_read_back(rows, name) -> None:
    labels, texts = ([row[side] for row in rows] for side in (0, 1))
    content = pack({"row": range(len(rows)), "text": texts, "predicted_label": labels, "p": ["1"] * len(rows)}, name)
    found = saved(content, name, lambda path: read_labelled(path, "predicted_label", "text"))
    if all(label.strip() for label in labels):
        assert (found.labels, found.texts) == ([label.strip() for label in labels], texts)
    else:
        assert found is None


@many
@given(
    st.one_of(raw, grid.map(lambda rows: "\n".join("\t".join(row) for row in rows))),
    st.sampled_from(["t.csv", "t.tsv"]),
)
def test_any_text_as_labelled_texts(text, name) -> None:
    found = saved(text.encode(), name, read_labelled)
    if found is None:
        return
    text = text.removeprefix("\ufeff")
    first = text.lstrip("\r\n").partition("\n")[0]
    if name == "t.csv":
        rows = parsed(text)
    elif first.startswith('"') and "in column '" not in found.columns and first.count('"') % 2 == 0:
        return  # in quotes, as the next test knows
    else:
        rows = [line.removesuffix("\r").split("\t") for line in text.split("\n") if line.removesuffix("\r")]
    if "no header" in found.columns:
        expected = [(row[0].strip(), row[1] if name == "t.csv" else "\t".join(row[1:])) for row in rows]
    else:
        header = [name.strip().lower() for name in rows[0]]
        # "label" and "text" win over other usual names
        label, text_ = (
            header.index(names[0]) if names[0] in header else next(i for i, n in enumerate(header) if n in names)
            for names in (LABELS, TEXTS)
        )
        joined = [[*row[: len(header) - 1], "\t".join(row[len(header) - 1 :])] for row in rows[1:]]
        expected = [(row[label].strip(), row[text_]) for row in joined]
    assert list(zip(found.labels, found.texts, strict=True)) == expected


scalar = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), cell, st.lists(cell, max_size=2))


@many
@given(
    st.lists(st.dictionaries(st.sampled_from(["label", "text", "other"]), scalar, max_size=3), min_size=1, max_size=5)
)
def test_any_objects(rows) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found = saved(content, "t.jsonl", read_labelled)
    good = all(
        isinstance(row.get("text"), str)
        and isinstance(row.get("label"), str | int | float)
        and str(row["label"]).strip()
        and math.isfinite(float(row["label"] if not isinstance(row["label"], str) else 0))
        for row in rows
    )
    assert (found is not None) == good
    if good:
        assert found.texts == [row["text"] for row in rows]
        written = [row["label"] if isinstance(row["label"], str) else json.dumps(row["label"]) for row in rows]
        assert found.labels == [label.strip() for label in written]


@many
@given(grid, st.data(), st.sampled_from([(".", None), (",", "."), (".", ",")]))
def test_any_table_is_encoded_or_refused(rows, data, written) -> None:
    table = pd.DataFrame(rows, columns=[f"c{number}" for number in range(len(rows[0]))], dtype="str")
    table["y"] = [str(data.draw(st.integers(-9, 9))) for _ in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            encoder = TableEncoder("y", missing="mean", written=NumberFormat(*written)).fit(table)
            encoded = encoder.encode(table)
        except ValueError as error:
            assert "\n" not in str(error)
            return
    assert encoded.features.isfinite().all() and encoded.target.isfinite().all()
    # a column of numbers is one that pandas reads as numbers, and no two of its cells have become one
    names, cells = encoder.feature_names, table.map(str.strip)
    for name in set(names) & set(table.columns):
        if written == (".", None):
            known = cells[name][~encoded_missing(cells[name])]
            assert np.isfinite(pd.to_numeric(known)).all()


def encoded_missing(cells: pd.Series) -> pd.Series:
    return pd.Series(np.isnan(number_cells(cells)[0]), index=cells.index)
