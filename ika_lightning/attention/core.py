"""Attention between queries, keys and values that are already projected and split into heads.

A core is what differs between the attention layers: similarity x magnitude, without projections. It takes the masks
that the layers have sorted out:

    key_mask   (b, 1, m) boolean, True = may attend; the same for all queries
    key_bias   (b, 1, m) floating, added to the log-weights of a key
    attn_mask  broadcastable to (b, h, n, m), boolean (True = may attend) or floating (added); may differ by query
    is_causal  query i attends to keys 0..i only
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ika_lightning.attention.cache import Cache, KeyCache, Memory, StateCache
from ika_lightning.attention.functional import (
    FLOOR,
    Backend,
    check_backend,
    kernel_attention,
    log_weight_attention,
    read_mask,
    silence_unattended,
)
from ika_lightning.attention.kernels import Kernel, RBFKernel, nonstationary_features, stationary_features
from ika_lightning.attention.linear import LinearState
from ika_lightning.attention.magnitude import Exponent, check_p, log_magnitude
from ika_lightning.attention.spectrum import DirectSpectrum, ImplicitSpectrum


class Core(nn.Module):
    """Base of the cores; one implements :meth:`forward`, and gets the other ways to attend from it.

    Shapes, here and in every core:
        query (b, h, n, d); key (b, h, m, d); value (b, h, m, e); the result (b, h, n, e) and, if asked for, weights
        (b, h, n, m), else None.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        dropout_p: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend."""
        raise NotImplementedError

    def decode(
        self, query: Tensor, key: Tensor, value: Tensor, cache: Cache | None = None, *, dropout_p: float = 0.0
    ) -> tuple[Tensor, Cache]:
        """Attend from the next positions of a sequence to those before, which the cache remembers, and causally.

        Args:
            query: Queries of the next positions.
            key: Their keys.
            value: Their values.
            cache: What the call for the positions before them returned; None at the beginning.
            dropout_p: Probability with which a weight is dropped.

        Returns:
            The result, and the cache for the positions after them.
        """
        if isinstance(cache, StateCache):
            raise ValueError("this cache is one of a layer with backend='linear'; go on with that layer")
        cache = KeyCache((key, value)) if cache is None else cache.extend(key, value)
        key, value = cache.rows
        attn_mask, is_causal = causal_mask(query.size(-2), cache.length, query.device)
        out, _ = self(query, key, value, attn_mask=attn_mask, is_causal=is_causal, dropout_p=dropout_p)
        return out, cache

    def remember(
        self, key: Tensor, value: Tensor, *, key_mask: Tensor | None = None, key_bias: Tensor | None = None
    ) -> Memory:
        """Do all of :meth:`forward` that needs no queries, for :meth:`recall` to be called many times."""
        return Memory((key, value), key_mask, key_bias)

    def recall(self, query: Tensor, memory: Memory, *, dropout_p: float = 0.0) -> Tensor:
        """Attend to what is remembered; together, the two are :meth:`forward`."""
        key, value = memory.rows
        out, _ = self(query, key, value, key_mask=memory.key_mask, key_bias=memory.key_bias, dropout_p=dropout_p)
        return out


class DotProductCore(Core):
    r"""Scaled dot-product attention, :math:`\text{softmax}(q \cdot k / \sqrt d)\, v`.

    Example:
        >>> out, weights = DotProductCore()(*torch.randn(3, 2, 4, 5, 8).unbind())
        >>> out.shape, weights
        (torch.Size([2, 4, 5, 8]), None)
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        dropout_p: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend."""
        scale = query.size(-1) ** -0.5
        if key_mask is None and key_bias is None and attn_mask is None and not need_weights:
            return _fused(query, key, value, None, is_causal, dropout_p, scale), None
        mask = merge_masks(key_mask, key_bias, attn_mask)
        return _softmax_attention(query, key, value, mask, is_causal, dropout_p, scale, need_weights)


class RBFCore(Core):
    r"""The explicit Gaussian kernel times the L^p magnitude.

    .. math::
        w_{ij} \propto \exp\Bigl(-\frac{|q_i - k_j|^2}{2 \ell^2}\Bigr) \exp\Bigl(\frac{|k_j|_p^2}{2 \sqrt d}\Bigr)
               \propto \exp\Bigl(\frac{q_i \cdot k_j}{\ell^2} + \frac{|k_j|_p^2}{2 \sqrt d}
                                 - \frac{|k_j|^2}{2 \ell^2}\Bigr)

    The second form is scaled dot-product attention with one more column, 1 on the query and the key's bias on the key,
    so it runs on PyTorch's fused kernels. At the initial lengthscale, :math:`\ell^2 = \sqrt d`, and p = 2 the bias is
    zero and this is dot-product attention.

    Args:
        num_heads: Number of heads.
        head_dim: Width of a head.
        p: Exponent of the norm in the magnitude, in [1, inf].
    """

    def __init__(self, num_heads: int, head_dim: int, p: Exponent = 2.0) -> None:
        super().__init__()
        self.p = check_p(p)
        self.kernel = RBFKernel(num_heads, head_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        dropout_p: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend."""
        with torch.autocast(query.device.type, enabled=False):
            query, key, values = (at_least_float32(x) for x in (query, key, value))
            precision = self.kernel.lengthscale.pow(-2)  # (h, 1, 1)
            bias = log_magnitude(key, self.p) - key.square().sum(-1) * precision.squeeze(-1) / 2
            if key_bias is not None:
                bias = bias + key_bias.to(bias.dtype)
            query = torch.cat([query * precision, torch.ones_like(query[..., :1])], -1)
            key = torch.cat([key, bias.unsqueeze(-1)], -1)
            if key_mask is None and attn_mask is None and not need_weights:
                return _fused(query, key, values, None, is_causal, dropout_p, 1.0).to(value.dtype), None
            mask = merge_masks(key_mask, None, attn_mask)
            out, weights = _softmax_attention(query, key, values, mask, is_causal, dropout_p, 1.0, need_weights)
        return out.to(value.dtype), None if weights is None else weights.to(value.dtype)

    def extra_repr(self) -> str:
        """Name the exponent."""
        return f"p={self.p}"


class ExplicitKernelCore(Core):
    r"""Any kernel given by its formula times the L^p magnitude, :math:`w_{ij} \propto k(q_i, k_j) \exp(\text{mag}_j)`.

    Args:
        kernel: The similarity.
        p: Exponent of the norm in the magnitude, in [1, inf].
    """

    def __init__(self, kernel: Kernel, p: Exponent = 2.0) -> None:
        super().__init__()
        self.p = check_p(p)
        self.kernel = kernel

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        dropout_p: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend."""
        with torch.autocast(query.device.type, enabled=False):
            query, key, values = (at_least_float32(x) for x in (query, key, value))
            mask = merge_masks(key_mask, key_bias, attn_mask)
            allowed, bias = read_mask(mask, is_causal, query.size(-2), key.size(-2), key.device)
            log_weight = self.kernel(query, key) + log_magnitude(key, self.p).unsqueeze(-2)
            if bias is not None:
                log_weight = log_weight + bias
            out, weights = log_weight_attention(log_weight, values, allowed, dropout_p)
        return out.to(value.dtype), weights.to(value.dtype) if need_weights else None

    def extra_repr(self) -> str:
        """Name the exponent."""
        return f"p={self.p}"


class Regularised(nn.Module):
    """What owns a spectrum and keeps the regulariser of its last forward, in ``_kl``."""

    spectrum: DirectSpectrum | ImplicitSpectrum
    _kl: Tensor | None = None

    @property
    def kl(self) -> Tensor:
        """The regulariser of the last forward; zero before the first."""
        # made here and not in the constructor: a model may have moved to another device since
        return next(self.spectrum.parameters()).new_zeros(()) if self._kl is None else self._kl

    def __getstate__(self) -> dict[str, Any]:
        """Leave the graph of the last forward out of copies and pickles, which refuse tensors that have one."""
        return {**self.__dict__, "_kl": None}


class SpectralCore(Regularised, Core):
    r"""A kernel with a learned spectral density times the L^p magnitude: the attention of the paper.

    Frequencies come from ``spectrum``, features from Bochner's map (one set of frequencies) or Yaglom's (two), and
    :func:`~ika_lightning.attention.kernel_attention` does the rest.

    The spectrum is told the mean key, over keys that may be attended to. It is told nothing where that mean would
    leak: in a causal call, whose mean contains the future, and in any call with an ``attn_mask``, which may differ
    between queries.

    Args:
        spectrum: Where frequencies come from.
        p: Exponent of the norm in the magnitude, in [1, inf].
        backend: How :func:`~ika_lightning.attention.kernel_attention` is computed.
    """

    def __init__(
        self, spectrum: DirectSpectrum | ImplicitSpectrum, p: Exponent = 2.0, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        self.spectrum = spectrum
        self.p = check_p(p)
        self.backend: Backend = check_backend(backend)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Tensor | None = None,
        key_bias: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        dropout_p: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, and leave the regulariser in ``kl``."""
        with torch.autocast(query.device.type, enabled=False):
            query, key = at_least_float32(query), at_least_float32(key)
            leaks = is_causal or attn_mask is not None
            frequencies, self._kl = self.spectrum(
                mean_key(key, key_mask) if self.spectrum.conditional and not leaks else None
            )
            query_features, key_features = _features(query, frequencies), _features(key, frequencies)
            key_log_magnitude = log_magnitude(key, self.p)
            if key_bias is not None:
                key_log_magnitude = key_log_magnitude + key_bias
        attended = kernel_attention(
            query_features,
            key_features,
            value,
            key_log_magnitude,
            attn_mask=merge_masks(key_mask, None, attn_mask),
            is_causal=is_causal,
            dropout_p=dropout_p,
            backend=self.backend,
            return_weights=need_weights,
        )
        return attended if isinstance(attended, tuple) else (attended, None)

    def decode(
        self, query: Tensor, key: Tensor, value: Tensor, cache: Cache | None = None, *, dropout_p: float = 0.0
    ) -> tuple[Tensor, Cache]:
        """Attend as a causal :meth:`forward` does, with frequencies drawn once and features made once for each key.

        With ``backend="linear"`` the cache is a state of constant size, and no gradient passes from one call to the
        next.
        """
        with torch.autocast(query.device.type, enabled=False):
            query, key = at_least_float32(query), at_least_float32(key)
            if cache is None:
                frequencies, self._kl = self.spectrum(None)
            else:
                frequencies = cache.frequencies
            rows = _features(key, frequencies), value, log_magnitude(key, self.p)
            query_features = _features(query, frequencies)
            if self.backend == "linear":
                return self._decode_with_state(query_features, *rows, cache, frequencies, dropout_p)
        cache = KeyCache(rows, frequencies) if cache is None else cache.extend(*rows)
        assert isinstance(cache, KeyCache)
        attn_mask, is_causal = causal_mask(query.size(-2), cache.length, query.device)
        out = kernel_attention(
            query_features,
            *cache.rows,
            attn_mask=attn_mask,
            is_causal=is_causal,
            dropout_p=dropout_p,
            # several positions behind others have a mask each, which not every backend serves
            backend=self.backend if attn_mask is None else "auto",
        )
        return out, cache

    def remember(
        self, key: Tensor, value: Tensor, *, key_mask: Tensor | None = None, key_bias: Tensor | None = None
    ) -> Memory:
        """Make frequencies, features and magnitudes of the keys, and leave the regulariser in ``kl``."""
        with torch.autocast(key.device.type, enabled=False):
            key = at_least_float32(key)
            frequencies, self._kl = self.spectrum(mean_key(key, key_mask) if self.spectrum.conditional else None)
            key_log_magnitude = log_magnitude(key, self.p)
            if key_bias is not None:
                key_log_magnitude = key_log_magnitude + key_bias
            return Memory((_features(key, frequencies), value, key_log_magnitude), key_mask, None, frequencies)

    def recall(self, query: Tensor, memory: Memory, *, dropout_p: float = 0.0) -> Tensor:
        """Attend to what is remembered."""
        with torch.autocast(query.device.type, enabled=False):
            query_features = _features(at_least_float32(query), memory.frequencies)
        return kernel_attention(
            query_features,
            *memory.rows,
            attn_mask=merge_masks(memory.key_mask, None, None),
            dropout_p=dropout_p,
            # calls are many and short, and linear would make its sums over all keys in each
            backend="auto" if self.backend == "linear" else self.backend,
        )

    def _decode_with_state(
        self,
        query_features: Tensor,
        key_features: Tensor,
        value: Tensor,
        key_log_magnitude: Tensor,
        cache: Cache | None,
        frequencies: tuple[Tensor, ...],
        dropout_p: float,
    ) -> tuple[Tensor, Cache]:
        values = at_least_float32(value)
        if cache is None:  # all at once, and with gradients within the call
            out = kernel_attention(
                query_features, key_features, value, key_log_magnitude,
                is_causal=True, dropout_p=dropout_p, backend="linear",
            )  # fmt: skip
            empty = StateCache(LinearState.empty(key_features, values), frequencies)
            return out, empty.extend(key_features, values, key_log_magnitude)
        if dropout_p > 0.0 or not isinstance(cache, StateCache):
            raise ValueError(
                "a layer with backend='linear' goes on with a cache of its own, and without dropout; "
                "call layer.eval(), or build the layer with another backend"
            )
        outs = []
        for t in range(values.size(-2)):  # causal within the call, too
            row = slice(t, t + 1)
            cache = cache.extend(key_features[..., row, :], values[..., row, :], key_log_magnitude[..., row])
            outs.append(cache.state.read(query_features[..., row, :], FLOOR))
        return torch.cat(outs, -2).to(value.dtype), cache

    def extra_repr(self) -> str:
        """Name the exponent and the backend."""
        return f"p={self.p}, backend={self.backend!r}"


def causal_mask(n: int, m: int, device: torch.device) -> tuple[Tensor | None, bool]:
    """Return the ``attn_mask`` and ``is_causal`` with which the last n of m positions attend to their past.

    ``is_causal`` counts queries and keys from the same first position, and so serves a sequence from its beginning.

    Shapes:
        the mask (n, m), boolean, True = may attend; None if there is nothing to forbid or ``is_causal`` says it.

    Example:
        >>> causal_mask(2, 4, torch.device("cpu"))[0]
        tensor([[ True,  True,  True, False],
                [ True,  True,  True,  True]])
        >>> causal_mask(4, 4, torch.device("cpu")), causal_mask(1, 4, torch.device("cpu"))
        ((None, True), (None, False))
    """
    if n == m:
        return None, True
    return None if n == 1 else torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n), False


def mean_key(key: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Average the keys that may be attended to; zeros if there are none.

    Shapes:
        key (b, h, m, d); key_mask (b, 1, m), True = may attend; the result (b, h, d).

    Example:
        >>> mean_key(torch.tensor([[[[1.0], [5.0]]]]), torch.tensor([[[True, False]]]))
        tensor([[[1.]]])
    """
    if key_mask is None:
        return key.sum(-2) / max(key.size(-2), 1)
    mask = key_mask.unsqueeze(-1)
    return key.masked_fill(~mask, 0.0).sum(-2) / mask.sum(-2).clamp_min(1)


def merge_masks(key_mask: Tensor | None, key_bias: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
    """Combine masks into one: boolean as long as all of them are, else floating with -inf where it forbids.

    Shapes:
        key_mask, key_bias (b, 1, m); attn_mask broadcastable to (b, h, n, m); the result as attn_mask, or (b, 1, 1, m)
        if there is none.

    Example:
        >>> merge_masks(torch.tensor([[[True, False]]]), None, torch.zeros(1, 2))
        tensor([[[[0., -inf]]]])
    """
    mask = attn_mask
    if key_bias is not None:
        bias = key_bias.unsqueeze(-2)
        if mask is None:
            mask = bias
        elif mask.dtype == torch.bool:
            mask = bias.masked_fill(~mask, -math.inf)
        else:
            mask = mask + bias
    if key_mask is not None:
        allowed = key_mask.unsqueeze(-2)
        if mask is None:
            mask = allowed
        elif mask.dtype == torch.bool:
            mask = mask & allowed
        else:
            mask = mask.masked_fill(~allowed, -math.inf)
    return mask


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 or float64: phases and magnitudes lose their meaning in half precision.

    Example:
        >>> at_least_float32(torch.ones((), dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x if x.dtype == torch.float64 else x.float()


def _features(x: Tensor, frequencies: tuple[Tensor, ...]) -> Tensor:
    """Map queries or keys to features: Bochner's with one set of frequencies, Yaglom's with two."""
    features = stationary_features if len(frequencies) == 1 else nonstationary_features
    return features(x, *(at_least_float32(w) for w in frequencies))


def _softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    dropout_p: float,
    scale: float,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention in which a query that may attend to nothing gets zeros, with zero gradient."""
    allowed, bias = read_mask(mask, is_causal, query.size(-2), key.size(-2), key.device)
    if allowed is not None:
        key, value = silence_unattended(key, allowed), silence_unattended(value, allowed)
    if need_weights:
        log_weight = (query * scale) @ key.mT
        return log_weight_attention(log_weight if bias is None else log_weight + bias, value, allowed, dropout_p)
    if allowed is None:
        return _fused(query, key, value, bias, False, dropout_p, scale), None
    empty = ~allowed.any(-1, keepdim=True)
    reachable = allowed | empty
    mask = reachable if bias is None else bias.to(query.dtype).masked_fill(~reachable, -math.inf)
    return _fused(query, key, value, mask, False, dropout_p, scale).masked_fill(empty, 0.0), None


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, dropout_p: float, scale: float
) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, dropout_p=dropout_p, scale=scale
    )
