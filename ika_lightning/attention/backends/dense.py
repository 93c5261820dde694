"""One n x m matrix: for short sequences, weights that are asked for, and masks that differ by query."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ika_lightning.attention.backends.call import Call, nonzero, without_unattended
from ika_lightning.attention.backends.prices import prices


class Dense:
    """Plain operations of PyTorch on whole matrices; no logarithm is taken.

    Differentiable any number of times, in forward mode too, exportable, and open to every transform of ``torch.func``.
    """

    name = "dense"

    def refuses(self, call: Call) -> str | None:
        """Serve every call."""
        return None

    def cost(self, call: Call) -> float:
        r"""Estimate the time.

        .. math::
            h n m\, (3 (d + R + e) + c_\text{dense}) + \max(0, h n m - 2^{20})\, c_\text{beyond}
        """
        price = prices(call.device)
        entries = call.lead.numel() * call.n * call.m
        product = 3 * (call.exponent_width + call.num_features + call.value.size(-1))
        causal = price["dense causal entry"] * call.mask.causal
        beyond = max(0, entries - 2**20) * price["dense entry beyond a million"]
        return price["dense call"] + entries * (product + price["dense entry"] + causal) + beyond

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Attend; a query that may attend to nothing gets zeros, with zero gradient."""
        allowed = call.allowed()
        value = without_unattended(call.value, allowed)
        weights = _exponentials(call, allowed)
        if call.query_features is not None and call.key_features is not None:
            similarity = call.query_features @ without_unattended(call.key_features, allowed).mT
            weights = (similarity.square() + call.floor) * weights
        total = nonzero(weights.sum(-1, keepdim=True))
        if call.dropout_p > 0.0 or call.need_weights:
            weights = F.dropout(weights / total, call.dropout_p)
            return weights @ value, weights
        # dividing e numbers of a query is less than dividing its m weights
        return (weights @ value) / total, None


def _exponentials(call: Call, allowed: Tensor | None) -> Tensor:
    """Return what the square is multiplied by, (..., 1 or n, m): zero where forbidden, and otherwise at most 1.

    Where there is no exponent and all queries share a mask, exponentials are taken of m numbers instead of n x m. Where
    they do not share one, each row has its own largest exponent: one shift for all rows would give 0 / 0 in a row whose
    keys are all far smaller. A common factor cancels in the quotient, so shifts need no gradient.
    """
    bias = call.value.new_zeros(1, call.m) if call.bias is None else call.bias
    if call.query is not None and call.key is not None:
        exponent = call.query @ without_unattended(call.key, allowed).mT + bias
        if allowed is None:
            return exponent.softmax(-1)
        # a row of nothing but -inf has no softmax, so it gets all keys here and zeros below
        reachable = allowed | ~allowed.any(-1, keepdim=True)
        return exponent.masked_fill(~reachable, -math.inf).softmax(-1).masked_fill(~allowed, 0.0)
    if allowed is not None:
        bias = bias.masked_fill(~allowed, -math.inf)
    if bias.size(-1) == 0:
        return bias
    shift = bias.detach().amax(-1, keepdim=True)
    return (bias - shift.masked_fill(shift == -math.inf, 0.0)).exp()
