r"""Kernel attention by tiles with an exponent and a square: time n m (d + R + e), memory n + m.

.. math:: w_{ij} = e^{q_i \cdot k_j + \text{mag}_j} \bigl((\phi_i \cdot \psi_j)^2 + \text{floor}\bigr)

The exponent knows no bound that would serve all keys, so each row keeps the largest that it has seen, and what it has
summed is scaled down when a larger one comes (`online softmax <https://arxiv.org/abs/1805.02867>`_). The square lies
between the floor and about 1, and needs neither a maximum nor a logarithm. The backward knows each row's maximum and
makes a tile again: four products for the sums and the features, four for their gradients.

**Operations,** in multiply-adds: n m (d + R + e) forward and n m (3d + 3R + 2e) backward, half of it in a causal call,
in which tiles above the diagonal are never made.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ika_lightning.attention.backends.tiles import (
    append_one,
    blocks,
    divide_into,
    head_groups,
    sums_gradient,
    tile_size,
    unweigh_into,
)


def forward(
    query: Tensor,
    key: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    value: Tensor,
    log_magnitude: Tensor,
    floor: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the averages (b, n, e), and the sum of weights and the largest exponent of each row, (b, n)."""
    (batch, n, _), (_, m, width), size = query.shape, value.shape, tile_size(query)
    out, weight_sum = query.new_empty(batch, n, width), query.new_empty(batch, n)
    shift = query.new_full((batch, n), torch.finfo(query.dtype).min)
    for heads in head_groups(query, min(n, size) * min(m, size)):
        q, k, a, b, magnitude = (x[heads] for x in (query, key, query_features, key_features, log_magnitude))
        values = append_one(value[heads])
        work = _Work(q, min(n, size) * min(m, size), 2)
        for i in blocks(n, size):
            sums, seen = q.new_zeros(q.size(0), width + 1, i.stop - i.start), shift[heads, i]
            for j in _visible(blocks(m, size), i, is_causal):
                exponent, square = work.tiles(i.stop - i.start, j.stop - j.start)
                torch.baddbmm(magnitude[:, None, j], q[:, i], k[:, j].mT, out=exponent)
                _hide_future(exponent, i, j, is_causal, -math.inf)
                largest = torch.maximum(seen, exponent.amax(-1))
                exponent.sub_(largest.unsqueeze(-1)).exp_()
                torch.bmm(a[:, i], b[:, j].mT, out=square)
                weights = square.square_().add_(floor).mul_(exponent)
                sums.mul_((seen - largest).exp_().unsqueeze(1)).baddbmm_(values[..., j], weights.mT)
                seen = largest
            shift[heads, i] = seen
            divide_into(out[heads, i], weight_sum[heads, i], sums)
    return out, weight_sum, shift


def backward(
    query: Tensor,
    key: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    value: Tensor,
    log_magnitude: Tensor,
    out: Tensor,
    weight_sum: Tensor,
    shift: Tensor,
    grad_out: Tensor,
    floor: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the six tensors."""
    n, m, size = query.size(1), value.size(1), tile_size(query)
    of_query, of_key, of_query_features, of_key_features = (
        torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query, key, query_features, key_features)
    )
    grad_value = torch.empty_like(value, memory_format=torch.contiguous_format)
    grad_log_magnitude = torch.empty_like(log_magnitude, memory_format=torch.contiguous_format)
    for heads in head_groups(query, min(n, size) * min(m, size)):
        q, k, a, b, magnitude = (x[heads] for x in (query, key, query_features, key_features, log_magnitude))
        grad_q, grad_k, grad_a, grad_b = (x[heads] for x in (of_query, of_key, of_query_features, of_key_features))
        work = _Work(q, min(n, size) * min(m, size), 4)
        rows = blocks(n, size)
        grad_sums = [sums_gradient(out[heads, i], weight_sum[heads, i], grad_out[heads, i]) for i in rows]
        for j in blocks(m, size):
            values = append_one(value[heads, j])
            grad_values = torch.zeros_like(values)
            for i, grad in zip(rows, grad_sums, strict=True):
                if is_causal and i.stop <= j.start:
                    continue
                weight, similarity, of_weight, square = work.tiles(i.stop - i.start, j.stop - j.start)
                torch.sub(magnitude[:, None, j], shift[heads, i, None], out=weight)
                weight.baddbmm_(q[:, i], k[:, j].mT).exp_()
                _hide_future(weight, i, j, is_causal, 0.0)
                torch.bmm(a[:, i], b[:, j].mT, out=similarity)
                torch.bmm(grad.mT, values, out=of_weight)
                of_weight.mul_(weight)
                torch.mul(similarity, similarity, out=square).add_(floor)
                # half of the gradient of the product of features
                similarity.mul_(of_weight)
                grad_a[:, i].baddbmm_(similarity, b[:, j], alpha=2)
                grad_b[:, j].baddbmm_(similarity.mT, a[:, i], alpha=2)
                of_weight.mul_(square)
                grad_q[:, i].baddbmm_(of_weight, k[:, j])
                grad_k[:, j].baddbmm_(of_weight.mT, q[:, i])
                grad_values.baddbmm_(grad, weight.mul_(square))
            unweigh_into(grad_value[heads, j], grad_log_magnitude[heads, j], value[heads, j], grad_values)
    return of_query, of_key, of_query_features, of_key_features, grad_value, grad_log_magnitude


class _Work:
    """Memory for the tiles of a step, which is used again for each: fresh memory costs more than what is done in it."""

    def __init__(self, like: Tensor, numbers: int, count: int) -> None:
        self.heads = like.size(0)
        self.memory = like.new_empty(count, self.heads * numbers)

    def tiles(self, rows: int, columns: int) -> list[Tensor]:
        """Return matrices (heads, rows, columns) with anything in them."""
        numbers = self.heads * rows * columns
        return [part[:numbers].view(self.heads, rows, columns) for part in self.memory]


def _visible(columns: list[slice], rows: slice, is_causal: bool) -> list[slice]:
    return [j for j in columns if j.start < rows.stop] if is_causal else columns


def _hide_future(tile: Tensor, rows: slice, columns: slice, is_causal: bool, by: float) -> None:
    """Overwrite what is above the diagonal in a tile that meets it."""
    if is_causal and columns.stop > rows.start + 1:
        i = torch.arange(rows.start, rows.stop, device=tile.device)
        j = torch.arange(columns.start, columns.stop, device=tile.device)
        tile.masked_fill_(j > i.unsqueeze(1), by)
