"""Which rows are for training, validation and testing.

All parts are 0-based rows in ascending order. What is drawn is a function of the seed alone. Of each class its share is
drawn by the splitters of scikit-learn.
"""

import warnings

import numpy as np

from ika_lightning.lazy import model_selection

__all__ = ["deal", "draw", "fold_of", "hold_out", "per_class", "share_of"]

PARTS = ("train", "val", "test")


def share_of(fraction: float, count: int) -> int:
    """How many of so many a fraction is: at least one, unless it is 0.

    Args:
        fraction: At least 0 and less than 1.
        count: Of how many.

    Example:
        >>> share_of(0.1, 3), share_of(0.0, 3)
        (1, 0)
    """
    return max(1, round(fraction * count)) if fraction else 0


def draw(rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Draw rows at random: those that ``sklearn.model_selection.ShuffleSplit`` draws.

    Args:
        rows: The rows to draw from, (r,).
        size: How many, at most r.
        seed: Seed of the draw.

    Example:
        >>> len(draw(np.arange(7), 3, seed=0)), draw(np.arange(7), 0, seed=0).tolist()
        (3, [])
    """
    if size in (0, len(rows)):
        return np.sort(rows)[:size]
    # Importing scikit-learn takes a fifth of the time that a table needs to its first step.
    return np.sort(rows[np.random.RandomState(seed).permutation(len(rows))[:size]])


def hold_out(labels: np.ndarray, rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Draw rows at random, of each class its share; never the last one of a class.

    Args:
        labels: The class of every row there is, (n,).
        rows: The rows to draw from, (r,).
        size: How many to draw.
        seed: Seed of the draw.

    Returns:
        The rows drawn, fewer than ``size`` if others are the last of their class.

    Example:
        >>> labels = np.array([0, 1, 0, 1, 2, 0, 1, 0, 1])
        >>> labels[hold_out(labels, np.arange(9), 4, seed=0)].tolist()
        [0, 0, 1, 1]
    """
    rows = _in_company(labels, rows)
    size = min(size, len(rows))
    classes = max(1, len(np.unique(labels[rows])))
    # A stratified draw needs a row of each class on both sides; a smaller one, or nearly all, is drawn from all alike.
    if min(size, len(rows) - size) < classes:
        chosen = draw(rows, size, seed)
        if np.isin(labels[rows], labels[np.setdiff1d(rows, chosen)]).all():
            return chosen
        # all rows of a class were drawn, so one of each is kept out of another draw
        _, first = np.unique(labels[rows], return_index=True)
        others = np.delete(rows, first)
        return draw(others, min(size, len(others)), seed)
    splitter = model_selection.StratifiedShuffleSplit(n_splits=1, test_size=size, random_state=seed)
    _, chosen = next(splitter.split(rows, labels[rows]))
    return np.sort(rows[chosen])


def fold_of(labels: np.ndarray, fold: int, folds: int, seed: int) -> np.ndarray:
    """One of several equal parts of the rows, with of each class its share; none has a row that is alone in its class.

    Args:
        labels: The class of every row there is, (n,).
        fold: Which part, from 0.
        folds: How many parts.
        seed: Seed of the draw.

    Example:
        >>> parts = [fold_of(np.array([0, 0, 1, 1, 2]), fold, 2, seed=0) for fold in (0, 1)]
        >>> sorted(np.concatenate(parts).tolist())
        [0, 1, 2, 3]
    """
    rows = _in_company(labels, np.arange(len(labels)))
    if len(rows) < folds:
        return rows[fold : fold + 1]
    common = np.unique(labels[rows], return_counts=True)[1].max() >= folds
    splitter = (model_selection.StratifiedKFold if common else model_selection.KFold)(
        folds, shuffle=True, random_state=seed
    )
    with warnings.catch_warnings():
        # a class with fewer rows than folds is in some of them
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        parts = list(splitter.split(rows, labels[rows]))
    return np.sort(rows[parts[fold][1]])


def deal(units: np.ndarray, val_size: int, test_size: int, *, ordered: bool, seed: int) -> dict[str, np.ndarray]:
    """Deal out rows, or groups of rows that stay together.

    Args:
        units: The unit of each row, from 0, (r,): its group, or a number of its own.
        val_size: Units for validation.
        test_size: Units for testing.
        ordered: Take the first units for training and the last for testing, instead of drawing.
        seed: Seed of the draw.

    Returns:
        The rows of ``train``, ``val`` and ``test``.

    Example:
        >>> parts = deal(np.array([0, 0, 1, 2, 2]), 1, 1, ordered=True, seed=0)
        >>> {part: rows.tolist() for part, rows in parts.items()}
        {'train': [0, 1], 'val': [2], 'test': [3, 4]}
    """
    whole = np.arange(int(units.max(initial=-1)) + 1)
    test = whole[len(whole) - test_size :] if ordered else draw(whole, test_size, seed)
    rest = np.setdiff1d(whole, test)
    val = rest[len(rest) - val_size :] if ordered else draw(rest, val_size, seed)
    parts = zip(PARTS, (np.setdiff1d(rest, val), val, test), strict=True)
    return {part: np.flatnonzero(np.isin(units, chosen)) for part, chosen in parts}


def per_class(
    labels: np.ndarray, rows: np.ndarray, count: int, seed: int, *, first: np.ndarray | None = None
) -> np.ndarray:
    """Draw so many rows of each class, or all that it has.

    Args:
        labels: The class of every row there is, (n,).
        rows: The rows to draw from, (r,).
        count: How many of each class.
        seed: Seed of the draw.
        first: Rows that are drawn before others.

    Example:
        >>> labels = np.array([0, 1, 0, 1, 2])
        >>> labels[per_class(labels, np.arange(5), 1, seed=0)].tolist()
        [0, 1, 2]
    """
    chosen = [rows[:0]]
    for label in np.unique(labels[rows]):
        members = rows[labels[rows] == label]
        named = members[np.isin(members, [] if first is None else first)]
        named = draw(named, min(count, len(named)), seed)
        others = np.setdiff1d(members, named)
        chosen += [named, draw(others, min(count - len(named), len(others)), seed)]
    return np.sort(np.concatenate(chosen))


def _in_company(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows that are not alone in their class."""
    classes, counts = np.unique(labels[rows], return_counts=True)
    return rows[np.isin(labels[rows], classes[counts > 1])]
