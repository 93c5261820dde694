"""Data of the tasks: a LightningDataModule each, downloads, and small data sets that ship with the package."""

from ika_lightning.data.node_classification import NodeClassificationData
from ika_lightning.data.regression import RegressionData

__all__ = ["NodeClassificationData", "RegressionData"]
