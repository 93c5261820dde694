"""What a recorder takes down is what the layers did, and it changes nothing."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ika_lightning.attention import (
    IKAN,
    MIKAN,
    RBF,
    DotProduct,
    ExplicitKernel,
    IKANDirect,
    KernelGATConv,
    KernelTransformerConv,
)
from ika_lightning.attention.core import Core
from ika_lightning.pictures import Recorder, record_spectra
from ika_lightning.pictures.record import attention_layers
from ika_lightning.pictures.similarity import draw_similarity
from ika_lightning.pictures.weights import attention_weights, draw_magnitude

SEQUENCES, QUERIES, KEYS, HEADS, WIDTH = 3, 5, 7, 2, 6
LAYERS = {
    "dot": lambda *sizes: DotProduct(*sizes, batch_first=True),
    "rbf": lambda *sizes: RBF(*sizes, batch_first=True, p=1.5),
    "explicit": lambda *sizes: ExplicitKernel(*sizes, batch_first=True, p=3.0),
    "direct": lambda *sizes: IKANDirect(*sizes, batch_first=True, p=1.0),
    "implicit": lambda *sizes: IKAN(*sizes, batch_first=True, p=1.8, stationary=True),
    "copula": lambda *sizes: MIKAN(*sizes, batch_first=True, p="inf"),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def trained(layer: nn.Module) -> nn.Module:
    """Move all parameters off their start, where much is zero or one."""
    for number, parameter in enumerate(layer.parameters()):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return layer.double().eval()


def padding() -> torch.Tensor:
    mask = torch.zeros(SEQUENCES, KEYS, dtype=torch.bool)
    mask[1, 4:] = True
    mask[2, 1:] = True
    return mask


MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "padding": {"key_padding_mask": padding()},
    "added to keys": {"key_padding_mask": torch.linspace(-1, 1, SEQUENCES * KEYS).double().view(SEQUENCES, KEYS)},
    "by query": {"attn_mask": torch.arange(QUERIES).unsqueeze(1) < torch.arange(KEYS)},
    "by sequence and head": {"attn_mask": torch.arange(210).view(SEQUENCES * HEADS, QUERIES, KEYS) % 3 == 0},
    "two at once": {"key_padding_mask": padding(), "attn_mask": torch.eye(QUERIES, KEYS, dtype=torch.bool)},
}  # fmt: skip


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_weights_of_a_picture_are_those_of_the_layer(kind, masks) -> None:
    layer = trained(LAYERS[kind](HEADS * WIDTH, HEADS))
    x, y = torch.randn(SEQUENCES, QUERIES, HEADS * WIDTH).double(), torch.randn(SEQUENCES, KEYS, HEADS * WIDTH).double()
    with Recorder(layer) as recorder:
        layer(x, y, y, need_weights=False, **masks)
    _, expected = layer(x, y, y, average_attn_weights=False, **masks)
    assert_close(attention_weights(recorder.recordings[""]), expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_few_sequences_and_queries_are_enough(kind) -> None:
    layer = trained(LAYERS[kind](HEADS * WIDTH, HEADS))
    x = torch.randn(SEQUENCES, KEYS, HEADS * WIDTH).double()
    mask = (torch.arange(SEQUENCES * HEADS * KEYS * KEYS) % 5 == 0).view(-1, KEYS, KEYS)
    for masks in ({"is_causal": True}, {"attn_mask": mask}, {"key_padding_mask": padding()}):
        with Recorder(layer, max_sequences=2, max_queries=3) as recorder:
            layer(x, x, x, need_weights=False, **masks)
        _, expected = layer(x, x, x, average_attn_weights=False, **masks)
        drawn = attention_weights(recorder.recordings[""])
        assert_close(drawn, expected[:2, :, :3].detach(), rtol=1e-9, atol=1e-12)


def test_a_recording_stays_as_it_was_when_the_layer_moves_on() -> None:
    for kind in ("direct", "rbf", "copula"):
        layer = trained(LAYERS[kind](HEADS * WIDTH, HEADS))
        x = torch.randn(SEQUENCES, KEYS, HEADS * WIDTH).double()
        with Recorder(layer) as recorder:
            layer(x, x, x, need_weights=False)
        before = attention_weights(recorder.recordings[""])
        for parameter in layer.parameters():
            parameter.data.mul_(1.5)
        x.mul_(2.0)
        assert attention_weights(recorder.recordings[""]).equal(before)


@pytest.mark.parametrize("training", [False, True])
def test_recording_changes_nothing(training) -> None:
    layer = MIKAN(HEADS * WIDTH, HEADS, dropout=0.3, batch_first=True).train(training)
    x = torch.randn(SEQUENCES, KEYS, HEADS * WIDTH)
    torch.manual_seed(1)
    expected, _ = layer(x, x, x)
    kl, state = layer.kl.clone(), torch.get_rng_state()
    torch.manual_seed(1)
    with Recorder(layer) as recorder:
        out, _ = layer(x, x, x)
    assert out.equal(expected) and layer.kl.equal(kl) and torch.get_rng_state().equal(state)
    assert layer.training is training and len(recorder.recordings) == 1
    assert not any(module._forward_hooks for module in layer.modules())


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_layer_is_recorded_and_stays_compiled(in_place) -> None:
    layer, calls = trained(LAYERS["implicit"](HEADS * WIDTH, HEADS)), []
    x = torch.randn(SEQUENCES, KEYS, HEADS * WIDTH).double()

    def compiler(graph, _):
        calls.append(graph)
        return graph.forward

    with Recorder(layer) as recorder:
        layer(x, x, x, need_weights=False)
    expected = attention_weights(recorder.recordings[""])
    torch._dynamo.reset()
    if in_place:
        layer.compile(backend=compiler)
    else:
        layer = torch.compile(layer, backend=compiler)
    recorder = Recorder(layer)
    for _ in range(2):
        layer(x, x, x, need_weights=False)
        with recorder:
            layer(x, x, x, need_weights=False)
        (recording,) = recorder.recordings.values()
        assert attention_weights(recording).equal(expected) and recording.frequencies
    assert len(calls) == 1


def test_the_first_call_counts_and_each_entry_starts_anew() -> None:
    layer = DotProduct(8, 2, batch_first=True)
    with Recorder(layer) as recorder:
        for length in (3, 4):
            layer(*[torch.randn(1, length, 8)] * 3)
    assert recorder.recordings[""].key.size(2) == 3
    with recorder:
        layer(*[torch.randn(1, 5, 8)] * 3)
    assert recorder.recordings[""].key.size(2) == 5


@pytest.mark.parametrize("spectrum", ["direct", "implicit", "copula"])
@pytest.mark.parametrize("kind", [KernelGATConv, KernelTransformerConv])
def test_the_weights_of_edges_are_those_of_the_layer(kind, spectrum) -> None:
    layer = trained(kind(WIDTH, 4, heads=3, spectrum=spectrum, num_samples=5))
    x, edge_index = torch.randn(5, WIDTH).double(), torch.tensor([[0, 1, 2, 4], [1, 2, 0, 0]])
    with Recorder(layer) as recorder:
        layer(x, edge_index)
    recording = recorder.recordings[""]
    _, (edges, weights) = layer(x, edge_index, return_attention_weights=True)
    assert recording.weights.equal(weights) and torch.stack([recording.neighbour, recording.node]).equal(edges)
    assert recording.num_heads == 3 and recording.width == (8 if kind is KernelGATConv else 4)
    assert recording.keys is not None and recording.keys.shape == (3, edges.size(1), recording.width)
    assert (recording.copula is None) is (spectrum != "copula")


def test_edges_with_features_have_weights_but_no_keys() -> None:
    layer = KernelGATConv(WIDTH, 4, heads=2, edge_dim=1)
    with Recorder(layer) as recorder:
        layer(torch.randn(3, WIDTH), torch.tensor([[0, 1], [1, 2]]), torch.randn(2, 1))
    assert recorder.recordings[""].keys is None and len(recorder.recordings[""].weights) == 5


def test_spectra_are_known_without_having_seen_anything() -> None:
    model = nn.ModuleDict(
        {"a": trained(MIKAN(8, 2)), "b": DotProduct(8, 2), "c": trained(KernelGATConv(8, 4, heads=3))}
    )
    recordings = record_spectra(model.eval())
    assert set(recordings) == {"a", "c"} and set(attention_layers(model)) == {"a", "b", "c"}
    # a causal call tells a layer nothing of its keys, either
    with Recorder(model["a"]) as recorder:
        model["a"](*[torch.randn(1, 3, 8).double()] * 3, is_causal=True)
    seen, known = recorder.recordings[""], recordings["a"]
    assert all(a.equal(b) for a, b in zip(seen.frequencies, known.frequencies, strict=True))
    assert seen.copula.equal(known.copula)
    assert (recordings["c"].num_heads, recordings["c"].width) == (3, 8)


@pytest.mark.parametrize("kind", LAYERS)
def test_half_precision_is_drawn_in_float32(kind) -> None:
    layer = LAYERS[kind](HEADS * WIDTH, HEADS).bfloat16().eval()
    with torch.no_grad(), Recorder(layer) as recorder:
        layer(*[torch.randn(2, KEYS, HEADS * WIDTH).bfloat16()] * 3, need_weights=False)
    recording = recorder.recordings[""]
    assert attention_weights(recording).dtype == torch.float32
    assert draw_similarity(recording).axes and draw_magnitude(recording).axes


def test_arguments_may_have_names() -> None:
    core = trained(IKANDirect(HEADS * WIDTH, HEADS, num_samples=5)).core
    query, key, value = torch.randn(3, SEQUENCES, HEADS, KEYS, WIDTH, dtype=torch.float64)
    with Recorder(core) as by_name:
        core(value=value, key=key, query=query)
    with Recorder(core) as by_place:
        core(query, key, value)
    (one,), (other,) = by_name.recordings.values(), by_place.recordings.values()
    assert_close(one.query, other.query, rtol=0.0, atol=0.0)
    assert_close(one.key, other.key, rtol=0.0, atol=0.0)


class _Stranger(Core):
    """A core that nobody here knows: no copy can be made of what it holds, and it takes other arguments."""

    def __init__(self) -> None:
        super().__init__(HEADS, WIDTH)
        self.lines = (line for line in ())

    def forward(self, both):
        return super().forward(both, both, both)


def test_a_layer_that_cannot_be_recorded_is_left_out_and_does_not_stop_the_model(caplog) -> None:
    model = nn.ModuleDict({"stranger": _Stranger(), "known": DotProduct(HEADS * WIDTH, HEADS, batch_first=True)})
    x = torch.randn(SEQUENCES, KEYS, HEADS * WIDTH)
    with Recorder(model) as recorder:
        for _ in range(2):
            heads = x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
            out, _ = model["stranger"](heads)
            model["known"](x, x, x)
    assert out.shape == (SEQUENCES, HEADS, KEYS, WIDTH)
    assert list(recorder.recordings) == ["known"]
    (line,) = caplog.messages
    assert line.startswith("no pictures of stranger: ")
