"""What all attention layers are: projections and masks around a core that attends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ika_lightning.attention.core import Core
from ika_lightning.attention.encoded import Cache, EncodedKeys
from ika_lightning.attention.mask import Mask
from ika_lightning.attention.packed import NoPackedProjection, Projection, unpack
from ika_lightning.attention.start import Linear, reset_children


class MultiheadAttention(nn.Module):
    r"""Base of the layers: projections and masks around a core that attends.

    .. math::
        \text{out} = [\text{head}_1, \dots, \text{head}_h] W_o, \qquad
        \text{head}_i = \text{core}(x_q W_{q,i}, \; x_k W_{k,i}, \; x_v W_{v,i})

    A new layer is a new core: an argument, not a method to override.

    A layer may take the place of the attention in PyTorch's transformer layers, by assignment or by
    :func:`~ika_lightning.attention.replace_attention`.

    Arguments before the star are those of :class:`torch.nn.MultiheadAttention`, in its order and with its defaults.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; it must divide embed_dim.
        dropout: Probability with which an attention weight is dropped in training.
        bias: Give the four projections a bias.
        add_bias_kv: Refused; no layer of this package has extra keys.
        add_zero_attn: Refused; no layer of this package has extra keys.
        kdim: Width of keys; embed_dim if None.
        vdim: Width of values; embed_dim if None.
        batch_first: Sequences come as (batch, length, width), else as (length, batch, width).
        device: Where parameters are made; the default device if None.
        dtype: What they are made of; the default dtype if None.
        core: What attends, a :class:`~ika_lightning.attention.Core`; called with (heads, width of a head).

    Shapes:
        query (b, n, embed_dim); key (b, m, kdim); value (b, m, vdim), or all three without b; key_padding_mask (b, m);
        attn_mask (n, m) or (b * h, n, m); returns (b, n, embed_dim) and weights (b, n, m), (b, h, n, m) if not
        averaged, or None.

    Raises:
        ValueError: If num_heads does not divide embed_dim, dropout is no probability, or shapes do not fit.
        TypeError: If a mask is neither boolean nor floating.

    Example:
        >>> layer = MultiheadAttention(8, 2, batch_first=True, core=lambda heads, width: Core(heads, width))
        >>> x = torch.randn(3, 5, 8)
        >>> layer(x, x, x)[0].shape
        torch.Size([3, 5, 8])
    """

    # What torch.nn.TransformerEncoderLayer and TransformerEncoder read besides batch_first, num_heads and out_proj.
    _qkv_same_embed_dim = True
    # And others of its attributes, for whoever reads them.
    bias_k = bias_v = None
    add_zero_attn = False
    in_proj_weight = in_proj_bias = NoPackedProjection()

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        core: Callable[[int, int], Core],
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be a positive multiple of num_heads, got embed_dim={embed_dim}, num_heads={num_heads}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        for name, asked in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            if asked:
                raise ValueError(
                    f"{name} must be False: layers of this package have no extra key; append it to the keys"
                )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        with _building_on(device):
            self.q_proj = Linear(embed_dim, embed_dim, bias=bias, dtype=dtype)
            self.k_proj = Linear(embed_dim if kdim is None else kdim, embed_dim, bias=bias, dtype=dtype)
            self.v_proj = Linear(embed_dim if vdim is None else vdim, embed_dim, bias=bias, dtype=dtype)
            self.out_proj = Linear(embed_dim, embed_dim, bias=bias, dtype=dtype)
            for projection in (self.q_proj, self.k_proj, self.v_proj):
                projection.starting(nn.init.xavier_uniform_)
            self.out_proj.starting(_as_drawn)
            self.core = core(num_heads, self.head_dim)
        if dtype is not None:
            self.core.to(dtype)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        reset_children(self)

    @classmethod
    def from_attention(cls, layer: nn.MultiheadAttention | MultiheadAttention, **options: Any) -> Self:
        """Build a layer of this class with the projections of another, which may be trained.

        Device, dtype, mode (training or evaluation) and whether a projection is frozen come along. The core is new.
        With p = 2 (or ``"learned"``, which starts there), :class:`DotProduct`, :class:`RBF` and the layers with
        ``init="softmax"`` give what a layer of PyTorch's, or a :class:`DotProduct`, gave, to rounding, however wide the
        heads and however few the samples; of another layer of this package, what its kernel has learned is lost.
        With ``init="rbf"`` the learned kernels estimate it, and the more poorly the wider the heads: a kernel of
        distant points is small, and lost in the noise of the estimate. Error of the output in evaluation, relative to
        the size of the output, for freshly made ``nn.MultiheadAttention(num_heads * d, num_heads)`` of 8 heads on 64
        standard normal rows:

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
            ValueError: If the layer has ``add_bias_kv`` or ``add_zero_attn``, which no layer of this package has, or a
                device or dtype is given.
            TypeError: If it is no attention layer.

        Example:
            >>> from ika_lightning.attention import DotProduct
            >>> theirs, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
            >>> DotProduct.from_attention(theirs)(x, x, x)[0].allclose(theirs(x, x, x)[0], atol=1e-6)
            True
        """
        if taken := sorted({"device", "dtype"} & options.keys()):
            raise ValueError(f"{' and '.join(taken)} of a layer's parameters come along; call .to(...) on the result")
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
    def kdim(self) -> int:
        """Width of keys."""
        return self.k_proj.in_features

    @property
    def vdim(self) -> int:
        """Width of values."""
        return self.v_proj.in_features

    @property
    def kl(self) -> Tensor:
        """The regulariser of the last forward; zero for a core that has none."""
        # a core may have no parameters that would say where it is
        return self.core.kl.to(self.out_proj.weight.device)

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
        mask = Mask.of_layer(key_padding_mask, attn_mask, is_causal, b, self.num_heads, n, m)
        out, weights = self.core(
            self._split_heads(self.q_proj(query)),
            self._split_heads(self.k_proj(key)),
            self._split_heads(self.v_proj(value)),
            mask,
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
            with by ``cache.select(index)``.

        Raises:
            ValueError: If the shape does not fit, or the cache is one of another number of sequences.

        Example:
            >>> from ika_lightning.attention import DotProduct
            >>> layer, x = DotProduct(8, 2, batch_first=True), torch.randn(3, 5, 8)
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

    def encode_keys(self, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> EncodedKeys:
        """Do all of :meth:`forward` that needs no queries: project the keys, and make features and magnitudes of them.

        A decoder calls it once for a sentence, and :meth:`attend` for each word that it writes.

        Args:
            key: Sequence that is attended to.
            value: What is averaged.
            key_padding_mask: Keys to ignore, for all queries.

        Shapes:
            key (b, m, kdim) and value (b, m, vdim), or as ``batch_first`` says; key_padding_mask (b, m).

        Returns:
            The encoded keys. ``keys.select(index)`` are those of some of the sequences.

        Raises:
            ValueError: If shapes do not fit.
            TypeError: If the mask is neither boolean nor floating.

        Example:
            >>> from ika_lightning.attention import DotProduct
            >>> layer, x, source = DotProduct(8, 2, batch_first=True), torch.randn(3, 5, 8), torch.randn(3, 7, 8)
            >>> keys = layer.encode_keys(source, source)
            >>> layer.attend(x, keys).allclose(layer(x, source, source)[0], atol=1e-6)
            True
        """
        if key.dim() != 3:
            raise ValueError(f"key and value must have 3 axes, got key {tuple(key.shape)}, value {tuple(value.shape)}")
        self._check_inputs(key.new_empty(*key.shape[:-1], self.embed_dim), key, value)
        key, value = self._batch_first(key), self._batch_first(value)
        b, m = key.size(0), key.size(1)
        mask = Mask.of_layer(key_padding_mask, None, False, b, self.num_heads, 1, m)
        return self.core.encode_keys(self._split_heads(self.k_proj(key)), self._split_heads(self.v_proj(value)), mask)

    def attend(self, query: Tensor, keys: EncodedKeys) -> Tensor:
        """Attend to encoded keys: ``attend(query, encode_keys(key, value))`` is what ``self(query, key, value)`` is.

        Args:
            query: Sequence that attends.
            keys: What :meth:`encode_keys` returned.

        Shapes:
            query (b, n, embed_dim), or as ``batch_first`` says; the result the same.

        Raises:
            ValueError: If the query does not fit the keys.
        """
        if query.dim() != 3:
            raise ValueError(f"query must have 3 axes, got {tuple(query.shape)}")
        query = self._batch_first(query)
        if query.size(-1) != self.embed_dim or query.size(0) != keys.num_sequences:
            raise ValueError(
                f"query must have shape (sequences, n, width) = ({keys.num_sequences}, n, {self.embed_dim}), "
                f"got {tuple(query.shape)}"
            )
        dropout_p = self.dropout if self.training else 0.0
        out = self.core.attend_fixed(self._split_heads(self.q_proj(query)), keys, dropout_p=dropout_p)
        return self._join_heads(out, True)

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


def _read_projections(layer: nn.MultiheadAttention | MultiheadAttention) -> list[Projection]:
    """Return weight and bias of the projections of query, key, value and output."""
    if isinstance(layer, MultiheadAttention):
        return [(x.weight, x.bias) for x in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj)]
    if not isinstance(layer, nn.MultiheadAttention):
        raise TypeError(f"layer must be a MultiheadAttention of torch.nn or of this package, got {type(layer)}")
    return unpack(layer)


def _building_on(device: torch.device | str | None) -> contextlib.AbstractContextManager[Any]:
    """Make what is built inside on a device; where the context says if None."""
    return contextlib.nullcontext() if device is None else torch.device(device)


def _as_drawn(weight: Tensor) -> None:
    """Leave a weight to :class:`torch.nn.Linear`'s own law."""
