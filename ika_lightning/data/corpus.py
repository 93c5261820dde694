"""The data of a task without Lightning: how it is read, split, learned from, encoded and written."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from ika_lightning.data.datasets import DataSet

__all__ = ["Corpus", "Found", "Learned"]


class Learned(Protocol):
    """What is learned on training data, and encodes all parts."""

    def state(self) -> dict[str, Any]:
        """All of it, as strings, numbers, lists and dicts, for a checkpoint."""

    def describe(self) -> dict[str, Any]:
        """How raw data is encoded, in the same types and in words, for a reader who has nothing else."""


Part = TypeVar("Part")
Encoder = TypeVar("Encoder", bound=Learned)
Encoded = TypeVar("Encoded")


class Found(NamedTuple, Generic[Part]):
    """What was read for a stage.

    Args:
        parts: What is in each of ``"train"``, ``"val"`` and ``"test"``, as far as there is anything.
        drawn: The rows of those parts that were drawn at random, and not given.
    """

    parts: Mapping[str, Part]
    drawn: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Corpus(ABC, Generic[Part, Encoder, Encoded]):
    """Where the data of a task is, and what is done with it.

    A part is what was read of ``"train"``, ``"val"``, ``"test"`` or ``"predict"``. What is learned on that for training
    travels in checkpoints, and encodes all of them.

    Args:
        dataset: The data set that is known by name, if it is one.
        path: An own file for training, if it is one.
        root: Folder of the data sets.
    """

    nothing_new: ClassVar[str] = "there is nothing to predict; give the new rows"
    """Says that there is nothing to predict, and what to give."""
    unknown: ClassVar[str]
    """What is learned in training, and a verb."""
    no_source: ClassVar[str]
    """Says that there is nothing to train on, and what to give."""
    learns_in: ClassVar[Collection[str | None]] = ("fit", None)
    """The stages that learn on what is there for training, if no checkpoint is loaded yet."""
    is_read_by_learned: ClassVar[bool] = False
    """Whether what was learned says how files are read, which are so read anew for a checkpoint."""

    dataset: DataSet | None = None
    path: str | None = None
    root: str | None = None

    @property
    def source(self) -> str:
        """What errors call the data for training."""
        return self.path or f"data set {self.dataset.name if self.dataset else None!r}"

    @property
    def has_source(self) -> bool:
        """Whether there is data for training."""
        return self.dataset is not None or self.path is not None

    @property
    @abstractmethod
    def no_test(self) -> str:
        """Says that there is nothing to test on, and what to give."""

    @abstractmethod
    def read(self, stage: str | None, known: Collection[str], learned: Encoder | None) -> Found[Part]:
        """Read the data set or own file, and split it.

        Args:
            stage: For which stage of Lightning; None for all that there is.
            known: The parts that are read already, and need not be read again.
            learned: What was learned, if it is known yet.
        """

    @abstractmethod
    def read_own(self, part: str, path: str, learned: Encoder | None) -> Part:
        """Read an own file to test on, or to predict.

        Args:
            part: ``"test"`` or ``"predict"``.
            path: The file.
            learned: What was learned, if it is known yet.
        """

    def check_training(self, train: Part) -> None:
        """Check that a model can be trained on what is there, besides what reading and learning check."""

    @abstractmethod
    def learn(self, train: Part) -> Encoder:
        """Learn on what is there for training."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> Encoder:
        """What was learned, out of a checkpoint."""

    @abstractmethod
    def encode(self, part: str, found: Part, learned: Encoder) -> Encoded:
        """Turn a part into numbers."""

    @abstractmethod
    def fingerprints(self, parts: Mapping[str, Part]) -> dict[str, str]:
        """A SHA-256 of each thing that was read, by which runs and processes know the same data."""

    @abstractmethod
    def render(self, new: Part, encoded: Encoded, learned: Encoder, predictions: Any, path: str | Path) -> bytes:
        """Predictions as the content of a file.

        Args:
            new: What is predicted.
            encoded: The same as numbers.
            learned: What it was encoded by.
            predictions: The predictions, in the order in which it is served.
            path: The file, whose name says the format.

        Raises:
            ValueError: If there is not a prediction for each row.
        """
