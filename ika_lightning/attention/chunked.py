r"""The sums of kernel attention by tiles: time n m (R + e), memory n + m, and products of matrices alone.

Attention needs :math:`Y_i = \sum_j (q_i \cdot k_j)^2 w_j` and nothing else that couples queries and keys. These are
plain sums: no exponential stands in the way, so tiles of queries and keys are added up in any order, without the
running maximum of a tiled softmax. A tile stays in the processor's cache, and the backward makes it again instead of
reading an n x m matrix from memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A tile of 512 x 512 float32 is 1 MB, about the second-level cache of a core; larger ones spill, smaller ones make the
# matrix products inefficient (benchmarks/attention.py).
TILE = 512


def squared_similarity_sums(query: Tensor, key: Tensor, weighted: Tensor) -> Tensor:
    r"""Return :math:`Y_i = \sum_j (q_i \cdot k_j)^2 w_j` without an n x m matrix.

    Differentiable once, in all three arguments.

    Args:
        query: Features of queries.
        key: Features of keys.
        weighted: What is summed.

    Shapes:
        query (..., n, R); key (..., m, R); weighted (..., m, e); the result (..., n, e). Leading axes broadcast.

    Example:
        >>> squared_similarity_sums(torch.ones(3, 2), torch.ones(5, 2), torch.ones(5, 1)).squeeze(-1)
        tensor([20., 20., 20.])
    """
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], weighted.shape[:-2])
    flat = (x.expand(*batch, *x.shape[-2:]).reshape(batch.numel(), *x.shape[-2:]) for x in (query, key, weighted))
    sums: Tensor = _SquaredSimilaritySums.apply(*flat)
    return sums.view(*batch, *sums.shape[-2:])


class _SquaredSimilaritySums(torch.autograd.Function):
    """The same for one leading axis. Narrow matrices are held transposed, (e, m): products with them are faster."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, weighted: Tensor) -> Tensor:
        weighted_t = weighted.mT.contiguous()
        sums_t = query.new_zeros(query.size(0), weighted.size(-1), query.size(1))
        for one, rows, columns in _tiles(query, key):
            similarity = query[one, rows] @ key[one, columns].mT
            sums_t[one, :, rows].addmm_(weighted_t[one, :, columns], similarity.square_().mT)
        ctx.save_for_backward(query, key, weighted_t)
        return sums_t.mT.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, weighted_t = ctx.saved_tensors
        grad_sums_t = grad_sums.mT.contiguous()
        grad_query, grad_key = torch.zeros_like(query), torch.zeros_like(key)
        grad_weighted_t = torch.zeros_like(weighted_t)
        for one, rows, columns in _tiles(query, key):
            query_tile, key_tile, grad_tile = query[one, rows], key[one, columns], grad_sums_t[one, :, rows]
            similarity = query_tile @ key_tile.mT
            grad_similarity = (grad_tile.mT @ weighted_t[one, :, columns]).mul_(similarity)  # half of it
            grad_weighted_t[one, :, columns].addmm_(grad_tile, similarity.square_())
            grad_query[one, rows].addmm_(grad_similarity, key_tile, alpha=2)
            grad_key[one, columns].addmm_(grad_similarity.mT, query_tile, alpha=2)
        return grad_query, grad_key, grad_weighted_t.mT


def _tiles(query: Tensor, key: Tensor) -> list[tuple[int, slice, slice]]:
    """Return (index of the leading axis, queries, keys) of every tile."""
    batch, n, m = query.size(0), query.size(1), key.size(1)
    return [
        (one, slice(i, min(i + TILE, n)), slice(j, min(j + TILE, m)))
        for one in range(batch)
        for i in range(0, n, TILE)
        for j in range(0, m, TILE)
    ]
