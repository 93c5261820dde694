r"""Magnitude: how much a key asks to be attended to, whatever the query.

The exponential of a scaled dot product is a kernel times two magnitudes (eq. 3 of `Implicit Kernel Attention
<https://arxiv.org/abs/2006.06147>`_), and the magnitude of the L2 norm is only one choice:

.. math:: \exp(q \cdot k / \sqrt d) = e^{-|q - k|^2 / 2 \sqrt d} \; e^{|q|^2 / 2 \sqrt d} \; e^{|k|^2 / 2 \sqrt d}
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

#: Exponent of a norm. The word is for configuration files and the command line, where infinity has no other spelling
#: that a person would guess.
Exponent = float | Literal["inf"]


def check_p(p: Exponent) -> float:
    """Return ``p`` as a float if |x|_p is a norm, that is for p in [1, inf].

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_p(2), check_p("inf")
        (2.0, inf)
    """
    if not float(p) >= 1.0:
        raise ValueError(f"p must be at least 1 for |x|_p to be a norm (inf is allowed), got {p}")
    return float(p)


def log_magnitude(x: Tensor, p: Exponent = 2.0) -> Tensor:
    r"""Logarithm of the L^p magnitude of a key.

    .. math:: \text{mag}(x) = \frac{|x|_p^2}{2 \sqrt d}, \qquad |x|_p = \Bigl(\sum_i |x_i|^p\Bigr)^{1/p}

    The square of the norm is used, as in the authors' code. A small p rewards keys that are active in many
    coordinates, a large p those with one large coordinate; p = 2 is dot-product attention's.

    Value and gradient are finite for every p, at the zero vector and for vectors of any size whose square is: the
    largest coordinate is divided out first, and where all are zero the gradient is zero.

    Args:
        x: Keys.
        p: Exponent of the norm, in [1, inf].

    Shapes:
        x (..., d); the result (...).

    Raises:
        ValueError: If p is below 1.

    Example:
        >>> log_magnitude(torch.tensor([[3.0, 4.0, 0.0, 0.0]]), p=2)
        tensor([6.2500])
        >>> log_magnitude(torch.tensor([[3.0, 4.0, 0.0, 0.0]]), p=float("inf"))
        tensor([4.])
    """
    squared_norm = x.square().sum(-1) if check_p(p) == 2.0 else norm(x, p).square()
    return squared_norm / (2.0 * math.sqrt(x.size(-1)))


def norm(x: Tensor, p: Exponent = 2.0) -> Tensor:
    r"""The L^p norm, :math:`|x|_p = (\sum_i |x_i|^p)^{1/p}`.

    Value and gradient are finite for every p and at the zero vector, as in :func:`log_magnitude`. The norm of a vector
    is the norm of the norms of its parts, so that of a pair of vectors takes no more than theirs.

    Args:
        x: Vectors.
        p: Exponent of the norm, in [1, inf].

    Shapes:
        x (..., d); the result (...).

    Raises:
        ValueError: If p is below 1.

    Example:
        >>> norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([5., 0.])
    """
    p = check_p(p)
    if p == 1.0:
        return x.abs().sum(-1)
    if p == math.inf:
        return x.abs().amax(-1)
    # The norm over the divisor, times the divisor, does not depend on it, so the divisor needs no gradient.
    largest = x.detach().abs().amax(-1, keepdim=True)
    largest = largest.masked_fill(largest == 0.0, 1.0)
    total = (x / largest).abs().pow(p).sum(-1)
    total = torch.where(total > 0.0, total, 1.0)
    is_zero = x.detach().eq(0.0).all(-1)
    return largest.squeeze(-1) * total.pow(1.0 / p).masked_fill(is_zero, 0.0)
