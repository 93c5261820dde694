"""The definition of the operation in log space: what all other backends are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ika_lightning.attention.backends.call import Call, with_atom


class Reference:
    """Every logarithm written out: slow, and plainly right."""

    name = "reference"

    def refuses(self, call: Call) -> str | None:
        """Serve every call."""
        return None

    def cost(self, call: Call, price: Mapping[str, float]) -> float:
        """Never be the cheapest."""
        return math.inf

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Compute logarithms of weights, and normalise them."""
        allowed, bias = call.allowed(), call.bias
        log_weight = call.value.new_zeros(call.n, call.m)
        if call.query is not None and call.key is not None:
            log_weight = log_weight + call.query @ call.key.mT
        if bias is not None:
            log_weight = log_weight + bias
        if call.query_features is not None and call.key_features is not None:
            product = call.query_features @ call.key_features.mT
            square = with_atom(product, call.share).square() + call.floor
            if call.floor == 0.0:
                # no similarity, no weight: the logarithm has no gradient at 0
                similar = square > 0.0
                allowed = similar if allowed is None else allowed & similar
                square = torch.where(similar, square, 1.0)
            log_weight = log_weight + square.log()
        return log_weight_attention(log_weight, call.value, allowed, call.dropout_p)


def log_weight_attention(
    log_weight: Tensor, value: Tensor, allowed: Tensor | None = None, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Average values with weights given by their logarithms, :math:`\text{softmax}(\log w)\, v`.

    Args:
        log_weight: Logarithms of unnormalised weights.
        value: What is averaged; a row of zeros where no query may attend.
        allowed: Boolean, True = may attend. A row without any True gets zeros, with zero gradient.
        dropout_p: Probability with which a weight is dropped.

    Shapes:
        log_weight (..., n, m); value (..., m, e); allowed broadcastable to (..., n, m); returns the averages
        (..., n, e) and the weights (..., n, m).

    Example:
        >>> _, weights = log_weight_attention(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[0.0], [4.0]]))
        >>> weights
        tensor([[0.2500, 0.7500]])
    """
    if allowed is not None:
        # a row of nothing but -inf has no softmax, so it gets all keys here and zeros below
        empty = ~allowed.any(-1, keepdim=True)
        log_weight = log_weight.masked_fill(~(allowed | empty), -math.inf)
    weights = log_weight.softmax(-1).to(value.dtype)
    if allowed is not None:
        weights = weights.masked_fill(~allowed, 0.0)
    weights = F.dropout(weights, dropout_p)
    return weights @ value, weights
