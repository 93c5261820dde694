"""What is learned on training rows, turns raw data into numbers, and travels in the checkpoint."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ika_lightning.data.messages import InMemory, option, quote, quoted, row_of, say
from ika_lightning.data.numbers import (
    MISSING,
    PLAIN,
    NumberFormat,
    find_code,
    is_formatted,
    number_cells,
    parse_numbers,
    starts_with_number,
)
from ika_lightning.data.table import require_column
from ika_lightning.lazy import pandas as pd

__all__ = ["Missing", "RowBatch", "TableEncoder", "Unseen"]

Missing = Literal["error", "drop", "mean"]
Unseen = Literal["error", "ignore"]

# A column of text with more categories than this, most of them of one row, is rather a name or a date.
_MANY = 20


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

    def take(self, index: Tensor) -> RowBatch:
        """Some of the rows.

        Args:
            index: Which, (k,) int64.
        """
        return RowBatch(*(tensor[index] for tensor in self))


@dataclass(frozen=True)
class _Numeric:
    """A column of numbers: one feature, (value - mean) / std."""

    name: str
    mean: float
    std: float
    width = 1

    @property
    def features(self) -> list[str]:
        return [self.name]

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

    @property
    def features(self) -> list[str]:
        return [f"{self.name}={category}" for category in self.categories]

    def encode(self, values: np.ndarray) -> np.ndarray:
        # no category equals NaN or -1: all zeros
        return values[:, None] == np.arange(self.width)


class TableEncoder:
    """Turns the rows of a table into standardised features and a standardised target.

    A column in which every known cell of the training rows is a number is standardised with mean and standard
    deviation (of the population) in float64. Any other column is one-hot over its categories, sorted; so is a column
    of codes, such as ``007`` or ``0_1``, of which several may be one number. A column most of whose cells are numbers
    as people write them, such as ``1,185`` or ``12 %``, is refused: it has to be said how.

    Args:
        target: The column to predict.
        drop: Columns that are no features.
        missing: What to do about missing and infinite cells: ``"error"``; ``"drop"`` the row; or ``"mean"``,
            the training mean of a number and no category for text. A target is never filled in: its row is dropped.
        unseen: What to do about a category that training did not have: ``"error"``, or ``"ignore"`` (no category).
        written: How numbers are written.
        missing_values: Cells that say that nothing is known, besides empty ones; by default those of
            :data:`~ika_lightning.data.numbers.MISSING`.

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
        self,
        target: str,
        *,
        drop: Sequence[str] = (),
        missing: Missing = "error",
        unseen: Unseen = "error",
        written: NumberFormat = PLAIN,
        missing_values: Sequence[str] | None = None,
    ) -> None:
        self.target = target
        self.drop = list(drop)
        self.missing: Missing = missing
        self.unseen: Unseen = unseen
        self.written = written
        self.missing_values = None if missing_values is None else list(missing_values)
        self.target_mean = math.nan
        self.target_std = math.nan
        self._columns: list[_Numeric | _Categorical] = []

    @property
    def feature_names(self) -> list[str]:
        """Names of the features, in their order: a column, or ``column=category``."""
        return [name for column in self._columns for name in column.features]

    @property
    def num_features(self) -> int:
        """How many features a row has."""
        return sum(column.width for column in self._columns)

    def fit(self, table: pd.DataFrame, rows: np.ndarray | None = None, source: str = "the table") -> Self:
        """Learn scaling and categories.

        Args:
            table: All rows, as :func:`~ika_lightning.data.table.read_table` gives them.
            rows: The training rows, 0-based; by default all.
            source: What errors call the table.

        Returns:
            The encoder itself.

        Raises:
            ValueError: If a column is not there, the target is text or constant, numbers are written in an unknown
                way, cells are missing under ``missing="error"``, or no row or no feature is left.
        """
        for name in (self.target, *self.drop):
            require_column(table, name, source)
        rows = np.arange(len(table)) if rows is None else rows
        target = self._numbers(table, self.target, source, role="the target")

        parsed: dict[str, tuple[np.ndarray, list[str] | None]] = {}  # values, and categories if it is text
        for name in table.columns:
            if name != self.target and name not in self.drop:
                values, categories = self._parse_column(table, name, rows, source)
                if np.unique(values[rows][~np.isnan(values[rows])]).size > 1:
                    parsed[name] = values, categories
        missing = {name: np.isnan(values) for name, (values, _) in parsed.items()}
        kept = self._kept(missing | {self.target: np.isnan(target)}, source)
        rows = rows[kept[rows]]
        if rows.size == 0:
            mean = option(source, "missing", "mean")
            raise ValueError(f"{source}: no training row is left without missing cells; try {mean}")

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
                f"{source}: no feature is left: {quoted(constant) or 'no column'} besides the target {self.target!r}"
                f"{' and --data.drop' * bool(self.drop)}, and a column that is constant in training says nothing"
            )
        if constant:
            warnings.warn(
                f"{source}: left out {quoted(constant)}, constant (or empty) in the {rows.size} training rows",
                stacklevel=2,
            )
        self._note_names(rows.size, source)
        return self

    def encode(self, table: pd.DataFrame, source: str = "the table", *, labelled: bool = True) -> RowBatch:
        """Encode the rows of a table; those that the policy drops are absent.

        Args:
            table: Rows, as :func:`~ika_lightning.data.table.read_table` gives them. Columns that are not in use may be
                absent.
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
        values = [self._values(table, column, source) for column in self._columns]
        missing = {column.name: np.isnan(v) for column, v in zip(self._columns, values, strict=True)}
        target = np.full(len(table), np.nan)
        if labelled:
            target = self._numbers(table, self.target, source, role="the target")
            missing[self.target] = np.isnan(target)
        rows = np.flatnonzero(self._kept(missing, source))
        features = np.empty((len(rows), self.num_features), dtype=np.float32)
        start = 0
        for column, v in zip(self._columns, values, strict=True):
            features[:, start : start + column.width] = column.encode(v[rows])
            start += column.width
        return RowBatch(
            features=torch.from_numpy(features),
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
            "written": list(self.written),
            "missing_values": self.missing_values,
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"encoder": self.state_dict()}

    def describe(self) -> dict[str, Any]:
        """How rows are encoded, for a reader who has nothing else."""
        of_missing = {
            "error": "a row with a missing cell is refused",
            "drop": "a row with a missing cell is left out",
            "mean": "a missing number is the mean of its column, and a missing category none of its categories",
        }
        of_unseen = {
            "error": "a row with any other category is refused",
            "ignore": "any other category is none of them",
        }
        return {
            "how": [
                "A row is the features of its columns, one column after another. Blanks around a cell do not count.",
                "A column with mean and std is one of numbers: one feature, (number - mean) / std, computed in float64 "
                "and rounded to float32. In front of the fraction is the sign decimal, between groups of three digits "
                "may be the sign thousands.",
                "A column with categories has a feature for each of them, in their order: 1 for the one that the cell "
                f"is, else 0; {of_unseen[self.unseen]}.",
                "Missing is a cell that is one of missing_cells and no category; of numbers also nan and inf, in any "
                f"case and with any sign, and what is too large for a float64; {of_missing[self.missing]}.",
            ],
            "columns": [asdict(column) for column in self._columns],
            "features": self.feature_names,
            "decimal": self.written.decimal,
            "thousands": self.written.thousands,
            "missing_cells": sorted(self._nothing),
            "missing": self.missing,
            "unseen": self.unseen,
            "target": {"name": self.target, "mean": self.target_mean, "std": self.target_std},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the encoder that gave this state.

        Args:
            state: What :meth:`state_dict` gave.
        """
        self.target, self.drop = state["target"], []  # what to drop matters to fit alone
        self.target_mean, self.target_std = state["target_mean"], state["target_std"]
        self.missing, self.unseen = state["missing"], state["unseen"]
        # checkpoints of the first version have neither
        self.written = NumberFormat(*state.get("written", PLAIN))
        self.missing_values = state.get("missing_values")
        self._columns = [
            _Categorical(**column) if "categories" in column else _Numeric(**column) for column in state["columns"]
        ]

    def adopt_policy(self, other: TableEncoder) -> None:
        """Take over what another one was told of cells, where it is not the default.

        Args:
            other: The other one.
        """
        if other.missing != "error":
            self.missing = other.missing
        if other.unseen != "error":
            self.unseen = other.unseen
        if other.written != PLAIN:
            self.written = other.written
        if other.missing_values is not None:
            self.missing_values = other.missing_values

    @property
    def _nothing(self) -> frozenset[str]:
        """Cells that say that nothing is known."""
        return MISSING if self.missing_values is None else frozenset({"", *self.missing_values})

    def _numbers(self, table: pd.DataFrame, name: str, source: str, role: str = "a number in training") -> np.ndarray:
        return parse_numbers(table[name], name, source, role, self.written, self._nothing)

    def _parse_column(
        self, table: pd.DataFrame, name: str, rows: np.ndarray, source: str
    ) -> tuple[np.ndarray, list[str] | None]:
        """Numbers and None, or positions in the categories and the categories; NaN where missing."""
        # Which of both it is, the training rows say.
        training = table[name].iloc[rows]
        values, is_text = number_cells(training, self.written, self._nothing)
        code = find_code(training, self._nothing)
        if not is_text.any() and code is None:
            return self._numbers(table, name, source), None
        if code is not None:
            say(
                f"{source}: column {name!r} is read as codes, a category each, and not as numbers, as it has "
                f"{quote(code)}"
            )
        else:
            self._check_text(training, rows, np.isfinite(values), is_text, source)
        cells = table[name].str.strip()
        if self.missing_values is None and (markers := sorted(set(cells) & MISSING - {""})):
            how = "rename it" if isinstance(source, InMemory) else "say so with --data.missing_values '[]'"
            say(f"{source}: {markers[0]!r} in column {name!r} is read as missing; if it is a category, {how}")
        categories = sorted(set(cells) - self._nothing)
        return _positions(cells, categories, self._nothing), categories

    def _check_text(
        self, training: pd.Series, rows: np.ndarray, is_number: np.ndarray, is_text: np.ndarray, source: str
    ) -> None:
        """Refuse a column of text that is mostly numbers as people write them; tell of others that may be numbers."""
        name, most = training.name, (is_number.sum() + is_text.sum()) / 2
        formatted = [row for row in np.flatnonzero(is_text).tolist() if is_formatted(training.iloc[row])]
        if formatted and is_number.sum() + len(formatted) > most:
            how = (
                "say how with --data.decimal and --data.thousands (as in --data.decimal , --data.thousands .), take "
                "signs such as % out of the file, or leave the column out with --data.drop "
                f"'{json.dumps([name])}'"
            )
            raise ValueError(
                f"{source}, {row_of(source, rows[formatted[0]])}: {quote(training.iloc[formatted[0]])} in column "
                f"{name!r} is a number that is written in an unknown way; "
                + ("make them numbers, or leave the column out" if isinstance(source, InMemory) else how)
            )
        if is_number.sum() > most:
            row = int(is_text.argmax())
            warnings.warn(
                f"{source}, {row_of(source, rows[row])}: {quote(training.iloc[row])} makes {name!r}, mostly numbers, a "
                "column of text, with a feature for each value; correct the cell (or leave it empty, and see "
                f"{option(source, 'missing', 'mean')}) if that is not meant",
                stacklevel=4,
            )
        elif (starts := is_text & starts_with_number(training)).sum() > most:
            say(
                f"{source}: column {name!r} is read as text, a category each, and not as numbers, as it has "
                f"{quote(training.iloc[int(starts.argmax())])}"
            )

    def _values(self, table: pd.DataFrame, column: _Numeric | _Categorical, source: str) -> np.ndarray:
        """Numbers, or positions in the categories; NaN where missing, -1 where never seen."""
        if isinstance(column, _Numeric):
            return self._numbers(table, column.name, source)
        cells = table[column.name].str.strip()
        values = _positions(cells, column.categories, self._nothing)
        if self.unseen == "error" and (strange := np.flatnonzero(values == -1)).size:
            row = int(strange[0])
            raise ValueError(
                f"{source}, {row_of(source, row)}, column {column.name!r}: {quote(cells.iloc[row])} was never seen in "
                f"training, where there are {quoted(column.categories)}; correct it, pass "
                f"{option(source, 'unseen', 'ignore')} (none of them), or leave the column out of training"
                f"{_by_drop(source)}"
            )
        return values

    def _note_names(self, rows: int, source: str) -> None:
        for column in self._columns:
            if column.width > max(_MANY, rows / 2):
                say(
                    f"{source}: column {column.name!r} has {column.width} categories in {rows} training rows, a "
                    f"feature for each; leave it out{_by_drop(source)} if it is a name, a date or a number with a unit"
                )

    def _kept(self, missing: dict[str, np.ndarray], source: str) -> np.ndarray:
        """Which rows stay, given for each column which cells are missing. (r,) bool."""
        grid = np.stack(list(missing.values()), axis=1)
        if self.missing == "error" and grid.any():
            places, names = np.argwhere(grid), list(missing)
            where = [f"{row_of(source, row)} column {names[column]!r}" for row, column in places[:5].tolist()]
            by_drop = "leave these rows out, or pass"
            if not isinstance(source, InMemory):
                by_drop = f"pass {option(source, 'missing', 'drop')} to leave these rows out, or"
            no_target = self.target in missing and missing[self.target].any()
            raise ValueError(
                f"{source}: {len(places)} missing or infinite cells in {grid.any(1).sum()} rows "
                f"({', '.join(where)}{', ...' if len(places) > 5 else ''}); {by_drop} "
                f"{option(source, 'missing', 'mean')} to fill in the training mean"
                + (f" (a row without the target {self.target!r} is left out by both)" if no_target else "")
            )
        if self.missing == "mean":
            return ~missing[self.target] if self.target in missing else np.ones(len(grid), dtype=bool)
        return np.asarray(~grid.any(axis=1))


def _by_drop(source: str) -> str:
    return "" if isinstance(source, InMemory) else " with --data.drop"


def _learn_column(name: str, values: np.ndarray, categories: list[str] | None) -> _Numeric | _Categorical | None:
    """A column as the training rows have it, or None if it is constant there."""
    if categories is None:
        mean, std = _mean_std(values[~np.isnan(values)])
        return _Numeric(name, mean, std) if std > 0 else None
    seen = [categories[int(position)] for position in np.unique(values[~np.isnan(values)])]
    return _Categorical(name, seen) if len(seen) > 1 else None


def _positions(cells: pd.Series, categories: list[str], missing: frozenset[str]) -> np.ndarray:
    """Where each cell is among the categories; NaN where missing, -1 where it is none of them. (r,) float64."""
    values = pd.Index(categories, dtype="str").get_indexer(pd.Index(cells)).astype(np.float64)
    values[cells.isin(missing).to_numpy() & (values < 0)] = np.nan
    return values


def _mean_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation; the latter is 0 for a constant, whatever rounding says."""
    if values.size == 0 or values.min() == values.max():
        return (float(values[0]) if values.size else math.nan), 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(values.mean()), float(values.std())
    if 1e-150 < std < 1e150:
        return mean, std
    # squares of such numbers are beyond the range of numbers, or lose digits at its end
    largest = np.abs(values).max()
    scaled = values / largest
    return float(largest * scaled.mean()), float(largest * scaled.std())
