r"""Feature maps: functions whose inner products are kernels.

A positive semi-definite function is the Fourier transform of a non-negative measure, its spectral density (Bochner's
theorem; Yaglom's for kernels that are not functions of the difference). Frequencies drawn from the density give
feature maps whose inner product estimates the kernel (eqs. 5 to 9 of `Implicit Kernel Attention
<https://arxiv.org/abs/2006.06147>`_):

.. math:: \rho(q, k) = \phi(q) \cdot \phi(k)

To add a feature map, write a subclass of :class:`FeatureMap`, and let a spectrum return it; layers over sequences and
over graphs take it as it is. One of frequencies, a subclass of
:class:`~ika_lightning.attention.features.Fourier`, is faster on graphs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class FeatureMap(ABC):
    """A function of queries and keys whose inner products are a kernel.

    Example:
        >>> class Products(FeatureMap):
        ...     def __call__(self, x: Tensor) -> Tensor:
        ...         return x
        >>> Products()(torch.ones(2, 5, 3)).shape
        torch.Size([2, 5, 3])
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Map queries or keys to features: (..., h, n, d) -> (..., h, n, R)."""

    def select(self, index: Tensor) -> FeatureMap:
        """Return the map of the sequences ``index``; itself, unless each sequence of a batch has its own.

        A map of a conditional spectrum, which is told something of each sequence, has to say it itself.
        """
        return self


@dataclass(frozen=True, eq=False)
class Fourier(FeatureMap):
    r"""A map made of frequencies, of which the kernel is a sum of cosines.

    .. math:: \phi(q) \cdot \phi(k) = \sum_r a_r(q) \cos(\alpha_r(q) - \omega_r \cdot k)

    The frequencies of the key stand alone in this form, so the phases of a key that is made of parts are sums of
    theirs.

    Args:
        frequencies: One set of frequencies or two, in radians per unit of x.

    Shapes:
        each set (h, M, d), or (b, h, M, d) where each sequence has its own.

    Example:
        >>> isinstance(Bochner((torch.ones(2, 5, 3),)), Fourier), Bochner((torch.ones(2, 5, 3),)).joined.shape
        (True, torch.Size([2, 5, 3]))
    """

    frequencies: tuple[Tensor, ...]

    def select(self, index: Tensor) -> Fourier:
        """Return the map of the sequences ``index``; itself, unless each sequence has its own."""
        if all(w.dim() == 3 for w in self.frequencies):
            return self
        return type(self)(tuple(w.index_select(0, index) if w.dim() == 4 else w for w in self.frequencies))

    @property
    def joined(self) -> Tensor:
        r"""All frequencies of the cosines, :math:`\omega`, (..., h, R, d)."""
        return torch.cat(self.frequencies, -2)

    def amplitude_and_offset(self, phase: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`a(q)` and :math:`\alpha(q)` of a query, given its phases :math:`\omega \cdot q`.

        Shapes:
            phase and both results (..., R).
        """
        raise NotImplementedError

    def _check_width(self, x: Tensor) -> None:
        width = self.frequencies[0].size(-1)
        if x.size(-1) != width:
            raise ValueError(
                f"frequencies must be as wide as a head, {x.size(-1)}, but the spectrum returned some of width {width}"
            )
        for w in self.frequencies:
            if w.dim() > 2 and x.dim() > 2 and w.size(-3) not in (1, x.size(-3)):
                raise ValueError(
                    f"frequencies must be (heads, samples, width) with {x.size(-3)} heads, but the spectrum returned "
                    f"some of shape {tuple(w.shape)}"
                )


class Bochner(Fourier):
    r"""Random Fourier features of a stationary kernel, a function of the difference of its arguments.

    .. math::
        \phi(x) = \tfrac{1}{\sqrt M} [\cos(w_m \cdot x), \sin(w_m \cdot x)]_{m=1}^M, \qquad
        \phi(q) \cdot \phi(k) = \tfrac1M \sum_m \cos(w_m \cdot (q - k))

    Args:
        frequencies: One set, :math:`w_m`, in radians per unit of x.

    Shapes:
        frequencies ((..., h, M, d),); x (..., h, n, d); the result (..., h, n, 2M). Leading axes broadcast.

    Raises:
        ValueError: If x is as wide as no frequency.

    Example:
        >>> Bochner((torch.ones(2, 3),))(torch.zeros(1, 3))
        tensor([[0.7071, 0.7071, 0.0000, 0.0000]])
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Map queries or keys to features."""
        self._check_width(x)
        (w,) = self.frequencies
        return on_circle(phase(x, w), w.size(-2) ** -0.5)

    def amplitude_and_offset(self, phase: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`a = 1/M` and :math:`\alpha = w \cdot q`."""
        return torch.full_like(phase, 1.0 / phase.size(-1)), phase


@dataclass(frozen=True, eq=False)
class Yaglom(Fourier):
    r"""Random Fourier features of any kernel, from pairs of frequencies.

    .. math::
        \phi(x) = \tfrac{1}{\sqrt{4M}} [\cos(u_m \cdot x) + \cos(w_m \cdot x),
                                        \sin(u_m \cdot x) + \sin(w_m \cdot x)]_{m=1}^M

    With c and e half the sum and half the difference of the two phases, this is
    :math:`\tfrac{1}{\sqrt M} \cos e_m [\cos c_m, \sin c_m]`: a stationary feature map whose amplitude varies over the
    space, with three trigonometric functions instead of four. Equal pairs give :class:`Bochner`.

    Args:
        frequencies: Two sets, :math:`u_m` and :math:`w_m`, in radians per unit of x.

    Shapes:
        each set (..., h, M, d); x (..., h, n, d); the result (..., h, n, 2M). Leading axes broadcast.

    Raises:
        ValueError: If x is as wide as no frequency.

    Example:
        >>> x, w = torch.ones(1, 3), torch.ones(2, 3)
        >>> Yaglom((w, w))(x).allclose(Bochner((w,))(x))
        True
    """

    _halves: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make half the sums of pairs and half their differences, (..., 2M, d), once for queries and keys."""
        first, second = self.frequencies
        middle = torch.lerp(first, second, 0.5)
        # what a frozen dataclass does itself
        object.__setattr__(self, "_halves", torch.cat([middle, first - middle], -2))

    def __call__(self, x: Tensor) -> Tensor:
        """Map queries or keys to features."""
        self._check_width(x)
        return on_modulated_circle(phase(x, self._halves), self.frequencies[0].size(-2) ** -0.5)

    def amplitude_and_offset(self, phase: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`a = \cos((u - w) \cdot q / 2) / 2M` and :math:`\alpha = (u + w) \cdot q / 2`, each twice."""
        first, second = phase.chunk(2, dim=-1)
        amplitude, offset = ((first - second) / 2).cos() / phase.size(-1), (first + second) / 2
        return torch.cat([amplitude, amplitude], -1), torch.cat([offset, offset], -1)


def fourier(frequencies: tuple[Tensor, ...]) -> Fourier:
    """Return Bochner's map of one set of frequencies, Yaglom's of two.

    Example:
        >>> type(fourier((torch.ones(1, 1),))).__name__
        'Bochner'
    """
    return Bochner(frequencies) if len(frequencies) == 1 else Yaglom(frequencies)


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
    frequencies = frequencies.to(x.dtype)
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
    # a compiler fuses operations itself, and cannot look into a function with a derivative along directions
    function = _OnCircle.forward if torch.compiler.is_compiling() else _OnCircle.apply
    points: Tensor = function(phase, radius)
    return points


class _OnCircle(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(phase: Tensor, radius: float) -> Tensor:
        return torch.cat([phase.cos(), phase.sin()], -1).mul_(radius)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (points,) = ctx.saved_tensors
        (cos, sin), (grad_cos, grad_sin) = points.chunk(2, -1), grad.chunk(2, -1)
        return torch.addcmul(grad_sin * cos, grad_cos, sin, value=-1), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (points,) = ctx.saved_tensors
        cos, sin = points.chunk(2, -1)
        return torch.cat([-sin * tangent, cos * tangent], -1)


def on_modulated_circle(phases: Tensor, radius: float) -> Tensor:
    r"""Return points on circles whose radius is itself a cosine, :math:`r \cos e \, [\cos c, \sin c]`.

    Cosines and sines of all phases are taken once, in two passes over memory that is in one piece, and kept: they are
    each other's derivatives.

    Args:
        phases: :math:`[c, e]`, side by side.
        radius: :math:`r`.

    Shapes:
        phases (..., 2M); the result (..., 2M), cosines first.

    Example:
        >>> on_modulated_circle(torch.zeros(2), radius=3.0)
        tensor([3., 0.])
    """
    if torch.compiler.is_compiling():
        # see on_circle
        phase, of_radius = phases.chunk(2, -1)
        amplitude = of_radius.cos() * radius
        return torch.cat([phase.cos() * amplitude, phase.sin() * amplitude], -1)
    points: Tensor = _OnModulatedCircle.apply(phases, radius)[0]
    return points


class _OnModulatedCircle(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(phases: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
        cos, sin = phases.cos(), phases.sin()
        half = phases.size(-1) // 2
        amplitude = cos[..., half:] * radius
        # in one piece, as products of matrices want them, whatever the order in which a product has made the phases
        points = phases.new_empty(phases.shape)
        points[..., :half].copy_(cos[..., :half]).mul_(amplitude)
        points[..., half:].copy_(sin[..., :half]).mul_(amplitude)
        return points, cos, sin

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor, Tensor]) -> None:
        points, cos, sin = output
        ctx.mark_non_differentiable(cos, sin)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], points, cos, sin)
        ctx.save_for_forward(points, cos, sin)
        ctx.radius = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        phases, points, cos, sin = ctx.saved_tensors
        if torch.is_grad_enabled():
            # they have derivatives of their own
            cos, sin = phases.cos(), phases.sin()
        half = phases.size(-1) // 2
        (cos_c, _), (sin_c, sin_e) = cos.split(half, -1), sin.split(half, -1)
        of_cos, of_sin = grad.split(half, -1)
        # in the order of the phases, in which the product that made them is differentiated; expanded ones have none
        has_order = all(phases.stride())
        result = grad.new_empty_strided(phases.size(), phases.stride()) if has_order else torch.empty_like(grad)
        result[..., :half].copy_(torch.addcmul(of_sin * points[..., :half], of_cos, points[..., half:], value=-1))
        result[..., half:].copy_(torch.addcmul(of_cos * cos_c, of_sin, sin_c)).mul_(sin_e).mul_(-ctx.radius)
        return result, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, None, None]:
        points, cos, sin = ctx.saved_tensors
        half = tangent.size(-1) // 2
        of_c, of_e = tangent.split(half, -1)
        (cos_c, _), (sin_c, sin_e) = cos.split(half, -1), sin.split(half, -1)
        wane = -ctx.radius * sin_e * of_e
        return (
            torch.cat([cos_c * wane - points[..., half:] * of_c, sin_c * wane + points[..., :half] * of_c], -1),
            None,
            None,
        )
