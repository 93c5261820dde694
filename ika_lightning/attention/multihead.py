r"""Attention layers with the contract of :class:`torch.nn.MultiheadAttention`.

======================  ===================================================  =======================
layer                   similarity                                           magnitude
======================  ===================================================  =======================
:class:`DotProduct`     the Gaussian kernel inside a softmax of dot products  L2, inside as well
:class:`RBF`            the Gaussian kernel, written out                      L^p
:class:`ExplicitKernel` any :class:`~ika_lightning.attention.kernels.Kernel`  L^p
:class:`IKANDirect`     a kernel whose frequencies are parameters            L^p
:class:`IKAN`           a kernel whose spectral density is learned           L^p
:class:`MIKAN`          the same, heads coupled by a copula                  L^p
======================  ===================================================  =======================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ika_lightning.attention.core import DotProductCore, ExplicitKernelCore, RBFCore, SpectralCore
from ika_lightning.attention.functional import Backend
from ika_lightning.attention.kernels import Kernel, MaternKernel
from ika_lightning.attention.magnitude import Exponent
from ika_lightning.attention.spectrum import DirectSpectrum, GaussianCopula, ImplicitSpectrum, Init


class MultiheadAttention(nn.Module):
    r"""Base of the layers: projections and masks around a core that attends.

    .. math::
        \text{out} = [\text{head}_1, \dots, \text{head}_h] W_o, \qquad
        \text{head}_i = \text{core}(x_q W_{q,i}, \; x_k W_{k,i}, \; x_v W_{v,i})

    A new layer is a new core: an argument, not a method to override.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        core: What attends, see :mod:`ika_lightning.attention.core`; called with (heads, width of a head).
        dropout: Probability with which an attention weight is dropped in training.
        bias: Give the four projections a bias.
        kdim: Width of keys; embed_dim if None.
        vdim: Width of values; embed_dim if None.
        batch_first: Sequences come as (batch, length, width), else as (length, batch, width).

    Shapes:
        query (b, n, embed_dim); key (b, m, kdim); value (b, m, vdim), or all three without b; key_padding_mask (b, m);
        attn_mask (n, m) or (b * h, n, m); returns (b, n, embed_dim) and weights (b, n, m), (b, h, n, m) if not
        averaged, or None.

    Raises:
        ValueError: If num_heads does not divide embed_dim, dropout is no probability, or shapes do not fit.
        TypeError: If a mask is neither boolean nor floating.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        core: Callable[[int, int], nn.Module],
        *,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be a positive multiple of num_heads, got embed_dim={embed_dim}, num_heads={num_heads}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.k_proj = nn.Linear(embed_dim if kdim is None else kdim, embed_dim, bias=bias)
        self.v_proj = nn.Linear(embed_dim if vdim is None else vdim, embed_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(projection.weight)
        if bias:
            for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
                nn.init.zeros_(projection.bias)
        self.core = core(num_heads, self.head_dim)

    @property
    def kl(self) -> Tensor:
        """The regulariser of the last forward; zero for a core that has none."""
        kl = getattr(self.core, "kl", None)
        device = self.out_proj.weight.device  # a layer that has not been called yet has its zero on the CPU
        return torch.zeros((), device=device) if kl is None else kl.to(device)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from queries to keys.

        Masks are those of :class:`torch.nn.MultiheadAttention`: in a boolean one True means **ignore**, a floating
        one is added to the log-weights. Different from there, ``is_causal=True`` alone is a causal mask, and a query
        that may attend to nothing gets the bias of the output projection instead of NaN.

        Args:
            query: Sequence that attends.
            key: Sequence that is attended to.
            value: What is averaged.
            key_padding_mask: Keys to ignore, for all queries.
            need_weights: Also return the weights; without them a call is faster.
            attn_mask: Pairs to ignore.
            average_attn_weights: Return the mean of the weights over heads instead of each head's.
            is_causal: Ignore keys after the query's own position.

        Returns:
            The output, and the weights after dropout or None.
        """
        batched = self._check_inputs(query, key, value)
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))

        b, n, m = query.size(0), query.size(1), key.size(1)
        key_mask, key_bias = self._read_key_padding_mask(key_padding_mask, b, m)
        out, weights = self.core(
            self._split_heads(self.q_proj(query)),
            self._split_heads(self.k_proj(key)),
            self._split_heads(self.v_proj(value)),
            key_mask=key_mask,
            key_bias=key_bias,
            attn_mask=self._read_attn_mask(attn_mask, b, n, m),
            is_causal=is_causal,
            dropout_p=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )
        out = self.out_proj(out.transpose(1, 2).flatten(-2))  # (b, h, n, d) -> (b, n, h d)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}"

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)  # (b, n, h d) -> (b, h, n, d)

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        if query.dim() not in (2, 3) or not query.dim() == key.dim() == value.dim():
            raise ValueError(f"query, key and value must all have 3 axes, or 2 without a batch, got {shapes}")
        widths = (self.embed_dim, self.k_proj.in_features, self.v_proj.in_features)
        if (query.size(-1), key.size(-1), value.size(-1)) != widths:
            raise ValueError(f"the last axes of query, key and value must be {widths}, got {shapes}")
        batched = query.dim() == 3
        batch = 0 if self.batch_first else 1
        if key.shape[:-1] != value.shape[:-1] or (batched and query.size(batch) != key.size(batch)):
            raise ValueError(f"key and value must have the same length, and all three the same batch, got {shapes}")
        return batched

    def _read_key_padding_mask(self, mask: Tensor | None, b: int, m: int) -> tuple[Tensor | None, Tensor | None]:
        """Turn the mask into what may be attended to (b, 1, m) and what is added to log-weights (b, 1, m)."""
        if mask is None:
            return None, None
        _check_dtype("key_padding_mask", mask)
        if mask.shape != (b, m):
            raise ValueError(f"key_padding_mask must have shape (batch, keys) = {(b, m)}, got {tuple(mask.shape)}")
        mask = mask.unsqueeze(1)
        if mask.dtype == torch.bool:
            return ~mask, None
        allowed = mask != -math.inf
        return allowed, mask.masked_fill(~allowed, 0.0)

    def _read_attn_mask(self, mask: Tensor | None, b: int, n: int, m: int) -> Tensor | None:
        """Turn the mask to True = may attend if it is boolean, with heads as an axis if it has them."""
        if mask is None:
            return None
        _check_dtype("attn_mask", mask)
        if mask.shape not in ((n, m), (b * self.num_heads, n, m)):
            raise ValueError(
                f"attn_mask must have shape (queries, keys) = {(n, m)} or (batch * heads, queries, keys) = "
                f"{(b * self.num_heads, n, m)}, got {tuple(mask.shape)}"
            )
        if mask.dim() == 3:
            mask = mask.view(b, self.num_heads, n, m)
        return ~mask if mask.dtype == torch.bool else mask


class DotProduct(MultiheadAttention):
    """Scaled dot-product attention, the baseline: :class:`torch.nn.MultiheadAttention` in this package's clothes.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        **kwargs: ``dropout``, ``bias``, ``kdim``, ``vdim`` and ``batch_first`` of :class:`MultiheadAttention`.

    Example:
        >>> layer, x = DotProduct(embed_dim=8, num_heads=2), torch.randn(3, 5, 8)
        >>> out, weights = layer(x, x, x)
        >>> out.shape, weights.shape
        (torch.Size([3, 5, 8]), torch.Size([3, 5, 5]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim, num_heads, lambda heads, width: DotProductCore(), **kwargs)


class RBF(MultiheadAttention):
    """The Gaussian kernel, with a learned lengthscale a head, times the L^p magnitude.

    With p = 2 it starts as :class:`DotProduct`. See :class:`~ika_lightning.attention.core.RBFCore` for the formula.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        p: Exponent of the norm in the magnitude, in [1, inf].
        **kwargs: ``dropout``, ``bias``, ``kdim``, ``vdim`` and ``batch_first`` of :class:`MultiheadAttention`.

    Example:
        >>> layer, x = RBF(embed_dim=8, num_heads=2, p=1.5), torch.randn(3, 5, 8)
        >>> layer(x, x, x, need_weights=False)[0].shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        p: Exponent = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            lambda heads, width: RBFCore(heads, width, p),
            **kwargs,
        )


class ExplicitKernel(MultiheadAttention):
    """A kernel chosen by hand times the L^p magnitude: what the paper compares learned kernels with.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        kernel: A kernel of :mod:`ika_lightning.attention.kernels`, or any callable of (heads, width of a head).
        p: Exponent of the norm in the magnitude, in [1, inf].
        **kwargs: ``dropout``, ``bias``, ``kdim``, ``vdim`` and ``batch_first`` of :class:`MultiheadAttention`.

    Example:
        >>> layer, x = ExplicitKernel(embed_dim=8, num_heads=2, kernel=MaternKernel), torch.randn(3, 5, 8)
        >>> layer(x, x, x, need_weights=False)[0].shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kernel: Callable[[int, int], Kernel] = MaternKernel,
        p: Exponent = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            lambda heads, width: ExplicitKernelCore(kernel(heads, width), p),
            **kwargs,
        )


class IKANDirect(MultiheadAttention):
    """Implicit kernel attention whose frequencies are parameters (IKA-direct).

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        p: Exponent of the norm in the magnitude, in [1, inf].
        num_samples: Number of spectral samples a head, M; features are twice as many.
        stationary: Learn a kernel of the difference q - k (Bochner) instead of any kernel (Yaglom).
        init: Law of the frequencies at the start: ``"rbf"`` starts close to :class:`DotProduct`, ``"paper"`` as the
            authors do.
        backend: How :func:`~ika_lightning.attention.kernel_attention` is computed.
        **kwargs: ``dropout``, ``bias``, ``kdim``, ``vdim`` and ``batch_first`` of :class:`MultiheadAttention`.

    Example:
        >>> layer, x = IKANDirect(embed_dim=8, num_heads=2, num_samples=5), torch.randn(3, 7, 8)
        >>> layer(x, x, x, need_weights=False)[0].shape
        torch.Size([3, 7, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        p: Exponent = 2.0,
        num_samples: int = 64,
        stationary: bool = False,
        init: Init = "rbf",
        backend: Backend = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            lambda heads, width: SpectralCore(
                DirectSpectrum(heads, width, num_samples, stationary=stationary, init=init), p, backend
            ),
            **kwargs,
        )


class IKAN(MultiheadAttention):
    """Implicit kernel attention: the spectral density of each head's kernel is learned.

    See :class:`~ika_lightning.attention.spectrum.ImplicitSpectrum` for the density and its regulariser.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        p: Exponent of the norm in the magnitude, in [1, inf].
        num_samples: Number of spectral samples a head, M; features are twice as many.
        stationary: Learn a kernel of the difference q - k (Bochner) instead of any kernel (Yaglom).
        init: Scale of the frequencies at the start: ``"rbf"`` starts close to :class:`DotProduct`, ``"paper"`` has the
            authors' spread.
        backend: How :func:`~ika_lightning.attention.kernel_attention` is computed.
        prior_std: Standard deviation of the prior of the noise.
        conditional: Let the density depend on the mean key of the sequence where that leaks nothing.
        **kwargs: ``dropout``, ``bias``, ``kdim``, ``vdim`` and ``batch_first`` of :class:`MultiheadAttention`.

    Example:
        >>> layer, x = IKAN(embed_dim=8, num_heads=2, p=1.8), torch.randn(3, 5, 8)
        >>> loss = layer(x, x, x)[0].square().mean() + 0.1 * layer.kl
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        p: Exponent = 2.0,
        num_samples: int = 64,
        stationary: bool = False,
        init: Init = "rbf",
        backend: Backend = "auto",
        prior_std: float = 1.0,
        conditional: bool = True,
        **kwargs: Any,
    ) -> None:
        def core(heads: int, width: int) -> SpectralCore:
            spectrum = ImplicitSpectrum(
                heads,
                width,
                num_samples,
                stationary=stationary,
                init=init,
                prior_std=prior_std,
                conditional=conditional,
            )
            return SpectralCore(spectrum, p, backend)

        super().__init__(embed_dim, num_heads, core, **kwargs)


class MIKAN(MultiheadAttention):
    """Multi-head implicit kernel attention: as :class:`IKAN`, with heads coupled by a Gaussian copula.

    See :class:`~ika_lightning.attention.spectrum.GaussianCopula` for the coupling.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        p: Exponent of the norm in the magnitude, in [1, inf].
        num_samples: Number of spectral samples a head, M; features are twice as many.
        stationary: Learn a kernel of the difference q - k (Bochner) instead of any kernel (Yaglom).
        init: Scale of the frequencies at the start: ``"rbf"`` starts close to :class:`DotProduct`, ``"paper"`` has the
            authors' spread.
        backend: How :func:`~ika_lightning.attention.kernel_attention` is computed.
        prior_std: Standard deviation of the prior of the noise.
        conditional: Let density and copula depend on the mean key of the sequence where that leaks nothing.
        **kwargs: ``dropout``, ``bias``, ``kdim``, ``vdim`` and ``batch_first`` of :class:`MultiheadAttention`.

    Example:
        >>> layer, x = MIKAN(embed_dim=8, num_heads=2, stationary=True), torch.randn(3, 5, 8)
        >>> loss = layer(x, x, x)[0].square().mean() + 0.1 * layer.kl
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        p: Exponent = 2.0,
        num_samples: int = 64,
        stationary: bool = False,
        init: Init = "rbf",
        backend: Backend = "auto",
        prior_std: float = 1.0,
        conditional: bool = True,
        **kwargs: Any,
    ) -> None:
        def core(heads: int, width: int) -> SpectralCore:
            spectrum = ImplicitSpectrum(
                heads,
                width,
                num_samples,
                stationary=stationary,
                init=init,
                prior_std=prior_std,
                conditional=conditional,
                copula=GaussianCopula(heads, width, conditional=conditional),
            )
            return SpectralCore(spectrum, p, backend)

        super().__init__(embed_dim, num_heads, core, **kwargs)


def attention_kl(module: nn.Module) -> Tensor:
    """Sum the regularisers of the last forward over all attention layers of a model.

    Args:
        module: Any module that contains layers of this package.

    Returns:
        A scalar with the graph of that forward; zero without such layers.

    Example:
        >>> model = nn.ModuleList([IKAN(8, 2), DotProduct(8, 2)])
        >>> attention_kl(model)
        tensor(0.)
    """
    terms = [layer.kl for layer in module.modules() if isinstance(layer, MultiheadAttention)]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _check_dtype(name: str, mask: Tensor) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{name} must be boolean (True = ignore) or floating (added to log-weights), got {mask.dtype}")
