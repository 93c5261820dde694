"""Libraries that take long to import and that most commands need late or never, as modules that wait until then.

``from ika_lightning.lazy import pandas as pd`` reads like an import of pandas, which is made when ``pd`` is first used.
Annotations that name such a module need ``from __future__ import annotations``, or they would be a use of it.

To add one, name it twice below: once for type checkers, once for Python.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    import pooch
    import pyarrow
    import pyarrow.compute as pyarrow_compute
    import pyarrow.csv as pyarrow_csv
    import pyarrow.parquet as pyarrow_parquet
    import requests
    import sacrebleu
    import sklearn.datasets as sklearn_datasets
    import sklearn.model_selection as model_selection
    import torch_geometric

__all__ = [
    "Lazy",
    "model_selection",
    "pandas",
    "pooch",
    "pyarrow",
    "pyarrow_compute",
    "pyarrow_csv",
    "pyarrow_parquet",
    "requests",
    "sacrebleu",
    "sklearn_datasets",
    "torch_geometric",
]


class Lazy(ModuleType):
    """A module that is imported when something of it is asked for.

    Args:
        name: Its full name.

    Raises:
        ModuleNotFoundError: At the first use, if there is none.

    Example:
        >>> json = Lazy("json")
        >>> json.dumps([1])
        '[1]'
    """

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        # the next time it is found without asking
        setattr(self, name, value)
        return value


if not TYPE_CHECKING:
    pandas = Lazy("pandas")
    pooch = Lazy("pooch")
    pyarrow = Lazy("pyarrow")
    pyarrow_compute = Lazy("pyarrow.compute")
    pyarrow_csv = Lazy("pyarrow.csv")
    pyarrow_parquet = Lazy("pyarrow.parquet")
    requests = Lazy("requests")
    sacrebleu = Lazy("sacrebleu")
    sklearn_datasets = Lazy("sklearn.datasets")
    model_selection = Lazy("sklearn.model_selection")
    torch_geometric = Lazy("torch_geometric")
