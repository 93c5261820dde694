"""Cores against one another and against PyTorch's attention, without projections."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from ika_lightning.attention import (
    Bochner,
    Core,
    DirectSpectrum,
    ExplicitKernel,
    FeatureMap,
    GaussianCopula,
    ImplicitSpectrum,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    Spectrum,
    Yaglom,
)
from ika_lightning.attention.core import at_least_float32
from ika_lightning.attention.features import fourier
from ika_lightning.attention.kernels import Kernel
from ika_lightning.attention.mask import Mask
from ika_lightning.attention.spectrum import mean_key

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


class Formula(Kernel):
    """The Gaussian kernel by its formula alone, which no backend knows to be an exponential of a product."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        squared = (query.unsqueeze(-2) - key.unsqueeze(-3)).square().sum(-1)
        return -squared / (2 * self.lengthscale.square())


def core_of(kind: str = "implicit", p=2.0, kernel=None, share=None, backend: str = "auto", **kwargs) -> Core:
    """A core whose kernel is learned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "direct":
            spectrum: Spectrum = DirectSpectrum(HEADS, WIDTH, 13, **kwargs)
        else:
            copula = GaussianCopula(HEADS, WIDTH) if kind == "copula" else None
            spectrum = ImplicitSpectrum(HEADS, WIDTH, 13, copula=copula, **kwargs)
    return Core(HEADS, WIDTH, kernel=kernel, spectrum=spectrum, p=p, share=share, backend=backend)


def both(kind: str = "implicit", p=2.0, precision: float = 0.6, share: float = 0.7, **kwargs) -> Core:
    """A core with an exact part and a sampled one."""
    return core_of(kind, p, RBFKernel(HEADS, WIDTH, precision), share, **kwargs)


def of_kernel(kernel: Kernel, p=2.0) -> Core:
    return Core(HEADS, WIDTH, kernel=kernel, p=p)


def rbf(p=2.0) -> Core:
    return of_kernel(RBFKernel(HEADS, WIDTH), p)


CORES = {
    "dot product": lambda: Core(HEADS, WIDTH),
    "RBF": lambda: rbf(1.8),
    "RBF learned": lambda: rbf("learned"),
    "Matern": lambda: of_kernel(MaternKernel(HEADS, WIDTH), 1.8),
    "linear": lambda: of_kernel(LinearKernel(HEADS, WIDTH), 1.8),
    "direct": lambda: core_of("direct"),
    "implicit": core_of,
    "copula": lambda: core_of("copula"),
    "both": both,
    "both, direct": lambda: both("direct", 1.8),
    "both, copula, learned": lambda: both("copula", "learned", stationary=True),
}

KEY_MASK = some(10, BATCH, 1, 1, KEYS) | (torch.arange(KEYS) == 0)
KEY_BIAS = randn(11, BATCH, 1, 1, KEYS)
#: Pairs that may attend, and what is added to those that may.
FLOAT_PAIRS = (torch.arange(KEYS) != 2).expand(QUERIES, KEYS)
MASKS = {
    "none": Mask(),
    "keys": Mask(keys=KEY_MASK),
    "biased keys": Mask(keys=KEY_MASK, key_bias=KEY_BIAS),
    "pairs": Mask(pairs=some(12, QUERIES, KEYS) | (torch.arange(KEYS) == 0)),
    "heads' pairs": Mask(pairs=some(13, BATCH, HEADS, QUERIES, KEYS) | (torch.arange(KEYS) == 0)),
    "float pairs": Mask(pairs=FLOAT_PAIRS, pair_bias=randn(14, QUERIES, KEYS)),
    "keys and pairs": Mask(keys=KEY_MASK, pairs=torch.arange(KEYS).roll(1).expand(QUERIES, KEYS) != 3),
    "all": Mask(keys=KEY_MASK, key_bias=KEY_BIAS, pair_bias=randn(15, QUERIES, KEYS)),
    "causal": Mask(causal=True),
    "causal keys": Mask(keys=KEY_MASK, causal=True),
    "causal pairs": Mask(pair_bias=randn(16, BATCH, HEADS, QUERIES, KEYS), causal=True),
}


def one_mask(mask: Mask) -> Tensor:
    """All of a mask as one that is added, element by element."""
    added = torch.zeros(BATCH, HEADS, QUERIES, KEYS, dtype=torch.float64)
    for bias in (mask.key_bias, mask.pair_bias):
        added = added if bias is None else added + bias
    for allowed in (mask.keys, mask.pairs):
        added = added if allowed is None else torch.where(allowed, added, -INF)
    if mask.causal:
        added = torch.where(torch.arange(KEYS) <= torch.arange(QUERIES).unsqueeze(-1), added, -INF)
    return added


def by_formula(core: Core, query: Tensor, key: Tensor, features: FeatureMap | None) -> Tensor:
    """The weights of a core without masks, from the formula at the top of its file."""
    weights = torch.ones(())
    if core.kernel is not None:
        weights = core.kernel(query, key).exp()
    if features is not None:
        rho = features(query) @ features(key).mT
        share = 1.0 if core.share is None else core.share[:, None, None]
        weights = weights * ((1 - share + share * rho) ** 2 + 1e-5)
    p = core.p if isinstance(core.p, Tensor) else torch.full((HEADS,), core.p)
    norms = [torch.linalg.vector_norm(key[:, head], p[head].item(), dim=-1) for head in range(HEADS)]
    magnitude = torch.stack(norms, 1) ** 2 / (2 * WIDTH**0.5)
    if core.magnitude.scale is not None:
        magnitude = magnitude * core.magnitude.scale.unsqueeze(-1)
    weights = weights * magnitude.exp().unsqueeze(-2)
    return weights / weights.sum(-1, keepdim=True)


#: Cores that are dot-product attention at the start, whatever their samples.
STARTS = {
    "dot product": lambda: Core(HEADS, WIDTH),
    "RBF": rbf,
    "RBF learned": lambda: rbf("learned"),
    "formula": lambda: of_kernel(Formula(HEADS, WIDTH)),
    "direct": lambda: both("direct", precision=1.0, share=0.0),
    "implicit": lambda: both("implicit", precision=1.0, share=0.0, stationary=True),
    "copula, learned": lambda: both("copula", "learned", precision=1.0, share=0.0),
    "reference": lambda: both("direct", precision=1.0, share=0.0, backend="reference"),
}


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("core", STARTS)
def test_is_dot_product_attention(core, masks, need_weights):
    """The Gaussian kernel at its initial lengthscale times the L2 magnitude is what everybody uses."""
    core, mask = STARTS[core]().double(), MASKS[masks]

    def expected(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=one_mask(mask))

    def ours(query, key, value):
        out, weights = core(query, key, value, mask, need_weights=need_weights)
        assert (weights is not None) is need_weights
        return out

    assert_close(with_gradients(ours, *inputs()), with_gradients(expected, *inputs()), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("masks", ["none", "keys", "all", "causal"])
@pytest.mark.parametrize("p", [*POWERS, "learned"])
def test_gaussian_kernel_as_an_exponential_of_a_product_is_its_formula(p, masks):
    mask = MASKS[masks]
    fused, plain = moved(rbf(p)), of_kernel(Formula(HEADS, WIDTH), p).double()
    plain.load_state_dict(fused.state_dict())
    assert fused.kernel.lengthscale.unique().numel() == HEADS

    def attend(core):
        def function(query, key, value, log_lengthscale):
            parameters = {"kernel.log_relative_lengthscale": log_lengthscale}
            out, _ = torch.func.functional_call(core, parameters, (query, key, value, mask))
            return out

        return function

    tensors = (*inputs(), fused.kernel.log_relative_lengthscale)
    ours, expected = with_gradients(attend(fused), *tensors), with_gradients(attend(plain), *tensors)
    assert ours[4].ne(0).all()
    assert_close(ours, expected, rtol=1e-8, atol=1e-9)
    weights = (core(*inputs(), mask, need_weights=True)[1] for core in (fused, plain))
    assert_close(*weights)


@pytest.mark.parametrize("p", [*POWERS, "learned"])
@pytest.mark.parametrize("kernel", [RBFKernel, MaternKernel, PeriodicKernel, LinearKernel])
def test_kernel_is_similarity_times_magnitude(kernel, p):
    core, (query, key, value) = moved(of_kernel(kernel(HEADS, WIDTH), p)), inputs()
    expected = by_formula(core, query, key, None)
    assert_close(core(query, key, value, need_weights=True), (expected @ value, expected))


@pytest.mark.parametrize("p", [*POWERS, "learned"])
@pytest.mark.parametrize("stationary", [True, False])
@pytest.mark.parametrize("kind", ["direct", "implicit", "copula"])
@pytest.mark.parametrize("build", [core_of, both])
def test_spectrum_is_squared_similarity_times_magnitude(build, kind, stationary, p):
    core, (query, key, value) = moved(build(kind, p, stationary=stationary)).eval(), inputs()
    features, kl = core.spectrum(None if kind == "direct" else key.mean(-2))
    assert type(features) is (Bochner if stationary else Yaglom)
    expected = by_formula(core, query, key, features)
    assert_close(core(query, key, value, need_weights=True), (expected @ value, expected))
    assert_close(core(query, key, value)[0], expected @ value)
    assert_close(core.kl, kl)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("share", [-0.4, 0.0, 0.5, 1.0, 1.3])
def test_any_share_is_the_formula(share, masks):
    """Training is free to leave [0, 1], and the share is not."""
    core, (query, key, value) = moved(both("direct", "learned")), inputs()
    core.free_share.data.fill_(share)
    expected = by_formula(core, query, key, core.spectrum()[0]) * one_mask(MASKS[masks]).exp()
    expected = expected / expected.sum(-1, keepdim=True)
    assert_close(core(query, key, value, MASKS[masks], need_weights=True), (expected @ value, expected))


def backends_of(core: Core) -> list[str]:
    """Those that serve the core where queries share a mask, and are not its formula."""
    if core.spectrum is None:
        return ["dense", "sdpa"]
    return ["dense", "chunked", "linear"] if core.kernel is None else ["dense", "chunked"]


@pytest.mark.parametrize("masks", ["none", "keys", "biased keys", "causal", "causal keys"])
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        (name, backend)
        for name, build in CORES.items()
        if name not in ("Matern", "linear")
        for backend in backends_of(build())
    ],
)
def test_backends_are_the_reference(name, backend, masks, tile):
    core, mask = moved(CORES[name]()).eval(), MASKS[masks]
    results = []
    for core.backend in (backend, "reference"):
        tensors = [x.requires_grad_() for x in inputs()] + list(core.parameters())
        out, _ = core(*tensors[:3], mask)
        loss = (out * randn(99, *out.shape)).sum()
        results.append([out, *torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)])
    assert_close(*results, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("stationary", [True, False])
@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_gradients_of_share_precision_and_exponent(backend, stationary, is_causal):
    core = moved(both("direct", "learned", stationary=stationary, backend=backend))
    chosen = ("free_share", "kernel.log_relative_lengthscale", "magnitude.raw_p", "magnitude.log_scale")
    values = [core.get_parameter(name).detach().requires_grad_() for name in chosen]
    query, key, value = inputs(3, 5)

    def attend(*values):
        parameters = dict(zip(chosen, values, strict=True))
        return torch.func.functional_call(core, parameters, (query, key, value, Mask(causal=is_causal)))[0]

    assert torch.autograd.gradcheck(attend, values)
    for gradient in torch.autograd.grad(attend(*values).square().sum(), values):
        assert gradient.ne(0).all()


def test_second_derivatives_are_those_of_dense():
    results = []
    for backend in ("dense", "chunked"):
        core = moved(both("direct", 1.8, backend=backend))
        query, key, value = (x.requires_grad_() for x in inputs())
        out, _ = core(query, key, value)
        tensors = (query, key, value, *core.parameters())
        first = torch.autograd.grad((out * randn(98, *out.shape)).sum(), tensors, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in first)
        results.append([*first, *torch.autograd.grad(penalty, tensors, materialize_grads=True)])
    assert_close(*results, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("free", "share", "slope"),
    [(-1.3, 0.7, 1), (-0.2, 0.2, -1), (0.0, 0.0, 1), (0.3, 0.3, 1), (1.0, 1.0, 1), (1.3, 0.7, -1), (2.2, 0.2, 1)],
)
def test_share_is_folded_into_its_range_and_moves_everywhere(free, share, slope):
    core = both("direct")
    core.free_share.data.fill_(free)
    assert_close(core.share, torch.full((HEADS,), share), rtol=1e-6, atol=1e-6)
    core.share.sum().backward()
    assert core.free_share.grad.eq(slope).all()


@pytest.mark.parametrize("share", [-0.4, 0.0, 0.4, 1.0, 1.3])
@pytest.mark.parametrize("stationary", [True, False])
def test_similarity_is_positive_semidefinite(stationary, share):
    core = moved(both("direct", stationary=stationary))
    core.free_share.data.fill_(share)
    x = randn(1, HEADS, 17, WIDTH)
    similarity = core.log_similarity(x, x, core.spectrum()[0]).exp()
    assert_close(similarity, similarity.mT)
    assert torch.linalg.eigvalsh(similarity).min() > -1e-12


@pytest.mark.parametrize("name", CORES)
def test_weights_are_similarity_times_magnitude(name):
    """Of what pictures show, the quotients must be those that attention has."""
    core, (query, key, value) = moved(CORES[name]()).eval(), inputs()
    keys = core.encode_keys(key, value)
    magnitude = core.magnitude(key) if core.kernel or core.spectrum else key.square().sum(-1) / (2 * WIDTH**0.5)
    expected = (core.log_similarity(query, key, keys.feature_map) + magnitude.unsqueeze(-2)).softmax(-1)
    assert_close(core(query, key, value, need_weights=True)[1], expected)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("core", CORES)
def test_masks_add_to_the_logarithms_of_the_weights(core, masks, monkeypatch):
    """Against the same core's weights where no mask forbids or adds anything."""
    core, mask = moved(CORES[core]()).eval(), MASKS[masks]
    with monkeypatch.context() as patch:
        if core.spectrum is not None:
            # Masks change the mean key, and with it the kernel: make the frequencies those of the masked call.
            shared = mask.pairs is None and mask.pair_bias is None and not mask.causal
            pooled = core.spectrum.conditional and shared
            drawn = core.spectrum(mean_key(inputs()[1], mask.keys, mask.key_bias) if pooled else None)
            patch.setattr(core.spectrum, "forward", lambda _: drawn)
        _, free = core(*inputs(), need_weights=True)
    expected = free * one_mask(mask).exp()
    expected = expected / expected.sum(-1, keepdim=True)
    out, weights = core(*inputs(), mask, need_weights=True)
    assert_close(weights, expected)
    assert_close(out, expected @ inputs()[2])
    assert_close(core(*inputs(), mask)[0], out)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(
    "mask",
    [
        Mask(keys=torch.ones(BATCH, 1, 1, KEYS, dtype=torch.bool).index_fill(0, torch.tensor([1]), False)),
        Mask(pairs=torch.tensor([1, 1, 0, 1, 1]).bool().unsqueeze(-1).expand(QUERIES, KEYS)),
        Mask.of(torch.zeros(QUERIES, KEYS).index_fill(0, torch.tensor([2]), -INF)),
    ],
    ids=["keys", "pairs", "float pairs"],
)
def test_query_that_may_attend_to_nothing_gets_zeros(mask, core, need_weights):
    core, tensors = moved(CORES[core]()).train(), [x.requires_grad_() for x in inputs()]
    out, weights = core(*tensors, mask, need_weights=need_weights)
    empty = out[:, :, 2] if mask.keys is None else out[1]
    full = out[:, :, 1] if mask.keys is None else out[0]
    assert empty.eq(0).all()
    assert full.ne(0).all()
    if need_weights:
        assert (weights[:, :, 2] if mask.keys is None else weights[1]).eq(0).all()
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
    options = {"mask": Mask(keys=~hidden.expand(BATCH, 1, 1, KEYS)), "need_weights": need_weights}
    clean = core(query, key, value, **options)
    poisoned = (x.masked_fill(hidden.unsqueeze(-1), poison) for x in (key, value))
    assert_close(core(query, *poisoned, **options), clean)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(("n", "m"), [(0, 7), (5, 0), (1, 7), (5, 1)])
def test_smallest_sizes(n, m, core):
    core, tensors = moved(CORES[core]()).train(), [x.requires_grad_() for x in inputs(n, m)]
    for mask in (Mask(), Mask(keys=torch.ones(BATCH, 1, 1, m, dtype=torch.bool)), Mask(causal=True)):
        for need_weights in (False, True):
            out, weights = core(*tensors, mask, need_weights=need_weights)
            assert out.shape == (BATCH, HEADS, n, VALUE_WIDTH)
            assert out.isfinite().all()
            assert weights is None or weights.shape == (BATCH, HEADS, n, m)
            if m == 1:
                assert_close(out, tensors[2].expand_as(out))
            gradients = torch.autograd.grad(out.sum(), tensors, materialize_grads=True)
            assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("part", ["key_bias", "pair_bias"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_floating_mask_of_another_precision(dtype, part, core):
    """Masks made by NumPy are float64, and those of nn.TransformerEncoderLayer float32 in any model."""
    core = moved(CORES[core]()).to(torch.float32).eval()
    tensors = [x.to(dtype) for x in inputs()]
    shape = (BATCH, 1, 1, KEYS) if part == "key_bias" else (QUERIES, KEYS)
    bias = torch.arange(math.prod(shape)).view(shape).remainder(3)
    tolerance = {"rtol": 0.05, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    for need_weights in (False, True):
        expected = core(*tensors, Mask(**{part: bias.to(dtype)}), need_weights=need_weights)
        for other in (torch.float32, torch.float64):
            # assert_close compares dtypes, too
            mask = Mask(**{part: bias.to(other)})
            assert_close(core(*tensors, mask, need_weights=need_weights), expected, **tolerance)


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
@pytest.mark.parametrize("build", [core_of, both])
def test_spectrum_is_told_the_mean_of_attendable_keys_or_nothing(build, kind, masks, pooled):
    core, (query, key, value) = build(kind).double(), inputs()
    told = []
    forward = core.spectrum.forward
    core.spectrum.forward = lambda mean: told.append(mean) or forward(mean)
    core(query, key, value, MASKS[masks])
    if not pooled:
        assert told == [None]
        return
    keys, bias = MASKS[masks].keys, MASKS[masks].key_bias
    weights = torch.ones(BATCH, 1, 1, KEYS, dtype=torch.float64) if keys is None else keys.double()
    weights = (weights if bias is None else weights * bias.exp()).expand(BATCH, 1, 1, KEYS).mT
    assert_close(told, [(key * weights).sum(2) / weights.sum(2)])


@pytest.mark.parametrize("kind", ["implicit", "copula"])
@pytest.mark.parametrize("build", [core_of, both])
def test_a_key_that_weighs_double_is_one_that_is_there_twice(build, kind):
    """Whatever a spectrum is told: its mean key weighs keys as the mask does."""
    core, (query, key, value) = moved(build(kind)).eval(), inputs()
    bias = torch.zeros(1, KEYS, dtype=torch.float64)
    bias[0, 2] = math.log(2.0)
    twice = [torch.cat([x, x[..., 2:3, :]], -2) for x in (key, value)]
    assert_close(core(query, key, value, Mask.of(bias))[0], core(query, *twice)[0])


def test_mean_key_without_any_key_is_zero():
    key = randn(1, BATCH, HEADS, KEYS, WIDTH).requires_grad_()
    pooled = mean_key(key, torch.zeros(BATCH, 1, 1, KEYS, dtype=torch.bool))
    assert pooled.eq(0).all()
    pooled.sum().backward()
    assert key.grad.eq(0).all()
    assert mean_key(torch.ones(BATCH, HEADS, 0, WIDTH)).eq(0).all()


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
@pytest.mark.parametrize("build", [core_of, both])
def test_regulariser_is_that_of_the_last_forward(build, kind):
    core = moved(build(kind))
    query, key, value = inputs()
    assert core.kl == 0
    core(query, key, value)
    first = core.kl
    core(query, key + 1, value)
    assert first.requires_grad == (kind != "direct")
    assert (core.kl == first) == (kind == "direct")


def test_copy_leaves_the_graph_of_the_last_forward_behind():
    core = moved(core_of())
    core(*inputs())
    assert core.kl.requires_grad
    twin = copy.deepcopy(core)
    assert twin.kl == 0
    assert core.kl > 0
    assert twin.eval()(*inputs())[0].equal(core.eval()(*inputs())[0])


@pytest.mark.parametrize("build", [rbf, partial(of_kernel, MaternKernel(HEADS, WIDTH)), partial(core_of, "direct")])
def test_exponent_below_one_is_refused(build):
    with pytest.raises(ValueError, match=r"p must be at least 1 .* got 0\.5"):
        build(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.8}, r"dot-product attention has p = 2, got p=1\.8; an RBFKernel has any"),
        ({"p": "learned"}, "dot-product attention has p = 2, got p=learned"),
        ({"share": 0.5}, r"share is the part of a spectrum beside a kernel, .* got share=0\.5"),
        ({"share": 0.5, "kernel": RBFKernel(HEADS, WIDTH)}, r"goes with both; got share=0\.5"),
        ({"share": 0.5, "spectrum": DirectSpectrum(HEADS, WIDTH, 7)}, r"goes with both; got share=0\.5"),
        ({"kernel": RBFKernel(HEADS, WIDTH), "spectrum": DirectSpectrum(HEADS, WIDTH, 7)}, "both; got share=None"),
        (
            {"kernel": MaternKernel(HEADS, WIDTH), "spectrum": DirectSpectrum(HEADS, WIDTH, 7), "share": 0.5},
            "the kernel beside a spectrum must be an RBFKernel, got MaternKernel",
        ),
        ({"backend": "fast"}, "backend must be one of 'auto', .*, got 'fast'"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Core(HEADS, WIDTH, **options)


@pytest.mark.parametrize("share", [-0.1, 1.1, NAN])
def test_share_out_of_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got"):
        both(share=share)


@pytest.mark.parametrize("precision", [0.0, -1.0, INF, NAN])
def test_precision_that_is_not_positive_is_refused(precision):
    with pytest.raises(ValueError, match=r"precision, .* must be positive, got"):
        RBFKernel(HEADS, WIDTH, precision)


@pytest.mark.parametrize("mask", [torch.ones(QUERIES, KEYS + 1), torch.ones(QUERIES + 1, KEYS)], ids=["keys", "rows"])
@pytest.mark.parametrize("core", CORES)
def test_mask_that_does_not_fit_is_refused(core, mask):
    with pytest.raises(ValueError, match=r"a mask must broadcast to .* = \(\.\.\., 5, 7\), got shape"):
        CORES[core]().double()(*inputs(), Mask(pairs=mask.bool()))


@pytest.mark.parametrize("backend", ["linear", "sdpa"])
def test_backend_that_cannot_serve_the_core_is_refused(backend):
    core = both(backend=backend).double()
    with pytest.raises(ValueError, match=f"backend '{backend}' .*; take 'auto' or 'dense' for this call"):
        core(*inputs())


class Polynomial(FeatureMap):
    """Features that are no waves, and of another number."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.square(), torch.ones_like(x[..., :1])], -1) / x.size(-1)


class Fixed(Spectrum):
    def __init__(self, feature_map: FeatureMap) -> None:
        super().__init__()
        self.feature_map = feature_map

    def forward(self, mean_key: Tensor | None = None) -> tuple[FeatureMap, Tensor]:
        return self.feature_map, torch.full((), 3.0)


@pytest.mark.parametrize("options", [{}, {"kernel": RBFKernel(HEADS, WIDTH, 0.6), "share": 0.7}], ids=["alone", "both"])
@pytest.mark.parametrize("backend", ["auto", "chunked", "reference"])
def test_feature_map_of_ones_own(backend, options):
    core = moved(Core(HEADS, WIDTH, spectrum=Fixed(Polynomial()), backend=backend, **copy.deepcopy(options)))
    query, key, value = inputs()
    assert_close(core(query, key, value)[0], by_formula(core, query, key, Polynomial()) @ value)
    assert core.kl == 3


class Returning(Spectrum):
    def __init__(self, returned: object, conditional: bool = False) -> None:
        super().__init__()
        self.returned, self.conditional = returned, conditional

    def forward(self, mean_key: Tensor | None = None) -> tuple[FeatureMap, Tensor]:
        return self.returned


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (Polynomial(), r"^Returning must return a FeatureMap and its regulariser, got a Polynomial$"),
        ((None, torch.zeros(())), r"FeatureMap and its regulariser, got \(a NoneType, a tensor of shape \(\)\)"),
        ((Polynomial(), 0.0), r"^the regulariser of Returning must be a tensor without axes.*, got a float$"),
        ((Polynomial(), torch.zeros(2)), r"without axes, such as torch.zeros\(\(\)\), got a tensor of shape \(2,\)$"),
        (
            (fourier((torch.ones(HEADS + 1, 5, WIDTH),)), torch.zeros(())),
            rf"frequencies must be \(heads, samples, width\) with {HEADS} heads, .* shape \({HEADS + 1}, 5, {WIDTH}\)",
        ),
    ],
)
def test_a_spectrum_that_returns_something_else_is_refused(returned, error):
    with pytest.raises((TypeError, ValueError), match=error):
        Core(HEADS, WIDTH, spectrum=Returning(returned))(*inputs())


def test_a_conditional_map_says_what_it_is_for_some_sequences():
    class Shifted(FeatureMap):
        def __init__(self, shift: Tensor) -> None:
            self.shift = shift

        def __call__(self, x: Tensor) -> Tensor:
            return torch.cat([x + self.shift.unsqueeze(-2), torch.ones_like(x[..., :1])], -1)

    class Selecting(Shifted):
        def select(self, index: Tensor) -> FeatureMap:
            return Selecting(self.shift.index_select(0, index))

    class Told(Spectrum):
        conditional = True

        def __init__(self, kind: type[Shifted]) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, mean_key: Tensor | None = None) -> tuple[FeatureMap, Tensor]:
            return self.kind(mean_key), torch.zeros(())

    with pytest.raises(TypeError, match=r"Shifted, of the conditional Told, must say in select\(index\)"):
        Core(HEADS, WIDTH, spectrum=Told(Shifted))(*inputs())
    core, (query, key, value), order = Core(HEADS, WIDTH, spectrum=Told(Selecting)), inputs(), torch.tensor([1, 0])
    selected = core.encode_keys(key, value).select(order)
    assert_close(core.attend(query, selected)[0], core(query, key[order], value[order])[0])


def test_parts_that_are_none_are_refused():
    with pytest.raises(TypeError, match="spectrum must be a subclass of Spectrum, got Linear"):
        Core(HEADS, WIDTH, spectrum=torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="kernel must be a subclass of Kernel, got Linear"):
        Core(HEADS, WIDTH, kernel=torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"kernel must be a class, or .*, got a RBFKernel made; give RBFKernel"):
        ExplicitKernel(8, 2, kernel=RBFKernel(2, 4))


@pytest.mark.parametrize("hidden", [-1e4, -1e9, torch.finfo(torch.float32).min])
def test_keys_that_a_finite_mask_hides_are_not_told_to_a_spectrum(hidden):
    """As (1 - mask) * -1e4, which many models have: a prediction must not depend on what the padding holds."""
    for kind in ("implicit", "copula"):
        core, (query, key, value) = moved(core_of(kind)).float(), [x.float() for x in inputs()]
        bias = torch.zeros(BATCH, 1, 1, KEYS)
        bias[0, ..., 4:], bias[1, ..., 2:] = hidden, hidden
        other = torch.where(bias == 0.0, key.mT, 7.0 - 3.0 * key.mT).mT
        outs = [core.eval()(query, keys, value, Mask.of(bias))[0] for keys in (key, other)]
        assert_close(*outs, rtol=0.0, atol=0.0)
        assert_close(outs[0], core(query, key, value, Mask.of(bias == 0.0))[0], rtol=1e-4, atol=1e-5)


def test_the_mean_key_is_weighed_as_the_mask_weighs_keys():
    key, bias = torch.tensor([[[[1.0], [5.0], [-7.0]]]]), torch.tensor([[[[0.0, math.log(3.0), -1e9]]]])
    assert_close(mean_key(key, None, bias), torch.tensor([[[4.0]]]))
    assert_close(mean_key(key, torch.tensor([[[[True, False, False]]]]), bias), torch.tensor([[[1.0]]]))
    assert_close(mean_key(key, torch.zeros(1, 1, 1, 3, dtype=torch.bool), bias), torch.zeros(1, 1, 1))
    # a mask that broadcasts, and one for which all keys are far
    assert_close(mean_key(key, torch.ones(1, 1, 1, 1, dtype=torch.bool)), mean_key(key))
    assert_close(mean_key(key, None, torch.full((1, 1, 1, 1), -1e9)), mean_key(key))
    assert_close(mean_key(key[..., :0, :], None, bias[..., :0]), torch.zeros(1, 1, 1))


def test_feature_map_that_returns_other_rows_is_refused():
    class Turned(FeatureMap):
        def __call__(self, x: Tensor) -> Tensor:
            return x.mT

    with pytest.raises(ValueError, match=r"with a row for each of 7 rows, got shape \(2, 3, 11, 7\) for \(2, 3, 7, 11"):
        Core(HEADS, WIDTH, spectrum=Fixed(Turned()))(*inputs())


@pytest.mark.parametrize("core", CORES)
def test_reset_returns_to_a_start(core):
    core = CORES[core]()
    start = {name: x.clone() for name, x in core.named_parameters() if "spectrum" not in name}
    moved(core).float().reset_parameters()
    assert_close({name: x.detach() for name, x in core.named_parameters() if name in start}, start)


@pytest.mark.parametrize("kind", ["direct", "implicit", "copula"])
def test_state_of_a_core_without_an_exact_part_loads_into_one_with(kind):
    """Checkpoints of the first version have neither a lengthscale nor a share."""
    old, new = moved(core_of(kind, 1.8)).eval(), both(kind, 1.8).double().eval()
    new.load_state_dict(old.state_dict())
    for mask in MASKS.values():
        assert_close(new(*inputs(), mask), old(*inputs(), mask), rtol=1e-9, atol=1e-10)


def test_state_that_lacks_a_part_is_refused():
    state = both().state_dict()
    del state["free_share"]
    with pytest.raises(RuntimeError, match=r'Missing key.* "free_share"'):
        both().load_state_dict(state)


def test_representations_name_exponent_and_backend():
    assert "p=1.8" in repr(CORES["RBF"]())
    assert "p=1.8" in repr(CORES["Matern"]())
    assert "p=learned" in repr(CORES["RBF learned"]())
    assert "p=2.0" in repr(core_of())
    assert "backend='chunked'" in repr(core_of(backend="chunked"))
