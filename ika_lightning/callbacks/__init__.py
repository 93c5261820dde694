"""What a person watches while a model trains, and what takes a model's results out."""

from ika_lightning.callbacks.predictions import PredictionWriter

__all__ = ["PredictionWriter"]
