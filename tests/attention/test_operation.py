"""``kernel_attention``: every backend of the registry against the definition, in value and gradient."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from definition import (
    FAMILY,
    INF,
    MASKS,
    NAN,
    SHARED,
    by_definition,
    definition,
    inputs,
    operation,
    pairs_of,
    randn,
    serves,
    some,
    with_gradients,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from ika_lightning.attention import kernel_attention
from ika_lightning.attention.backends import BACKENDS

every_pair = pytest.mark.parametrize(("backend", "family"), pairs_of())
every_pair_with_weights = pytest.mark.parametrize(("backend", "family"), pairs_of(return_weights=True))
every_family = pytest.mark.parametrize("family", FAMILY)


def served(masks, sizes=((5, 7, False),)) -> list[tuple[str, str, str, tuple[int, int, bool]]]:
    """Backend, member of the family, mask and sizes of all calls that are served."""
    return [(*pair, mask, size) for mask in masks for size in sizes for pair in pairs_of(mask=mask, is_causal=size[2])]


def test_who_serves_what():
    """So that no test below leaves out a backend because it has begun to refuse."""
    weights = {"return_weights": True}
    expected = {
        "features": ({"dense", "reference", "chunked", "linear"}, {"dense", "reference"}, {"dense", "reference"}),
        "exponent": ({"dense", "reference", "sdpa"}, {"dense", "reference", "sdpa"}, {"dense", "reference"}),
        "both": ({"dense", "reference", "chunked"}, {"dense", "reference"}, {"dense", "reference"}),
    }
    for family, (shared, pairs, with_weights) in expected.items():
        for options, wanted in (
            *((({"mask": mask, "is_causal": causal}), shared) for mask in SHARED for causal in (False, True)),
            *(({"mask": mask}, pairs) for mask in MASKS if mask not in SHARED),
            ({"dropout_p": 0.1}, pairs),
            (weights, with_weights),
        ):
            assert {name for name in BACKENDS if serves(name, family, **options)} == wanted, (family, options)


SIZES = [(5, 7, False), (7, 3, False), (5, 5, True), (3, 7, True), (7, 3, True)]


@pytest.mark.parametrize(("backend", "family", "mask", "sizes"), served(MASKS, SIZES))
def test_value_and_gradients_are_those_of_the_definition(backend, family, mask, sizes):
    n, m, is_causal = sizes
    mask = MASKS[mask](n, m)
    parts = inputs(family, n=n, m=m, spread=2.0)
    fixed = {}
    if mask is not None and mask.is_floating_point() and backend != "sdpa":
        # a learned bias needs its gradient, too
        parts["attn_mask"] = mask
    else:
        fixed["attn_mask"] = mask
    ours = with_gradients(operation(parts, **fixed, is_causal=is_causal, backend=backend), *parts.values())
    expected = with_gradients(definition(parts, **fixed, is_causal=is_causal), *parts.values())
    assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("backend", "family"), pairs_of(mask="keys"))
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.usefixtures("tile")
def test_tiles_are_those_of_the_definition(is_causal, backend, family):
    parts = inputs(family, n=5, m=7, spread=2.0)
    options = {"attn_mask": MASKS["float keys"](5, 7), "is_causal": is_causal}
    ours = with_gradients(operation(parts, **options, backend=backend), *parts.values())
    assert_close(ours, with_gradients(definition(parts, **options), *parts.values()), rtol=1e-9, atol=1e-11)


@every_family
@pytest.mark.parametrize(
    ("query_lead", "key_lead", "value_lead", "magnitude_lead", "mask_shape"),
    [
        ((), (), (), (), (5, 7)),
        ((), (), (), None, None),
        ((3,), (3,), (2, 3), (2, 3), (2, 1, 1, 7)),
        ((3,), (3,), (2, 3), (), None),
        ((2, 1), (3,), (), (2, 3), (5, 7)),
        ((2, 3), (1, 1), (2, 1), (1, 3), (2, 1, 5, 7)),
        ((3,), (3,), (3,), (3,), (2, 1, 5, 7)),
        ((3,), (3,), (3,), (3,), (2, 1, 1, 7)),
    ],
)
def test_leading_axes_broadcast(query_lead, key_lead, value_lead, magnitude_lead, mask_shape, family):
    lead = {"query": query_lead, "key": key_lead, "value": value_lead, "key_log_magnitude": magnitude_lead}
    lead |= {"query_features": key_lead, "key_features": query_lead} if family == "both" else {}
    lead |= {"query_features": query_lead, "key_features": key_lead} if family == "features" else {}
    parts = {
        name: randn(number, *lead[name], *x.shape[2:])
        for number, (name, x) in enumerate(inputs(family).items())
        if lead[name] is not None
    }
    mask = None if mask_shape is None else some(5, *mask_shape)
    expected = with_gradients(definition(parts, attn_mask=mask), *parts.values())
    shared = mask is None or mask.size(-2) == 1
    backends = [name for name in BACKENDS if serves(name, family, mask="keys" if shared else "pairs")]
    for backend in (*backends, "auto"):
        ours = with_gradients(operation(parts, attn_mask=mask, backend=backend), *parts.values())
        assert_close(ours, expected, msg=lambda message, backend=backend: f"{backend}: {message}")


@every_pair_with_weights
@pytest.mark.parametrize("mask", MASKS)
def test_weights_are_those_that_average_the_values(mask, backend, family):
    mask, parts = MASKS[mask](5, 7), inputs(family)
    options = {"attn_mask": mask, "backend": backend}
    out, weights = operation(parts, **options, return_weights=True)(*parts.values())
    expected_out, expected_weights = by_definition(**parts, attn_mask=mask)
    assert_close((out, weights), (expected_out, expected_weights))
    assert_close(out, weights @ parts["value"])
    assert_close(out, operation(parts, **options)(*parts.values()))
    attends = expected_weights.any(-1)
    assert attends.any()
    assert_close(weights.sum(-1), attends.double())


@every_family
def test_weights_have_gradients(family):
    parts = inputs(family)
    ours = with_gradients(lambda *x: operation(parts, return_weights=True)(*x)[1], *parts.values())
    expected = with_gradients(lambda *x: by_definition(**dict(zip(parts, x, strict=True)))[1], *parts.values())
    assert_close(ours, expected)


@every_family
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"dropout_p": 0.1}, {"return_weights": True}], ids=str)
@pytest.mark.parametrize(("n", "m"), [(5, 7), (61, 71)])
def test_auto_serves_every_call(n, m, options, family):
    parts = inputs(family, lead=(), n=n, m=m)
    # PyTorch's own attention draws its dropout in its own order
    same = "reference" if options.get("dropout_p", 0.0) == 0.0 or family != "exponent" else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = operation(parts, **options)(*parts.values())
        torch.manual_seed(0)
        assert_close(ours, operation(parts, **options, backend=same)(*parts.values()))


@pytest.mark.parametrize(("backend", "family"), [("chunked", "features"), ("chunked", "both"), ("linear", "features")])
@pytest.mark.parametrize(
    "options",
    [
        {"attn_mask": some(0, 5, 7)},
        {"attn_mask": randn(0, 5, 7)},
        {"attn_mask": some(0, 5, 7), "is_causal": True},
        {"dropout_p": 0.1},
        {"return_weights": True},
    ],
    ids=["pairs", "float pairs", "causal pairs", "dropout", "weights"],
)
def test_what_sums_cannot_serve_is_refused_by_name_and_never_chosen(options, backend, family):
    parts = inputs(family)
    with pytest.raises(ValueError, match=rf"backend '{backend}' serves calls in which .* take 'auto' or 'dense'"):
        operation(parts, **options, backend=backend)(*parts.values())
    operation(parts, **options, backend="auto")(*parts.values())


@pytest.mark.parametrize(
    ("backend", "family", "options", "message"),
    [
        ("linear", "both", {}, r"'linear' has no place for an exponent, .*init='softmax', or smoothing.*init='rbf'"),
        ("linear", "exponent", {}, "'linear' has no place for an exponent"),
        ("chunked", "exponent", {}, "'chunked' serves calls with features; 'sdpa' is what"),
        ("sdpa", "features", {}, "'sdpa' has no place for features"),
        ("sdpa", "both", {}, "'sdpa' has no place for features"),
        ("sdpa", "exponent", {"return_weights": True}, r"'sdpa' has no weights to return \(a layer's need_weights\)"),
    ],
)
def test_member_of_the_family_that_a_backend_cannot_serve_is_refused(backend, family, options, message):
    parts = inputs(family)
    with pytest.raises(ValueError, match=rf"backend {message}.*; take 'auto' or 'dense' for this call$"):
        operation(parts, **options, backend=backend)(*parts.values())


NOTHING = {
    "keys": torch.zeros(2, 1, 1, 7, dtype=torch.bool),
    "float keys": torch.full((1, 7), -INF),
    "pairs": torch.zeros(5, 7, dtype=torch.bool),
    "float pairs": torch.full((5, 7), -INF),
    "one row": torch.full((5, 7), -INF, dtype=torch.float64).index_fill(0, torch.tensor([0, 1, 3, 4]), 0.0),
}


@pytest.mark.parametrize("mask", NOTHING)
@every_pair_with_weights
def test_query_that_may_attend_to_nothing_gets_zeros_and_zero_gradient(mask, backend, family):
    parts = {name: x.requires_grad_() for name, x in inputs(family).items()}
    options = {"attn_mask": NOTHING[mask], "backend": backend}
    out, weights = operation(parts, **options, return_weights=True)(*parts.values())
    alone = operation(parts, **options)(*parts.values())
    for x in (out, weights, alone):
        assert x[..., 2, :].eq(0).all()
        assert x[..., 1, :].ne(0).all() == (mask == "one row")
    loss = (out + alone)[..., 2, :].sum() + weights[..., 2, :].square().sum()
    for gradient in torch.autograd.grad(loss, tuple(parts.values())):
        assert gradient.eq(0).all()


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", ["keys", "float keys"])
@every_pair
@pytest.mark.usefixtures("tile")
def test_no_backend_gives_more_than_zeros_where_nothing_may_be_attended_to(mask, is_causal, backend, family):
    parts = inputs(family)
    options = {"attn_mask": NOTHING[mask], "is_causal": is_causal, "backend": backend}
    assert all(x.eq(0).all() for x in with_gradients(operation(parts, **options), *parts.values()))


@pytest.mark.parametrize(
    ("backend", "family", "mask"),
    [
        *((*pair, mask) for mask in ("causal", "causal and keys") for pair in pairs_of(is_causal=True)),
        *((*pair, mask) for mask in ("pairs", "float pairs") for pair in pairs_of(mask=mask)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("tile")
def test_hidden_key_of_a_far_larger_magnitude_leaves_a_row_as_it_is(mask, dtype, backend, family):
    """One shift for all rows would make 0 / 0 of the rows that do not see the largest magnitude."""
    parts = {name: x.to(dtype) for name, x in inputs(family, lead=(3,), n=5, m=5).items()}
    parts["key_log_magnitude"] = torch.tensor([0.0, -2e3, 1e3, 5.0, 3e3], dtype=dtype)
    pairs = torch.ones(5, 5, dtype=torch.bool).tril()
    options = {
        "causal": {"is_causal": True},
        "causal and keys": {"is_causal": True, "attn_mask": torch.ones(1, 5, dtype=torch.bool)},
        "pairs": {"attn_mask": pairs},
        "float pairs": {"attn_mask": torch.zeros(5, 5, dtype=dtype).masked_fill(~pairs, -INF)},
    }[mask]
    ours = with_gradients(operation(parts, **options, backend=backend), *parts.values())
    doubles = (x.double() for x in parts.values())
    expected = with_gradients(definition(parts, is_causal=True), *doubles)
    # row 1 sees magnitudes 0 and -2000: it is the value of key 0, to the last digit
    assert_close(ours[0][:, 1], parts["value"][:, 0])
    # float32 knows a thousand to four digits behind the point
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 and "query" in parts else {}
    assert_close(ours, [x.to(dtype) for x in expected], **tolerance)


@pytest.mark.parametrize(("backend", "family"), [pair for pair in pairs_of() if pair[1] != "features"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("size", [30.0, 1e3])
@pytest.mark.usefixtures("tile")
def test_exponents_that_no_shift_for_all_rows_would_serve(size, is_causal, backend, family):
    """Rows whose largest exponents are thousands apart, and far below the product of the norms."""
    parts = inputs(family, lead=(3,), n=7, m=7)
    # the first query and its negative: what one row likes best is what another likes least
    parts["query"][:, 1::2] = -parts["query"][:, :-1:2]
    parts["query"] *= size
    options = {"is_causal": is_causal}
    expected = with_gradients(definition(parts, **options), *parts.values())
    assert_close(with_gradients(operation(parts, **options, backend=backend), *parts.values()), expected)
    singles = [x.float() for x in parts.values()]
    ours = with_gradients(operation(parts, **options, backend=backend), *singles)
    assert all(x.isfinite().all() for x in ours)
    # exponents themselves have rounding errors of 1e-7 of their size
    assert_close(ours[0].double(), expected[0], rtol=0.0, atol=1e-5 * size)


@pytest.mark.parametrize(("backend", "family"), [pair for pair in pairs_of() if pair[1] != "exponent"])
@pytest.mark.parametrize("floor", [0.0, 1e-5, 0.3, 17.0])
def test_floor_is_added_to_the_squared_similarity(floor, backend, family):
    parts = inputs(family)
    ours = with_gradients(operation(parts, floor=floor, backend=backend), *parts.values())
    expected = with_gradients(definition(parts, floor=floor), *parts.values())
    assert_close(ours, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("backend", ["dense", "reference"])
def test_query_orthogonal_to_all_keys_weighs_by_magnitude(backend):
    query, key = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0], [0.0, -2.0], [0.0, 0.0]]).double()
    log_magnitude = torch.tensor([1.0, 2.0, 4.0]).log().double()
    _, weights = kernel_attention(query, key, torch.eye(3), log_magnitude, backend=backend, return_weights=True)
    assert_close(weights, torch.tensor([[1.0, 2.0, 4.0]]) / 7)


@pytest.mark.parametrize(
    ("backend", "family"), [pair for pair in pairs_of(return_weights=True) if pair[1] != "exponent"]
)
@pytest.mark.parametrize("shared", [True, False], ids=["keys", "pairs"])
def test_without_a_floor_a_key_without_similarity_has_no_weight(shared, backend, family):
    parts = {"query_features": torch.eye(2).double(), "key_features": torch.eye(3, 2).double()}
    if family == "both":
        parts |= {"query": randn(1, 2, 5), "key": randn(2, 3, 5)}
    parts["value"] = randn(0, 3, 5)
    mask = torch.ones(1 if shared else 2, 3, dtype=torch.bool)
    ours = with_gradients(operation(parts, attn_mask=mask, floor=0.0, backend=backend), *parts.values())
    assert_close(ours[0], parts["value"][:2])
    assert all(x.isfinite().all() for x in ours)


@every_pair_with_weights
@pytest.mark.parametrize("masked", [False, True])
def test_dropout_drops_weights_and_scales_up_the_others(masked, backend, family):
    mask, p, draws = some(13, 5, 7) if masked else None, 0.3, 4000
    one = inputs(family, lead=())
    parts = {name: x.expand(draws, *x.shape) for name, x in one.items()}
    options = {"attn_mask": mask, "dropout_p": p, "backend": backend}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out, weights = operation(parts, **options, return_weights=True)(*parts.values())
        torch.manual_seed(0)
        assert out.equal(operation(parts, **options)(*parts.values()))
    _, expected = by_definition(**one, attn_mask=mask)
    assert_close(out, weights @ parts["value"])
    dropped = weights == 0
    assert_close(weights, (expected / (1 - p)).expand_as(weights).masked_fill(dropped, 0.0))
    rate = dropped[:, expected > 0].double().mean()
    assert abs(rate - p) < 0.02
    # the mean over draws is the weight itself, within five standard errors
    assert ((weights.mean(0) - expected).abs() <= 5 * expected * (p / (1 - p) / draws) ** 0.5).all()


def test_dropout_of_pytorchs_own_attention():
    one, p, draws = inputs("exponent", lead=()), 0.3, 4000
    parts = {name: x.expand(draws, *x.shape) for name, x in one.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = operation(parts, dropout_p=p, backend="sdpa")(*parts.values())
    expected = by_definition(**one)[0]
    assert not out[0].isclose(out[1]).all(-1).any()
    assert ((out.mean(0) - expected).abs() < 5 * out.std(0) / draws**0.5).all()


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("backend", "family", "mask"),
    [
        *((*pair, mask) for mask in ("keys", "float keys") for pair in pairs_of(mask=mask)),
        *((*pair, mask) for mask in ("pairs", "float pairs") for pair in pairs_of(mask=mask)),
        *((*pair, "beyond the last causal row") for pair in pairs_of(is_causal=True)),
    ],
)
def test_keys_that_nobody_may_attend_to_have_no_influence(mask, poison, backend, family):
    """Padding may hold anything, and zero times NaN is NaN."""
    parts = inputs(family, lead=(3,), n=5, m=7)
    hidden = torch.arange(7) >= 5
    pairs = some(30, 5, 7).masked_fill(hidden, False)
    options = {
        "keys": {"attn_mask": ~hidden.unsqueeze(0)},
        "pairs": {"attn_mask": pairs},
        "float keys": {"attn_mask": torch.zeros(1, 7).masked_fill(hidden, -INF)},
        "float pairs": {"attn_mask": randn(31, 5, 7).masked_fill(~pairs, -INF)},
        "beyond the last causal row": {"is_causal": True},
    }[mask]
    poisoned = {}
    for name, x in parts.items():
        of_key = hidden if name == "key_log_magnitude" else hidden.unsqueeze(-1)
        poisoned[name] = x if "query" in name else x.masked_fill(of_key, poison)
    for return_weights in (False, True) if serves(backend, family, return_weights=True) else (False,):
        attend = operation(parts, **options, backend=backend, return_weights=return_weights)

        def joined(*tensors, attend=attend):
            result = attend(*tensors)
            return result if isinstance(result, Tensor) else torch.cat(result, -1)

        assert_close(with_gradients(joined, *poisoned.values()), with_gradients(joined, *parts.values()))


@every_pair
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, backend, family):
    halves = {name: x.to(dtype) for name, x in inputs(family, spread=3.0).items()}
    for return_weights in (False, True) if serves(backend, family, return_weights=True) else (False,):
        attend = operation(halves, is_causal=True, backend=backend, return_weights=return_weights)
        ours, expected = attend(*halves.values()), attend(*(x.float() for x in halves.values()))
        ours, expected = (x if return_weights else (x,) for x in (ours, expected))
        for x, y in zip(ours, expected, strict=True):
            assert x.dtype == dtype
            assert x.equal(y.to(dtype))


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_does_not_reach_the_computation(dtype, family):
    parts = {name: x.to(dtype) for name, x in inputs(family).items()}
    with torch.autocast("cpu", torch.bfloat16):
        inside = operation(parts)(*parts.values())
    assert inside.dtype == dtype
    assert inside.equal(operation(parts)(*parts.values()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("bias_dtype", [torch.float16, torch.float32, torch.float64])
@every_pair_with_weights
def test_result_has_the_dtype_of_value_whatever_the_mask_has(backend, family, bias_dtype, dtype):
    parts = {name: x.to(dtype) for name, x in inputs(family).items()}
    # exact in every dtype
    bias = torch.arange(35.0).view(5, 7).remainder(3).to(bias_dtype)
    out, weights = operation(parts, attn_mask=bias, backend=backend, return_weights=True)(*parts.values())
    assert out.dtype == weights.dtype == dtype
    assert out.equal(operation(parts, attn_mask=bias.double(), backend=backend)(*parts.values()))


@pytest.mark.parametrize(
    ("backend", "family", "mask"),
    [
        *((*pair, mask) for mask in ("none", "keys") for pair in pairs_of(mask=mask)),
        *((*pair, "pairs") for pair in pairs_of(mask="pairs")),
        *((*pair, "causal") for pair in pairs_of(is_causal=True)),
    ],
)
@pytest.mark.parametrize(
    ("lead", "n", "m"),
    [((3,), 0, 7), ((3,), 5, 0), ((3,), 0, 0), ((3,), 1, 7), ((3,), 5, 1), ((0,), 5, 7), ((3,), 1, 1)],
)
def test_smallest_sizes(lead, n, m, backend, family, mask):
    options = {
        "none": {},
        "keys": {"attn_mask": torch.ones(1, m, dtype=torch.bool)},
        "pairs": {"attn_mask": torch.ones(n, m, dtype=torch.bool)},
        "causal": {"is_causal": True},
    }[mask]
    parts = inputs(family, lead=lead, n=n, m=m)
    ours = with_gradients(operation(parts, **options, backend=backend), *parts.values())
    assert ours[0].shape == (*lead, n, 4)
    if serves(backend, family, return_weights=True):
        _, weights = operation(parts, **options, backend=backend, return_weights=True)(*parts.values())
        assert weights.shape == (*lead, n, m)
    if m == 0:
        assert all(x.eq(0).all() for x in ours)
    elif n and lead[0]:
        expected = with_gradients(definition(parts, is_causal=mask == "causal"), *parts.values())
        assert_close(ours, expected)


@every_pair
def test_memory_layout_does_not_matter(backend, family):
    parts = inputs(family)
    strided = [x.movedim(0, -1).contiguous().movedim(-1, 0) for x in parts.values()]
    assert not any(x.is_contiguous() for x in strided)
    mask = some(13, 7, 5 if serves(backend, family, mask="pairs") else 1).mT
    attend = operation(parts, attn_mask=mask, is_causal=True, backend=backend)
    ours, expected = with_gradients(attend, *strided), with_gradients(attend, *parts.values())
    assert_close(ours, expected, rtol=1e-11, atol=1e-12)


@every_pair
def test_a_common_factor_of_the_magnitudes_cancels(backend, family):
    parts = inputs(family)
    attend = operation(parts, is_causal=True, backend=backend)
    expected = attend(*parts.values())
    parts["key_log_magnitude"] += 1e4
    assert_close(attend(*parts.values()), expected)


@every_family
@pytest.mark.parametrize("return_weights", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradcheck(is_causal, return_weights, family):
    parts = {name: x.requires_grad_() for name, x in inputs(family, lead=(), n=3, m=3, r=2, d=2, e=2).items()}
    attend = operation(parts, is_causal=is_causal, return_weights=return_weights)
    assert torch.autograd.gradcheck(attend, tuple(parts.values()))


@pytest.mark.parametrize("is_causal", [False, True])
@every_family
def test_second_derivatives_of_dense(is_causal, family):
    parts = {name: x.requires_grad_() for name, x in inputs(family, lead=(), n=2, m=3, r=2, d=2, e=2).items()}
    attend = operation(parts, is_causal=is_causal, backend="dense")
    assert torch.autograd.gradgradcheck(attend, tuple(parts.values()))


def twice(attend, parts) -> list[Tensor]:
    """The gradients of a gradient penalty, and of a loss beside it."""
    tensors = [x.detach().requires_grad_() for x in parts.values()]
    out = attend(*tensors)
    loss = (out.sin() * randn(98, *out.shape)).sum()
    gradients = torch.autograd.grad(loss, tensors, create_graph=True)
    penalty = sum((x * randn(90 + k, *x.shape)).sum() for k, x in enumerate(gradients))
    return list(torch.autograd.grad(loss + penalty, tensors))


@pytest.mark.parametrize(("backend", "family"), [pair for pair in pairs_of() if pair[0] not in ("sdpa", "dense")])
@pytest.mark.parametrize("mask", ["none", "float keys", "nothing"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_second_derivatives_are_those_of_dense(is_causal, mask, backend, family, monkeypatch):
    """Whatever the size of a call: its derivative must not depend on who computes it."""
    parts = inputs(family, spread=2.0)
    options = {"is_causal": is_causal, "attn_mask": {**MASKS, "nothing": lambda n, m: NOTHING["keys"]}[mask](5, 7)}
    expected = twice(operation(parts, **options, backend="dense"), parts)
    assert any(x.ne(0).any() for x in expected) == (mask != "nothing")
    assert_close(twice(operation(parts, **options, backend=backend), parts), expected)


@pytest.mark.parametrize("is_causal", [False, True])
def test_second_derivatives_of_sdpa_take_the_plain_kernel_of_pytorch(is_causal):
    """Its fused kernels have none, on a call of any size; which kernel it takes is the user's to say."""
    parts = inputs("exponent", spread=2.0)
    expected = twice(operation(parts, is_causal=is_causal, backend="dense"), parts)
    attend = operation(parts, is_causal=is_causal, backend="sdpa")
    with sdpa_kernel(SDPBackend.MATH):
        assert_close(twice(attend, parts), expected)


@every_family
@settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    # a size of tiles serves all examples
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lead=st.lists(st.integers(1, 2), max_size=2),
    n=st.integers(1, 7),
    m=st.integers(1, 7),
    r=st.integers(1, 5),
    d=st.integers(1, 3),
    mask=st.sampled_from(["none", "keys", "pairs", "float keys", "float pairs"]),
    is_causal=st.booleans(),
    spread=st.sampled_from([0.0, 1.0, 1e2, 1e4]),
    steep=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_backends_are_the_reference(tile, family, lead, n, m, r, d, mask, is_causal, spread, steep, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    sizes = {"query_features": (n, r), "key_features": (m, r), "query": (n, d), "key": (m, d)}
    parts = {name: draw(*lead, *sizes[name]) for name in FAMILY[family]}
    parts |= {"value": draw(*lead, m, 3), "key_log_magnitude": spread * draw(*lead, m)}
    if "query" in parts:
        parts["query"] *= steep
    rows = n if "pairs" in mask else 1
    attn_mask = None if mask == "none" else draw(rows, m) > -0.5
    if "float" in mask:
        attn_mask = (spread * draw(rows, m)).masked_fill(~attn_mask, -INF)

    def attend(backend):
        options = {"attn_mask": attn_mask, "is_causal": is_causal, "backend": backend}
        return with_gradients(operation(parts, **options), *parts.values())

    reference = attend("reference")
    kind = "pairs" if attn_mask is not None and attn_mask.size(-2) != 1 else "keys"
    for backend in BACKENDS:
        if backend != "reference" and serves(backend, family, mask=kind, is_causal=is_causal):
            # The gradient in a feature carries up to 2 / sqrt(floor), and with it the rounding. In "linear" a small
            # similarity loses digits when it is a sum of products of both signs.
            loose = 10 if backend == "linear" else 1
            assert_close(
                attend(backend), reference, rtol=loose * 1e-8, atol=loose * 1e-9,
                msg=lambda message, backend=backend: f"{backend}: {message}",
            )  # fmt: skip


@every_pair
@pytest.mark.usefixtures("tile")
def test_the_future_changes_nothing(backend, family):
    """Bit by bit: in the outputs of the past, and in the gradients of a loss on the past."""
    n, t = 11, 6
    tensors = {name: x.float() for name, x in inputs(family, n=n, m=n, spread=3.0).items()}
    changed = {name: x.clone() for name, x in tensors.items()}
    for name, x in changed.items():
        if name == "key_log_magnitude":
            x[..., t:] += 50.0
        else:
            x[..., t:, :] = 7.0 * x[..., t:, :] + 1.0
    attend = operation(tensors, is_causal=True, backend=backend)

    def past(*args):
        return attend(*args)[..., :t, :]

    ours, others = (with_gradients(past, *x.values()) for x in (tensors, changed))
    for one, other in zip(ours, others, strict=True):
        assert one.equal(other)


@every_pair
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.usefixtures("tile")
def test_large_numbers_stay_finite(is_causal, backend, family):
    parts = {name: x.float() for name, x in inputs(family, n=9, m=9, spread=1e8).items()}
    for name in FAMILY[family]:
        parts[name] = F.normalize(parts[name], dim=-1) * (1e4 if name == "query" else 1.0)
    parts["value"] *= 1e4
    ours = with_gradients(operation(parts, is_causal=is_causal, backend=backend), *parts.values())
    assert all(x.isfinite().all() for x in ours)


@pytest.mark.parametrize(("backend", "family"), [*pairs_of(), *(("auto", family) for family in FAMILY)])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_computes_the_same(reentrant, is_causal, backend, family):
    parts = inputs(family)
    attend = operation(parts, is_causal=is_causal, backend=backend)
    tensors = [x.requires_grad_() for x in parts.values()]
    out = checkpoint(attend, *tensors, use_reentrant=reentrant)
    (out * randn(99, *out.shape)).sum().backward()
    assert_close([out.detach(), *(x.grad for x in tensors)], with_gradients(attend, *tensors))


@every_pair
@pytest.mark.parametrize("is_causal", [False, True])
def test_compiles_without_a_break_in_the_graph(is_causal, backend, family):
    parts = inputs(family)
    plain = operation(parts, is_causal=is_causal, backend=backend)

    def attend(*tensors):
        return 2 * plain(*tensors[:-1], tensors[-1] + 1)

    # one graph a case, of which the compiler keeps but a few
    torch._dynamo.reset()
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    assert_close(with_gradients(compiled, *parts.values()), with_gradients(attend, *parts.values()))


@pytest.mark.parametrize(("backend", "family"), [*pairs_of(), *(("auto", family) for family in FAMILY)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_vmap_of_gradients_is_a_loop(is_causal, backend, family):
    parts = inputs(family, lead=(3,))
    attend = operation(parts, is_causal=is_causal, backend=backend)

    def gradients(*tensors):
        return torch.func.grad(lambda *x: attend(*x).sin().sum(), argnums=tuple(range(len(tensors))))(*tensors)

    mapped = torch.func.vmap(gradients)(*parts.values())
    looped = [torch.stack(x) for x in zip(*(gradients(*x) for x in zip(*parts.values(), strict=True)), strict=True)]
    assert_close(list(mapped), looped)


@pytest.mark.parametrize(("backend", "family"), [*product(["dense", "auto"], FAMILY)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_forward_mode_is_reverse_mode(is_causal, backend, family):
    """PyTorch's own attention has no derivative in forward mode."""
    if backend == "auto" and family == "exponent":
        pytest.skip("PyTorch's own attention, which serves an exponent alone, has no derivative in forward mode")
    parts = inputs(family)
    attend = operation(parts, is_causal=is_causal, backend=backend)
    tangents = tuple(randn(80 + k, *x.shape) for k, x in enumerate(parts.values()))
    out, along = torch.func.jvp(attend, tuple(parts.values()), tangents)
    expected, pull = torch.func.vjp(attend, *parts.values())
    assert_close(out, expected)
    cotangent = randn(79, *out.shape)
    pulled = sum((x * y).sum() for x, y in zip(pull(cotangent), tangents, strict=True))
    assert_close((along * cotangent).sum(), pulled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_features": torch.ones(11)}, r"query_features and key_features need at least two axes.*, got \(11,\)"),
        ({"value": torch.ones(7)}, r"value needs at least two axes \(keys, width\), got \(7,\)"),
        (
            {"query_features": torch.ones(5, 13)},
            r"query_features and key_features must have the same width, got \(5, 13\) and \(7, 11\)",
        ),
        ({"value": torch.ones(5, 4)}, r"as many keys as values, got \(5, 11\) and \(7, 11\), with value \(5, 4\)"),
        ({"key_log_magnitude": torch.ones(7, 1)}, r"one entry a key, shape \(\.\.\., 7\), got \(7, 1\)"),
        ({"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\), got 1\.0"),
        ({"dropout_p": -0.1}, r"dropout_p must be in \[0, 1\), got -0\.1"),
        ({"dropout_p": NAN}, r"dropout_p must be in \[0, 1\), got nan"),
        ({"floor": -1e-9}, r"floor must be at least 0, got -1e-09"),
        ({"floor": NAN}, r"floor must be at least 0, got nan"),
        ({"backend": "fast"}, r"backend must be .*'auto'.*'reference'.*, got 'fast'"),
        ({"attn_mask": torch.ones(7, 5)}, r"broadcast to .* = \(\.\.\., 5, 7\), got shape \(7, 5\)"),
        ({"attn_mask": torch.ones(3, dtype=torch.bool)}, r"must broadcast .* got shape \(1, 3\)"),
        ({"query": torch.ones(5, 3)}, "query and key come together: give both or neither"),
        ({"key": torch.ones(7, 3)}, "query and key come together: give both or neither"),
        ({"key_features": None}, "query_features and key_features come together: give both or neither"),
        ({"query_features": None, "key_features": None}, "query and key, or all four; got none"),
        (
            {"query": torch.ones(3, 2), "key": torch.ones(7, 2)},
            "query and query_features must have the same number of rows, got 3 and 5",
        ),
        (
            {"query": torch.ones(5, 2), "key": torch.ones(7, 3)},
            r"query and key must have the same width, got \(5, 2\) and \(7, 3\)",
        ),
        (
            {"query": torch.ones(5, 2), "key": torch.ones(3, 2)},
            r"query and key: there must be as many keys as values, got \(5, 2\) and \(3, 2\), with value \(7, 4\)",
        ),
    ],
)
def test_error_names_the_argument_and_what_came(change, message):
    arguments = {"query_features": torch.ones(5, 11), "key_features": torch.ones(7, 11), "value": torch.ones(7, 4)}
    with pytest.raises(ValueError, match=message) as error:
        kernel_attention(**{**arguments, **change})
    assert "\n" not in str(error.value)


def test_mask_of_integers_is_refused():
    """0 and 1 could mean either of two things."""
    mask = torch.ones(5, 7, dtype=torch.long)
    with pytest.raises(TypeError, match=r"attn_mask must be boolean \(True = may attend\) or floating .* torch\.int64"):
        kernel_attention(torch.ones(5, 11), torch.ones(7, 11), torch.ones(7, 4), attn_mask=mask)


@pytest.mark.parametrize("width", [3, 8, 17, 64])
def test_exponent_alone_is_dot_product_attention(width):
    query, key, value = randn(1, 2, 3, 5, width), randn(2, 2, 3, 7, width), randn(3, 2, 3, 7, 4)
    expected = F.scaled_dot_product_attention(query, key, value)
    for backend in ("sdpa", "dense", "reference", "auto"):
        ours = kernel_attention(None, None, value, query=query / math.sqrt(width), key=key, backend=backend)
        assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", ["query_features", "value", "query"])
def test_whole_numbers_are_refused(part):
    """Averages of them would be cut to whole numbers."""
    parts = {"query_features": torch.ones(1, 5, 3), "key_features": torch.ones(1, 5, 3), "value": torch.ones(1, 5, 2)}
    parts |= {"query": torch.ones(1, 5, 3), "key": torch.ones(1, 5, 3)}
    with pytest.raises(
        TypeError, match=r"^everything but attn_mask must be floating, got torch.int64; call .float\(\)$"
    ):
        kernel_attention(**{**parts, part: parts[part].long()})
