"""Data of the regression task: rows of a table that serve as one another's context."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ika_lightning.data import splits
from ika_lightning.data.base import DataModule, plain
from ika_lightning.data.cells import pack, to_numbers
from ika_lightning.data.checks import check_choices, check_fractions, check_least, check_source
from ika_lightning.data.datasets import DATASETS, TableSet, find_dataset
from ika_lightning.data.encoders import Missing, RowBatch, TableEncoder, Unseen
from ika_lightning.data.fingerprint import fingerprint
from ika_lightning.data.loader import Loader, RowSampler, processes, shares, update_shares
from ika_lightning.data.messages import quoted
from ika_lightning.data.numbers import MISSING, PLAIN, NumberFormat
from ika_lightning.data.table import read_table, require_column

__all__ = ["RegressionData", "RowBatch"]


class RegressionData(DataModule):
    """Rows of a table, split, scaled by the training rows, and served as sets.

    The table is a data set known by name, or an own file. Training batches are random sets of training rows; in
    evaluation, the context is all training rows, or a fixed choice of them. The encoder travels in the checkpoint:
    testing on ``test_path`` and predicting need no training table.

    Args:
        name: A known data set: ``co2`` and ``airline_passengers`` ship with the package; others, such as ``boston``,
            ``energy`` or ``yacht``, are looked for under ``root`` and else downloaded. It has defaults for ``target``,
            ``drop`` and ``group``. ``python -m ika_lightning datasets`` lists all.
        path: An own ``.csv``, ``.tsv`` (``.gz`` too) or ``.parquet`` with a header, instead of ``name``.
        target: The column to predict, a number. Required with ``path``.
        drop: Columns that are no features.
        group: A column whose equal rows (a person's visits, say) stay in one split. It is no feature.
        split: ``"random"``, or ``"ordered"``: first rows for training, then validation, last ones for testing.
        published_split: Test rows of one of the 20 published splits (0 to 19) of the UCI sets, instead
            of ``test_fraction``. Validation rows are drawn from the others.
        val_fraction: Share of the rows (of the groups; with ``published_split``, of the rows not for testing) for
            validation, at least one. 0 for none.
        test_fraction: Share of the rows (or groups) for testing, at least one. 0 for none.
        test_path: An own labelled file for testing; then no rows are held out for it.
        predict_path: New rows, with or without target (which is ignored).
        missing: What to do about missing or infinite cells: stop with an ``"error"``; ``"drop"`` the row; or fill in
            the training ``"mean"``. Rows without a target are dropped by both. ``"error"`` leaves a milder policy of
            the checkpoint in force.
        unseen: What to do about a category that training did not have: ``"error"``, or ``"ignore"`` (no category).
            ``"error"`` leaves a milder policy of the checkpoint in force.
        separator: What separates cells of own files, one character; ``"auto"`` looks for it, and says what it found.
            None is a comma in a ``.csv`` and a tab in a ``.tsv``.
        decimal: The sign before the fraction of a number, ``"."`` or ``","``.
        thousands: The sign between groups of three digits, such as ``","`` or a blank; None for none. A checkpoint
            brings how numbers were written in training.
        missing_values: Cells that say that nothing is known, besides empty ones; None for ``NA``, ``NaN``, ``null``,
            ``None`` and their like.
        batch_size: Rows in a training batch: those that ask and those that are their context.
        max_context: Most training rows that are the context in evaluation, and most rows that are asked at a time.
        root: Folder of the benchmarks; by default ``IKA_DATA``, else the user's cache folder.
        seed: Seed of splits, batches and context, 0 or more.

    Raises:
        ValueError: If the arguments contradict one another.

    Example:
        >>> data = RegressionData("co2", split="ordered")
        >>> data.setup("fit")
        >>> data.num_features, data.target_name, tuple(data.context.shape)
        (2, 'co2_ppm', (417, 2))
        >>> batch = next(iter(data.train_dataloader()))
        >>> tuple(batch.features.shape), tuple(batch.target.shape)
        ((256, 2), (256,))
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        path: str | None = None,
        target: str | None = None,
        drop: list[str] | None = None,
        group: str | None = None,
        split: Literal["random", "ordered"] = "random",
        published_split: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        test_path: str | None = None,
        predict_path: str | None = None,
        missing: Missing = "error",
        unseen: Unseen = "error",
        separator: str | None = None,
        decimal: str = ".",
        thousands: str | None = None,
        missing_values: list[str] | None = None,
        batch_size: int = 256,
        max_context: int = 2048,
        root: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        path, test_path, predict_path, root = plain(path, test_path, predict_path, root)
        self.save_hyperparameters()
        self.name, self.path, self.root = name, path, root
        self.test_path, self.predict_path = test_path, predict_path
        self.split, self.published_split = split, published_split
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.missing, self.unseen = missing, unseen
        self.separator, self.missing_values = separator, missing_values
        self.written = NumberFormat(decimal, thousands)
        self.batch_size, self.max_context, self.seed = batch_size, max_context, seed
        own = "--data.path FILE --data.target COLUMN"
        self.dataset: TableSet | None = None if name is None else find_dataset(name, TableSet, own)
        self._check_arguments(target)

        self.target = target or (self.dataset.target if self.dataset else None)
        self.drop = drop if drop is not None else list(self.dataset.drop if self.dataset else ())
        self.group = group or (self.dataset.group if self.dataset else None)

        self._encoder: TableEncoder | None = None
        self._table: pd.DataFrame | None = None
        self._splits: dict[str, np.ndarray] = {}  # 0-based rows of the table for "train", "val", "test"
        self._rows: RowBatch | None = None  # the table, encoded
        self._test_table: pd.DataFrame | None = None
        self._predict_table: pd.DataFrame | None = None

    # --- What Lightning calls -----------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read and check the files that a stage needs; split, and learn the scaling if there is none yet.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None for all that there are files for.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If a file does not fit, a stage lacks its file, or there are too few rows.
        """
        # When a checkpoint is given, Lightning loads the encoder after this: so encoding waits for the loaders.
        if stage == "predict" or (stage is None and self.predict_path is not None):
            if self.predict_path is None:
                raise ValueError(
                    "there is nothing to predict; give the new rows with --input FILE (predict_path in Python)"
                )
            self._predict_table = read_table(self.predict_path, self.separator)
        if stage in ("test", None) and self.test_path is not None:
            self._test_table = read_table(self.test_path, self.separator)
        wants_table = stage in ("fit", "validate") or (stage == "test" and self.test_path is None)
        if wants_table or (stage is None and (self.name or self.path)):
            self._setup_table()

    def train_dataloader(self) -> Loader[RowBatch]:
        """Random sets of ``batch_size`` training rows, drawn anew each epoch."""
        rows = self._part("train")
        sampler = RowSampler(len(rows.row), self.batch_size, seed=self.seed, **update_shares(self))
        return Loader(sampler, rows.take)

    def val_dataloader(self) -> Loader[RowBatch] | list[Loader[RowBatch]]:
        """Validation rows in the order of the file; no loader if ``val_fraction`` is 0, and Lightning warns of that."""
        return self._in_order(self._part("val")) if self._splits["val"].size else []

    def test_dataloader(self) -> Loader[RowBatch]:
        """Test rows in the order of their file.

        Raises:
            ValueError: If there are none.
        """
        if self._test_table is not None:
            return self._in_order(self._fitted().encode(self._test_table, str(self.test_path)))
        if not self._splits["test"].size:
            raise ValueError(
                f"there are no test rows, as test_fraction={self.test_fraction}; give a file with --data.test_path, or "
                "train with --data.test_fraction 0.1"
            )
        return self._in_order(self._part("test"))

    def predict_dataloader(self) -> Loader[RowBatch]:
        """The rows of ``predict_path`` in the order of the file, with unknown targets.

        Raises:
            ValueError: If no encoder is loaded, the file lacks a column, or has one named as the prediction will be.
        """
        return self._in_order(self._predict_rows())

    def learned(self) -> dict[str, Any]:
        """The encoder."""
        return {} if self._encoder is None else {"encoder": self._encoder.state_dict()}

    def adopt(self, learned: dict[str, Any]) -> None:
        """Take the encoder of a checkpoint, of which a milder policy stays in force.

        Raises:
            ValueError: If it was trained for another target.
        """
        encoder = TableEncoder("")
        encoder.load_state_dict(learned["encoder"])
        if self.target not in (None, encoder.target):
            raise ValueError(
                f"the checkpoint was trained to predict {encoder.target!r}, not target={self.target!r}; "
                "leave out --data.target, or train anew"
            )
        if self.missing != "error":
            encoder.missing = self.missing
        if self.unseen != "error":
            encoder.unseen = self.unseen
        if self.written != PLAIN:
            encoder.written = self.written
        if self.missing_values is not None:
            encoder.missing_values = self.missing_values
        self._encoder, self._rows = encoder, None

    @property
    def drawn(self) -> dict[str, np.ndarray]:
        """The rows of each part, unless they are in the order of the file."""
        return {} if self.split == "ordered" else self._splits

    @property
    def fingerprints(self) -> dict[str, str]:
        """A SHA-256 of what was read, and which rows are in which part of it."""
        if self._table is None:
            return {}
        return {"table": fingerprint(self._table), **{part: fingerprint(rows) for part, rows in self._splits.items()}}

    # --- What the model asks ------------------------------------------------------------------------------------------

    @property
    def num_features(self) -> int:
        """How many features a row has."""
        return self._fitted().num_features

    @property
    def target_name(self) -> str:
        """The column to predict."""
        return self._fitted().target

    @property
    def target_mean(self) -> float:
        """Mean of the target over the training rows, in its own unit."""
        return self._fitted().target_mean

    @property
    def target_std(self) -> float:
        """Standard deviation of the target over the training rows, in its own unit."""
        return self._fitted().target_std

    @property
    def has_context(self) -> bool:
        """Whether the training rows are known; with ``test_path`` or ``predict_path`` a checkpoint has them."""
        return self._table is not None and self._encoder is not None

    @property
    def context(self) -> Tensor:
        """Features of the training rows, or of ``max_context`` of them, drawn once. (c, f) float32."""
        features = self._part("train").features
        if len(features) <= self.max_context:
            return features
        drawn = np.random.default_rng(self.seed).choice(len(features), self.max_context, replace=False)
        return features[np.sort(drawn)]

    def render(self, predictions: Tensor, path: str | Path) -> bytes:
        """The rows of ``predict_path`` with ``predicted_<target>``, which is empty for one dropped for missing cells.

        Args:
            predictions: (r,) in the unit of the target, in the order of the rows of :meth:`predict_dataloader`.
            path: The file. Its first column is ``row``, from 1, unless the rows have such a column.

        Raises:
            ValueError: If there are not as many predictions as rows.
        """
        rows = self._predict_rows().row.numpy()
        if predictions.shape != rows.shape:
            raise ValueError(f"predictions must have shape ({rows.size},), one per row, got {tuple(predictions.shape)}")
        assert self._predict_table is not None
        table = {name: self._predict_table[name].tolist() for name in self._predict_table.columns}
        numbers = {} if "row" in table else {"row": [*range(1, len(self._predict_table) + 1)]}
        known = dict(zip(rows.tolist(), to_numbers(predictions), strict=True))
        predicted = {self._predicted_column(): [known.get(row) for row in range(len(self._predict_table))]}
        return pack(numbers | table | predicted, path)

    # --- How it is done -----------------------------------------------------------------------------------------------

    def _check_arguments(self, target: str | None) -> None:
        own = "--data.path FILE --data.target COLUMN"
        check_source(TableSet, own, self.name, self.path, self.test_path, self.predict_path)
        if self.path is not None and target is None:
            raise ValueError(f"path={self.path!r} needs a target; give the column to predict with --data.target")
        check_fractions(self.val_fraction, self.test_fraction)
        check_least(batch_size=(self.batch_size, 2), max_context=(self.max_context, 1), seed=(self.seed, 0))
        check_choices(
            split=(self.split, ("random", "ordered")),
            missing=(self.missing, ("error", "drop", "mean")),
            unseen=(self.unseen, ("error", "ignore")),
        )
        self.written.check()
        self._check_published_split()

    def _check_published_split(self) -> None:
        if self.published_split is None:
            return
        having = [name for name, found in DATASETS.items() if isinstance(found, TableSet) and found.published_splits]
        if self.name not in having:
            raise ValueError(f"published_split is for {quoted(having, 30)} only, got name={self.name!r}; leave it out")
        if not 0 <= self.published_split < 20:
            raise ValueError(f"published_split must be 0 to 19, got {self.published_split}")
        if self.split != "random" or self.hparams["group"] or self.test_path:
            raise ValueError("published_split says which rows are for testing; leave out split, group and test_path")

    def _source(self) -> str:
        if self.dataset is not None:
            return str(self.dataset.file("table", self.root))
        if self.path is None:
            raise ValueError(
                "there is no table to split; give --data.name, or --data.path FILE --data.target COLUMN "
                "(--data.test_path FILE is enough to test a checkpoint)"
            )
        return self.path

    def _setup_table(self) -> None:
        if self._table is None:
            source = self._source()
            table = read_table(source, self.separator if self.path else None)
            self._splits = self._split_rows(table, str(source))
            self._table = table
        if self._encoder is None:
            assert self.target is not None
            drop = list(dict.fromkeys([*self.drop, *([self.group] if self.group else [])]))
            encoder = TableEncoder(
                self.target,
                drop=drop,
                missing=self.missing,
                unseen=self.unseen,
                written=self.written,
                missing_values=self.missing_values,
            )
            self._encoder = encoder.fit(self._table, self._splits["train"], self._table_name)

    @property
    def _table_name(self) -> str:
        return self.path or f"data set {self.name!r}"

    def _split_rows(self, table: pd.DataFrame, source: str) -> dict[str, np.ndarray]:
        if self.published_split is not None:
            assert self.dataset is not None
            test = self.dataset.test_rows(self.published_split, self.root)
            if test.size == 0 or test.max() >= len(table):
                raise ValueError(
                    f"{source} has {len(table)} rows, but published split {self.published_split} names row "
                    f"{test.max(initial=-1) + 1}; is it the original table?"
                )
            others = np.setdiff1d(np.arange(len(table)), test)
            val = splits.draw(others, splits.share_of(self.val_fraction, others.size), self.seed)
            return {"train": np.setdiff1d(others, val), "val": val, "test": np.sort(test)}

        units, what = self._units(table)
        count = int(units.max()) + 1
        test_size = 0 if self.test_path else splits.share_of(self.test_fraction, count)
        val_size = splits.share_of(self.val_fraction, count)
        train_size = count - val_size - test_size
        least = 1 if self.group else 2  # one row alone has no spread to scale by
        if train_size < least:
            raise ValueError(
                f"{self._table_name} has {count} {what}, too few for {val_size} in validation, {test_size} in testing "
                f"and at least {least} in training; give more, or lower --data.val_fraction or --data.test_fraction"
            )
        return splits.deal(units, val_size, test_size, ordered=self.split == "ordered", seed=self.seed)

    def _units(self, table: pd.DataFrame) -> tuple[np.ndarray, str]:
        """What is split: for each row the number of its group, in order of appearance, or its own. (r,)."""
        if not self.group:
            return np.arange(len(table)), "rows"
        require_column(table, self.group, self._table_name)
        groups = table[self.group].str.strip()
        if (unknown := groups.isin(MISSING)).any():
            row = int(unknown.to_numpy().argmax()) + 1
            raise ValueError(
                f"{self._table_name}: {unknown.sum()} rows have no group {self.group!r} (first: row {row}); fill it in"
            )
        return pd.factorize(groups)[0], f"groups ({self.group!r})"

    def _fitted(self) -> TableEncoder:
        if self._encoder is None:
            raise ValueError(
                "the scaling of the training rows is not known: this needs a checkpoint (--ckpt_path FILE), or "
                "training first (setup('fit') in Python)"
            )
        return self._encoder

    def _part(self, part: str) -> RowBatch:
        self.check_drawn(part)
        if self._rows is None:
            if self._table is None:
                raise ValueError("the table is not read yet; call setup('fit') first")
            self._rows = self._fitted().encode(self._table, self._table_name)
        index = torch.from_numpy(np.flatnonzero(np.isin(self._rows.row.numpy(), self._splits[part])))
        if len(index) == 0:
            raise ValueError(
                f"{self._table_name}: missing={self._fitted().missing!r} dropped all {self._splits[part].size} rows of "
                f"the {part} split; try --data.missing mean, or another --data.seed"
            )
        return self._rows.take(index)

    def _in_order(self, rows: RowBatch) -> Loader[RowBatch]:
        rank, world = processes(self)
        size = self.max_context * world
        joint = [np.arange(start, min(start + size, len(rows.row))) for start in range(0, len(rows.row), size)]
        return Loader(tuple(map(torch.from_numpy, shares(joint, rank, world))), rows.take)

    def _predict_rows(self) -> RowBatch:
        if self._predict_table is None:
            raise ValueError("the rows to predict are not read yet; call setup('predict') first")
        encoder = self._fitted()
        if self._predicted_column() in self._predict_table.columns:
            raise ValueError(f"{self.predict_path} already has a column {self._predicted_column()!r}; rename it")
        return encoder.encode(self._predict_table, str(self.predict_path), labelled=False)

    def _predicted_column(self) -> str:
        return f"predicted_{self._fitted().target}"
