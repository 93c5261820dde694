r"""Magnitude: how much a key asks to be attended to, whatever the query.

The exponential of a scaled dot product is a kernel times two magnitudes (eq. 3 of `Implicit Kernel Attention
<https://arxiv.org/abs/2006.06147>`_), and the magnitude of the L2 norm is only one choice:

.. math:: \exp(q \cdot k / \sqrt d) = e^{-|q - k|^2 / 2 \sqrt d} \; e^{|q|^2 / 2 \sqrt d} \; e^{|k|^2 / 2 \sqrt d}
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

#: Exponent of a norm. Infinity is a word because configuration files and the command line have no other spelling for it
#: that a person would guess; ``"learned"`` gives each head an exponent of its own.
Exponent = float | Literal["inf", "learned"]


class Magnitude(nn.Module):
    r"""How much a key asks to be attended to, as a module: :func:`log_magnitude` with an exponent that may be learned.

    .. math:: \text{mag}(x) = c_h \frac{|x|_{p_h}^2}{2 \sqrt d}, \qquad p_h = 1 + e^{r_h}

    With ``p="learned"`` each head has an exponent p in (1, inf), which starts at 2, and a scale c > 0, which starts at
    1: r and the logarithm of c are parameters that start at 0. (The paper learns p; the authors' code fixes it.) With
    a number, p is that number and c is 1.

    Args:
        num_heads: Number of heads, h.
        p: Exponent of the norm, in [1, inf], or ``"learned"``.

    Shapes:
        x (..., h, m, d); the result (..., h, m).

    Raises:
        ValueError: If p is below 1, or another word.

    Example:
        >>> magnitude, keys = Magnitude(num_heads=2, p="learned"), torch.randn(2, 5, 3)
        >>> magnitude(keys).allclose(log_magnitude(keys, p=2.0))
        True
    """

    def __init__(self, num_heads: int, p: Exponent = 2.0) -> None:
        super().__init__()
        learned = p == "learned"
        self.fixed_p = None if learned else check_p(p)
        self.raw_p = nn.Parameter(torch.empty(num_heads)) if learned else None
        self.log_scale = nn.Parameter(torch.empty(num_heads)) if learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to p = 2 and a scale of 1, if they are learned."""
        for parameter in (self.raw_p, self.log_scale):
            if parameter is not None:
                nn.init.zeros_(parameter)

    @property
    def p(self) -> float | Tensor:
        """The exponent: a number, or that of each head, (h,)."""
        if self.raw_p is None:
            assert self.fixed_p is not None
            return self.fixed_p
        return 1.0 + self.raw_p.exp()

    @property
    def scale(self) -> Tensor | None:
        """The scale of each head, (h,); None if it is 1 and not learned."""
        return None if self.log_scale is None else self.log_scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm of the magnitude of keys."""
        p = self.p
        magnitude = log_magnitude(x, p.unsqueeze(-1) if isinstance(p, Tensor) else p)
        return magnitude if self.scale is None else magnitude * self.scale.unsqueeze(-1)

    def norm(self, x: Tensor) -> Tensor:
        """Return the norms of vectors (n, h, d), with the heads' exponents; (n, h)."""
        return norm(x, self.p)

    def of_norm(self, x: Tensor, width: int) -> Tensor:
        """Return the logarithm of the magnitude of keys of a width, given their norms; (n, h) -> (n, h)."""
        magnitude = x.square() / (2.0 * math.sqrt(width))
        return magnitude if self.scale is None else magnitude * self.scale

    def extra_repr(self) -> str:
        """Name the exponent."""
        return f"p={'learned' if self.fixed_p is None else self.fixed_p}"


def check_p(p: Exponent) -> float:
    """Return ``p`` as a float if |x|_p is a norm, that is for p in [1, inf].

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_p(2), check_p("inf")
        (2.0, inf)
    """
    try:
        number = float(p)
    except (TypeError, ValueError):
        number = math.nan
    if not number >= 1.0:
        raise ValueError(f"p must be at least 1 for |x|_p to be a norm (inf is allowed), or 'learned'; got {p!r}")
    return number


def log_magnitude(x: Tensor, p: Exponent | Tensor = 2.0) -> Tensor:
    r"""Logarithm of the L^p magnitude of a key.

    .. math:: \text{mag}(x) = \frac{|x|_p^2}{2 \sqrt d}, \qquad |x|_p = \Bigl(\sum_i |x_i|^p\Bigr)^{1/p}

    The square of the norm is used, as in the authors' code. A small p rewards keys that are active in many
    coordinates, a large p those with one large coordinate; p = 2 is dot-product attention's.

    Value and gradient are finite for every p, at the zero vector and for vectors of any size whose square is: the
    largest coordinate is divided out first, and where all are zero the gradient is zero.

    Args:
        x: Keys.
        p: Exponent of the norm, in [1, inf]; or a tensor of exponents, finite, which gets a gradient.

    Shapes:
        x (..., d); p, if it is a tensor, broadcastable to (...); the result (...).

    Raises:
        ValueError: If p is below 1.

    Example:
        >>> log_magnitude(torch.tensor([[3.0, 4.0, 0.0, 0.0]]), p=2)
        tensor([6.2500])
        >>> log_magnitude(torch.tensor([[3.0, 4.0, 0.0, 0.0]]), p=float("inf"))
        tensor([4.])
    """
    two = not isinstance(p, Tensor) and check_p(p) == 2.0
    squared_norm = x.square().sum(-1) if two else norm(x, p).square()
    return squared_norm / (2.0 * math.sqrt(x.size(-1)))


def norm(x: Tensor, p: Exponent | Tensor = 2.0) -> Tensor:
    r"""The L^p norm, :math:`|x|_p = (\sum_i |x_i|^p)^{1/p}`.

    Value and gradient are finite for every p and at the zero vector, as in :func:`log_magnitude`. The norm of a vector
    is the norm of the norms of its parts, so that of a pair of vectors takes no more than theirs.

    Args:
        x: Vectors.
        p: Exponent of the norm, in [1, inf]; or a tensor of exponents, finite, which gets a gradient.

    Shapes:
        x (..., d); p, if it is a tensor, broadcastable to (...); the result (...).

    Raises:
        ValueError: If p is below 1.

    Example:
        >>> norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([5., 0.])
    """
    if not isinstance(p, Tensor):
        number = check_p(p)
        if number == 1.0:
            return x.abs().sum(-1)
        if number == math.inf:
            return x.abs().amax(-1)
        p = x.new_full((), number)
    # a compiler fuses operations itself, and cannot look into a function with a derivative along directions
    function = _Norm.forward if torch.compiler.is_compiling() else _Norm.apply
    result: Tensor = function(x, p.to(x.dtype))[0]
    return result


class _Norm(torch.autograd.Function):
    r"""The norm and its derivatives, written out: autograd's would pass over the coordinates three times as often.

    With r the coordinates' sizes over the largest of them and :math:`t = \sum_i r_i^p`, which is at least 1,

    .. math::
        \frac{\partial |x|_p}{\partial x_i} = \text{sign}(x_i)\, t^{1/p - 1}\, r_i^{p - 1}, \qquad
        \frac{\partial |x|_p}{\partial p} = |x|_p \Bigl(\frac{\sum_i r_i^p \ln r_i}{p\, t} - \frac{\ln t}{p^2}\Bigr)

    Powers of two and logarithms to their base, as these are what processors have.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        largest, log_ratio = _log_ratio(x)
        total = _total(log_ratio, p)
        return largest * total.pow(1.0 / p), log_ratio, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        norm, log_ratio, total = output
        ctx.mark_non_differentiable(log_ratio, total)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, norm, log_ratio, total)
        ctx.save_for_forward(*inputs, norm, log_ratio, total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None]:
        if grad is None:
            return None, None
        x, p, norm, log_ratio, total = ctx.saved_tensors
        if torch.is_grad_enabled():
            # they have derivatives of their own
            log_ratio = _log_ratio(x)[1]
            total = _total(log_ratio, p)
        slope, scale, by_p = _derivatives(x, p, norm, log_ratio, total)
        return slope * (scale * grad).unsqueeze(-1), (by_p * grad).sum_to_size(p.shape)

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor | None, of_p: Tensor | None) -> tuple[Tensor, None, None]:
        slope, scale, by_p = _derivatives(*ctx.saved_tensors)
        result = torch.zeros_like(scale)
        if of_x is not None:
            result = result + scale * (slope * of_x).sum(-1)
        return (result if of_p is None else result + by_p * of_p), None, None


def _log_ratio(x: Tensor) -> tuple[Tensor, Tensor]:
    """The size of the largest coordinate; and the logarithm to base 2 of all of them over it, where 0 is 2^-126."""
    size = x.abs()
    # the norm over the divisor, times the divisor, does not depend on it, so the divisor needs no gradient
    largest = size.detach().amax(-1)
    ratio = size / largest.masked_fill(largest == 0.0, 1.0).unsqueeze(-1)
    return largest, ratio.clamp_min(torch.finfo(torch.float32).tiny).log2()


def _total(log_ratio: Tensor, p: Tensor) -> Tensor:
    """The sum of powers of ratios, of which one is 1, unless all are zero."""
    return (log_ratio * p.unsqueeze(-1)).exp2().sum(-1).clamp_min(1.0)


def _derivatives(x: Tensor, p: Tensor, norm: Tensor, log_ratio: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative by x, as a factor for each coordinate and one for all of them, and that by p."""
    slope = (log_ratio * (p - 1.0).unsqueeze(-1)).exp2() * x.sign()
    scale = total.pow(1.0 / p - 1.0)
    by_p = scale * (slope * x * log_ratio).sum(-1) * math.log(2.0) / p - norm * total.log() / p.square()
    return slope, scale, by_p
