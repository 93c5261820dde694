"""Training tasks: a LightningModule each."""

from ika_lightning.tasks.base import Task
from ika_lightning.tasks.regression import Regression
from ika_lightning.tasks.text_classification import TextClassification

__all__ = ["Regression", "Task", "TextClassification"]
