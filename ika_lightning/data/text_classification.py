"""Data of the text classification task: texts of one of several classes."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ika_lightning.data import splits
from ika_lightning.data.base import DataModule, plain
from ika_lightning.data.cells import pack, to_numbers
from ika_lightning.data.checks import check_fractions, check_least, check_source
from ika_lightning.data.datasets import TextSet, find_dataset
from ika_lightning.data.fingerprint import fingerprint
from ika_lightning.data.labelled import Column, Labelled, read_labelled, read_texts
from ika_lightning.data.loader import LengthSampler, Loader, pad, update_shares
from ika_lightning.data.messages import quoted, say
from ika_lightning.data.numbers import MISSING
from ika_lightning.data.tokenizer import UNKNOWN, Tokenizer

__all__ = ["TextBatch", "TextClassificationData"]


class TextBatch(NamedTuple):
    """Texts as tokens, b of them, padded to the longest, of n tokens.

    Args:
        tokens: (b, n) int64, at least one token a text, then padding.
        label: (b,) int64, the number of the class; -1 where unknown.
        row: (b,) int64, 0-based row among the texts of the same part.
    """

    tokens: Tensor
    label: Tensor
    row: Tensor

    @property
    def counts(self) -> dict[str, Any]:
        """How many texts and tokens this is."""
        return {"texts": len(self.tokens), "tokens": (self.tokens != 0).sum()}


class TextClassificationData(DataModule):
    """Texts and their classes, split, cut into tokens, and served in batches of similar length.

    The texts are a data set known by name, or an own file. Official splits are kept; where there is none, rows are
    dealt out by class with the seed. The vocabulary is learned on training texts alone. It travels in the checkpoint
    with the classes: testing on ``test_path`` and predicting need no training texts.

    Texts for validation and testing that are in training, too, are counted in a warning; so are texts that are cut
    at ``max_length``, and texts without any token, which are read as one unknown token.

    Args:
        name: A known data set: ``languages`` (which of 24 languages is this?) ships with the package; others, such as
            ``trec``, ``sst2`` or ``mr``, are looked for under ``root`` and else downloaded. ``python -m ika_lightning
            datasets`` lists all.
        path: An own ``.tsv``, ``.csv`` or ``.jsonl`` (``.gz`` too), instead of ``name``.
        label: The column of labels in own files: its name, or its position, from 1, if there is no header. By default
            one with a usual name, such as ``label`` or ``class``, or the first of a file without a header.
        text: The column of texts; by default one with a usual name, such as ``text`` or ``review``, or the second.
        separator: What separates cells of own files, one character; ``"auto"`` looks for it, and says what it found.
            None is a comma in a ``.csv`` and a tab in a ``.tsv``.
        val_path: An own file for validation; then no rows are held out for it.
        test_path: An own file for testing; then no rows are held out for it.
        predict_path: New texts, one a line, or the column of texts of a ``.csv``, ``.tsv`` or ``.jsonl``; ``-`` for
            standard input.
        val_fraction: Share of the rows of the training file for validation, of each class, at least one row. 0 for
            none.
        test_fraction: Share of the rows for testing, in the same way.
        fold: Test on this one of the ``folds`` equal parts instead of on ``test_fraction``, from 0.
        folds: How many parts there are for ``fold``.
        unit: A vocabulary of whole words (``"word"``) or of parts of words (``"subword"``).
        vocab_size: Most tokens in the vocabulary.
        min_count: How often a token has to occur in training to be in the vocabulary.
        lowercase: Fold case.
        max_length: Most tokens of a text; what comes after is cut off.
        batch_size: Texts in a batch.
        root: Folder of the benchmarks; by default ``IKA_DATA``, else the user's cache folder.
        seed: Seed of splits and batches, 0 or more.

    Raises:
        ValueError: If the arguments contradict one another.

    Example:
        >>> data = TextClassificationData("languages", unit="subword", vocab_size=1000)
        >>> data.setup("fit")
        >>> len(data.classes), data.vocab_size
        (24, 1000)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.tokens.shape == (64, batch.tokens.size(1)), tuple(batch.label.shape)
        (True, (64,))
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        path: str | None = None,
        label: Column | None = None,
        text: Column | None = None,
        separator: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        predict_path: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        fold: int | None = None,
        folds: int = 10,
        unit: Literal["word", "subword"] = "word",
        vocab_size: int = 30_000,
        min_count: int = 1,
        lowercase: bool = True,
        max_length: int = 256,
        batch_size: int = 64,
        root: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        path, val_path, test_path, predict_path, root = plain(path, val_path, test_path, predict_path, root)
        self.save_hyperparameters()
        self.name, self.path, self.root = name, path, root
        self.columns, self.separator = (label, text), separator
        self.val_path, self.test_path, self.predict_path = val_path, test_path, predict_path
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.fold, self.folds = fold, folds
        self.unit: Literal["word", "subword"] = unit
        self.max_size, self.min_count, self.lowercase = vocab_size, min_count, lowercase
        self.max_length, self.batch_size, self.seed = max_length, batch_size, seed
        self.dataset: TextSet | None = None if name is None else find_dataset(name, TextSet, "--data.path FILE")
        self._check_arguments()

        self._drawn: dict[str, np.ndarray] = {}
        self._tokenizer: Tokenizer | None = None
        self._classes: list[str] = []
        self._parts: dict[str, Labelled] = {}  # "train", "val", "test", as far as they are read
        self._predict_texts: list[str] | None = None
        self._encoded: dict[str, _Texts] = {}

    # --- What Lightning calls -----------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read and check the files that a stage needs; split, and learn the vocabulary if there is none yet.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None for all that there are files for.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If a file does not fit, a stage lacks its file, or there are too few rows.
        """
        # When a checkpoint is given, Lightning loads the vocabulary after this: so texts are encoded by the loaders.
        if stage == "predict" or (stage is None and self.predict_path is not None):
            self._predict_texts = self._read_predict_texts()
        if stage == "test" and self.test_path is not None:
            self._parts["test"] = self._read_own(self.test_path)
        elif stage != "predict" and (stage is not None or self.name or self.path):
            self._setup_parts()

    def train_dataloader(self) -> Loader[TextBatch]:
        """Batches of training texts of similar length, drawn anew each epoch."""
        return self._loader(self._part("train"), shuffle=True)

    def val_dataloader(self) -> Loader[TextBatch] | list[Loader[TextBatch]]:
        """Validation texts, from short to long; no loader if there are none, and Lightning warns of that."""
        return self._loader(self._part("val")) if "val" in self._parts else []

    def test_dataloader(self) -> Loader[TextBatch]:
        """Test texts, from short to long.

        Raises:
            ValueError: If there are none.
        """
        if "test" not in self._parts:
            raise ValueError(
                f"there are no test texts, as test_fraction={self.test_fraction}; give a file with --data.test_path, "
                "or train with --data.test_fraction 0.1"
            )
        return self._loader(self._part("test"))

    def predict_dataloader(self) -> Loader[TextBatch]:
        """The texts of ``predict_path``, from short to long, without labels.

        Raises:
            ValueError: If no vocabulary is loaded.
        """
        return self._loader(self._texts_to_predict())

    def learned(self) -> dict[str, Any]:
        """The vocabulary and the classes."""
        if self._tokenizer is None:
            return {}
        return {"tokenizer": self._tokenizer.state(), "classes": self.classes, "max_length": self.max_length}

    def adopt(self, learned: dict[str, Any]) -> None:
        """Take vocabulary and classes of a checkpoint."""
        self._tokenizer = Tokenizer(learned["tokenizer"])
        self._classes, self.max_length = learned["classes"], learned["max_length"]
        self._encoded = {}

    @property
    def drawn(self) -> dict[str, np.ndarray]:
        """The rows of the parts that were held out, and of training if there are such parts."""
        return self._drawn

    @property
    def fingerprints(self) -> dict[str, str]:
        """A SHA-256 of the labels and texts of each part that was read."""
        return {part: fingerprint(rows.labels, rows.texts) for part, rows in self._parts.items()}

    # --- What the model asks ------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary.

        Raises:
            ValueError: If it is neither learned nor loaded yet.
        """
        if self._tokenizer is None:
            raise ValueError(
                "the vocabulary of the training texts is not known: this needs a checkpoint (--ckpt_path FILE), or "
                "training first (setup('fit') in Python)"
            )
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, with those for padding and the unknown."""
        return len(self.tokenizer)

    @property
    def classes(self) -> list[str]:
        """The classes, in the order of their numbers."""
        return list(self._classes)

    @property
    def class_counts(self) -> Tensor:
        """Training texts of each class, (c,) int64."""
        return torch.bincount(self._part("train").labels, minlength=len(self._classes))

    @property
    def has_training_texts(self) -> bool:
        """Whether the training texts are read and their vocabulary is known."""
        return "train" in self._parts and self._tokenizer is not None

    def render(self, predictions: Tensor, path: str | Path) -> bytes:
        """The texts of ``predict_path`` with their classes.

        Args:
            predictions: (r, c) probabilities, in the order of :meth:`predict_dataloader`.
            path: The file. Its columns are ``row`` (from 1), ``text``, ``predicted_label`` and
                ``probability_<class>`` for each class.

        Raises:
            ValueError: If there is not a probability for each text and class.
        """
        texts, sampler = self._predict_texts or [], self._sampler(self._texts_to_predict())
        if predictions.shape != (len(texts), len(self._classes)):
            raise ValueError(
                f"predictions must have shape {(len(texts), len(self._classes))}, a row for each text and a column for "
                f"each class, got {tuple(predictions.shape)}"
            )
        in_order = torch.empty_like(predictions)
        in_order[torch.cat(list(sampler))] = predictions
        columns: dict[str, list[Any]] = {
            "row": [*range(1, len(texts) + 1)],
            "text": texts,
            "predicted_label": [self._classes[number] for number in in_order.argmax(1).tolist()],
        }
        for number, name in enumerate(self._classes):
            columns[f"probability_{name}"] = to_numbers(in_order[:, number])
        return pack(columns, path)

    # --- How it is done -----------------------------------------------------------------------------------------------

    def _check_arguments(self) -> None:
        check_source(TextSet, "--data.path FILE", self.name, self.path, self.test_path, self.predict_path)
        check_fractions(self.val_fraction, self.test_fraction)
        check_least(
            folds=(self.folds, 2),
            max_length=(self.max_length, 1),
            min_count=(self.min_count, 1),
            batch_size=(self.batch_size, 1),
            seed=(self.seed, 0),
        )
        if self.fold is not None:
            if not 0 <= self.fold < self.folds:
                raise ValueError(f"fold must be 0 to {self.folds - 1}, one of folds={self.folds}, got {self.fold}")
            if self.test_path or (self.dataset and "test" in self.dataset.files):
                raise ValueError(
                    "fold says which rows are for testing, but there is a test file; leave out one of them"
                )

    def _setup_parts(self) -> None:
        """Read, split and check all labelled texts."""
        if "train" not in self._parts:
            self._parts = self._read_parts()
            self._warn_of_duplicates()
        if self._tokenizer is None:
            self._classes = _in_order(set(self._parts["train"].labels))
            self._tokenizer = Tokenizer.learn(
                self._parts["train"].texts,
                unit=self.unit,
                size=self.max_size,
                min_count=self.min_count,
                lowercase=self.lowercase,
            )

    def _read_parts(self) -> dict[str, Labelled]:
        parts: dict[str, Labelled | None]
        if self.dataset is not None:
            parts = {part: self.dataset.read(part, self.root) for part in splits.PARTS}
        elif self.path is not None:
            parts = {"train": self._read_own(self.path), "val": None, "test": None}
        else:
            raise ValueError(
                "there are no texts to split; give --data.name, or --data.path FILE (--data.test_path FILE is enough "
                "to test a checkpoint)"
            )
        whole = parts["train"]
        assert whole is not None
        classes = _in_order(set(whole.labels))
        for part, path in (("val", self.val_path), ("test", self.test_path)):
            if path is not None:
                parts[part] = self._read_own(path, classes)

        if len(classes) < 2:
            raise ValueError(f"{whole.source} has one class only, {classes[0]!r}; a classifier needs two or more")
        labels = np.array([classes.index(label) for label in whole.labels])
        rows = np.arange(len(labels))
        held_out: dict[str, np.ndarray] = {}
        if self.fold is not None:
            held_out["test"] = splits.fold_of(labels, self.fold, self.folds, self.seed)
        elif parts["test"] is None and self.test_fraction:
            held_out["test"] = splits.hold_out(labels, rows, splits.share_of(self.test_fraction, len(rows)), self.seed)
        rows = np.setdiff1d(rows, held_out.get("test", []))
        if parts["val"] is None and self.val_fraction:
            held_out["val"] = splits.hold_out(labels, rows, splits.share_of(self.val_fraction, len(labels)), self.seed)
        rows = np.setdiff1d(rows, held_out.get("val", []))
        if not all(map(len, held_out.values())):
            raise ValueError(
                f"{whole.source} has {len(labels)} rows of {len(classes)} classes, too few to hold out any of them; "
                "give more, or files of their own with --data.val_path and --data.test_path; if labels and texts were "
                "taken for one another, give --data.label and --data.text"
            )
        self._drawn = {**held_out, "train": rows} if held_out else {}
        parts["train"] = whole.take(rows.tolist())
        parts |= {part: whole.take(chosen.tolist()) for part, chosen in held_out.items()}
        return {part: rows for part, rows in parts.items() if rows is not None}

    def _read_own(self, path: str, known: Collection[str] = ()) -> Labelled:
        rows = read_labelled(path, *self.columns, self.separator, known)
        say(rows.summary)
        if markers := sorted(set(rows.labels) & MISSING):
            say(f"{path}: the label {markers[0]!r} is read as a class; leave out rows without a label")
        return rows

    def _warn_of_duplicates(self) -> None:
        known = set(self._parts["train"].texts)
        for part in ("val", "test"):
            rows = self._parts.get(part)
            if rows and (count := sum(text in known for text in rows.texts)):
                warnings.warn(
                    f"{count} of the {len(rows.texts)} {part} texts ({rows.source}) are also in training; "
                    "figures measured on them flatter the model",
                    stacklevel=2,
                )

    def _read_predict_texts(self) -> list[str]:
        if self._predict_texts is not None:  # standard input can be read once
            return self._predict_texts
        if self.predict_path is None:
            raise ValueError(
                "there is nothing to predict; give a file with a text in each line with --input FILE (predict_path in "
                "Python)"
            )
        return read_texts(self.predict_path, self.columns[1], self.separator)

    def _part(self, part: str) -> _Texts:
        self.check_drawn(part)
        if part not in self._encoded:
            if part not in self._parts:
                raise ValueError(f"the texts for {part} are not read yet; call setup('fit') first")
            rows = self._parts[part]
            tokens = self._encode(rows.texts, f"{part} texts")
            number = {name: number for number, name in enumerate(self._classes)}
            for line, label in zip(rows.lines, rows.labels, strict=True):
                if label not in number:
                    raise ValueError(
                        f"{rows.source}, line {line}: the label {label!r} was never seen in training, where there are "
                        f"{quoted(self._classes)}; correct it, or train with texts of that label"
                    )
            self._encoded[part] = _Texts(tokens, torch.tensor([number[label] for label in rows.labels]))
        return self._encoded[part]

    def _texts_to_predict(self) -> _Texts:
        if self._predict_texts is None:
            raise ValueError("the texts to predict are not read yet; call setup('predict') first")
        if "predict" not in self._encoded:
            tokens = self._encode(self._predict_texts, "texts to predict")
            self._encoded["predict"] = _Texts(tokens, torch.full((len(tokens),), -1))
        return self._encoded["predict"]

    def _encode(self, texts: list[str], what: str) -> list[list[int]]:
        encoded = self.tokenizer.encode(texts)
        if empty := sum(not tokens for tokens in encoded):
            warnings.warn(
                f"{empty} of the {len(encoded)} {what} have no token; each is read as one unknown token", stacklevel=2
            )
        if long := sum(len(tokens) > self.max_length for tokens in encoded):
            warnings.warn(
                f"{long} of the {len(encoded)} {what} have more than {self.max_length} tokens and are cut there; "
                "see --data.max_length",
                stacklevel=2,
            )
        return [tokens[: self.max_length] or [UNKNOWN] for tokens in encoded]

    def _sampler(self, texts: _Texts, shuffle: bool = False) -> LengthSampler:
        lengths = np.array([len(tokens) for tokens in texts.tokens])
        dealt = update_shares(self, training=shuffle)
        return LengthSampler(lengths, batch_size=self.batch_size, shuffle=shuffle, seed=self.seed, **dealt)

    def _loader(self, texts: _Texts, shuffle: bool = False) -> Loader[TextBatch]:
        return Loader(self._sampler(texts, shuffle), partial(_take, texts))


class _Texts(NamedTuple):
    tokens: list[list[int]]
    labels: Tensor


def _take(texts: _Texts, index: Tensor) -> TextBatch:
    return TextBatch(pad([texts.tokens[row] for row in index.tolist()]), texts.labels[index], index)


def _in_order(labels: set[str]) -> list[str]:
    """Sort labels: by value if they are all whole numbers, else as text."""
    return sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)
