"""One n x m matrix: for short sequences, weights that are asked for, and masks that differ by query."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ika_lightning.attention.backends.call import Call, nonzero, with_atom


class Dense:
    """Plain operations of PyTorch on whole matrices; no logarithm is taken.

    Differentiable any number of times, in forward mode too, exportable, and open to every transform of ``torch.func``.
    """

    name = "dense"

    def refuses(self, call: Call) -> str | None:
        """Serve every call."""
        return None

    def cost(self, call: Call, price: Mapping[str, float]) -> float:
        r"""Estimate the time.

        .. math::
            h n m\, (3 (d + R + e) + c_\text{dense}) + \max(0, h n m - 2^{20})\, c_\text{beyond}
        """
        entries = call.lead.numel() * call.n * call.m
        product = 3 * (call.exponent_width + call.num_features + call.value.size(-1))
        causal = price["dense causal entry"] * call.mask.causal
        beyond = max(0, entries - 2**20) * price["dense entry beyond a million"]
        return price["dense call"] + entries * (product + price["dense entry"] + causal) + beyond

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Attend; a query that may attend to nothing gets zeros, with zero gradient."""
        factor = _exponentials(call, call.allowed())
        if call.query_features is None or call.key_features is None:
            return _averages(call, factor)
        square = with_atom(call.query_features @ call.key_features.mT, call.share).square()
        # asked of the call, not of sizes, which an export leaves open
        if call.query is None and not call.mask.causal and call.sums_over_keys:
            return _averages_with_shared_factor(call, square, factor), None
        return _averages(call, (square + call.floor) * factor)


def _averages(call: Call, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Average values by weights that do not add up to 1 yet; the gradients of a weight of 1 are exactly zero."""
    weights = F.dropout(weights / nonzero(weights.sum(-1, keepdim=True)), call.dropout_p)
    return weights @ call.value, weights


def _averages_with_shared_factor(call: Call, square: Tensor, factor: Tensor) -> Tensor:
    r"""Average values by :math:`(s_{ij} + \text{floor}) f_j`, with nothing but a product done to the n x m squares.

    .. math::
        \frac{\sum_j s_{ij} (f_j v_j) + \text{floor} \sum_j f_j v_j}
        {\sum_j s_{ij} f_j + \text{floor} \sum_j f_j}
    """
    columns = torch.cat([call.value, torch.ones_like(call.value[..., :1])], -1) * factor.mT
    sums = square @ columns + call.floor * columns.sum(-2, keepdim=True)
    return sums[..., :-1] / nonzero(sums[..., -1:])


def _exponentials(call: Call, allowed: Tensor | None) -> Tensor:
    """Return what the square is multiplied by, (..., 1 or n, m): zero where forbidden, and otherwise at most 1."""
    if call.query is None or call.key is None:
        return _magnitudes(call, allowed)
    mask, bias = call.mask, call.bias
    exponent = call.query @ call.key.mT
    # the lowest number instead of -inf, which a row of nothing else would turn into NaN
    lowest = torch.finfo(exponent.dtype).min
    if mask.keys is not None:
        bias = exponent.new_zeros(()) if bias is None else bias
        bias = torch.where(mask.keys, bias, lowest)
    exponent = exponent if bias is None else exponent + bias
    if mask.pairs is None and not mask.causal:
        # whoever may attend to nothing attends to values that are all zero
        weights = exponent.softmax(-1)
        return weights.masked_fill(~mask.keys, 0.0) if mask.keys is not None and call.need_weights else weights
    assert allowed is not None
    weights = exponent.masked_fill(~allowed, lowest).softmax(-1)
    nobody_is_alone = mask.pairs is None and mask.keys is None
    return weights if nobody_is_alone else weights.masked_fill(~allowed, 0.0)


def _magnitudes(call: Call, allowed: Tensor | None) -> Tensor:
    """Return exponentials without a product in them.

    Where all queries share a mask, they are taken of m numbers instead of n x m. Where they do not, each row has its
    own largest: one shift for all rows would give 0 / 0 in a row whose keys are all far smaller. A common factor
    cancels in the quotient, so shifts need no gradient.
    """
    bias = call.value.new_zeros(1, call.m) if call.bias is None else call.bias
    if allowed is not None:
        bias = bias.masked_fill(~allowed, -math.inf)
    if bias.size(-1) == 0:
        return bias
    shift = bias.detach().amax(-1, keepdim=True)
    return (bias - shift.masked_fill(shift == -math.inf, 0.0)).exp()
