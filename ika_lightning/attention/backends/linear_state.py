r"""The sums over keys that linear attention needs, in a size that does not grow with them.

**Products by cyclic diagonals.** The unordered pairs of R features are the pairs (a, a + s mod R), s = 0..R/2. So all
products with one s are one elementwise product of x with x turned by s, and those with many s are a single call on a
sliding window over x: no gather, no loop over features. (For even R, s = R/2 has every pair twice: R (R/2 + 1)
products, 3% more than needed at R = 32.) Products are made for a block of tokens and a slab of diagonals at a time, so
that they stay in the second-level cache; all n of them never exist.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ika_lightning.attention.backends.tiles import blocks, divide_into, weigh

# Tokens in a block and products in a slab: half a megabyte of float32, which leaves room for the operands in the
# second-level cache of a core. A slab wide enough keeps matrix products efficient, and a block of a few hundred keeps
# the diagonal of a causal call cheap.
BLOCK, SLAB = 256, 512

# An accelerator has no such cache, and wants long products; their number is bounded by the heads that go together.
ACCELERATOR_BLOCK = 2**16


def block_size(x: Tensor) -> int:
    """Return how many tokens of a tensor are taken at a time, where none has to wait for another.

    Example:
        >>> block_size(torch.empty(1))
        256
    """
    return BLOCK if x.device.type == "cpu" else ACCELERATOR_BLOCK


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
        for j in blocks(value.size(-2), block_size(value)):
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
        for i in blocks(n, block_size(query_features)):
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
