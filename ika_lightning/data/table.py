"""Tables of rows: read from a file, and turned into standardised numbers."""

import csv
import difflib
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ika_lightning.data.files import decode

__all__ = ["MISSING", "Missing", "RowBatch", "TableEncoder", "Unseen", "read_table"]

Missing = Literal["error", "drop", "mean"]
Unseen = Literal["error", "ignore"]

MISSING = frozenset({"", "NA", "NaN", "nan", "null", "None"})
"""Cells that say that nothing is known (blanks around them do not count)."""


class RowBatch(NamedTuple):
    """Rows of a table as numbers, with r rows and f features.

    Args:
        features: (r, f) float32, standardised.
        target: (r,) float32, standardised; NaN where unknown.
        row: (r,) int64, 0-based row of the input file.
    """

    features: Tensor
    target: Tensor
    row: Tensor

    @property
    def counts(self) -> dict[str, int]:
        """How many rows this is."""
        return {"rows": len(self.row)}


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_table(path: str | Traversable) -> pd.DataFrame:
    r"""Read a table with a header as text, cell by cell, just as the file has it.

    Args:
        path: A ``.csv`` or ``.tsv`` (``.gz`` too), UTF-8, or a ``.parquet`` of numbers, booleans and strings. Blank
            lines are skipped. Of a Parquet file, a null becomes an empty cell and booleans become 0 and 1.

    Returns:
        One string per cell; the columns are named by the header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a table. The message names the row or line; row 1 comes right after the header.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "houses.csv")
        ...     _ = file.write_text("rooms,city,price\n3,Ulm,210\n5,Bonn,\n")
        ...     read_table(str(file)).to_dict("list")
        {'rooms': ['3', '5'], 'city': ['Ulm', 'Bonn'], 'price': ['210', '']}
    """
    file = Path(path) if isinstance(path, str) else path
    if file.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a .csv, .tsv or .parquet file in it")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {path}; check the spelling and the folder")
    name = file.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        header, rows = _parquet_cells(file.read_bytes(), path)
    elif name.endswith((".csv", ".tsv")):
        text = decode(file.read_bytes(), path, zipped=file.name.lower().endswith(".gz"))
        header, rows = _delimited_cells(text, path, delimiter="\t" if name.endswith(".tsv") else ",")
    else:
        raise ValueError(
            f"{path} is no table that can be read; its name should end in .csv, .tsv (.gz too) or .parquet"
        )

    if unnamed := [position for position, column in enumerate(header, 1) if not column]:
        raise ValueError(f"{path}: column {unnamed[0]} has no name; every column needs one in the header")
    if duplicates := sorted({column for column in header if header.count(column) > 1}):
        raise ValueError(f"{path}: the header has {quoted(duplicates)} more than once; rename the columns")
    if not rows:
        raise ValueError(f"{path} has a header but no rows")
    return pd.DataFrame(rows, columns=header, dtype="str")


def _delimited_cells(text: str, path: object, *, delimiter: str) -> tuple[list[str], list[list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [cells for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; check the quotes there") from None
    if not lines:
        raise ValueError(f"{path} is empty; it should have a header and rows")
    header, *rows = lines
    for number, cells in enumerate(rows, 1):
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, row {number}: {len(cells)} cells where the header has {len(header)}; "
                f"check the separators ({delimiter!r}) in that row"
            )
    return [column.strip() for column in header], rows


def _parquet_cells(content: bytes, path: object) -> tuple[list[str], list[list[str]]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no Parquet file that can be read ({reason}); write it again") from None
    # Pandas stores an index without a name as a column of this name: it is a count of rows, not data.
    header = [column for column in table.column_names if not column.startswith("__index_level_")]
    columns = []
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
        columns.append(column.cast(pa.string()).fill_null("").to_pylist())
    return header, [list(cells) for cells in zip(*columns, strict=True)]


# --- Encoding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Numeric:
    """A column of numbers: one feature, (value - mean) / std."""

    name: str
    mean: float
    std: float
    width = 1

    def parse(self, cells: Sequence[str], source: str, unseen: Unseen) -> np.ndarray:
        return parse_numbers(cells, self.name, source)

    def encode(self, values: np.ndarray) -> np.ndarray:
        return ((np.where(np.isnan(values), self.mean, values) - self.mean) / self.std)[:, None]


@dataclass(frozen=True)
class _Categorical:
    """A column of text: a feature for each category, 1 where it applies."""

    name: str
    categories: list[str]

    @property
    def width(self) -> int:
        return len(self.categories)

    def parse(self, cells: Sequence[str], source: str, unseen: Unseen) -> np.ndarray:
        """Positions in the categories; NaN where missing, -1 where never seen."""
        position: dict[str, float] = {category: float(i) for i, category in enumerate(self.categories)}
        values = np.array([np.nan if c in MISSING else position.get(c, -1.0) for c in map(str.strip, cells)])
        if unseen == "error" and (strange := np.flatnonzero(values == -1)).size:
            row = int(strange[0])
            raise ValueError(
                f"{source}, row {row + 1}, column {self.name!r}: {cells[row].strip()!r} was never seen in training, "
                f"where there are {quoted(self.categories)}; correct it, pass --data.unseen ignore (none of them), or "
                "leave the column out of training with --data.drop"
            )
        return values

    def encode(self, values: np.ndarray) -> np.ndarray:
        return values[:, None] == np.arange(self.width)  # no category equals NaN or -1: all zeros


class TableEncoder:
    """Turns the rows of a table into standardised features and a standardised target.

    A column in which every known cell is a number is standardised with mean and standard deviation (of the
    population) in float64. Any other column is one-hot over its categories, sorted. What is learned is learned
    from the training rows alone; only which columns are numbers is decided over the whole table.

    Args:
        target: The column to predict.
        drop: Columns that are no features.
        missing: What to do about missing and infinite cells: ``"error"``; ``"drop"`` the row; or ``"mean"``,
            the training mean of a number and no category for text. A target is never filled in: its row is dropped.
        unseen: What to do about a category that training did not have: ``"error"``, or ``"ignore"`` (no category).

    Example:
        >>> table = pd.DataFrame({"rooms": ["3", "5"], "city": ["Ulm", "Bonn"], "price": ["210", "250"]})
        >>> encoder = TableEncoder("price").fit(table)
        >>> encoder.feature_names
        ['rooms', 'city=Bonn', 'city=Ulm']
        >>> encoder.encode(table).features.tolist()
        [[-1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
        >>> encoder.target_mean, encoder.target_std
        (230.0, 20.0)
    """

    def __init__(
        self, target: str, *, drop: Sequence[str] = (), missing: Missing = "error", unseen: Unseen = "error"
    ) -> None:
        self.target = target
        self.drop = list(drop)
        self.missing: Missing = missing
        self.unseen: Unseen = unseen
        self.target_mean = math.nan
        self.target_std = math.nan
        self._columns: list[_Numeric | _Categorical] = []

    @property
    def feature_names(self) -> list[str]:
        """Names of the features, in their order: a column, or ``column=category``."""
        names: list[str] = []
        for column in self._columns:
            if isinstance(column, _Numeric):
                names.append(column.name)
            else:
                names.extend(f"{column.name}={category}" for category in column.categories)
        return names

    @property
    def num_features(self) -> int:
        """How many features a row has."""
        return sum(column.width for column in self._columns)

    def fit(self, table: pd.DataFrame, rows: np.ndarray | None = None, source: str = "the table") -> Self:
        """Learn scaling and categories.

        Args:
            table: All rows, as :func:`read_table` gives them.
            rows: The training rows, 0-based; by default all.
            source: What errors call the table.

        Returns:
            The encoder itself.

        Raises:
            ValueError: If a column is not there, the target is text or constant, cells are missing under
                ``missing="error"``, or no row or no feature is left.
        """
        for name in (self.target, *self.drop):
            require_column(table, name, source)
        rows = np.arange(len(table)) if rows is None else rows
        target = parse_numbers(table[self.target].tolist(), self.target, source, role="the target")

        parsed: dict[str, tuple[np.ndarray, list[str] | None]] = {}  # values, and categories if it is text
        for name in table.columns:
            if name != self.target and name not in self.drop:
                values, categories = _parse_column(table[name].tolist(), name, source)
                if np.unique(values[rows][~np.isnan(values[rows])]).size > 1:
                    parsed[name] = values, categories
        missing = {name: np.isnan(values) for name, (values, _) in parsed.items()}
        kept = self._kept(missing | {self.target: np.isnan(target)}, source)
        rows = rows[kept[rows]]
        if rows.size == 0:
            raise ValueError(f"{source}: no training row is left without missing cells; try --data.missing mean")

        self.target_mean, self.target_std = _mean_std(target[rows])
        if not self.target_std > 0:
            raise ValueError(
                f"{source}: the target {self.target!r} is {target[rows][0]:g} in all of the {rows.size} training rows; "
                "a constant cannot be learned"
            )
        self._columns = [
            column
            for name, (values, categories) in parsed.items()
            if (column := _learn_column(name, values[rows], categories))
        ]
        used = {column.name for column in self._columns}
        constant = [name for name in table.columns if name not in {self.target, *self.drop, *used}]
        if not used:
            raise ValueError(
                f"{source}: no feature is left: {quoted(constant) or 'no column'} besides the target {self.target!r} "
                "and --data.drop, and a column that is constant in training says nothing"
            )
        if constant:
            warnings.warn(
                f"{source}: left out {quoted(constant)}, constant (or empty) in the {rows.size} training rows",
                stacklevel=2,
            )
        return self

    def encode(self, table: pd.DataFrame, source: str = "the table", *, labelled: bool = True) -> RowBatch:
        """Encode the rows of a table; those that the policy drops are absent.

        Args:
            table: Rows, as :func:`read_table` gives them. Columns that are not in use may be absent.
            source: What errors call the table.
            labelled: Whether to read the target. If not, it is NaN, and the table need not have it.

        Returns:
            The rows, in the order of the table.

        Raises:
            ValueError: If a column is not there, a cell is missing under ``missing="error"``, a category is new under
                ``unseen="error"``, or a cell of a column of numbers is none.
        """
        for name in [column.name for column in self._columns] + [self.target] * labelled:
            require_column(table, name, source)
        values = [column.parse(table[column.name].tolist(), source, self.unseen) for column in self._columns]
        missing = {column.name: np.isnan(v) for column, v in zip(self._columns, values, strict=True)}
        target = np.full(len(table), np.nan)
        if labelled:
            target = parse_numbers(table[self.target].tolist(), self.target, source, role="the target")
            missing[self.target] = np.isnan(target)
        rows = np.flatnonzero(self._kept(missing, source))
        blocks = [column.encode(v[rows]) for column, v in zip(self._columns, values, strict=True)]
        return RowBatch(
            features=torch.from_numpy(np.hstack(blocks).astype(np.float32)),
            target=torch.from_numpy(((target[rows] - self.target_mean) / self.target_std).astype(np.float32)),
            row=torch.from_numpy(rows.astype(np.int64)),
        )

    def state_dict(self) -> dict[str, Any]:
        """All that was learned, as strings, numbers, lists and dicts.

        Returns:
            What :meth:`load_state_dict` takes.
        """
        return {
            "target": self.target,
            "target_mean": self.target_mean,
            "target_std": self.target_std,
            "columns": [asdict(column) for column in self._columns],
            "missing": self.missing,
            "unseen": self.unseen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the encoder that gave this state.

        Args:
            state: What :meth:`state_dict` gave.
        """
        self.target, self.drop = state["target"], []  # what to drop matters to fit alone
        self.target_mean, self.target_std = state["target_mean"], state["target_std"]
        self.missing, self.unseen = state["missing"], state["unseen"]
        self._columns = [
            _Categorical(**column) if "categories" in column else _Numeric(**column) for column in state["columns"]
        ]

    def _kept(self, missing: dict[str, np.ndarray], source: str) -> np.ndarray:
        """Which rows stay, given for each column which cells are missing. (r,) bool."""
        grid = np.stack(list(missing.values()), axis=1)
        if self.missing == "error" and grid.any():
            places, names = np.argwhere(grid), list(missing)
            where = [f"row {row + 1} column {names[column]!r}" for row, column in places[:5].tolist()]
            no_target = self.target in missing and missing[self.target].any()
            raise ValueError(
                f"{source}: {len(places)} missing or infinite cells in {grid.any(1).sum()} rows "
                f"({', '.join(where)}{', ...' if len(places) > 5 else ''}); pass --data.missing drop to leave these "
                "rows out, or --data.missing mean to fill in the training mean"
                + (f" (a row without the target {self.target!r} is left out by both)" if no_target else "")
            )
        if self.missing == "mean":
            return ~missing[self.target] if self.target in missing else np.ones(len(grid), dtype=bool)
        return np.asarray(~grid.any(axis=1))


def require_column(table: pd.DataFrame, name: str, source: str) -> None:
    """Check that a table has a column.

    Args:
        table: The table.
        name: The column.
        source: What the error calls the table.

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
        )


def closest(name: str, known: Iterable[str]) -> str:
    """A hint for an error about an unknown name.

    Args:
        name: What was asked for.
        known: What there is.

    Returns:
        `` (did you mean ...?)``, or nothing if no known name is close.

    Example:
        >>> closest("bostom", ["boston", "co2"])
        " (did you mean 'boston'?)"
    """
    match = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def quoted(names: Sequence[str], most: int = 10) -> str:
    """Names for an error message, cut short if they are many.

    Args:
        names: The names.
        most: How many to show.

    Returns:
        The names in quotes, separated by commas.

    Example:
        >>> quoted(["a", "b", "c"], most=2)
        "'a', 'b', ... (3 in all)"
    """
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def _numbers(cells: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Values, NaN where missing or infinite; and which cells are text. Both (r,)."""
    values = np.full(len(cells), np.nan)
    is_text = np.zeros(len(cells), dtype=bool)
    for row, cell in enumerate(cells):
        try:
            value = float(cell)
        except ValueError:
            is_text[row] = cell.strip() not in MISSING
        else:
            values[row] = value if math.isfinite(value) else np.nan
    return values, is_text


def parse_numbers(cells: Sequence[str], name: str, source: str, role: str = "a number in training") -> np.ndarray:
    """Read a column of numbers.

    Args:
        cells: The cells.
        name: The column.
        source: What errors call the table.
        role: What errors say the column is.

    Returns:
        The values, (r,) float64; NaN where missing or infinite.

    Raises:
        ValueError: If a cell is neither a number nor missing; the message names the row.

    Example:
        >>> parse_numbers(["1", "", "2e1"], "x", "rows.csv")
        array([ 1., nan, 20.])
    """
    values, is_text = _numbers(cells)
    if is_text.any():
        row = int(is_text.argmax())
        raise ValueError(
            f"{source}, row {row + 1}: column {name!r} is {role}, but {cells[row]!r} is not a number; "
            "correct the cell or choose another column"
        )
    return values


def _parse_column(cells: Sequence[str], name: str, source: str) -> tuple[np.ndarray, list[str] | None]:
    """Numbers and None, or positions in the categories and the categories; NaN where missing."""
    values, is_text = _numbers(cells)
    if not is_text.any():
        return values, None
    if np.isfinite(values).sum() > len(cells) / 2:
        row = int(is_text.argmax())
        warnings.warn(
            f"{source}, row {row + 1}: {cells[row]!r} makes {name!r}, mostly numbers, a column of text, with a feature "
            "for each value; correct the cell (or leave it empty, and see --data.missing) if that is not meant",
            stacklevel=3,
        )
    stripped = [cell.strip() for cell in cells]
    categories = sorted(set(stripped) - MISSING)
    position = {category: float(i) for i, category in enumerate(categories)}
    return np.array([position.get(cell, np.nan) for cell in stripped]), categories


def _learn_column(name: str, values: np.ndarray, categories: list[str] | None) -> _Numeric | _Categorical | None:
    """A column as the training rows have it, or None if it is constant there."""
    if categories is None:
        mean, std = _mean_std(values[~np.isnan(values)])
        return _Numeric(name, mean, std) if std > 0 else None
    seen = [categories[int(position)] for position in np.unique(values[~np.isnan(values)])]
    return _Categorical(name, seen) if len(seen) > 1 else None


def _mean_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation; the latter is 0 for a constant, whatever rounding says."""
    if values.size == 0 or values.min() == values.max():
        return (float(values[0]) if values.size else math.nan), 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(values.mean()), float(values.std())
    return mean, (std if math.isfinite(std) else 0.0)
