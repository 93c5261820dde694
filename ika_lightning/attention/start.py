"""How parameters start, and start again: laws that hold wherever a layer is built, on ``meta`` included.

A module is materialised by ``to_empty`` and ``reset_parameters``. Each module here resets all that is in it, and each
part on its own starts by the law that the whole gives it, so it is all the same whether the outermost module is asked,
or each of ``module.modules()`` in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

Init = Literal["softmax", "rbf", "wide", "paper"]


class Linear(nn.Linear):
    """:class:`torch.nn.Linear` that can start by another law.

    Example:
        >>> linear = Linear(3, 2).starting(nn.init.zeros_)
        >>> linear.reset_parameters()
        >>> linear.weight.abs().sum().item()
        0.0
    """

    law: Callable[[Tensor], object] | None = None

    def starting(self, law: Callable[[Tensor], object]) -> Self:
        """Draw weights by a law, given a tensor to fill in place, now and at every reset; the bias is then zero."""
        self.law = law
        self._draw(law)
        return self

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        super().reset_parameters()
        if self.law is not None:
            self._draw(self.law)

    def _draw(self, law: Callable[[Tensor], object]) -> None:
        law(self.weight)
        # (PyTorch's stubs know no layer without a bias)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class TwoLayers(nn.Sequential):
    """A network of two layers, the last of which starts by a law of its own.

    Example:
        >>> TwoLayers(3, 16, 2, nn.init.zeros_)(torch.ones(3)).detach()
        tensor([0., 0.])
    """

    def __init__(self, width_in: int, hidden: int, width_out: int, law: Callable[[Tensor], object]) -> None:
        last = Linear(hidden, width_out).starting(law)
        super().__init__(nn.Linear(width_in, hidden), nn.SiLU(), last)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in the order in which they were made: one seed draws the same."""
        first, _, last = self.children()
        for layer in (last, first):
            assert isinstance(layer, nn.Linear)
            layer.reset_parameters()


def reset_children(module: nn.Module) -> None:
    """Reset the parameters of what is directly inside a module, as far as it can."""
    for child in module.children():
        reset = getattr(child, "reset_parameters", None)
        if reset is None:
            reset_children(child)
        else:
            reset()


def initial_scale(num_heads: int, head_dim: int, num_samples: int, init: Init, smoothing: float = 0.0) -> float:
    r"""Standard deviation of the frequencies at the start, in radians per unit of the query.

    With ``"rbf"``, :math:`w \sim N(0, I (1 - s) / (2 \sqrt d))`, where s, the ``smoothing``, is the part of the
    Gaussian that is exact: the whole kernel starts as :math:`\exp(-|q - k|^2 / 2 \sqrt d)`, so that attention with
    p = 2 starts as an estimate of scaled dot-product attention.

    Without an exact part that kernel is about :math:`e^{-\sqrt d}` for a query and a key of independent coordinates
    with variance 1, and the estimate of so small a value is off by about :math:`1 / M`: wide heads start by attending
    to noise. With ``"wide"``, :math:`w \sim N(0, I \ln 2 / d)`, it is about 1/4 in heads of any width. ``"softmax"``
    has these frequencies, too, beside a whole Gaussian that is exact.

    With ``"paper"``, the spread of the authors' uniform law of bound :math:`2 \pi / \sqrt{h M}`.

    Raises:
        ValueError: If init is another word.

    Example:
        >>> initial_scale(num_heads=8, head_dim=64, num_samples=64, init="rbf")
        0.25
    """
    check_init(init, smoothing)
    if init == "rbf":
        return math.sqrt((1.0 - smoothing) / (2.0 * math.sqrt(head_dim)))
    if init == "paper":
        return 2.0 * math.pi / math.sqrt(3.0 * num_heads * num_samples)
    return math.sqrt(math.log(2.0) / head_dim)


def check_init(init: str, smoothing: float) -> None:
    """Refuse a start that there is not, and a smoothing that is out of its range or has no part in that start.

    Raises:
        ValueError: If it is so.
    """
    if init not in get_args(Init):
        raise ValueError(f"init must be one of {', '.join(map(repr, get_args(Init)))}, got {init!r}")
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(
            f"smoothing must be in [0, 1), the exact part of the Gaussian, got {smoothing}; init='softmax' is all exact"
        )
    if smoothing > 0.0 and init != "rbf":
        raise ValueError(f"smoothing goes with init='rbf' alone, got smoothing={smoothing} with init={init!r}")


def normal_points(num_heads: int, num_samples: int, head_dim: int, device: torch.device | None = None) -> Tensor:
    r"""Orthogonal points of the standard normal law, independent over the heads.

    Each point has exactly the standard normal law, so that features made of it estimate their kernel without bias, but
    points of a head are not independent: in blocks of d they are orthogonal to one another (`Orthogonal Random Features
    <https://arxiv.org/abs/1610.09072>`_), and from block to block each is turned to the side on which their sum is
    not, which keeps the mean of every stretch close to zero. The cosine of a frequency does not notice its sign, so at
    a posterior of mean zero the second is for free; it pays once the mean has moved.

    Error of the output of dot-product attention estimated with M samples, relative to the output's size, for standard
    normal queries and keys of half their size, 64 of each, over 24 seeds:

    ====  ====  ===========  ===================  ==================  ==========
    d     M     independent  Sobol, heads joined  Sobol, a head each  orthogonal
    ====  ====  ===========  ===================  ==================  ==========
    8     16    0.213        0.230                0.202               0.091
    8     128   0.075        0.075                0.024               0.032
    16    16    0.309        0.335                0.325               0.128
    16    64    0.156        0.155                0.102               0.061
    64    64    0.350        0.385                0.366               0.205
    64    128   0.250        0.268                0.235               0.144
    ====  ====  ===========  ===================  ==================  ==========

    Args:
        num_heads: Number of heads, h.
        num_samples: Number of points of a head, M.
        head_dim: Width of a head, d.
        device: Where they are drawn, by the generator of that device; the default device if None.

    Shapes:
        the result (h, M, d).

    Example:
        >>> first, second = normal_points(1, 2, 64)[0]
        >>> bool((first @ second).abs() < 1e-4)
        True
    """
    device = torch.get_default_device() if device is None else device
    shape = (num_heads, num_samples, head_dim)
    if device.type == "meta":
        return torch.empty(shape, device=device)
    # Apple's GPUs have no float64
    dtype = torch.float32 if device.type == "mps" else torch.float64
    seed = int(torch.randint(2**31, (), device=device).item())
    generator = torch.Generator(device).manual_seed(seed)
    gaussian = torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)
    total = torch.zeros(num_heads, 1, head_dim, dtype=dtype, device=device)
    points = []
    for block in gaussian.split(head_dim, dim=1):
        # directions come from one normal matrix and lengths from another, for the two are independent
        q, r = torch.linalg.qr(torch.empty_like(block).normal_(generator=generator).mT)
        # QR is unique up to signs; these give the uniform law of orthogonal frames.
        point = (q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).mT * block.norm(dim=-1, keepdim=True)
        # Points of a block do not change one another's side of the sum: they are orthogonal.
        side = torch.where((point * total).sum(-1, keepdim=True) > 0.0, -1.0, 1.0)
        points.append(side * point)
        total = total + points[-1].sum(1, keepdim=True)
    return torch.cat(points, 1).to(torch.get_default_dtype())
