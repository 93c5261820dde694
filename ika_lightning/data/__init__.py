"""Data of the tasks: a LightningDataModule each, downloads, and small data sets that ship with the package."""

from ika_lightning.data.node_classification import NodeClassificationData
from ika_lightning.data.regression import RegressionData
from ika_lightning.data.text_classification import TextBatch, TextClassificationData
from ika_lightning.data.translation import TranslationBatch, TranslationData

__all__ = [
    "NodeClassificationData",
    "RegressionData",
    "TextBatch",
    "TextClassificationData",
    "TranslationBatch",
    "TranslationData",
]
