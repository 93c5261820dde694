import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from ika_lightning.attention import IKAN, DotProduct, KernelGATConv
from ika_lightning.models import EncoderDecoder, Ensemble, GraphNetwork, RowTransformer, compile_layers


def compiled(net: nn.Module) -> list[str]:
    compile_layers(net)
    return [name for name, module in net.named_modules() if module._compiled_call_impl is not None]


def test_layers_of_ours_are_compiled_each_alone() -> None:
    sizes = {"width": 8, "depth": 2, "num_heads": 2, "attention": IKAN}
    layers = ["encoder.layers.0", "encoder.layers.1"]
    assert compiled(EncoderDecoder(31, **sizes)) == [*layers, "layers.0", "layers.1"]
    rows = Ensemble(lambda: RowTransformer(3, **sizes), count=2)
    assert compiled(rows) == [f"members.{member}.{layer}" for member in range(2) for layer in layers]


def test_what_has_none_is_compiled_as_a_whole() -> None:
    assert compiled(GraphNetwork(5, 3, KernelGATConv)) == [""]
    assert compiled(nn.Linear(2, 2)) == [""]


# the compiler keeps this to itself, unless warnings are errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_layers_of_a_kind_share_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_(module, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    net = EncoderDecoder(31, width=8, depth=3, num_heads=2, attention=DotProduct)
    tokens = torch.tensor([[4, 5, 6, 0], [7, 8, 9, 4]])
    expected = net(tokens, tokens)
    compile_layers(net)
    torch.testing.assert_close(net(tokens, tokens), expected)
    # one of an encoder and one of a decoder
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
