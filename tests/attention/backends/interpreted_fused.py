"""The fused kernels on the CPU, by Triton's interpreter; ``test_fused.py`` runs these in a process of their own.

The interpreter multiplies bfloat16 wrongly, so half precision is float16 here. Tiles are small and ragged on all axes.
"""

from __future__ import annotations

import math

import pytest
import torch
from definition import FAMILY, INF, NAN, inputs, operation, randn, some, with_gradients
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.attention import IKANDirect, kernel_attention
from ika_lightning.attention.backends import BACKENDS, Call, choose, fused, fused_launch
from ika_lightning.attention.backends.fused_launch import Tile
from ika_lightning.attention.mask import Mask
from ika_lightning.attention.operation import attend

every_family = pytest.mark.parametrize("family", FAMILY)
causal_or_not = pytest.mark.parametrize("is_causal", [False, True])

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """More queries than keys in the forward, fewer in the backward."""
    tiles = {"forward": Tile(32, 16, 1, 1), "query gradient": Tile(16, 32, 1, 1), "key gradient": Tile(32, 16, 1, 1)}
    monkeypatch.setattr(fused_launch, "tile_for", lambda kernel, *_: tiles[kernel])


def assert_near(ours: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Compare each tensor relative to its largest number."""
    for number, (mine, right) in enumerate(zip(ours, expected, strict=True)):
        assert mine.isfinite().all()
        error = float((mine.double() - right.double()).abs().max() / right.double().abs().max().clamp_min(1e-12))
        assert error < tolerance, f"tensor {number}: {error}"


def rounded(parts: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The numbers that there are in a dtype, of which magnitudes stay in float32."""
    low = {name: (x / x.size(-1) ** 0.5 if "features" in name else x) for name, x in parts.items()}
    return {name: x.to(torch.float32 if name == "key_log_magnitude" else dtype) for name, x in low.items()}


@every_family
@causal_or_not
@pytest.mark.parametrize(("n", "m", "masked", "dtype"), [(37, 23, True, torch.float32), (17, 37, False, torch.float16)])
def test_value_and_gradients_are_those_of_the_reference(family, is_causal, n, m, masked, dtype) -> None:
    low = rounded(inputs(family, n=n, m=m, spread=2.0, lead=(2,)), dtype)
    options = {"is_causal": is_causal, "attn_mask": some(11, 2, 1, m) if masked else None}
    wide = {name: x.double() for name, x in low.items()}
    expected = with_gradients(operation(wide, **options, backend="reference"), *wide.values())
    ours = with_gradients(operation(low, **options, backend="fused"), *low.values())
    assert [x.dtype for x in ours] == [dtype, *(x.dtype for x in low.values())]
    assert_near(ours, expected, TOLERANCE[dtype])


@every_family
def test_a_learned_bias_of_keys_has_its_gradient(family) -> None:
    parts = inputs(family, n=17, m=29, lead=(2,))
    parts["attn_mask"] = randn(8, 2, 1, 29).masked_fill(~some(9, 2, 1, 29), -INF)
    low = {name: x.float() for name, x in parts.items()}
    ours = with_gradients(operation(low, backend="fused"), *low.values())
    assert_near(ours, with_gradients(operation(parts, backend="reference"), *parts.values()), 2e-5)


def shared_call(family: str, queries: tuple[int, ...], keys: tuple[int, ...], is_causal: bool = False) -> list[Tensor]:
    parts = inputs(family, lead=(), n=19, m=23)
    lead = {name: keys if name in ("key", "key_features", "value", "key_log_magnitude") else queries for name in parts}
    return [randn(number, *lead[name], *x.shape) for number, (name, x) in enumerate(parts.items())]


@pytest.mark.parametrize(
    ("queries", "keys", "programs", "family", "is_causal"),
    [
        ((2, 3), (2, 1), 2, "both", True),
        ((2, 3), (2, 1), 2, "features", False),
        ((3,), (), 1, "features", True),
        ((2, 2), (2,), 4, "both", False),
        ((2, 1), (2, 1), 2, "both", False),
        ((2, 1), (2,), 4, "features", False),
    ],
)
def test_heads_share_keys_and_have_a_share_of_their_own(queries, keys, programs, family, is_causal) -> None:
    names = list(inputs(family))
    tensors = [*shared_call(family, queries, keys), torch.tensor([0.3, 0.0, 1.0]).double()[: queries[-1], None, None]]

    def attention(backend: str):
        def of(*tensors: Tensor) -> Tensor:
            *parts, share = tensors
            given = dict(zip(names, parts, strict=True))
            call = Call(
                given.get("query"), given.get("key"), given["query_features"], given["key_features"], given["value"],
                given["key_log_magnitude"], Mask(causal=is_causal), 0.0, 1e-3, False, share,
            )  # fmt: skip
            if backend == "fused":
                # heads that have the same keys are gone over by one program
                lead = fused._leading_of_keys(call.lead, call, call.bias)
                assert math.prod(lead) == programs
            return attend(call.without_unattended(), backend)[0]

        return of

    expected = with_gradients(attention("reference"), *tensors)
    assert_near(with_gradients(attention("fused"), *(x.float() for x in tensors)), expected, 2e-5)


@every_family
@causal_or_not
def test_rows_without_keys_are_zero_and_masked_keys_may_be_nan(family, is_causal) -> None:
    """The second sequence has no key at all; in the first, a causal call has none for the first rows."""
    parts = {name: x.float() for name, x in inputs(family, n=17, m=19, lead=(2,)).items()}
    mask = torch.ones(2, 1, 19, dtype=torch.bool)
    mask[0, :, :3], mask[1] = False, False
    for name, x in parts.items():
        if name in ("key", "key_features", "value"):
            x.masked_fill_(~mask.mT, NAN)
    attention = operation(parts, attn_mask=mask, is_causal=is_causal, backend="fused")
    out, *gradients = with_gradients(attention, *parts.values())
    assert out[1].eq(0).all()
    assert out[0, 3:].ne(0).all()
    assert out[0, :3].eq(0).all() == is_causal
    for name, gradient in zip(parts, gradients, strict=True):
        assert gradient.isfinite().all()
        assert gradient[1].eq(0).all()
        if name in ("key", "key_features", "value"):
            assert gradient[0, :3].eq(0).all()


@pytest.mark.parametrize(
    ("family", "slope"),
    [("features", 1e3), ("features", -1e3), ("both", 1e3), ("both", -1e3), ("both", 1e37)],
)
def test_magnitudes_may_grow_and_shrink_without_bound(family, slope) -> None:
    """Each row takes the value of the largest magnitude that it sees: its own key's, or that of key 0."""
    parts = {name: x.float() for name, x in inputs(family, n=37, m=37, lead=(1,)).items()}
    parts["key_log_magnitude"] = (slope * (torch.arange(37.0) / 3.7)).view(1, 37)
    ours = with_gradients(operation(parts, is_causal=True, floor=1.0, backend="fused"), *parts.values())
    assert_close(ours[0], parts["value"] if slope > 0 else parts["value"][:, :1].expand(-1, 37, -1))
    assert all(x.isfinite().all() for x in ours)


def test_a_bias_that_is_lowest_everywhere_is_no_mask() -> None:
    parts = {name: x.float() for name, x in inputs("both", n=5, m=7, lead=()).items()}
    del parts["key_log_magnitude"]
    lowest, low = (
        operation(parts, attn_mask=torch.full((7,), bias), backend="fused")(*parts.values())
        for bias in (torch.finfo(torch.float32).min, -3e38)
    )
    assert lowest.ne(0).all()
    assert_close(lowest, low)


@pytest.mark.parametrize("family", ["features", "both"])
@causal_or_not
def test_without_a_floor_the_nearest_keys_may_have_no_weight(family, is_causal) -> None:
    """Key 2, the largest of all, is orthogonal to all queries, and all queries are to all keys of the first head."""
    parts = {name: x.float() for name, x in inputs(family, n=17, m=19, lead=(2,)).items()}
    parts["key_features"][0], parts["key_features"][1, 2] = 0.0, 0.0
    parts["key_log_magnitude"][:, 2] = 300.0
    options = {"is_causal": is_causal, "floor": 0.0}
    ours = with_gradients(operation(parts, **options, backend="fused"), *parts.values())
    assert ours[0][0].eq(0).all()
    assert all(x.isfinite().all() for x in ours)


@causal_or_not
def test_float16_has_room_for_weights_that_are_all_small(is_causal) -> None:
    """Weights of 1e-7 of the largest exponential, which float16 cannot hold: all features are orthogonal."""
    parts = inputs("both", n=17, m=37, lead=(2,), e=5)
    parts["query_features"], parts["key_features"] = torch.zeros(2, 17, 3), torch.zeros(2, 37, 3)
    low = {name: x.to(torch.float32 if name == "key_log_magnitude" else torch.float16) for name, x in parts.items()}
    wide = {name: x.double() for name, x in low.items()}
    options = {"is_causal": is_causal, "floor": 1e-9}
    expected = with_gradients(operation(wide, **options, backend="reference"), *wide.values())
    ours = with_gradients(operation(low, **options, backend="fused"), *low.values())
    of_features = [1 + list(parts).index(name) for name in ("query_features", "key_features")]
    for index in of_features:
        assert ours[index].eq(0).all()
    kept = [index for index in range(len(ours)) if index not in of_features]
    assert_near([ours[index] for index in kept], [expected[index] for index in kept], 4e-3)


def test_half_precision_takes_what_was_computed_in_float32() -> None:
    """As a layer gives it: features, queries and magnitudes in float32, values in float16."""
    parts = {name: x.float() for name, x in inputs("both", n=17, m=19, lead=(2,)).items()}
    parts |= {"value": parts["value"].half()}
    parts |= {name: x / 4 for name, x in parts.items() if "features" in name}
    ours = with_gradients(operation(parts, backend="fused"), *parts.values())
    assert [x.dtype for x in ours] == [torch.float16, *(x.dtype for x in parts.values())]
    wide = {name: x.double() for name, x in parts.items()}
    assert_near(ours, with_gradients(operation(wide, backend="reference"), *wide.values()), 4e-3)


@every_family
def test_second_derivatives_are_those_of_the_reference(family) -> None:
    parts = inputs(family, n=5, m=7, lead=(2,))

    def penalty(backend: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in parts.values()]
        out = operation(parts, is_causal=True, backend=backend)(*leaves)
        gradients = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(x.square().sum() for x in gradients), leaves))

    assert_near(penalty("fused", torch.float32), penalty("reference", torch.float64), 1e-4)


def test_transforms_of_functions_and_the_compiler_take_it() -> None:
    parts = {name: x.float() for name, x in inputs("both", n=5, m=7, lead=(3, 2)).items()}
    attention = operation(parts, backend="fused")

    def loss(*tensors: Tensor) -> Tensor:
        return attention(*tensors).square().sum()

    axes = tuple(range(len(parts)))
    mapped = torch.func.vmap(torch.func.grad(loss, argnums=axes))(*parts.values())
    leaves = [x.clone().requires_grad_() for x in parts.values()]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    assert_close(mapped, expected)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    assert_close(compiled(*parts.values()), attention(*parts.values()))
    assert_close(torch.autograd.grad(compiled(*leaves).square().sum(), leaves), expected)
    _, tangent = torch.func.jvp(attention, tuple(parts.values()), tuple(parts.values()))
    _, right = torch.func.jvp(operation(parts, backend="dense"), tuple(parts.values()), tuple(parts.values()))
    assert_close(tangent, right)


@pytest.mark.parametrize(("init", "is_causal"), [("softmax", True), ("rbf", False)])
def test_a_layer_equals_that_of_another_backend(init, is_causal) -> None:
    torch.manual_seed(0)
    layer = IKANDirect(12, 3, num_samples=7, init=init, backend="fused", batch_first=True)
    other = IKANDirect(12, 3, num_samples=7, init=init, backend="dense", batch_first=True)
    other.load_state_dict(layer.state_dict())
    x = randn(1, 2, 17, 12).float()
    padding = torch.arange(17) >= torch.tensor([[17], [11]])
    results = []
    for module in (layer, other):
        module.zero_grad()
        torch.manual_seed(1)
        out, _ = module(x, x, x, key_padding_mask=padding, is_causal=is_causal, need_weights=False)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in module.parameters())])
    assert_close(*results, rtol=1e-4, atol=1e-5)


def test_products_of_float32_are_as_precise_as_pytorch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_launch.precision() == "ieee"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert fused_launch.precision() == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    assert fused_launch.precision() == "ieee"


def test_nobody_is_given_the_interpreter_unasked() -> None:
    parts = {name: x.float() for name, x in inputs("both", lead=()).items()}
    call = Call(
        parts["query"], parts["key"], parts["query_features"], parts["key_features"], parts["value"], None, Mask(),
        0.0, 1e-5, False,
    )  # fmt: skip
    assert BACKENDS["fused"].refuses(call) is None
    assert choose(call).name != "fused"


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (1, 1)])
def test_nothing_to_attend_to_and_nobody_to_attend(n, m) -> None:
    parts = {name: x.float() for name, x in inputs("both", n=n, m=m, lead=(2,)).items()}
    ours = with_gradients(operation(parts, backend="fused"), *parts.values())
    assert_close(ours, with_gradients(operation(parts, backend="dense"), *parts.values()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "not float64"),
        ({"e": 1000}, "not for 1056"),
        ({"mask": torch.ones(5, 7, dtype=torch.bool)}, "all queries share a mask"),
    ],
)
def test_what_it_refuses(change, reason) -> None:
    parts = inputs("both", lead=(), e=change.get("e", 3))
    parts = {name: x.to(change.get("dtype", torch.float32)) for name, x in parts.items()}
    with pytest.raises(ValueError, match=reason):
        kernel_attention(**parts, attn_mask=change.get("mask"), backend="fused")
