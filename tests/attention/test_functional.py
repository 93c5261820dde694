"""``kernel_attention``: every backend against the definition, in value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from ika_lightning.attention import chunked, kernel_attention, linear
from ika_lightning.attention.functional import choose_backend, log_weight_attention, read_mask

BACKENDS = ["dense", "reference"]  # these serve every call
BY_SUMS = ["chunked", "linear"]  # these serve calls in which all queries share a mask, without dropout and weights
INF, NAN = math.inf, math.nan


@pytest.fixture(params=[2, 512])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles, blocks and slabs leave ragged edges on all axes; large ones hold everything."""
    monkeypatch.setattr(chunked, "TILE", request.param)
    monkeypatch.setattr(linear, "BLOCK", request.param)
    monkeypatch.setattr(linear, "SLAB", request.param)


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def some(seed: int, *shape: int) -> Tensor:
    """A boolean mask, about two thirds True."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.66


def inputs(lead=(2, 3), n=5, m=7, r=11, e=4, spread=1.0) -> list[Tensor]:
    """Query features, key features, values and log-magnitudes."""
    return [randn(1, *lead, n, r), randn(2, *lead, m, r), randn(3, *lead, m, e), spread * randn(4, *lead, m)]


def by_definition(query, key, value, log_magnitude=None, *, mask=None, is_causal=False, floor=1e-5):
    """One query at a time, over the keys that it may attend to and no others. Returns averages and weights."""
    n, m = query.size(-2), key.size(-2)
    lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    if log_magnitude is None:
        log_magnitude = query.new_zeros(m)
    if mask is None:
        mask = torch.ones(n, m, dtype=torch.bool)
    lead = torch.broadcast_shapes(lead, log_magnitude.shape[:-1], mask.shape[:-2])
    query, key, value = (x.expand(*lead, *x.shape[-2:]) for x in (query, key, value))
    log_magnitude, mask = log_magnitude.expand(*lead, m), mask.expand(*lead, n, m)
    outs, rows = [], []
    for at in product(*map(range, lead), range(n)):
        *batch, i = at
        batch = tuple(batch)
        row = mask[(*batch, i)]
        allowed = [j for j in range(m) if row[j] not in (False, -INF) and not (is_causal and j > i)]
        weights = query.new_zeros(m)
        if allowed:
            similarity = (key[batch][allowed] @ query[(*batch, i)]) ** 2 + floor
            log_magnitudes = log_magnitude[batch][allowed]
            if mask.dtype != torch.bool:
                log_magnitudes = log_magnitudes + row[allowed]
            chosen = similarity * (log_magnitudes - log_magnitudes.detach().max()).exp()
            weights = weights.index_put((torch.tensor(allowed),), chosen / chosen.sum())
        outs.append(weights[allowed] @ value[batch][allowed])
        rows.append(weights)
    return torch.stack(outs).view(*lead, n, -1), torch.stack(rows).view(*lead, n, m)


def with_gradients(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """The result of the function, and the gradients of a fixed combination of it in all tensors."""
    tensors = tuple(x.detach().requires_grad_() for x in tensors)
    out = function(*tensors)
    weighted = (out * randn(99, *out.shape).to(out)).sum()
    return [out.detach(), *torch.autograd.grad(weighted, tensors, allow_unused=True, materialize_grads=True)]


MASKS = {
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


SHARED = ["none", "one number a key", "keys", "float keys"]


CASES = [
    *product(BACKENDS, MASKS, [(5, 7, False), (5, 5, True), (3, 7, True), (7, 3, True)]),
    *product(BY_SUMS, SHARED, [(5, 7, False), (7, 3, False), (5, 5, True), (3, 7, True), (7, 3, True)]),
]


@pytest.mark.parametrize(("backend", "mask", "sizes"), CASES)
def test_value_and_gradients_are_those_of_the_definition(backend, mask, sizes):
    n, m, is_causal = sizes
    mask = MASKS[mask](n, m)
    tensors = inputs(n=n, m=m, spread=2.0)
    if mask is not None and mask.is_floating_point():
        tensors.append(mask)  # a learned bias needs its gradient, too

    def ours(*args):
        attn_mask = args[4] if len(args) == 5 else mask
        return kernel_attention(*args[:4], attn_mask=attn_mask, is_causal=is_causal, backend=backend)

    def expected(*args):
        return by_definition(*args[:4], mask=args[4] if len(args) == 5 else mask, is_causal=is_causal)[0]

    assert_close(with_gradients(ours, *tensors), with_gradients(expected, *tensors), rtol=1e-9, atol=1e-11)


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
    ],
)
def test_leading_axes_broadcast(query_lead, key_lead, value_lead, magnitude_lead, mask_shape):
    tensors = [randn(1, *query_lead, 5, 11), randn(2, *key_lead, 7, 11), randn(3, *value_lead, 7, 4)]
    if magnitude_lead is not None:
        tensors.append(randn(4, *magnitude_lead, 7))
    mask = None if mask_shape is None else some(5, *mask_shape)
    expected = with_gradients(lambda *args: by_definition(*args, mask=mask)[0], *tensors)
    shared = mask is None or mask.size(-2) == 1
    for backend in (*BACKENDS, *BY_SUMS) if shared else BACKENDS:
        ours = with_gradients(
            lambda *args, backend=backend: kernel_attention(*args, attn_mask=mask, backend=backend), *tensors
        )
        assert_close(ours, expected, msg=lambda message, backend=backend: f"{backend}: {message}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", MASKS)
def test_weights_are_those_that_average_the_values(mask, backend):
    mask, tensors = MASKS[mask](5, 7), inputs()
    out, weights = kernel_attention(*tensors, attn_mask=mask, backend=backend, return_weights=True)
    expected_out, expected_weights = by_definition(*tensors, mask=mask)
    assert_close((out, weights), (expected_out, expected_weights))
    assert_close(out, weights @ tensors[2])
    assert_close(out, kernel_attention(*tensors, attn_mask=mask, backend=backend))
    attends = expected_weights.any(-1)
    assert attends.any()
    assert_close(weights.sum(-1), attends.double())


def test_weights_have_gradients():
    tensors = inputs()
    ours = with_gradients(lambda *args: kernel_attention(*args, return_weights=True)[1], *tensors)
    assert_close(ours, with_gradients(lambda *args: by_definition(*args)[1], *tensors))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"dropout_p": 0.1}, {"return_weights": True}], ids=str)
@pytest.mark.parametrize(("n", "m"), [(5, 7), (61, 71)])
def test_auto_serves_every_call(n, m, options):
    tensors = inputs(lead=(), n=n, m=m)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = kernel_attention(*tensors, **options)
        torch.manual_seed(0)
        assert_close(ours, kernel_attention(*tensors, **options, backend="reference"))


def test_choice_of_backend():
    def choose(n, m, num_features, is_causal=False, sums=True):
        return choose_backend(n, m, num_features, 64, 8, is_causal, sums)

    assert choose(32, 32, 128) == "dense"
    assert choose(2048, 2048, 128) == "chunked"
    assert choose(16384, 16384, 32) == choose(16384, 16384, 32, is_causal=True) == "linear"
    assert choose(16384, 16384, 32, sums=False) == "dense"
    assert choose_backend(16384, 16384, 32, 64, 8, False, True, floor=0.0) == "chunked"
    assert choose(0, 0, 0) == "dense"


@pytest.mark.parametrize("backend", BY_SUMS)
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
def test_what_sums_cannot_serve_is_refused_by_name_and_never_chosen(options, backend):
    with pytest.raises(ValueError, match=rf"backend '{backend}' serves calls in which .* take 'dense' or 'auto'"):
        kernel_attention(*inputs(), **options, backend=backend)
    kernel_attention(*inputs(lead=(), n=5, m=7), **options, backend="auto")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(2, 1, 1, 7, dtype=torch.bool),
        torch.zeros(5, 7, dtype=torch.bool),
        torch.full((1, 7), -INF),
        torch.full((5, 7), -INF),
        torch.full((5, 7), -INF, dtype=torch.float64).index_fill(0, torch.tensor([0, 1, 3, 4]), 0.0),
    ],
    ids=["keys", "pairs", "float keys", "float pairs", "one row"],
)
def test_query_that_may_attend_to_nothing_gets_zeros_and_zero_gradient(mask, backend):
    tensors = [x.requires_grad_() for x in inputs()]
    out, weights = kernel_attention(*tensors, attn_mask=mask, backend=backend, return_weights=True)
    alone = kernel_attention(*tensors, attn_mask=mask, backend=backend)
    for x in (out, weights, alone):
        assert x[..., 2, :].eq(0).all()
    for gradient in torch.autograd.grad((out + alone)[..., 2, :].sum() + weights[..., 2, :].square().sum(), tensors):
        assert gradient.eq(0).all()


@pytest.mark.parametrize("backend", BY_SUMS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", [torch.zeros(2, 1, 1, 7, dtype=torch.bool), torch.full((1, 7), -INF)])
def test_sums_give_zeros_and_zero_gradient_where_nothing_may_be_attended_to(mask, is_causal, backend):
    options = {"attn_mask": mask, "is_causal": is_causal, "backend": backend}
    ours = with_gradients(lambda *args: kernel_attention(*args, **options), *inputs())
    assert all(x.eq(0).all() for x in ours)


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        *product(BACKENDS, ["causal", "causal and keys", "pairs", "float pairs"]),
        *product(BY_SUMS, ["causal", "causal and keys"]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("tile")
def test_hidden_key_of_a_far_larger_magnitude_leaves_a_row_as_it_is(kind, dtype, backend):
    """One shift for all rows would make 0 / 0 of the rows that do not see the largest magnitude."""
    query, key, value, _ = (x.to(dtype) for x in inputs(lead=(3,), n=5, m=5))
    log_magnitude = torch.tensor([0.0, -2e3, 1e3, 5.0, 3e3], dtype=dtype)
    pairs = torch.ones(5, 5, dtype=torch.bool).tril()
    options = {
        "causal": {"is_causal": True},
        "causal and keys": {"is_causal": True, "attn_mask": torch.ones(1, 5, dtype=torch.bool)},
        "pairs": {"attn_mask": pairs},
        "float pairs": {"attn_mask": torch.zeros(5, 5, dtype=dtype).masked_fill(~pairs, -INF)},
    }[kind]
    tensors = query, key, value, log_magnitude
    ours = with_gradients(lambda *args: kernel_attention(*args, **options, backend=backend), *tensors)
    doubles = (x.double() for x in tensors)
    expected = with_gradients(lambda *args: by_definition(*args, is_causal=True)[0], *doubles)
    # Row 1 sees magnitudes 0 and -2000: it is the value of key 0, to the last digit.
    assert_close(ours[0][:, 1], value[:, 0])
    assert_close(ours, [x.to(dtype) for x in expected])


@pytest.mark.parametrize("backend", [*BACKENDS, *BY_SUMS])
@pytest.mark.parametrize("floor", [0.0, 1e-5, 0.3, 17.0])
def test_floor_is_added_to_the_squared_similarity(floor, backend):
    tensors = inputs()
    ours = with_gradients(lambda *args: kernel_attention(*args, floor=floor, backend=backend), *tensors)
    expected = with_gradients(lambda *args: by_definition(*args, floor=floor)[0], *tensors)
    assert_close(ours, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_query_orthogonal_to_all_keys_weighs_by_magnitude(backend):
    query, key = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0], [0.0, -2.0], [0.0, 0.0]]).double()
    log_magnitude = torch.tensor([1.0, 2.0, 4.0]).log().double()
    _, weights = kernel_attention(query, key, torch.eye(3), log_magnitude, backend=backend, return_weights=True)
    assert_close(weights, torch.tensor([[1.0, 2.0, 4.0]]) / 7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [True, False], ids=["keys", "pairs"])
def test_without_a_floor_a_key_without_similarity_has_no_weight(shared, backend):
    query, key, value = torch.eye(2).double(), torch.eye(3, 2).double(), randn(0, 3, 5)
    mask = torch.ones(1 if shared else 2, 3, dtype=torch.bool)
    ours = with_gradients(
        lambda *args: kernel_attention(*args, attn_mask=mask, floor=0.0, backend=backend), query, key, value
    )
    assert_close(ours[0], value[:2])
    assert all(x.isfinite().all() for x in ours)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
def test_dropout_drops_weights_and_scales_up_the_others(masked, backend):
    mask, p, draws = some(13, 5, 7) if masked else None, 0.3, 4000
    tensors = [x.expand(draws, *x.shape) for x in inputs(lead=())]
    options = {"attn_mask": mask, "dropout_p": p, "backend": backend}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out, weights = kernel_attention(*tensors, **options, return_weights=True)
        torch.manual_seed(0)
        assert out.equal(kernel_attention(*tensors, **options))
    _, expected = by_definition(*(x[0] for x in tensors), mask=mask)
    assert_close(out, weights @ tensors[2])
    dropped = weights == 0
    assert_close(weights, (expected / (1 - p)).expand_as(weights).masked_fill(dropped, 0.0))
    rate = dropped[:, expected > 0].double().mean()
    assert abs(rate - p) < 0.02
    # The mean over draws is the weight itself, within five standard errors.
    assert ((weights.mean(0) - expected).abs() <= 5 * expected * (p / (1 - p) / draws) ** 0.5).all()


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        *product(BACKENDS, ["key mask", "pairs", "float keys", "float pairs", "beyond the last causal row"]),
        *product(BY_SUMS, ["key mask", "float keys", "beyond the last causal row"]),
    ],
)
def test_keys_that_nobody_may_attend_to_have_no_influence(kind, poison, backend):
    """Padding may hold anything, and zero times NaN is NaN."""
    tensors = inputs(lead=(3,), n=5, m=7)
    hidden = torch.arange(7) >= 5
    pairs = some(30, 5, 7).masked_fill(hidden, False)
    options = {
        "key mask": {"attn_mask": ~hidden.unsqueeze(0)},
        "pairs": {"attn_mask": pairs},
        "float keys": {"attn_mask": torch.zeros(1, 7).masked_fill(hidden, -INF)},
        "float pairs": {"attn_mask": randn(31, 5, 7).masked_fill(~pairs, -INF)},
        "beyond the last causal row": {"is_causal": True},
    }[kind]
    poisoned = [
        tensors[0],
        *(x.masked_fill(hidden.unsqueeze(-1), poison) for x in tensors[1:3]),
        tensors[3].masked_fill(hidden, poison),
    ]
    for return_weights in (False,) if backend in BY_SUMS else (False, True):

        def attend(*args, return_weights=return_weights):
            result = kernel_attention(*args, **options, backend=backend, return_weights=return_weights)
            return torch.cat(result, -1) if return_weights else result

        assert_close(with_gradients(attend, *poisoned), with_gradients(attend, *tensors))


@pytest.mark.parametrize(("backend", "return_weights"), [*product(BACKENDS, [False, True]), *product(BY_SUMS, [False])])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(return_weights, dtype, backend):
    halves = [x.to(dtype) for x in inputs(spread=3.0)]
    options = {"is_causal": True, "backend": backend, "return_weights": return_weights}
    ours = kernel_attention(*halves, **options)
    expected = kernel_attention(*(x.float() for x in halves), **options)
    ours, expected = (x if return_weights else (x,) for x in (ours, expected))
    for x, y in zip(ours, expected, strict=True):
        assert x.dtype == dtype
        assert x.equal(y.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_does_not_reach_the_computation(dtype):
    tensors = [x.to(dtype) for x in inputs()]
    with torch.autocast("cpu", torch.bfloat16):
        inside = kernel_attention(*tensors)
    assert inside.dtype == dtype
    assert inside.equal(kernel_attention(*tensors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("bias_dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_result_has_the_dtype_of_value_whatever_the_mask_has(backend, bias_dtype, dtype):
    tensors = [x.to(dtype) for x in inputs()]
    bias = torch.arange(35.0).view(5, 7).remainder(3).to(bias_dtype)  # exact in every dtype
    out, weights = kernel_attention(*tensors, attn_mask=bias, backend=backend, return_weights=True)
    assert out.dtype == weights.dtype == dtype
    assert out.equal(kernel_attention(*tensors, attn_mask=bias.double(), backend=backend))


@pytest.mark.parametrize(
    ("backend", "mask"),
    [*product(BACKENDS, ["none", "keys", "pairs", "causal"]), *product(BY_SUMS, ["none", "keys", "causal"])],
)
@pytest.mark.parametrize(
    ("lead", "n", "m"),
    [((3,), 0, 7), ((3,), 5, 0), ((3,), 0, 0), ((3,), 1, 7), ((3,), 5, 1), ((0,), 5, 7), ((3,), 1, 1)],
)
def test_smallest_sizes(lead, n, m, backend, mask):
    options = {
        "none": {},
        "keys": {"attn_mask": torch.ones(1, m, dtype=torch.bool)},
        "pairs": {"attn_mask": torch.ones(n, m, dtype=torch.bool)},
        "causal": {"is_causal": True},
    }[mask]
    tensors = inputs(lead=lead, n=n, m=m)
    ours = with_gradients(lambda *args: kernel_attention(*args, **options, backend=backend), *tensors)
    assert ours[0].shape == (*lead, n, 4)
    if backend not in BY_SUMS:
        assert kernel_attention(*tensors, **options, backend=backend, return_weights=True)[1].shape == (*lead, n, m)
    if m == 0:
        assert all(x.eq(0).all() for x in ours)
    elif n and lead[0]:
        is_causal = mask == "causal"
        expected = with_gradients(lambda *args: by_definition(*args, is_causal=is_causal)[0], *tensors)
        assert_close(ours, expected)


@pytest.mark.parametrize("backend", [*BACKENDS, *BY_SUMS])
def test_memory_layout_does_not_matter(backend):
    tensors = inputs()
    strided = [x.movedim(0, -1).contiguous().movedim(-1, 0) for x in tensors]
    assert not any(x.is_contiguous() for x in strided)
    mask = some(13, 7, 1 if backend in BY_SUMS else 5).mT
    options = {"attn_mask": mask, "is_causal": True, "backend": backend}
    assert_close(kernel_attention(*strided, **options), kernel_attention(*tensors, **options), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("backend", [*BACKENDS, *BY_SUMS])
def test_a_common_factor_of_the_magnitudes_cancels(backend):
    query, key, value, log_magnitude = inputs()
    shifted = kernel_attention(query, key, value, log_magnitude + 1e4, is_causal=True, backend=backend)
    assert_close(shifted, kernel_attention(query, key, value, log_magnitude, is_causal=True, backend=backend))


@pytest.mark.parametrize("return_weights", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradcheck(is_causal, return_weights):
    tensors = [x.requires_grad_() for x in inputs(lead=(), n=3, m=3, r=2, e=2)]
    assert torch.autograd.gradcheck(
        lambda *args: kernel_attention(*args, is_causal=is_causal, return_weights=return_weights), tensors
    )


def test_second_derivatives():
    tensors = [x.requires_grad_() for x in inputs(lead=(), n=2, m=3, r=2, e=2)]
    assert torch.autograd.gradgradcheck(lambda *args: kernel_attention(*args, backend="dense"), tensors)


@settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a size of tiles serves all examples
)
@given(
    lead=st.lists(st.integers(1, 2), max_size=2),
    n=st.integers(1, 7),
    m=st.integers(1, 7),
    r=st.integers(1, 5),
    mask=st.sampled_from(["none", "keys", "pairs", "float keys", "float pairs"]),
    is_causal=st.booleans(),
    spread=st.sampled_from([0.0, 1.0, 1e2, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_backends_are_the_reference(tile, lead, n, m, r, mask, is_causal, spread, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    tensors = [draw(*lead, n, r), draw(*lead, m, r), draw(*lead, m, 3), spread * draw(*lead, m)]
    rows = n if "pairs" in mask else 1
    attn_mask = None if mask == "none" else draw(rows, m) > -0.5
    if "float" in mask:
        attn_mask = (spread * draw(rows, m)).masked_fill(~attn_mask, -INF)

    def attend(backend):
        options = {"attn_mask": attn_mask, "is_causal": is_causal, "backend": backend}
        return with_gradients(lambda *args: kernel_attention(*args, **options), *tensors)

    reference = attend("reference")
    # The gradient in a feature carries up to 2 / sqrt(floor), and with it the rounding.
    assert_close(attend("dense"), reference, rtol=1e-8, atol=1e-9)
    if rows == 1:
        assert_close(attend("chunked"), reference, rtol=1e-8, atol=1e-9)
        # A small similarity loses digits when it is a sum of products of both signs.
        assert_close(attend("linear"), reference, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("backend", [*BACKENDS, *BY_SUMS])
@pytest.mark.usefixtures("tile")
def test_the_future_changes_nothing(backend):
    """Bit by bit: in the outputs of the past, and in the gradients of a loss on the past."""
    n, t = 11, 6
    tensors = [x.float() for x in inputs(n=n, m=n, spread=3.0)]
    changed = [x.clone() for x in tensors]
    for x in changed[:3]:
        x[..., t:, :] = 7.0 * x[..., t:, :] + 1.0
    changed[3][..., t:] += 50.0

    def past(*args):
        return kernel_attention(*args, is_causal=True, backend=backend)[..., :t, :]

    ours, others = (with_gradients(past, *x) for x in (tensors, changed))
    assert ours[0].equal(others[0])
    for one, other in zip(ours[1:], others[1:], strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("backend", BY_SUMS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_results_do_not_depend_on_the_size_of_tiles(monkeypatch, is_causal, backend):
    tensors = inputs(n=61, m=53, spread=10.0)
    results = []
    for size in (7, 16, 512):
        for module, name in ((chunked, "TILE"), (linear, "BLOCK"), (linear, "SLAB")):
            monkeypatch.setattr(module, name, size)
        results.append(
            with_gradients(lambda *args: kernel_attention(*args, is_causal=is_causal, backend=backend), *tensors)
        )
    assert_close(results[0], results[2])
    assert_close(results[1], results[2])


@pytest.mark.parametrize("backend", [*BACKENDS, *BY_SUMS])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.usefixtures("tile")
def test_large_numbers_stay_finite(is_causal, backend):
    tensors = [x.float() for x in inputs(n=9, m=9, spread=1e8)]
    tensors = [*(F.normalize(x, dim=-1) for x in tensors[:2]), 1e4 * tensors[2], tensors[3]]
    ours = with_gradients(lambda *args: kernel_attention(*args, is_causal=is_causal, backend=backend), *tensors)
    assert all(x.isfinite().all() for x in ours)


@pytest.mark.parametrize("backend", BY_SUMS)
def test_no_matrix_of_queries_and_keys_is_made(backend, monkeypatch):
    """Not even the boolean one of a causal mask."""
    monkeypatch.setattr(chunked, "TILE", 16)
    monkeypatch.setattr(linear, "BLOCK", 16)
    n, largest = 512, 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            largest = max(
                [
                    largest,
                    *(x.untyped_storage().nbytes() // x.itemsize for x in tree_leaves(out) if isinstance(x, Tensor)),
                ]
            )
            return out

    tensors = [x.requires_grad_() for x in inputs(lead=(), n=n, m=n, r=4)]
    with Largest():
        out = kernel_attention(*tensors, attn_mask=some(1, 1, n), is_causal=True, backend=backend)
        torch.autograd.grad(out.sum(), tensors)
    assert largest < 32 * n


@pytest.mark.parametrize("backend", [*BACKENDS, *BY_SUMS, "auto"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_checkpointing_computes_the_same(is_causal, backend):
    def attend(*args):
        return kernel_attention(*args, is_causal=is_causal, backend=backend)

    tensors = inputs()
    ours = with_gradients(lambda *args: checkpoint(attend, *args, use_reentrant=False), *tensors)
    assert_close(ours, with_gradients(attend, *tensors))


@pytest.mark.parametrize("backend", [*BACKENDS, *BY_SUMS])
@pytest.mark.parametrize("is_causal", [False, True])
def test_compiles_without_a_break_in_the_graph(is_causal, backend):
    def attend(*args):
        return 2 * kernel_attention(*args[:3], args[3] + 1, is_causal=is_causal, backend=backend)

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    assert_close(with_gradients(compiled, *inputs()), with_gradients(attend, *inputs()))


@pytest.mark.parametrize("backend", BY_SUMS)
def test_operators_keep_the_contract_of_pytorch(backend):
    operator = getattr(torch.ops.ika_lightning, f"{backend}_attention")
    for is_causal in (False, True):
        tensors = [x.requires_grad_() for x in inputs(lead=(2,), n=7, m=5, r=3)]
        torch.library.opcheck(operator, (*tensors, 1e-5, is_causal))


@pytest.mark.parametrize("backend", BY_SUMS)
def test_second_derivative_of_sums_is_refused(backend):
    tensors = [x.requires_grad_() for x in inputs()]
    out = kernel_attention(*tensors, backend=backend)
    (gradient,) = torch.autograd.grad(out.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"has no derivative; take backend=.dense."):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_features": torch.ones(11)}, r"need at least two axes \(rows, width\), got query_features \(11,\)"),
        ({"value": torch.ones(7)}, r"need at least two axes .* value \(7,\)"),
        (
            {"query_features": torch.ones(5, 13)},
            r"same number of features, got query_features \(5, 13\), key_.*\(7, 11\)",
        ),
        ({"value": torch.ones(5, 4)}, r"same number of keys, got .*key_features \(7, 11\), value \(5, 4\)"),
        ({"key_log_magnitude": torch.ones(7, 1)}, r"one entry a key, shape \(\.\.\., 7\), got \(7, 1\)"),
        ({"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\), got 1\.0"),
        ({"dropout_p": -0.1}, r"dropout_p must be in \[0, 1\), got -0\.1"),
        ({"dropout_p": NAN}, r"dropout_p must be in \[0, 1\), got nan"),
        ({"floor": -1e-9}, r"floor must be at least 0, got -1e-09"),
        ({"floor": NAN}, r"floor must be at least 0, got nan"),
        ({"backend": "fast"}, r"backend must be .*'reference'.*'dense'.*, got 'fast'"),
        ({"attn_mask": torch.ones(7, 5)}, r"broadcast to \(\.\.\., n, m\) = \(\.\.\., 5, 7\), got shape \(7, 5\)"),
        ({"attn_mask": torch.ones(3, dtype=torch.bool)}, r"attn_mask must broadcast .* got shape \(1, 3\)"),
    ],
)
def test_error_names_the_argument_and_what_came(change, message):
    arguments = {"query_features": torch.ones(5, 11), "key_features": torch.ones(7, 11), "value": torch.ones(7, 4)}
    with pytest.raises(ValueError, match=message):
        kernel_attention(**{**arguments, **change})


def test_mask_of_integers_is_refused():
    """0 and 1 could mean either of two things."""
    mask = torch.ones(5, 7, dtype=torch.long)
    with pytest.raises(TypeError, match=r"boolean \(True = may attend\) or floating, got torch\.int64"):
        kernel_attention(torch.ones(5, 11), torch.ones(7, 11), torch.ones(7, 4), attn_mask=mask)


def test_log_weight_attention_is_a_softmax():
    log_weight, value = randn(1, 3, 5, 7), randn(2, 3, 7, 4)
    out, weights = log_weight_attention(log_weight, value)
    expected = log_weight.exp() / log_weight.exp().sum(-1, keepdim=True)
    assert_close((out, weights), (expected @ value, expected))


def test_read_mask_splits_a_mask():
    device = torch.device("cpu")
    assert read_mask(None, False, 2, 3, device) == (None, None)
    allowed, bias = read_mask(torch.tensor([[0.5, -INF, 2.0]]), True, 2, 3, device)
    assert allowed.tolist() == [[True, False, False], [True, False, False]]
    assert bias.tolist() == [[0.5, 0.0, 2.0]]
    allowed, bias = read_mask(torch.tensor(True), False, 2, 3, device)
    assert allowed.tolist() == [[True, True, True]]
    assert bias is None
