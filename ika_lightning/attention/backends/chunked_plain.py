r"""Kernel attention by tiles without an exponent: time n m (R + e), memory n + m, and products of matrices alone.

Attention is a quotient of the sums :math:`\sum_j ((\phi_i \cdot \psi_j)^2 + \text{floor})\, e^{\text{mag}_j} [v_j, 1]`.
These are plain sums: no exponential stands between queries and keys, so tiles are added up in any order, without the
online softmax of tiled dot-product attention. A tile stays in the processor's cache, and the backward makes it again
instead of reading an n x m matrix from memory.

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

import torch
from torch import Tensor

from ika_lightning.attention.backends.tiles import (
    blocks,
    diagonal_gradients,
    diagonal_sums,
    divide_into,
    head_groups,
    seen_maximum,
    sums_gradient,
    tile_size,
    unweigh_into,
    weigh,
)


def forward(
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


def backward(
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
    """Return the gradients of the four tensors."""
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
