"""Labelled texts, for text classification: how they are read, split and encoded."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ika_lightning.data import splits
from ika_lightning.data.cells import class_columns, pack
from ika_lightning.data.checks import check_fractions, check_least, check_shape
from ika_lightning.data.corpus import Corpus, Found
from ika_lightning.data.datasets import TextSet
from ika_lightning.data.fingerprint import fingerprint
from ika_lightning.data.labelled import Column, Labelled, read_labelled, read_texts
from ika_lightning.data.loader import LengthSampler, pad
from ika_lightning.data.messages import none_held_out, quoted, say
from ika_lightning.data.numbers import MISSING
from ika_lightning.data.tokenizer import HOW_TO_TOKENIZE, PADDING, UNKNOWN, Tokenizer
from ika_lightning.hub import read_tokenizer

__all__ = ["TextBatch", "TextCorpus", "TextEncoder", "Tokens"]


class TextBatch(NamedTuple):
    """Texts as tokens, b of them, padded to the longest, of n tokens.

    Args:
        tokens: (b, n) int64, at least one token a text, then padding.
        label: (b,) int64, the number of the class; -1 where unknown.
        row: (b,) int64, 0-based row among the texts of the same part.
        padding: The token that they are padded with.

    Example:
        >>> TextBatch(torch.tensor([[5, 6], [7, 0]]), torch.tensor([1, -1]), torch.tensor([0, 1])).counts
        {'texts': 2, 'tokens': tensor(3)}
    """

    tokens: Tensor
    label: Tensor
    row: Tensor
    padding: int = PADDING

    @property
    def counts(self) -> dict[str, Any]:
        """How many texts and tokens this is."""
        return {"texts": len(self.tokens), "tokens": (self.tokens != self.padding).sum()}


class Tokens(NamedTuple):
    """Texts as tokens.

    Args:
        tokens: Those of each text, one at least.
        labels: (r,) int64, the number of the class of each; -1 where unknown.
        padding: The token that batches are padded with.
    """

    tokens: list[list[int]]
    labels: Tensor
    padding: int = PADDING

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens each text has, (r,)."""
        return np.array([len(tokens) for tokens in self.tokens])

    def take(self, index: Tensor) -> TextBatch:
        """A batch of some of the texts.

        Args:
            index: Which, (b,) int64.
        """
        tokens = pad([self.tokens[row] for row in index.tolist()], self.padding)
        return TextBatch(tokens, self.labels[index], index, self.padding)


@dataclass(frozen=True)
class TextEncoder:
    """What texts and labels are encoded by.

    Args:
        tokenizer: The vocabulary.
        classes: The classes, in the order of their numbers.
        max_length: Most tokens of a text, with those that the tokenizer puts around it; what comes after is cut off.

    Raises:
        ValueError: If max_length leaves no room for the text.
    """

    tokenizer: Tokenizer
    classes: list[str]
    max_length: int

    def __post_init__(self) -> None:
        if self.room < 1:
            around = len(self.tokenizer.first) + len(self.tokenizer.last)
            raise ValueError(
                f"max_length={self.max_length} leaves no room for a text between the {around} tokens that its "
                f"tokenizer puts around it; give --data.max_length {around + 1} or more"
            )

    @property
    def room(self) -> int:
        """Most tokens of a text without those around it."""
        return self.max_length - len(self.tokenizer.first) - len(self.tokenizer.last)

    def encode(self, texts: Sequence[str], what: str) -> list[list[int]]:
        """The tokens of texts, one at least; a warning counts those that are cut, and those without any.

        Args:
            texts: The texts.
            what: What the warning calls them.
        """
        encoded, first, last = self.tokenizer.encode(texts), self.tokenizer.first, self.tokenizer.last
        if empty := sum(not tokens for tokens in encoded):
            read_as = "the special tokens around it" if first or last else "one unknown token"
            warnings.warn(
                f"{empty} of the {len(encoded)} {what} have no token; each is read as {read_as}", stacklevel=2
            )
        if long := sum(len(tokens) > self.room for tokens in encoded):
            warnings.warn(
                f"{long} of the {len(encoded)} {what} have more than {self.max_length} tokens and are cut there; "
                "see --data.max_length",
                stacklevel=2,
            )
        return [[*first, *tokens[: self.room], *last] or [UNKNOWN] for tokens in encoded]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"tokenizer": self.tokenizer.state(), "classes": self.classes, "max_length": self.max_length}

    def describe(self) -> dict[str, Any]:
        """How texts are encoded, for a reader who has nothing else."""
        return {
            "how": [
                HOW_TO_TOKENIZE,
                "Put the ids of 'first' before those of a text and the ids of 'last' after them, and cut the text, so "
                "that all are max_length at most; a text that is then without any is the id of 'empty' alone.",
                "Fill up shorter texts of a batch at their ends, with the id of padding.",
            ],
            "tokenizer": self.tokenizer.describe(),
            "ids": {
                "padding": self.tokenizer.padding,
                "first": self.tokenizer.first,
                "last": self.tokenizer.last,
                "empty": UNKNOWN,
            },
            "max_length": self.max_length,
            "classes": self.classes,
        }

    def number(self, rows: Labelled) -> Tensor:
        """The number of the class of each row, (r,) int64.

        Args:
            rows: The rows.

        Raises:
            ValueError: If a class was not there in training; the message names the line.
        """
        number = {name: number for number, name in enumerate(self.classes)}
        for line, label in zip(rows.lines, rows.labels, strict=True):
            if label not in number:
                raise ValueError(
                    f"{rows.source}, line {line}: the label {label!r} was never seen in training, where there are "
                    f"{quoted(self.classes)}; correct it, or train with texts of that label"
                )
        return torch.tensor([number[label] for label in rows.labels])


@dataclass(frozen=True, kw_only=True)
class TextCorpus(Corpus[Labelled, TextEncoder, Tokens]):
    """Labelled texts that are split by rows, of each class its share, and others in files of their own.

    Args:
        dataset: The data set that is known by name, if it is one.
        columns: Those of labels and texts in own files; see :func:`~ika_lightning.data.labelled.read_labelled`.
        files: Own files for ``"val"`` and ``"test"``.

    All others are those of :class:`~ika_lightning.data.TextClassificationData`.

    Raises:
        ValueError: If the arguments contradict one another.
    """

    nothing_new = "there is nothing to predict; give a file with a text in each line"
    unknown = "the vocabulary of the training texts is"
    no_source = (
        "there are no texts to split; give --data.name, or --data.path FILE (--data.test_path FILE is enough to test a "
        "checkpoint)"
    )
    learns_in = ("fit", "validate", "test", None)

    dataset: TextSet | None = None
    columns: tuple[Column | None, Column | None] = (None, None)
    separator: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    fold: int | None = None
    folds: int = 10
    pretrained: str | None = None
    unit: Literal["word", "subword"] = "word"
    vocab_size: int = 30_000
    min_count: int = 1
    lowercase: bool = True
    max_length: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_fractions(self.val_fraction, self.test_fraction)
        check_least(
            folds=(self.folds, 2), max_length=(self.max_length, 1), min_count=(self.min_count, 1), seed=(self.seed, 0)
        )
        if self.fold is None:
            return
        if not 0 <= self.fold < self.folds:
            raise ValueError(f"fold must be 0 to {self.folds - 1}, one of folds={self.folds}, got {self.fold}")
        if "test" in self.files or (self.dataset is not None and "test" in self.dataset.files):
            raise ValueError("fold says which rows are for testing, but there is a test file; leave out one of them")

    @property
    def no_test(self) -> str:
        """Says that no texts are held out."""
        return none_held_out("texts", self.test_fraction)

    def read(self, stage: str | None, known: Collection[str], learned: TextEncoder | None) -> Found[Labelled]:
        """Read and split the texts, once for all stages, and count those of training that are elsewhere, too."""
        if "train" in known:
            return Found({}, {})
        if self.dataset is None:
            whole, given = self.read_labelled(str(self.path)), {}
        else:
            official = {part: self.dataset.read(part, self.root) for part in splits.PARTS}
            given = {part: rows for part, rows in official.items() if rows is not None}
            whole = given.pop("train")
        given |= {part: self.read_labelled(path, in_order(whole.labels)) for part, path in self.files.items()}
        numbers = self._deal(whole, given)
        parts = given | {part: whole.take(chosen.tolist()) for part, chosen in numbers.items()}
        _warn_of_duplicates(parts)
        return Found(parts, numbers if len(numbers) > 1 else {})

    def _deal(self, rows: Labelled, given: Collection[str]) -> dict[str, np.ndarray]:
        """Deal out rows, 0-based, to training, and to those other parts that are not given."""
        classes = in_order(rows.labels)
        if len(classes) < 2:
            raise ValueError(f"{rows.source} has one class only, {classes[0]!r}; a classifier needs two or more")
        labels = np.array([classes.index(label) for label in rows.labels])
        left = np.arange(len(labels))
        held_out: dict[str, np.ndarray] = {}
        if self.fold is not None:
            held_out["test"] = splits.fold_of(labels, self.fold, self.folds, self.seed)
            left = np.setdiff1d(left, held_out["test"])
        for part, fraction in (("test", self.test_fraction), ("val", self.val_fraction)):
            if part not in (*given, *held_out) and fraction:
                size = splits.share_of(fraction, len(labels))
                held_out[part] = splits.hold_out(labels, left, size, self.seed)
                left = np.setdiff1d(left, held_out[part])
        if not all(map(len, held_out.values())):
            raise ValueError(
                f"{rows.source} has {len(labels)} rows of {len(classes)} classes, too few to hold out any of them; "
                "give more, or files of their own with --data.val_path and --data.test_path; if labels and texts were "
                "taken for one another, give --data.label and --data.text"
            )
        return {**held_out, "train": left}

    def read_labelled(self, path: str, classes: Collection[str] = ()) -> Labelled:
        """Read an own file of labelled texts, and say how it was read.

        Args:
            path: The file.
            classes: Labels that there are.
        """
        rows = read_labelled(path, *self.columns, self.separator, classes)
        say(rows.summary)
        if markers := sorted(set(rows.labels) & MISSING):
            say(f"{path}: the label {markers[0]!r} is read as a class; leave out rows without a label")
        return rows

    def read_own(self, part: str, path: str, learned: TextEncoder | None) -> Labelled:
        """Read labelled texts to test on, or texts without labels to predict."""
        known = learned.classes if learned else ()
        if part == "predict":
            return Labelled([], read_texts(path, self.columns[1], self.separator, known), [], path)
        return self.read_labelled(path, known)

    def learn(self, train: Labelled) -> TextEncoder:
        """Learn vocabulary and classes, or classes alone, where a pretrained encoder has a vocabulary."""
        if self.pretrained is not None:
            tokenizer = Tokenizer(read_tokenizer(self.pretrained))
        else:
            tokenizer = Tokenizer.learn(
                train.texts, unit=self.unit, size=self.vocab_size, min_count=self.min_count, lowercase=self.lowercase
            )
        return TextEncoder(tokenizer, in_order(train.labels), self.max_length)

    def restore(self, state: dict[str, Any]) -> TextEncoder:
        """Vocabulary, classes and greatest length of a checkpoint."""
        return TextEncoder(Tokenizer(state["tokenizer"]), state["classes"], state["max_length"])

    def encode(self, part: str, found: Labelled, learned: TextEncoder) -> Tokens:
        """Encode texts and their labels, if they have any.

        Raises:
            ValueError: If a class was not there in training.
        """
        known = part != "predict"
        tokens = learned.encode(found.texts, f"{part} texts" if known else "texts to predict")
        labels = learned.number(found) if known else torch.full((len(found.texts),), -1)
        return Tokens(tokens, labels, learned.tokenizer.padding)

    def fingerprints(self, parts: Mapping[str, Labelled]) -> dict[str, str]:
        """Those of labels and texts of each part."""
        return {part: fingerprint(rows.labels, rows.texts) for part, rows in parts.items()}

    def render(
        self, new: Labelled, encoded: Tokens, learned: TextEncoder, predictions: Tensor, path: str | Path
    ) -> bytes:
        """The texts with their classes: ``row`` (from 1), ``text``, ``predicted_label``, ``probability_<class>``.

        Predictions are (r, c) probabilities, from short texts to long ones.
        """
        shape = len(new.texts), len(learned.classes)
        check_shape(predictions, shape, "one row per text and one column per class")
        in_order = torch.empty_like(predictions)
        in_order[torch.cat(list(LengthSampler(encoded.lengths, batch_size=len(new.texts), shuffle=False)))] = (
            predictions
        )
        columns = {"row": [*range(1, len(new.texts) + 1)], "text": new.texts}
        return pack(columns | class_columns("predicted_label", learned.classes, in_order), path)


def in_order(labels: Collection[str]) -> list[str]:
    """The classes among labels, sorted by value if they are all whole numbers, else as text."""
    classes = set(labels)
    return sorted(classes, key=int) if all(label.isdecimal() for label in classes) else sorted(classes)


def _warn_of_duplicates(parts: Mapping[str, Labelled]) -> None:
    known = set(parts["train"].texts)
    for part in ("val", "test"):
        rows = parts.get(part)
        if rows and (count := sum(text in known for text in rows.texts)):
            warnings.warn(
                f"{count} of the {len(rows.texts)} {part} texts ({rows.source}) are also in training; "
                "figures measured on them flatter the model",
                stacklevel=2,
            )
