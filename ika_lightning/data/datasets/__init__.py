"""The data sets that are known by name, each in a file of its own beside this one.

A new data set is a new file here whose ``DATASET`` says what it is called, where its files are and how they are read.
Nothing else has to know of it.
"""

import pkgutil
from importlib import import_module
from typing import TypeVar

from ika_lightning.data.datasets.kinds import DataSet, GraphSet, ParallelSet, TableSet, TextSet
from ika_lightning.data.messages import closest, quoted

__all__ = [
    "DATASETS",
    "DataSet",
    "GraphSet",
    "ParallelSet",
    "TableSet",
    "TextSet",
    "find_dataset",
    "names_of",
]

Kind = TypeVar("Kind", bound=DataSet)

_FILES = [module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("kinds", "planetoid")]

DATASETS: dict[str, DataSet] = {
    dataset.name: dataset for file in _FILES for dataset in [import_module(f"{__name__}.{file}").DATASET]
}
"""All of them, by name."""


def names_of(kind: type[DataSet]) -> list[str]:
    """Names of the data sets of a kind, those that need no download first.

    Args:
        kind: :class:`TableSet`, :class:`TextSet`, :class:`ParallelSet` or :class:`GraphSet`.

    Example:
        >>> names_of(ParallelSet)
        ['dates', 'iwslt14', 'multi30k']
    """
    found = [dataset for dataset in DATASETS.values() if isinstance(dataset, kind)]
    return [dataset.name for dataset in sorted(found, key=lambda dataset: not dataset.ships)]


def find_dataset(name: str, kind: type[Kind], own: str) -> Kind:
    """Look up a data set.

    Args:
        name: Its name.
        kind: Of which kind it has to be.
        own: How to give data of one's own instead, for the error.

    Raises:
        ValueError: If there is none of this name, or it is of another kind.

    Example:
        >>> find_dataset("bostom", TableSet, "--data.path FILE")
        Traceback (most recent call last):
        ...
        ValueError: name='bostom' is no known data set (did you mean 'boston'?): there are 'airline_passengers', ...
    """
    found, names = DATASETS.get(name), names_of(kind)
    if found is None:
        raise ValueError(
            f"name={name!r} is no known data set{closest(name, names)}: there are {quoted(names, 30)}; give data of "
            f"your own with {own}"
        )
    if not isinstance(found, kind):
        raise ValueError(f"name={name!r} is a data set for {found.task}; for {kind.task} there are {quoted(names, 30)}")
    return found
