"""A spectral density that is known only by its samples: a generator fed with noise."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ika_lightning.attention.copula import GaussianCopula, small_encoder
from ika_lightning.attention.features import FeatureMap, fourier
from ika_lightning.attention.spectrum import SYMMETRY_BREAKING, Spectrum, check_num_samples
from ika_lightning.attention.start import Init, TwoLayers, initial_scale, normal_points

# The least standard deviation of a posterior: softplus underflows to 0, whose logarithm would
# make the divergence infinite and its gradient NaN.
_LEAST_STD = 1e-4


class ImplicitSpectrum(Spectrum):
    r"""Frequencies made from noise by a generator: a density known only by its samples (IKA in the paper).

    .. math::
        z \sim N(\pm \mu, \sigma^2), \qquad w = g(z) = \text{sign}(z) \, f(|z|)

    Half of the samples are drawn around :math:`+\mu`, half around :math:`-\mu`, and g is odd, so the density of w is
    symmetric and the kernel real. :math:`\mu` and :math:`\sigma` are learned for each head, and moved by a small
    encoder of the head's mean key. f is a network over d that the heads share; a non-stationary kernel has two,
    fed the same z. The posterior starts at N(0, 1), and f as a multiple of the identity, so the spectrum
    starts as the Gaussian of :func:`~ika_lightning.attention.start.initial_scale`, whatever the prior.

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
        init: Scale of the frequencies at the start, see :func:`~ika_lightning.attention.start.initial_scale`.
        smoothing: The part of the Gaussian that is exact, see there.
        prior_std: Standard deviation of the prior, s.
        conditional: Let the posterior depend on the mean key; False learns one posterior for all inputs.
        copula: Couples the heads' noise; None draws each head's on its own.

    Shapes:
        mean_key (b, h, d) or None; each set of frequencies (b, h, M, d), or (h, M, d) without a mean key.

    Raises:
        ValueError: If num_samples is below 1, prior_std is not positive, or init is unknown.

    Example:
        >>> spectrum = ImplicitSpectrum(num_heads=2, head_dim=3, num_samples=5)
        >>> features, kl = spectrum(torch.randn(7, 2, 3))
        >>> [tuple(w.shape) for w in features.frequencies], round(kl.item(), 6)
        ([(7, 2, 5, 3), (7, 2, 5, 3)], 0.0)
    """

    points: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_samples: int,
        *,
        stationary: bool = False,
        init: Init = "rbf",
        smoothing: float = 0.0,
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
        scale = initial_scale(num_heads, head_dim, num_samples, init, smoothing)
        self.mean = nn.Parameter(torch.empty(num_heads, head_dim))
        self.raw_std = nn.Parameter(torch.empty(num_heads, head_dim))
        self.encoder = small_encoder(head_dim, 2 * head_dim) if conditional else None
        self.generators = nn.ModuleList(OddGenerator(head_dim, scale) for _ in range(1 if stationary else 2))
        self.copula = copula
        self.register_buffer("points", torch.empty(num_heads, num_samples, head_dim))
        self._draw()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        # in the order in which they were made: one seed draws the same
        for part in (self.copula, self.encoder, *self.generators):
            if part is not None:
                part.reset_parameters()
        self._draw()

    def _draw(self) -> None:
        nn.init.zeros_(self.mean)
        nn.init.zeros_(self.raw_std)
        num_heads, num_samples, head_dim = self.points.shape
        self.points.copy_(normal_points(num_heads, num_samples, head_dim, self.points.device))

    def posterior(self, mean_key: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the noise, (b, h, d) or (h, d)."""
        mean, raw_std = self.mean, self.raw_std
        if self.encoder is not None:
            # without a mean key the encoder sees zeros, so its parameters are used in every call: distributed
            # training stops at a parameter that a step left out
            shift = self.encoder(torch.zeros_like(mean) if mean_key is None else mean_key)
            mean_shift, std_shift = shift.chunk(2, dim=-1)
            mean, raw_std = mean + mean_shift, raw_std + std_shift
        # softplus grows linearly; the sum is 1 where raw_std is 0
        return mean, _LEAST_STD + F.softplus(raw_std + math.log(math.expm1(1.0 - _LEAST_STD)))

    def forward(self, mean_key: Tensor | None = None) -> tuple[FeatureMap, Tensor]:
        """Return the feature map and the divergence of the noise from its prior."""
        mean_key = None if mean_key is None else mean_key.to(self.mean.dtype)
        mean, std = self.posterior(mean_key)
        noise = torch.randn_like(self.points) if self.training else self.points  # (h, M, d)
        s = self.prior_std
        squares = torch.addcmul(mean.square(), std, std)
        kl = _mean(torch.sub(squares, std.log(), alpha=2.0 * s**2) * (0.5 / s**2) + (math.log(s) - 0.5))
        if self.copula is not None:
            factor = self.copula(mean_key)  # (..., h, h)
            noise = torch.einsum("...ij,jmd->...imd", factor, noise)
            kl = kl - _mean(factor.diagonal(dim1=-2, dim2=-1).log())  # -log det R_c / 2h
        # around both sides: each half is a stretch of the points, and has a mean close to zero
        middle, below = mean.unsqueeze(-2), noise.size(-2) // 2
        sides = [x.expand(*mean.shape[:-1], n, -1) for x, n in ((middle, noise.size(-2) - below), (-middle, below))]
        z = torch.addcmul(torch.cat(sides, -2), std.unsqueeze(-2), noise)
        return fourier(tuple(generate(z) for generate in self.generators)), kl

    def extra_repr(self) -> str:
        """Name the sizes that the printed submodules do not show."""
        return f"num_samples={self.points.size(1)}, prior_std={self.prior_std}, conditional={self.conditional}"


def _mean(x: Tensor) -> Tensor:
    """The mean, of a batch without sequences zero."""
    return x.sum() / max(x.numel(), 1)


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

    scale: Tensor

    def __init__(self, head_dim: int, scale: float) -> None:
        super().__init__()
        hidden = max(16, head_dim)
        law = functools.partial(nn.init.normal_, std=SYMMETRY_BREAKING / math.sqrt(hidden))
        self.start_scale = scale
        self.register_buffer("scale", torch.empty(()).fill_(scale))
        self.network = TwoLayers(head_dim, hidden, head_dim, law)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        self.network.reset_parameters()
        self.scale.fill_(self.start_scale)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # until version 0.1, the scale was not saved: it was that of the layer's init
        state_dict.setdefault(f"{prefix}scale", self.scale.new_full((), self.start_scale))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, z: Tensor) -> Tensor:
        """Return the frequencies that the noise z stands for."""
        # a constant: its gradient is zero wherever there is one
        sign = z.detach().sign()
        correction: Tensor = self.network(z * sign)
        return torch.addcmul(z, sign, correction) * self.scale
