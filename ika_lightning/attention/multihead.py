r"""Attention layers with the contract of :class:`torch.nn.MultiheadAttention`.

=======================  =========================================================  ===========
layer                    similarity                                                 magnitude
=======================  =========================================================  ===========
:class:`DotProduct`      the Gaussian kernel inside a softmax of dot products       L2
:class:`RBF`             the Gaussian kernel, lengthscale learned                   L^p
:class:`ExplicitKernel`  any :class:`~ika_lightning.attention.kernels.Kernel`       L^p
:class:`IKANDirect`      a Gaussian times a kernel whose frequencies are learned    L^p
:class:`IKAN`            the same, by a spectral density that is learned            L^p
:class:`MIKAN`           the same, heads coupled by a copula                        L^p
=======================  =========================================================  ===========

Each is a constructor of :class:`~ika_lightning.attention.layer.MultiheadAttention` with another
:class:`~ika_lightning.attention.core.Core`. For one of your own::

    MultiheadAttention(64, 8, core=lambda heads, width: Core(heads, width, spectrum=MySpectrum(heads, width)))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ika_lightning.attention.build import build_core
from ika_lightning.attention.core import Core
from ika_lightning.attention.kernels import Kernel, MaternKernel, RBFKernel
from ika_lightning.attention.layer import MultiheadAttention
from ika_lightning.attention.magnitude import Exponent
from ika_lightning.attention.regulariser import attention_kl
from ika_lightning.attention.start import Init

__all__ = [
    "IKAN",
    "MIKAN",
    "RBF",
    "DotProduct",
    "ExplicitKernel",
    "IKANDirect",
    "MultiheadAttention",
    "attention_kl",
]


class DotProduct(MultiheadAttention):
    """Scaled dot-product attention, the baseline: :class:`torch.nn.MultiheadAttention` in this package's clothes.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        *args: The further arguments of :class:`torch.nn.MultiheadAttention`, in its order.
        backend: How it is computed, see :func:`~ika_lightning.attention.kernel_attention`.
        **kwargs: The same by name: ``dropout``, ``bias``, ``kdim``, ``vdim``, ``batch_first``, ``device``, ``dtype``.

    Example:
        >>> import torch
        >>> layer, x = DotProduct(embed_dim=8, num_heads=2, batch_first=True), torch.randn(3, 5, 8)
        >>> out, weights = layer(x, x, x)
        >>> out.shape, weights.shape
        (torch.Size([3, 5, 8]), torch.Size([3, 5, 5]))
    """

    def __init__(self, embed_dim: int, num_heads: int, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        super().__init__(
            embed_dim, num_heads, *args, core=lambda heads, width: Core(heads, width, backend=backend), **kwargs
        )


class RBF(MultiheadAttention):
    r"""The Gaussian kernel, with a learned lengthscale a head, times the L^p magnitude.

    .. math:: w_{ij} = e^{-s |q_i - k_j|^2 / 2 \sqrt d}\, e^{|k_j|_p^2 / 2 \sqrt d}

    With p = 2 it starts as :class:`DotProduct`, at s = 1.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        *args: As in :class:`DotProduct`.
        p: Exponent of the norm in the magnitude, in [1, inf], or ``"learned"``: one a head, which starts at 2.
        backend: As in :class:`DotProduct`.
        **kwargs: As in :class:`DotProduct`.

    Example:
        >>> import torch
        >>> layer, x = RBF(embed_dim=8, num_heads=2, p=1.5), torch.randn(3, 5, 8)
        >>> layer(x, x, x, need_weights=False)[0].shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *args: Any, p: Exponent = 2.0, backend: str = "auto", **kwargs: Any
    ) -> None:
        def core(heads: int, width: int) -> Core:
            return Core(heads, width, kernel=RBFKernel(heads, width), p=p, backend=backend)

        super().__init__(embed_dim, num_heads, *args, core=core, **kwargs)


class ExplicitKernel(MultiheadAttention):
    """A kernel chosen by hand times the L^p magnitude: what the paper compares learned kernels with.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        *args: As in :class:`DotProduct`.
        kernel: A class of :mod:`ika_lightning.attention.kernels`, or any callable of (heads, width of a head) that
            makes a kernel.
        p: As in :class:`RBF`.
        **kwargs: As in :class:`DotProduct`.

    Raises:
        TypeError: If kernel is one already, or makes none.

    Example:
        >>> import torch
        >>> layer, x = ExplicitKernel(embed_dim=8, num_heads=2, kernel=MaternKernel), torch.randn(3, 5, 8)
        >>> layer(x, x, x, need_weights=False)[0].shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *args: Any,
        kernel: Callable[[int, int], Kernel] = MaternKernel,
        p: Exponent = 2.0,
        **kwargs: Any,
    ) -> None:
        if isinstance(kernel, Kernel):
            name = type(kernel).__name__
            raise TypeError(f"kernel must be a class, or a callable of (heads, width), got a {name} made; give {name}")

        def core(heads: int, width: int) -> Core:
            return Core(heads, width, kernel=kernel(heads, width), p=p)

        super().__init__(embed_dim, num_heads, *args, core=core, **kwargs)


class IKANDirect(MultiheadAttention):
    r"""Implicit kernel attention whose frequencies are parameters (IKA-direct).

    .. math::
        w_{ij} = e^{-s |q_i - k_j|^2 / 2 \sqrt d} \bigl((1 - a + a\, \rho(q_i, k_j))^2 + 10^{-5}\bigr)
                 e^{|k_j|_p^2 / 2 \sqrt d}

    with a kernel :math:`\rho` estimated from spectral samples, and s and a learned for each head. ``init`` says where
    they start, and whether there is an exponent at all: :func:`~ika_lightning.attention.build.build_core`. The paper
    has none; departing from it by default keeps exact what wide heads cannot estimate.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        *args: As in :class:`DotProduct`.
        p: Exponent of the norm in the magnitude, in [1, inf], or ``"learned"``: one a head, which starts at 2.
        num_samples: Number of spectral samples a head, M; features are twice as many.
        stationary: Learn a kernel of the difference q - k (Bochner) instead of any kernel (Yaglom).
        init: ``"softmax"`` starts as :class:`DotProduct`, exactly; ``"rbf"`` is the paper's estimator, starting close
            to it, ``"wide"`` the same with a kernel that its samples can estimate in wide heads, ``"paper"`` as the
            authors start.
        smoothing: The part of the Gaussian that is exact at the start, in [0, 1), with ``init="rbf"``.
        backend: How it is computed, see :func:`~ika_lightning.attention.kernel_attention`.
        **kwargs: As in :class:`DotProduct`.

    Example:
        >>> import torch
        >>> layer, x = IKANDirect(embed_dim=8, num_heads=2, num_samples=5), torch.randn(3, 7, 8)
        >>> layer(x, x, x, need_weights=False)[0].shape
        torch.Size([3, 7, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *args: Any,
        p: Exponent = 2.0,
        num_samples: int = 64,
        stationary: bool = False,
        init: Init = "softmax",
        smoothing: float = 0.0,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        def core(heads: int, width: int) -> Core:
            return build_core(
                heads,
                width,
                spectrum="direct",
                num_samples=num_samples,
                stationary=stationary,
                init=init,
                smoothing=smoothing,
                p=p,
                backend=backend,
            )

        super().__init__(embed_dim, num_heads, *args, core=core, **kwargs)


class IKAN(MultiheadAttention):
    """Implicit kernel attention: the spectral density of each head's kernel is learned.

    As :class:`IKANDirect`, with frequencies that a generator makes of noise; see
    :class:`~ika_lightning.attention.implicit.ImplicitSpectrum` for the density and its regulariser.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        *args: As in :class:`DotProduct`.
        p: As in :class:`IKANDirect`.
        num_samples: As in :class:`IKANDirect`.
        stationary: As in :class:`IKANDirect`.
        init: As in :class:`IKANDirect`; ``"paper"`` has the authors' spread.
        smoothing: As in :class:`IKANDirect`.
        backend: As in :class:`IKANDirect`.
        prior_std: Standard deviation of the prior of the noise.
        conditional: Let the density depend on the mean key of the sequence where that leaks nothing.
        **kwargs: As in :class:`DotProduct`.

    Example:
        >>> import torch
        >>> layer, x = IKAN(embed_dim=8, num_heads=2, p=1.8), torch.randn(3, 5, 8)
        >>> loss = layer(x, x, x)[0].square().mean() + 0.1 * layer.kl
    """

    _coupled = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *args: Any,
        p: Exponent = 2.0,
        num_samples: int = 64,
        stationary: bool = False,
        init: Init = "softmax",
        smoothing: float = 0.0,
        backend: str = "auto",
        prior_std: float = 1.0,
        conditional: bool = True,
        **kwargs: Any,
    ) -> None:
        def core(heads: int, width: int) -> Core:
            return build_core(
                heads,
                width,
                spectrum="copula" if self._coupled else "implicit",
                num_samples=num_samples,
                stationary=stationary,
                init=init,
                smoothing=smoothing,
                p=p,
                prior_std=prior_std,
                conditional=conditional,
                backend=backend,
            )

        super().__init__(embed_dim, num_heads, *args, core=core, **kwargs)


class MIKAN(IKAN):
    """Multi-head implicit kernel attention: as :class:`IKAN`, with heads coupled by a Gaussian copula.

    See :class:`~ika_lightning.attention.copula.GaussianCopula` for the coupling. Arguments are those of :class:`IKAN`.

    Example:
        >>> import torch
        >>> layer, x = MIKAN(embed_dim=8, num_heads=2, stationary=True), torch.randn(3, 5, 8)
        >>> loss = layer(x, x, x)[0].square().mean() + 0.1 * layer.kl
    """

    _coupled = True
