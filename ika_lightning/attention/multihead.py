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
from typing import Any, Self

import torch
from torch import Tensor, nn

from ika_lightning.attention.cache import Cache, Memory
from ika_lightning.attention.core import Core, DotProductCore, ExplicitKernelCore, RBFCore, Regularised, SpectralCore
from ika_lightning.attention.functional import Backend
from ika_lightning.attention.kernels import Kernel, MaternKernel
from ika_lightning.attention.magnitude import Exponent
from ika_lightning.attention.spectrum import DirectSpectrum, GaussianCopula, ImplicitSpectrum, Init
from ika_lightning.attention.start import Linear, reset_children


class _NoPackedProjection:
    """What PyTorch's transformer layers find where :class:`torch.nn.MultiheadAttention` has packed weights.

    In evaluation they hand such weights to a fused softmax layer and never call ``forward``, and
    :class:`torch.nn.TransformerEncoder` makes nested tensors for it. Before either they ask whether an argument
    overrides torch functions, as this one does, and if so leave both alone, whether the layer was there when the
    encoder was built or was put in later. Were the question ever dropped, the fused layer would refuse this with a
    TypeError; it cannot run softmax in silence. ``in_proj_bias = None`` would keep the layers from it, too, but not an
    encoder that was built before, and would make one built after warn.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take part in no torch function."""
        return NotImplemented


class MultiheadAttention(nn.Module):
    r"""Base of the layers: projections and masks around a core that attends.

    .. math::
        \text{out} = [\text{head}_1, \dots, \text{head}_h] W_o, \qquad
        \text{head}_i = \text{core}(x_q W_{q,i}, \; x_k W_{k,i}, \; x_v W_{v,i})

    A new layer is a new core: an argument, not a method to override.

    A layer may take the place of the attention in PyTorch's transformer layers, by assignment or by
    :func:`~ika_lightning.attention.replace_attention`.

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

    # What torch.nn.TransformerEncoderLayer and TransformerEncoder read besides batch_first, num_heads and out_proj.
    _qkv_same_embed_dim = True
    in_proj_weight = in_proj_bias = _NoPackedProjection()

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        core: Callable[[int, int], Core],
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
        self.q_proj = Linear(embed_dim, embed_dim, bias=bias)
        self.k_proj = Linear(embed_dim if kdim is None else kdim, embed_dim, bias=bias)
        self.v_proj = Linear(embed_dim if vdim is None else vdim, embed_dim, bias=bias)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.starting(nn.init.xavier_uniform_)
        self.out_proj.starting(_as_drawn)
        self.core = core(num_heads, self.head_dim)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        reset_children(self)

    @classmethod
    def from_attention(cls, layer: nn.MultiheadAttention | MultiheadAttention, **options: Any) -> Self:
        """Build a layer of this class with the projections of another, which may be trained.

        Device, dtype, mode (training or evaluation) and whether a projection is frozen come along. The core is new:
        :class:`DotProduct`, and :class:`RBF` with p = 2, give what :class:`torch.nn.MultiheadAttention` gives (RBF to
        the precision of float32, in which its lengthscale is made). The layers with learned kernels, with p = 2 and
        ``init="rbf"``, give it the more nearly the more samples they have, and the narrower the heads and the smaller
        queries and keys are: a kernel of distant points is small, and lost in the noise of the estimate. Error of the
        output in evaluation, relative to the size of the output, for freshly made
        ``nn.MultiheadAttention(num_heads * d, num_heads)`` of 8 heads on 64 standard normal rows:

        ====  ======  ======  =======  ========
        d     M = 16  M = 64  M = 256  M = 1024
        ====  ======  ======  =======  ========
        8     0.23    0.11    0.06     0.03
        16    0.42    0.20    0.10     0.05
        64    1.19    0.80    0.45     0.23
        ====  ======  ======  =======  ========

        Args:
            layer: A layer of PyTorch or of this package.
            **options: Arguments of this class's constructor. ``dropout`` and ``batch_first`` are those of the
                layer unless given; sizes and ``bias`` always are.

        Raises:
            ValueError: If the layer has ``add_bias_kv`` or ``add_zero_attn``, which no layer of this package has.
            TypeError: If it is no attention layer.

        Example:
            >>> theirs, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
            >>> DotProduct.from_attention(theirs)(x, x, x)[0].allclose(theirs(x, x, x)[0], atol=1e-6)
            True
        """
        copied = _read_projections(layer)
        (_, bias), (key, _), (value, _), _ = copied
        options = {"dropout": layer.dropout, "batch_first": layer.batch_first, **options}
        new = cls(
            layer.embed_dim, layer.num_heads, bias=bias is not None, kdim=key.size(1), vdim=value.size(1), **options
        ).to(key)  # device and dtype
        for projection, pair in zip((new.q_proj, new.k_proj, new.v_proj, new.out_proj), copied, strict=True):
            for parameter, source in zip((projection.weight, projection.bias), pair, strict=True):
                if source is not None:
                    parameter.data.copy_(source.detach())
                    parameter.requires_grad_(source.requires_grad)
        return new.train(layer.training)

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
        query, key, value = (self._batch_first(x) for x in (query, key, value))
        if not batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
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
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if weights is not None and not batched:
            weights = weights.squeeze(0)
        return self._join_heads(out, batched), weights

    def decode(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Go on with causal self-attention: attend from the next positions of a sequence to them and those before.

        Called with one position or several at a time, it returns what ``self(x, x, x, is_causal=True)`` returns for
        all of them at once, in a time that grows with the number of positions and not with its square. A layer whose
        frequencies are random in training draws them in the first call, and the cache keeps them. A layer with
        ``backend="linear"`` keeps a state of constant size; others keep each key.

        Args:
            x: The next positions: query, key and value.
            cache: What the call for the positions before them returned; None at the beginning of a sequence.

        Shapes:
            x (b, t, embed_dim), (t, b, embed_dim) or (t, embed_dim), as in :meth:`forward`; the result the same.

        Returns:
            The output at these positions, and the cache for the next call. Beam search picks the sequences to go on
            with by ``cache.reorder(index)``.

        Raises:
            ValueError: If the shape does not fit, or the cache is one of another number of sequences.

        Example:
            >>> layer, x = DotProduct(embed_dim=8, num_heads=2), torch.randn(3, 5, 8)
            >>> first, cache = layer.decode(x[:, :4])
            >>> last, cache = layer.decode(x[:, 4:], cache)
            >>> torch.cat([first, last], 1).allclose(layer(x, x, x, is_causal=True)[0], atol=1e-6)
            True
        """
        batched = self._check_inputs(x, x, x)
        x = self._batch_first(x)
        out, cache = self.core.decode(
            self._split_heads(self.q_proj(x)),
            self._split_heads(self.k_proj(x)),
            self._split_heads(self.v_proj(x)),
            cache,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self._join_heads(out, batched), cache

    def remember(self, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> Memory:
        """Do all of :meth:`forward` that needs no queries: project the keys, and make features and sums of them.

        A decoder calls it once for a sentence, and :meth:`recall` for each word that it writes.

        Args:
            key: Sequence that is attended to.
            value: What is averaged.
            key_padding_mask: Keys to ignore, for all queries.

        Shapes:
            key (b, m, kdim) and value (b, m, vdim), or as ``batch_first`` says; key_padding_mask (b, m).

        Returns:
            The memory. ``memory.select(index)`` is that of some of the sequences.

        Raises:
            ValueError: If shapes do not fit.
            TypeError: If the mask is neither boolean nor floating.

        Example:
            >>> layer, x, source = DotProduct(embed_dim=8, num_heads=2), torch.randn(3, 5, 8), torch.randn(3, 7, 8)
            >>> memory = layer.remember(source, source)
            >>> layer.recall(x, memory).allclose(layer(x, source, source)[0], atol=1e-6)
            True
        """
        if key.dim() != 3:
            raise ValueError(f"key and value must have 3 axes, got key {tuple(key.shape)}, value {tuple(value.shape)}")
        self._check_inputs(key.new_empty(*key.shape[:-1], self.embed_dim), key, value)
        key, value = self._batch_first(key), self._batch_first(value)
        key_mask, key_bias = self._read_key_padding_mask(key_padding_mask, key.size(0), key.size(1))
        return self.core.remember(
            self._split_heads(self.k_proj(key)),
            self._split_heads(self.v_proj(value)),
            key_mask=key_mask,
            key_bias=key_bias,
        )

    def recall(self, query: Tensor, memory: Memory) -> Tensor:
        """Attend to what is remembered: ``recall(query, remember(key, value))`` is what ``self(query, key, value)`` is.

        Args:
            query: Sequence that attends.
            memory: What :meth:`remember` returned.

        Shapes:
            query (b, n, embed_dim), or as ``batch_first`` says; the result the same.

        Raises:
            ValueError: If the query does not fit the memory.
        """
        if query.dim() != 3:
            raise ValueError(f"query must have 3 axes, got {tuple(query.shape)}")
        query = self._batch_first(query)
        remembered = memory.rows[0].size(0)
        if query.size(-1) != self.embed_dim or query.size(0) != remembered:
            raise ValueError(
                f"query must have shape (sequences, n, width) = ({remembered}, n, {self.embed_dim}), "
                f"got {tuple(query.shape)}"
            )
        dropout_p = self.dropout if self.training else 0.0
        return self._join_heads(
            self.core.recall(self._split_heads(self.q_proj(query)), memory, dropout_p=dropout_p), True
        )

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}"

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)  # (b, n, h d) -> (b, h, n, d)

    def _join_heads(self, x: Tensor, batched: bool) -> Tensor:
        """Project what the heads found, and return it in the layout of the inputs."""
        out: Tensor = self.out_proj(x.transpose(1, 2).flatten(-2))  # (b, h, n, d) -> (b, n, h d)
        if not batched:
            return out.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1)

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        if query.is_nested or key.is_nested or value.is_nested:
            raise ValueError(
                "nested tensors are not supported; pad them with torch.nested.to_padded_tensor and give a "
                "key_padding_mask"
            )
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
        init: Law of the frequencies at the start: ``"rbf"`` starts close to :class:`DotProduct`, ``"wide"`` with a
            kernel that its samples can estimate in wide heads, too, ``"paper"`` as the authors do.
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
        init: Scale of the frequencies at the start: ``"rbf"`` starts close to :class:`DotProduct`, ``"wide"`` with a
            kernel that its samples can estimate in wide heads, too, ``"paper"`` has the authors' spread.
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
        init: Scale of the frequencies at the start: ``"rbf"`` starts close to :class:`DotProduct`, ``"wide"`` with a
            kernel that its samples can estimate in wide heads, too, ``"paper"`` has the authors' spread.
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
        module: Any module that contains layers of this package, of sequences or of graphs, or cores of them.

    Returns:
        A scalar with the graph of that forward; zero without such layers.

    Example:
        >>> model = nn.ModuleList([IKAN(8, 2), DotProduct(8, 2)])
        >>> attention_kl(model)
        tensor(0.)
    """
    layers = [layer for layer in module.modules() if isinstance(layer, MultiheadAttention)]
    within = {layer.core for layer in layers}
    others = [other for other in module.modules() if isinstance(other, Regularised) and other not in within]
    terms = [layer.kl for layer in layers + others]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _read_projections(layer: nn.MultiheadAttention | MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    """Return weight and bias of the projections of query, key, value and output."""
    if isinstance(layer, MultiheadAttention):
        return [(x.weight, x.bias) for x in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj)]
    if not isinstance(layer, nn.MultiheadAttention):
        raise TypeError(f"layer must be a MultiheadAttention of torch.nn or of this package, got {type(layer)}")
    for name, present in (("add_bias_kv", layer.bias_k is not None), ("add_zero_attn", layer.add_zero_attn)):
        if present:
            raise ValueError(f"layer must not have {name}: there is no such extra key here, got a layer with it")
    with torch.enable_grad():  # so that a part of a weight says whether the weight is frozen
        if layer.in_proj_weight is None:
            weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        else:
            weights = layer.in_proj_weight.chunk(3)
        biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    return [*zip(weights, biases, strict=True), (layer.out_proj.weight, layer.out_proj.bias)]


def _check_dtype(name: str, mask: Tensor) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{name} must be boolean (True = ignore) or floating (added to log-weights), got {mask.dtype}")


def _as_drawn(weight: Tensor) -> None:
    """Leave a weight to :class:`torch.nn.Linear`'s own law."""
