"""Predictions, from the model into a file."""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from ika_lightning.data.cells import check_format
from ika_lightning.output import check_output
from ika_lightning.protocols import CompletesPredictions, WritesPredictions


class PredictionWriter(Callback):
    """Collects the predictions of all batches and has the data module write them.

    The data module knows what a row of its file means, so it owns the format
    (:class:`~ika_lightning.protocols.WritesPredictions`). It is given one tensor over all samples where the model
    returns tensors, else one list; or what the model makes of it
    (:class:`~ika_lightning.protocols.CompletesPredictions`). A file that cannot be written is refused before any work
    is done.

    Lightning's ``BasePredictionWriter`` would also ask each loader which samples it fetched, which not all can tell.

    Args:
        path: The file to write.

    Attributes:
        count: How many predictions were written.

    Example:
        >>> writer = PredictionWriter("predictions.csv")
        >>> writer.count
        0
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.count = 0
        self._batches: list[Any] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            raise ValueError(f"one process writes predictions, not {trainer.world_size}: use --trainer.devices 1")
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, WritesPredictions):
            raise ValueError(f"{type(data).__name__} has no method write_predictions(path, predictions); give it one")
        check_output(self.path)
        check_format(self.path)

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._batches.append(outputs.cpu() if isinstance(outputs, Tensor) else outputs)

    @override
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches, self._batches = self._batches, []
        predictions = torch.cat(batches) if isinstance(batches[0], Tensor) else [*chain(*batches)]
        self.count = len(predictions)
        if isinstance(pl_module, CompletesPredictions):
            predictions = pl_module.complete_predictions(predictions)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, WritesPredictions)
        data.write_predictions(self.path, predictions)
