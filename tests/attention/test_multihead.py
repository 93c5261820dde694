"""The layers: PyTorch's contract, and what a user of any of them relies on."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from ika_lightning.attention import (
    IKAN,
    MIKAN,
    RBF,
    DotProduct,
    ExplicitKernel,
    IKANDirect,
    LinearKernel,
    MultiheadAttention,
    PeriodicKernel,
    RBFKernel,
    attention_kl,
)

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 5, 7, 15
INF, NAN = math.inf, math.nan
POWERS = [1.0, 1.8, 2.0, 3.0, INF]

few = {"num_samples": 13}
LAYERS: dict[str, Callable[..., MultiheadAttention]] = {
    "DotProduct": DotProduct,
    "RBF": partial(RBF, p=1.8),
    "ExplicitKernel": partial(ExplicitKernel, p=1.8),
    "ExplicitKernel linear": partial(ExplicitKernel, kernel=LinearKernel),
    "RBF learned": partial(RBF, p="learned"),
    "IKANDirect": partial(IKANDirect, p=1.8, init="rbf", **few),
    "IKANDirect stationary": partial(IKANDirect, stationary=True, init="paper", **few),
    "IKANDirect exact": partial(IKANDirect, p=1.8, **few),
    "IKAN": partial(IKAN, p=1.8, init="rbf", **few),
    "IKAN stationary": partial(IKAN, p=INF, stationary=True, init="rbf", **few),
    "IKAN unconditional": partial(IKAN, p=3.0, conditional=False, init="rbf", **few),
    "IKAN exact": partial(IKAN, p="learned", **few),
    "IKAN smoothed": partial(IKAN, p=1.8, init="rbf", smoothing=0.3, **few),
    "MIKAN": partial(MIKAN, p=1.8, init="rbf", **few),
    "MIKAN exact": partial(MIKAN, stationary=True, **few),
}
CONDITIONAL = ["IKAN", "IKAN stationary", "IKAN exact", "IKAN smoothed", "MIKAN", "MIKAN exact"]
IMPLICIT = [*CONDITIONAL, "IKAN unconditional"]
#: Those that start as dot-product attention, exactly.
EXACT = ["IKANDirect exact", "IKAN exact", "MIKAN exact"]
ONE_OF_EACH = ["DotProduct", "RBF", "ExplicitKernel", "IKANDirect", "IKAN", "MIKAN", *EXACT]

every_layer = pytest.mark.parametrize("name", LAYERS)
one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some(seed: int, *shape: int) -> Tensor:
    """A boolean mask in which about one third is True: ignored."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.34


def move(module: nn.Module, size: float = 0.2) -> None:
    """Move all parameters, so that no two heads are alike and encoders, which start at zero, do something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)


def build(name: str, *, seed: int = 0, moved: bool = True, dtype=torch.float64, **kwargs) -> MultiheadAttention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = LAYERS[name](WIDTH, HEADS, **{"batch_first": True, **kwargs}).to(dtype)
    if moved:
        move(layer)
        if name in EXACT:
            # far from dot-product attention, too
            layer.core.free_share.data += 0.7
    return layer.eval()


def inputs(n: int = QUERIES, m: int = KEYS, kdim: int = WIDTH, vdim: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    return randn(1, BATCH, n, WIDTH), randn(2, BATCH, m, kdim), randn(3, BATCH, m, vdim)


def forward(layer: MultiheadAttention, *args, seed: int = 0, **kwargs):
    """Call the layer with its noise and dropout drawn from a seed of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return layer(*args, **kwargs)


# ----- the contract of nn.MultiheadAttention


def transplant(theirs: nn.MultiheadAttention, ours: MultiheadAttention) -> None:
    if theirs.in_proj_weight is None:
        weights = theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight
    else:
        weights = theirs.in_proj_weight.chunk(3)
    projections = ours.q_proj, ours.k_proj, ours.v_proj
    with torch.no_grad():
        for projection, weight in zip(projections, weights, strict=True):
            projection.weight.copy_(weight)
        ours.out_proj.weight.copy_(theirs.out_proj.weight)
        if theirs.in_proj_bias is not None:
            for projection, bias in zip(projections, theirs.in_proj_bias.chunk(3), strict=True):
                projection.bias.copy_(bias)
            ours.out_proj.bias.copy_(theirs.out_proj.bias)


def twins(**kwargs) -> tuple[MultiheadAttention, nn.MultiheadAttention]:
    kwargs = {"batch_first": True, **kwargs}
    theirs = nn.MultiheadAttention(WIDTH, HEADS, **kwargs).double()
    move(theirs)
    ours = DotProduct(WIDTH, HEADS, **kwargs).double()
    transplant(theirs, ours)
    return ours, theirs


def padding() -> Tensor:
    return some(4, BATCH, KEYS) & (torch.arange(KEYS) != 0)


def pairs(*lead: int) -> Tensor:
    return some(5, *lead, QUERIES, KEYS) & (torch.arange(KEYS) != 0)


THEIR_MASKS = {
    "none": {},
    "padding": {"key_padding_mask": padding()},
    "float padding": {"key_padding_mask": randn(6, BATCH, KEYS)},
    "pairs": {"attn_mask": pairs()},
    "heads' pairs": {"attn_mask": pairs(BATCH * HEADS)},
    "float pairs": {"attn_mask": randn(7, QUERIES, KEYS).masked_fill(pairs(), -INF)},
    "heads' float pairs": {"attn_mask": randn(7, BATCH * HEADS, QUERIES, KEYS)},
    "padding and pairs": {"key_padding_mask": padding(), "attn_mask": pairs(BATCH * HEADS)},
    "float padding and pairs": {
        "key_padding_mask": randn(6, BATCH, KEYS),
        "attn_mask": randn(8, BATCH * HEADS, QUERIES, KEYS),
    },
    "causal": {"attn_mask": torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(1), "is_causal": True},
}


@pytest.mark.parametrize("masks", THEIR_MASKS)
@pytest.mark.parametrize(
    "options", [{}, {"need_weights": False}, {"average_attn_weights": False}], ids=["averaged", "none", "each"]
)
def test_dot_product_is_nn_multihead_attention(options, masks):
    ours, theirs = twins()
    masks = THEIR_MASKS[masks]
    found, expected = ours(*inputs(), **masks, **options), theirs(*inputs(), **masks, **options)
    assert_close(found, expected)
    cotangent = randn(9, BATCH, QUERIES, WIDTH)
    for out in (found[0], expected[0]):
        (out * cotangent).sum().backward()
    assert_close(
        torch.cat([x.weight.grad for x in (ours.q_proj, ours.k_proj, ours.v_proj)]), theirs.in_proj_weight.grad
    )
    assert_close(torch.cat([x.bias.grad for x in (ours.q_proj, ours.k_proj, ours.v_proj)]), theirs.in_proj_bias.grad)
    assert_close(ours.out_proj.weight.grad, theirs.out_proj.weight.grad)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kwargs", [{}, {"bias": False}, {"kdim": 11, "vdim": 13}], ids=str)
def test_dot_product_has_the_layouts_of_nn_multihead_attention(kwargs, batch_first, average):
    ours, theirs = twins(batch_first=batch_first, **kwargs)
    widths = {name: kwargs[name] for name in ("kdim", "vdim") if name in kwargs}
    batch = inputs(**widths)
    options = {"average_attn_weights": average}
    if not batch_first:
        batch = tuple(x.transpose(0, 1) for x in batch)
    assert_close(
        ours(*batch, key_padding_mask=padding(), **options), theirs(*batch, key_padding_mask=padding(), **options)
    )
    single = tuple(x[1] for x in inputs(**widths))
    masks = {"key_padding_mask": padding()[1], "attn_mask": pairs(HEADS)}
    found, expected = ours(*single, **masks, **options), theirs(*single, **masks, **options)
    assert found[0].shape == (QUERIES, WIDTH)
    assert_close(found, expected)


@every_layer
def test_layouts_agree(name):
    layer = build(name)
    options = {"key_padding_mask": padding(), "average_attn_weights": False}
    out, weights = layer(*inputs(), **options)
    assert out.shape == (BATCH, QUERIES, WIDTH)
    assert weights.shape == (BATCH, HEADS, QUERIES, KEYS)
    layer.batch_first = False
    turned = layer(*(x.transpose(0, 1) for x in inputs()), **options)
    assert_close(turned, (out.transpose(0, 1), weights))
    options["key_padding_mask"] = padding()[1]
    assert_close(layer(*(x[1] for x in inputs()), **options), (out[1], weights[1]))


@every_layer
@pytest.mark.parametrize("masks", ["none", "padding", "heads' float pairs", "padding and pairs", "causal"])
def test_weights_sum_to_one_and_do_not_change_the_output(masks, name):
    layer, masks = build(name), THEIR_MASKS[masks]
    out, each = layer(*inputs(), **masks, average_attn_weights=False)
    assert_close(each.sum(-1), torch.ones(BATCH, HEADS, QUERIES).double())
    assert (each >= 0).all()
    same, averaged = layer(*inputs(), **masks)
    assert same.equal(out)
    assert_close(averaged, each.mean(1))
    quick, nothing = layer(*inputs(), **masks, need_weights=False)
    assert nothing is None
    assert_close(quick, out)
    value = layer.v_proj(inputs()[2]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    assert_close(out, layer.out_proj((each @ value).transpose(1, 2).flatten(-2)))


@every_layer
def test_true_means_ignore(name):
    layer = build(name)
    for masks in ({"attn_mask": pairs(BATCH * HEADS)}, {"key_padding_mask": padding()}, {"attn_mask": pairs()}):
        _, weights = layer(*inputs(), **masks, average_attn_weights=False)
        ignored = masks.get("attn_mask", padding()[:, None, None])
        if ignored.dim() == 3:
            ignored = ignored.view(BATCH, HEADS, QUERIES, KEYS)
        assert torch.equal(weights == 0, ignored.expand_as(weights))


@every_layer
def test_float_masks_are_added_to_log_weights(name):
    layer, bias = build(name), randn(8, BATCH * HEADS, QUERIES, KEYS)
    options = {"average_attn_weights": False}
    _, plain = layer(*inputs(), attn_mask=torch.zeros(QUERIES, KEYS), **options)
    _, biased = layer(*inputs(), attn_mask=bias, **options)
    expected = plain * bias.view_as(plain).exp()
    assert_close(biased, expected / expected.sum(-1, keepdim=True))
    told, spectrum = [], layer.core.spectrum
    if spectrum is not None:
        # the mask weighs the mean key as well: let the kernel be that of the call with a mask
        forward = spectrum.forward
        spectrum.forward = lambda mean_key: told.append(mean_key) or forward(told[0])
    _, biased = layer(*inputs(), key_padding_mask=bias[:BATCH, 0], **options)
    _, plain = layer(*inputs(), **options)
    expected = plain * bias[:BATCH, 0].exp()[:, None, None]
    assert_close(biased, expected / expected.sum(-1, keepdim=True))


@every_layer
def test_boolean_and_float_masks_agree(name):
    layer = build(name)
    for mask in ("key_padding_mask", "attn_mask"):
        ignored = padding() if mask == "key_padding_mask" else pairs()
        floating = torch.zeros(ignored.shape, dtype=torch.float64).masked_fill(ignored, -INF)
        assert_close(layer(*inputs(), **{mask: floating}), layer(*inputs(), **{mask: ignored}))


@every_layer
@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 7), (7, 3)])
def test_is_causal_alone_is_a_causal_mask(n, m, name):
    layer = build(name)
    ignored = torch.ones(n, m, dtype=torch.bool).triu(1)
    expected = layer(*inputs(n, m), attn_mask=ignored)
    assert_close(layer(*inputs(n, m), is_causal=True), expected)
    assert_close(layer(*inputs(n, m), is_causal=True, attn_mask=ignored), expected)
    assert_close(layer(*inputs(n, m), is_causal=True, need_weights=False)[0], expected[0])


# ----- at the start, layers are dot-product attention


@pytest.mark.parametrize("masks", THEIR_MASKS)
@pytest.mark.parametrize("layer", [RBF, partial(ExplicitKernel, kernel=RBFKernel)], ids=["RBF", "ExplicitKernel"])
def test_gaussian_kernel_starts_as_dot_product(layer, masks):
    layer, expected = layer(WIDTH, HEADS, batch_first=True).double(), build("DotProduct")
    layer.load_state_dict(expected.state_dict(), strict=False)
    assert_close(
        layer(*inputs(), **THEIR_MASKS[masks]), expected(*inputs(), **THEIR_MASKS[masks]), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("p", [2.0, "learned"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masks", THEIR_MASKS)
@pytest.mark.parametrize("kind", [IKANDirect, IKAN, MIKAN])
def test_learned_kernels_start_as_dot_product_exactly(kind, masks, training, p):
    """With few samples, and whatever they are."""
    layer = kind(WIDTH, HEADS, num_samples=1, p=p, batch_first=True).double().train(training)
    expected = build("DotProduct")
    layer.load_state_dict(expected.state_dict(), strict=False)
    for need_weights in (True, False):
        options = {**THEIR_MASKS[masks], "need_weights": need_weights}
        assert_close(layer(*inputs(), **options), expected(*inputs(), **options), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.3, 0.9])
@pytest.mark.parametrize("kind", [IKANDirect, IKAN, MIKAN])
def test_what_is_exact_is_not_left_to_samples(kind, smoothing):
    """A smoothed layer starts closer to dot-product attention than the estimator with as many samples."""
    expected, errors = build("DotProduct", moved=False), []
    for part in (0.0, smoothing):
        draws = []
        for seed in range(10):
            torch.manual_seed(seed)
            layer = kind(WIDTH, HEADS, num_samples=16, init="rbf", smoothing=part, batch_first=True).double().eval()
            layer.load_state_dict(expected.state_dict(), strict=False)
            draws.append((layer(*inputs())[0] - expected(*inputs())[0]).norm().item())
        errors.append(sum(draws))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("training", [True, False], ids=["random", "fixed points"])
@pytest.mark.parametrize("stationary", [True, False])
@pytest.mark.parametrize("kind", [IKANDirect, IKAN, MIKAN])
def test_learned_kernels_tend_to_dot_product_with_the_number_of_samples(kind, stationary, training):
    """Random samples err by 1 / sqrt(samples); fixed points at least not by more."""
    expected = build("DotProduct", moved=False)
    out, _ = expected(*inputs())
    scaled = []
    for num_samples in (64, 256, 1024, 4096):
        squares = []
        for seed in range(3):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                layer = kind(WIDTH, HEADS, num_samples=num_samples, stationary=stationary, init="rbf", batch_first=True)
            layer.double().train(training)
            layer.load_state_dict(expected.state_dict(), strict=False)
            found, _ = forward(layer, *inputs(), seed=seed)
            squares.append((found - out).square().mean())
        scaled.append(torch.stack(squares).mean().sqrt() * num_samples**0.5)
    assert scaled[-1] / 64 < 0.1 * out.std()
    assert max(scaled[1:]) < 2 * scaled[0], scaled
    if training and kind is not IKANDirect:
        assert min(scaled) > 0.3 * scaled[0], scaled


# ----- invariances


@every_layer
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(training, name):
    layer = build(name).train(training)
    query, key, value = inputs()
    out, weights = forward(layer, query, key, value)
    longer = [torch.cat([x, 100 * randn(8, BATCH, 4, WIDTH)], 1) for x in (key, value)]
    ignored = (torch.arange(KEYS + 4) >= KEYS).expand(BATCH, -1)
    for mask in (ignored, torch.zeros(ignored.shape).masked_fill(ignored, -INF)):
        padded, padded_weights = forward(layer, query, *longer, key_padding_mask=mask)
        assert_close(padded, out, rtol=1e-12, atol=1e-12)
        assert_close(padded_weights[..., :KEYS], weights, rtol=1e-12, atol=1e-12)
        assert padded_weights[..., KEYS:].eq(0).all()


@every_layer
@pytest.mark.parametrize("need_weights", [False, True])
def test_sample_does_not_depend_on_the_others_of_its_batch(need_weights, name):
    layer = build(name)
    before, _ = layer(*inputs(), key_padding_mask=padding(), need_weights=need_weights)
    query, key, value = inputs()
    ignored = padding()
    for x in (query, key, value):
        x[1] = 3 * x[1].flip(0)
    ignored[1] = ignored[1].flip(0)
    after, _ = layer(query, key, value, key_padding_mask=ignored, need_weights=need_weights)
    assert after[0].equal(before[0])
    assert not after[1].isclose(before[1]).all(-1).any()
    assert_close(layer(*(x[:1] for x in inputs()), key_padding_mask=padding()[:1])[0], before[:1])


@every_layer
def test_order_of_keys_does_not_matter_and_order_of_queries_is_kept(name):
    layer = build(name)
    query, key, value = inputs()
    keys, queries = torch.tensor([3, 6, 0, 5, 1, 4, 2]), torch.tensor([2, 4, 0, 3, 1])
    out, weights = layer(query, key, value, padding(), attn_mask=pairs())
    permuted = layer(
        query[:, queries], key[:, keys], value[:, keys], padding()[:, keys], attn_mask=pairs()[queries][:, keys]
    )
    assert_close(permuted, (out[:, queries], weights[:, queries][:, :, keys]))
    out, weights = layer(query, key, value, padding())
    permuted = layer(query[:, queries], key[:, keys], value[:, keys], padding()[:, keys])
    assert_close(permuted, (out[:, queries], weights[:, queries][:, :, keys]))


FUTURE = torch.ones(KEYS, KEYS, dtype=torch.bool).triu(1)
CAUSAL_CALLS = {
    "is_causal": {"is_causal": True},
    "padded": {"is_causal": True, "key_padding_mask": padding()},
    "boolean mask": {"attn_mask": FUTURE},
    "float mask": {"attn_mask": torch.zeros(KEYS, KEYS).masked_fill(FUTURE, -INF).double()},
}


@every_layer
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("call", CAUSAL_CALLS)
def test_past_does_not_depend_on_the_future(call, training, name):
    layer = build(name, dropout=0.2).train(training)
    x = randn(1, BATCH, KEYS, WIDTH)
    for need_weights in (False, True):
        options = {**CAUSAL_CALLS[call], "need_weights": need_weights}
        before, _ = forward(layer, x, x, x, **options)
        for t in (0, 3, 5):
            changed = x.clone()
            changed[:, t + 1 :] = 5 * randn(2, BATCH, KEYS - t - 1, WIDTH)
            after, _ = forward(layer, changed, changed, changed, **options)
            assert after[:, : t + 1].equal(before[:, : t + 1])
            assert not after[:, t + 1 :].isclose(before[:, t + 1 :]).all(-1).any()


@pytest.mark.parametrize("name", CONDITIONAL)
def test_kernel_depends_on_the_keys_where_that_leaks_nothing(name):
    """Without this the tests above and below would pass for a layer that ignores its pool."""
    layer = build(name)
    query, key, value = inputs()
    options = {"average_attn_weights": False}
    _, before = layer(query, key, value, **options)
    key[:, 0] *= 3
    _, after = layer(query, key, value, **options)
    before, after = (x[..., 1:] / x[..., 1:].sum(-1, keepdim=True) for x in (before, after))
    assert (before - after).abs().max() > 1e-3
    masks = {"attn_mask": torch.zeros(QUERIES, KEYS, dtype=torch.bool), **options}
    _, before = layer(query, key, value, **masks)
    key[:, 0] /= 3
    _, after = layer(query, key, value, **masks)
    before, after = (x[..., 1:] / x[..., 1:].sum(-1, keepdim=True) for x in (before, after))
    assert_close(before, after)


@every_layer
@pytest.mark.parametrize("training", [False, True])
def test_query_does_not_see_a_key_that_it_may_not_attend_to(training, name):
    layer = build(name).train(training)
    query, key, value = inputs()
    ignored = torch.zeros(QUERIES, KEYS, dtype=torch.bool)
    ignored[:3, 4] = True
    changed = [x.clone() for x in (key, value)]
    for x in changed:
        x[:, 4] = 5 * x[:, 4].flip(-1)
    for mask in (ignored, torch.zeros(QUERIES, KEYS).double().masked_fill(ignored, -INF)):
        for need_weights in (False, True):
            options = {"attn_mask": mask, "need_weights": need_weights}
            before, _ = forward(layer, query, key, value, **options)
            after, _ = forward(layer, query, *changed, **options)
            assert after[:, :3].equal(before[:, :3])
            assert not after[:, 3:].isclose(before[:, 3:]).all(-1).any()


@every_layer
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_query_does_not_see_other_queries(training, need_weights, name):
    layer = build(name).train(training)
    query, key, value = inputs()
    before, _ = forward(layer, query, key, value, key_padding_mask=padding(), need_weights=need_weights)
    query[:, 2] = 5 * query[:, 2].flip(-1)
    after, _ = forward(layer, query, key, value, key_padding_mask=padding(), need_weights=need_weights)
    others = torch.arange(QUERIES) != 2
    assert after[:, others].equal(before[:, others])
    assert not after[:, 2].isclose(before[:, 2]).all(-1).any()


@every_layer
@pytest.mark.parametrize("need_weights", [False, True])
def test_row_outside_of_the_context_changes_its_own_output_only(need_weights, name):
    """Regression attends over rows: all rows ask, and only rows of the context are keys."""
    layer, x = build(name), randn(1, BATCH, KEYS, WIDTH)
    outside = (torch.arange(KEYS) >= 4).expand(BATCH, -1)
    before, _ = layer(x, x, x, key_padding_mask=outside, need_weights=need_weights)
    x[:, 5] = 5 * x[:, 5].flip(-1)
    after, _ = layer(x, x, x, key_padding_mask=outside, need_weights=need_weights)
    others = torch.arange(KEYS) != 5
    assert after[:, others].equal(before[:, others])
    assert not after[:, 5].isclose(before[:, 5]).all(-1).any()


# ----- numbers at the edge


@every_layer
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("kind", ["padding", "float padding", "pairs", "float pairs"])
def test_query_that_may_attend_to_nothing_gets_the_bias(kind, need_weights, name):
    layer = build(name).train()
    tensors = [x.requires_grad_() for x in inputs()]
    ignored = torch.zeros(BATCH, KEYS) if "padding" in kind else torch.zeros(QUERIES, KEYS)
    ignored[1] = -INF
    mask = {"key_padding_mask" if "padding" in kind else "attn_mask": ignored if "float" in kind else ignored < 0}
    out, weights = layer(*tensors, **mask, need_weights=need_weights)
    empty, full = (out[1], out[0]) if "padding" in kind else (out[:, 1], out[:, 0])
    assert empty.eq(layer.out_proj.bias).all()
    assert full.ne(layer.out_proj.bias).all()
    if need_weights:
        assert (weights[1] if "padding" in kind else weights[:, 1]).eq(0).all()
    for gradient in torch.autograd.grad(empty.sum(), tensors, retain_graph=True):
        assert gradient.eq(0).all()
    (out.square().sum() + layer.kl).backward()
    for tensor in (*tensors, *layer.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()


@one_of_each
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("size", [0.0, 1e4])
def test_zero_and_large_inputs_have_finite_gradients(size, p, name):
    kwargs = {} if name == "DotProduct" else {"p": p}
    layer = build(name, dtype=torch.float32, bias=False, **kwargs).train()
    for options in ({}, {"is_causal": True}, {"key_padding_mask": padding()}):
        tensors = [(size * x).float().requires_grad_() for x in inputs()]
        out, _ = forward(layer, *tensors, **options)
        (out.sum() + layer.kl).backward()
        assert out.isfinite().all()
        for tensor in (*tensors, *layer.parameters()):
            assert tensor.grad is None or tensor.grad.isfinite().all()


@one_of_each
@pytest.mark.parametrize("masks", ["none", "padding", "float pairs"])
def test_autocast_is_finite_and_close(masks, name):
    layer = build(name, dtype=torch.float32, moved=False).train()
    move(layer, 0.05)  # close to the start: far from it phases are large, and no two digits are enough for them
    masks = {key: mask.float() if mask.is_floating_point() else mask for key, mask in THEIR_MASKS[masks].items()}
    results = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out, weights = forward(layer, *(x.float() for x in inputs()), **masks)
            loss = out.float().square().mean() + layer.kl
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        loss.backward()
        gradients = [x.grad for x in layer.parameters() if x.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        results.append([out.float(), weights.float(), torch.cat([x.flatten() for x in gradients])])
    for half, single in zip(results[1], results[0], strict=True):
        assert (half - single).norm() < 0.05 * single.norm()


@one_of_each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_in_half_precision(dtype, name):
    """As ``bf16-true`` of a trainer has it: parameters and buffers, too."""
    layer = build(name, dtype=torch.float32, moved=False)
    move(layer, 0.05)
    expected, _ = forward(layer, *(x.float() for x in inputs()))
    layer = layer.to(dtype)
    for options in ({}, {"is_causal": True}, {"key_padding_mask": padding().float()}):
        out, _ = forward(layer.train(), *(x.to(dtype) for x in inputs()), **options)
        assert out.dtype == dtype
        (out.float().sum() + layer.kl).backward()
        assert all(x.grad is None or x.grad.isfinite().all() for x in layer.parameters())
    out, _ = forward(layer.eval(), *(x.to(dtype) for x in inputs()))
    assert (out.float() - expected).norm() < 0.05 * expected.norm()


@every_layer
def test_float64_stays_float64(name):
    layer = build(name)
    assert {x.dtype for x in layer(*inputs())} == {torch.float64}
    close = layer.float()(*(x.float() for x in inputs()))
    assert_close(close[0].double(), build(name)(*inputs())[0], rtol=1e-3, atol=1e-4)


# ----- the regulariser


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in IMPLICIT])
def test_layers_without_a_regulariser_have_zero(name):
    layer = build(name).train()
    layer(*inputs())
    assert layer.kl.shape == ()
    assert layer.kl == 0


@pytest.mark.parametrize("name", IMPLICIT)
def test_regulariser_starts_at_zero_and_has_a_graph_in_training(name):
    layer = build(name, moved=False).train()
    layer(*inputs())
    assert_close(layer.kl.detach(), torch.zeros(()).double(), rtol=0.0, atol=1e-6)
    move(layer)
    layer(*inputs())
    assert layer.kl > 0.01
    layer.kl.backward()
    spectrum = layer.core.spectrum
    for parameter in (spectrum.mean, spectrum.raw_std):
        assert parameter.grad.ne(0).all()
    if spectrum.conditional:
        assert layer.k_proj.weight.grad.ne(0).any()
    with torch.no_grad():
        layer(*inputs())
        # a leaf, which holds no graph: checkpointing may record the forward later
        assert layer.kl.is_leaf
        layer.eval()(*inputs())
        assert not layer.kl.requires_grad


def test_attention_kl_sums_over_a_model():
    layers = {name.replace(" ", "_"): build(name).train() for name in LAYERS}
    model = nn.ModuleDict({"linear": nn.Linear(2, 3).double(), "inner": nn.ModuleDict(layers)})
    assert attention_kl(model) == 0
    for layer in layers.values():
        layer(*inputs())
    total = attention_kl(model)
    assert_close(total, sum(layer.kl for layer in layers.values()))
    assert total > max(layer.kl for layer in layers.values())
    total.backward()
    assert all(layers[name.replace(" ", "_")].core.spectrum.mean.grad.ne(0).all() for name in IMPLICIT)
    assert attention_kl(layers["MIKAN"]).equal(layers["MIKAN"].kl)
    assert attention_kl(nn.Linear(2, 3)) == 0


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", IMPLICIT)
def test_checkpointing_keeps_the_gradient_of_the_regulariser(name, reentrant):
    """A reentrant checkpoint runs the forward without a graph, and anew in the backward, when the loss is made."""
    layer, gradients = build(name).train(), []
    for checkpointed in (False, True):
        layer.zero_grad()
        tensors = [x.requires_grad_() for x in inputs()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if checkpointed:
                out, _ = checkpoint(layer, *tensors, use_reentrant=reentrant)
            else:
                out, _ = layer(*tensors)
            (out.square().sum() + 3 * attention_kl(layer)).backward()
        gradients.append([x.grad for x in (*tensors, *layer.parameters())])
    assert_close(*gradients)


def test_attention_kl_before_the_first_forward_is_where_the_model_is():
    """Terms of layers that have not been called yet must not be left behind on another device."""
    model = nn.ModuleList([IKAN(4, 2), DotProduct(4, 2), MIKAN(4, 2)]).to("meta")
    assert {layer.kl.device.type for layer in model} == {"meta"}
    assert attention_kl(model).device.type == "meta"


# ----- training, copying, saving


@every_layer
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"key_padding_mask": padding()}], ids=str)
def test_every_parameter_gets_a_gradient(options, name):
    """Distributed training stops at a parameter that a step left out; zero will do, None will not."""
    layer = build(name).train()
    out, _ = forward(layer, *inputs(), **options)
    (out.square().sum() + layer.kl).backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key
        if "encoder" not in key or not options.get("is_causal"):
            assert parameter.grad.ne(0).any(), key


@every_layer
def test_loss_falls(name):
    """A row's target is another row's value, found by a key: there is something for attention to learn."""
    layer = build(name, dtype=torch.float32, moved=False).train()
    x = randn(1, 5, KEYS, WIDTH).float()
    target = x.flip(1).tanh()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
    losses = []
    for step in range(25):
        out, _ = forward(layer, x, x, x, need_weights=False, seed=step)
        loss = (out - target).square().mean() + 1e-3 * layer.kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    constant = target.var().item()
    assert sum(losses[-5:]) / 5 < 0.75 * min(losses[0], constant)


@every_layer
def test_copies_and_pickles_after_a_training_step(name):
    layer = build(name).train()
    out, _ = forward(layer, *inputs())
    (out.sum() + layer.kl).backward()
    forward(layer, *inputs())
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    expected, _ = layer.eval()(*inputs())
    layer.train()
    forward(layer, *inputs())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert twin.kl == 0
        assert twin.eval()(*inputs())[0].equal(expected)


@every_layer
def test_state_dict_brings_the_same_answers(name):
    layer, other = build(name), build(name, seed=1, moved=False)
    expected = layer(*inputs())
    assert not other(*inputs())[0].isclose(expected[0]).all()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert all(x.equal(y) for x, y in zip(other(*inputs()), expected, strict=True))


@pytest.mark.parametrize("name", IMPLICIT)
def test_evaluation_gives_the_same_answer_twice_and_training_does_not(name):
    layer = build(name)
    assert layer(*inputs())[0].equal(layer(*inputs())[0])
    layer.train()
    assert not forward(layer, *inputs(), seed=0)[0].isclose(forward(layer, *inputs(), seed=1)[0]).all()


@one_of_each
def test_dropout_acts_in_training_on_the_weights(name):
    layer, plain = build(name, dropout=0.5), build(name)
    assert layer(*inputs())[0].equal(plain(*inputs())[0])
    options = {"average_attn_weights": False}
    _, weights = forward(layer.train(), *inputs(), **options)
    _, whole = forward(plain.train(), *inputs(), **options)
    dropped = weights == 0
    assert 0.3 < dropped.double().mean() < 0.7
    assert_close(weights, (2 * whole).masked_fill(dropped, 0.0))
    out, _ = forward(layer, *inputs(), need_weights=False)
    assert not out.isclose(forward(plain, *inputs(), need_weights=False)[0]).all(-1).any()


# ----- constructors and errors


@every_layer
def test_options_reach_the_base(name):
    layer = build(name, dropout=0.25, bias=False, kdim=11, vdim=13, batch_first=False)
    assert isinstance(layer, MultiheadAttention)
    assert layer.dropout == 0.25
    assert not layer.batch_first
    assert [x.in_features for x in (layer.q_proj, layer.k_proj, layer.v_proj)] == [WIDTH, 11, 13]
    assert all(x.bias is None for x in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj))
    out, weights = layer(*(x.transpose(0, 1) for x in inputs(kdim=11, vdim=13)))
    assert out.shape == (QUERIES, BATCH, WIDTH)
    assert weights.shape == (BATCH, QUERIES, KEYS)
    assert "embed_dim=15, num_heads=3, dropout=0.25" in repr(layer)


@every_layer
def test_arguments_come_in_the_order_of_nn_multihead_attention(name):
    theirs = nn.MultiheadAttention(WIDTH, HEADS, 0.25, False, False, False, 11, 13, True, "meta", torch.float64)
    layer = LAYERS[name](WIDTH, HEADS, 0.25, False, False, False, 11, 13, True, "meta", torch.float64)
    assert (layer.dropout, layer.batch_first) == (theirs.dropout, theirs.batch_first) == (0.25, True)
    assert layer.q_proj.bias is theirs.in_proj_bias is None
    widths = (layer.k_proj.in_features, layer.v_proj.in_features)
    assert widths == (theirs.kdim, theirs.vdim) == (11, 13)
    assert {x.device.type for x in layer.state_dict().values()} == {"meta"}
    assert {x.dtype for x in layer.state_dict().values()} == {torch.float64}
    assert LAYERS[name](WIDTH, HEADS).batch_first is nn.MultiheadAttention(WIDTH, HEADS).batch_first is False


@pytest.mark.parametrize("kind", [IKANDirect, IKAN, MIKAN])
def test_options_reach_the_core(kind):
    layer = kind(WIDTH, HEADS, p=3, num_samples=11, stationary=True, init="paper", backend="reference")
    assert (layer.core.p, layer.core.backend) == (3.0, "reference")
    features, _ = layer.core.spectrum(None)
    assert [x.shape for x in features.frequencies] == [(HEADS, 11, WIDTH // HEADS)]
    defaults = kind(WIDTH, HEADS).core
    assert (defaults.p, defaults.backend) == (2.0, "auto")
    assert [x.shape for x in defaults.spectrum(None)[0].frequencies] == [(HEADS, 64, WIDTH // HEADS)] * 2
    if kind is not IKANDirect:
        spectrum = kind(WIDTH, HEADS, prior_std=0.5, conditional=False).core.spectrum
        assert (spectrum.prior_std, spectrum.conditional) == (0.5, False)
        assert (spectrum.copula is not None) == (kind is MIKAN)
        assert not any("encoder" in name for name, _ in spectrum.named_parameters())


@pytest.mark.parametrize("init", ["softmax", "rbf", "wide", "paper"])
@pytest.mark.parametrize("kind", [IKANDirect, IKAN, MIKAN])
def test_backends_agree(kind, init):
    dense, reference = (
        kind(WIDTH, HEADS, **few, init=init, backend=backend, batch_first=True).double().eval()
        for backend in ("dense", "reference")
    )
    reference.load_state_dict(dense.state_dict())
    for masks in THEIR_MASKS.values():
        assert_close(dense(*inputs(), **masks), reference(*inputs(), **masks))


def test_explicit_kernel_takes_any_callable():
    layer = ExplicitKernel(WIDTH, HEADS, kernel=PeriodicKernel, p=3)
    assert isinstance(layer.core.kernel, PeriodicKernel)
    assert layer.core.kernel.lengthscale.shape == (HEADS, 1, 1)
    assert layer.core.p == 3.0


def test_base_takes_a_core():
    class Mean(nn.Module):
        def forward(self, query, key, value, mask, **kwargs):
            return value.mean(-2, keepdim=True).expand_as(query), None

    sizes = []
    layer = MultiheadAttention(WIDTH, HEADS, batch_first=True, core=lambda *args: sizes.append(args) or Mean()).double()
    out, weights = layer(*inputs())
    assert sizes == [(HEADS, WIDTH // HEADS)]
    assert weights is None
    assert_close(out, layer.out_proj(layer.v_proj(inputs()[2].mean(1, keepdim=True))).expand_as(out))


@pytest.mark.parametrize("kind", [DotProduct, RBF, ExplicitKernel, IKANDirect, IKAN, MIKAN])
@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((15, 4), {}, "positive multiple of num_heads, got embed_dim=15, num_heads=4"),
        ((0, 3), {}, "positive multiple of num_heads, got embed_dim=0, num_heads=3"),
        ((15, 0), {}, "positive multiple of num_heads, got embed_dim=15, num_heads=0"),
        ((15, -3), {}, "positive multiple of num_heads, got embed_dim=15, num_heads=-3"),
        ((15, 3), {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
        ((15, 3), {"dropout": -0.5}, r"dropout must be in \[0, 1\), got -0\.5"),
        ((15, 3), {"dropout": NAN}, r"dropout must be in \[0, 1\), got nan"),
        ((15, 3), {"p": 0.5}, r"p must be at least 1 .* got 0\.5"),
        ((15, 3), {"p": NAN}, "p must be at least 1 .* got nan"),
        ((15, 3), {"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
        ((15, 3), {"init": "zeros"}, "init must be one of 'softmax', 'rbf', 'wide', 'paper', got 'zeros'"),
        ((15, 3), {"smoothing": 0.5}, "smoothing goes with init='rbf' alone, got smoothing=0.5 with init='softmax'"),
        ((15, 3), {"init": "rbf", "smoothing": 1.0}, r"smoothing must be in \[0, 1\), .* got 1\.0"),
        ((15, 3), {"init": "rbf", "smoothing": -0.1}, r"smoothing must be in \[0, 1\), .* got -0\.1"),
        ((15, 3), {"p": "large"}, "p must be at least 1 .* got 'large'"),
        ((15, 3), {"backend": "fast"}, "backend must be one of .*, got 'fast'"),
        ((15, 3), {"add_bias_kv": True}, "add_bias_kv must be False"),
        ((15, 3), {"add_zero_attn": True}, "add_zero_attn must be False"),
        ((15, 3), {"prior_std": 0.0}, r"prior_std must be positive and finite, got 0\.0"),
    ],
)
def test_constructor_names_the_argument_and_what_came(args, kwargs, message, kind):
    takes = {"p": kind is not DotProduct, "prior_std": kind in (IKAN, MIKAN)}
    takes["num_samples"] = takes["init"] = takes["smoothing"] = kind in (IKANDirect, IKAN, MIKAN)
    takes["backend"] = kind is not ExplicitKernel
    if all(takes.get(name, True) for name in kwargs):
        with pytest.raises(ValueError, match=message):
            kind(*args, **kwargs)
    else:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(kwargs))}'"):
            kind(*args, **kwargs)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch calls them a prototype
        nested = torch.nested.nested_tensor([torch.randn(3, WIDTH), torch.randn(2, WIDTH)], layout=layout)
    with pytest.raises(ValueError, match="nested tensors are not supported; pad them with"):
        IKAN(WIDTH, HEADS)(nested, nested, nested)


@pytest.mark.parametrize("kind", [IKANDirect, IKAN, MIKAN])
def test_unknown_backend_is_refused(kind):
    with pytest.raises(ValueError, match=r"backend must be .*, got 'fast'"):
        kind(WIDTH, HEADS, backend="fast").double()(*inputs())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 5, 15), (2, 7, 15), (7, 15)), r"must all have 3 axes, or 2 without a batch, .* value \(7, 15\)"),
        (((15,), (15,), (15,)), r"must all have 3 axes, or 2 without a batch, got query \(15,\)"),
        (((2, 2, 5, 15),) * 3, "must all have 3 axes, or 2 without a batch"),
        (((2, 5, 13), (2, 7, 11), (2, 7, 13)), r"must be \(15, 11, 13\), got query \(2, 5, 13\)"),
        (((2, 5, 15), (2, 7, 15), (2, 7, 13)), r"must be \(15, 11, 13\), got .* key \(2, 7, 15\)"),
        (((2, 5, 15), (2, 7, 11), (2, 7, 11)), r"must be \(15, 11, 13\), got .* value \(2, 7, 11\)"),
        (((2, 5, 15), (2, 7, 11), (2, 5, 13)), r"the same length, .* key \(2, 7, 11\), value \(2, 5, 13\)"),
        (((3, 5, 15), (2, 7, 11), (2, 7, 13)), r"all three the same batch, got query \(3, 5, 15\)"),
        (((5, 15), (7, 11), (5, 13)), r"the same length, .* key \(7, 11\), value \(5, 13\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    layer = DotProduct(WIDTH, HEADS, kdim=11, vdim=13, batch_first=True)
    with pytest.raises(ValueError, match=message):
        layer(*(torch.ones(shape) for shape in shapes))


def test_batches_that_differ_are_refused_with_the_batch_second():
    layer = DotProduct(WIDTH, HEADS, batch_first=False)
    with pytest.raises(ValueError, match="all three the same batch"):
        layer(torch.ones(5, 3, 15), torch.ones(7, 2, 15), torch.ones(7, 2, 15))
    assert layer(torch.ones(5, 2, 15), torch.ones(7, 2, 15), torch.ones(7, 2, 15))[0].shape == (5, 2, 15)


@pytest.mark.parametrize(
    ("mask", "shape", "message"),
    [
        ("key_padding_mask", (7, 2), r"shape \(batch, keys\) = \(2, 7\), got \(7, 2\)"),
        ("key_padding_mask", (2, 5), r"shape \(batch, keys\) = \(2, 7\), got \(2, 5\)"),
        ("key_padding_mask", (7,), r"shape \(batch, keys\) = \(2, 7\), got \(7,\)"),
        ("attn_mask", (7, 5), r"\(queries, keys\) = \(5, 7\) or .* = \(6, 5, 7\), got \(7, 5\)"),
        ("attn_mask", (2, 5, 7), r"\(batch \* heads, queries, keys\) = \(6, 5, 7\), got \(2, 5, 7\)"),
        ("attn_mask", (2, 3, 5, 7), r"= \(6, 5, 7\), got \(2, 3, 5, 7\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, shape, message):
    layer = build("DotProduct")
    with pytest.raises(ValueError, match=f"{mask} must have .*{message}"):
        layer(*inputs(), **{mask: torch.zeros(shape, dtype=torch.bool)})


@pytest.mark.parametrize(("mask", "shape"), [("key_padding_mask", (2, 7)), ("attn_mask", (5, 7))])
@pytest.mark.parametrize("dtype", [torch.long, torch.uint8])
def test_masks_of_integers_are_refused(dtype, mask, shape):
    """0 and 1 could mean either of two things."""
    with pytest.raises(TypeError, match=rf"{mask} must be boolean \(True = ignore\) or floating .* got {dtype}"):
        build("DotProduct")(*inputs(), **{mask: torch.zeros(shape, dtype=dtype)})


COMPILED = ["DotProduct", "RBF", "RBF learned", "IKANDirect stationary", "IKANDirect exact", "IKAN exact", "MIKAN"]


@pytest.mark.parametrize("name", COMPILED)
def test_a_training_step_compiles_without_a_break_in_the_graph(name):
    layer, x = build(name).train(), randn(1, BATCH, QUERIES, WIDTH).requires_grad_()

    def step(attention: nn.Module) -> list[Tensor | None]:
        torch.manual_seed(0)
        out, _ = attention(x, x, x, need_weights=False, is_causal="IKANDirect" in name)
        loss = (out * randn(2, *out.shape)).sum() + attention_kl(layer)
        return [out, *torch.autograd.grad(loss, [x, *layer.parameters()], allow_unused=True)]

    torch._dynamo.reset()
    assert_close(step(torch.compile(layer, backend="eager", fullgraph=True)), step(layer))


def test_attributes_that_others_read_of_pytorchs_layer():
    theirs, ours = nn.MultiheadAttention(12, 2, kdim=5, vdim=7), DotProduct(12, 2, kdim=5, vdim=7)
    for name in ("embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout", "batch_first", "bias_k", "bias_v"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.add_zero_attn is theirs.add_zero_attn
