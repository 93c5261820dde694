"""How sure a prediction is: normal distributions, how good they are, mixtures of them, and intervals that hold.

Formulas alone, value by value, on whatever scale they are given.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "FLOOR",
    "Answer",
    "believe",
    "conformal_radius",
    "gaussian",
    "gaussian_crps",
    "gaussian_nll",
    "mixture",
    "rows_needed",
    "scores",
]

#: The least standard deviation of a distribution, in standard deviations of the target over the training rows. Without
#: one, the likelihood of rows that are known by heart has no bound.
FLOOR = 1e-3


class Answer(NamedTuple):
    """What is believed of targets.

    Args:
        mean: The means.
        std: The standard deviations, of the same shape; None where they are not known.
    """

    mean: Tensor
    std: Tensor | None = None


def gaussian(raw: Tensor) -> Answer:
    r"""Make normal distributions of pairs of numbers.

    .. math:: \mu = a, \qquad \sigma = \log(1 + e^b) + \text{FLOOR}

    Args:
        raw: Pairs (a, b), (..., 2). Of half precision, the result is float32: a standard deviation is a divisor.

    Shapes:
        mean and std (...).

    Example:
        >>> mean, std = gaussian(torch.tensor([[3.0, 0.0], [3.0, -1000.0]]))
        >>> mean.tolist(), [round(each, 4) for each in std.tolist()]
        ([3.0, 3.0], [0.6941, 0.001])
    """
    mean, width = raw.to(torch.promote_types(raw.dtype, torch.float32)).unbind(-1)
    return Answer(mean, F.softplus(width) + FLOOR)


def gaussian_nll(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    r"""The negative log-likelihood of targets under normal distributions.

    .. math:: \frac{(y - \mu)^2}{2 \sigma^2} + \log \sigma + \frac12 \log 2 \pi

    Args:
        mean: The means.
        std: The standard deviations, positive.
        target: The targets.

    Example:
        >>> gaussian_nll(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0))
        tensor(2.1121)
    """
    return 0.5 * ((target - mean) / std).square() + std.log() + 0.5 * math.log(2.0 * math.pi)


def gaussian_crps(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    r"""The continuous ranked probability score of normal distributions: how far they are from a step at the target.

    .. math:: \int (F(x) - [x \ge y])^2 \, dx = \sigma \bigl(z (2 \Phi(z) - 1) + 2 \varphi(z) - 1 / \sqrt \pi \bigr),
        \qquad z = (y - \mu) / \sigma

    as in Gneiting et al. (2005). It is in the unit of the target, and becomes the absolute error as the standard
    deviation goes to zero.

    Args:
        mean: The means.
        std: The standard deviations, positive.
        target: The targets.

    Example:
        >>> gaussian_crps(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0))
        tensor(0.2337)
    """
    z = (target - mean) / std
    density = (-0.5 * z.square()).exp() / math.sqrt(2.0 * math.pi)
    # 2 Phi(z) - 1
    between = torch.erf(z / math.sqrt(2.0))
    return std * (z * between + 2.0 * density - 1.0 / math.sqrt(math.pi))


#: How many means take to have a spread that is told.
FEWEST_WITH_A_SPREAD = 3


def mixture(mean: Tensor, std: Tensor | None) -> Answer:
    r"""Mean and standard deviation of a mixture whose parts weigh the same.

    .. math:: \mu = \overline{\mu_i}, \qquad \sigma^2 = \overline{\sigma_i^2} + \overline{(\mu_i - \mu)^2}

    as in deep ensembles (Lakshminarayanan et al. 2017).

    Args:
        mean: The means of the parts, (n, ...). Of half precision, the result is float32: parts may agree in all digits.
        std: Their standard deviations, (n, ...); None for parts without any, of which the spread of the means is left.
            Two parts alone say too little of it: they have none.

    Shapes:
        mean and std (...).

    Example:
        >>> mean, std = mixture(torch.tensor([1.0, 5.0]), torch.tensor([1.5, 1.5]))
        >>> mean, std
        (tensor(3.), tensor(2.5000))
    """
    mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
    spread = mean.var(0, correction=0)
    if std is None:
        return Answer(mean.mean(0), spread.sqrt() if len(mean) >= FEWEST_WITH_A_SPREAD else None)
    return Answer(mean.mean(0), (spread + std.square().mean(0)).sqrt())


def believe(outputs: Tensor, likelihood: bool, mixes: int = 0) -> Answer:
    """What the outputs of a network, or of several, say of targets.

    Args:
        outputs: Means; with a likelihood, pairs that :func:`gaussian` reads.
        likelihood: Whether there is one.
        mixes: How many axes, the first ones, are those of the parts of a :func:`mixture`.

    Shapes:
        outputs (..., r), or (..., r, 2) with a likelihood; mean and std (..., r), or (r,) of a mixture.

    Example:
        >>> believe(torch.tensor([[1.0, 2.0], [1.0, 2.0], [4.0, 2.0]]), likelihood=False, mixes=1)
        Answer(mean=tensor([2., 2.]), std=tensor([1.4142, 0.0000]))
    """
    if mixes:
        outputs = outputs.flatten(0, mixes - 1)
    answer = gaussian(outputs) if likelihood else Answer(outputs)
    return mixture(*answer) if mixes else answer


def scores(mean: Tensor, scale: Tensor, target: Tensor) -> Tensor:
    """How far targets are from their predictions.

    Args:
        mean: The predictions.
        scale: In what that is told: the standard deviation of each, for instance, or 1.
        target: The targets.

    Example:
        >>> scores(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(-3.0))
        tensor(2.)
    """
    return (target - mean).abs() / scale


def conformal_radius(known: Tensor, level: float) -> float:
    r"""The score that a new one does not exceed, with a probability of at least ``level``.

    It is the k-th smallest of n scores with :math:`k = \lceil (n + 1) \cdot \text{level} \rceil`. If the new one and
    those n could have come in any order, its rank among them is uniform, whatever the distribution (split conformal
    prediction; Papadopoulos et al. 2002, Lei et al. 2018).

    Args:
        known: Scores of samples that were not trained on, (n,).
        level: The probability, in (0, 1). A decimal is taken as it is written: 0.9 of 10 is 9.

    Returns:
        The score; infinite if k is more than n.

    Example:
        >>> conformal_radius(torch.arange(1.0, 20.0), 0.9)
        18.0
        >>> conformal_radius(torch.arange(1.0, 9.0), 0.9)
        inf
    """
    rank = math.ceil(Fraction(repr(float(level))) * (len(known) + 1))
    return math.inf if rank > len(known) else known.sort().values[rank - 1].item()


def rows_needed(level: float) -> int:
    """The least number of scores for which :func:`conformal_radius` is finite.

    Args:
        level: The probability, in (0, 1).

    Example:
        >>> rows_needed(0.9), rows_needed(0.95)
        (9, 19)
    """
    exact = Fraction(repr(float(level)))
    return math.ceil(exact / (1 - exact))
