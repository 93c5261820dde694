"""How sure a comparison is: means, paired differences with intervals, and what many comparisons at once take.

Repeats are paired: what is compared is a variant and the baseline on the same seed, fold or split. Intervals are those
of Student's t, so they take the differences for a sample from a normal distribution. Splits that share rows make them
somewhat too narrow (Nadeau and Bengio 2003, "Inference for the generalization error").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

__all__ = ["Mean", "Paired", "holm", "mean", "paired"]


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error.

    Args:
        value: The mean; NaN of nothing.
        error: Its standard error; NaN of fewer than two.
        count: Of how many.
    """

    value: float
    error: float
    count: int


@dataclass(frozen=True)
class Paired:
    """How a variant differs from the baseline.

    Args:
        gain: The mean difference, positive where the variant is better.
        low: Lower end of its interval; NaN of fewer than two pairs, or if all have the same gain.
        high: Upper end; NaN where low is.
        p: Probability of a difference as large, of either sign, if there were none; NaN of fewer than two pairs.
        wins: Pairs in which the variant is better.
        ties: Pairs in which both are equal.
        losses: Pairs in which the variant is worse.
    """

    gain: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return self.wins + self.ties + self.losses


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of some values and its standard error.

    Args:
        values: The values.

    Example:
        >>> mean([1.0, 2.0, 3.0])
        Mean(value=2.0, error=0.5773502691896258, count=3)
    """
    sample = np.asarray(values, dtype=float)
    if not sample.size:
        return Mean(math.nan, math.nan, 0)
    error = sample.std(ddof=1) / math.sqrt(sample.size) if sample.size > 1 else math.nan
    return Mean(float(sample.mean()), float(error), sample.size)


def paired(
    variant: Mapping[str, float], baseline: Mapping[str, float], *, less_is_better: bool, level: float = 0.95
) -> Paired:
    r"""Compare a variant to the baseline, by the repeats that both have.

    The interval of the mean gain :math:`\bar d` of n pairs is :math:`\bar d \pm t_{n-1} s / \sqrt n`, with the standard
    deviation s of the gains and the quantile t of Student's distribution. Where all gains are the same, as the accuracy
    on a small test set can be, there is no s: then there is no interval, and the probability is that of n equal signs,
    :math:`2^{1 - n}`.

    Args:
        variant: What was measured of the variant, by repeat.
        baseline: What was measured of the baseline.
        less_is_better: Whether the variant gains where it has measured less.
        level: Probability that an interval holds the true gain.

    Example:
        >>> found = paired({"0": 1.0, "1": 2.0}, {"0": 2.0, "1": 4.0, "2": 9.0}, less_is_better=True)
        >>> found.gain, found.wins, found.count
        (1.5, 2, 2)
    """
    sign = -1.0 if less_is_better else 1.0
    gains = np.array([sign * (variant[repeat] - baseline[repeat]) for repeat in variant if repeat in baseline])
    wins, ties, losses = (int(np.sum(found)) for found in (gains > 0, gains == 0, gains < 0))
    found = mean(gains.tolist())
    if found.count < 2:
        return Paired(found.value, math.nan, math.nan, math.nan, wins, ties, losses)
    free = found.count - 1
    half = float(student.ppf(0.5 + level / 2, free)) * found.error
    # as far as differences of rounded numbers can be told apart
    noise = 1e-12 * max(abs(x) for values in (variant, baseline) for x in values.values())
    if found.error <= noise:
        if abs(found.value) <= noise:
            return Paired(0.0, 0.0, 0.0, 1.0, 0, found.count, 0)
        # all the same, which says nothing of how they spread: the probability that all have one sign by chance
        return Paired(found.value, math.nan, math.nan, 2.0**-free, wins, ties, losses)
    p = float(2 * student.sf(abs(found.value) / found.error, free))
    return Paired(found.value, found.value - half, found.value + half, p, wins, ties, losses)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjust probabilities for being several: the smallest of m counts m times, the next m - 1 times, and so on.

    Those at most 0.05 afterwards are wrong, any of them, with a probability of at most 0.05 (Holm 1979, "A simple
    sequentially rejective multiple test procedure").

    Args:
        p: Probabilities by name; those that are NaN stay so, and do not count.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    known = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    adjusted, least = dict(p), 0.0
    for number, (value, name) in enumerate(known):
        least = max(least, min(1.0, (len(known) - number) * value))
        adjusted[name] = least
    return adjusted
