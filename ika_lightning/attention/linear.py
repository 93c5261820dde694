r"""Kernel attention in linear time: the square of a kernel has R (R + 1) / 2 features of its own.

.. math::
    (q \cdot k)^2 = \sum_a q_a^2 k_a^2 + 2 \sum_{a < b} q_a q_b\, k_a k_b, \qquad
    \sum_j (q_i \cdot k_j)^2 w_j = \sum_{a \le b} c_{ab}\, q_{ia} q_{ib} \sum_j k_{ja} k_{jb} w_j

The last sum, the state, does not know the query: it is made once, of e + 1 numbers for each product of two features,
and read by every query. In a causal call, blocks of queries read the state of the blocks before them, and the block on
the diagonal is computed as in :mod:`~ika_lightning.attention.chunked`, where shifts are explained.

**Products by cyclic diagonals.** The unordered pairs of R features are the pairs (a, a + s mod R), s = 0..R/2. So all
products with one s are one elementwise product of x with x turned by s, and those with many s are a single call on a
sliding window over x: no gather, no loop over features. (For even R, s = R/2 has every pair twice: R (R/2 + 1)
products, 3% more than needed at R = 32.) Products are made for a block of tokens and a slab of diagonals at a time, so
that they stay in the second-level cache; all n of them never exist.

**Operations,** in multiply-adds a head, with S = R (R // 2 + 1): (n + m) S (e + 1) forward and 2 (n + m) S (e + 1)
backward, all in matrix products, besides some 8 passes over S numbers a token in the cache. A causal call makes the
states again in the backward, another n S (e + 1), and has the blocks on the diagonal. Dot-product attention has 7 n m d
(causal: half). At n = m = 16,384, R = 32, e = d = 64 that is 35 times the operations of the linear form, 11 times if
it is causal; products run at the same rate in both, so these are the ceilings.
**Bytes:** inputs, outputs and their gradients pass through memory about three times, n (R + e) numbers each, which is
nothing beside the products. Besides these, only S (e + 1) numbers a head are kept for the backward.

**Precision.** The error of a sum of weights is a rounding error of the sum of magnitudes, as |q| and |k| are about 1,
where the other backends have one of the sum of weights itself. In float32 that is the same thing (1e-6 of the result)
unless a query is all but orthogonal to all of its keys: then nothing but the floor is left of its weights, and at 1e-5
of the magnitudes it is known to a percent. With ``floor=0`` and no similarity at all, take another backend.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ika_lightning.attention.chunked import (
    blocks,
    diagonal_gradients,
    diagonal_sums,
    divide_into,
    head_groups,
    operator,
    seen_maximum,
    sums_gradient,
    unweigh_into,
    weigh,
)

# Tokens in a block and products in a slab: half a megabyte of float32, which leaves room for the operands in the
# second-level cache of a core. A slab wide enough keeps matrix products efficient, and a block of a few hundred keeps
# the diagonal of a causal call cheap.
BLOCK, SLAB = 256, 512


def linear_attention(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, floor: float, is_causal: bool
) -> Tensor:
    r"""Kernel attention in linear time; see :func:`~ika_lightning.attention.kernel_attention`.

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
        >>> linear_attention(x, x, torch.tensor([[[1.0], [2.0], [3.0]]]), torch.zeros(1, 3), 0.0, True).flatten()
        tensor([1.0000, 1.5000, 2.0000])
    """
    return _attend(query, key, value, log_magnitude, floor, is_causal)[0]


class LinearState(NamedTuple):
    r"""All that a query needs to know of the keys so far, in a size that does not grow with them.

    A decoder adds a token with :meth:`update` and attends with :meth:`read`; this is causal attention, token by token,
    without gradients.

    Attributes:
        products: :math:`\sum_j k_{ja} k_{jb}\, e^{\text{mag}_j - \text{shift}} [v_j, 1]` for each pair (a, b).
        total: :math:`\sum_j e^{\text{mag}_j - \text{shift}} [v_j, 1]`, which the floor multiplies.
        shift: The largest log-magnitude so far.

    Shapes:
        products (..., e + 1, R (R // 2 + 1)); total (..., e + 1); shift (...).

    Example:
        >>> state = LinearState.empty(torch.ones(1, 2), torch.ones(1, 1))
        >>> for token in (1.0, 2.0):
        ...     state = state.update(torch.ones(1, 2), torch.tensor([[token]]), torch.zeros(1))
        >>> state.read(torch.ones(1, 2), floor=0.0)
        tensor([[1.5000]])
    """

    products: Tensor
    total: Tensor
    shift: Tensor

    @classmethod
    def empty(cls, key_features: Tensor, value: Tensor) -> LinearState:
        """Return the state before the first key, for keys (..., m, R) and values (..., m, e) such as these."""
        *lead, _, width = value.shape
        features = key_features.size(-1)
        return cls(
            value.new_zeros(*lead, width + 1, features * (features // 2 + 1)),
            value.new_zeros(*lead, width + 1),
            value.new_full(lead, torch.finfo(value.dtype).min),
        )

    @torch.no_grad()
    def update(self, key_features: Tensor, value: Tensor, log_magnitude: Tensor) -> LinearState:
        """Return the state with more keys.

        Shapes:
            key_features (..., m, R); value (..., m, e); log_magnitude (..., m).
        """
        if log_magnitude.size(-1) == 0:
            return self
        state = self.relative_to(torch.maximum(self.shift, log_magnitude.amax(-1)))
        for j in blocks(value.size(-2), BLOCK):
            weighted = weigh(value[..., j, :], log_magnitude[..., j], state.shift)
            state.add_(transposed(key_features[..., j, :]), weighted)
        return state

    @torch.no_grad()
    def read(self, query_features: Tensor, floor: float) -> Tensor:
        """Return the averages of queries that see all keys so far.

        Shapes:
            query_features (..., n, R); the result (..., n, e).
        """
        n, width = query_features.size(-2), self.total.size(-1) - 1
        out = query_features.new_empty(*self.shift.shape, n, width)
        weight_sum = query_features.new_empty(*self.shift.shape, n)
        for i in blocks(n, BLOCK):
            divide_into(out[..., i, :], weight_sum[..., i], self.sums(transposed(query_features[..., i, :]), floor))
        return out

    def relative_to(self, shift: Tensor) -> LinearState:
        """Return a copy with another shift."""
        decay = (self.shift - shift).exp()[..., None]
        return LinearState(self.products * decay[..., None], self.total * decay, shift)

    def add_(self, features: Tensor, weighted: Tensor) -> None:
        """Add tokens in place: features (..., R, m) and what is summed, relative to the shift, (..., e + 1, m)."""
        count = features.new_full((features.size(-2) // 2 + 1, features.size(-2)), 2.0)
        count[0] = 1.0  # (a, a)
        if features.size(-2) % 2 == 0:
            count[-1] = 1.0  # (a, a + R/2), which comes again as (a + R/2, a)
        turned = _turned(features)
        for slab in _slabs(features):
            sums = weighted @ _pairs(features, turned[..., slab, :, :]).mT
            self._part(slab, features).addcmul_(sums, count[slab].flatten())
        self.total.add_(weighted.sum(-1))

    def sums(self, features: Tensor, floor: float) -> Tensor:
        """Return the sums (..., e + 1, n) of queries with features (..., R, n)."""
        turned, sums = _turned(features), floor * self.total[..., None]
        for slab in _slabs(features):
            sums = sums + self._part(slab, features) @ _pairs(features, turned[..., slab, :, :])
        return sums

    def gradient(self, features: Tensor, grad_sums: Tensor) -> Tensor:
        """Return the gradient (..., n, R) of features, given that of the sums."""
        r, turned = features.size(-2), _turned(features)
        grad = features.new_zeros(*features.shape[:-2], r + r // 2, features.size(-1))
        for slab in _slabs(features):
            k = slab.stop - slab.start
            grad_pairs = (self._part(slab, features).mT @ grad_sums).unflatten(-2, (k, r))
            grad[..., :r, :] += (grad_pairs * turned[..., slab, :, :]).sum(-3)
            # Row a of diagonal s goes to feature a + s. Rows that are padded by k zeros and then cut one shorter start
            # one later each, which is that shift.
            padded = grad_pairs.new_zeros(*grad_pairs.shape[:-2], r + k, grad_pairs.size(-1))
            torch.mul(grad_pairs, features.unsqueeze(-3), out=padded[..., :r, :])
            skewed = padded.flatten(-3, -2)[..., : k * (r + k - 1), :].unflatten(-2, (k, r + k - 1))
            grad[..., slab.start : slab.start + r + k - 1, :] += skewed.sum(-3)
        grad[..., : r // 2, :] += grad[..., r:, :]
        return grad[..., :r, :].mT

    def _part(self, slab: slice, features: Tensor) -> Tensor:
        r = features.size(-2)
        return self.products[..., slab.start * r : slab.stop * r]


def transposed(x: Tensor) -> Tensor:
    """Return a contiguous (..., R, n) of (..., n, R): tokens last make every operation on features a long one."""
    return x.mT.contiguous()


def _turned(features: Tensor) -> Tensor:
    """Return features turned by s = 0..R/2, (..., R/2 + 1, R, n), a view on one and a half copies."""
    r = features.size(-2)
    return torch.cat([features, features[..., : r // 2, :]], dim=-2).unfold(-2, r, 1).mT


def _pairs(features: Tensor, turned: Tensor) -> Tensor:
    """Return the products of a slab of diagonals, (..., slab R, n)."""
    return (features.unsqueeze(-3) * turned).flatten(-3, -2)


def _slabs(features: Tensor) -> list[slice]:
    """Cut the diagonals into slabs of about the same number."""
    r = features.size(-2)
    diagonals = r // 2 + 1
    slabs = max(1, math.ceil(diagonals * r / SLAB))
    return blocks(diagonals, math.ceil(diagonals / slabs))


def _forward(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, floor: float, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the averages, the sums of weights (b, n) and, for the backward, the sums of the last state."""
    (batch, n, _), width = query.shape, value.size(-1)
    out, weight_sum = query.new_empty(batch, n, width), query.new_empty(batch, n)
    products, total, _ = LinearState.empty(key, value)
    for heads in _head_groups(query, key):
        q, k, v, magnitude = query[heads], key[heads], value[heads], log_magnitude[heads]
        state = LinearState.empty(k, v)
        if is_causal:
            shift = seen_maximum(magnitude, n, is_causal)
        else:
            state = state.update(k, v, magnitude)
        for i in blocks(n, BLOCK):
            sums = state.sums(transposed(q[:, i]), floor)
            if is_causal:
                sums *= (state.shift[:, None, None] - shift[:, None, i]).exp()
                sums += diagonal_sums(q[:, i], k[:, i], v[:, i], magnitude[:, i], shift[:, i], floor)
                state = state.update(k[:, i], v[:, i], magnitude[:, i])
            divide_into(out[heads, i], weight_sum[heads, i], sums)
        products[heads], total[heads] = state.products, state.total
    return out, weight_sum, products, total


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_magnitude: Tensor,
    out: Tensor,
    weight_sum: Tensor,
    products: Tensor,
    total: Tensor,
    grad_out: Tensor,
    floor: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sweep forwards for the queries; then, in reverse, for the keys, with a state that is made of the queries.

    That state holds products of queries and sums gradients; its shift is the negative of the largest log-magnitude that
    its rows see and the keys do, so it grows towards the start as the other one does towards the end.
    """
    n, m = query.size(1), key.size(1)
    grad_query, grad_key, grad_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    grad_log_magnitude = torch.empty_like(log_magnitude)
    for heads in _head_groups(query, key):
        q, k, v, magnitude = query[heads], key[heads], value[heads], log_magnitude[heads]
        shift = seen_maximum(magnitude, max(n, m, 1), is_causal)
        grad_sums = [sums_gradient(out[heads, i], weight_sum[heads, i], grad_out[heads, i]) for i in blocks(n, BLOCK)]
        after = LinearState.empty(q, v).relative_to(-shift[:, -1])
        before = LinearState(products[heads], total[heads], shift[:, -1])
        if is_causal:
            before = LinearState.empty(k, v)
        for i, grad in zip(blocks(n, BLOCK), grad_sums, strict=True):
            features = transposed(q[:, i])
            scale = (before.shift[:, None, None] - shift[:, None, i]).exp()
            grad_query[heads, i] = before.gradient(features, grad * scale)
            if not is_causal:
                after.add_(features, grad)
            else:
                before = before.update(k[:, i], v[:, i], magnitude[:, i])
        for j in reversed(blocks(n if is_causal else m, BLOCK)):  # slices of keys are cut, perhaps to nothing, at m
            features, weighted = transposed(k[:, j]), weigh(v[:, j], magnitude[:, j], -after.shift)
            grad_weighted = after.sums(features, floor) * (magnitude[:, None, j] + after.shift[:, None, None]).exp()
            grad_key[heads, j] = after.gradient(features, weighted)
            if is_causal:
                grad = grad_sums[j.start // BLOCK]
                of_query, of_key, of_weighted = diagonal_gradients(
                    q[:, j], k[:, j], v[:, j], magnitude[:, j], shift[:, j], floor, grad
                )
                grad_query[heads, j] += of_query
                grad_key[heads, j] += of_key
                grad_weighted += of_weighted
                if j.start > 0:
                    earlier = shift[:, j.start - 1]
                    after = after.relative_to(-earlier)
                    after.add_(transposed(q[:, j]), grad * (earlier[:, None, None] - shift[:, None, j]).exp())
            unweigh_into(grad_value[heads, j], grad_log_magnitude[heads, j], v[:, j], grad_weighted)
    return grad_query, grad_key, grad_value, grad_log_magnitude


def _forward_shapes(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, floor: float, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = query.new_empty(*query.shape[:-1], value.size(-1))
    return out, query.new_empty(query.shape[:-1]), *LinearState.empty(key, value)[:2]


def _backward_shapes(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), torch.empty_like(log_magnitude)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.floor, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(*ctx.saved_tensors, grad_out, ctx.floor, ctx.is_causal), None, None


_attend = operator("linear_attention", _forward, _forward_shapes, _differentiate, _save)
_attend_backward = operator("linear_attention_backward", _backward, _backward_shapes)


def _head_groups(query: Tensor, key: Tensor) -> list[slice]:
    r, longest = key.size(-1), max(query.size(1), key.size(1))
    return head_groups(key, min(SLAB, r * (r // 2 + 1)) * min(BLOCK, longest))
