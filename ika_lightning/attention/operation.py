"""Attention as similarity times magnitude: one operation, which several backends compute exactly.

The letters, here and in every file of this package:

    b batch    h heads    n queries    m keys    d width of a head    e width of a value
    M spectral samples    R features of the kernel
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal, overload

import torch
from torch import Tensor

from ika_lightning.attention.backends import Call, choose
from ika_lightning.attention.mask import Mask

#: Default of ``floor``, the authors'.
FLOOR = 1e-5


@overload
def kernel_attention(
    query_features: Tensor | None,
    key_features: Tensor | None,
    value: Tensor,
    key_log_magnitude: Tensor | None = None,
    *,
    query: Tensor | None = None,
    key: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    floor: float = FLOOR,
    backend: str = "auto",
    return_weights: Literal[False] = False,
) -> Tensor: ...


@overload
def kernel_attention(
    query_features: Tensor | None,
    key_features: Tensor | None,
    value: Tensor,
    key_log_magnitude: Tensor | None = None,
    *,
    query: Tensor | None = None,
    key: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    floor: float = FLOOR,
    backend: str = "auto",
    return_weights: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...


def kernel_attention(
    query_features: Tensor | None,
    key_features: Tensor | None,
    value: Tensor,
    key_log_magnitude: Tensor | None = None,
    *,
    query: Tensor | None = None,
    key: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    floor: float = FLOOR,
    backend: str = "auto",
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Average values with weights that are an exponential of a product times the square of a product of features.

    .. math::
        \text{out}_i = \frac{\sum_j w_{ij} v_j}{\sum_j w_{ij}}, \qquad
        w_{ij} = e^{q_i \cdot k_j + \text{mag}_j} \bigl((\phi_i \cdot \psi_j)^2 + \text{floor}\bigr)

    Either factor may be absent. With features alone this is the attention of `Implicit Kernel Attention
    <https://arxiv.org/abs/2006.06147>`_: the square keeps weights non-negative where an estimated kernel is not, and a
    product of two positive semi-definite kernels is one. With the product alone it is dot-product attention, with a
    bias for each key. The magnitude of the query would cancel in the quotient, so there is none.

    A query that may attend to nothing gets zeros, with zero gradient.

    Args:
        query_features: :math:`\phi`, see :mod:`ika_lightning.attention.features`. None, with those of the key, leaves
            out the square and the floor.
        key_features: :math:`\psi`.
        value: What is averaged.
        key_log_magnitude: :math:`\text{mag}`, the logarithm of the magnitude of each key; None means zero.
        query: :math:`q`, scaled. None, with the key, leaves out the product in the exponent.
        key: :math:`k`.
        attn_mask: Boolean, True = may attend, as in :func:`torch.nn.functional.scaled_dot_product_attention`; or
            floating, added to the logarithm of the weights. Masked keys have no influence, not even a NaN's.
        is_causal: Query ``i`` attends to keys ``0..i`` only (together with ``attn_mask``, if both are given). A later
            key changes no bit of an earlier row, as long as it is finite; a NaN may reach rows just before it.
        dropout_p: Probability with which a weight is dropped, the others scaled up to make good for it.
        floor: Added to the square so that no row of weights vanishes.
        backend: ``"reference"`` is the definition in log space, slow and plainly right; ``"sdpa"`` is PyTorch's own
            attention, for calls without features; ``"dense"`` holds one n x m matrix; ``"chunked"`` holds a tile of it
            at a time; ``"fused"`` does so in the registers of a GPU; ``"linear"`` takes time linear in n and m, for
            calls without an exponent. The last three serve calls in which all queries share a mask (besides
            ``is_causal``), without dropout or weights. ``"auto"`` takes the cheapest that serves the call, see
            :func:`~ika_lightning.attention.backends.choose`.
        return_weights: Also return the normalised weights (after dropout).

    Shapes:
        query_features (..., n, R); key_features (..., m, R); value (..., m, e); key_log_magnitude (..., m); query
        (..., n, d); key (..., m, d); attn_mask broadcastable to (..., n, m); the result (..., n, e), the weights
        (..., n, m). Leading axes broadcast. Half precision is computed in float32 and returned in the dtype of
        ``value``, unless PyTorch's own attention does it all, or ``"fused"``, whose products are in the dtype of values
        of half precision and whose sums are in float32.

    Raises:
        ValueError: If shapes do not fit one another, a factor is incomplete or both are absent, a probability, floor
            or backend is out of its range, or the backend cannot serve the call.
        TypeError: If ``attn_mask`` is neither boolean nor floating, or anything else is not floating.

    Example:
        >>> q, k, v = torch.ones(2, 5, 8), torch.ones(2, 7, 8), torch.arange(7.0).expand(2, 7).unsqueeze(-1)
        >>> kernel_attention(q, k, v).squeeze(-1)[0].round(decimals=4)
        tensor([3., 3., 3., 3., 3.])
        >>> out = kernel_attention(None, None, v, query=q, key=k)  # dot-product attention
    """
    _check_shapes(query, key, query_features, key_features, value, key_log_magnitude)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
    if not floor >= 0.0:
        raise ValueError(f"floor must be at least 0, got {floor}")
    mask = Mask.of(attn_mask, is_causal)
    call = Call(
        query, key, query_features, key_features, value, key_log_magnitude, mask, dropout_p, floor, return_weights
    )
    out, weights = attend(call.without_unattended(), backend)
    return out if weights is None else (out, weights)


def attend(call: Call, backend: str = "auto") -> tuple[Tensor, Tensor | None]:
    """Compute a call whose parts may be of any floating dtype; return averages, and weights if they are asked for.

    Raises:
        ValueError: If the mask does not fit, there is no such backend, or it refuses the call.
    """
    call.mask.check(call.n, call.m)
    with without_autocast(call.device):
        parts = (call.query, call.key, call.query_features, call.key_features, call.value, call.log_magnitude)
        plain = not call.has_features and call.log_magnitude is None
        dtypes = {part.dtype for part in parts if part is not None}
        alike = plain and len(dtypes) == 1
        computed = call if alike else _widened(call, torch.float64 if torch.float64 in dtypes else torch.float32)
        out, weights = choose(computed, backend)(computed)
    dtype = call.value.dtype
    return out.to(dtype), weights.to(dtype) if weights is not None and call.need_weights else None


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves operations on a device as they are; ``meta`` knows no autocast.

    Args:
        device: The device.

    Example:
        >>> with torch.autocast("cpu"), without_autocast(torch.device("cpu")):
        ...     print((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
        torch.float32
    """
    return torch.autocast(device.type, enabled=False) if _has_autocast(device.type) else nullcontext()


def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


# Compilers before that of PyTorch 2.12 cannot look into it; what torch.compiler.assume_constant_result does, without
# importing the compiler.
_has_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _widened(call: Call, dtype: torch.dtype) -> Call:
    """Return a call in the precision of the computation, which remembers whether its values came in half of it."""
    half = call.value.dtype in (torch.float16, torch.bfloat16) and dtype == torch.float32
    return replace(call.to(dtype), product_dtype=call.value.dtype if half else None)


def _check_shapes(
    query: Tensor | None,
    key: Tensor | None,
    query_features: Tensor | None,
    key_features: Tensor | None,
    value: Tensor,
    log_magnitude: Tensor | None,
) -> None:
    parts = (query, key, query_features, key_features, value, log_magnitude)
    if kinds := {str(part.dtype) for part in parts if part is not None and not part.is_floating_point()}:
        raise TypeError(f"everything but attn_mask must be floating, got {', '.join(sorted(kinds))}; call .float()")
    if value.dim() < 2:
        raise ValueError(f"value needs at least two axes (keys, width), got {tuple(value.shape)}")
    pairs = {"query and key": (query, key), "query_features and key_features": (query_features, key_features)}
    for names, (of_query, of_key) in pairs.items():
        if of_query is None and of_key is None:
            continue
        if of_query is None or of_key is None:
            raise ValueError(f"{names} come together: give both or neither")
        shapes = f"{tuple(of_query.shape)} and {tuple(of_key.shape)}, with value {tuple(value.shape)}"
        if min(of_query.dim(), of_key.dim()) < 2:
            raise ValueError(f"{names} need at least two axes (rows, width), got {shapes}")
        if of_query.size(-1) != of_key.size(-1):
            raise ValueError(f"{names} must have the same width, got {shapes}")
        if of_key.size(-2) != value.size(-2):
            raise ValueError(f"{names}: there must be as many keys as values, got {shapes}")
    if query is None and query_features is None:
        raise ValueError("give query_features and key_features, query and key, or all four; got none")
    if query is not None and query_features is not None and query.size(-2) != query_features.size(-2):
        raise ValueError(
            f"query and query_features must have the same number of rows, got {query.size(-2)} and "
            f"{query_features.size(-2)}"
        )
    if log_magnitude is not None and log_magnitude.size(-1) != value.size(-2):
        raise ValueError(
            f"key_log_magnitude must have one entry a key, shape (..., {value.size(-2)}), "
            f"got {tuple(log_magnitude.shape)}"
        )
