r"""Kernel attention by tiles: time n m (R + e), memory n + m, and products of matrices alone.

Attention is a quotient of the sums :math:`\sum_j ((q_i \cdot k_j)^2 + \text{floor})\, e^{\text{mag}_j} [v_j, 1]`. These
are plain sums: no exponential stands between queries and keys, so tiles are added up in any order, without the online
softmax of tiled dot-product attention. A tile stays in the processor's cache, and the backward makes it again instead
of reading an n x m matrix from memory.

**Shifts.** Magnitudes may differ by factors beyond any floating-point range, so each row i divides its sums by
:math:`e^{s_i}`, where :math:`s_i` is the largest magnitude that it sees: of all keys, or, in a causal call, of the keys
0..i. (One shift for all would leave 0 / 0 in an early row when a later key is far larger.) A tile of keys is weighed
relative to its own shift, s at its last key, and what it adds to row i is multiplied by
:math:`e^{s_J - s_i} \le 1`. Only in a tile on the diagonal do weights need a shift for each row. Shifts cancel in the
quotient and need no gradient.

**Operations,** in multiply-adds: n m (R + e) forward and n m (3R + 2e) backward, half of it in a causal call, in which
tiles above the diagonal are never made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# A tile of 256 x 256 float32 and its operands stay in the second-level cache of a core; larger ones spill, and waste
# more on the diagonal of a causal call. Smaller ones make the matrix products inefficient.
TILE = 256

# Numbers in the matrices of one step: heads smaller than that go together, and each core takes some of them whole.
CPU_STEP = 2**19

# An accelerator has no such cache to stay in, and wants work for all its cores at once.
ACCELERATOR_TILE, ACCELERATOR_STEP = 2048, 2**25


def chunked_attention(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, floor: float, is_causal: bool
) -> Tensor:
    r"""Kernel attention without an n x m matrix; see :func:`~ika_lightning.attention.kernel_attention`.

    Differentiable once, in all four tensors.

    Args:
        query: Features of queries.
        key: Features of keys.
        value: What is averaged.
        log_magnitude: Logarithm of the magnitude of each key; -inf for a key that has no weight.
        floor: Added to the squared similarity.
        is_causal: Query ``i`` attends to keys ``0..i`` only. There may be more queries than keys, not more keys.

    Shapes:
        query (b, n, R); key (b, m, R); value (b, m, e); log_magnitude (b, m); the result (b, n, e).

    Example:
        >>> x = torch.ones(1, 3, 2)
        >>> chunked_attention(x, x, torch.tensor([[[1.0], [2.0], [3.0]]]), torch.zeros(1, 3), 0.0, True).flatten()
        tensor([1.0000, 1.5000, 2.0000])
    """
    return _attend(query, key, value, log_magnitude, floor, is_causal)[0]


def _forward(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, floor: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Return the averages and the sums of weights (b, n)."""
    (batch, n, _), (_, m, width), size = query.shape, value.shape, tile_size(query)
    out, weight_sum = query.new_empty(batch, n, width), query.new_empty(batch, n)
    for heads in head_groups(query, min(n, size) * min(m, size)):
        q, k, v, magnitude = query[heads], key[heads], value[heads], log_magnitude[heads]
        shift = seen_maximum(magnitude, max(n, m), is_causal)
        weighted = [weigh(v[:, j], magnitude[:, j], shift[:, j.stop - 1]) for j in blocks(m, size)]
        for i in blocks(n, size):
            sums = q.new_zeros(q.size(0), width + 1, i.stop - i.start)
            for j, tile in zip(blocks(m, size), weighted, strict=True):
                if is_causal and j.start >= i.start:
                    break
                similarity = q[:, i] @ k[:, j].mT
                tile_sums = torch.baddbmm(tile.sum(-1, keepdim=True), tile, similarity.square_().mT, beta=floor)
                sums.addcmul_(tile_sums, (shift[:, None, j.stop - 1, None] - shift[:, None, i]).exp())
            if is_causal:
                sums += diagonal_sums(q[:, i], k[:, i], v[:, i], magnitude[:, i], shift[:, i], floor)
            divide_into(out[heads, i], weight_sum[heads, i], sums)
    return out, weight_sum


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_magnitude: Tensor,
    out: Tensor,
    weight_sum: Tensor,
    grad_out: Tensor,
    floor: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, m, size = query.size(1), key.size(1), tile_size(query)
    grad_query, grad_key = torch.zeros_like(query), torch.zeros_like(key)
    grad_value, grad_log_magnitude = torch.empty_like(value), torch.empty_like(log_magnitude)
    for heads in head_groups(query, min(n, size) * min(m, size)):
        q, k, v, magnitude = query[heads], key[heads], value[heads], log_magnitude[heads]
        grad_q, grad_k = grad_query[heads], grad_key[heads]
        shift = seen_maximum(magnitude, max(n, m), is_causal)
        grad_sums = [sums_gradient(out[heads, i], weight_sum[heads, i], grad_out[heads, i]) for i in blocks(n, size)]
        for j in blocks(m, size):
            tile_shift = shift[:, j.stop - 1]
            tile = weigh(v[:, j], magnitude[:, j], tile_shift)
            grad_tile = torch.zeros_like(tile)
            for i, grad in zip(blocks(n, size), grad_sums, strict=True):
                if is_causal and i.start <= j.start:
                    continue
                grad = grad * (tile_shift[:, None, None] - shift[:, None, i]).exp()
                similarity = q[:, i] @ k[:, j].mT
                grad_similarity = (grad.mT @ tile).mul_(similarity)  # half of it
                grad_tile.baddbmm_(grad, similarity.square_()).add_(grad.sum(-1, keepdim=True), alpha=floor)
                grad_q[:, i].baddbmm_(grad_similarity, k[:, j], alpha=2)
                grad_k[:, j].baddbmm_(grad_similarity.mT, q[:, i], alpha=2)
            grad_tile *= (magnitude[:, j] - tile_shift[:, None]).exp().unsqueeze(1)
            if is_causal:
                i, grad = slice(j.start, min(j.start + size, n)), grad_sums[j.start // size]
                of_query, of_key, of_tile = diagonal_gradients(
                    q[:, i], k[:, j], v[:, j], magnitude[:, j], shift[:, i], floor, grad
                )
                grad_q[:, i] += of_query
                grad_k[:, j] += of_key
                grad_tile += of_tile
            unweigh_into(grad_value[heads, j], grad_log_magnitude[heads, j], v[:, j], grad_tile)
    return grad_query, grad_key, grad_value, grad_log_magnitude


def _forward_shapes(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, floor: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    return query.new_empty(*query.shape[:-1], value.size(-1)), query.new_empty(query.shape[:-1])


def _backward_shapes(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), torch.empty_like(log_magnitude)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.floor, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(*ctx.saved_tensors, grad_out, ctx.floor, ctx.is_causal), None, None


def operator(
    name: str,
    function: Callable[..., Any],
    shapes: Callable[..., Any],
    differentiate: Callable[..., Any] | None = None,
    save: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Make a function of tensors an operator of PyTorch: the compiler takes it as a whole and unrolls no loop.

    (``torch.library.custom_op`` does the same, and imports the compiler, some seconds, at the first call.)

    Args:
        name: Name of the operator.
        function: What it computes. No result shares memory with an argument.
        shapes: The same function on tensors without data, for the shapes of its results.
        differentiate: Gradients of the arguments, given those of the results; None refuses to differentiate.
        save: Keeps what ``differentiate`` needs.
    """

    def refuse(ctx: Any, *_: Any) -> None:
        raise RuntimeError(f"ika_lightning::{name} has no derivative; take backend='dense' for second derivatives")

    qualified = f"ika_lightning::{name}"
    torch.library.define(qualified, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(qualified, "default", function)
    torch.library.register_fake(qualified, shapes)
    torch.library.register_autograd(qualified, differentiate or refuse, setup_context=save)
    made: Callable[..., Any] = getattr(torch.ops.ika_lightning, name)
    return made


_attend = operator("chunked_attention", _forward, _forward_shapes, _differentiate, _save)
_attend_backward = operator("chunked_attention_backward", _backward, _backward_shapes)


def blocks(length: int, size: int) -> list[slice]:
    """Cut a length into slices of a size, the last one perhaps shorter.

    Example:
        >>> blocks(5, 3)
        [slice(0, 3, None), slice(3, 5, None)]
    """
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def tile_size(x: Tensor) -> int:
    """Return how many queries, and keys, make a tile on the device of a tensor."""
    return TILE if x.device.type == "cpu" else ACCELERATOR_TILE


def head_groups(x: Tensor, numbers: int) -> list[slice]:
    """Cut the leading axis so that a step of a group, with this many numbers for each head, fits where it should."""
    step = CPU_STEP if x.device.type == "cpu" else ACCELERATOR_STEP
    return blocks(x.size(0), max(1, step // max(1, numbers)))


def seen_maximum(log_magnitude: Tensor, length: int, is_causal: bool) -> Tensor:
    """Return the largest log-magnitude that each row sees; where there is none, the lowest finite number.

    Shapes:
        log_magnitude (b, m); the result (b, length), length at least m.

    Example:
        >>> seen_maximum(torch.tensor([[1.0, 3.0, 2.0]]), 4, is_causal=True)
        tensor([[1., 3., 3., 3.]])
    """
    if log_magnitude.size(-1) == 0:
        return log_magnitude.new_zeros(log_magnitude.size(0), length)
    seen = log_magnitude.cummax(-1).values if is_causal else log_magnitude.amax(-1, keepdim=True)
    seen = torch.cat([seen, seen[:, -1:].expand(-1, length - seen.size(-1))], dim=-1)
    return seen.clamp_min(torch.finfo(seen.dtype).min)  # (-inf) - (-inf) would be NaN


def append_one(value: Tensor) -> Tensor:
    """Return [v, 1] of each key, transposed: products with narrow matrices (e + 1, m) are faster.

    Shapes:
        value (..., m, e); the result (..., e + 1, m), contiguous.

    Example:
        >>> append_one(torch.tensor([[[3.0], [4.0]]]))
        tensor([[[3., 4.],
                 [1., 1.]]])
    """
    *lead, m, width = value.shape
    values = value.new_empty(*lead, width + 1, m)
    values[..., :-1, :], values[..., -1, :] = value.mT, 1.0
    return values


def weigh(value: Tensor, log_magnitude: Tensor, shift: Tensor) -> Tensor:
    """Return exp(mag - shift) [v, 1] of each key, transposed.

    Shapes:
        value (..., m, e); log_magnitude (..., m); shift (...); the result (..., e + 1, m).

    Example:
        >>> weigh(torch.tensor([[[3.0], [4.0]]]), torch.tensor([[2.0, 2.0]]), torch.tensor([2.0]))
        tensor([[[3., 4.],
                 [1., 1.]]])
    """
    return append_one(value).mul_((log_magnitude - shift[..., None]).exp().unsqueeze(-2))


def diagonal_sums(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, shift: Tensor, floor: float
) -> Tensor:
    """Return the sums of a tile on the diagonal, whose row i sees keys 0..i, relative to the shift of each row.

    Shapes:
        query (b, n, R); key (b, m, R); value (b, m, e); log_magnitude (b, m); shift (b, n); the result (b, e + 1, n).
    """
    decay = (log_magnitude[:, None] - shift[..., None]).exp_()
    weights = (query @ key.mT).square_().add_(floor).mul_(decay).tril_()
    return append_one(value) @ weights.mT


def diagonal_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_magnitude: Tensor,
    shift: Tensor,
    floor: float,
    grad_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a tile on the diagonal adds to the gradients of query, key and exp(mag) [v, 1], over exp(mag)."""
    decay = (log_magnitude[:, None] - shift[..., None]).exp_()
    similarity = query @ key.mT
    grad_similarity = (grad_sums.mT @ append_one(value)).mul_(similarity).mul_(decay).mul_(2).tril_()
    weights = similarity.square_().add_(floor).mul_(decay).tril_()
    return grad_similarity @ key, grad_similarity.mT @ query, grad_sums @ weights


def divide_into(out: Tensor, weight_sum: Tensor, sums: Tensor) -> None:
    """Write averages and sums of weights; a row without weight averages nothing, 0 / 0 = 0.

    Shapes:
        out (..., n, e); weight_sum (..., n); sums (..., e + 1, n).
    """
    weight_sum.copy_(sums[..., -1, :])
    out.copy_((sums[..., :-1, :] / nonzero(sums[..., -1:, :])).mT)


def sums_gradient(out: Tensor, weight_sum: Tensor, grad_out: Tensor) -> Tensor:
    """Return the gradient of the sums, given the gradient of their quotient; as :func:`divide_into`."""
    grad = grad_out.new_empty(out.size(0), out.size(-1) + 1, out.size(1))
    grad[:, :-1] = grad_out.mT
    grad[:, -1] = torch.linalg.vecdot(grad_out, out).neg_()
    return grad.div_(nonzero(weight_sum).unsqueeze(1))


def unweigh_into(grad_value: Tensor, grad_log_magnitude: Tensor, value: Tensor, grad_weighted: Tensor) -> None:
    """Write the gradients of values and log-magnitudes, given that of exp(mag) [v, 1], times exp(mag).

    Shapes:
        value and its gradient (b, m, e); grad_log_magnitude (b, m); grad_weighted (b, e + 1, m).
    """
    grad_value.copy_(grad_weighted[:, :-1].mT)
    grad_log_magnitude.copy_(torch.linalg.vecdot(grad_value, value)).add_(grad_weighted[:, -1])


def nonzero(x: Tensor) -> Tensor:
    """Replace zeros by ones."""
    return x.masked_fill(x == 0.0, 1.0)
