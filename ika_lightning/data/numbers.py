"""What a cell says: a number, nothing, or text."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from ika_lightning.data.messages import InMemory, quote, row_of
from ika_lightning.lazy import pandas as pd
from ika_lightning.lazy import pyarrow as pa
from ika_lightning.lazy import pyarrow_compute as pc

__all__ = [
    "MISSING",
    "PLAIN",
    "NumberFormat",
    "find_code",
    "is_formatted",
    "is_number",
    "number_cells",
    "parse_numbers",
    "starts_with_number",
]

MISSING = frozenset({"", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL", "None"})
"""Cells that say in a column of numbers that nothing is known (blanks around them do not count)."""

# What RE2 and Python's re both understand. Python's float() takes 1_000 and digits of any script as well.
_PLAIN = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NOT_FINITE = r"(?i:[+-]?(?:nan|inf|infinity))"
# Zeros in front; underscores; and more digits than a floating-point number tells apart.
_CODE = r"0[0-9]+|[0-9]+(?:_[0-9]+)+|[+-]?[0-9]{16,}"
# Signs between groups of digits: commas, points, apostrophes or blanks, but one kind in a number.
_GROUPS = (",", r"\.", "['’]", "[ \u00a0\u202f]")
_GROUPED = "|".join(rf"\d{{1,3}}(?:{sign}\d{{2,3}})+(?:[.,]\d+)?" for sign in _GROUPS)
# Minus may be a sign of its own, and accountants put it behind the digits, or the digits into brackets.
_FORMATTED = re.compile(rf"[+\-\u2212]?(?:{_GROUPED}|\d*[.,]?\d+)[\-\u2212]?")
_SIGNS = "$€£¥₹%‰() \u00a0\u202f"
# A sign or two, perhaps the three letters of a currency, and a digit of any script.
_START = r"[^\pL\pN]{0,2}(?:[A-Z]{3} ?)?[^\pL\pN]?\pN(?s:.*)"


class NumberFormat(NamedTuple):
    """How numbers are written.

    Args:
        decimal: The sign before the fraction, ``"."`` or ``","``.
        thousands: The sign between groups of three digits, such as ``","``, ``"."``, ``"'"`` or a blank; None for none.

    Example:
        >>> NumberFormat(",", ".").parse("1.185,50"), NumberFormat(",", ".").parse("1.18")
        (1185.5, None)
    """

    decimal: str = "."
    thousands: str | None = None

    def check(self) -> None:
        """Check that numbers can be written so.

        Raises:
            ValueError: If not.
        """
        if self.decimal not in (".", ","):
            raise ValueError(f"decimal must be one of '.', ',', got {self.decimal!r}")
        if self.thousands is not None and (
            len(self.thousands) != 1 or self.thousands.isalnum() or self.thousands in "+-" + self.decimal
        ):
            raise ValueError(
                f"thousands must be one sign other than decimal={self.decimal!r}, such as ',', '.' or \"'\", got "
                f"{self.thousands!r}"
            )

    def parse(self, cell: str) -> float | None:
        """The number that a cell without blanks around it says, which may be too large to be finite; None for none."""
        if self != PLAIN:
            groups = cell
            if self.thousands is not None and self.thousands in cell:
                whole, point, fraction = cell.partition(self.decimal)
                first, *others = whole.split(self.thousands)
                if len(first.lstrip("+-")) not in (1, 2, 3) or any(len(group) != 3 for group in others):
                    return None
                groups = "".join([first, *others]) + point + fraction
            if self.decimal != "." and "." in groups:
                return None
            cell = groups.replace(self.decimal, ".")
        return float(cell) if re.fullmatch(_PLAIN, cell) else None


PLAIN = NumberFormat()


def is_number(cell: str, written: NumberFormat = PLAIN) -> bool:
    """Whether a cell is a number.

    Args:
        cell: The cell.
        written: How numbers are written.

    Example:
        >>> [is_number(cell) for cell in ("-1.5e3", "1_000", "1,5", "nan")]
        [True, False, False, False]
    """
    return written.parse(cell.strip()) is not None


def find_code(cells: pd.Series, missing: Collection[str] = MISSING) -> str | None:
    """A cell by which a column of digits is one of codes, of which several may be one number; None if it is none.

    Codes have zeros in front, underscores, or more digits than a number keeps apart. Digits with zeros in front are a
    number's after all if others of the column have a sign or a fraction.

    Args:
        cells: The column.
        missing: Cells that say that nothing is known.

    Example:
        >>> columns = ["70", "007"], ["70", "0_1"], ["07", "0.5"]
        >>> [find_code(pd.Series(column)) for column in columns]
        ['007', '0_1', None]
    """
    codes = _matches(_trimmed(cells), _CODE)
    if not codes.any():
        return None
    digits = cells.str.strip().str.replace("_", "")
    if not (digits.str.fullmatch("[0-9]+") | digits.isin(missing)).all():
        return None
    return str(cells.iloc[int(codes.argmax())])


def starts_with_number(cells: pd.Series) -> np.ndarray:
    """Which cells are a number at their beginning, such as a date or an amount with its unit. (r,) bool.

    Args:
        cells: The cells.

    Example:
        >>> starts_with_number(pd.Series(["5 kg", "CHF 5", "<5", "2020-01-02", "½", "A5", "five"])).tolist()
        [True, True, True, True, True, False, False]
    """
    return _matches(_trimmed(cells), _START)


def is_formatted(cell: str) -> bool:
    """Whether a cell is a number as people write it, which needs to be said how.

    Args:
        cell: The cell.

    Example:
        >>> [is_formatted(cell) for cell in ("1,185", "5,5", "12 %", "$5", "(5)", "1.5", "5 kg", "2020-01-02")]
        [True, True, True, True, True, False, False, False]
    """
    bare = cell.strip().strip(_SIGNS)
    return not is_number(cell) and bool(_FORMATTED.fullmatch(bare))


def parse_numbers(
    cells: pd.Series,
    name: str,
    source: str,
    role: str = "a number in training",
    written: NumberFormat = PLAIN,
    missing: Collection[str] = MISSING,
) -> np.ndarray:
    """Read a column of numbers.

    Args:
        cells: The cells.
        name: The column.
        source: What errors call the table.
        role: What errors say the column is.
        written: How numbers are written.
        missing: Cells that say that nothing is known.

    Returns:
        The values, (r,) float64; NaN where missing or infinite.

    Raises:
        ValueError: If a cell is neither a number nor missing; the message names the row.

    Example:
        >>> parse_numbers(pd.Series(["1", "", "2e1"]), "x", "rows.csv")
        array([ 1., nan, 20.])
    """
    values, is_text = number_cells(cells, written, missing)
    if is_text.any():
        row = int(is_text.argmax())
        cell = cells.iloc[row]
        is_written = is_formatted(cell) and not isinstance(source, InMemory)
        how = "say how numbers are written with --data.decimal and --data.thousands, " if is_written else ""
        raise ValueError(
            f"{source}, {row_of(source, row)}: column {name!r} is {role}, but {quote(cell)} is not a number; "
            f"{how}correct the cell or choose another column"
        )
    return values


def number_cells(
    cells: pd.Series, written: NumberFormat = PLAIN, missing: Collection[str] = MISSING
) -> tuple[np.ndarray, np.ndarray]:
    """Values, NaN where missing or infinite; and which cells are text. Both (r,).

    Args:
        cells: The cells.
        written: How numbers are written.
        missing: Cells that say that nothing is known.

    Example:
        >>> values, is_text = number_cells(pd.Series(["1", "NA", "1e999", "one"]))
        >>> values.tolist(), is_text.tolist()
        ([1.0, nan, nan, nan], [False, False, False, True])
    """
    texts = _trimmed(cells)
    if written == PLAIN:
        is_number = _matches(texts, _PLAIN)
        values = np.full(len(cells), np.nan)
        values[is_number] = pc.cast(texts.filter(pa.array(is_number)), pa.float64()).to_numpy()
    else:
        values = np.array([np.nan if (n := written.parse(text)) is None else n for text in texts.to_pylist()])
        is_number = ~np.isnan(values)
    nothing = pc.is_in(texts, pa.array(sorted(missing), texts.type)).to_numpy(zero_copy_only=False)
    values[np.isinf(values) | nothing] = np.nan
    return values, ~(is_number | nothing | _matches(texts, _NOT_FINITE))


def _trimmed(cells: pd.Series) -> pa.Array:
    return pc.utf8_trim_whitespace(pa.array(cells, pa.large_string(), from_pandas=False))


def _matches(texts: pa.Array, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(texts, rf"\A(?:{pattern})\z").to_numpy(zero_copy_only=False)
