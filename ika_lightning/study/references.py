"""References from outside: models that know nothing of attention, fitted on the same rows.

A study names one by its path, and its arguments: a class of these here, of scikit-learn, or a stranger's own. It has
the methods of :class:`Reference` and is otherwise free. It is not tuned by the study, and as it chooses no epoch by
validation, it learns from training and validation rows together.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

__all__ = ["GaussianProcess", "Reference", "make_reference", "score"]


@runtime_checkable
class Reference(Protocol):
    """A model of a table.

    Example:
        >>> from sklearn.linear_model import Ridge
        >>> isinstance(Ridge(), Reference), isinstance(3, Reference)
        (True, False)
    """

    def fit(self, features: np.ndarray, target: np.ndarray, /) -> Any:
        """Learn from rows.

        Args:
            features: Standardised numbers, and a column for each category, (r, f).
            target: What is to be predicted, in its own unit, (r,).
        """

    def predict(self, features: np.ndarray, /) -> np.ndarray:
        """Predict the target of other rows, (q, f), as (q,)."""


class GaussianProcess:
    """scikit-learn's Gaussian process with a lengthscale for each feature, and noise.

    Its time grows with the cube of the rows, so it learns from some of them where there are many.

    Args:
        most_rows: Most rows to learn from; others are left out by chance, the same at each time.

    Example:
        >>> x = np.linspace(0.0, 6.0, 40)[:, None]
        >>> model = GaussianProcess().fit(x, np.sin(x[:, 0]))
        >>> bool(abs(model.predict(np.array([[1.5]]))[0] - np.sin(1.5)) < 0.01)
        True
    """

    def __init__(self, most_rows: int = 2000) -> None:
        self.most_rows = most_rows

    def fit(self, features: np.ndarray, target: np.ndarray) -> Self:
        """Maximise the marginal likelihood."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        if len(target) > self.most_rows:
            some = np.random.default_rng(0).choice(len(target), self.most_rows, replace=False)
            features, target = features[some], target[some]
        kernel = ConstantKernel(1.0) * RBF(np.ones(features.shape[1])) + WhiteKernel(0.1)
        with warnings.catch_warnings():
            # of a lengthscale at the end of its range, of a feature that does not matter
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process = GaussianProcessRegressor(kernel, normalize_y=True).fit(features, target)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the mean of the process."""
        return self._process.predict(features)


def make_reference(path: str, arguments: Mapping[str, Any]) -> Reference:
    """Make a reference of the class that a study names.

    Args:
        path: The class, with its module.
        arguments: What it is made with.

    Raises:
        ValueError: If there is no such class, it does not take these arguments, or it is no reference.

    Example:
        >>> make_reference("sklearn.linear_model.Ridge", {"alpha": 2.0})
        Ridge(alpha=2.0)
        >>> make_reference("sklearn.linear_model.Rigde", {})
        Traceback (most recent call last):
        ...
        ValueError: there is no class sklearn.linear_model.Rigde: ...
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no class {path}: {error}") from error
    try:
        made = found(**arguments)
    except TypeError as error:
        raise ValueError(f"{path} cannot be made: {error}") from error
    if not isinstance(made, Reference):
        raise ValueError(f"{path} is no reference: it needs the methods fit and predict")
    return made


def score(predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Measure predictions as the regression task does, by the same names.

    Args:
        predicted: (r,).
        target: (r,).

    Raises:
        ValueError: If there is not a prediction for each row.

    Example:
        >>> score(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 5.0]))["test/mae"]
        0.6666666666666666
    """
    if np.shape(predicted) != target.shape:
        raise ValueError(f"{np.shape(predicted)} predictions for {target.shape} rows: predict returns one for each row")
    error = predicted - target
    return {
        "test/rmse": float(np.sqrt(np.mean(error**2))),
        "test/mae": float(np.mean(np.abs(error))),
        "test/r2": float(1.0 - np.sum(error**2) / np.sum((target - target.mean()) ** 2)),
    }
