"""Cores against one another and against PyTorch's attention, without projections."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from ika_lightning.attention import LinearKernel, MaternKernel, PeriodicKernel, RBFKernel
from ika_lightning.attention.core import (
    DotProductCore,
    ExplicitKernelCore,
    RBFCore,
    SpectralCore,
    at_least_float32,
    mean_key,
    merge_masks,
)
from ika_lightning.attention.kernels import nonstationary_features, stationary_features
from ika_lightning.attention.spectrum import DirectSpectrum, GaussianCopula, ImplicitSpectrum

BATCH, HEADS, QUERIES, KEYS, WIDTH, VALUE_WIDTH = 2, 3, 5, 7, 11, 4
INF, NAN = math.inf, math.nan
POWERS = [1.0, 1.8, 2.0, 3.0, INF]


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.66


def inputs(n: int = QUERIES, m: int = KEYS) -> tuple[Tensor, Tensor, Tensor]:
    return (
        randn(1, BATCH, HEADS, n, WIDTH),
        randn(2, BATCH, HEADS, m, WIDTH),
        randn(3, BATCH, HEADS, m, VALUE_WIDTH),
    )


def with_gradients(function, *tensors):
    tensors = tuple(x.detach().requires_grad_() for x in tensors)
    out = function(*tensors)
    return [out.detach(), *torch.autograd.grad((out * randn(99, *out.shape)).sum(), tensors)]


def moved(module: nn.Module, size: float = 0.3) -> nn.Module:
    """Move all parameters: no two heads alike, and no encoder at zero."""
    generator = torch.Generator().manual_seed(7)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
    return module


def spectral(kind: str = "implicit", **kwargs) -> SpectralCore:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "direct":
            return SpectralCore(DirectSpectrum(HEADS, WIDTH, 13, **kwargs))
        copula = GaussianCopula(HEADS, WIDTH) if kind == "copula" else None
        return SpectralCore(ImplicitSpectrum(HEADS, WIDTH, 13, copula=copula, **kwargs))


CORES = {
    "dot product": DotProductCore,
    "RBF": lambda: RBFCore(HEADS, WIDTH, 1.8),
    "Matern": lambda: ExplicitKernelCore(MaternKernel(HEADS, WIDTH), 1.8),
    "linear": lambda: ExplicitKernelCore(LinearKernel(HEADS, WIDTH), 1.8),
    "direct": lambda: spectral("direct"),
    "implicit": spectral,
    "copula": lambda: spectral("copula"),
}

KEY_MASK = some(10, BATCH, 1, KEYS) | (torch.arange(KEYS) == 0)
KEY_BIAS = randn(11, BATCH, 1, KEYS)
MASKS = {
    "none": {},
    "keys": {"key_mask": KEY_MASK},
    "biased keys": {"key_mask": KEY_MASK, "key_bias": KEY_BIAS},
    "pairs": {"attn_mask": some(12, QUERIES, KEYS) | (torch.arange(KEYS) == 0)},
    "heads' pairs": {"attn_mask": some(13, BATCH, HEADS, QUERIES, KEYS) | (torch.arange(KEYS) == 0)},
    "float pairs": {"attn_mask": randn(14, QUERIES, KEYS).masked_fill(torch.arange(KEYS) == 2, -INF)},
    "keys and pairs": {"key_mask": KEY_MASK, "attn_mask": torch.arange(KEYS).roll(1).expand(QUERIES, KEYS) != 3},
    "all": {"key_mask": KEY_MASK, "key_bias": KEY_BIAS, "attn_mask": randn(15, QUERIES, KEYS)},
    "causal": {"is_causal": True},
    "causal keys": {"is_causal": True, "key_mask": KEY_MASK},
    "causal pairs": {"is_causal": True, "attn_mask": randn(16, BATCH, HEADS, QUERIES, KEYS)},
}


def one_mask(key_mask=None, key_bias=None, attn_mask=None, is_causal=False) -> Tensor:
    """All masks as one that is added, element by element."""
    mask = torch.zeros(BATCH, HEADS, QUERIES, KEYS, dtype=torch.float64)
    if key_bias is not None:
        mask = mask + key_bias.view(BATCH, 1, 1, KEYS)
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        mask = mask + attn_mask
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        mask = torch.where(attn_mask, mask, -INF)
    if key_mask is not None:
        mask = torch.where(key_mask.view(BATCH, 1, 1, KEYS), mask, -INF)
    if is_causal:
        mask = torch.where(torch.arange(KEYS) <= torch.arange(QUERIES).unsqueeze(-1), mask, -INF)
    return mask


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize(
    "core", [DotProductCore(), RBFCore(HEADS, WIDTH).double(), ExplicitKernelCore(RBFKernel(HEADS, WIDTH)).double()]
)
def test_is_dot_product_attention(core, masks, need_weights):
    """The Gaussian kernel at its initial lengthscale times the L2 magnitude is what everybody uses."""
    masks = MASKS[masks]
    if list(core.parameters()):  # exact in float64, where the initial one is a float32
        core.kernel.log_lengthscale.data.fill_(math.log(WIDTH) / 4)

    def expected(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=one_mask(**masks))

    def ours(query, key, value):
        out, weights = core(query, key, value, **masks, need_weights=need_weights)
        assert (weights is not None) is need_weights
        return out

    assert_close(with_gradients(ours, *inputs()), with_gradients(expected, *inputs()), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("masks", ["none", "keys", "all", "causal"])
@pytest.mark.parametrize("p", POWERS)
def test_rbf_core_is_the_explicit_kernel(p, masks):
    masks = MASKS[masks]
    fused, plain = moved(RBFCore(HEADS, WIDTH, p)), ExplicitKernelCore(RBFKernel(HEADS, WIDTH), p).double()
    plain.load_state_dict(fused.state_dict())
    assert fused.kernel.lengthscale.unique().numel() == HEADS

    def attend(core):
        def function(query, key, value, log_lengthscale):
            parameters = {"kernel.log_lengthscale": log_lengthscale}
            out, _ = torch.func.functional_call(core, parameters, (query, key, value), masks)
            return out

        return function

    tensors = (*inputs(), fused.kernel.log_lengthscale)
    ours, expected = with_gradients(attend(fused), *tensors), with_gradients(attend(plain), *tensors)
    assert ours[4].ne(0).all()
    assert_close(ours, expected, rtol=1e-8, atol=1e-9)
    weights = (core(*inputs(), **masks, need_weights=True)[1] for core in (fused, plain))
    assert_close(*weights)


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("kernel", [MaternKernel, PeriodicKernel, LinearKernel])
def test_explicit_kernel_is_similarity_times_magnitude(kernel, p):
    core, (query, key, value) = moved(ExplicitKernelCore(kernel(HEADS, WIDTH), p)), inputs()
    magnitude = torch.exp(torch.linalg.vector_norm(key, p, dim=-1) ** 2 / (2 * WIDTH**0.5))
    expected = core.kernel(query, key).exp() * magnitude.unsqueeze(-2)
    expected = expected / expected.sum(-1, keepdim=True)
    assert_close(core(query, key, value, need_weights=True), (expected @ value, expected))


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("stationary", [True, False])
@pytest.mark.parametrize("kind", ["direct", "implicit", "copula"])
def test_spectral_core_is_squared_similarity_times_magnitude(kind, stationary, p):
    core, (query, key, value) = moved(spectral(kind, stationary=stationary)).eval(), inputs()
    core.p = p
    frequencies, kl = core.spectrum(None if kind == "direct" else key.mean(-2))
    features = stationary_features if stationary else nonstationary_features
    similarity = (features(query, *frequencies) @ features(key, *frequencies).mT) ** 2 + 1e-5
    magnitude = torch.exp(torch.linalg.vector_norm(key, p, dim=-1) ** 2 / (2 * WIDTH**0.5))
    expected = similarity * magnitude.unsqueeze(-2)
    expected = expected / expected.sum(-1, keepdim=True)
    assert_close(core(query, key, value, need_weights=True), (expected @ value, expected))
    assert_close(core.kl, kl)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("core", CORES)
def test_masks_add_to_the_logarithms_of_the_weights(core, masks, monkeypatch):
    """Against the same core's weights where no mask forbids or adds anything."""
    core, masks = moved(CORES[core]()).eval(), MASKS[masks]
    with monkeypatch.context() as patch:
        if isinstance(core, SpectralCore):
            # Masks change the mean key, and with it the kernel: make the frequencies those of the masked call.
            pooled = core.spectrum.conditional and "attn_mask" not in masks and "is_causal" not in masks
            drawn = core.spectrum(mean_key(inputs()[1], masks.get("key_mask")) if pooled else None)
            patch.setattr(core.spectrum, "forward", lambda _: drawn)
        _, free = core(*inputs(), need_weights=True)
    expected = free * one_mask(**masks).exp()
    expected = expected / expected.sum(-1, keepdim=True)
    out, weights = core(*inputs(), **masks, need_weights=True)
    assert_close(weights, expected)
    assert_close(out, expected @ inputs()[2])
    assert_close(core(*inputs(), **masks)[0], out)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(
    "masks",
    [
        {"key_mask": torch.ones(BATCH, 1, KEYS, dtype=torch.bool).index_fill(0, torch.tensor([1]), False)},
        {"attn_mask": torch.tensor([1, 1, 0, 1, 1]).bool().unsqueeze(-1).expand(QUERIES, KEYS)},
        {"attn_mask": torch.zeros(QUERIES, KEYS).index_fill(0, torch.tensor([2]), -INF)},
    ],
    ids=["keys", "pairs", "float pairs"],
)
def test_query_that_may_attend_to_nothing_gets_zeros(masks, core, need_weights):
    core, tensors = moved(CORES[core]()).train(), [x.requires_grad_() for x in inputs()]
    out, weights = core(*tensors, **masks, need_weights=need_weights)
    empty = out[1] if "key_mask" in masks else out[:, :, 2]
    full = out[0] if "key_mask" in masks else out[:, :, 1]
    assert empty.eq(0).all()
    assert full.ne(0).all()
    if need_weights:
        assert (weights[1] if "key_mask" in masks else weights[:, :, 2]).eq(0).all()
    out.sum().backward(retain_graph=True)
    for gradient in (*(x.grad for x in tensors), *(x.grad for x in core.parameters())):
        assert gradient is None or gradient.isfinite().all()
    for gradient in torch.autograd.grad(empty.sum(), tensors):
        assert gradient.eq(0).all()


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("poison", [NAN, INF])
def test_key_that_nobody_may_attend_to_may_hold_anything(poison, core, need_weights):
    core = moved(CORES[core]()).eval()
    query, key, value = inputs()
    hidden = torch.arange(KEYS) == 3
    masks = {"key_mask": ~hidden.expand(BATCH, 1, KEYS), "need_weights": need_weights}
    clean = core(query, key, value, **masks)
    poisoned = (x.masked_fill(hidden.unsqueeze(-1), poison) for x in (key, value))
    assert_close(core(query, *poisoned, **masks), clean)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(("n", "m"), [(0, 7), (5, 0), (1, 7), (5, 1)])
def test_smallest_sizes(n, m, core):
    core, tensors = moved(CORES[core]()).train(), [x.requires_grad_() for x in inputs(n, m)]
    for masks in ({}, {"key_mask": torch.ones(BATCH, 1, m, dtype=torch.bool)}, {"is_causal": True}):
        for need_weights in (False, True):
            out, weights = core(*tensors, **masks, need_weights=need_weights)
            assert out.shape == (BATCH, HEADS, n, VALUE_WIDTH)
            assert out.isfinite().all()
            assert weights is None or weights.shape == (BATCH, HEADS, n, m)
            if m == 1:
                assert_close(out, tensors[2].expand_as(out))
            gradients = torch.autograd.grad(out.sum(), tensors, materialize_grads=True)
            assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("mask", ["key_bias", "attn_mask"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_floating_mask_of_another_precision(dtype, mask, core):
    """Masks made by NumPy are float64, and those of nn.TransformerEncoderLayer float32 in any model."""
    core = moved(CORES[core]()).to(torch.float32).eval()
    tensors = [x.to(dtype) for x in inputs()]
    shape = (BATCH, 1, KEYS) if mask == "key_bias" else (QUERIES, KEYS)
    bias = torch.arange(math.prod(shape)).view(shape).remainder(3)
    tolerance = {"rtol": 0.05, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    for need_weights in (False, True):
        expected = core(*tensors, **{mask: bias.to(dtype)}, need_weights=need_weights)
        for other in (torch.float32, torch.float64):
            # assert_close compares dtypes, too
            assert_close(core(*tensors, **{mask: bias.to(other)}, need_weights=need_weights), expected, **tolerance)


@pytest.mark.parametrize("core", CORES)
def test_dropout_drops_weights(core):
    core = moved(CORES[core]()).eval()
    query, key, value = (x[:1].expand(200, *x.shape[1:]) for x in inputs())
    _, whole = core(query, key, value, need_weights=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out, weights = core(query, key, value, dropout_p=0.4, need_weights=True)
        quick, _ = core(query, key, value, dropout_p=0.4)
    dropped = weights == 0
    assert abs(dropped.double().mean() - 0.4) < 0.03
    assert_close(weights, (whole / 0.6).masked_fill(dropped, 0.0))
    assert_close(out, weights @ value)
    assert not quick[0].isclose(quick[1]).all()
    error = quick.std(0) / math.sqrt(200)
    assert ((quick.mean(0) - whole[0] @ value[0]).abs() < 5 * error).all()


@pytest.mark.parametrize(
    ("masks", "pooled"),
    [("none", True), ("keys", True), ("biased keys", True), ("pairs", False), ("causal keys", False)],
)
@pytest.mark.parametrize("kind", ["implicit", "copula"])
def test_spectrum_is_told_the_mean_of_attendable_keys_or_nothing(kind, masks, pooled):
    core, (query, key, value) = spectral(kind).double(), inputs()
    told = []
    forward = core.spectrum.forward
    core.spectrum.forward = lambda mean: told.append(mean) or forward(mean)
    core(query, key, value, **MASKS[masks])
    if not pooled:
        assert told == [None]
        return
    key_mask = MASKS[masks].get("key_mask", torch.ones(BATCH, 1, KEYS, dtype=torch.bool))
    expected = torch.stack([key[b, :, key_mask[b, 0]].mean(1) for b in range(BATCH)])
    assert_close(told, [expected])


def test_mean_key_without_any_key_is_zero():
    key = randn(1, BATCH, HEADS, KEYS, WIDTH).requires_grad_()
    pooled = mean_key(key, torch.zeros(BATCH, 1, KEYS, dtype=torch.bool))
    assert pooled.eq(0).all()
    pooled.sum().backward()
    assert key.grad.eq(0).all()
    assert mean_key(torch.ones(BATCH, HEADS, 0, WIDTH)).eq(0).all()


@pytest.mark.parametrize("masks", [name for name in MASKS if "causal" not in name])
def test_merged_mask_is_the_sum(masks):
    masks = MASKS[masks]
    merged = merge_masks(masks.get("key_mask"), masks.get("key_bias"), masks.get("attn_mask"))
    if merged is None:
        assert not masks
        return
    floating = any(mask.is_floating_point() for mask in masks.values())
    assert merged.is_floating_point() == floating
    merged = merged if floating else torch.zeros(merged.shape).double().masked_fill(~merged, -INF)
    assert_close(merged.expand(BATCH, HEADS, QUERIES, KEYS), one_mask(**masks))


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_at_least_float32(given, computed):
    assert at_least_float32(torch.ones(2, dtype=given)).dtype == computed


@pytest.mark.parametrize("core", [name for name in CORES if name != "dot product"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, core):
    core = moved(CORES[core]()).float().eval()
    halves = [x.to(dtype) for x in inputs()]
    out, weights = core(*halves, need_weights=True)
    expected = core(*(x.float() for x in halves), need_weights=True)
    assert out.equal(expected[0].to(dtype))
    assert weights.equal(expected[1].to(dtype))


@pytest.mark.parametrize("kind", ["direct", "implicit", "copula"])
def test_regulariser_is_that_of_the_last_forward(kind):
    core = moved(spectral(kind))
    query, key, value = inputs()
    assert core.kl == 0
    core(query, key, value)
    first = core.kl
    core(query, key + 1, value)
    assert first.requires_grad == (kind != "direct")
    assert (core.kl == first) == (kind == "direct")


def test_copy_leaves_the_graph_of_the_last_forward_behind():
    core = moved(spectral())
    core(*inputs())
    assert core.kl.requires_grad
    twin = copy.deepcopy(core)
    assert twin.kl == 0
    assert core.kl > 0
    assert twin.eval()(*inputs())[0].equal(core.eval()(*inputs())[0])


@pytest.mark.parametrize("build", [RBFCore, lambda heads, width, p: ExplicitKernelCore(RBFKernel(heads, width), p)])
def test_exponent_below_one_is_refused(build):
    with pytest.raises(ValueError, match=r"p must be at least 1 .* got 0\.5"):
        build(HEADS, WIDTH, 0.5)


def test_exponent_below_one_is_refused_by_the_spectral_core():
    with pytest.raises(ValueError, match=r"p must be at least 1 .* got 0\.5"):
        SpectralCore(DirectSpectrum(HEADS, WIDTH, 7), 0.5)


def test_representations_name_exponent_and_backend():
    assert "p=1.8" in repr(CORES["RBF"]())
    assert "p=1.8" in repr(CORES["Matern"]())
    assert "p=2.0, backend='auto'" in repr(spectral())
