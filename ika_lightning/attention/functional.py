"""Attention as similarity times magnitude: one operation, several exact ways to compute it.

The letters, here and in every file of this package:

    b batch    h heads    n queries    m keys    d width of a head    e width of a value
    M spectral samples    R = 2M features of the kernel
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ika_lightning.attention.chunked import TILE, chunked_attention
from ika_lightning.attention.linear import BLOCK, linear_attention

#: Default of ``floor``, the authors'.
FLOOR = 1e-5

Backend = Literal["auto", "reference", "dense", "chunked", "linear"]


@overload
def kernel_attention(
    query_features: Tensor,
    key_features: Tensor,
    value: Tensor,
    key_log_magnitude: Tensor | None = None,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    floor: float = FLOOR,
    backend: Backend = "auto",
    return_weights: Literal[False] = False,
) -> Tensor: ...


@overload
def kernel_attention(
    query_features: Tensor,
    key_features: Tensor,
    value: Tensor,
    key_log_magnitude: Tensor | None = None,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    floor: float = FLOOR,
    backend: Backend = "auto",
    return_weights: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...


def kernel_attention(
    query_features: Tensor,
    key_features: Tensor,
    value: Tensor,
    key_log_magnitude: Tensor | None = None,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    floor: float = FLOOR,
    backend: Backend = "auto",
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Average values with weights similarity x magnitude, the attention of IKAN.

    .. math::
        \text{out}_i = \frac{\sum_j w_{ij} v_j}{\sum_j w_{ij}}, \qquad
        w_{ij} = \bigl((\phi(q_i) \cdot \phi(k_j))^2 + \text{floor}\bigr) \exp(\text{mag}_j)

    The square keeps the weights non-negative where an estimated kernel is not, and a product of two positive
    semi-definite kernels is one (Song et al., `Implicit Kernel Attention <https://arxiv.org/abs/2006.06147>`_). The
    magnitude of the query would cancel in the quotient, so there is none.

    No backend but the reference takes a logarithm: the magnitude is folded into values and keys, and one division at
    the end normalises. A query that may attend to nothing gets zeros, with zero gradient.

    Args:
        query_features: :math:`\phi(q)`, see :mod:`ika_lightning.attention.kernels`.
        key_features: :math:`\phi(k)`.
        value: What is averaged.
        key_log_magnitude: Logarithm of the magnitude of each key; None means a magnitude of one.
        attn_mask: Boolean, True = may attend, as in :func:`torch.nn.functional.scaled_dot_product_attention`; or
            floating, added to the logarithm of the weights. Masked keys have no influence, not even a NaN's.
        is_causal: Query ``i`` attends to keys ``0..i`` only (together with ``attn_mask``, if both are given). A later
            key changes no bit of an earlier row, as long as it is finite; a NaN may reach rows just before it.
        dropout_p: Probability with which a weight is dropped, the others scaled up to make good for it.
        floor: Added to the squared similarity so that no row of weights vanishes.
        backend: ``"reference"`` is the definition in log space, slow and plainly right; ``"dense"`` holds one
            n x m matrix and takes no logarithm; ``"chunked"`` holds one tile of it at a time; ``"linear"`` takes
            time linear in n and m, and pays on long sequences. These two serve calls in which all queries share a mask
            (besides ``is_causal``), without dropout or weights, and are differentiable once. ``"auto"`` takes the
            cheapest that can serve the call, see :func:`choose_backend`.
        return_weights: Also return the normalised weights (after dropout).

    Shapes:
        query_features (..., n, R); key_features (..., m, R); value (..., m, e); key_log_magnitude (..., m);
        attn_mask broadcastable to (..., n, m); the result (..., n, e), the weights (..., n, m). Leading axes
        broadcast. Half precision is computed in float32 and returned in the dtype of ``value``.

    Raises:
        ValueError: If shapes do not fit one another, a probability, floor or backend is out of its range, or the
            backend cannot serve the call.
        TypeError: If ``attn_mask`` is neither boolean nor floating.

    Example:
        >>> q, k, v = torch.ones(2, 5, 8), torch.ones(2, 7, 8), torch.arange(7.0).expand(2, 7).unsqueeze(-1)
        >>> kernel_attention(q, k, v).squeeze(-1)[0].round(decimals=4)
        tensor([3., 3., 3., 3., 3.])
    """
    _check_shapes(query_features, key_features, value, key_log_magnitude)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
    if not floor >= 0.0:
        raise ValueError(f"floor must be at least 0, got {floor}")
    check_backend(backend)

    compute_dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    n, m = query_features.size(-2), key_features.size(-2)
    with torch.autocast(value.device.type, enabled=False):
        query, key, values = (x.to(compute_dtype) for x in (query_features, key_features, value))
        allowed, bias = read_mask(attn_mask, False, n, m, value.device)
        magnitude = query.new_zeros(1, m) if key_log_magnitude is None else key_log_magnitude.unsqueeze(-2)
        magnitude = magnitude.to(compute_dtype)  # its logarithm, (..., 1, m)
        if bias is not None:
            magnitude = magnitude + bias.to(compute_dtype)  # (..., 1 or n, m)

        sums = sum_only(allowed, magnitude) and dropout_p == 0.0 and not return_weights
        if backend == "auto":
            heads = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], values.shape[:-2]).numel()
            backend = choose_backend(n, m, query.size(-1), values.size(-1), heads, is_causal, sums, floor)
        if backend in ("chunked", "linear"):
            if not sums:
                raise ValueError(
                    f"backend {backend!r} serves calls in which all queries share a mask, without dropout_p and "
                    "return_weights (a layer's need_weights); take 'dense' or 'auto' for this one"
                )
            compute_sums = chunked_attention if backend == "chunked" else linear_attention
            out, weights = _by_sums(compute_sums, query, key, values, magnitude, allowed, floor, is_causal), None
        else:
            if is_causal:
                allowed = _with_causal(allowed, n, m, value.device)
            compute = _reference if backend == "reference" else _dense
            out, weights = compute(query, key, values, magnitude, allowed, dropout_p, floor)
    if return_weights:
        assert weights is not None  # backends that have none refused
        return out.to(value.dtype), weights.to(value.dtype)
    return out.to(value.dtype)


def log_weight_attention(
    log_weight: Tensor, value: Tensor, allowed: Tensor | None = None, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Average values with weights given by their logarithms, :math:`\text{softmax}(\log w)\, v`.

    Args:
        log_weight: Logarithms of unnormalised weights.
        value: What is averaged.
        allowed: Boolean, True = may attend. A row without any True gets zeros, with zero gradient.
        dropout_p: Probability with which a weight is dropped.

    Shapes:
        log_weight (..., n, m); value (..., m, e); allowed broadcastable to (..., n, m); returns the averages
        (..., n, e) and the weights (..., n, m).

    Example:
        >>> _, weights = log_weight_attention(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[0.0], [4.0]]))
        >>> weights
        tensor([[0.2500, 0.7500]])
    """
    if allowed is not None:
        # A row of nothing but -inf has no softmax, so it gets all keys here and zeros below.
        empty = ~allowed.any(-1, keepdim=True)
        log_weight = log_weight.masked_fill(~(allowed | empty), -math.inf)
        value = silence_unattended(value, allowed)
    weights = log_weight.softmax(-1).to(value.dtype)
    if allowed is not None:
        weights = weights.masked_fill(~allowed, 0.0)
    weights = F.dropout(weights, dropout_p)
    return weights @ value, weights


def read_mask(
    attn_mask: Tensor | None, is_causal: bool, n: int, m: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Split a mask into what may attend and what is added to the log-weights.

    Args:
        attn_mask: Boolean (True = may attend), floating (added; -inf forbids), or None.
        is_causal: Forbid keys after the query's own position, too.
        n: Number of queries.
        m: Number of keys.
        device: Where a causal mask is made.

    Shapes:
        attn_mask broadcastable to (..., n, m). Both results are None or keep the mask's shape; a middle axis of 1
        says that all queries share the mask. A causal one has shape (..., n, m).

    Raises:
        TypeError: If the mask is neither boolean nor floating.
        ValueError: If it does not broadcast to n x m.

    Example:
        >>> read_mask(torch.tensor([[0.0, -torch.inf]]), False, 3, 2, torch.device("cpu"))
        (tensor([[ True, False]]), tensor([[0., 0.]]))
    """
    allowed: Tensor | None = None
    bias: Tensor | None = None
    if attn_mask is not None:
        if not (attn_mask.dtype == torch.bool or attn_mask.is_floating_point()):
            raise TypeError(f"attn_mask must be boolean (True = may attend) or floating, got {attn_mask.dtype}")
        if attn_mask.dim() < 2:
            attn_mask = attn_mask.expand(1, m) if attn_mask.dim() == 0 else attn_mask.unsqueeze(0)
        if attn_mask.size(-1) not in (1, m) or attn_mask.size(-2) not in (1, n):
            raise ValueError(
                f"attn_mask must broadcast to (..., n, m) = (..., {n}, {m}), got shape {tuple(attn_mask.shape)}"
            )
        attn_mask = attn_mask.expand(*attn_mask.shape[:-1], m)
        if attn_mask.dtype == torch.bool:
            allowed = attn_mask
        else:
            allowed = attn_mask != -math.inf
            bias = attn_mask.masked_fill(~allowed, 0.0)
    return _with_causal(allowed, n, m, device) if is_causal else allowed, bias


def _with_causal(allowed: Tensor | None, n: int, m: int, device: torch.device) -> Tensor:
    causal = torch.ones(n, m, dtype=torch.bool, device=device).tril()
    return causal if allowed is None else allowed & causal


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor | None) -> None:
    shapes = f"query_features {tuple(query.shape)}, key_features {tuple(key.shape)}, value {tuple(value.shape)}"
    if min(query.dim(), key.dim(), value.dim()) < 2:
        raise ValueError(f"features and values need at least two axes (rows, width), got {shapes}")
    if query.size(-1) != key.size(-1):
        raise ValueError(f"query_features and key_features must have the same number of features, got {shapes}")
    if key.size(-2) != value.size(-2):
        raise ValueError(f"key_features and value must have the same number of keys, got {shapes}")
    if log_magnitude is not None and log_magnitude.size(-1) != key.size(-2):
        raise ValueError(
            f"key_log_magnitude must have one entry a key, shape (..., {key.size(-2)}), "
            f"got {tuple(log_magnitude.shape)}"
        )


def silence_unattended(x: Tensor, allowed: Tensor) -> Tensor:
    """Zero the rows (..., m, *) of keys that no query may attend to: zero weight times NaN would still be NaN."""
    return x.masked_fill(~allowed.any(-2).unsqueeze(-1), 0.0)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with 0 / 0 = 0: the weights of a query that may attend to nothing, value and gradient."""
    return numerator / denominator.masked_fill(denominator == 0.0, 1.0)


def check_backend(backend: Backend) -> Backend:
    """Return the name of a backend if there is one of that name.

    Raises:
        ValueError: If there is none.

    Example:
        >>> check_backend("auto")
        'auto'
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(map(repr, get_args(Backend)))}, got {backend!r}")
    return backend


def sum_only(allowed: Tensor | None, magnitude: Tensor) -> bool:
    """Whether all queries share their mask, so that magnitudes fold into values and attention is a quotient of sums."""
    return magnitude.size(-2) == 1 and (allowed is None or allowed.size(-2) == 1)


# Prices in multiply-adds of a large matrix product (25 ps on a core), fitted to times forwards and backwards in float32
# on one core over some 300 shapes, dense and chunked anew on two; `benchmarks/attention.py --what auto` checks them.
# All that :func:`choose_backend` knows of a processor is here.
PRICES = {
    # An entry of n x m, besides the matrix products. Dense passes over it some ten times, more with a causal mask, and
    # once its matrices outgrow the cache, in memory that is freshly mapped.
    "dense entry": 300,
    "dense causal entry": 200,
    "dense entry beyond a million": 1500,
    "chunked entry": 60,
    "entry on the diagonal": 200,  # an exponential for each pair in tiles on the diagonal
    "product": 100,  # linear: a product of two features of a token
    "state": 850,  # linear: a number of a state, which is made, scaled and added to
    # The loops in Python.
    "dense call": 1.4e7,
    "chunked call": 8e7,
    "linear call": 7e7,
}


def costs(n: int, m: int, num_features: int, width: int, heads: int, is_causal: bool) -> dict[str, float]:
    r"""Estimate the time of each backend, forwards and backwards, in multiply-adds.

    With R features, values of width e, h heads, S = R (R // 2 + 1), P pairs of a query and a key that it may see (n m,
    or the area under the diagonal), D pairs in tiles on the diagonal (0 if not causal), T tokens (n + m):

    .. math::
        \text{dense} &= h n m\, (3 (R + e) + c_\text{dense}) + \max(0, h n m - 2^{20})\, c_\text{beyond} \\
        \text{chunked} &= h (P + D / 2) (4 R + 3 e) + h P c_\text{chunked} + h D c_\text{diagonal} \\
        \text{linear} &= h T S\, (3 (e + 1) + c_\text{product}) + h B S (e + 1)\, c_\text{state} + h D\, (4 R + 3 e +
                         c_\text{diagonal})

    with the prices c of ``PRICES``, and one for each call. B is the number of states that are made: 1 or, in a causal
    call, one for each block more; there 3 (e + 1) is 3.5 (e + 1), as the backward makes the states again.

    Args:
        n: Number of queries.
        m: Number of keys.
        num_features: Number of features, R.
        width: Width of a value, e.
        heads: Number of heads, over the whole batch.
        is_causal: Whether the call is causal.

    Example:
        >>> table = costs(16384, 16384, 32, 64, 8, is_causal=False)
        >>> sorted(table, key=table.get)
        ['linear', 'chunked', 'dense']
    """
    seen = min(n, m) if is_causal else m
    entries = heads * n * m
    pairs = heads * seen * (n - seen / 2) if is_causal else entries
    in_tiles, in_blocks = (heads * seen * min(size, n) * is_causal for size in (TILE, BLOCK))
    products = num_features * (num_features // 2 + 1)
    states = 1 + n / BLOCK * is_causal
    tiled = 4 * num_features + 3 * width
    summed = (3.5 if is_causal else 3.0) * (width + 1)
    return {
        "dense": PRICES["dense call"]
        + entries * (3 * (num_features + width) + PRICES["dense entry"] + PRICES["dense causal entry"] * is_causal)
        + max(0, entries - 2**20) * PRICES["dense entry beyond a million"],
        "chunked": PRICES["chunked call"]
        + (pairs + in_tiles / 2) * tiled
        + pairs * PRICES["chunked entry"]
        + in_tiles * PRICES["entry on the diagonal"],
        "linear": PRICES["linear call"]
        + heads * (n + seen) * products * (summed + PRICES["product"])
        + heads * states * products * (width + 1) * PRICES["state"]
        + in_blocks * (tiled + PRICES["entry on the diagonal"]),
    }


def choose_backend(
    n: int, m: int, num_features: int, width: int, heads: int, is_causal: bool, sums: bool, floor: float = FLOOR
) -> Literal["dense", "chunked", "linear"]:
    """Choose the cheapest exact backend, by :func:`costs`.

    Without a floor it is never linear, which may lose all digits of a sum of small similarities.

    Args:
        n: Number of queries.
        m: Number of keys.
        num_features: Number of features, R.
        width: Width of a value, e.
        heads: Number of heads, over the whole batch.
        is_causal: Whether the call is causal.
        sums: Whether chunked and linear can serve the call.
        floor: What is added to the squared similarity.

    Example:
        >>> [choose_backend(n, n, 32, 64, 8, is_causal=False, sums=True) for n in (64, 512, 16384)]
        ['dense', 'chunked', 'linear']
        >>> choose_backend(16384, 16384, 32, 64, 8, is_causal=False, sums=False)
        'dense'
    """
    if not sums:
        return "dense"
    table = costs(n, m, num_features, width, heads, is_causal)
    best: Literal["dense", "chunked", "linear"] = "dense"
    if table["chunked"] < table[best]:  # spelt out, as the compiler knows no min(..., key=...)
        best = "chunked"
    if floor > 0.0 and table["linear"] < table[best]:
        best = "linear"
    return best


def _reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_magnitude: Tensor,
    allowed: Tensor | None,
    dropout_p: float,
    floor: float,
) -> tuple[Tensor, Tensor]:
    """The definition in log space."""
    if allowed is not None:
        key = silence_unattended(key, allowed)
    similarity = (query @ key.mT).square() + floor
    if floor == 0.0:  # no similarity, no weight: the logarithm has no gradient at 0
        similar = similarity > 0.0
        allowed = similar if allowed is None else allowed & similar
        similarity = torch.where(similar, similarity, 1.0)
    return log_weight_attention(similarity.log() + log_magnitude, value, allowed, dropout_p)


def _dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_magnitude: Tensor,
    allowed: Tensor | None,
    dropout_p: float,
    floor: float,
) -> tuple[Tensor, Tensor]:
    """One n x m matrix and no logarithm.

    Where all queries share a mask, exponentials are taken of m numbers instead of n x m. Where they do not, each row
    has its own largest magnitude: one shift for all rows would give 0 / 0 in a row whose keys are all far smaller.
    """
    key, value, magnitude = _apply_mask(key, value, log_magnitude, allowed)
    weights = ((query @ key.mT).square() + floor) * magnitude
    weights = F.dropout(_divide(weights, weights.sum(-1, keepdim=True)), dropout_p)
    return weights @ value, weights


def _by_sums(
    compute: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_magnitude: Tensor,
    allowed: Tensor | None,
    floor: float,
    is_causal: bool,
) -> Tensor:
    """Sums over keys of similarity times magnitude, with no n x m matrix anywhere."""
    n = query.size(-2)
    if is_causal:  # nobody sees keys after the last query
        key, value, log_magnitude = key[..., :n, :], value[..., :n, :], log_magnitude[..., :n]
        allowed = None if allowed is None else allowed[..., :n]
    if allowed is not None:
        key, value = silence_unattended(key, allowed), silence_unattended(value, allowed)
        log_magnitude = log_magnitude.masked_fill(~allowed, -math.inf)
    tensors = query, key, value, log_magnitude
    batch = torch.broadcast_shapes(*(x.shape[:-2] for x in tensors))
    *features, magnitude = (x.expand(*batch, *x.shape[-2:]).reshape(batch.numel(), *x.shape[-2:]) for x in tensors)
    return compute(*features, magnitude.squeeze(1), floor, is_causal).view(*batch, n, value.size(-1))


def _apply_mask(
    key: Tensor, value: Tensor, log_magnitude: Tensor, allowed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys and values without what nobody may attend to, and magnitudes with their row's largest at 1.

    A common factor cancels in the quotient, so the shift needs no gradient.
    """
    if allowed is not None:
        key, value = silence_unattended(key, allowed), silence_unattended(value, allowed)
        log_magnitude = log_magnitude.masked_fill(~allowed, -math.inf)
    if log_magnitude.size(-1) == 0:
        return key, value, log_magnitude
    shift = log_magnitude.detach().amax(-1, keepdim=True)
    return key, value, (log_magnitude - shift.masked_fill(shift == -math.inf, 0.0)).exp()
