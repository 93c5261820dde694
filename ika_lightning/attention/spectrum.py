r"""Spectrum: where the feature map of a learned kernel comes from.

==============================================================  ===================================================
:class:`DirectSpectrum`                                         the frequencies are parameters
:class:`~ika_lightning.attention.implicit.ImplicitSpectrum`     a generator makes them from noise whose law depends
                                                                on the keys
the same with :class:`~ika_lightning.attention.GaussianCopula`  that noise is drawn jointly over the heads
==============================================================  ===================================================

A spectrum is called with the mean key of each head, or with None where no mean may be taken, and returns a feature map
and the regulariser that goes with it (section 4 of `Implicit Kernel Attention <https://arxiv.org/abs/2006.06147>`_).
To add one, write a subclass of :class:`Spectrum`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from ika_lightning.attention.features import FeatureMap, fourier
from ika_lightning.attention.start import Init, initial_scale, normal_points

# Two frequencies of a pair that start equal have equal gradients for ever. This much of the scale sets them apart, and
# changes the kernel at the start by its square.
SYMMETRY_BREAKING = 1e-2


class Spectrum(nn.Module, ABC):
    """Base of the spectra: a module that returns a feature map, and what regularises it.

    A spectrum of your own is a subclass that implements :meth:`forward`; layers over sequences and over graphs need
    nothing else from it.

    Attributes:
        conditional: Whether the map depends on the mean key. Layers compute it only if so. The map then has to say what
            it is for some of the sequences, in :meth:`~ika_lightning.attention.FeatureMap.select`.

    Example:
        >>> class Fixed(Spectrum):
        ...     def forward(self, mean_key: Tensor | None = None) -> tuple[FeatureMap, Tensor]:
        ...         return fourier((torch.ones(2, 5, 3),)), torch.zeros(())
        >>> Fixed()()[0](torch.zeros(2, 7, 3)).shape
        torch.Size([2, 7, 10])
    """

    conditional: bool = False

    @abstractmethod
    def forward(self, mean_key: Tensor | None = None) -> tuple[FeatureMap, Tensor]:
        """Return the feature map of this call and its regulariser, a scalar that is added to a loss.

        Args:
            mean_key: The mean of the keys that may be attended to, of each head; None where it would leak, as in causal
                attention, or if the spectrum is not conditional.

        Shapes:
            mean_key (b, h, d), or (g, h, d) of each graph.
        """


class DirectSpectrum(Spectrum):
    r"""Frequencies that are parameters (IKA-direct in the paper).

    Args:
        num_heads: Number of heads, h.
        head_dim: Width of a head, d.
        num_samples: Number of spectral samples, M.
        stationary: Learn one set of frequencies (Bochner) instead of pairs (Yaglom).
        init: Law of the frequencies at the start, see :func:`~ika_lightning.attention.start.initial_scale`;
            ``"paper"`` draws the authors' uniform.
        smoothing: The part of the Gaussian that is exact, see there.

    Shapes:
        each of the one or two sets of frequencies (h, M, d).

    Raises:
        ValueError: If num_samples is below 1, init is unknown or smoothing is out of its range.

    Example:
        >>> features, kl = DirectSpectrum(num_heads=2, head_dim=3, num_samples=5, stationary=False)()
        >>> [tuple(w.shape) for w in features.frequencies], kl.item()
        ([(2, 5, 3), (2, 5, 3)], 0.0)
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_samples: int,
        *,
        stationary: bool = False,
        init: Init = "rbf",
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_num_samples(num_samples)
        scale = initial_scale(num_heads, head_dim, num_samples, init, smoothing)
        shape, copies = (num_heads, num_samples, head_dim), 1 if stationary else 2
        sets = [nn.Parameter(torch.empty(shape)) for _ in range(copies)]
        self.frequencies = _Frequencies(sets).starting(scale, uniform=init == "paper")

    def reset_parameters(self) -> None:
        """Draw the frequencies anew, in place."""
        self.frequencies.reset_parameters()

    def forward(self, mean_key: Tensor | None = None) -> tuple[FeatureMap, Tensor]:
        """Return the feature map and a regulariser of zero; the mean key is not looked at."""
        return fourier(tuple(self.frequencies)), self.frequencies[0].new_zeros(())


class _Frequencies(nn.ParameterList):
    """One set of frequencies or two, which have their law with them: Lightning resets what holds parameters itself."""

    def starting(self, scale: float, *, uniform: bool) -> Self:
        """Draw frequencies of a standard deviation, now and at every reset."""
        self.scale, self.uniform = scale, uniform
        self.reset_parameters()
        return self

    def reset_parameters(self) -> None:
        """Draw the frequencies anew, in place."""
        if self.uniform:
            bound = math.sqrt(3.0) * self.scale
            for frequencies in self:
                nn.init.uniform_(frequencies, -bound, bound)
            return
        first = self[0]
        num_heads, num_samples, head_dim = first.shape
        base = self.scale * normal_points(num_heads, num_samples, head_dim, first.device)
        spread = (len(self) - 1) * SYMMETRY_BREAKING * self.scale
        with torch.no_grad():
            for frequencies in self:
                frequencies.copy_(base + spread * torch.randn(first.shape, device=first.device))


def check_num_samples(num_samples: int) -> None:
    """Refuse a number of spectral samples that is not a positive whole number.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a whole number of at least 1, got {num_samples}")


def mean_key(key: Tensor, allowed: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    r"""Average the keys that may be attended to; zeros if there are none.

    What a mask adds to the logarithm of a key's weights, it adds here: :math:`-10^9` hides a key as minus infinity
    does.

    .. math:: \sum_j e^{b_j} k_j \Big/ \sum_j e^{b_j}

    Args:
        key: Keys.
        allowed: Which may be attended to, True = may; None means all.
        bias: b, finite; None means 0.

    Shapes:
        key (b, h, m, d); allowed and bias broadcastable to (b, h, 1, m); the result (b, h, d).

    Example:
        >>> mean_key(torch.tensor([[[[1.0], [5.0]]]]), torch.tensor([[[[True, False]]]]))
        tensor([[[1.]]])
    """
    m = key.size(-2)
    if allowed is None and bias is None:
        return key.sum(-2) / max(m, 1)
    # as columns, with a row for each key
    chosen, logarithm = (None if x is None else x.mT.expand(*x.shape[:-2], m, 1) for x in (allowed, bias))
    if chosen is not None:
        key = key.masked_fill(~chosen, 0.0)
    if logarithm is None:
        assert chosen is not None
        return key.sum(-2) / chosen.sum(-2).clamp_min(1)
    logarithm = logarithm.to(key.dtype)
    if chosen is not None:
        logarithm = logarithm.masked_fill(~chosen, -math.inf)
    # that of a sequence without keys is minus infinity, or there is none
    highest = logarithm.detach().amax(-2, keepdim=True).clamp_min(torch.finfo(key.dtype).min) if m else 0.0
    weights = (logarithm - highest).exp()
    return (key * weights).sum(-2) / weights.sum(-2).clamp_min(torch.finfo(key.dtype).tiny)
