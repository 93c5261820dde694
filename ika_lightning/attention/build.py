"""Cores with a learned kernel, built from the options that layers over sequences and over graphs share."""

from __future__ import annotations

from typing import Literal, get_args

from ika_lightning.attention.copula import GaussianCopula
from ika_lightning.attention.core import Core
from ika_lightning.attention.implicit import ImplicitSpectrum
from ika_lightning.attention.kernels import RBFKernel
from ika_lightning.attention.magnitude import Exponent
from ika_lightning.attention.spectrum import DirectSpectrum, Spectrum
from ika_lightning.attention.start import Init, check_init

SpectrumName = Literal["direct", "implicit", "copula"]


def build_core(
    num_heads: int,
    head_dim: int,
    *,
    spectrum: SpectrumName | Spectrum,
    num_samples: int,
    stationary: bool,
    init: Init,
    smoothing: float,
    p: Exponent,
    prior_std: float = 1.0,
    conditional: bool = True,
    backend: str = "auto",
) -> Core:
    """Build a core whose kernel is learned.

    What ``init`` and ``smoothing`` say of the exact part:

    =================  ============  =======================  ==================================================
    init               smoothing s   exact part at the start  share a of the sampled part at the start
    =================  ============  =======================  ==================================================
    ``"softmax"``      0             all of the Gaussian      0: dot-product attention, to rounding
    ``"rbf"``          in (0, 1)     s of its precision       1: the rest of the Gaussian, estimated
    ``"rbf"``          0             none                     1, fixed: the paper's estimator of the Gaussian
    ``"wide"``         0             none                     1, fixed: a wider kernel, which fewer samples estimate
    ``"paper"``        0             none                     1, fixed: the authors' frequencies
    =================  ============  =======================  ==================================================

    Args:
        num_heads: Number of heads, h.
        head_dim: Width of a head, d.
        spectrum: ``"direct"``, ``"implicit"``, or ``"copula"`` for the implicit one with heads that are coupled; or one
            that is built already, of which the next five options then say nothing.
        num_samples: Number of spectral samples, M.
        stationary: One set of frequencies (Bochner) instead of pairs (Yaglom).
        init: How the kernel starts.
        smoothing: The part of the Gaussian that is exact, with ``init="rbf"``.
        p: Exponent of the norm in the magnitude, in [1, inf], or ``"learned"``.
        prior_std: As in :class:`~ika_lightning.attention.implicit.ImplicitSpectrum`.
        conditional: As there.
        backend: How the core is computed.

    Raises:
        ValueError: If there is no spectrum of that name, or an option is out of its range.

    Example:
        >>> options = dict(num_samples=5, stationary=False, init="softmax", smoothing=0.0, p=2.0)
        >>> core = build_core(2, 3, spectrum="copula", **options)
        >>> core.share, core.kernel.precision.flatten()
        (tensor([0., 0.], grad_fn=<WhereBackward0>), tensor([1., 1.], grad_fn=<ViewBackward0>))
    """
    check_init(init, smoothing)
    if not isinstance(spectrum, Spectrum):
        if spectrum not in get_args(SpectrumName):
            raise ValueError(
                f"spectrum must be one of {', '.join(map(repr, get_args(SpectrumName)))}, got {spectrum!r}"
            )
        if spectrum == "direct":
            spectrum = DirectSpectrum(
                num_heads, head_dim, num_samples, stationary=stationary, init=init, smoothing=smoothing
            )
        else:
            coupled = spectrum == "copula"
            spectrum = ImplicitSpectrum(
                num_heads,
                head_dim,
                num_samples,
                stationary=stationary,
                init=init,
                smoothing=smoothing,
                prior_std=prior_std,
                conditional=conditional,
                copula=GaussianCopula(num_heads, head_dim, conditional=conditional) if coupled else None,
            )
    exact = 1.0 if init == "softmax" else smoothing
    return Core(
        num_heads,
        head_dim,
        kernel=RBFKernel(num_heads, head_dim, exact) if exact else None,
        spectrum=spectrum,
        p=p,
        share=(0.0 if init == "softmax" else 1.0) if exact else None,
        backend=backend,
    )
