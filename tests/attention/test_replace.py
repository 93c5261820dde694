"""Layers in the place of PyTorch's: built from them, inside its transformers, and swapped all over a model."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from ika_lightning.attention import (
    IKAN,
    MIKAN,
    RBF,
    DotProduct,
    ExplicitKernel,
    IKANDirect,
    MultiheadAttention,
    RBFKernel,
    replace_attention,
)

BATCH, LENGTH, WIDTH, HEADS = 3, 5, 12, 2
KINDS = [DotProduct, RBF, ExplicitKernel, IKANDirect, IKAN, MIKAN]
every_kind = pytest.mark.parametrize("kind", KINDS)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def seed():
    """Constructors and dropout draw from the global generator: start it here, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def move(module: nn.Module) -> nn.Module:
    """Move all parameters: PyTorch's biases start at zero, where nobody would miss them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def theirs(width: int = WIDTH, heads: int = HEADS, **kwargs) -> nn.MultiheadAttention:
    return move(nn.MultiheadAttention(width, heads, **{"batch_first": True, **kwargs}).double())


PADDING = torch.arange(LENGTH) >= torch.tensor([[5], [2], [3]])
FUTURE = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=torch.float64)


# ----- from_attention


@pytest.mark.parametrize(
    "kind",
    [
        DotProduct,
        RBF,
        partial(RBF, p="learned"),
        partial(ExplicitKernel, kernel=RBFKernel),
        partial(IKANDirect, num_samples=3),
        partial(IKAN, num_samples=3, p="learned"),
        partial(MIKAN, num_samples=3, stationary=True),
    ],
    ids=["DotProduct", "RBF", "RBF learned", "ExplicitKernel", "IKANDirect", "IKAN learned", "MIKAN stationary"],
)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kwargs", [{}, {"bias": False}, {"kdim": 7, "vdim": 11}, {"kdim": 7, "bias": False}], ids=str)
def test_from_attention_gives_the_outputs_of_the_layer(kwargs, batch_first, kind):
    expected = theirs(batch_first=batch_first, **kwargs)
    options = kind.keywords if isinstance(kind, partial) else {}
    ours = getattr(kind, "func", kind).from_attention(expected, **options)
    batch = (randn(1, BATCH, LENGTH, WIDTH), *(randn(2, BATCH, 7, kwargs.get(x, WIDTH)) for x in ("kdim", "vdim")))
    if not batch_first:
        batch = tuple(x.transpose(0, 1) for x in batch)
    assert_close(ours(*batch), expected(*batch), rtol=1e-12, atol=1e-12)


@every_kind
def test_from_attention_keeps_what_the_layer_knows(kind):
    layer = theirs(dropout=0.25, batch_first=False).eval()
    layer.in_proj_weight.requires_grad_(False)
    layer.out_proj.bias.requires_grad_(False)
    with torch.no_grad():
        ours = kind.from_attention(layer)
    assert type(ours) is kind
    assert (ours.embed_dim, ours.num_heads, ours.dropout, ours.batch_first) == (WIDTH, HEADS, 0.25, False)
    assert not any(module.training for module in ours.modules())
    assert {x.dtype for x in ours.state_dict().values()} == {torch.float64}
    frozen = {name for name, x in ours.named_parameters() if not x.requires_grad}
    assert frozen == {"q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.bias"}
    assert kind.from_attention(layer.train()).training
    given = kind.from_attention(layer, dropout=0.5, batch_first=True)
    assert (given.dropout, given.batch_first) == (0.5, True)
    assert {x.device.type for x in kind.from_attention(layer.to("meta")).state_dict().values()} == {"meta"}


def test_from_attention_copies():
    layer = theirs()
    ours = DotProduct.from_attention(layer)
    move(ours)
    assert not ours.out_proj.weight.isclose(layer.out_proj.weight).any()


@every_kind
@pytest.mark.parametrize("source", KINDS)
def test_from_attention_takes_layers_of_this_package(source, kind):
    layer = source(WIDTH, HEADS, dropout=0.25, bias=False, kdim=7, vdim=11, batch_first=False).bfloat16().eval()
    ours = kind.from_attention(layer)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert getattr(ours, name).weight.equal(getattr(layer, name).weight)
        assert getattr(ours, name).bias is None
    assert (ours.dropout, ours.batch_first, ours.training) == (0.25, False, False)


def test_base_takes_a_core_and_the_projections_of_a_layer():
    layer = theirs()
    ours = MultiheadAttention.from_attention(layer, core=lambda heads, width: DotProduct(WIDTH, HEADS).core)
    x = randn(1, BATCH, LENGTH, WIDTH)
    assert_close(ours(x, x, x), layer(x, x, x))


@pytest.mark.parametrize(("width", "bounds"), [(8, (0.35, 0.17, 0.09)), (16, (0.6, 0.3, 0.15))])
@pytest.mark.parametrize("kind", [IKANDirect, IKAN, MIKAN])
def test_learned_kernels_start_near_the_layer(kind, width, bounds):
    """The docstring of from_attention has a table; these are its figures with half as much again."""
    layer, x = nn.MultiheadAttention(8 * width, 8, batch_first=True).eval(), randn(1, 2, 64, 8 * width).float()
    expected, _ = layer(x, x, x)
    for num_samples, bound in zip((16, 64, 256), bounds, strict=True):
        out, _ = kind.from_attention(layer, init="rbf", num_samples=num_samples)(x, x, x)
        assert (out - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_from_attention_refuses_what_it_cannot_keep(option):
    with pytest.raises(ValueError, match=f"layer must not have {option}"):
        IKAN.from_attention(theirs(**{option: True}))


def test_from_attention_refuses_what_is_no_attention():
    with pytest.raises(TypeError, match=r"layer must be a MultiheadAttention .* got <class .*Linear'>"):
        IKAN.from_attention(nn.Linear(3, 3))


# ----- inside PyTorch's transformers

MASKS = {
    "none": {},
    "padding": {"src_key_padding_mask": PADDING},
    "float padding": {"src_key_padding_mask": torch.zeros(PADDING.shape).double().masked_fill(PADDING, -math.inf)},
    "causal": {"mask": FUTURE},
    "causal, hinted": {"mask": FUTURE, "is_causal": True},
    "causal, boolean": {"mask": FUTURE < 0, "is_causal": False},
    "causal, padded": {"mask": FUTURE, "src_key_padding_mask": torch.zeros(PADDING.shape).double()},
}


def encoder(**kwargs) -> nn.TransformerEncoder:
    kwargs = {"batch_first": True, "dropout": 0.0, **kwargs}
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 7, **kwargs)
    # PyTorch warns of its own layers otherwise
    nested = kwargs["batch_first"] and not kwargs.get("norm_first") and kwargs.get("bias", True)
    return move(nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).double())


def count_calls(model: nn.Module) -> list[MultiheadAttention]:
    """Return a list to which each layer adds itself when it is called; no hooks, for they turn off the fast path."""
    calls: list[MultiheadAttention] = []
    for layer in model.modules():
        if isinstance(layer, MultiheadAttention):
            layer.forward = lambda *args, _layer=layer, **kwargs: (
                calls.append(_layer) or type(_layer).forward(_layer, *args, **kwargs)
            )
    return calls


def built_before(model: nn.TransformerEncoder, kind) -> nn.TransformerEncoder:
    return replace_attention(copy.deepcopy(model), kind)


def built_after(model: nn.TransformerEncoder, kind) -> nn.TransformerEncoder:
    layer = copy.deepcopy(model.layers[0])
    layer.self_attn = kind.from_attention(layer.self_attn)
    twin = nn.TransformerEncoder(layer, len(model.layers))  # a warning would be an error here
    for ours, original in zip(twin.layers, model.layers, strict=True):
        attention = kind.from_attention(original.self_attn)
        ours.load_state_dict({**original.state_dict(), **attention.state_dict(prefix="self_attn.")}, strict=False)
    return twin


# what PyTorch's own layers do with padding; ours never make a nested tensor
of_theirs = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")


@of_theirs
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize(
    "kwargs", [{}, {"norm_first": True}, {"batch_first": False}, {"bias": False}, {"activation": "gelu"}], ids=str
)
def test_transformer_encoder_calls_our_forward_and_is_right(kwargs, masks, training, grad):
    original, masks = encoder(**kwargs).train(training), MASKS[masks]
    x = randn(1, BATCH, LENGTH, WIDTH)
    # PyTorch's fast path leaves zeros where it found padding: compare where nothing is padded
    real = ~PADDING if masks.get("src_key_padding_mask", FUTURE).any() and "mask" not in masks else PADDING >= 0
    if not kwargs.get("batch_first", True):
        x, real = x.transpose(0, 1), real.mT
    with torch.set_grad_enabled(grad):
        expected = original(x, **masks)
        ours = built_before(original, DotProduct).train(training)
        calls = count_calls(ours)
        out = ours(x, **masks)
    assert calls == [layer.self_attn for layer in ours.layers]
    assert not out.is_nested
    assert_close(out[real], expected[real])


@of_theirs
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("masks", ["none", "padding", "causal"])
@pytest.mark.parametrize("build", [built_before, built_after])
@every_kind
def test_transformer_encoder_takes_every_layer_whenever_it_was_built(kind, build, masks, grad):
    original, x = encoder().eval(), randn(1, BATCH, LENGTH, WIDTH)
    ours = build(original, kind).eval()
    calls = count_calls(ours)
    with torch.set_grad_enabled(grad):
        out = ours(x, **MASKS[masks])
    assert calls == [layer.self_attn for layer in ours.layers]
    assert out.shape == x.shape
    assert out.isfinite().all()
    if kind is not ExplicitKernel:
        # all others start as dot-product attention
        real = ~PADDING if masks == "padding" else PADDING >= 0
        assert_close(out[real], original(x, **MASKS[masks])[real])
    if masks == "padding":
        longer = torch.where(PADDING.unsqueeze(-1), 5 * randn(2, BATCH, LENGTH, WIDTH), x)
        assert_close(ours(longer, **MASKS[masks])[~PADDING], out[~PADDING])


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_transformer_decoder_is_right(training, norm_first):
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 7, dropout=0.0, batch_first=True, norm_first=norm_first)
    original = move(nn.TransformerDecoder(layer, 2).double()).train(training)
    ours = replace_attention(copy.deepcopy(original), DotProduct)
    target, memory = randn(1, BATCH, LENGTH, WIDTH), randn(2, BATCH, LENGTH, WIDTH)
    masks = {"tgt_mask": FUTURE, "tgt_is_causal": True, "memory_key_padding_mask": PADDING}
    calls = count_calls(ours)
    assert_close(ours(target, memory, **masks), original(target, memory, **masks))
    assert calls == [part for layer in ours.layers for part in (layer.self_attn, layer.multihead_attn)]


@of_theirs
def test_transformer_is_right():
    original = nn.Transformer(WIDTH, HEADS, 1, 1, 7, dropout=0.0, batch_first=True).double().eval()
    ours = replace_attention(copy.deepcopy(original), DotProduct)
    source, target = randn(1, BATCH, LENGTH, WIDTH), randn(2, BATCH, 3, WIDTH)
    options = {"src_key_padding_mask": PADDING, "memory_key_padding_mask": PADDING}
    with torch.no_grad():
        assert_close(ours(source, target, **options), original(source, target, **options))


def test_compiled_encoder_calls_our_forward():
    original, x = encoder().eval(), randn(1, BATCH, LENGTH, WIDTH)
    ours = built_before(original, DotProduct)
    with torch.no_grad():
        out = torch.compile(ours, backend="eager", fullgraph=True)(x)
        assert_close(out, original(x))


# ----- replace_attention


class Model(nn.Module):
    """One layer in two places, one in a list, one as deep as may be."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = theirs()
        self.several = nn.ModuleList([theirs(), nn.Linear(2, 2), self.first])
        self.encoder = encoder()


def test_replace_attention_replaces_all_and_keeps_what_is_shared():
    model = Model().eval()
    weights = model.first.out_proj.weight.clone()
    assert replace_attention(model, IKAN, p=1.8, num_samples=7) is model
    assert model.first is model.again is model.several[2]
    layers = [x for x in model.modules() if isinstance(x, MultiheadAttention)]
    assert len(layers) == 4
    assert all(type(layer) is IKAN and layer.core.p == 1.8 and not layer.training for layer in layers)
    assert all(layer.core.spectrum.points.size(1) == 7 for layer in layers)
    assert not any(isinstance(x, nn.MultiheadAttention) for x in model.modules())
    assert model.first.out_proj.weight.equal(weights)


def test_replace_attention_takes_its_own_layers_and_a_layer_itself():
    model = replace_attention(replace_attention(encoder(), IKAN), DotProduct)
    assert [type(layer.self_attn) for layer in model.layers] == [DotProduct, DotProduct]
    assert type(replace_attention(theirs(), MIKAN)) is MIKAN
    assert type(replace_attention(DotProduct(WIDTH, HEADS), RBF, p=3)) is RBF


def test_replace_attention_replaces_all_or_nothing():
    model = nn.ModuleList([theirs(), theirs(add_bias_kv=True)])
    with pytest.raises(ValueError, match="add_bias_kv"):
        replace_attention(model, IKAN)
    assert all(isinstance(layer, nn.MultiheadAttention) for layer in model)


class Adapted(nn.Module):
    """A projection with something beside it, as adapters are."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias
        self.in_features = inner.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1.0


def hooked(part: str):
    return lambda layer: layer.get_submodule(part).register_forward_hook(lambda module, args, out: 2 * out)


LOSSES = {
    "a hook of a layer": (hooked(""), "it has hooks"),
    "a hook of a projection": (hooked("out_proj"), "its out_proj has hooks"),
    "pruning": (lambda layer: prune.random_unstructured(layer.out_proj, "weight", 1), "its out_proj has hooks"),
    "spectral norm": (
        lambda layer: parametrizations.spectral_norm(layer.out_proj),
        "its out_proj has parametrizations, of weight",
    ),
    "an adapter": (
        lambda layer: setattr(layer, "out_proj", Adapted(layer.out_proj)),
        "its out_proj is a Adapted, and not the linear layer that it was made with",
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("make", [theirs, lambda: DotProduct(WIDTH, HEADS).double()], ids=["theirs", "ours"])
def test_replace_attention_refuses_to_lose_something(make, loss):
    change, message = LOSSES[loss]
    model = nn.ModuleList([make(), make()])
    change(model[1])
    error = rf"^1 would lose something: {message}.*; strict=False replaces it all the same$"
    with pytest.raises(ValueError, match=error):
        replace_attention(model, IKAN)
    assert not any(isinstance(layer, IKAN) for layer in model)
    if loss != "an adapter":
        replace_attention(model, IKAN, strict=False)
        assert all(isinstance(layer, IKAN) for layer in model)


def test_replace_attention_sees_parametrizations_of_the_packed_weight():
    layer = theirs()
    parametrizations.weight_norm(layer, "in_proj_weight")
    with pytest.raises(ValueError, match="it has parametrizations, of in_proj_weight"):
        replace_attention(nn.ModuleList([layer]), RBF)


def test_replace_attention_refuses_to_untie_weights():
    model = nn.ModuleDict({"a": theirs(), "b": theirs()})
    model["b"].in_proj_weight = model["a"].in_proj_weight
    with pytest.raises(ValueError, match=r"^a would lose something: its in_proj_weight is shared with another part"):
        replace_attention(model, DotProduct)
    outside = nn.ModuleDict({"a": DotProduct(WIDTH, HEADS), "head": nn.Linear(WIDTH, WIDTH)})
    outside["head"].weight = outside["a"].out_proj.weight
    with pytest.raises(ValueError, match=r"its out_proj\.weight is shared"):
        replace_attention(outside, DotProduct)


def test_what_comes_along_is_not_an_option():
    for options in ({"dtype": torch.float64}, {"device": "meta"}):
        with pytest.raises(ValueError, match=r"of a layer's parameters come along; call \.to\(\.\.\.\) on the result"):
            replace_attention(nn.ModuleList([theirs()]), IKAN, **options)


def test_replace_attention_says_if_there_is_nothing_to_replace():
    with pytest.raises(ValueError, match=r"found none in <class .*Linear'>"):
        replace_attention(nn.Linear(3, 3), IKAN)


@every_kind
def test_somebody_elses_encoder_trains_after_one_call(kind):
    """A row's target is another row's value: there is something for attention to learn."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True)
    model = replace_attention(nn.TransformerEncoder(layer, 2), kind)
    x = randn(1, 8, LENGTH, WIDTH).float()
    target = x.roll(1, 1).tanh()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = (model(x, src_key_padding_mask=torch.zeros(8, LENGTH, dtype=torch.bool)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(x.grad is not None for x in model.parameters())
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
