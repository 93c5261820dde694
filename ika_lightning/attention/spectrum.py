r"""Spectrum: where the frequencies of a learned kernel come from.

=====================================  ===========================================================================
:class:`DirectSpectrum`                the frequencies are parameters
:class:`ImplicitSpectrum`              a generator makes them from noise whose law depends on the keys
the same with :class:`GaussianCopula`  that noise is drawn jointly over the heads
=====================================  ===========================================================================

A spectrum is called with the mean key of each head, or with None where no mean may be taken, and returns frequencies
and the regulariser that goes with them (section 4 of `Implicit Kernel Attention
<https://arxiv.org/abs/2006.06147>`_).
"""

from __future__ import annotations

import functools
import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ika_lightning.attention.start import Linear, normal_points, reset_children

Init = Literal["rbf", "wide", "paper"]

SpectrumName = Literal["direct", "implicit", "copula"]

# Two frequencies of a pair that start equal have equal gradients for ever. This much of the scale sets them apart, and
# changes the kernel at the start by its square.
_SYMMETRY_BREAKING = 1e-2

# The least standard deviation of a posterior: softplus underflows to 0, whose logarithm would
# make the divergence infinite and its gradient NaN.
_LEAST_STD = 1e-4


def initial_scale(num_heads: int, head_dim: int, num_samples: int, init: Init) -> float:
    r"""Standard deviation of the frequencies at the start, in radians per unit of the query.

    With ``"rbf"``, :math:`w \sim N(0, I / (2 \sqrt d))`: the squared stationary kernel estimates
    :math:`\exp(-|q - k|^2 / 2 \sqrt d)`, so that attention with p = 2 starts as scaled dot-product attention.

    That kernel is about :math:`e^{-\sqrt d}` for a query and a key of independent coordinates with variance 1, and the
    estimate of so small a value is off by about :math:`1 / M`: wide heads start by attending to noise. With ``"wide"``,
    :math:`w \sim N(0, I \ln 2 / d)`, it is about 1/4 in heads of any width.

    With ``"paper"``, the spread of the authors' uniform law of bound :math:`2 \pi / \sqrt{h M}`.

    Raises:
        ValueError: If init is another word.

    Example:
        >>> initial_scale(num_heads=8, head_dim=64, num_samples=64, init="rbf")
        0.25
    """
    if init == "rbf":
        return (2.0 * math.sqrt(head_dim)) ** -0.5
    if init == "wide":
        return math.sqrt(math.log(2.0) / head_dim)
    if init == "paper":
        return 2.0 * math.pi / math.sqrt(3.0 * num_heads * num_samples)
    raise ValueError(f"init must be 'rbf', 'wide' or 'paper', got {init!r}")


class DirectSpectrum(nn.Module):
    r"""Frequencies that are parameters (IKA-direct in the paper).

    Args:
        num_heads: Number of heads, h.
        head_dim: Width of a head, d.
        num_samples: Number of spectral samples, M.
        stationary: Learn one set of frequencies (Bochner) instead of pairs (Yaglom).
        init: Law of the frequencies at the start, see :func:`initial_scale`; ``"paper"`` draws the authors' uniform.

    Shapes:
        each of the one or two sets of frequencies (h, M, d).

    Example:
        >>> frequencies, kl = DirectSpectrum(num_heads=2, head_dim=3, num_samples=5, stationary=False)()
        >>> [tuple(w.shape) for w in frequencies], kl.item()
        ([(2, 5, 3), (2, 5, 3)], 0.0)
    """

    conditional = False

    def __init__(
        self, num_heads: int, head_dim: int, num_samples: int, *, stationary: bool = False, init: Init = "rbf"
    ) -> None:
        super().__init__()
        check_num_samples(num_samples)
        self.init: Init = init
        self.scale = initial_scale(num_heads, head_dim, num_samples, init)
        shape, copies = (num_heads, num_samples, head_dim), 1 if stationary else 2
        self.frequencies = nn.ParameterList(nn.Parameter(torch.empty(shape)) for _ in range(copies))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the frequencies anew, in place."""
        if self.init == "paper":
            bound = math.sqrt(3.0) * self.scale
            for frequencies in self.frequencies:
                nn.init.uniform_(frequencies, -bound, bound)
            return
        first = self.frequencies[0]
        num_heads, num_samples, head_dim = first.shape
        base = self.scale * normal_points(num_heads, num_samples, head_dim, first.device)
        spread = (len(self.frequencies) - 1) * _SYMMETRY_BREAKING * self.scale
        with torch.no_grad():
            for frequencies in self.frequencies:
                frequencies.copy_(base + spread * torch.randn(first.shape, device=first.device))

    def forward(self, mean_key: Tensor | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the frequencies and a regulariser of zero; the mean key is not looked at."""
        return tuple(self.frequencies), self.frequencies[0].new_zeros(())


class ImplicitSpectrum(nn.Module):
    r"""Frequencies made from noise by a generator: a density known only by its samples (IKA in the paper).

    .. math::
        z \sim N(\pm \mu, \sigma^2), \qquad w = g(z) = \text{sign}(z) \, f(|z|)

    Half of the samples are drawn around :math:`+\mu`, half around :math:`-\mu`, and g is odd, so the density of w is
    symmetric and the kernel real. :math:`\mu` and :math:`\sigma` are learned for each head, and moved by a small
    encoder of the head's mean key. f is a network over d that the heads share; a non-stationary kernel has two,
    fed the same z. The posterior starts at N(0, 1), and f as a multiple of the identity, so the spectrum
    starts as the Gaussian of :func:`initial_scale`, whatever the prior.

    The regulariser is the divergence from the prior, :math:`N(0, s^2)`, in closed form and per dimension, averaged over
    batch, heads and d, so that its weight does not depend on sizes:

    .. math::
        \text{KL} = \tfrac12 \Bigl(\tfrac{\mu^2 + \sigma^2}{s^2} - 1 - \log \tfrac{\sigma^2}{s^2}\Bigr)
                    - \tfrac{1}{2h} \log \det R_c

    where the last term, the information that the heads share, is there with a copula only.

    Departures from the authors' code: in evaluation the noise is a fixed set of
    :func:`~ika_lightning.attention.start.normal_points`, so a model gives the same answer twice; the mean is taken over
    keys that may be attended to, never over padding nor over queries (other queries would leak through it).

    Args:
        num_heads: Number of heads, h.
        head_dim: Width of a head, d.
        num_samples: Number of spectral samples, M.
        stationary: Use one generator (Bochner) instead of two (Yaglom).
        init: Scale of the frequencies at the start, see :func:`initial_scale`.
        prior_std: Standard deviation of the prior, s.
        conditional: Let the posterior depend on the mean key; False learns one posterior for all inputs.
        copula: Couples the heads' noise; None draws each head's on its own.

    Shapes:
        mean_key (b, h, d) or None; each set of frequencies (b, h, M, d), or (h, M, d) without a mean key.

    Raises:
        ValueError: If num_samples is below 1, prior_std is not positive, or init is unknown.

    Example:
        >>> spectrum = ImplicitSpectrum(num_heads=2, head_dim=3, num_samples=5)
        >>> frequencies, kl = spectrum(torch.randn(7, 2, 3))
        >>> [tuple(w.shape) for w in frequencies], round(kl.item(), 6)
        ([(7, 2, 5, 3), (7, 2, 5, 3)], 0.0)
    """

    points: Tensor
    side: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_samples: int,
        *,
        stationary: bool = False,
        init: Init = "rbf",
        prior_std: float = 1.0,
        conditional: bool = True,
        copula: GaussianCopula | None = None,
    ) -> None:
        super().__init__()
        check_num_samples(num_samples)
        if not 0.0 < prior_std < math.inf:
            raise ValueError(f"prior_std must be positive and finite, got {prior_std}")
        self.prior_std = float(prior_std)
        self.conditional = conditional
        scale = initial_scale(num_heads, head_dim, num_samples, init)
        self.mean = nn.Parameter(torch.empty(num_heads, head_dim))
        self.raw_std = nn.Parameter(torch.empty(num_heads, head_dim))
        self.encoder = small_encoder(head_dim, 2 * head_dim) if conditional else None
        self.generators = nn.ModuleList(OddGenerator(head_dim, scale) for _ in range(1 if stationary else 2))
        self.copula = copula
        self.register_buffer("points", torch.empty(num_heads, num_samples, head_dim))
        self.register_buffer("side", torch.empty(num_samples, 1), persistent=False)
        self._draw()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        reset_children(self)
        self._draw()

    def _draw(self) -> None:
        nn.init.zeros_(self.mean)
        nn.init.zeros_(self.raw_std)
        num_heads, num_samples, head_dim = self.points.shape
        self.points.copy_(normal_points(num_heads, num_samples, head_dim, self.points.device))
        # the first half and the second: each is a stretch of the points, and has a mean close to zero
        half = (self.side.size(0) + 1) // 2
        self.side[:half], self.side[half:] = 1.0, -1.0

    def posterior(self, mean_key: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the noise, (b, h, d) or (h, d)."""
        mean, raw_std = self.mean, self.raw_std
        if self.encoder is not None:
            # Without a mean key the encoder sees zeros, so its parameters are used in every call: distributed
            # training stops at a parameter that a step left out.
            shift = self.encoder(torch.zeros_like(mean) if mean_key is None else mean_key)
            mean_shift, std_shift = shift.chunk(2, dim=-1)
            mean, raw_std = mean + mean_shift, raw_std + std_shift
        # softplus grows linearly; the sum is 1 where raw_std is 0
        return mean, _LEAST_STD + F.softplus(raw_std + math.log(math.expm1(1.0 - _LEAST_STD)))

    def forward(self, mean_key: Tensor | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the frequencies and the divergence of the noise from its prior."""
        mean_key = None if mean_key is None else mean_key.to(self.mean.dtype)
        mean, std = self.posterior(mean_key)
        noise = torch.randn_like(self.points) if self.training else self.points  # (h, M, d)
        s = self.prior_std
        kl = 0.5 * ((mean.square() + std.square()) / s**2 - 1.0 - 2.0 * (std / s).log()).mean()
        if self.copula is not None:
            factor = self.copula(mean_key)  # (..., h, h)
            noise = torch.einsum("...ij,jmd->...imd", factor, noise)
            kl = kl - factor.diagonal(dim1=-2, dim2=-1).log().mean()  # -log det R_c / 2h
        z = self.side * mean.unsqueeze(-2) + std.unsqueeze(-2) * noise
        return tuple(generate(z) for generate in self.generators), kl

    def extra_repr(self) -> str:
        """Name the sizes that the printed submodules do not show."""
        return f"num_samples={self.points.size(1)}, prior_std={self.prior_std}, conditional={self.conditional}"


class OddGenerator(nn.Module):
    r"""The generator of frequencies, :math:`g(z) = \text{sign}(z) \, f(|z|)`, an odd function.

    .. math:: f(a) = \text{scale} \, \bigl(a + W_2 \, \text{silu}(W_1 a + b_1) + b_2\bigr)

    It starts close to a multiple of the identity, so that the law of the frequencies starts as that of the noise.

    Args:
        head_dim: Width of a head, d.
        scale: Standard deviation of the frequencies at the start.

    Shapes:
        z (..., d); the result (..., d).

    Example:
        >>> generate, z = OddGenerator(head_dim=3, scale=0.5), torch.randn(7, 3)
        >>> generate(-z).equal(-generate(z))
        True
    """

    def __init__(self, head_dim: int, scale: float) -> None:
        super().__init__()
        hidden = max(16, head_dim)
        law = functools.partial(nn.init.normal_, std=_SYMMETRY_BREAKING / math.sqrt(hidden))
        last = Linear(hidden, head_dim).starting(law)
        self.scale = scale
        self.network = nn.Sequential(nn.Linear(head_dim, hidden), nn.SiLU(), last)

    def forward(self, z: Tensor) -> Tensor:
        """Return the frequencies that the noise z stands for."""
        size = z.abs()
        correction: Tensor = self.network(size)
        return z.sign() * (size + correction) * self.scale


class GaussianCopula(nn.Module):
    r"""A Gaussian copula between the heads: what couples their noise and leaves each head's own law as it is.

    .. math::
        R_c = C C^T, \qquad C_{i \cdot} = \frac{(l_{i1}, \dots, l_{i,i-1}, 1, 0, \dots)}{\| \cdot \|}, \qquad
        \epsilon = C \xi, \; \xi \sim N(0, I_h)

    Rows of norm 1 make :math:`R_c` a correlation matrix, so marginals stay standard normal; every correlation matrix
    of full rank is reached by some l. l is learned, and moved by a small encoder of all heads' mean keys. It starts
    at zero: independent heads.

    Departures from the authors' code, which multiplies the noise by the row sums of C and does not normalise it, so
    that its heads are never coupled and their marginals are off.

    Args:
        num_heads: Number of heads, h.
        head_dim: Width of a head, d.
        conditional: Let the correlation depend on the mean keys.

    Shapes:
        mean_key (b, h, d) or None; the result, C, (b, h, h), or (h, h) without a mean key.

    Example:
        >>> GaussianCopula(num_heads=2, head_dim=3)()
        tensor([[1., 0.],
                [0., 1.]], grad_fn=<DivBackward0>)
    """

    def __init__(self, num_heads: int, head_dim: int, *, conditional: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        entries = num_heads * (num_heads - 1) // 2
        self.lower = nn.Parameter(torch.zeros(entries))
        # One head has nothing to be coupled with.
        self.encoder = small_encoder(num_heads * head_dim, entries) if conditional and entries else None
        self.width = num_heads * head_dim

    def reset_parameters(self) -> None:
        """Uncouple the heads, in place."""
        reset_children(self)
        nn.init.zeros_(self.lower)

    def forward(self, mean_key: Tensor | None = None) -> Tensor:
        """Return the factor C of the correlation between heads."""
        lower = self.lower
        if self.encoder is not None:
            lower = lower + self.encoder(lower.new_zeros(self.width) if mean_key is None else mean_key.flatten(-2))
        rows, columns = torch.tril_indices(self.num_heads, self.num_heads, offset=-1, device=lower.device)
        factor = torch.eye(self.num_heads, dtype=lower.dtype, device=lower.device)
        factor = factor.expand(*lower.shape[:-1], -1, -1).clone()
        factor[..., rows, columns] = lower
        return F.normalize(factor, dim=-1)


def build_spectrum(
    name: SpectrumName,
    num_heads: int,
    head_dim: int,
    num_samples: int,
    *,
    stationary: bool = False,
    init: Init = "rbf",
    prior_std: float = 1.0,
    conditional: bool = True,
) -> DirectSpectrum | ImplicitSpectrum:
    """Build a spectrum by name.

    Args:
        name: ``"direct"``, ``"implicit"``, or ``"copula"`` for the implicit one with heads that are coupled.
        num_heads: Number of heads, h.
        head_dim: Width of a head, d.
        num_samples: Number of spectral samples, M.
        stationary: One set of frequencies (Bochner) instead of pairs (Yaglom).
        init: Law or scale of the frequencies at the start, see :func:`initial_scale`.
        prior_std: As in :class:`ImplicitSpectrum`; the direct spectrum has no prior.
        conditional: As in :class:`ImplicitSpectrum`; the direct spectrum depends on nothing.

    Raises:
        ValueError: If there is no spectrum of that name, or the spectrum refuses its arguments.

    Example:
        >>> build_spectrum("copula", num_heads=2, head_dim=3, num_samples=5).copula is None
        False
    """
    if name not in get_args(SpectrumName):
        raise ValueError(f"spectrum must be one of {', '.join(map(repr, get_args(SpectrumName)))}, got {name!r}")
    if name == "direct":
        return DirectSpectrum(num_heads, head_dim, num_samples, stationary=stationary, init=init)
    return ImplicitSpectrum(
        num_heads,
        head_dim,
        num_samples,
        stationary=stationary,
        init=init,
        prior_std=prior_std,
        conditional=conditional,
        copula=GaussianCopula(num_heads, head_dim, conditional=conditional) if name == "copula" else None,
    )


def small_encoder(width_in: int, width_out: int) -> nn.Sequential:
    """Build the two-layer network that moves a posterior; it starts by returning zeros.

    Example:
        >>> small_encoder(3, 2)(torch.ones(3)).detach()
        tensor([0., 0.])
    """
    hidden = max(16, width_in)
    last = Linear(hidden, width_out).starting(nn.init.zeros_)
    return nn.Sequential(nn.Linear(width_in, hidden), nn.SiLU(), last)


def check_num_samples(num_samples: int) -> None:
    """Refuse a number of spectral samples that is not a positive whole number.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a whole number of at least 1, got {num_samples}")
