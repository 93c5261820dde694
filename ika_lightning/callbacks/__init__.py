"""What a person watches while a model trains, what it goes on from, and what takes a model's results out.

The callbacks find the attention layers of this package in any LightningModule; no task is needed.
"""

from lightning.pytorch import Callback

from ika_lightning.callbacks.averaging import AveragedWeights
from ika_lightning.callbacks.hyperparameters import Hyperparameters
from ika_lightning.callbacks.last import LastCheckpoint
from ika_lightning.callbacks.pictures import Pictures
from ika_lightning.callbacks.predictions import PredictionWriter
from ika_lightning.callbacks.signals import TrainingSignals

__all__ = [
    "AveragedWeights",
    "Hyperparameters",
    "LastCheckpoint",
    "Pictures",
    "PredictionWriter",
    "TrainingSignals",
    "watching",
]


def watching(pictures: float = 0.02) -> list[Callback]:
    """Return the callbacks that the command line adds to a training: figures of it, and pictures.

    Args:
        pictures: Most of the training time that pictures may take before its end; 0 draws none.

    Raises:
        ValueError: If pictures is not from 0 to 1.

    Example:
        >>> [type(callback).__name__ for callback in watching(pictures=0.0)]
        ['TrainingSignals', 'Hyperparameters']
    """
    if not 0.0 <= pictures <= 1.0:
        raise ValueError(f"pictures must be from 0 to 1, a share of the training time, got {pictures}")
    return [TrainingSignals(), Hyperparameters(), *([Pictures(pictures)] if pictures else [])]
