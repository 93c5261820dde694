r"""Similarity: kernels estimated from frequencies, and explicit kernels chosen by hand.

A positive semi-definite function is the Fourier transform of a non-negative measure, its spectral density (Bochner's
theorem; Yaglom's for kernels that are not functions of the difference). Frequencies drawn from the density give
feature maps whose inner product estimates the kernel (eqs. 5 to 9 of `Implicit Kernel Attention
<https://arxiv.org/abs/2006.06147>`_):

.. math:: \rho(q, k) = \phi(q) \cdot \phi(k)

To add a kernel, add a feature map or a :class:`Kernel` here; nothing else has to change.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def stationary_features(x: Tensor, frequencies: Tensor) -> Tensor:
    r"""Random Fourier features of a stationary kernel (Bochner).

    .. math::
        \phi(x) = \tfrac{1}{\sqrt M} [\cos(w_m \cdot x), \sin(w_m \cdot x)]_{m=1}^M, \qquad
        \phi(q) \cdot \phi(k) = \tfrac1M \sum_m \cos(w_m \cdot (q - k))

    Args:
        x: Queries or keys.
        frequencies: :math:`w_m`, in radians per unit of x.

    Shapes:
        x (..., n, d); frequencies (..., M, d); the result (..., n, 2M). Leading axes broadcast.

    Example:
        >>> stationary_features(torch.zeros(1, 3), torch.ones(2, 3))
        tensor([[0.7071, 0.7071, 0.0000, 0.0000]])
    """
    return on_circle(phase(x, frequencies), frequencies.size(-2) ** -0.5)


def nonstationary_features(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    r"""Random Fourier features of a non-stationary kernel (Yaglom), from pairs of frequencies.

    .. math::
        \phi(x) = \tfrac{1}{\sqrt{4M}} [\cos(u_m \cdot x) + \cos(w_m \cdot x),
                                        \sin(u_m \cdot x) + \sin(w_m \cdot x)]_{m=1}^M

    With c and e half the sum and half the difference of u and w, this is
    :math:`\tfrac{1}{\sqrt M} \cos(e_m \cdot x) [\cos(c_m \cdot x), \sin(c_m \cdot x)]`: a stationary feature map whose
    amplitude varies over the space, with three trigonometric functions instead of four. Equal pairs give
    :func:`stationary_features`.

    Args:
        x: Queries or keys.
        first: :math:`u_m`, in radians per unit of x.
        second: :math:`w_m`.

    Shapes:
        x (..., n, d); first and second (..., M, d); the result (..., n, 2M). Leading axes broadcast.

    Example:
        >>> x, w = torch.ones(1, 3), torch.ones(2, 3)
        >>> nonstationary_features(x, w, w).allclose(stationary_features(x, w))
        True
    """
    points = on_circle(phase(x, (first + second) / 2), first.size(-2) ** -0.5)
    amplitude = phase(x, (first - second) / 2).cos()
    return (points.unflatten(-1, (2, -1)) * amplitude.unsqueeze(-2)).flatten(-2)


def phase(x: Tensor, frequencies: Tensor) -> Tensor:
    r"""Return :math:`w_m \cdot x`.

    A broadcast matrix product would copy frequencies that a batch shares for each of its sequences, which costs more
    than the product itself where sequences are short: in decoding, a query each.

    Shapes:
        x (..., n, d); frequencies (..., M, d); the result (..., n, M). Leading axes broadcast.

    Example:
        >>> phase(torch.ones(5, 2, 1, 3), torch.ones(2, 4, 3)).shape
        torch.Size([5, 2, 1, 4])
    """
    if x.dim() == frequencies.dim() + 1:
        return torch.einsum("b...nd,...md->b...nm", x, frequencies)
    return x @ frequencies.mT


def on_circle(phase: Tensor, radius: float) -> Tensor:
    """Return cosines and sines of phases, times a radius.

    Each is the other's derivative, so the backward needs the result alone, which attention keeps in any case: no cosine
    is computed twice, and nothing else is kept.

    Shapes:
        phase (..., M); the result (..., 2M), cosines first.

    Example:
        >>> on_circle(torch.zeros(1), radius=3.0)
        tensor([3., 0.])
    """
    points: Tensor = _OnCircle.apply(phase, radius)
    return points


class _OnCircle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phase: Tensor, radius: float) -> Tensor:
        points = torch.cat([phase.cos(), phase.sin()], -1).mul_(radius)
        ctx.save_for_backward(points)
        return points

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (points,) = ctx.saved_tensors
        (cos, sin), (grad_cos, grad_sin) = points.chunk(2, -1), grad.chunk(2, -1)
        return torch.addcmul(grad_sin * cos, grad_cos, sin, value=-1), None


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
        self.log_lengthscale = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to the initial kernel, in place; what a subclass adds starts at zero unless it says otherwise."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        nn.init.constant_(self.log_lengthscale, math.log(self.head_dim) / 4)

    @property
    def lengthscale(self) -> Tensor:
        """The lengthscale of each head, positive, in units of the query."""
        return self.log_lengthscale.exp()

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the logarithm of the kernel between every query and every key."""
        raise NotImplementedError


class RBFKernel(Kernel):
    r"""The Gaussian kernel, :math:`\log k(q, k) = -|q - k|^2 / 2 \ell^2`."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the logarithm of the kernel between every query and every key."""
        return -squared_distance(query, key) / (2 * self.lengthscale.square())


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
    """

    def __init__(self, num_heads: int, head_dim: int, nu: float = 1.5) -> None:
        super().__init__(num_heads, head_dim)
        if nu not in (0.5, 1.5, 2.5):
            raise ValueError(f"nu must be 0.5, 1.5 or 2.5, the orders with a closed form, got {nu}")
        self.nu = nu

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the logarithm of the kernel between every query and every key."""
        squared = squared_distance(query, key)
        # The gradient of a distance does not exist at 0 and is taken to be 0, as torch.cdist does.
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
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__(num_heads, head_dim)
        self.log_period = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to the initial kernel, in place."""
        super().reset_parameters()
        if "log_period" in self._parameters:
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
