"""What a person watches while a model trains, what it goes on from, and what takes a model's results out."""

from ika_lightning.callbacks.last import LastCheckpoint
from ika_lightning.callbacks.predictions import PredictionWriter

__all__ = ["LastCheckpoint", "PredictionWriter"]
