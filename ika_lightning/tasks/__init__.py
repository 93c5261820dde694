"""Training tasks: a LightningModule each."""

from ika_lightning.tasks.base import Task
from ika_lightning.tasks.node_classification import NodeClassification
from ika_lightning.tasks.regression import Regression
from ika_lightning.tasks.schedule import InverseSquareRoot, WarmupCosine
from ika_lightning.tasks.text_classification import TextClassification
from ika_lightning.tasks.translation import Translation

__all__ = [
    "InverseSquareRoot",
    "NodeClassification",
    "Regression",
    "Task",
    "TextClassification",
    "Translation",
    "WarmupCosine",
]
