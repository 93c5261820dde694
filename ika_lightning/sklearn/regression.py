"""Attention over the rows of a table as an estimator of scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array, check_consistent_length, column_or_1d, validate_data

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect
from ika_lightning.data import RegressionData
from ika_lightning.data.checks import check_choices
from ika_lightning.data.messages import InMemory, row_of
from ika_lightning.data.rows import RowPredictions, TableCorpus
from ika_lightning.data.table import as_text
from ika_lightning.sklearn.base import KernelAttentionEstimator, in_memory
from ika_lightning.tasks import Regression

__all__ = ["KernelAttentionRegressor"]

# In the narrow heads of rows of a table, the paper's estimator learns more than one beside an exact part.
_LAYERS: dict[str, Any] = {
    "IKANDirect": partial(IKANDirect, init="rbf"),
    "IKAN": partial(IKAN, init="rbf"),
    "MIKAN": partial(MIKAN, init="rbf"),
    "RBF": RBF,
    "DotProduct": DotProduct,
}


# what errors call the rows
_X = InMemory("X")


@dataclass(frozen=True, kw_only=True)
class _Frame(TableCorpus):
    """A table in memory, as text."""

    table: pd.DataFrame

    @property
    def source(self) -> str:
        return _X

    def read_table(self) -> pd.DataFrame:
        return self.table


class KernelAttentionRegressor(RegressorMixin, KernelAttentionEstimator[Regression, RegressionData]):
    r"""Kernel regression by attention over training rows, with a kernel that is learned.

    .. math:: \hat y(x) = \sum_j \frac{w(x, x_j)}{\sum_{j'} w(x, x_{j'})} v(x_j, y_j)

    in one layer of a head; the model has several of both. The same task, data and training as ``python -m ika_lightning
    fit --model Regression``: what is not said here is what stands there.

    Columns of numbers are standardised; columns of text or categories, of a DataFrame, become a feature for each
    category. A column of text whose every cell is a number is numbers, as it would be in a file. Rows for validation
    are drawn from those of ``fit``, choose when in the training the weights were best, and tell how wide intervals are.

    Args:
        attention: The attention layer: ``"IKANDirect"``, ``"IKAN"``, ``"MIKAN"``, ``"RBF"`` or ``"DotProduct"``; or a
            class of layers, or a ``functools.partial`` of one. The first three start as the paper's estimator
            (``init="rbf"``), which rows of tables ask for.
        width: Width of the network.
        depth: Number of layers.
        num_heads: Number of attention heads; it must divide the width.
        dropout: Probability with which an output of attention or network is dropped in training.
        embedding: How the features of a row become a vector: ``"linear"``, or ``"periodic"``, by learned waves of each.
        frequency_scale: How fast these waves are at the start, in periods per standard deviation of a feature.
        ensemble: How many networks are trained and asked together; fit takes that many times as long.
        likelihood: ``"gaussian"`` learns a standard deviation beside the mean; None by squared error the mean alone.
        interval: The probability with which :meth:`predict_interval` holds a target, in (0, 1).
        learning_rate: The highest learning rate.
        updates: How many updates the training has.
        max_time: Seconds that it has instead, if it is given.
        batch_size: Rows in a training batch, those that ask and those that are their context.
        max_context: Most training rows that are the context of predictions.
        validation_fraction: Share of the rows for validation, at least one; 0 takes the weights of the end, and has no
            intervals.
        missing: What to do about missing numbers and text: ``"error"``, or ``"mean"``: the training mean, no category.
        unseen: What to do about a category that training did not have: ``"error"``, or ``"ignore"``: no category.
        random_state: Seed of everything that is drawn: a number, a ``numpy.random.RandomState``, or None.
        verbose: 1 shows a progress bar and what Lightning says.

    Attributes:
        checkpoint_: The trained model as the bytes of a checkpoint, which ``save`` writes.
        n_features_in_: How many columns there were.
        feature_names_in_: Their names, if they had names.

    Raises:
        ValueError: In ``fit``, if an argument is out of its range or the data does not fit: the message says which.

    Example:
        >>> from sklearn.datasets import make_friedman1
        >>> X, y = make_friedman1(50, random_state=0)
        >>> model = KernelAttentionRegressor(width=16, depth=1, num_heads=2, updates=5, random_state=0).fit(X, y)
        >>> model.predict(X[:3]).shape
        (3,)
    """

    task = Regression
    data_class = RegressionData
    layers = MappingProxyType(_LAYERS)

    def __init__(
        self,
        attention: Any = "IKANDirect",
        *,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 8,
        dropout: float = 0.1,
        embedding: Literal["linear", "periodic"] = "periodic",
        frequency_scale: float = 0.3,
        ensemble: int = 2,
        likelihood: Literal["gaussian"] | None = None,
        interval: float = 0.9,
        learning_rate: float = 0.006,
        updates: int = 2000,
        max_time: float | None = None,
        batch_size: int = 256,
        max_context: int = 2048,
        validation_fraction: float = 0.1,
        missing: Literal["error", "mean"] = "error",
        unseen: Literal["error", "ignore"] = "error",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        # as scikit-learn asks: what is given is kept, and looked at in fit
        self.attention = attention
        self.width = width
        self.depth = depth
        self.num_heads = num_heads
        self.dropout = dropout
        self.embedding = embedding
        self.frequency_scale = frequency_scale
        self.ensemble = ensemble
        self.likelihood = likelihood
        self.interval = interval
        self.learning_rate = learning_rate
        self.updates = updates
        self.max_time = max_time
        self.batch_size = batch_size
        self.max_context = max_context
        self.validation_fraction = validation_fraction
        self.missing = missing
        self.unseen = unseen
        self.random_state = random_state
        self.verbose = verbose
        self._model = None

    def fit(self, X: Any, y: Any) -> Self:
        """Train on rows and their targets.

        Args:
            X: Rows: numbers (r, f), or a DataFrame, which may have columns of text.
            y: Their targets, (r,).
        """
        self._check_arguments()
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        table = self._table(X, reset=True)
        target = column_or_1d(check_array(y, ensure_2d=False, dtype="numeric", input_name="y"), warn=True)
        check_consistent_length(table, target)
        name = _new_name("target" if getattr(y, "name", None) is None else str(y.name), table.columns)
        table[name] = as_text(pd.DataFrame({"y": target.astype(np.float64)}), "y")["y"]
        seed = self._seed()
        self._train(self._data(table, name, seed), seed)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predict targets, in float64: the prediction for a row is the same in any company.

        Args:
            X: Rows as in :meth:`fit`. A DataFrame has the columns of fit, in their order, which scikit-learn checks.
            return_std: Return standard deviations as well: those that ``likelihood="gaussian"`` has learned; or of an
                ``ensemble`` of three or more without a likelihood, the spread of its members' predictions.

        Returns:
            In the unit of the targets, (r,) float64; of predictions and standard deviations a pair, with return_std.

        Raises:
            sklearn.exceptions.NotFittedError: Before :meth:`fit`.
            ValueError: If columns are missing, or a category is new; or if there are no standard deviations.

        Example:
            >>> X, y = np.arange(40.0)[:, None], np.arange(40.0)
            >>> options = {"width": 16, "depth": 1, "num_heads": 2, "updates": 5, "random_state": 0}
            >>> mean, std = KernelAttentionRegressor(likelihood="gaussian", **options).fit(X, y).predict(X, True)
            >>> mean.shape, bool((std > 0).all())
            ((40,), True)
        """
        found = self._predict(X)
        if not return_std:
            return found.mean.numpy()
        if found.std is None:
            raise ValueError(
                f"return_std: this {type(self).__name__} has learned no standard deviation; fit with "
                "likelihood='gaussian', or ask predict_interval"
            )
        return found.mean.numpy(), found.std.numpy()

    def predict_interval(self, X: Any) -> np.ndarray:
        """Predict intervals that hold the targets of new rows with a probability of ``interval``, as it was in fit.

        They are as wide as validation rows were far from their predictions (split conformal prediction), whatever the
        distribution. As these rows have chosen the weights as well, a few more targets than that are outside.

        Args:
            X: Rows as in :meth:`fit`.

        Returns:
            Lower and upper ends in the unit of the targets, (r, 2) float64.

        Raises:
            sklearn.exceptions.NotFittedError: Before :meth:`fit`.
            ValueError: If there were no validation rows, or too few for such an interval; or as in :meth:`predict`.

        Example:
            >>> X, y = np.arange(90.0)[:, None], np.arange(90.0)
            >>> options = {"width": 16, "depth": 1, "num_heads": 2, "updates": 5, "random_state": 0}
            >>> lower, upper = KernelAttentionRegressor(**options).fit(X, y).predict_interval(X).T
            >>> bool((lower < upper).all())
            True
        """
        found = self._predict(X)
        if found.lower is None or found.upper is None:
            model, data = self._fitted()
            why = model.intervals.why_none
            if not data.hparams["val_fraction"]:
                why = "validation_fraction=0 kept no rows to measure them by; fit with validation_fraction=0.1"
            raise ValueError(f"this {type(self).__name__} has no intervals: {why}")
        return torch.stack([found.lower, found.upper], -1).numpy()

    def __sklearn_tags__(self) -> Any:
        """Say whether missing numbers are taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing != "error"
        return tags

    # --- How it is done -----------------------------------------------------------------------------------------------

    def _check_arguments(self) -> None:
        self._check(updates=1, width=1, depth=0, num_heads=1, ensemble=1, batch_size=2, max_context=1)
        self._check_positive("frequency_scale")
        for name, choices in (("missing", "'error' or 'mean'"), ("unseen", "'error' or 'ignore'")):
            if getattr(self, name) is None:
                raise ValueError(f"{name} must be {choices}, got None")
        # dropping rows would leave rows without a prediction
        check_choices(missing=(self.missing, ("error", "mean")), unseen=(self.unseen, ("error", "ignore")))
        if not isinstance(self.interval, Real) or not 0 < self.interval < 1:
            raise ValueError(f"interval must be a number between 0 and 1, such as 0.9, got {self.interval!r}")

    def _table(self, X: Any, *, reset: bool) -> pd.DataFrame:
        """The cells of rows as text, by names of columns."""
        if isinstance(X, pd.DataFrame) and not all(map(pd.api.types.is_numeric_dtype, X.dtypes)):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if not len(X):
                raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
            return as_text(_by_type(X), _X)
        least = 2 if reset else 1
        finite = True if self.missing == "error" else "allow-nan"
        numbers = validate_data(
            self, X, reset=reset, dtype=np.float64, ensure_min_samples=least, ensure_all_finite=finite
        )
        names = getattr(self, "feature_names_in_", None)
        columns = (
            [f"x{number}" for number in range(numbers.shape[1])] if names is None else [str(name) for name in names]
        )
        return as_text(pd.DataFrame(numbers, columns=columns), _X)

    def _data(self, table: pd.DataFrame, target: str, seed: int) -> RegressionData:
        self._check_held_out(len(table), least=2)
        data = RegressionData(
            path=str(_X),
            target=target,
            val_fraction=self.validation_fraction,
            test_fraction=0.0,
            batch_size=self.batch_size,
            max_context=self.max_context,
            missing=self.missing,
            unseen=self.unseen,
            seed=seed,
        )
        data.corpus = in_memory(_Frame, data.corpus, table=table)
        return data

    def _make_task(self, layer: Any) -> Regression:
        return Regression(
            layer,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            dropout=self.dropout,
            embedding=self.embedding,
            frequency_scale=self.frequency_scale,
            ensemble=int(self.ensemble),
            likelihood=self.likelihood,
            interval=float(self.interval),
            optimizer=partial(torch.optim.AdamW, lr=self.learning_rate),
        )

    def _load(self) -> tuple[Regression, RegressionData]:
        # float32 products of matrices round by how many rows are asked together, in digits that scikit-learn looks at
        model, data = super()._load()
        return model.double(), data

    def _predict(self, X: Any) -> RowPredictions:
        model, data = self._fitted()
        table = self._table(X, reset=False)
        with np.errstate(over="ignore"):
            batch = data.learned.encode(table, _X, labelled=False)
        if not (finite := batch.features.isfinite().all(1)).all():
            row = int((~finite).nonzero()[0])
            raise ValueError(
                f"{_X}, {row_of(_X, row)}: a number is too far from those of fit to be computed with, in float32"
            )
        batch = batch._replace(features=batch.features.double())
        with torch.inference_mode():
            parts = [
                model.predict_step(batch.take(part), 0) for part in torch.arange(len(table)).split(self.max_context)
            ]
        return model.complete_predictions(torch.cat(parts))


def _by_type(X: pd.DataFrame) -> pd.DataFrame:
    """A table whose columns are read as what their types say, once they are text.

    Raises:
        ValueError: If one has categories that are numbers, which text cannot tell from numbers.
    """
    typed = X.copy(deep=False)
    # by their places, as names may be there twice, which is refused later
    for place, (name, column) in enumerate(X.items()):
        if isinstance(column.dtype, pd.CategoricalDtype) and pd.api.types.is_numeric_dtype(column.cat.categories):
            raise ValueError(
                f"X: column {name!r} has categories that are numbers, such as {column.cat.categories[0]}, which would "
                "be read as numbers; rename them (column.cat.rename_categories('c{}'.format)), or make them numbers "
                "(column.astype(float))"
            )
        if pd.api.types.is_integer_dtype(column.dtype):
            # long ones would be taken for codes
            typed.isetitem(place, column.astype("Float64").to_numpy(float, na_value=np.nan))
    return typed


def _new_name(name: str, taken: Any) -> str:
    """A name for a column that no other has."""
    while name in taken:
        name += "_"
    return name
