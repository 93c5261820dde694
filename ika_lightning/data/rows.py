"""The rows of tables, for regression: which of them are for what, and how they are read and encoded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ika_lightning.data import splits
from ika_lightning.data.cells import pack, to_numbers
from ika_lightning.data.checks import check_choices, check_fractions, check_shape
from ika_lightning.data.corpus import Corpus, Found
from ika_lightning.data.datasets import DATASETS, TableSet
from ika_lightning.data.encoders import RowBatch, TableEncoder
from ika_lightning.data.fingerprint import fingerprint
from ika_lightning.data.messages import none_held_out, quoted
from ika_lightning.data.numbers import MISSING
from ika_lightning.data.table import read_table, require_column
from ika_lightning.lazy import pandas as pd

__all__ = ["RowPredictions", "Rows", "TableCorpus"]


class Rows(NamedTuple):
    """Some of the rows of a table.

    Args:
        table: The whole table, as :func:`~ika_lightning.data.table.read_table` gives it.
        numbers: Which rows, 0-based, (r,).
        source: What errors call the table.
    """

    table: pd.DataFrame
    numbers: np.ndarray
    source: str


class RowPredictions(NamedTuple):
    """What is predicted of rows, in the unit of the target, each (r,) floating-point.

    Args:
        mean: The predictions.
        std: Their standard deviations; None where they are not known, as are the others.
        lower: The lower ends of intervals around them.
        upper: The upper ends.
    """

    mean: Tensor
    std: Tensor | None = None
    lower: Tensor | None = None
    upper: Tensor | None = None

    def columns(self, target: str) -> dict[str, Tensor]:
        """What is known, by names of columns.

        Args:
            target: The column that is predicted.

        Example:
            >>> list(RowPredictions(torch.zeros(3), std=torch.ones(3)).columns("price"))
            ['predicted_price', 'predicted_price_std']
        """
        names = self.column_names(target)
        return {name: values for name, values in zip(names, self, strict=True) if values is not None}

    @classmethod
    def column_names(cls, target: str) -> list[str]:
        """The names of all columns that there may be."""
        return [f"predicted_{target}{'' if field == 'mean' else f'_{field}'}" for field in cls._fields]


@dataclass(frozen=True, kw_only=True)
class TableCorpus(Corpus[Rows, TableEncoder, RowBatch]):
    """A table that is split by rows, and others like it.

    Args:
        dataset: The data set that is known by name, if it is one.
        has_test: Whether there is an own file for testing, so that no rows are held out for it.
        encoder: What is to learn from the rows, as it is before it has learned.

    All others are those of :class:`~ika_lightning.data.RegressionData`.

    Raises:
        ValueError: If the arguments contradict one another.

    Example:
        >>> encoder = TableEncoder("co2_ppm")
        >>> corpus = TableCorpus(dataset=DATASETS["co2"], split="ordered", encoder=encoder)
        >>> {part: rows.numbers.size for part, rows in corpus.read("fit", (), None).parts.items()}
        {'train': 417, 'val': 52, 'test': 52}
    """

    unknown = "the scaling of the training rows is"
    no_source = (
        "there is no table to split; give --data.name, or --data.path FILE --data.target COLUMN (--data.test_path FILE "
        "is enough to test a checkpoint)"
    )
    learns_in = ("fit", "validate", "test", None)

    dataset: TableSet | None = None
    separator: str | None = None
    split: Literal["random", "ordered"] = "random"
    published_split: int | None = None
    group: str | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    has_test: bool = False
    encoder: TableEncoder
    seed: int = 0

    def __post_init__(self) -> None:
        check_fractions(self.val_fraction, self.test_fraction)
        check_choices(split=(self.split, ("random", "ordered")))
        if self.published_split is None:
            return
        having = [name for name, found in DATASETS.items() if isinstance(found, TableSet) and found.published_splits]
        name = self.dataset and self.dataset.name
        if name not in having:
            raise ValueError(f"published_split is for {quoted(having, 30)} only, got name={name!r}; leave it out")
        if not 0 <= self.published_split < 20:
            raise ValueError(f"published_split must be 0 to 19, got {self.published_split}")

    @property
    def no_test(self) -> str:
        """Says that no rows are held out."""
        return none_held_out("rows", self.test_fraction)

    def read(self, stage: str | None, known: Collection[str], learned: TableEncoder | None) -> Found[Rows]:
        """Read and split the table, once for all stages."""
        if "train" in known:
            return Found({}, {})
        table = self.read_table()
        numbers = self._deal(table) if self.published_split is None else self._deal_around(table, self.published_split)
        parts = {part: Rows(table, chosen, self.source) for part, chosen in numbers.items() if chosen.size}
        return Found(parts, {} if self.split == "ordered" else numbers)

    def read_table(self) -> pd.DataFrame:
        """Read the table that is split."""
        if self.dataset is None:
            return read_table(str(self.path), self.separator)
        return read_table(str(self.dataset.file("table", self.root)))

    def _deal(self, table: pd.DataFrame) -> dict[str, np.ndarray]:
        """Deal out the rows of a table, or groups of them."""
        units, what = self._units(table)
        count = int(units.max()) + 1
        test_size = 0 if self.has_test else splits.share_of(self.test_fraction, count)
        val_size = splits.share_of(self.val_fraction, count)
        # one row alone has no spread to scale by
        least = 1 if self.group else 2
        if count - val_size - test_size < least:
            raise ValueError(
                f"{self.source} has {count} {what}, too few for {val_size} in validation, {test_size} in testing and "
                f"at least {least} in training; give more, or lower --data.val_fraction or --data.test_fraction"
            )
        return splits.deal(units, val_size, test_size, ordered=self.split == "ordered", seed=self.seed)

    def _units(self, table: pd.DataFrame) -> tuple[np.ndarray, str]:
        """What is split: for each row the number of its group, in order of appearance, or its own. (r,)."""
        if not self.group:
            return np.arange(len(table)), "rows"
        require_column(table, self.group, self.source)
        groups = table[self.group].str.strip()
        if (unknown := groups.isin(MISSING)).any():
            row = int(unknown.to_numpy().argmax()) + 1
            raise ValueError(
                f"{self.source}: {unknown.sum()} rows have no group {self.group!r} (first: row {row}); fill it in"
            )
        return pd.factorize(groups)[0], f"groups ({self.group!r})"

    def _deal_around(self, table: pd.DataFrame, number: int) -> dict[str, np.ndarray]:
        """Deal out the rows of a table that are not for testing in a published split."""
        assert self.dataset is not None
        test = self.dataset.test_rows(number, self.root)
        if test.size == 0 or test.max() >= len(table):
            raise ValueError(
                f"{self.dataset.file('table', self.root)} has {len(table)} rows, but published split {number} names "
                f"row {test.max(initial=-1) + 1}; is it the original table?"
            )
        others = np.setdiff1d(np.arange(len(table)), test)
        val = splits.draw(others, splits.share_of(self.val_fraction, others.size), self.seed)
        return {"train": np.setdiff1d(others, val), "val": val, "test": np.sort(test)}

    def read_own(self, part: str, path: str, learned: TableEncoder | None) -> Rows:
        """Read all rows of another table."""
        table = read_table(path, self.separator)
        return Rows(table, np.arange(len(table)), path)

    def learn(self, train: Rows) -> TableEncoder:
        """Learn scaling and categories."""
        return copy(self.encoder).fit(*train)

    def restore(self, state: dict[str, Any]) -> TableEncoder:
        """The encoder of a checkpoint, of which a milder policy stays in force.

        Raises:
            ValueError: If it was trained for another target.
        """
        encoder = TableEncoder("")
        encoder.load_state_dict(state["encoder"])
        if self.encoder.target not in ("", encoder.target):
            raise ValueError(
                f"the checkpoint was trained to predict {encoder.target!r}, not target={self.encoder.target!r}; "
                "leave out --data.target, or train anew"
            )
        encoder.adopt_policy(self.encoder)
        return encoder

    def encode(self, part: str, found: Rows, learned: TableEncoder) -> RowBatch:
        """Encode rows, without those that are dropped; of rows to predict, the target is not looked at.

        Raises:
            ValueError: If all labelled ones are dropped, or a column is called as the predictions will be.
        """
        for column in RowPredictions.column_names(learned.target) if part == "predict" else ():
            if column in found.table:
                raise ValueError(f"{found.source} already has a column {column!r}; rename it")
        # what is wrong is said of the whole table
        whole = learned.encode(found.table, found.source, labelled=part != "predict")
        rows = whole.take(torch.from_numpy(np.flatnonzero(np.isin(whole.row.numpy(), found.numbers))))
        if len(rows.row) == 0:
            raise ValueError(
                f"{found.source}: missing={learned.missing!r} dropped all {found.numbers.size} rows "
                + ("to predict" if part == "predict" else f"of the {part} split")
                + "; try --data.missing mean"
                + (", or another --data.seed" if found.source == self.source else "")
            )
        return rows

    def fingerprints(self, parts: Mapping[str, Rows]) -> dict[str, str]:
        """Those of the table, and of which of its rows are in each part."""
        if "train" not in parts:
            return {}
        table = parts["train"].table
        own = {part: found.numbers for part, found in parts.items() if found.table is table}
        numbers = {part: fingerprint(own.get(part, np.arange(0))) for part in splits.PARTS}
        return {"table": fingerprint(table), **numbers}

    def render(
        self,
        new: Rows,
        encoded: RowBatch,
        learned: TableEncoder,
        predictions: Tensor | RowPredictions,
        path: str | Path,
    ) -> bytes:
        """The rows with ``predicted_<target>``, which is empty for one that was dropped for missing cells.

        The first column is ``row``, from 1, unless the rows have such a column. Predictions are (r,), in the unit of
        the target, one for each row that was not dropped. Standard deviations and intervals that are known follow as
        ``predicted_<target>_std``, ``..._lower`` and ``..._upper``.
        """
        if isinstance(predictions, Tensor):
            predictions = RowPredictions(predictions)
        cells: dict[str, list[Any]] = {name: new.table[name].tolist() for name in new.table.columns}
        numbers = {} if "row" in cells else {"row": [*range(1, len(new.table) + 1)]}
        for name, values in predictions.columns(learned.target).items():
            check_shape(values, (len(encoded.row),), "one per row")
            known = dict(zip(encoded.row.tolist(), to_numbers(values), strict=True))
            cells[name] = [known.get(row) for row in new.numbers.tolist()]
        return pack(numbers | cells, path)
