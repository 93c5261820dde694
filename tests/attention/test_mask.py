"""Masks: what is read from the arguments of PyTorch's functions, and what they allow."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.attention import kernel_attention
from ika_lightning.attention.mask import Mask

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 5, 7, 4
INF = math.inf


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some(seed: int, *shape: int) -> Tensor:
    """A boolean mask, about two thirds True."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.66


def added(mask: Mask) -> Tensor:
    """All of a mask as one that is added, element by element."""
    total = torch.zeros(BATCH, HEADS, QUERIES, KEYS, dtype=torch.float64)
    for bias in (mask.key_bias, mask.pair_bias):
        total = total if bias is None else total + bias
    allowed = mask.allowed(QUERIES, KEYS)
    return total if allowed is None else torch.where(allowed, total, -INF)


FLOATING = {
    "numbers": lambda *shape: randn(1, *shape),
    "numbers and -inf": lambda *shape: randn(2, *shape).masked_fill(~some(3, *shape), -INF),
    "all -inf": lambda *shape: torch.full(shape, -INF, dtype=torch.float64),
}
SHAPES = [(KEYS,), (1, KEYS), (QUERIES, KEYS), (QUERIES, 1), (BATCH, 1, 1, KEYS), (BATCH, HEADS, QUERIES, KEYS)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", FLOATING)
def test_floating_mask_is_split_into_what_it_allows_and_what_it_adds(kind, shape):
    given = FLOATING[kind](*shape)
    mask = Mask.of(given)
    assert_close(added(mask), given.expand(BATCH, HEADS, QUERIES, KEYS))
    for bias in (mask.key_bias, mask.pair_bias):
        assert bias is None or bias.isfinite().all()
    assert mask.differs_by_query == (shape in SHAPES[2:4] or shape == SHAPES[-1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_boolean_mask_allows(shape):
    given = some(4, *shape)
    mask = Mask.of(given)
    assert (
        mask.allowed(QUERIES, KEYS).expand(BATCH, HEADS, QUERIES, KEYS).equal(given.expand(BATCH, HEADS, QUERIES, KEYS))
    )
    assert (mask.key_bias, mask.pair_bias, mask.causal) == (None, None, False)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 7), (7, 3), (1, 4), (4, 1), (0, 3), (3, 0)])
def test_causal_mask(n, m):
    expected = torch.tensor([[j <= i for j in range(m)] for i in range(n)], dtype=torch.bool).view(n, m)
    assert Mask(causal=True).allowed(n, m).equal(expected)
    keys = some(5, BATCH, 1, 1, m)
    assert Mask(keys=keys, causal=True).allowed(n, m).equal(keys & expected)
    assert Mask().allowed(n, m) is None


@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 7), (1, 4), (4, 4), (2, 3)])
def test_last_positions_see_all_before_them(n, m):
    mask = Mask.causal_after(n, m, torch.device("cpu"))
    expected = torch.ones(m, m).bool().tril()[m - n :]
    found = mask.allowed(n, m)
    assert (torch.ones(n, m).bool() if found is None else found).equal(expected)
    assert mask.causal == (n == m)


PADDING = {
    "none": None,
    "boolean": ~some(6, BATCH, KEYS),
    "floating": randn(7, BATCH, KEYS),
    "floating with -inf": randn(8, BATCH, KEYS).masked_fill(some(9, BATCH, KEYS), -INF),
}
PAIRS = {
    "none": None,
    "boolean": ~some(10, QUERIES, KEYS),
    "heads'": ~some(11, BATCH * HEADS, QUERIES, KEYS),
    "floating": randn(12, BATCH * HEADS, QUERIES, KEYS).masked_fill(some(13, QUERIES, KEYS), -INF),
}


def as_added(ignored: Tensor | None) -> Tensor:
    """A mask of a layer, in which True means ignore, as one that is added."""
    if ignored is None:
        return torch.zeros((), dtype=torch.float64)
    if ignored.dtype != torch.bool:
        return ignored
    return torch.zeros(ignored.shape, dtype=torch.float64).masked_fill(ignored, -INF)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("padding", PADDING)
def test_masks_of_a_layer_add_up(padding, pairs, is_causal):
    padding, pairs = PADDING[padding], PAIRS[pairs]
    expected = as_added(pairs)
    expected = expected.view(BATCH, HEADS, QUERIES, KEYS) if expected.dim() == 3 else expected
    if padding is not None:
        expected = expected + as_added(padding)[:, None, None]
    if is_causal:
        expected = expected + as_added(torch.ones(QUERIES, KEYS).bool().triu(1))
    mask = Mask.of_layer(padding, pairs, is_causal, BATCH, HEADS, QUERIES, KEYS)
    assert_close(added(mask), expected.expand(BATCH, HEADS, QUERIES, KEYS))
    assert mask.differs_by_query == (is_causal or pairs is not None)
    only_keys = mask.of_keys()
    assert (only_keys.keys, only_keys.key_bias) == (mask.keys, mask.key_bias)
    assert not only_keys.differs_by_query
    assert_close(
        added(Mask(pairs=mask.pairs, pair_bias=mask.pair_bias, causal=is_causal).with_keys(only_keys)), added(mask)
    )


def test_select_takes_what_is_of_sequences():
    mask = Mask(some(14, BATCH, 1, 1, KEYS), randn(15, 1, 1, 1, KEYS), some(16, QUERIES, KEYS), None, True)
    index = torch.tensor([1, 1, 0])
    chosen = mask.select(index)
    assert chosen.keys.equal(mask.keys[index])
    assert chosen.key_bias is mask.key_bias
    assert chosen.pairs is mask.pairs
    assert (chosen.pair_bias, chosen.causal) == (None, True)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((QUERIES, KEYS + 1), r"\(\.\.\., 5, 7\), got shape \(5, 8\); it has an entry for each key"),
        ((QUERIES + 1, KEYS), r"\(\.\.\., 5, 7\), got shape \(6, 7\)"),
        ((KEYS + 1,), r"\(\.\.\., 5, 7\), got shape \(1, 8\)"),
        ((BATCH, 1, 1, KEYS - 1), r"\(\.\.\., 5, 7\), got shape \(2, 1, 1, 6\)"),
    ],
)
@pytest.mark.parametrize("floating", [False, True])
def test_mask_that_does_not_broadcast_is_refused(floating, shape, message):
    mask = torch.zeros(shape) if floating else torch.ones(shape).bool()
    with pytest.raises(ValueError, match=f"a mask must broadcast to .* = {message}"):
        Mask.of(mask).check(QUERIES, KEYS)


@pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.complex64])
def test_mask_of_another_dtype_is_refused(dtype):
    numbers = torch.ones(QUERIES, KEYS, dtype=dtype)
    with pytest.raises(TypeError, match=rf"attn_mask must be boolean \(True = may attend\) or floating .* got {dtype}"):
        Mask.of(numbers)
    with pytest.raises(TypeError, match=rf"attn_mask must be boolean \(True = ignore\) or floating .* got {dtype}"):
        Mask.of_layer(None, numbers, False, BATCH, HEADS, QUERIES, KEYS)
    with pytest.raises(TypeError, match=rf"key_padding_mask must be boolean \(True = ignore\) .* got {dtype}"):
        Mask.of_layer(numbers[:BATCH], None, False, BATCH, HEADS, QUERIES, KEYS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["boolean", *FLOATING])
def test_masks_mean_what_they_mean_to_pytorch(kind, shape):
    query, key, value = (
        randn(seed, BATCH, HEADS, size, WIDTH) for seed, size in ((20, QUERIES), (21, KEYS), (22, KEYS))
    )
    mask = some(4, *shape) if kind == "boolean" else FLOATING[kind](*shape)
    expected = F.scaled_dot_product_attention(query, key, value, mask.expand(QUERIES, KEYS) if mask.dim() < 2 else mask)
    empty = (mask == (False if kind == "boolean" else -INF)).expand(BATCH, HEADS, QUERIES, KEYS).all(-1, keepdim=True)
    found = kernel_attention(None, None, value, query=query * WIDTH**-0.5, key=key, attn_mask=mask)
    assert_close(found, expected.masked_fill(empty, 0.0), rtol=1e-12, atol=1e-12)
