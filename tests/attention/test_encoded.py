"""Encoded keys: attending to them, and decoding, gives what one call of the layer gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.attention import (
    IKAN,
    MIKAN,
    RBF,
    DotProduct,
    ExplicitKernel,
    IKANDirect,
    LinearKernel,
    MultiheadAttention,
)
from ika_lightning.attention.core import Core
from ika_lightning.attention.encoded import Cache, EncodedKeys, SummedKeys, move_rows
from ika_lightning.attention.features import Bochner, Yaglom
from ika_lightning.attention.mask import Mask

BATCH, LENGTH, WIDTH, HEADS = 3, 11, 15, 5
few = {"num_samples": 7}
LAYERS: dict[str, Callable[..., MultiheadAttention]] = {
    "DotProduct": DotProduct,
    "RBF": partial(RBF, p=1.0),
    "ExplicitKernel": partial(ExplicitKernel, p=1.8),
    "ExplicitKernel linear": partial(ExplicitKernel, kernel=LinearKernel),
    "RBF learned": partial(RBF, p="learned"),
    "IKANDirect": partial(IKANDirect, init="rbf", **few),
    "IKANDirect stationary": partial(IKANDirect, p=1.0, stationary=True, init="rbf", **few),
    "IKANDirect exact": partial(IKANDirect, p=1.8, **few),
    "IKAN": partial(IKAN, p=1.8, init="rbf", **few),
    "IKAN chunked": partial(IKAN, init="rbf", backend="chunked", **few),
    "IKAN reference": partial(IKAN, init="rbf", backend="reference", **few),
    "IKAN exact": partial(IKAN, p="learned", **few),
    "IKAN exact, chunked": partial(IKAN, stationary=True, backend="chunked", **few),
    "IKAN smoothed": partial(IKAN, init="rbf", smoothing=0.3, **few),
    "MIKAN": partial(MIKAN, p=3.0, init="rbf", **few),
    "MIKAN exact": partial(MIKAN, **few),
    "IKAN linear": partial(IKAN, p=1.8, init="rbf", backend="linear", **few),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build(name: str, **kwargs) -> MultiheadAttention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = LAYERS[name](WIDTH, HEADS, **{"batch_first": True, **kwargs}).double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
            if layer.core.start_share == 0.0:
                # far from dot-product attention, too
                layer.core.free_share += 0.7
    return layer.eval()


def decode(layer: MultiheadAttention, x: Tensor, sizes: list[int], axis: int = 1) -> tuple[Tensor, Cache]:
    cache, outs = None, []
    for part in x.split(sizes, dim=axis):
        out, cache = layer.decode(part, cache)
        outs.append(out)
    return torch.cat(outs, axis), cache


@every_layer
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [4, 1, 1, 3, 2], [LENGTH], [10, 1], [1, 10]], ids=str)
def test_parts_give_what_the_whole_gives(sizes, name):
    layer, x = build(name), randn(1, BATCH, LENGTH, WIDTH)
    out, cache = decode(layer, x, sizes)
    assert_close(out, layer(x, x, x, need_weights=False, is_causal=True)[0], rtol=1e-10, atol=1e-10)
    assert cache.length == LENGTH


@every_layer
def test_keys_of_very_different_magnitude(name):
    """The largest so far is another one in every step."""
    layer, x = build(name), randn(1, BATCH, LENGTH, WIDTH) * torch.linspace(0.1, 12, LENGTH).unsqueeze(-1)
    for sequence in (x, x.flip(1)):
        out, _ = decode(layer, sequence, [1] * LENGTH)
        assert_close(
            out, layer(sequence, sequence, sequence, need_weights=False, is_causal=True)[0], rtol=1e-9, atol=1e-9
        )


@every_layer
def test_layouts(name):
    layer, x = build(name, batch_first=False), randn(1, LENGTH, BATCH, WIDTH)
    out, _ = decode(layer, x, [4, 1, 6], axis=0)
    assert_close(out, layer(x, x, x, need_weights=False, is_causal=True)[0])
    single, _ = decode(layer, x[:, 1], [4, 1, 6], axis=0)
    assert_close(single, out[:, 1])


@every_layer
def test_reordered_cache_goes_on_with_the_sequences_chosen(name):
    layer, x, later = build(name), randn(1, BATCH, LENGTH, WIDTH), randn(2, 4, 2, WIDTH)
    _, cache = layer.decode(x)
    index = torch.tensor([2, 0, 0, 2])
    out, longer = layer.decode(later, cache.select(index))
    whole = torch.cat([x[index], later], 1)
    assert_close(out, layer(whole, whole, whole, need_weights=False, is_causal=True)[0][:, LENGTH:])
    assert (cache.length, longer.length) == (LENGTH, LENGTH + 2)
    # a cache is a value: the first beam can go on as if nothing had happened
    out, _ = layer.decode(later[:BATCH], cache)
    whole = torch.cat([x, later[:BATCH]], 1)
    assert_close(out, layer(whole, whole, whole, need_weights=False, is_causal=True)[0][:, LENGTH:])


@every_layer
@torch.no_grad()
def test_caches_that_share_memory_are_values(name):
    """Two go on from one, and from the one that grew from it, in turns."""
    layer, x = build(name), randn(1, BATCH, LENGTH, WIDTH)
    others = randn(2, BATCH, LENGTH, WIDTH)
    _, root = layer.decode(x[:, :3])
    _, one = layer.decode(x[:, 3:5], root)
    _, other = layer.decode(others[:, 3:4], root)
    for t in range(5, LENGTH):
        out, one = layer.decode(x[:, t : t + 1], one)
        expected = layer(*3 * [x[:, : t + 1]], need_weights=False, is_causal=True)[0]
        assert_close(out, expected[:, -1:])
        out, other = layer.decode(others[:, t - 1 : t], other)
        joined = torch.cat([x[:, :3], others[:, 3:t]], 1)
        assert_close(out, layer(*3 * [joined], need_weights=False, is_causal=True)[0][:, -1:])


@every_layer
@torch.no_grad()
@pytest.mark.parametrize("index", [[0, 1, 2], [2, 1, 0], [1, 1, 1], [0, 2], [1], [2, 0, 0, 2]], ids=str)
def test_reordering_in_place(name, index):
    layer, x, later = build(name), randn(1, BATCH, LENGTH, WIDTH), randn(2, len(index), 2, WIDTH)
    _, cache = decode(layer, x, [4, 1, 6])
    index = torch.tensor(index)
    out, cache = decode_on(layer, later, cache.select_(index))
    whole = torch.cat([x[index], later], 1)
    assert_close(out, layer(whole, whole, whole, need_weights=False, is_causal=True)[0][:, LENGTH:])
    assert cache.length == LENGTH + 2


def decode_on(layer: MultiheadAttention, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    outs = []
    for part in x.split(1, 1):
        out, cache = layer.decode(part, cache)
        outs.append(out)
    return torch.cat(outs, 1), cache


@torch.no_grad()
def test_a_new_key_costs_no_copy_of_those_before():
    layer, x = build("IKAN"), randn(1, BATCH, 64, WIDTH)
    _, cache = layer.decode(x[:, :2])
    addresses = []
    for t in range(2, 64):
        _, cache = layer.decode(x[:, t : t + 1], cache)
        addresses.append(cache.value.data_ptr())
    # doubled that often
    assert len(set(addresses)) == 5
    moved = cache.select_(torch.tensor([0, 0, 2]))
    assert moved.value.data_ptr() == addresses[-1]


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "IKAN linear"])
def test_gradients_flow_through_the_cache(name):
    layer, gradients = build(name), []
    for whole in (True, False):
        x = randn(1, BATCH, LENGTH, WIDTH).requires_grad_()
        out = layer(x, x, x, need_weights=False, is_causal=True)[0] if whole else decode(layer, x, [4, 1, 6])[0]
        layer.zero_grad()
        (out * randn(3, *out.shape)).sum().backward()
        gradients.append([x.grad, *(p.grad.clone() for n, p in layer.named_parameters() if "encoder" not in n)])
    assert_close(*gradients)


@pytest.mark.parametrize("name", ["IKAN", "MIKAN"])
def test_frequencies_are_drawn_once_for_a_sequence(name):
    layer, x = build(name).train(), randn(1, BATCH, LENGTH, WIDTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected, _ = layer(x, x, x, is_causal=True)
        kl = layer.kl
        torch.manual_seed(1)
        out, _ = decode(layer, x, [1] * LENGTH)
    assert_close(out, expected)
    assert layer.kl.equal(kl)


def rows_mapped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of rows whenever features are made."""
    seen: list[int] = []
    for kind in (Bochner, Yaglom):
        original = kind.__call__
        monkeypatch.setattr(kind, "__call__", lambda self, x, _of=original: seen.append(x.size(-2)) or _of(self, x))
    return seen


@pytest.mark.parametrize("name", ["IKAN", "MIKAN", "IKANDirect", "IKAN exact", "IKAN linear"])
def test_features_are_made_once_for_a_key(name, monkeypatch):
    layer, x, seen = build(name), randn(1, BATCH, LENGTH, WIDTH), rows_mapped(monkeypatch)
    decode(layer, x, [1] * LENGTH)
    assert seen == [1] * (2 * LENGTH)


def test_dropout_acts_in_training():
    layer, x = build("IKANDirect", dropout=0.5), randn(1, BATCH, LENGTH, WIDTH)
    still, _ = layer.decode(x)
    with torch.random.fork_rng(devices=[]):
        dropped, _ = layer.train().decode(x)
    assert not dropped.isclose(still).all(-1).any(0)[1:].any()


@pytest.mark.parametrize("name", ["DotProduct", "RBF", "IKAN"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_precisions(dtype, name):
    layer, x = build(name).to(dtype), randn(1, BATCH, LENGTH, WIDTH).to(dtype)
    out, _ = decode(layer, x, [4, 1, 1, 5])
    assert out.dtype == dtype
    expected, _ = layer(x, x, x, is_causal=True)
    tolerance = 0.03 if dtype == torch.bfloat16 else 1e-5
    assert (out - expected).norm() < tolerance * expected.norm()


def test_state_of_constant_size():
    layer = build("IKAN linear")
    caches = [decode(layer, randn(1, BATCH, length, WIDTH), [1] * length)[1] for length in (1, LENGTH)]
    shapes = [[part.shape for part in cache.state] for cache in caches]
    assert shapes[0] == shapes[1]


def test_state_belongs_to_its_layer():
    linear, other, x = build("IKAN linear"), build("IKAN"), randn(1, BATCH, LENGTH, WIDTH)
    with pytest.raises(ValueError, match="goes on with a cache of its own, and without dropout"):
        linear.decode(x, other.decode(x)[1])
    with pytest.raises(ValueError, match="goes on with a cache of its own, and without dropout"):
        dropping = build("IKAN linear", dropout=0.5)
        dropping.train().decode(x, linear.decode(x)[1])
    with pytest.raises(ValueError, match="this cache is one of a layer with backend='linear'"):
        build("DotProduct").decode(x, linear.decode(x)[1])


@pytest.mark.parametrize("kind", ["IKAN", "IKAN linear"])
def test_cache_of_another_number_of_sequences_is_refused(kind):
    layer = build(kind)
    _, cache = layer.decode(randn(1, BATCH, LENGTH, WIDTH))
    with pytest.raises(ValueError, match=r"keys of 3 sequences cannot go on with 2; keys\.select\(index\)"):
        layer.decode(randn(1, 2, 1, WIDTH), cache)


def test_layer_of_other_widths_of_keys_cannot_attend_to_itself():
    with pytest.raises(ValueError, match=r"must be \(15, 7, 15\), got query \(3, 2, 15\)"):
        DotProduct(WIDTH, HEADS, kdim=7, batch_first=True).decode(torch.ones(3, 2, WIDTH))


def test_own_core_decodes_by_what_it_is_made_of():
    class Mean(Core):
        def attend(self, query, keys, mask=None, **kwargs):
            n, m = query.size(-2), keys.length
            allowed = (mask or Mask()).allowed(n, m)
            weights = torch.ones(n, m) if allowed is None else allowed.expand(n, m)
            weights = weights.to(keys.value.dtype) / weights.sum(-1, keepdim=True)
            return weights @ keys.value, None

    layer = MultiheadAttention(WIDTH, HEADS, batch_first=True, core=Mean).double()
    x = randn(1, BATCH, LENGTH, WIDTH)
    assert_close(decode(layer, x, [1, 4, 6])[0], layer(x, x, x, need_weights=False, is_causal=True)[0])
    assert_close(layer.attend(x, layer.encode_keys(x, x)), layer(x, x, x, need_weights=False)[0])


def source(layer: MultiheadAttention, masked: bool | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries, keys, and a mask of them: none, boolean or floating."""
    query, key = randn(1, BATCH, LENGTH, WIDTH), randn(2, BATCH, 7, WIDTH)
    mask = torch.zeros(BATCH, 7).bool()
    mask[0, 4:] = mask[1] = True
    if masked is None:
        return query, key, None
    return query, key, mask if masked else randn(3, BATCH, 7).masked_fill(mask, -torch.inf)


class TestEncodedKeys:
    @every_layer
    @pytest.mark.parametrize("masked", [None, True, False], ids=["all", "boolean", "floating"])
    def test_attending_in_parts_is_forward(self, name, masked):
        layer = build(name)
        query, key, mask = source(layer, masked)
        expected, _ = layer(query, key, key, key_padding_mask=mask, need_weights=False)
        keys = layer.encode_keys(key, key, mask)
        parts = [layer.attend(part, keys) for part in query.split([1, 6, 4], 1)]
        assert_close(torch.cat(parts, 1), expected, rtol=1e-10, atol=1e-10)

    @every_layer
    def test_selection(self, name):
        layer = build(name)
        query, key, mask = source(layer, True)
        index = torch.tensor([2, 0, 0, 2])
        out = layer.attend(query[index], layer.encode_keys(key, key, mask).select(index))
        assert_close(out, layer(query, key, key, key_padding_mask=mask, need_weights=False)[0][index])

    @every_layer
    def test_layouts(self, name):
        layer, query, key = build(name, batch_first=False), randn(1, LENGTH, BATCH, WIDTH), randn(2, 7, BATCH, WIDTH)
        assert_close(layer.attend(query, layer.encode_keys(key, key)), layer(query, key, key, need_weights=False)[0])

    @pytest.mark.parametrize("name", ["IKAN", "MIKAN"])
    def test_frequencies_are_drawn_once_and_follow_the_keys(self, name):
        layer = build(name).train()
        query, key, mask = source(layer, True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            expected, _ = layer(query, key, key, key_padding_mask=mask)
            kl = layer.kl
            torch.manual_seed(1)
            keys = layer.encode_keys(key, key, mask)
        assert keys.feature_map.frequencies[0].size(0) == BATCH
        assert_close(layer.attend(query, keys), expected)
        assert layer.kl.equal(kl)

    @pytest.mark.parametrize("name", ["IKAN", "IKAN linear", "IKANDirect"])
    def test_features_are_made_once_for_a_key(self, name, monkeypatch):
        layer, seen = build(name), rows_mapped(monkeypatch)
        query, key, _ = source(layer, None)
        keys = layer.encode_keys(key, key)
        for part in query.split(4, 1):
            layer.attend(part, keys)
        assert seen == [7, 4, 4, 3]

    @pytest.mark.parametrize("name", ["DotProduct", "RBF", "IKAN"])
    def test_half_precision(self, name):
        layer = build(name).to(torch.bfloat16)
        query, key, mask = (x if x.dtype == torch.bool else x.bfloat16() for x in source(layer, True))
        out, expected = layer.attend(query, layer.encode_keys(key, key, mask)), layer(query, key, key, mask)[0]
        assert out.dtype == torch.bfloat16
        assert (out - expected).norm() < 0.03 * expected.norm()

    def test_what_does_not_fit_is_refused(self):
        layer = build("IKAN")
        query, key, _ = source(layer, None)
        with pytest.raises(
            ValueError, match=r"query must have shape \(sequences, n, width\) = \(3, n, 15\), got \(2, "
        ):
            layer.attend(query[:2], layer.encode_keys(key, key))
        with pytest.raises(ValueError, match=r"query must have 3 axes, got \(11, 15\)"):
            layer.attend(query[0], layer.encode_keys(key, key))
        with pytest.raises(ValueError, match="key and value must have the same length"):
            layer.encode_keys(key, key[:, 1:])
        with pytest.raises(ValueError, match="key and value must have 3 axes"):
            layer.encode_keys(key[0], key[0])
        with pytest.raises(
            ValueError, match=r"key_padding_mask must have shape \(batch, keys\) = \(3, 7\), got \(3, 6\)"
        ):
            layer.encode_keys(key, key, torch.zeros(3, 6).bool())

    @every_layer
    @torch.no_grad()
    def test_keys_with_a_mask_cannot_grow(self, name):
        layer = build(name)
        _, key, mask = source(layer, True)
        keys = layer.encode_keys(key, key, mask)
        for first, later in ((keys, layer.encode_keys(key, key)), (layer.encode_keys(key, key), keys)):
            with pytest.raises(ValueError, match="keys with a key_padding_mask cannot grow; encode them all at once"):
                first.append(later)

    @every_layer
    @pytest.mark.parametrize("index", [[0, 1, 2], [2, 1, 0], [1], [2, 0, 0, 2]], ids=str)
    @torch.no_grad()
    def test_selection_in_place(self, name, index):
        layer = build(name)
        query, key, mask = source(layer, False)
        expected, _ = layer(query, key, key, key_padding_mask=mask, need_weights=False)
        chosen = layer.encode_keys(key, key, mask).select_(torch.tensor(index))
        assert_close(layer.attend(query[index], chosen), expected[index])


@pytest.mark.parametrize("name", ["IKANDirect exact", "IKAN exact", "MIKAN exact", "RBF", "DotProduct"])
def test_sums_of_constant_size_are_of_features_alone(name):
    layer, x = build(name), randn(1, BATCH, LENGTH, WIDTH)
    layer.core.backend = "linear"
    with pytest.raises(ValueError, match=r"backend 'linear' .*; take 'auto' or 'dense' for this call"):
        layer.decode(x)


def test_kinds_of_caches():
    x = randn(1, BATCH, LENGTH, WIDTH)
    for name in LAYERS:
        _, cache = build(name).decode(x)
        assert isinstance(cache, SummedKeys if name == "IKAN linear" else EncodedKeys)


@torch.no_grad()
def test_only_sequences_that_move_are_copied():
    x = torch.arange(5 * 2 * 3).view(5, 2, 3)
    expected, moved = x[[0, 3, 1, 3]].clone(), move_rows(x, torch.tensor([0, 3, 1, 3]))
    assert moved.equal(expected)
    assert moved.data_ptr() == x.data_ptr()
    x = torch.arange(5 * 2 * 3).view(5, 1, 2, 3)
    moved = move_rows(x, torch.tensor([2, 1]), length=1)
    # beyond the length nothing is worth a copy
    assert moved.flatten(1).tolist() == [[12, 13, 14, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


@every_layer
def test_decoding_no_positions_changes_nothing(name):
    layer, x = build(name).eval(), randn(1, BATCH, 5, WIDTH)
    _, cache = layer.decode(x[:, :4])
    out, cache = layer.decode(x[:, :0], cache)
    assert out.shape == (BATCH, 0, WIDTH) and cache.length == 4
    assert_close(layer.decode(x[:, 4:], cache)[0], layer(x, x, x, is_causal=True, need_weights=False)[0][:, 4:])


@pytest.mark.parametrize("name", ["DotProduct", "RBF", "IKANDirect exact", "IKAN exact"])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_decoding_goes_on_in_another_precision(name, gradients, first):
    """Begun under autocast and continued without, or the other way round."""
    layer, x = build(name).float().eval(), randn(1, BATCH, 5, WIDTH).float()
    with torch.set_grad_enabled(gradients):
        with torch.autocast("cpu", enabled=first):
            _, cache = layer.decode(x[:, :3])
        with torch.autocast("cpu", enabled=not first):
            out, cache = layer.decode(x[:, 3:4], cache)
        last, _ = layer.decode(x[:, 4:], cache)
        expected = layer(x, x, x, is_causal=True)[0][:, 3:]
    assert_close(torch.cat([out.float(), last.float()], 1), expected, rtol=0.05, atol=0.05)


def test_a_cache_of_another_kind_of_layer_is_refused():
    x = randn(1, BATCH, 5, WIDTH)
    _, cache = build("IKANDirect").decode(x)
    with pytest.raises(ValueError, match=r"are of another kind of layer; go on with the layer that the cache is of"):
        build("DotProduct").decode(x, cache)
