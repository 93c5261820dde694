"""Explicit kernels: similarity chosen by hand, by its formula.

To add a kernel, add a :class:`Kernel` here; nothing else has to change.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Kernel(nn.Module):
    r"""A kernel given by its formula, with a lengthscale for each head.

    A subclass implements :meth:`forward`, which returns the logarithm of the kernel: in attention it is added to the
    logarithm of the magnitude. The lengthscale is learned, through its logarithm, so that no step of an optimizer
    can make it negative.

    Args:
        num_heads: Number of heads, h.
        head_dim: Width of a head, d. It sets the initial lengthscale, :math:`d^{1/4}`: with it, the Gaussian kernel is
            the one that scaled dot-product attention contains.

    Shapes:
        lengthscale (h, 1, 1); query (..., h, n, d); key (..., h, m, d); the result (..., h, n, m).

    Example:
        >>> kernel = MaternKernel(num_heads=2, head_dim=3, nu=0.5)
        >>> kernel(torch.zeros(2, 5, 3), torch.zeros(2, 7, 3)).exp().shape
        torch.Size([2, 5, 7])
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        # relative to the lengthscale inside dot-product attention, which is then reached exactly in any precision
        self.log_relative_lengthscale = nn.Parameter(torch.zeros(num_heads, 1, 1))

    def reset_parameters(self) -> None:
        """Return to the initial kernel, in place."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @property
    def lengthscale(self) -> Tensor:
        """The lengthscale of each head, positive, in units of the query."""
        return self.log_relative_lengthscale.exp() * self.head_dim**0.25

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the logarithm of the kernel between every query and every key."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # until version 0.1, the logarithm of the lengthscale itself was kept
        old = state_dict.pop(f"{prefix}log_lengthscale", None)
        if old is not None:
            state_dict[f"{prefix}log_relative_lengthscale"] = old - math.log(self.head_dim) / 4
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class RBFKernel(Kernel):
    r"""The Gaussian kernel, :math:`\log k(q, k) = -s |q - k|^2 / 2 \sqrt d = -|q - k|^2 / 2 \ell^2`.

    It is the exact part of a learned kernel as well: up to a factor of the query's, it is the exponential of a product,
    :math:`e^{s q \cdot k / \sqrt d}\, e^{-s |k|^2 / 2 \sqrt d}`.

    Args:
        num_heads: Number of heads, h.
        head_dim: Width of a head, d.
        precision: s at the start, positive; 1 is dot-product attention's.

    Raises:
        ValueError: If the precision is not positive.

    Example:
        >>> RBFKernel(num_heads=1, head_dim=4)(torch.zeros(1, 1, 4), torch.ones(1, 1, 4)).item()
        -1.0
    """

    def __init__(self, num_heads: int, head_dim: int, precision: float = 1.0) -> None:
        super().__init__(num_heads, head_dim)
        if not 0.0 < precision < math.inf:
            raise ValueError(f"precision, the s of exp(-s |q - k|^2 / 2 sqrt d), must be positive, got {precision}")
        self.start = -math.log(precision) / 2
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to the initial precision, in place."""
        nn.init.constant_(self.log_relative_lengthscale, self.start)

    @property
    def precision(self) -> Tensor:
        """The s of each head, (h, 1, 1), positive; 1 is dot-product attention's."""
        return (-2.0 * self.log_relative_lengthscale).exp()

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the logarithm of the kernel between every query and every key."""
        return -squared_distance(query, key) * self.precision / (2 * math.sqrt(self.head_dim))


class MaternKernel(Kernel):
    r"""The Matern kernels of half-integer order.

    With :math:`r = \sqrt{2 \nu} |q - k| / \ell`,

    .. math::
        k_{1/2} = e^{-r}, \qquad k_{3/2} = (1 + r) e^{-r}, \qquad k_{5/2} = (1 + r + r^2 / 3) e^{-r}

    Args:
        num_heads: Number of heads.
        head_dim: Width of a head.
        nu: Order: 0.5, 1.5 or 2.5; functions drawn with it are that often differentiable, rounded down.

    Raises:
        ValueError: If nu is another number.

    Example:
        >>> kernel = MaternKernel(num_heads=1, head_dim=1, nu=0.5)
        >>> kernel(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 3.0)).item()
        -3.0
    """

    def __init__(self, num_heads: int, head_dim: int, nu: float = 1.5) -> None:
        super().__init__(num_heads, head_dim)
        if nu not in (0.5, 1.5, 2.5):
            raise ValueError(f"nu must be 0.5, 1.5 or 2.5, the orders with a closed form, got {nu}")
        self.nu = nu

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the logarithm of the kernel between every query and every key."""
        squared = squared_distance(query, key)
        # the gradient of a distance does not exist at 0 and is taken to be 0, as torch.cdist does
        apart = squared > 0
        distance = torch.where(apart, squared, 1.0).sqrt() * apart
        r = math.sqrt(2 * self.nu) * distance / self.lengthscale
        if self.nu == 0.5:
            return -r
        if self.nu == 1.5:
            return r.log1p() - r
        return (r + r.square() / 3).log1p() - r


class RationalQuadraticKernel(Kernel):
    r"""A mixture of Gaussian kernels of all scales, :math:`k = (1 + |q - k|^2 / 2 \alpha \ell^2)^{-\alpha}`.

    The weight of the long scales, alpha, is learned for each head; it starts at 1, and a large one gives the Gaussian.

    Example:
        >>> kernel = RationalQuadraticKernel(num_heads=1, head_dim=1)
        >>> round(kernel(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 2.0)).exp().item(), 4)  # 1 / (1 + 2^2 / 2)
        0.3333
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__(num_heads, head_dim)
        self.log_alpha = nn.Parameter(torch.zeros(num_heads, 1, 1))

    @property
    def alpha(self) -> Tensor:
        """The weight of long scales of each head, positive."""
        return self.log_alpha.exp()

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the logarithm of the kernel between every query and every key."""
        scaled = squared_distance(query, key) / (2 * self.alpha * self.lengthscale.square())
        return -self.alpha * scaled.log1p()


class PeriodicKernel(Kernel):
    r"""The product over coordinates of MacKay's periodic kernel.

    .. math::
        \log k(q, k) = -\frac{2}{\ell^2} \sum_i \sin^2 \frac{\pi (q_i - k_i)}{P}
                     = -\frac{1}{\ell^2} \bigl(d - c(q) \cdot c(k)\bigr), \qquad
        c(x) = \bigl[\cos \tfrac{2 \pi x}{P}, \sin \tfrac{2 \pi x}{P}\bigr]

    The second form is a matrix product and never holds n x m x d numbers. The period P is learned for each head and
    starts at :math:`2 \pi`.

    Example:
        >>> kernel = PeriodicKernel(num_heads=1, head_dim=1)
        >>> round(kernel(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 2 * math.pi)).item(), 4)  # a period apart
        0.0
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__(num_heads, head_dim)
        self.log_period = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to the initial kernel, in place."""
        super().reset_parameters()
        nn.init.constant_(self.log_period, math.log(2 * math.pi))

    @property
    def period(self) -> Tensor:
        """The period of each head, positive, in units of the query."""
        return self.log_period.exp()

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the logarithm of the kernel between every query and every key."""
        angles = (2 * math.pi * x / self.period for x in (query, key))
        on_circle_q, on_circle_k = (torch.cat([angle.cos(), angle.sin()], -1) for angle in angles)
        return (on_circle_q @ on_circle_k.mT - self.head_dim) / self.lengthscale.square()


class LinearKernel(Kernel):
    r"""The square of the linear kernel, :math:`k(q, k) = (c + q \cdot k / \ell^2)^2 + 10^{-5}`.

    A linear kernel may be negative, which no weight may be; it is squared for the same reason, and given the same
    floor, as an estimated kernel (:func:`~ika_lightning.attention.kernel_attention`). The offset c is learned for
    each head, is positive, and starts at 1.

    Example:
        >>> kernel = LinearKernel(num_heads=1, head_dim=1)
        >>> round(kernel(torch.ones(1, 1, 1), torch.full((1, 1, 1), 3.0)).exp().item(), 3)  # (1 + 3)^2
        16.0
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__(num_heads, head_dim)
        self.log_offset = nn.Parameter(torch.zeros(num_heads, 1, 1))

    @property
    def offset(self) -> Tensor:
        """The value of the linear kernel between orthogonal vectors, for each head, positive."""
        return self.log_offset.exp()

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the logarithm of the kernel between every query and every key."""
        linear = self.offset + (query @ key.mT) / self.lengthscale.square()
        return (linear.square() + 1e-5).log()


def squared_distance(query: Tensor, key: Tensor) -> Tensor:
    r"""Squared Euclidean distance between every query and every key, by one matrix product.

    .. math:: |q - k|^2 = |q|^2 + |k|^2 - 2 q \cdot k

    Shapes:
        query (..., n, d); key (..., m, d); the result (..., n, m), never negative.

    Example:
        >>> squared_distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([[25.,  1.]])
    """
    squares = query.square().sum(-1).unsqueeze(-1) + key.square().sum(-1).unsqueeze(-2)
    return (squares - 2 * (query @ key.mT)).clamp_min(0.0)
