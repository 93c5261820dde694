r"""Kernel attention in linear time: the square of a kernel has R (R + 1) / 2 features of its own.

.. math::
    (q \cdot k)^2 = \sum_a q_a^2 k_a^2 + 2 \sum_{a < b} q_a q_b\, k_a k_b, \qquad
    \sum_j (q_i \cdot k_j)^2 w_j = \sum_{a \le b} c_{ab}\, q_{ia} q_{ib} \sum_j k_{ja} k_{jb} w_j

The last sum, the state, does not know the query: it is made once, of e + 1 numbers for each product of two features,
and read by every query. In a causal call, blocks of queries read the state of the blocks before them, and the block on
the diagonal is computed as in ``chunked_plain.py``, where shifts are explained. On a
CPU it is one block after another; on an accelerator all at once, see ``linear_scan.py``.

**Operations,** in multiply-adds a head, with S = R (R // 2 + 1): (n + m) S (e + 1) forward and 2 (n + m) S (e + 1)
backward, all in matrix products, besides some 8 passes over S numbers a token in the cache. A causal call makes the
states again in the backward, another n S (e + 1), and has the blocks on the diagonal. Dot-product attention has 7 n m d
(causal: half). At n = m = 16,384, R = 32, e = d = 64 that is 35 times the operations of the linear form, 11 times if
it is causal; products run at the same rate in both, so these are the ceilings.
**Bytes:** inputs, outputs and their gradients pass through memory about three times, n (R + e) numbers each, which is
nothing beside the products. Besides these, only S (e + 1) numbers a head are kept for the backward.

**Precision.** The error of a sum of weights is a rounding error of the sum of magnitudes, as ``|q|`` and ``|k|`` are
about 1, where the other backends have one of the sum of weights itself. In float32 that is the same thing (1e-6 of the
result) unless a query is all but orthogonal to all of its keys: then nothing but the floor is left of its weights, and
at 1e-5 of the magnitudes it is known to a percent. With ``floor=0`` and no similarity at all, take another backend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ika_lightning.attention.backends import linear_scan
from ika_lightning.attention.backends.call import NEEDS_PAIRS, Call
from ika_lightning.attention.backends.chunked import by_sums, dense_plain
from ika_lightning.attention.backends.linear_state import BLOCK, SLAB, LinearState, block_size, transposed
from ika_lightning.attention.backends.operators import differentiable_operator
from ika_lightning.attention.backends.tiles import (
    blocks,
    diagonal_gradients,
    diagonal_sums,
    divide_into,
    head_groups,
    seen_maximum,
    sums_gradient,
    unweigh_into,
    weigh,
)


class Linear:
    """Attention in a time that is linear in the numbers of queries and of keys; it pays on long sequences."""

    name = "linear"

    def refuses(self, call: Call) -> str | None:
        """Refuse an exponent, which has no finite number of features, and what needs single weights."""
        if call.has_exponent:
            return (
                "has no place for an exponent, which the exact part of a kernel has (init='softmax', or smoothing "
                "above 0); init='rbf', 'wide' and 'paper' have none"
            )
        return None if call.sums_over_keys else NEEDS_PAIRS

    def cost(self, call: Call, price: Mapping[str, float]) -> float:
        r"""Estimate the time; without a floor, a sum of small similarities may lose all digits, so never choose it.

        .. math::
            h T S\, (3 (e + 1) + c_\text{product}) + h B S (e + 1)\, c_\text{state} + h D\, (4 R + 3 e +
            c_\text{diagonal})

        T tokens (n + m), S = R (R // 2 + 1), D pairs in tiles on the diagonal (0 if not causal). B is the number of
        states that are made: 1 or, in a causal call, one for each block more; there 3 (e + 1) is 3.5 (e + 1), as the
        backward makes the states again.
        """
        if call.floor == 0.0:
            return math.inf
        n, causal = call.n, call.mask.causal
        heads, width, features = call.lead.numel(), call.value.size(-1), call.num_features
        seen = min(n, call.m) if causal else call.m
        products = features * (features // 2 + 1)
        states = 1 + n / BLOCK * causal
        on_diagonal = heads * seen * min(BLOCK, n) * causal
        summed = (3.5 if causal else 3.0) * (width + 1)
        return (
            price["linear call"]
            + heads * (n + seen) * products * (summed + price["product"])
            + heads * states * products * (width + 1) * price["state"]
            + on_diagonal * (4 * features + 3 * width + price["entry on the diagonal"])
        )

    def __call__(self, call: Call) -> tuple[Tensor, None]:
        """Attend."""
        return by_sums(_linear, call), None


def forward(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, floor: float, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the averages, the sums of weights (b, n) and, for the backward, the sums of the last state."""
    (batch, n, _), width = query.shape, value.size(-1)
    out, weight_sum = query.new_empty(batch, n, width), query.new_empty(batch, n)
    products, total, _ = LinearState.empty(key, value)
    size = BLOCK if is_causal else block_size(query)
    for heads in _head_groups(query, key):
        q, k, v, magnitude = query[heads], key[heads], value[heads], log_magnitude[heads]
        if is_causal and has_many_chunks(q):
            results = linear_scan.forward(q, k, v, magnitude, floor)
            for whole, part in zip((out, weight_sum, products, total), results, strict=True):
                whole[heads] = part
            continue
        state = LinearState.empty(k, v)
        if is_causal:
            shift = seen_maximum(magnitude, n, is_causal)
        else:
            state = state.update(k, v, magnitude)
        for i in blocks(n, size):
            sums = state.sums(transposed(q[:, i]), floor)
            if is_causal:
                sums *= (state.shift[:, None, None] - shift[:, None, i]).exp()
                sums += diagonal_sums(q[:, i], k[:, i], v[:, i], magnitude[:, i], shift[:, i], floor)
                state = state.update(k[:, i], v[:, i], magnitude[:, i])
            divide_into(out[heads, i], weight_sum[heads, i], sums)
        products[heads], total[heads] = state.products, state.total
    return out, weight_sum, products, total


def backward(
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
    size = BLOCK if is_causal else block_size(query)
    for heads in _head_groups(query, key):
        q, k, v, magnitude = query[heads], key[heads], value[heads], log_magnitude[heads]
        if is_causal and has_many_chunks(q):
            of_results = (out[heads], weight_sum[heads], grad_out[heads])
            results = linear_scan.backward(q, k, v, magnitude, *of_results, floor)
            for whole, part in zip((grad_query, grad_key, grad_value, grad_log_magnitude), results, strict=True):
                whole[heads] = part
            continue
        shift = seen_maximum(magnitude, max(n, m, 1), is_causal)
        grad_sums = [sums_gradient(out[heads, i], weight_sum[heads, i], grad_out[heads, i]) for i in blocks(n, size)]
        after = LinearState.empty(q, v).relative_to(-shift[:, -1])
        before = LinearState(products[heads], total[heads], shift[:, -1])
        if is_causal:
            before = LinearState.empty(k, v)
        for i, grad in zip(blocks(n, size), grad_sums, strict=True):
            features = transposed(q[:, i])
            scale = (before.shift[:, None, None] - shift[:, None, i]).exp()
            grad_query[heads, i] = before.gradient(features, grad * scale)
            if not is_causal:
                after.add_(features, grad)
            else:
                before = before.update(k[:, i], v[:, i], magnitude[:, i])
        for j in reversed(blocks(n if is_causal else m, size)):  # slices of keys are cut, perhaps to nothing, at m
            features, weighted = transposed(k[:, j]), weigh(v[:, j], magnitude[:, j], -after.shift)
            grad_weighted = after.sums(features, floor) * (magnitude[:, None, j] + after.shift[:, None, None]).exp()
            grad_key[heads, j] = after.gradient(features, weighted)
            if is_causal:
                grad = grad_sums[j.start // size]
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


def has_many_chunks(x: Tensor) -> bool:
    """Whether a causal call of this tensor is one of many chunks at a time: a loop would leave an accelerator idle."""
    return x.device.type != "cpu" and x.size(1) > BLOCK


def _head_groups(query: Tensor, key: Tensor) -> list[slice]:
    r, longest = key.size(-1), max(query.size(1), key.size(1))
    return head_groups(key, min(SLAB, r * (r // 2 + 1)) * min(block_size(key), longest))


def _shapes(query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, ...]:
    out = query.new_empty(*query.shape[:-1], value.size(-1))
    return out, query.new_empty(query.shape[:-1]), *LinearState.empty(key, value)[:2]


_linear = differentiable_operator("linear", forward, backward, dense_plain, 4, _shapes, batched=True)
