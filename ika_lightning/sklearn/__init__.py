"""Models of the tasks as estimators of scikit-learn: what the command line trains, in two lines of Python."""

from ika_lightning.sklearn.regression import KernelAttentionRegressor
from ika_lightning.sklearn.text import KernelAttentionTextClassifier

__all__ = ["KernelAttentionRegressor", "KernelAttentionTextClassifier"]
