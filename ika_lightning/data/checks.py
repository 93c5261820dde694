"""Checks of arguments and predictions that several data modules have."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ika_lightning.data.datasets import DataSet, names_of
from ika_lightning.data.messages import quoted

__all__ = ["check_choices", "check_fractions", "check_least", "check_shape", "check_source", "check_unchanged"]


def check_source(kind: type[DataSet], own: str, name: str | None, path: str | None, *others: str | None) -> None:
    """Check that there is data, from one place.

    Args:
        kind: Of which kind a data set would be.
        own: How to give data of one's own.
        name: A data set.
        path: An own file.
        *others: Own files that are enough with a checkpoint.

    Raises:
        ValueError: If there is none, or two.
    """
    if name is not None and path is not None:
        raise ValueError(f"give name or path, not both: name={name!r}, path={path!r}")
    if not (name or path or any(others)):
        raise ValueError(
            f"no data: give --data.name, one of {quoted(names_of(kind), 30)}, or data of your own with {own}"
        )


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Check shares of rows, which have to leave something for training.

    Args:
        val_fraction: For validation.
        test_fraction: For testing.

    Raises:
        ValueError: If not.
    """
    for argument, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{argument} must be at least 0 and less than 1, got {fraction}")
    if val_fraction + test_fraction >= 1:
        raise ValueError(
            f"val_fraction + test_fraction must be less than 1, got {val_fraction} + {test_fraction}; "
            "nothing would be left for training"
        )


def check_least(**numbers: tuple[float | None, float]) -> None:
    """Check numbers, where they are given.

    Args:
        **numbers: Each argument's value, and the least that it may be.

    Raises:
        ValueError: If one is less.

    Example:
        >>> check_least(seed=(-1, 0))
        Traceback (most recent call last):
        ...
        ValueError: seed must be at least 0, got -1
    """
    for argument, (number, least) in numbers.items():
        if number is not None and not number >= least:
            raise ValueError(f"{argument} must be at least {least}, got {number}")


def check_choices(**values: tuple[str | None, Sequence[str]]) -> None:
    """Check words, where they are given.

    Args:
        **values: Each argument's value, and what it may be.

    Raises:
        ValueError: If one is another.
    """
    for argument, (value, allowed) in values.items():
        if value is not None and value not in allowed:
            raise ValueError(f"{argument} must be one of {quoted(allowed)}, got {value!r}")


def check_unchanged(owner: Callable[..., Any], given: Mapping[str, Any], names: Sequence[str], why: str) -> None:
    """Check that arguments are what they are by default.

    Args:
        owner: What takes them.
        given: Their values.
        names: Which of them to look at.
        why: Says why no other value makes sense.

    Raises:
        ValueError: If one is something else.

    Example:
        >>> check_unchanged(sorted, {"reverse": True}, ["reverse"], "these are in order already")
        Traceback (most recent call last):
        ...
        ValueError: these are in order already; leave out reverse=True
    """
    defaults = inspect.signature(owner).parameters
    for name in names:
        if given[name] != defaults[name].default:
            raise ValueError(f"{why}; leave out {name}={given[name]!r}")


def check_shape(predictions: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Check that there is a prediction for each sample.

    Args:
        predictions: The predictions.
        shape: The shape that they should have.
        what: What this is, in words.

    Raises:
        ValueError: If they have another.
    """
    if predictions.shape != shape:
        raise ValueError(f"predictions must have shape {shape}, {what}, got {tuple(predictions.shape)}")
