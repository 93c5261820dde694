"""PyTorch's fused kernels, for weights that have an exponent alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ika_lightning.attention.backends.call import Call


class Sdpa:
    """:func:`torch.nn.functional.scaled_dot_product_attention`, with one more column for what is added to a key.

    A mask of numbers would say the same, but PyTorch's fused kernels give a mask no gradient; with more columns in
    queries and keys than in values they are left, too, so values get a column of zeros. These kernels have no second
    derivatives; ``backend="dense"`` has, as has this one under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
    """

    name = "sdpa"

    def refuses(self, call: Call) -> str | None:
        """Refuse features, and to return weights."""
        if call.has_features:
            return "has no place for features; it serves attention whose weights are an exponential alone"
        return "has no weights to return (a layer's need_weights)" if call.need_weights else None

    def cost(self, call: Call, price: Mapping[str, float]) -> float:
        """Always be the cheapest: no other backend is as fast where this one serves."""
        return 0.0

    def __call__(self, call: Call) -> tuple[Tensor, None]:
        """Attend; a query that may attend to nothing gets zeros, with zero gradient."""
        query, key, value, bias = call.query, call.key, call.value, call.log_magnitude
        assert query is not None and key is not None
        mask = call.mask
        only_causal = mask.keys is None and mask.key_bias is None and not _has_pairs(call)
        if only_causal and mask.causal:
            # nobody sees keys after the last query
            key, value = key[..., : call.n, :], value[..., : call.n, :]
            bias = None if bias is None else bias[..., : call.n]
        allowed = None if only_causal else call.allowed()
        if allowed is not None:
            bias = None if bias is None else bias.masked_fill(~allowed.any(-2), 0.0)
        if bias is not None:
            query = torch.cat([query, torch.ones_like(query[..., :1])], -1)
            lead = torch.broadcast_shapes(key.shape[:-2], bias.shape[:-1])
            key = torch.cat([key.expand(*lead, *key.shape[-2:]), bias.expand(*lead, -1).unsqueeze(-1)], -1)
            value = F.pad(value, (0, query.size(-1) - value.size(-1))) if value.size(-1) < query.size(-1) else value
        attend = F.scaled_dot_product_attention
        if only_causal:
            out = attend(query, key, value, is_causal=mask.causal, dropout_p=call.dropout_p, scale=1.0)
            return out[..., : call.value.size(-1)], None
        added = _added(call)
        if allowed is None:
            out = attend(query, key, value, added, dropout_p=call.dropout_p, scale=1.0)
            return out[..., : call.value.size(-1)], None
        empty = ~allowed.any(-1, keepdim=True)
        reachable = allowed | empty
        merged = reachable if added is None else added.to(query.dtype).masked_fill(~reachable, -math.inf)
        out = attend(query, key, value, merged, dropout_p=call.dropout_p, scale=1.0)
        return out[..., : call.value.size(-1)].masked_fill(empty, 0.0), None


def _has_pairs(call: Call) -> bool:
    return call.mask.pairs is not None or call.mask.pair_bias is not None


def _added(call: Call) -> Tensor | None:
    """What the mask adds to log-weights, (..., 1 or n, m)."""
    key_bias, pair_bias = call.mask.key_bias, call.mask.pair_bias
    added = pair_bias if key_bias is None else key_bias if pair_bias is None else key_bias + pair_bias
    return None if added is None else added.to(call.value.dtype)
