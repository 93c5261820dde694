r"""The causal case of linear attention in a few large products: how accelerators take it.

Queries and keys are cut into chunks, which are an axis of all tensors. Each chunk sums its keys by itself; what stands
before a chunk is then a product with a matrix of decays,

.. math:: \text{before}_c = \sum_{c' < c} e^{s_{c'} - t_{c-1}}\, \text{sums}_{c'},

where s is the largest log-magnitude of a chunk and t that of all chunks so far. So nothing waits for the chunk before
it, as it does in :mod:`.linear`, which holds one state at a time instead of all. The backward has the same product,
transposed, of what queries sum for the keys before them.

Of a head, the states are n / chunk (e + 1) S numbers, S = R (R // 2 + 1), and products of features n S.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ika_lightning.attention.backends.linear_state import BLOCK, LinearState, transposed
from ika_lightning.attention.backends.tiles import (
    diagonal_gradients,
    diagonal_sums,
    divide_into,
    seen_maximum,
    sums_gradient,
    unweigh_into,
    weigh,
)


def forward(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the averages, the sums of weights (b, n), and the sums of the state after all keys."""
    chunks = _Chunks.of(query, key, value, log_magnitude)
    before, (sums_of_keys, own, until) = chunks.states()
    sums = before.sums(transposed(chunks.query), floor) * chunks.decay(before.shift)
    sums = sums.flatten(0, 1)
    sums += diagonal_sums(*chunks.tiles(), floor)
    out, weight_sum = sums.new_empty(*sums.shape[:1], sums.size(-1), value.size(-1)), sums.new_empty(sums[:, 0].shape)
    divide_into(out, weight_sum, sums)
    whole = (own - until[:, -1:]).exp()[..., None]
    products = (sums_of_keys.products * whole[..., None]).sum(1)
    return chunks.joined(out), chunks.joined(weight_sum), products, (sums_of_keys.total * whole).sum(1)


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_magnitude: Tensor,
    out: Tensor,
    weight_sum: Tensor,
    grad_out: Tensor,
    floor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the four tensors."""
    chunks, m = _Chunks.of(query, key, value, log_magnitude), key.size(1)
    before, (_, _, until) = chunks.states()
    tiles = (chunks.cut(x).flatten(0, 1) for x in (out, weight_sum, grad_out))
    grad = sums_gradient(*tiles).unflatten(0, chunks.query.shape[:2])
    relative = grad * chunks.decay(before.shift)
    features = transposed(chunks.query)
    grad_query = before.gradient(features, relative)
    of_queries = LinearState.empty(chunks.query, chunks.value)
    of_queries.add_(features, relative)
    after = _weighed(of_queries, _decays(until, before.shift).triu(1), until)
    features = transposed(chunks.key)
    grad_key = after.gradient(features, weigh(chunks.value, chunks.log_magnitude, until))
    grad_weighted = after.sums(features, floor) * (chunks.log_magnitude - until[..., None]).exp().unsqueeze(-2)
    of_query, of_key, of_weighted = diagonal_gradients(*chunks.tiles(), floor, grad.flatten(0, 1))
    grad_value, grad_log_magnitude = torch.empty_like(chunks.value), torch.empty_like(chunks.log_magnitude)
    unweigh_into(
        grad_value.view(-1, *grad_value.shape[2:]), grad_log_magnitude.view(-1, grad_log_magnitude.size(-1)),
        chunks.value.flatten(0, 1), grad_weighted.flatten(0, 1) + of_weighted,
    )  # fmt: skip
    return (
        chunks.joined(grad_query.flatten(0, 1) + of_query),
        chunks.joined(grad_key.flatten(0, 1) + of_key)[:, :m],
        chunks.joined(grad_value.flatten(0, 1))[:, :m],
        chunks.joined(grad_log_magnitude.flatten(0, 1))[:, :m],
    )


class _Chunks(NamedTuple):
    """Tensors (b, c, chunk, ...), with keys and queries of no weight at the end, and the shift of each row."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_magnitude: Tensor
    shift: Tensor
    length: int

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor) -> _Chunks:
        n = query.size(1)
        empty = cls(query, key, value, log_magnitude, log_magnitude, n)
        magnitude = F.pad(log_magnitude, (0, n - log_magnitude.size(1)), value=-torch.inf)
        shift = seen_maximum(magnitude, n, is_causal=True)
        q, k, v = (empty.cut(x) for x in (query, key, value))
        return cls(q, k, v, empty.cut(magnitude, -torch.inf), empty.cut(shift, torch.inf), n)

    def cut(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Cut rows (b, n or less, ...) into chunks."""
        missing = -(-self.length // BLOCK) * BLOCK - x.size(1)
        padding = (0, 0) * (x.dim() - 2) + (0, missing)
        return F.pad(x, padding, value=fill).unflatten(1, (-1, BLOCK))

    def joined(self, x: Tensor) -> Tensor:
        """Put the chunks (b c, chunk, ...) back into rows (b, n, ...)."""
        return x.unflatten(0, self.query.shape[:2]).flatten(1, 2)[:, : self.length].contiguous()

    def tiles(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return what tiles on the diagonal are made of, (b c, chunk, ...)."""
        parts = (self.query, self.key, self.value, self.log_magnitude, self.shift)
        return tuple(x.flatten(0, 1) for x in parts)  # type: ignore[return-value]

    def decay(self, before: Tensor) -> Tensor:
        """Return what sums relative to the shift before a chunk become relative to each row's, (b, c, 1, chunk)."""
        return (before[..., None, None] - self.shift[:, :, None]).exp()

    def states(self) -> tuple[LinearState, tuple[LinearState, Tensor, Tensor]]:
        """Return the states before the chunks; each one's own sums, their shifts, and the largest shift until there."""
        lowest = torch.finfo(self.shift.dtype).min
        own = self.log_magnitude.amax(-1).clamp_min(lowest)
        until = own.cummax(-1).values
        sums = LinearState.empty(self.key, self.value)
        sums.add_(transposed(self.key), weigh(self.value, self.log_magnitude, own))
        before = F.pad(until[:, :-1], (1, 0), value=lowest)
        return _weighed(sums, _decays(own, before).mT.tril(-1), before), (sums, own, until)


def _decays(lower: Tensor, upper: Tensor) -> Tensor:
    """Return exp(lower - upper) of all pairs of chunks, (b, c, c); those in which it is no decay are never used."""
    return (lower[:, :, None] - upper[:, None]).clamp_max(0.0).exp()


def _weighed(sums: LinearState, decays: Tensor, shift: Tensor) -> LinearState:
    products = (decays @ sums.products.flatten(2)).view_as(sums.products)
    return LinearState(products, decays @ sums.total, shift)
