"""Labelled texts, read from a file."""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from ika_lightning.data.cells import Cells, check_separator, format_of, read_cells, read_text
from ika_lightning.data.files import read_lines, without_garbage_collection
from ika_lightning.data.messages import closest, quote, quoted, say

__all__ = ["Column", "Labelled", "read_labelled", "read_texts"]

Column = str | int
"""A column by its name in the header, or by its position, from 1, in a file without one."""

LABELS = ("label", "labels", "class", "category", "target", "sentiment", "y")
"""Usual names of the column of labels, in any case."""

TEXTS = ("text", "sentence", "review", "content", "message", "document", "utterance")
"""Usual names of the column of texts, in any case."""


class Labelled(NamedTuple):
    """Texts and their labels.

    Args:
        labels: A label for each text.
        texts: The texts.
        lines: The line of the file where each begins, from 1.
        source: What errors call the file.
        columns: Where labels and texts were found, in words.
    """

    labels: list[str]
    texts: list[str]
    lines: list[int]
    source: str
    columns: str = ""

    @property
    def summary(self) -> str:
        """How the file was read: columns, rows, and classes with their counts, in one line.

        Example:
            >>> Labelled(["a", "b", "a"], ["x", "y", "z"], [1, 2, 3], "rows.tsv", "label in column 1").summary
            "rows.tsv: label in column 1; 3 rows of 2 classes: 'a' 2, 'b' 1"
        """
        counts = Counter(self.labels).most_common()
        shown = ", ".join(f"{quote(label, 30)} {count}" for label, count in counts[:10])
        more = ", ..." if len(counts) > 10 else ""
        return f"{self.source}: {self.columns}; {len(self.labels)} rows of {len(counts)} classes: {shown}{more}"

    def take(self, rows: Sequence[int]) -> "Labelled":
        """Some of the rows.

        Args:
            rows: Which, 0-based.
        """
        return self._replace(
            labels=[self.labels[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            lines=[self.lines[row] for row in rows],
        )


@without_garbage_collection()
def read_labelled(
    path: str,
    label: Column | None = None,
    text: Column | None = None,
    separator: str | None = None,
    known: Collection[str] = (),
) -> Labelled:
    r"""Read labelled texts, UTF-8, from a ``.tsv``, ``.csv`` or ``.jsonl`` file (``.gz`` too).

    A row of a TSV is a line; quotes mean nothing in it (unless all cells of the first line are in quotes), and the
    last column may contain tabs. A cell of a CSV may be quoted, and then contain commas and line ends. A line of a
    JSONL file is an object. Blank lines are skipped.

    Args:
        path: The file.
        label: The column of labels: its name, or its position, from 1, if the file has no header. None means the one
            with a usual name, such as ``label`` or ``class``, if the first line has that of a text as well; else the
            first column of a file without header, if it is certain that there is none.
        text: The column of texts; None means the one with a usual name, such as ``text`` or ``review``, or the second
            column, in the same way.
        separator: What separates cells; by default a comma or a tab, by the file's name. ``"auto"`` looks for it.
        known: Labels that there are: a line that begins with one is a row.

    Returns:
        At least one row.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file, or the first line may be a header or a row. The message names the line.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "reviews.tsv")
        ...     _ = file.write_text("good\tA gem.\nbad\tToo long,\tby far\ngood\tMoving.\n")
        ...     rows = read_labelled(str(file))
        >>> rows.labels, rows.texts
        (['good', 'bad', 'good'], ['A gem.', 'Too long,\tby far', 'Moving.'])
    """
    content = read_text(path, ".tsv, .csv or .jsonl")
    if format_of(path) == ".jsonl":
        columns, found = _jsonl_rows(content, path, label, text)
    else:
        columns, found = _delimited_rows(_open(content, path, separator), path, label, text, known)
    rows = list(found)
    if not rows:
        raise ValueError(f"{path} is empty; it should have a label and a text in each row")
    for number, given, _ in rows:
        if not given:
            raise ValueError(f"{path}, line {number}: the label is empty; fill it in, or take the row out")
    lines, labels, texts = zip(*rows, strict=True)
    return Labelled(list(labels), list(texts), list(lines), path, columns)


def read_texts(
    path: str, text: Column | None = None, separator: str | None = None, known: Collection[str] = ()
) -> list[str]:
    """Read texts without labels: a text in each line, or the column of texts of a ``.csv``, ``.tsv`` or ``.jsonl``.

    Args:
        path: The file, or ``-`` for standard input.
        text: The column of texts: its name, or its position, from 1, if the file has no header. By default, and where
            there is no such name, the one with a usual name. A position means the only column of a file that has one,
            as it may be that of a file with labels.
        separator: See :func:`read_labelled`.
        known: Labels that there are. A table without a header whose rows all begin with one of them is a file of
            labelled texts, as :func:`read_labelled` reads it.

    Returns:
        At least one text.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty or not UTF-8, or it is not clear which column has the texts, or whether the first
            line is one.
    """
    kind = format_of(path)
    if path == "-" or kind not in (".csv", ".tsv", ".jsonl"):
        texts = read_lines(path)
    elif kind == ".jsonl":
        objects = list(_objects(read_text(path, ".jsonl"), path))
        name = _key(objects[0][1], text, TEXTS) if objects else "text"
        texts = [_text_of(row, name, path, number) for number, row in objects]
        say(f"{path}: texts in {quote(name)}; {len(texts)} texts")
    else:
        texts = _column_of_texts(_open(read_text(path, ".tsv or .csv"), path, separator), path, text, known)
    if not texts:
        raise ValueError(f"{path} is empty; it should have a text in each line")
    return texts


def _column_of_texts(cells: Cells, path: str, text: Column | None, known: Collection[str]) -> list[str]:
    numbered = list(cells.rows)
    rows = [row for _, row in numbered]
    if not rows:
        return []
    header = [cell.strip() for cell in rows[0]]
    text = _position_or_name(text, header)
    named = text if isinstance(text, str) and text in header else _usual(header, TEXTS)
    if named is not None:
        place, last = header.index(named), len(header) - 1
        say(f"{path}: texts in column {quote(named)}; {len(rows) - 1} texts")
        return [_cell(_last_cell(row, last, cells), place, path, cells) for row in rows[1:]]
    if isinstance(text, int):
        place = 0 if all(len(row) == 1 for row in rows) else text - 1
        say(f"{path}: no header, texts in column {place + 1}; {len(rows)} texts")
        return [_cell(_last_cell(row, place, cells), place, path, cells) for row in rows]
    labelled = all(len(row) > 1 and row[0].strip() in known for row in rows)
    if text is None and labelled and _is_row(header, numbered, cells, known):
        say(f"{path}: no header, label in column 1, which is not looked at, text in column 2; {len(rows)} texts")
        return [_last_cell(row, 1, cells)[1] for row in rows]
    raise ValueError(
        f"{path}: is the first line, {quote(cells.separator.join(header))}, a header or a text? If it is a header, "
        "name the column of texts, as in --data.text NAME; if it is a text, give its position, as in --data.text 1"
    )


def _cell(row: list[str], place: int, path: str, cells: Cells) -> str:
    if len(row) <= place:
        raise ValueError(
            f"{path}: a row has {len(row)} cells, {quote(cells.separator.join(row))}, and no text, which is in column "
            f"{place + 1}"
        )
    return row[place]


def _open(content: str, path: str, separator: str | None) -> Cells:
    usual = {".csv": ",", ".tsv": "\t"}
    kind = format_of(path)
    if kind not in usual and separator is None:
        raise ValueError(f"{path} is no file of labelled texts; its name should end in .tsv, .csv or .jsonl (.gz too)")
    return read_cells(content, path, separator or usual[kind], quotes=None if kind == ".tsv" else True)


def _delimited_rows(
    cells: Cells, path: str, label: Column | None, text: Column | None, known: Collection[str]
) -> tuple[str, Iterator[tuple[int, str, str]]]:
    """Where labels and texts are, in words, and (line, label, text) of each row."""
    rows = list(cells.rows)
    if not rows:
        return "", iter(())
    header = [cell.strip() for cell in rows[0][1]]
    check_separator(rows[0][1], cells.separator, path)
    label, text = _position_or_name(label, header), _position_or_name(text, header)
    positions = _positions(label, text, rows, path, cells, known)
    if positions is None:
        names = (
            _name(label, LABELS, "label", header, path),
            _name(text, TEXTS, "text", header, path),
        )
        if names[0] == names[1]:
            raise ValueError(f"{path}: label and text must be two different columns, got {names[0]!r} twice")
        places, width, rows = [header.index(name) for name in names], len(header), rows[1:]
        where = f"label in column {quote(names[0])}, text in column {quote(names[1])}"
    else:
        places, width = [position - 1 for position in positions], max(positions)
        where = f"no header, label in column {positions[0]}, text in column {positions[1]}"
    return where, _cut(rows, places, width, path, cells)


def _position_or_name(column: Column | None, header: list[str]) -> Column | None:
    """A column as it was given; a command line may give a position as a string."""
    return int(column) if isinstance(column, str) and column.isdecimal() and column not in header else column


def _cut(
    rows: list[tuple[int, list[str]]], places: list[int], width: int, path: str, cells: Cells
) -> Iterator[tuple[int, str, str]]:
    for number, row in rows:
        if len(row) < width:
            raise ValueError(
                f"{path}, line {number}: {len(row)} columns where {width} are needed; separate label and text by a "
                f"{cells.separator_name}"
            )
        if not cells.last_is_open and len(row) != len(rows[0][1]):
            raise ValueError(
                f"{path}, line {number}: {len(row)} cells where the first line has {len(rows[0][1])}; put a text that "
                f"has {cells.separator_name}s in it into quotes"
            )
        row = _last_cell(row, width - 1, cells)
        yield number, row[places[0]].strip(), row[places[1]]


def _last_cell(row: list[str], last: int, cells: Cells) -> list[str]:
    """A row in which the last column has kept its separators, if it may have them."""
    return [*row[:last], cells.separator.join(row[last:])] if cells.last_is_open else row


def _positions(
    label: Column | None,
    text: Column | None,
    rows: list[tuple[int, list[str]]],
    path: str,
    cells: Cells,
    known: Collection[str],
) -> tuple[int, int] | None:
    """Positions of both columns, from 1, if the first line is a row; None if it is a header."""
    first = [cell.strip() for cell in rows[0][1]]
    if isinstance(label, str) or isinstance(text, str):
        if isinstance(label, int) or isinstance(text, int):
            raise ValueError(f"label and text must both be names or both be positions, got {label!r} and {text!r}")
        return None
    names = _usual(first, LABELS), _usual(first, TEXTS)
    if label is None and text is None and None not in names:
        return None
    positions = label or 1, text or 2
    if min(positions) < 1 or positions[0] == positions[1]:
        raise ValueError(f"label and text must be two different positions, from 1, got {label} and {text}")
    if label is None and text is None:
        if not _is_row(first, rows, cells, known):
            raise ValueError(_unclear(first, path, cells))
    elif max(positions) <= len(first) and (
        first[positions[0] - 1].lower() in LABELS and first[positions[1] - 1].lower() in TEXTS
    ):
        raise ValueError(_unclear(first, path, cells))
    return positions


def _is_row(first: list[str], rows: list[tuple[int, list[str]]], cells: Cells, known: Collection[str]) -> bool:
    """Whether it is certain that the first line is a row of label and text, as nothing speaks against it."""
    widths = {len(row) for _, row in rows}
    # Columns that nobody has named; of a TSV, they may be one text with tabs in it.
    if len(first) > 2 and (not cells.last_is_open or (len(widths) == 1 and len(rows) > 1)):
        return False
    # names of columns are no labels
    return first[0] in known or any(row[0].strip() == first[0] for _, row in rows[1:])


def _unclear(first: list[str], path: str, cells: Cells) -> str:
    names = [name for name in first if name] if len(first) > 2 else first
    label, text = (*names, "NAME", "NAME")[:2]
    return (
        f"{path}: is the first line, {quote(cells.separator.join(first))}, a header or a row? If it is a header, name "
        f"two of its columns, as in --data.label {quote(label, 30)} --data.text {quote(text, 30)}; if it is a row, "
        "give positions, as in --data.label 1 --data.text 2"
    )


def _usual(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The one name among these that is usual; the first of the usual ones wins over others."""
    found = [name for name in names if name.lower() in known]
    exact = [name for name in found if name.lower() == known[0]]
    return exact[0] if len(exact) == 1 else found[0] if len(found) == 1 else None


def _name(given: Column | None, known: Sequence[str], usual: str, header: list[str], path: str) -> str:
    name = str(given) if given is not None else _usual(header, known) or usual
    if name not in header:
        raise ValueError(
            f"{path}: the first line has no column {name!r}{closest(name, header)}; it has {quoted(header, 30)}; give "
            "--data.label and --data.text, as names or, without a header, positions"
        )
    if header.count(name) > 1:
        raise ValueError(f"{path}: the first line has {name!r} more than once; rename one of the columns")
    return name


# --- JSONL ------------------------------------------------------------------------------------------------------------


def _jsonl_rows(
    content: str, path: str, label: Column | None, text: Column | None
) -> tuple[str, Iterator[tuple[int, str, str]]]:
    objects = list(_objects(content, path))
    first = objects[0][1] if objects else {}
    names = _key(first, label, LABELS), _key(first, text, TEXTS)

    def rows() -> Iterator[tuple[int, str, str]]:
        written: dict[str, tuple[str, int]] = {}
        for number, row in objects:
            if not set(names) <= set(row):
                raise ValueError(
                    f"{path}, line {number}: no object with {names[0]!r} and {names[1]!r}; name the keys with "
                    "--data.label and --data.text"
                )
            label = _label_of(row, names[0], path, number)
            _check_one_class(row[names[0]], label, written, path, number)
            yield number, label, _text_of(row, names[1], path, number)

    return f"label in {quote(names[0])}, text in {quote(names[1])}", rows()


def _objects(content: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); write an object in each line") from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}: no object with a label and a text, but a {type(row).__name__}; write an "
                "object in each line"
            )
        yield number, row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return row


def _key(first: dict[str, Any], given: Column | None, known: Sequence[str]) -> str:
    return str(given) if given is not None else _usual(list(first), known) or known[0]


def _label_of(row: dict[str, Any], name: str, path: str, number: int) -> str:
    given = row[name]
    if given is None or (isinstance(given, float) and not math.isfinite(given)):
        raise ValueError(
            f"{path}, line {number}: the label is {json.dumps(given)}, no class; fill it in, or take the row out"
        )
    if not isinstance(given, str | int | float):
        raise ValueError(
            f"{path}, line {number}: {name!r} should be one label, a string or a number, got {given!r:.80}"
        )
    # true and false as the file has them, and not as Python does
    return _whole(given.strip() if isinstance(given, str) else json.dumps(given), name, path, number)


def _check_one_class(given: str | float, label: str, written: dict[str, tuple[str, int]], path: str, line: int) -> None:
    """Check that a class is written in one way, as JSON tells 1 from "1" and from 1.0, and people do not.

    ``written`` has how each label was first written, and on which line.
    """
    form = json.dumps(label if isinstance(given, str) else given)
    names = {label}
    if isinstance(given, float) and given.is_integer():
        names.add(str(int(given)))
    for name in names:
        other, first = written.setdefault(name, (form, line))
        if other != form:
            raise ValueError(
                f"{path}, line {line}: the label {form} may be the same class as {other} in line {first}; write both "
                "in the same way, or give one of them another name"
            )


def _text_of(row: dict[str, Any], name: str, path: str, number: int) -> str:
    if name not in row:
        raise ValueError(f"{path}, line {number}: no object with {name!r}; name the key with --data.text")
    if not isinstance(row[name], str):
        raise ValueError(f"{path}, line {number}: {name!r} should be a string, got {row[name]!r:.80}")
    return _whole(row[name], name, path, number)


def _whole(text: str, name: str, path: str, number: int) -> str:
    """JSON can write half of a character, which no file in UTF-8 and no vocabulary can."""
    if half := next((sign for sign in text if "\ud800" <= sign <= "\udfff"), None):
        raise ValueError(
            f"{path}, line {number}: {name!r} has \\u{ord(half):04x}, half of a character; write the whole of it, or "
            "take it out"
        )
    return text
