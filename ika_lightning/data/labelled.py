"""Labelled texts: read from a file, and dealt out to training, validation and testing."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ika_lightning.data.files import decode
from ika_lightning.data.messages import closest, quoted

__all__ = ["Column", "Labelled", "draw", "read_labelled", "spread"]

Column = str | int
"""A column by its name in the header, or by its position, from 1, in a file without one."""


class Labelled(NamedTuple):
    """Texts and their labels.

    Args:
        labels: A label for each text.
        texts: The texts.
        lines: The line of the file where each begins, from 1.
        source: What errors call the file.
    """

    labels: list[str]
    texts: list[str]
    lines: list[int]
    source: str


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_labelled(path: str, label: Column | None = None, text: Column | None = None) -> Labelled:
    r"""Read labelled texts, UTF-8, from a ``.tsv``, ``.csv`` or ``.jsonl`` file (``.gz`` too).

    A row of a TSV is a line; quotes mean nothing in it, and the last column may contain tabs. A cell of a CSV may be
    quoted, and then contain commas and line ends. A line of a JSONL file is an object. Blank lines are skipped.

    Args:
        path: The file.
        label: The column of labels: its name, or its position, from 1, if the file has no header. None means
            ``"label"`` if the first line has both that and ``"text"``, else the first column of a file without header.
        text: The column of texts; None means ``"text"`` or the second column, in the same way.

    Returns:
        At least one row.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file. The message names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "reviews.tsv")
        ...     _ = file.write_text("good\tA gem.\nbad\tToo long,\tby far\n")
        ...     rows = read_labelled(str(file))
        >>> rows.labels, rows.texts
        (['good', 'bad'], ['A gem.', 'Too long,\tby far'])
    """
    content, name = _read(Path(path)), Path(path).name.lower().removesuffix(".gz")
    if name.endswith(".jsonl"):
        rows = list(_jsonl_rows(content, path, label, text))
    elif name.endswith((".csv", ".tsv")):
        cells = _csv_cells(content, path) if name.endswith(".csv") else _tsv_cells(content)
        rows = list(_delimited_rows(cells, path, label, text))
    else:
        raise ValueError(f"{path} is no file of labelled texts; its name should end in .tsv, .csv or .jsonl (.gz too)")
    if not rows:
        raise ValueError(f"{path} is empty; it should have a label and a text in each row")
    for number, given, _ in rows:
        if not given:
            raise ValueError(f"{path}, line {number}: the label is empty; fill it in, or take the row out")
    lines, labels, texts = zip(*rows, strict=True)
    return Labelled(list(labels), list(texts), list(lines), path)


def _read(file: Path) -> str:
    if file.is_dir():
        raise ValueError(f"{file} is a folder; give the name of a file in it")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; check the spelling and the folder")
    return decode(file.read_bytes(), file, zipped=file.name.lower().endswith(".gz"))


def _tsv_cells(content: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line := line.removesuffix("\r"):
            yield number, line.split("\t")


def _csv_cells(content: str, path: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    width, number = 0, 1
    try:
        for cells in reader:
            width = width or len(cells)
            if cells and len(cells) != width:
                raise ValueError(
                    f"{path}, line {number}: {len(cells)} cells where the first line has {width}; put a text that has "
                    "commas in it into quotes"
                )
            if cells:
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; check the quotes there") from None


def _delimited_rows(
    cells: Iterator[tuple[int, list[str]]], path: str, label: Column | None, text: Column | None
) -> Iterator[tuple[int, str, str]]:
    """Go through (line, label, text)."""
    rows = list(cells)
    if not rows:
        return
    tabs = path.lower().removesuffix(".gz").endswith(".tsv")
    header = [cell.strip() for cell in rows[0][1]]
    # a command line may give a position as a string
    label, text = (int(c) if isinstance(c, str) and c.isdecimal() and c not in header else c for c in (label, text))
    positions = _positions(label, text, header)
    if positions is not None:
        places, width = [position - 1 for position in positions], max(positions)
    else:
        names = [label or "label", text or "text"]
        for name in names:
            if name not in header:
                raise ValueError(
                    f"{path}: the first line has no column {name!r}{closest(str(name), header)}; it has "
                    f"{quoted(header, 30)}; give --data.label and --data.text, as names or, without a header, positions"
                )
        places, width, rows = [header.index(str(name)) for name in names], len(header), rows[1:]
    for number, row in rows:
        if len(row) < width:
            raise ValueError(
                f"{path}, line {number}: {len(row)} columns where {width} are needed; separate label and text by a "
                f"{'tab' if tabs else 'comma'}"
            )
        row = [*row[: width - 1], "\t".join(row[width - 1 :])] if tabs else row
        yield number, row[places[0]].strip(), row[places[1]]


def _positions(label: Column | None, text: Column | None, header: list[str]) -> tuple[int, int] | None:
    """Positions of both columns, from 1, or None if they are told by name."""
    if isinstance(label, str) or isinstance(text, str):
        if isinstance(label, int) or isinstance(text, int):
            raise ValueError(f"label and text must both be names or both be positions, got {label!r} and {text!r}")
        return None
    if label is None and text is None and {"label", "text"} <= set(header):
        return None
    positions = label or 1, text or 2
    if min(positions) < 1 or positions[0] == positions[1]:
        raise ValueError(f"label and text must be two different positions, from 1, got {label} and {text}")
    return positions


def _jsonl_rows(content: str, path: str, label: Column | None, text: Column | None) -> Iterator[tuple[int, str, str]]:
    names = [label or "label", text or "text"]
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); write an object in each line") from None
        if not isinstance(row, dict) or not set(names) <= set(row):
            raise ValueError(
                f"{path}, line {number}: no object with {names[0]!r} and {names[1]!r}; name the keys with "
                "--data.label and --data.text"
            )
        given, words = (row[name] for name in names)
        if not isinstance(words, str):
            raise ValueError(f"{path}, line {number}: {names[1]!r} should be a string, got {words!r}")
        yield number, str(given).strip(), words


# --- Dealing out ------------------------------------------------------------------------------------------------------


def spread(labels: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put rows in order of their class, at random within it: of every k-th, each class gets its share.

    Args:
        labels: The class of every row there is, (r,).
        rows: The rows to put in order, (k,).
        rng: What draws.

    Returns:
        The rows, without those that are alone in their class.

    Example:
        >>> labels = np.array([0, 1, 0, 1, 2, 0, 1, 0])
        >>> rows = spread(labels, np.arange(8), np.random.default_rng(0))
        >>> labels[rows].tolist()
        [0, 0, 0, 0, 1, 1, 1]
    """
    count = Counter(labels[rows].tolist())
    rows = rows[[count[label] > 1 for label in labels[rows].tolist()]]
    return rows[np.lexsort([rng.random(len(rows)), labels[rows]])]


def draw(labels: np.ndarray, rows: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw rows at random, of each class its share; never one that is alone in its class.

    Args:
        labels: The class of every row there is, (r,).
        rows: The rows to draw from, (k,).
        size: How many to draw, at most k.
        rng: What draws.

    Returns:
        The rows drawn, in ascending order; fewer than ``size`` if all others are alone in their class.

    Example:
        >>> labels = np.array([0, 1, 0, 1, 2, 0, 1, 0, 1])
        >>> rows = draw(labels, np.arange(9), 4, np.random.default_rng(0))
        >>> sorted(labels[rows].tolist())
        [0, 0, 1, 1]
    """
    ordered = spread(labels, rows, rng)
    size = min(size, len(ordered))
    places = (np.arange(size) + rng.random()) * len(ordered) / max(size, 1)
    return np.sort(ordered[places.astype(np.int64)])
