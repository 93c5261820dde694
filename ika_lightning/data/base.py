"""What all data modules share: the life cycle from files to batches, checkpoints, and predictions."""

import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.plugins import DoublePrecision

from ika_lightning.data.cells import check_format
from ika_lightning.data.corpus import Corpus, Learned
from ika_lightning.data.fingerprint import fingerprint
from ika_lightning.data.loader import Loader
from ika_lightning.output import write_output
from ika_lightning.trust import FromCheckpoint

__all__ = ["DataModule", "one_or_several", "plain"]

Part = TypeVar("Part")
Encoder = TypeVar("Encoder", bound=Learned)
Encoded = TypeVar("Encoded")
Batch = TypeVar("Batch")

# The stage in which Lightning asks for the batches of a part.
_STAGES = {"train": "fit", "val": "validate", "test": "test", "predict": "predict"}


def plain(*files: str | Path | None) -> tuple[str | None, ...]:
    """Paths as strings: a checkpoint with others in it would not load with ``weights_only=True``.

    Args:
        *files: The paths.

    Example:
        >>> plain(Path("a.csv"), None)
        ('a.csv', None)
    """
    return tuple(None if file is None else os.fspath(file) for file in files)


def one_or_several(texts: Sequence[str] | None) -> list[str] | None:
    """A list of texts, of one that is given without brackets too; None stays.

    Args:
        texts: The texts, or the one.

    Example:
        >>> one_or_several("name"), one_or_several(["name", "date"]), one_or_several(None)
        (['name'], ['name', 'date'], None)
    """
    return [texts] if isinstance(texts, str) else None if texts is None else list(texts)


class DataModule(FromCheckpoint, LightningDataModule, Generic[Part, Encoder, Encoded, Batch]):
    """Data of a task: read in ``setup``, encoded by what was learned on training rows, which the checkpoint keeps.

    When a checkpoint is given, Lightning loads it after ``setup``: so nothing is encoded before the loaders.

    Attributes:
        corpus: Where the data is, and how it is read, split, learned from and encoded.
        test_path: An own file for testing.
        predict_path: New data.
        drawn: The rows of those parts that were drawn at random, and not given.
    """

    corpus: Corpus[Part, Encoder, Encoded]
    test_path: str | None = None
    predict_path: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[str, np.ndarray] = {}
        self._parts: dict[str, Part] = {}  # "train", "val", "test" and "predict", as far as they are read
        self._encoded: dict[str, Encoded] = {}
        self._learned: Encoder | None = None
        # what a loaded checkpoint says of the rows that its training drew
        self._loaded: Mapping[str, str] | None = None
        self._is_loaded = False

    # --- What a subclass says -----------------------------------------------------------------------------------------

    @abstractmethod
    def loader(self, part: str) -> Loader[Batch]:
        """Make the batches of a part, out of what :meth:`encoded` gives."""

    # --- What Lightning calls -----------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Download a data set, once per machine."""
        # With own data to test or predict, a checkpoint is enough, and the data set may be out of reach.
        if self.corpus.dataset is not None and self.test_path is None and self.predict_path is None:
            self.corpus.dataset.fetch_all(self.corpus.root)

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the files that a stage needs; learn on training data if nothing is learned yet.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None for all that there are files for.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If a file does not fit, a stage lacks its file, or there are too few rows.
        """
        tests_source = stage == "test" and self.test_path is None
        if stage in ("fit", "validate") or tests_source or (stage is None and self.corpus.has_source):
            self.read(stage)
        if self.test_path is not None and (stage == "test" or (stage is None and "test" not in self._parts)):
            self.keep("test", self.corpus.read_own("test", self.test_path, self._learned))
        if stage == "test" and "test" not in self._parts:
            raise ValueError(self.corpus.no_test)
        if stage in self.corpus.learns_in and "train" in self._parts:
            self.corpus.check_training(self._parts["train"])
            if self._learned is None:
                self._learned = self.corpus.learn(self._parts["train"])
        if stage == "predict" or (stage is None and self.predict_path is not None):
            self.setup_new()

    def setup_new(self) -> None:
        """Read the data to predict."""
        if self.predict_path is None:
            raise ValueError(f"{self.corpus.nothing_new} with --input FILE (predict_path in Python)")
        # standard input can be read once only
        if self.predict_path != "-" or "predict" not in self._parts:
            self.keep("predict", self.corpus.read_own("predict", self.predict_path, self._learned))

    def train_dataloader(self) -> Loader[Batch]:
        """Batches of training data, drawn anew each epoch."""
        return self._serve("train")

    def val_dataloader(self) -> Loader[Batch] | list[Loader[Batch]]:
        """Batches of validation data; no loader if there is none, and Lightning warns of that."""
        if "val" not in self._parts:
            self.setup("validate")
        return self._serve("val") if "val" in self._parts else []

    def test_dataloader(self) -> Loader[Batch]:
        """Batches of test data.

        Raises:
            ValueError: If there is none.
        """
        return self._serve("test")

    def predict_dataloader(self) -> Loader[Batch]:
        """Batches of new data, without what is to be predicted.

        Raises:
            ValueError: If there is none, or nothing is learned or loaded.
        """
        return self._serve("predict")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Batches are in single precision, and in double where that is PyTorch's default, as networks are then, too.

        Args:
            batch: A batch of this data.
            dataloader_idx: Not looked at.
        """
        return DoublePrecision().convert_input(batch) if torch.get_default_dtype() == torch.float64 else batch

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps: what was learned, and a fingerprint of the rows of each part that was drawn.

        Returns:
            Strings, numbers, lists and dicts; empty before something was learned.
        """
        if self._learned is None:
            return {}
        drawn = {part: fingerprint(rows) for part, rows in self.drawn.items()}
        return {**self._learned.state(), **({"drawn": drawn} if drawn else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take from a checkpoint what was learned.

        Args:
            state_dict: What :meth:`state_dict` gave.
        """
        state = dict(state_dict)
        self._loaded, self._is_loaded = state.pop("drawn", None), True
        self._learned = self.corpus.restore(state)
        self._encoded = {}
        if self.corpus.is_read_by_learned:
            self._parts = {}

    # --- What tasks and callbacks ask ---------------------------------------------------------------------------------

    @property
    def path(self) -> str | None:
        """The own file for training, if it is one."""
        return self.corpus.path

    @property
    def is_fitted(self) -> bool:
        """Whether something is learned, here or by a checkpoint."""
        return self._learned is not None

    @property
    def has_training_data(self) -> bool:
        """Whether training data is read, and what is learned on it is known."""
        return "train" in self._parts and self.is_fitted

    @property
    def fingerprints(self) -> dict[str, str]:
        """A SHA-256 of each thing that was read to train or to test on."""
        return self.corpus.fingerprints({part: found for part, found in self._parts.items() if part != "predict"})

    def write_predictions(self, path: str | Path, predictions: Any) -> None:
        """Write the predictions for ``predict_path``, in the order of its rows.

        Args:
            path: Where to: whole or not at all. ``-`` is standard output; ``.gz`` is compressed.
            predictions: Those of all batches of :meth:`predict_dataloader`, one after another.

        Raises:
            ValueError: If there is not a prediction for each row.
            OSError: If the file cannot be written; see ``ika_lightning.output.check_output``.
        """
        check_format(path)
        new, encoded = self.part("predict"), self.encoded("predict")
        write_output(path, self.corpus.render(new, encoded, self.learned, predictions, path))

    # --- What a subclass asks -----------------------------------------------------------------------------------------

    def read(self, stage: str | None) -> None:
        """Read the data set or own file, as far as a stage needs it and it is not read already."""
        if not self.corpus.has_source:
            raise ValueError(self.corpus.no_source)
        found = self.corpus.read(stage, self._parts.keys(), self._learned)
        for part, rows in found.parts.items():
            self.keep(part, rows)
        self.drawn |= found.drawn

    def keep(self, part: str, found: Part) -> None:
        """Keep what was read of a part."""
        self._parts[part] = found
        self._encoded.pop(part, None)

    def part(self, part: str) -> Part:
        """What is read of a part, now if not before."""
        if part not in self._parts:
            self.setup(_STAGES[part])
        if part not in self._parts:
            # new data may be read by what was learned
            raise self._not_known()
        return self._parts[part]

    def encoded(self, part: str) -> Encoded:
        """What is read of a part, as numbers.

        Raises:
            ValueError: If it does not fit what was learned.
        """
        if part not in self._encoded:
            # tensors that are made while a model is evaluated could not be trained on later
            with torch.inference_mode(False):
                self._encoded[part] = self.corpus.encode(part, self.part(part), self.learned)
        return self._encoded[part]

    @property
    def learned(self) -> Encoder:
        """What was learned, here or by a checkpoint.

        Raises:
            ValueError: If nothing was.
        """
        if self._learned is None:
            raise self._not_known()
        return self._learned

    # --- How it is done -----------------------------------------------------------------------------------------------

    def _not_known(self) -> ValueError:
        return ValueError(
            f"{self.corpus.unknown} not known: this needs a checkpoint (--ckpt_path FILE), or training first "
            "(setup('fit') in Python)"
        )

    def _serve(self, part: str) -> Loader[Batch]:
        self.part(part)
        self._check_drawn(part)
        return self.loader(part)

    def _check_drawn(self, part: str) -> None:
        """Check that the model of a checkpoint was not trained on other rows than are drawn for it today."""
        rows = self.drawn.get(part)
        if not self._is_loaded or rows is None or not rows.size:
            return
        if self._loaded is None:
            raise ValueError(
                f"the checkpoint does not say which rows it drew for {part} (earlier versions drew others), so these "
                "may have been trained on; give files of their own for validation and testing, or train anew"
            )
        if self._loaded.get(part) != fingerprint(rows):
            warnings.warn(
                f"other rows are drawn for {part} than when the checkpoint was trained (another file, seed or share); "
                "figures measured on rows that were trained on flatter the model",
                stacklevel=4,
            )
