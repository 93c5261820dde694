"""The graph network with any convolution."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, SAGEConv, TransformerConv

from ika_lightning.attention import KernelGATConv, KernelTransformerConv
from ika_lightning.models import GraphNetwork

CONVS = [KernelGATConv, KernelTransformerConv, GATConv, GATv2Conv, TransformerConv, GCNConv, SAGEConv]
X, EDGE_INDEX = torch.randn(7, 5), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 3]])


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("conv", CONVS)
def test_shapes(conv, depth):
    net = GraphNetwork(5, 3, conv, width=4, depth=depth, num_heads=2, out_heads=3)
    assert net(X, EDGE_INDEX).shape == (7, 3)
    assert [layer.in_channels if conv is not TransformerConv else 0 for layer in net.hidden][1:] in ([], [8], [0])


def test_is_its_formula():
    net = GraphNetwork(5, 3, partial(GATConv, bias=False), width=4, num_heads=2, dropout=0.5).eval()
    expected = net.last(torch.nn.functional.elu(net.hidden[0](X, EDGE_INDEX)), EDGE_INDEX)
    assert_close(net(X, EDGE_INDEX), expected)
    assert net.hidden[0].bias is None
    assert not net.train()(X, EDGE_INDEX).isclose(expected).all()


@pytest.mark.parametrize("conv", [KernelGATConv, KernelTransformerConv, GATConv])
def test_edge_features(conv):
    net = GraphNetwork(5, 3, conv, width=4, num_edge_features=2).eval()
    first, second = (net(X, EDGE_INDEX, torch.randn(4, 2)) for _ in range(2))
    assert not first.isclose(second).all()


def test_mistakes():
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        GraphNetwork(5, 3, GATConv, depth=0)
    with pytest.raises(ValueError, match="has 2 features of edges, and the convolution no argument edge_dim"):
        GraphNetwork(5, 3, GCNConv, num_edge_features=2)


def test_dropout_of_features_that_are_nearly_all_zero_is_dropout():
    seen = []

    class Spy(torch.nn.Linear):
        def forward(self, x, edge_index):
            seen.append(x)
            return super().forward(x)

    x = torch.zeros(101, 103)
    x[::7, ::3] = torch.arange(1.0, 1 + 15 * 35).view(15, 35)
    net = GraphNetwork(103, 3, Spy, depth=1, dropout=0.4)
    for _ in range(64):
        net(x, EDGE_INDEX)
    drawn = torch.stack(seen)
    factor = (drawn / x)[:, x > 0]
    assert_close(factor, (factor > 0) / 0.6)
    assert factor.mean().item() == pytest.approx(1.0, abs=0.02)  # 3 standard errors are 0.013
    assert not drawn[:, x == 0].any()
    assert not drawn[0].equal(drawn[1])
    seen.clear()
    net.eval()(x, EDGE_INDEX)
    assert seen[0] is x
