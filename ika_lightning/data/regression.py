"""Data of the regression task: rows of a table that serve as one another's context."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ika_lightning.data.base import DataModule, one_or_several, plain
from ika_lightning.data.checks import check_choices, check_least, check_source
from ika_lightning.data.datasets import TableSet, find_dataset
from ika_lightning.data.encoders import Missing, RowBatch, TableEncoder, Unseen
from ika_lightning.data.loader import Loader, RowSampler, processes, shares, update_shares
from ika_lightning.data.numbers import NumberFormat
from ika_lightning.data.rows import Rows, TableCorpus

__all__ = ["RegressionData", "RowBatch"]


class RegressionData(DataModule[Rows, TableEncoder, RowBatch, RowBatch]):
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
        drop: Columns that are no features, one or a list.
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
        missing_values: Cells, one or a list, that say that nothing is known, besides empty ones; None for ``NA``,
            ``NaN``, ``null``, ``None`` and their like.
        batch_size: Rows in a training batch: those that ask and those that are their context.
        max_context: Most training rows that are the context in evaluation, and most rows that are asked at a time. With
            the network that a regression has by default, one core answers 2,048 rows from as many in a second, 8,192
            in 5 and 16,384 in 8, with 0.05 GiB for each 1,000 rows.
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
        drop: list[str] | str | None = None,
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
        missing_values: list[str] | str | None = None,
        batch_size: int = 256,
        max_context: int = 2048,
        root: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        path, test_path, predict_path, root = plain(path, test_path, predict_path, root)
        drop, missing_values = one_or_several(drop), one_or_several(missing_values)
        self.save_hyperparameters()
        self.test_path, self.predict_path = test_path, predict_path
        self.batch_size, self.max_context, self.seed = batch_size, max_context, seed
        own = "--data.path FILE --data.target COLUMN"
        known = None if name is None else find_dataset(name, TableSet, own)
        check_source(TableSet, own, name, path, test_path, predict_path)
        if path is not None and target is None:
            raise ValueError(f"path={path!r} needs a target; give the column to predict with --data.target")
        check_least(batch_size=(batch_size, 2), max_context=(max_context, 1), seed=(seed, 0))
        check_choices(missing=(missing, ("error", "drop", "mean")), unseen=(unseen, ("error", "ignore")))
        written = NumberFormat(decimal, thousands)
        written.check()
        if published_split is not None and (split != "random" or group or test_path):
            raise ValueError("published_split says which rows are for testing; leave out split, group and test_path")

        group = group or (known.group if known else None)
        drop = drop if drop is not None else list(known.drop if known else ())
        encoder = TableEncoder(
            target or (known.target if known else ""),
            drop=list(dict.fromkeys([*drop, *([group] if group else [])])),
            missing=missing,
            unseen=unseen,
            written=written,
            missing_values=missing_values,
        )
        self.corpus = TableCorpus(
            dataset=known,
            path=path,
            root=root,
            separator=separator,
            split=split,
            published_split=published_split,
            group=group,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            has_test=test_path is not None,
            encoder=encoder,
            seed=seed,
        )

    def loader(self, part: str) -> Loader[RowBatch]:
        """Random sets of training rows; of others ``max_context`` at a time, in the order of their file."""
        rows = self.encoded(part)
        if part == "train":
            return Loader(RowSampler(len(rows.row), self.batch_size, seed=self.seed, **update_shares(self)), rows.take)
        rank, world = processes(self)
        size = self.max_context * world
        joint = np.split(np.arange(len(rows.row)), range(size, len(rows.row), size))
        return Loader(tuple(map(torch.from_numpy, shares(joint, rank, world))), rows.take)

    @property
    def num_features(self) -> int:
        """How many features a row has."""
        return self.learned.num_features

    @property
    def target_name(self) -> str:
        """The column to predict."""
        return self.learned.target

    @property
    def target_mean(self) -> float:
        """Mean of the target over the training rows, in its own unit."""
        return self.learned.target_mean

    @property
    def target_std(self) -> float:
        """Standard deviation of the target over the training rows, in its own unit."""
        return self.learned.target_std

    @property
    def context(self) -> Tensor:
        """Features of the training rows, or of ``max_context`` of them, drawn once. (c, f) float32."""
        return self._context.features

    @property
    def context_target(self) -> Tensor:
        """Standardised targets of the same rows. (c,) float32."""
        return self._context.target

    @property
    def _context(self) -> RowBatch:
        rows = self.encoded("train")
        if len(rows.row) <= self.max_context:
            return rows
        drawn = np.random.default_rng(self.seed).choice(len(rows.row), self.max_context, replace=False)
        return rows.take(torch.from_numpy(np.sort(drawn)))
