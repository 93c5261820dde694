"""Training tasks: a LightningModule each."""

from ika_lightning.tasks.base import Task
from ika_lightning.tasks.node_classification import NodeClassification
from ika_lightning.tasks.regression import Regression

__all__ = ["NodeClassification", "Regression", "Task"]
