"""Tables of rows as text, read from a file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources.abc import Traversable
from itertools import islice
from pathlib import Path

from ika_lightning.data.cells import Cells, check_separator, format_of, read_cells, read_text
from ika_lightning.data.files import without_garbage_collection
from ika_lightning.data.messages import closest, quote, quoted, say
from ika_lightning.data.numbers import is_number
from ika_lightning.lazy import pandas as pd
from ika_lightning.lazy import pyarrow as pa
from ika_lightning.lazy import pyarrow_csv as csv_reader
from ika_lightning.lazy import pyarrow_parquet as parquet

__all__ = ["as_text", "header_of", "read_rows", "read_table", "require_column"]

# Rows that are turned into columns at a time: lists of a million rows would take many times the memory of columns.
_CHUNK = 50_000


@without_garbage_collection()
def read_table(
    path: str | Traversable, separator: str | None = None, *, header_is_certain: bool = False
) -> pd.DataFrame:
    r"""Read a table with a header as text, cell by cell, just as the file has it.

    Args:
        path: A ``.csv`` or ``.tsv`` (``.gz`` too), UTF-8, or a ``.parquet`` of numbers, booleans and strings. Blank
            lines are skipped. Of a Parquet file, a null becomes an empty cell and booleans become 0 and 1.
        separator: What separates cells; by default a comma or a tab, by the file's name. ``"auto"`` looks for it.
        header_is_certain: Whether the first line is known to be a header, though it looks like a row.

    Returns:
        One string per cell; the columns are named by the header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a table, or its first line is a row. The message names the row or line; row 1
            comes right after the header.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "houses.csv")
        ...     _ = file.write_text("rooms,city,price\n3,Ulm,210\n5,Bonn,\n")
        ...     read_table(str(file)).to_dict("list")
        {'rooms': ['3', '5'], 'city': ['Ulm', 'Bonn'], 'price': ['210', '']}
    """
    if format_of(path) == ".parquet":
        file = Path(path) if isinstance(path, str) else path
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {path}; check the spelling and the folder")
        table = _read_parquet(file.read_bytes(), path)
    else:
        text = read_text(path, ".csv, .tsv or .parquet")
        cells = _open(text, path, separator)
        rows = _same_width(cells, path)
        header = header_of(next(rows), path, is_certain=header_is_certain)
        columns = _columns_without_quotes(text, cells.separator, len(header)) or _columns(rows, len(header))
        table = pd.DataFrame(dict(zip(header, columns, strict=True)), dtype="str")
        for name in header:
            is_value = len(table) and (table[name].str.strip() == name).any()
            if is_value and not is_number(name) and not header_is_certain:
                say(f"{path}: line 1 was read as a header, though {quote(name)} is a value of its column as well")
    if not len(table):
        raise ValueError(f"{path} has a header but no rows")
    return table


def read_rows(path: str | Traversable, separator: str | None = None) -> Iterator[list[str]]:
    """Read the cells of a delimited file row by row, the first of which may be a header.

    Args:
        path: A ``.csv`` or ``.tsv``, ``.gz`` too.
        separator: See :func:`read_table`.

    Returns:
        At least one row; all have as many cells.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, or no such file. A row with another number of cells raises it when it is reached.
    """
    return _same_width(_open(read_text(path, ".csv, .tsv or .parquet"), path, separator), path)


def _open(text: str, path: str | Traversable, separator: str | None) -> Cells:
    usual = {".csv": ",", ".tsv": "\t"}
    if format_of(path) not in usual and separator is None:
        raise ValueError(
            f"{path} is no table that can be read; its name should end in .csv, .tsv (.gz too) or .parquet"
        )
    return read_cells(text, path, separator or usual[format_of(path)])


def _same_width(cells: Cells, path: object) -> Iterator[list[str]]:
    first = next(cells.rows, None)
    if first is None:
        raise ValueError(f"{path} is empty; it should have a header and rows")
    check_separator(first[1], cells.separator, path)
    yield first[1]
    for number, (_, row) in enumerate(cells.rows, 1):
        if len(row) != len(first[1]):
            raise ValueError(
                f"{path}, row {number}: {len(row)} cells where the header has {len(first[1])}; "
                f"check the separators ({cells.separator!r}) in that row"
            )
        yield row


def header_of(cells: list[str], path: object, *, is_certain: bool = False) -> list[str]:
    """Check that the first line of a table names its columns.

    Args:
        cells: Its cells.
        path: What errors call the table.
        is_certain: Whether they are known to be names.

    Returns:
        The names, without blanks around them.

    Raises:
        ValueError: If a name is missing or occurs twice, or all are numbers, as in a row, and nobody says otherwise.

    Example:
        >>> header_of(["3", "210"], "houses.csv")
        Traceback (most recent call last):
        ...
        ValueError: houses.csv: line 1, '3', '210', has numbers alone, as a row has; put names of columns above it
    """
    header = [cell.strip() for cell in cells]
    if unnamed := [position for position, column in enumerate(header, 1) if not column]:
        raise ValueError(
            f"{path}: column {unnamed[0]} has no name; every column needs one in the header (an index that pandas "
            "wrote is left out by to_csv(index=False))"
        )
    # Pandas writes the columns of a bare array as 0, 1, 2, ...
    counted = len(header) > 2 and header == [str(number) for number in range(len(header))]
    if not is_certain and all(map(is_number, header)) and not counted:
        raise ValueError(
            f"{path}: line 1, {quoted(header)}, has numbers alone, as a row has; put names of columns above it"
        )
    if duplicates := sorted({column for column in header if header.count(column) > 1}):
        raise ValueError(f"{path}: the header has {quoted(duplicates)} more than once; rename the columns")
    return header


def _columns_without_quotes(text: str, separator: str, width: int) -> list[pa.ChunkedArray] | None:
    """The columns below the header, by a parser ten times as fast that knows fewer rules; None if it gives up."""
    if '"' in text or not separator.isascii():
        return None
    names = [str(number) for number in range(width)]
    try:
        table = csv_reader.read_csv(
            pa.BufferReader(text.encode()),
            read_options=csv_reader.ReadOptions(column_names=names),
            parse_options=csv_reader.ParseOptions(delimiter=separator, quote_char=False, double_quote=False),
            convert_options=csv_reader.ConvertOptions(
                column_types={name: pa.large_string() for name in names}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    return [column.slice(1) for column in table.columns]


def _columns(rows: Iterator[list[str]], width: int) -> list[pa.ChunkedArray]:
    chunks: list[list[pa.Array]] = [[] for _ in range(width)]
    while chunk := list(islice(rows, _CHUNK)):
        for column, cells in zip(chunks, zip(*chunk, strict=True), strict=True):
            column.append(pa.array(cells, pa.large_string()))
    return [pa.chunked_array(column, pa.large_string()) for column in chunks]


def _read_parquet(content: bytes, path: object) -> pd.DataFrame:
    try:
        table = parquet.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no Parquet file that can be read ({reason}); write it again") from None
    return _cells_of(table, path)


def as_text(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Write the cells of a table in memory as a file would have them; see :func:`read_table` of a ``.parquet``.

    Args:
        frame: Columns of numbers, booleans, strings or categories of such, with names; its index is left out.
        source: What errors call the table.

    Returns:
        One string per cell.

    Raises:
        ValueError: If a column is of another type, or names are missing or twice there.

    Example:
        >>> as_text(pd.DataFrame({"rooms": [3, 5], "price": [0.5, None]}), "the table").to_dict("list")
        {'rooms': ['3', '5'], 'price': ['0.5', '']}
    """
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError) as error:
        for name, column in frame.items():
            kinds = sorted({type(cell).__name__ for cell in column.dropna()})
            if len(kinds) > 1:
                raise ValueError(
                    f"{source}: column {name!r} has cells of several types, {' and '.join(kinds)}; make them all "
                    "numbers, or all strings"
                ) from None
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source}: a column is neither numbers nor strings ({reason}); convert it") from None
    return _cells_of(table, source)


def _cells_of(table: pa.Table, path: object) -> pd.DataFrame:
    # Pandas stores an index without a name as a column of this name: it is a count of rows, not data.
    columns_of_data = [name for name in table.column_names if not name.startswith("__index_level_")]
    header = header_of(columns_of_data, path, is_certain=True)
    columns = {}
    for name in header:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_string,
                 pa.types.is_large_string, pa.types.is_null)  # fmt: skip
        if not any(kind(column.type) for kind in kinds):
            raise ValueError(
                f"{path}: column {name!r} is of type {column.type}, which is neither a number nor a string; convert it "
                "(a date to a number of days, a list to columns of its own)"
            )
        columns[name] = column.cast(pa.large_string()).fill_null("")
    return pd.DataFrame(columns, dtype="str")


def require_column(table: pd.DataFrame, name: str, source: str, option: str | None = None) -> None:
    """Check that a table has a column.

    Args:
        table: The table.
        name: The column.
        source: What the error calls the table.
        option: What names the column on the command line, where it has a name of its own if nobody does.

    Raises:
        ValueError: If not; the message lists the columns and the closest name.

    Example:
        >>> require_column(pd.DataFrame({"price": []}), "prize", "houses.csv")
        Traceback (most recent call last):
        ...
        ValueError: houses.csv has no column 'prize' (did you mean 'price'?); its columns are 'price'
    """
    if name not in table.columns:
        columns = list(table.columns)
        raise ValueError(
            f"{source} has no column {name!r}{closest(name, columns)}; its columns are {quoted(columns, 30)}"
            f"{f'; name one with {option}' if option else ''}"
        )
