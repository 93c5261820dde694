"""The operation written out one query at a time, and calls of it: what tests of all backends share."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from ika_lightning.attention import kernel_attention
from ika_lightning.attention.backends import BACKENDS, Call, linear, linear_state, tiles
from ika_lightning.attention.mask import Mask

INF, NAN = math.inf, math.nan

#: The whole family: a square of features, an exponential of a product, or both.
FAMILY = {
    "features": ("query_features", "key_features"),
    "exponent": ("query", "key"),
    "both": ("query_features", "key_features", "query", "key"),
}


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def some(seed: int, *shape: int) -> Tensor:
    """A boolean mask, about two thirds True."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.66


def inputs(family="features", lead=(2, 3), n=5, m=7, r=11, d=3, e=4, spread=1.0) -> dict[str, Tensor]:
    """What a member of the family is given, and values and log-magnitudes."""
    sizes = {"query_features": (n, r), "key_features": (m, r), "query": (n, d), "key": (m, d)}
    parts = {name: randn(5 + number, *lead, *sizes[name]) for number, name in enumerate(FAMILY[family])}
    return {**parts, "value": randn(3, *lead, m, e), "key_log_magnitude": spread * randn(4, *lead, m)}


def operation(names, **options) -> Callable[..., Tensor]:
    """The operation as a function of the tensors that these names name."""

    def attend(*tensors: Tensor):
        parts = {"query_features": None, "key_features": None, **dict(zip(names, tensors, strict=True))}
        return kernel_attention(**parts, **options)

    return attend


def definition(names, **options) -> Callable[..., Tensor]:
    return lambda *tensors: by_definition(**dict(zip(names, tensors, strict=True)), **options)[0]


def by_definition(
    *,
    value,
    query_features=None,
    key_features=None,
    query=None,
    key=None,
    key_log_magnitude=None,
    attn_mask=None,
    is_causal=False,
    floor=1e-5,
):
    """One query at a time, over the keys that it may attend to and no others. Returns averages and weights."""
    some_query = query if query_features is None else query_features
    n, m = some_query.size(-2), value.size(-2)
    if key_log_magnitude is None:
        key_log_magnitude = value.new_zeros(m)
    if attn_mask is None:
        attn_mask = torch.ones(n, m, dtype=torch.bool)
    parts = [x for x in (query_features, key_features, query, key, value, attn_mask) if x is not None]
    lead = torch.broadcast_shapes(*(x.shape[:-2] for x in parts), key_log_magnitude.shape[:-1])

    def expanded(x):
        return x if x is None else x.expand(*lead, *x.shape[-2:])

    query_features, key_features, query, key, value = map(expanded, (query_features, key_features, query, key, value))
    key_log_magnitude, attn_mask = key_log_magnitude.expand(*lead, m), attn_mask.expand(*lead, n, m)
    outs, rows = [], []
    for *batch, i in product(*map(range, lead), range(n)):
        b = tuple(batch)
        row = attn_mask[(*b, i)]
        allowed = [j for j in range(m) if row[j] not in (False, -INF) and not (is_causal and j > i)]
        weights = value.new_zeros(m)
        if allowed:
            exponent = key_log_magnitude[b][allowed]
            if attn_mask.dtype != torch.bool:
                exponent = exponent + row[allowed]
            if query is not None:
                exponent = exponent + key[b][allowed] @ query[(*b, i)]
            chosen = (exponent - exponent.detach().max()).exp()
            if query_features is not None:
                chosen = chosen * ((key_features[b][allowed] @ query_features[(*b, i)]) ** 2 + floor)
            weights = weights.index_put((torch.tensor(allowed),), chosen / chosen.sum())
        outs.append(weights[allowed] @ value[b][allowed])
        rows.append(weights)
    return torch.stack(outs).view(*lead, n, -1), torch.stack(rows).view(*lead, n, m)


def with_gradients(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """The result of the function, and the gradients of a fixed combination of it in all tensors."""
    tensors = tuple(x.detach().requires_grad_() for x in tensors)
    out = function(*tensors)
    weighted = (out * randn(99, *out.shape).to(out)).sum()
    return [out.detach(), *torch.autograd.grad(weighted, tensors, allow_unused=True, materialize_grads=True)]


#: By name, a mask of n queries and m keys.
MASKS: dict[str, Callable[[int, int], Tensor | None]] = {
    "none": lambda n, m: None,
    "one number a key": lambda n, m: some(10, m),
    "keys": lambda n, m: some(11, 2, 1, 1, m),
    "rows": lambda n, m: some(12, n, 1),
    "pairs": lambda n, m: some(13, 2, 3, n, m),
    "an empty row": lambda n, m: some(14, n, m) & (torch.arange(n) != 1).unsqueeze(-1),
    "float": lambda n, m: 3 * randn(15, n, m),
    "float keys": lambda n, m: (3 * randn(16, 2, 1, 1, m)).masked_fill(~some(17, 2, 1, 1, m), -INF),
    "float pairs": lambda n, m: (3 * randn(18, 2, 3, n, m)).masked_fill(~some(19, 2, 3, n, m), -INF),
    "float, an empty row": lambda n, m: randn(20, n, m).masked_fill((torch.arange(n) == 1).unsqueeze(-1), -INF),
}

#: Those in which all queries share a mask.
SHARED = ["none", "one number a key", "keys", "float keys"]


def serves(backend: str, family: str, *, mask: str = "none", is_causal: bool = False, **options) -> bool:
    """Ask a backend of the registry whether it serves a call."""
    parts = inputs(family, lead=(), n=5, m=7)
    attn_mask = MASKS[mask](5, 7)
    call = Call(
        parts.get("query"), parts.get("key"), parts.get("query_features"), parts.get("key_features"), parts["value"],
        parts["key_log_magnitude"], Mask.of(attn_mask, is_causal),
        options.get("dropout_p", 0.0), 1e-5, options.get("return_weights", False),
    )  # fmt: skip
    return BACKENDS[backend].refuses(call) is None


def pairs_of(**call) -> list[tuple[str, str]]:
    """All backends of the registry with all members of the family, as far as they serve such a call."""
    return [(backend, family) for backend in BACKENDS for family in FAMILY if serves(backend, family, **call)]


def cut_into(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tiles, blocks and slabs of this size."""
    monkeypatch.setattr(tiles, "TILE", size)
    for module in (linear, linear_state):
        monkeypatch.setattr(module, "BLOCK", size)
        monkeypatch.setattr(module, "SLAB", size)
