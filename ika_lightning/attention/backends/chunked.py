"""Tiles that are made, used and forgotten: the time of an n x m matrix without its memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ika_lightning.attention.backends import chunked_online, chunked_plain
from ika_lightning.attention.backends.call import NEEDS_PAIRS, Call
from ika_lightning.attention.backends.dense import Dense
from ika_lightning.attention.backends.operators import differentiable_operator
from ika_lightning.attention.backends.tiles import TILE
from ika_lightning.attention.mask import Mask


class Chunked:
    """Attention by tiles, with a backward that makes them again; see the files of its two operators."""

    name = "chunked"

    def refuses(self, call: Call) -> str | None:
        """Refuse what needs single weights, and what PyTorch's own tiles serve."""
        if not call.has_features:
            return "serves calls with features; 'sdpa' is what serves those without, by tiles of its own"
        return None if call.sums_over_keys else NEEDS_PAIRS

    def cost(self, call: Call, price: Mapping[str, float]) -> float:
        r"""Estimate the time.

        .. math::
            h (P + D / 2) (4 (d + R) + 3 e) + h P\, c_\text{chunked} + h D\, c_\text{diagonal}

        P pairs of a query and a key that it may see (n m, or the area under the diagonal), of which D are in tiles on
        the diagonal (0 if the call is not causal). With an exponent a pair costs an exponential more, and a tile on the
        diagonal nothing special.
        """
        (n, m), causal = (call.n, call.m), call.mask.causal
        heads, seen = call.lead.numel(), min(n, m) if causal else m
        pairs = heads * seen * (n - seen / 2) if causal else heads * n * m
        on_diagonal = heads * seen * min(TILE, n) * causal
        product = 4 * (call.exponent_width + call.num_features) + 3 * call.value.size(-1)
        entry = price["chunked entry"] + price["exponential"] * call.has_exponent
        diagonal = on_diagonal * price["entry on the diagonal"] * (not call.has_exponent)
        return price["chunked call"] + (pairs + on_diagonal / 2) * product + pairs * entry + diagonal

    def __call__(self, call: Call) -> tuple[Tensor, None]:
        """Attend."""
        if call.has_exponent:
            return by_sums(_online, call), None
        return by_sums(_plain, call), None


def by_sums(operator: object, call: Call) -> Tensor:
    """Call an operator on tensors (b, rows, width), with masked keys as keys of no weight.

    Args:
        operator: Takes what there is of query, key, query_features and key_features, then value, log_magnitude
            (b, m), floor and is_causal; the averages are its first result.
        call: The call.
    """
    call = call.with_atom_as_feature()
    m = min(call.m, call.n) if call.mask.causal else call.m
    allowed, bias = call.allowed(causal=False), call.bias
    bias = call.value.new_zeros(1, call.m) if bias is None else bias
    if allowed is not None:
        bias = bias.masked_fill(~allowed, -math.inf)
    tensors = []
    for x, of_keys in (
        (call.query, False), (call.key, True), (call.query_features, False), (call.key_features, True),
        (call.value, True),
    ):  # fmt: skip
        if x is not None:
            # nobody sees keys after the last query
            tensors.append(x[..., :m, :] if of_keys else x)
    lead = torch.broadcast_shapes(call.lead, bias.shape[:-2])
    joined = [x.expand(*lead, *x.shape[-2:]).reshape(lead.numel(), *x.shape[-2:]) for x in tensors]
    magnitude = bias[..., 0, :m].expand(*lead, m).reshape(lead.numel(), m)
    out: Tensor = operator(*joined, magnitude, call.floor, call.mask.causal)[0]  # type: ignore[operator]
    return out.view(*lead, call.n, call.value.size(-1))


def dense_online(
    query: Tensor, key: Tensor, query_features: Tensor, key_features: Tensor, value: Tensor, log_magnitude: Tensor,
    floor: float, is_causal: bool,
) -> Tensor:  # fmt: skip
    """Compute what the operator with an exponent does by PyTorch's own operations."""
    keys = log_magnitude != -math.inf
    call = Call(
        query, key, query_features, key_features, value, log_magnitude.masked_fill(~keys, 0.0),
        Mask(keys=keys.unsqueeze(-2), causal=is_causal), 0.0, floor, False,
    )  # fmt: skip
    return Dense()(call)[0]


def dense_plain(
    query_features: Tensor, key_features: Tensor, value: Tensor, log_magnitude: Tensor, floor: float, is_causal: bool
) -> Tensor:
    """Compute what the operators without an exponent do by PyTorch's own operations."""
    keys = log_magnitude != -math.inf
    call = Call(
        None, None, query_features, key_features, value, log_magnitude.masked_fill(~keys, 0.0),
        Mask(keys=keys.unsqueeze(-2), causal=is_causal), 0.0, floor, False,
    )  # fmt: skip
    return Dense()(call)[0]


def _online_shapes(query: Tensor, key: Tensor, a: Tensor, b: Tensor, value: Tensor, *_: object) -> tuple[Tensor, ...]:
    row = query.new_empty(query.shape[:-1])
    return query.new_empty(*query.shape[:-1], value.size(-1)), row, torch.empty_like(row)


def _plain_shapes(query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, ...]:
    return query.new_empty(*query.shape[:-1], value.size(-1)), query.new_empty(query.shape[:-1])


_online = differentiable_operator(
    "chunked_online", chunked_online.forward, chunked_online.backward, dense_online, 6, _online_shapes, batched=True
)
_plain = differentiable_operator(
    "chunked_plain", chunked_plain.forward, chunked_plain.backward, dense_plain, 4, _plain_shapes, batched=True
)
