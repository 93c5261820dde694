"""Delimited text: rows of cells out of ``.csv`` and ``.tsv`` files, and back, with every cell as it was."""

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ika_lightning.data.files import decode, split_lines
from ika_lightning.data.messages import quote, quoted, say

__all__ = [
    "Cells",
    "check_format",
    "check_separator",
    "class_columns",
    "compress",
    "format_of",
    "pack",
    "read_cells",
    "read_text",
    "to_numbers",
]

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}

# How many rows say what separates cells.
_SAMPLE = 100

# Python's csv module refuses longer cells than 131,072 characters unless it is told; a C long holds this one anywhere.
_LONGEST_CELL = 2**31 - 1


class Cells(NamedTuple):
    """Rows of a delimited file.

    Args:
        rows: The line on which each row begins, from 1, and its cells. Blank lines are left out.
        separator: What separates cells.
        last_is_open: Whether quotes mean nothing, so that the last cell of a row may have separators in it.
    """

    rows: Iterator[tuple[int, list[str]]]
    separator: str
    last_is_open: bool = False

    @property
    def separator_name(self) -> str:
        """The separator in a word."""
        return _SEPARATORS.get(self.separator, repr(self.separator))


def format_of(path: str | Path | Traversable) -> str:
    """The ending of a file's name that says what is in it, in lower case and without ``.gz``.

    Args:
        path: The file.

    Example:
        >>> format_of("rows.CSV.gz"), format_of("README")
        ('.csv', '')
    """
    name = path if isinstance(path, str) else path.name
    return Path(name.lower().removesuffix(".gz")).suffix


def read_text(path: str | Path | Traversable, kinds: str) -> str:
    """Read the text of a file, UTF-8, compressed if its name ends in ``.gz``.

    Args:
        path: The file.
        kinds: What may be given instead of a folder, for the error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, not UTF-8, or no complete gzip file.
    """
    file = Path(path) if isinstance(path, str) else path
    if file.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a {kinds} file in it")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {path}; check the spelling and the folder")
    return decode(file.read_bytes(), path, zipped=file.name.lower().endswith(".gz"))


def read_cells(text: str, path: object, separator: str, *, quotes: bool | None = True) -> Cells:
    r"""Take delimited text apart, cell by cell, just as the file has it.

    Args:
        text: All of the text.
        path: What errors call the file.
        separator: What separates cells, one character; ``"auto"`` looks at the first rows, and says what it found.
        quotes: Whether a cell may stand in quotes, and then contain separators and line ends. If not, a quote is a
            character like others and a row is a line. None means: if all cells of the first line are in quotes.

    Returns:
        The rows, which are read as they are asked for.

    Raises:
        ValueError: If the separator is none, or ``"auto"`` finds none or several. The rows raise it for a quote that
            is left open, and for lines without quotes that end in ``\r`` alone.

    Example:
        >>> list(read_cells('a;b\n"1;5";2\n', "rows.csv", ";").rows)
        [(1, ['a', 'b']), (2, ['1;5', '2'])]
    """
    if separator == "auto":
        separator = _find_separator(text, path)
    separator = {"tab": "\t", "\\t": "\t"}.get(separator, separator)
    if len(separator) != 1 or separator in '"\r\n':
        raise ValueError(f"separator must be one character, 'tab' or 'auto', got {separator!r}")
    if quotes is None:
        cell, first = '"(?:[^"]|"")*"', text.lstrip("\r\n").partition("\n")[0].removesuffix("\r")
        quotes = re.fullmatch(f"{cell}(?:{re.escape(separator)}{cell})*", first) is not None
    rows = _quoted_rows(text, path, separator) if quotes else _plain_rows(text, path, separator)
    return Cells(rows, separator, last_is_open=not quotes)


def check_separator(first: list[str], separator: str, path: object) -> None:
    """Check that the first line has more than one cell, unless no other sign could separate its cells.

    Args:
        first: Its cells.
        separator: What separates cells.
        path: What errors call the file.

    Raises:
        ValueError: If it is one cell with another separator in it.

    Example:
        >>> check_separator(["a;b"], ",", "rows.csv")
        Traceback (most recent call last):
        ...
        ValueError: rows.csv: the first line has one cell, 'a;b', if ',' separates cells; if it is another sign, ...
    """
    if len(first) == 1 and (other := next((sign for sign in _SEPARATORS if sign in first[0]), None)):
        raise ValueError(
            f"{path}: the first line has one cell, {quote(first[0])}, if {separator!r} separates cells; if it is "
            f"another sign, such as {other!r}, say so with --data.separator {quote(other)}"
        )


def _quoted_rows(text: str, path: object, separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; check the quotes there") from None
    finally:
        csv.field_size_limit(limit)


def _plain_rows(text: str, path: object, separator: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(split_lines(text, path), 1):
        if line:
            yield number, line.split(separator)


def _find_separator(text: str, path: object) -> str:
    """The one separator by which the first rows have as many cells each, and more than one."""
    found = []
    for separator in _SEPARATORS:
        try:
            widths = {len(cells) for _, cells in islice(_quoted_rows(text, path, separator), _SAMPLE)}
        except ValueError:
            continue
        if len(widths) == 1 and widths != {1}:
            found.append(separator)
    if not found:
        raise ValueError(
            f"{path}: none of {quoted(list(_SEPARATORS))} cuts the first rows into as many cells each; say what "
            "separates them with --data.separator"
        )
    if len(found) > 1:
        raise ValueError(f"{path}: cells may be separated by {quoted(found)}; say by which with --data.separator")
    say(f"{path}: cells are separated by {found[0]!r} ({_SEPARATORS[found[0]]})")
    return found[0]


# --- Writing ----------------------------------------------------------------------------------------------------------


def check_format(path: str | Path) -> None:
    """Check by its name that predictions can be written to a file, before the work whose result it will hold.

    Args:
        path: Where they are to go; ``-`` is standard output, which gets CSV.

    Raises:
        ValueError: If its name is that of another kind of file.

    Example:
        >>> check_format("predictions.parquet")
        Traceback (most recent call last):
        ...
        ValueError: cannot write predictions.parquet: predictions are written as .csv, .tsv or .jsonl
    """
    if format_of(path) in (".parquet", ".json", ".xlsx", ".xls"):
        raise ValueError(f"cannot write {path}: predictions are written as .csv, .tsv or .jsonl")


def pack(columns: Mapping[str, Sequence[Any]], path: str | Path) -> bytes:
    r"""Put columns into the text that :func:`read_cells` takes apart again, cell by cell the same.

    Args:
        columns: A sequence of cells for each name of a column, all of one length. Only JSONL tells numbers from text.
            None is an empty cell, and ``null`` in JSONL.
        path: Where they will go: a ``.tsv`` is separated by tabs, a ``.jsonl`` has an object in each line, and
            anything else is CSV.

    Returns:
        The content, in UTF-8; compressed if the name ends in ``.gz``.

    Example:
        >>> pack({"text": ["one, two", "one\ttwo"], "row": [1, 2]}, "out.csv")
        b'text,row\n"one, two",1\none\ttwo,2\n'
        >>> pack({"text": ["one, two"], "row": [1]}, "out.tsv")
        b'text\trow\none, two\t1\n'
    """
    kind = format_of(path)
    rows = zip(*columns.values(), strict=True)
    if kind == ".jsonl":
        lines = (json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows)
        return compress("".join(f"{line}\n" for line in lines), path)
    table = [[*columns], *(["" if cell is None else str(cell) for cell in row] for row in rows)]
    separator, special = ("\t", '\t"\r\n') if kind == ".tsv" else (",", ',"\r\n')

    # csv.writer leaves a lone \r without quotes before Python 3.13.
    def needs_quotes(row: list[str]) -> list[bool]:
        return [any(sign in cell for sign in special) or row == [""] for cell in row]

    quotes = [needs_quotes(row) for row in table]
    # Readers differ in what quotes mean in a TSV. Where nothing needs them there are none; else all cells have them,
    # which tells a reader so from the first line on.
    if kind == ".tsv" and any(map(any, quotes)):
        quotes = [[True] * len(row) for row in table]

    def written(cell: str, in_quotes: bool) -> str:
        return '"' + cell.replace('"', '""') + '"' if in_quotes else cell

    lines = (separator.join(map(written, *pair)) for pair in zip(table, quotes, strict=True))
    return compress("".join(f"{line}\n" for line in lines), path)


def to_numbers(values: Tensor) -> list[float]:
    """Numbers for :func:`pack`, whose text is the shortest that reads back the same in the precision that they have.

    Args:
        values: (r,) floating-point.

    Example:
        >>> import torch
        >>> to_numbers(torch.tensor([0.1, 2.0]))
        [0.1, 2.0]
    """
    return [float(text) for text in values.detach().cpu().numpy().astype(str)]


def class_columns(name: str, classes: Sequence[str], probabilities: Tensor) -> dict[str, list[Any]]:
    """Columns for :func:`pack` of the likeliest class of each row, and of the probability of each.

    Args:
        name: What the column of classes is called.
        classes: The classes.
        probabilities: (r, c).

    Example:
        >>> import torch
        >>> class_columns("label", ["a", "b"], torch.tensor([[0.25, 0.75]]))
        {'label': ['b'], 'probability_a': [0.25], 'probability_b': [0.75]}
    """
    columns: dict[str, list[Any]] = {name: [classes[number] for number in probabilities.argmax(1).tolist()]}
    for number, label in enumerate(classes):
        columns[f"probability_{label}"] = to_numbers(probabilities[:, number])
    return columns


def compress(text: str, path: str | Path) -> bytes:
    """The content of a text file, UTF-8, compressed if its name ends in ``.gz``.

    Args:
        text: The text.
        path: The file.
    """
    content = text.encode()
    return gzip.compress(content, mtime=0) if str(path).lower().endswith(".gz") else content
