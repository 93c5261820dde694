"""What all data modules share: downloads, checkpoints, the rows that a model was not trained on, and predictions."""

import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule

from ika_lightning.data.cells import check_format
from ika_lightning.data.datasets import DataSet
from ika_lightning.data.fingerprint import fingerprint
from ika_lightning.output import write_output
from ika_lightning.trust import FromCheckpoint

__all__ = ["DataModule", "plain"]


def plain(*files: str | Path | None) -> tuple[str | None, ...]:
    """Paths as strings: a checkpoint with others in it would not load with ``weights_only=True``.

    Args:
        *files: The paths.

    Example:
        >>> plain(Path("a.csv"), None)
        ('a.csv', None)
    """
    return tuple(None if file is None else os.fspath(file) for file in files)


class DataModule(FromCheckpoint, LightningDataModule):
    """Data of a task: read in ``setup``, encoded by what was learned on training rows, which the checkpoint keeps.

    When a checkpoint is given, Lightning loads it after ``setup``: so a subclass encodes in its loaders.

    Attributes:
        dataset: The data set that is known by name, if it is one.
        root: Folder of the data sets.
        predict_path: New data.
        test_path: An own file for testing.
    """

    dataset: DataSet | None = None
    root: str | None = None
    predict_path: str | None = None
    test_path: str | None = None

    # What a loaded checkpoint says of the rows that its training drew.
    _loaded: Mapping[str, str] | None = None
    _is_loaded = False

    # --- What a subclass says -----------------------------------------------------------------------------------------

    @abstractmethod
    def learned(self) -> dict[str, Any]:
        """What was learned on training rows: strings, numbers, lists and dicts; empty before that."""

    @abstractmethod
    def adopt(self, learned: dict[str, Any]) -> None:
        """Take what a checkpoint has learned."""

    @property
    @abstractmethod
    def drawn(self) -> Mapping[str, np.ndarray]:
        """The rows of those parts that were drawn at random, and not given."""

    @abstractmethod
    def render(self, predictions: Any, path: str | Path) -> bytes:
        """Predictions as the content of a file, whose name says the format."""

    # --- What Lightning calls -----------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Download a data set, once per machine."""
        # With own data to test or predict, a checkpoint is enough, and the data set may be out of reach.
        if self.dataset is not None and self.test_path is None and self.predict_path is None:
            self.dataset.fetch_all(self.root)

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps: what was learned, and a fingerprint of the rows of each part that was drawn.

        Returns:
            Strings, numbers, lists and dicts; empty before something was learned.
        """
        learned = self.learned()
        drawn = {part: fingerprint(rows) for part, rows in self.drawn.items()}
        return {**learned, "drawn": drawn} if learned and drawn else learned

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take from a checkpoint what was learned.

        Args:
            state_dict: What :meth:`state_dict` gave.
        """
        learned = dict(state_dict)
        self._loaded, self._is_loaded = learned.pop("drawn", None), True
        self.adopt(learned)

    def check_drawn(self, part: str) -> None:
        """Check that the model of a checkpoint was not trained on other rows than are drawn for it today.

        Args:
            part: The part that is about to be served.

        Raises:
            ValueError: If the checkpoint does not say which rows it was trained on.
        """
        if not self._is_loaded or part not in self.drawn:
            return
        if self._loaded is None:
            raise ValueError(
                f"the checkpoint does not say which rows it drew for {part} (earlier versions drew others), so these "
                "may have been trained on; give files of their own for validation and testing, or train anew"
            )
        if self._loaded.get(part) != fingerprint(self.drawn[part]):
            warnings.warn(
                f"other rows are drawn for {part} than when the checkpoint was trained (another file, seed or share); "
                "figures measured on rows that were trained on flatter the model",
                stacklevel=3,
            )

    def write_predictions(self, path: str | Path, predictions: Any) -> None:
        """Write the predictions for ``predict_path``, in the order of its rows.

        Args:
            path: Where to: whole or not at all. ``-`` is standard output; ``.gz`` is compressed.
            predictions: Those of all batches of :meth:`predict_dataloader`, one after another.

        Raises:
            ValueError: If there is not a prediction for each row.
            OSError: If the file cannot be written; see :func:`ika_lightning.output.check_output`.
        """
        check_format(path)
        write_output(path, self.render(predictions, path))
