"""The graph convolutions: equal to dense attention, faithful to PyG's conventions, safe on any graph."""

from __future__ import annotations

import copy
import inspect
import io
import math
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ks_2samp
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.nn import GAT, GATConv, TransformerConv
from torch_geometric.utils import add_self_loops, degree, remove_self_loops, to_torch_csr_tensor

from ika_lightning.attention import IKAN, MIKAN, IKANDirect, attention_kl
from ika_lightning.attention.features import FeatureMap
from ika_lightning.attention.graph import KernelGATConv, KernelTransformerConv
from ika_lightning.attention.magnitude import log_magnitude
from ika_lightning.attention.spectrum import Spectrum

NODES, EDGES, IN, OUT, HEADS, EDGE_DIM = 11, 37, 5, 3, 2, 4

few = {"num_samples": 7}
# without an exact part, as in the paper
sampled = {"init": "rbf", **few}
KINDS = {
    "direct": sampled,
    "direct stationary": {"stationary": True, "init": "paper", **few},
    "implicit": {"spectrum": "implicit", "p": 1.8, **sampled},
    "implicit unconditional": {"spectrum": "implicit", "conditional": False, **sampled},
    "copula": {"spectrum": "copula", "p": math.inf, **sampled},
    "copula stationary": {"spectrum": "copula", "stationary": True, "p": 1.0, **sampled},
    "softmax": few,
    "softmax, learned p": {"spectrum": "implicit", "p": "learned", **few},
    "softmax, copula": {"spectrum": "copula", "stationary": True, "p": 1.5, **few},
    "smoothed": {"smoothing": 0.3, "p": math.inf, **sampled},
}
LAYERS = {"gat": KernelGATConv, "transformer": KernelTransformerConv}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_layer = pytest.mark.parametrize("layer", LAYERS)
with_and_without_features = pytest.mark.parametrize("edge_dim", [None, EDGE_DIM], ids=["bare", "features"])


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def graph(nodes: int = NODES, edges: int = EDGES) -> Tensor:
    """A graph with duplicate edges, a self-loop, a node without incoming edges and a last node without any."""
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.stack(
        [
            torch.randint(nodes - 1, (edges,), generator=generator),
            torch.randint(1, nodes - 1, (edges,), generator=generator),
        ]
    )
    edge_index[:, 0], edge_index[:, 1] = 2, edge_index[:, 3]
    return edge_index


def build(layer: str, *args, seed: int = 0, **kwargs) -> KernelGATConv | KernelTransformerConv:
    """A layer in float64 and evaluation, moved off its start, where encoders are zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conv = LAYERS[layer](*(args or (IN, OUT, HEADS)), **kwargs).double().eval()
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return conv


def batch_of_graphs(edge_dim: int | None) -> Batch:
    """Four graphs, among them one of a single node, and one without edges."""
    parts = []
    for seed, (nodes, edge_index) in enumerate(
        [(NODES, graph()), (1, graph()[:, :0]), (7, graph(7, 13)), (2, graph()[:, :0])]
    ):
        edge_attr = None if edge_dim is None else randn(20 + seed, edge_index.size(1), edge_dim)
        parts.append(Data(x=randn(seed, nodes, IN), edge_index=edge_index, edge_attr=edge_attr))
    return Batch.from_data_list(parts)


def value_and_gradients(out: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    weight = randn(9, *out.shape)
    return out, torch.autograd.grad((out * weight).sum(), inputs, materialize_grads=True)


# ----- the definition, with dense tensors


def pool(conv, parts, chosen) -> Tensor | None:
    if not conv.core.spectrum.conditional:
        return None
    return [
        part[where].mean(0) if where.any() else part.new_zeros(part.shape[1:])
        for part, where in zip(parts, chosen, strict=False)
    ]


def by_definition(conv, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
    """Each pair's key written out, its kernel exact and sampled, and a softmax over the edges of each node."""
    heads, d, n = conv.heads, conv.out_channels, x.size(0)
    gat = isinstance(conv, KernelGATConv)
    if gat and conv.add_self_loops:
        edge_index, edge_attr = remove_self_loops(edge_index, edge_attr)
        edge_index, edge_attr = add_self_loops(edge_index, edge_attr, conv.fill_value, n)
    j, i = edge_index
    edges = None if edge_attr is None else conv.lin_edge(edge_attr).view(-1, heads, d)
    apart = i != j
    attends, attended = (torch.isin(torch.arange(n), index[apart]) for index in (i, j))
    if gat:
        h = value = conv.lin(x).view(n, heads, d)
        keys = torch.cat([h[i], h[j], *([] if edges is None else [edges])], -1)
        vector = torch.cat([conv.att_dst, conv.att_src, *([] if edges is None else [conv.att_edge])], -1)
        queries = vector.expand(len(i), -1, -1)
        means = pool(conv, (h, h, *([] if edges is None else [edges])), (attends, attended, apart))
        mean = None if means is None else torch.cat(means, -1)
    else:
        query, key, value = (lin(x).view(n, heads, d) for lin in (conv.lin_query, conv.lin_key, conv.lin_value))
        keys, queries = key[j] if edges is None else key[j] + edges, query[i]
        means = pool(conv, (key, *([] if edges is None else [edges])), (attended, apart))
        mean = None if means is None else sum(means)
    core = conv.core
    feature_map, _ = core.spectrum(mean)
    phi_q, phi_k = (feature_map(y.transpose(0, 1)) for y in (queries, keys))
    similarity = (phi_q * phi_k).sum(-1)
    if core.share is not None:
        similarity = 1.0 - core.share[:, None] * (1.0 - similarity)
    magnitude = log_magnitude(keys, core.p)
    magnitude = magnitude if core.magnitude.scale is None else core.magnitude.scale * magnitude
    # (h, E)
    log_weight = (similarity.square() + 1e-5).log() + magnitude.mT
    if core.kernel is not None:
        precision = core.kernel.lengthscale.flatten() ** -2
        product = (queries * keys).sum(-1) * precision
        product = torch.where(product > 0, product, conv.negative_slope * product) if gat else product
        log_weight = log_weight + (product - precision * keys.square().sum(-1) / 2).mT
    values = value[j] if edges is None or gat else value[j] + edges
    rows = [torch.einsum("he,ehd->hd", log_weight[:, i == node].softmax(-1), values[i == node]) for node in range(n)]
    out = torch.stack(rows)
    out = out.flatten(1) if conv.concat else out.mean(1)
    return out + (conv.bias if gat else conv.lin_skip(x))


@with_and_without_features
@every_kind
@every_layer
def test_is_dense_attention_under_the_adjacency_mask(layer, kind, edge_dim):
    conv, edge_index = build(layer, edge_dim=edge_dim, **KINDS[kind]), graph()
    inputs = [randn(1, NODES, IN).requires_grad_()]
    inputs += [] if edge_dim is None else [randn(2, EDGES, edge_dim).requires_grad_()]
    ours = value_and_gradients(conv(inputs[0], edge_index, *inputs[1:]), *inputs, *conv.parameters())
    dense = value_and_gradients(by_definition(conv, inputs[0], edge_index, *inputs[1:]), *inputs, *conv.parameters())
    assert_close(ours, dense)
    assert sum(gradient.ne(0).any() for gradient in ours[1]) >= len(ours[1]) - 2


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
def test_the_norm_of_a_pair_is_that_of_its_parts(p):
    """Features of width 13: the root of the width must come out right."""
    conv, x, edge_index = build("gat", IN, 13, HEADS, p=p, **few), randn(1, NODES, IN), graph()
    assert_close(conv(x, edge_index), by_definition(conv, x, edge_index))


def scores(conv, x: Tensor, edge_index: Tensor) -> Tensor:
    """The inner products of which the exponential is taken at the start, scaled: a.c / sqrt(2d) or q.k / sqrt(d)."""
    j, i = edge_index
    if isinstance(conv, KernelGATConv):
        h = conv.lin(x).view(-1, HEADS, OUT)
        return ((h[i] * conv.att_dst).sum(-1) + (h[j] * conv.att_src).sum(-1)) / math.sqrt(2 * OUT)
    query, key = (lin(x).view(-1, HEADS, OUT) for lin in (conv.lin_query, conv.lin_key))
    return (query[i] * key[j]).sum(-1) / math.sqrt(OUT)


@every_layer
def test_the_estimator_starts_as_the_exponential_of_inner_products(layer):
    """With p = 2: softmax of the scores over the neighbours."""
    torch.manual_seed(0)
    conv = LAYERS[layer](IN, OUT, HEADS, num_samples=4096, init="rbf")
    x, (_, i) = torch.randn(NODES, IN) / 2, graph()
    if layer == "gat":
        conv.add_self_loops = False
    logits = scores(conv, x, graph())
    _, (_, weights) = conv(x, graph(), return_attention_weights=True)
    for node in i.unique():
        assert_close(weights[i == node], logits[i == node].softmax(0), rtol=0.0, atol=0.02)


@pytest.mark.parametrize("size", [0.5, 100.0])
@pytest.mark.parametrize("p", [2.0, "learned"])
@pytest.mark.parametrize("spectrum", ["direct", "implicit", "copula"])
@every_layer
def test_starts_as_the_exponential_of_inner_products(layer, spectrum, p, size):
    """To rounding, in the double precision that the layer computes in."""
    torch.manual_seed(0)
    conv = LAYERS[layer](IN, OUT, HEADS, spectrum=spectrum, p=p, **few).double()
    x, (_, i) = size * randn(1, NODES, IN), graph()
    if layer == "gat":
        conv.add_self_loops = False
    logits = scores(conv, x, graph())
    logits = F.leaky_relu(logits, 0.2) if layer == "gat" else logits
    _, (_, weights) = conv(x, graph(), return_attention_weights=True)
    for node in i.unique():
        assert_close(weights[i == node], logits[i == node].softmax(0), rtol=0.0, atol=1e-12 * max(1.0, size**2))


@every_layer
def test_the_start_is_exact_for_large_features(layer):
    """Squares of norms that cancel are not subtracted: in float32 their difference would be off by whole units."""
    torch.manual_seed(0)
    conv, x, (_, i) = LAYERS[layer](IN, OUT, HEADS, **few), 1e4 * torch.randn(NODES, IN), graph()
    if layer == "gat":
        conv.add_self_loops = False
        # scores of size one of features whose squares are 1e8
        with torch.no_grad():
            conv.att_src /= 1e4
            conv.att_dst /= 1e4
    else:
        with torch.no_grad():
            conv.lin_query.weight /= 1e8
            conv.lin_query.bias.zero_()
    logits = scores(conv, x, graph())
    logits = F.leaky_relu(logits, 0.2) if layer == "gat" else logits
    assert 0.1 < logits.std() < 10.0
    _, (_, weights) = conv(x, graph(), return_attention_weights=True)
    for node in i.unique():
        assert_close(weights[i == node], logits[i == node].softmax(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"concat": False}, {"beta": True}, {"edge_dim": EDGE_DIM}], ids=str)
def test_starts_as_the_graph_transformer(options):
    conv, theirs = (kind(IN, OUT, HEADS, **options).double() for kind in (KernelTransformerConv, TransformerConv))
    conv.load_state_dict(theirs.state_dict(), strict=False)
    inputs = [randn(1, NODES, IN).requires_grad_()]
    inputs += [randn(2, EDGES, EDGE_DIM).requires_grad_()] if "edge_dim" in options else []
    results = [value_and_gradients(f(inputs[0], graph(), *inputs[1:]), *inputs) for f in (conv, theirs)]
    assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer, theirs", [("gat", GATConv), ("transformer", TransformerConv)])
def test_a_trained_layer_of_pyg_hands_its_projections_over(layer, theirs):
    conv, trained = LAYERS[layer](IN, OUT, HEADS), theirs(IN, OUT, HEADS)
    missing, unexpected = conv.load_state_dict(trained.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("core.") for name in missing)
    state = conv.state_dict()
    assert all(state[name].equal(value) for name, value in trained.state_dict().items())


def as_in_version_0_1(conv) -> dict[str, Tensor]:
    """The state of a layer without an exact part, from when the spectrum was the layer's own."""
    return {name.replace("core.spectrum.", "spectrum."): value for name, value in conv.state_dict().items()}


@pytest.mark.parametrize("kind", ["direct", "implicit", "copula"])
@every_layer
def test_checkpoints_of_version_0_1_load(layer, kind):
    conv, x = build(layer, **KINDS[kind]), randn(1, NODES, IN)
    other = LAYERS[layer](IN, OUT, HEADS, **KINDS[kind]).double().eval()
    torch.nn.ModuleList([other]).load_state_dict({f"0.{k}": v for k, v in as_in_version_0_1(conv).items()})
    assert_close(other(x, graph()), conv(x, graph()), rtol=0.0, atol=0.0)


@every_layer
def test_checkpoints_of_version_0_1_load_into_a_layer_with_an_exact_part(layer):
    conv, x = build(layer, **KINDS["direct"]), randn(1, NODES, IN)
    other = LAYERS[layer](IN, OUT, HEADS, **few).double().eval()
    other.load_state_dict(as_in_version_0_1(conv))
    assert_close(other(x, graph()), conv(x, graph()))


@pytest.mark.parametrize("init", ["softmax", "rbf"])
@pytest.mark.parametrize("like", [IKANDirect, IKAN, MIKAN])
def test_on_a_graph_in_which_all_are_joined_it_is_attention_over_a_sequence(like, init):
    name = {IKANDirect: "direct", IKAN: "implicit", MIKAN: "copula"}[like]
    conv = build("transformer", 2 * OUT, OUT, 2, spectrum=name, p=1.8, init=init, root_weight=False, **few)
    torch.manual_seed(0)
    sequence = like(2 * OUT, 2, p=1.8, init=init, batch_first=True, **few).double().eval()
    sequence.core.load_state_dict(conv.core.state_dict())
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
        getattr(sequence, f"{theirs}_proj").load_state_dict(getattr(conv, f"lin_{ours}").state_dict())
    x = randn(1, 1, NODES, 2 * OUT)
    everything = torch.cartesian_prod(torch.arange(NODES), torch.arange(NODES)).mT
    _, (_, weights) = conv(x[0], everything, return_attention_weights=True)
    _, expected = sequence(x, x, x, average_attn_weights=False)
    assert_close(weights.view(NODES, NODES, 2).permute(2, 1, 0), expected[0])


class Cubes(FeatureMap):
    """A feature map that is none of frequencies, and knows the mean key."""

    def __init__(self, weight: Tensor, shift: Tensor) -> None:
        self.weight, self.shift = weight, shift

    def __call__(self, x: Tensor) -> Tensor:
        return ((x + self.shift.unsqueeze(-2)) @ self.weight) ** 3

    def select(self, index: Tensor) -> FeatureMap:
        return Cubes(self.weight, self.shift.index_select(0, index))


class CubicSpectrum(Spectrum):
    conditional = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(HEADS, width, 3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight, std=0.3)

    def forward(self, mean_key: Tensor | None = None) -> tuple[FeatureMap, Tensor]:
        return Cubes(self.weight, mean_key), mean_key.square().mean()


def width_of_key(layer: str, edge_dim: int | None) -> int:
    return OUT if layer == "transformer" else OUT * (2 if edge_dim is None else 3)


@pytest.mark.parametrize("init", ["softmax", "rbf"])
@with_and_without_features
@every_layer
def test_a_feature_map_of_your_own(layer, edge_dim, init):
    spectrum = CubicSpectrum(width_of_key(layer, edge_dim))
    conv, edge_index = build(layer, edge_dim=edge_dim, spectrum=spectrum, init=init), graph()
    inputs = [randn(1, NODES, IN).requires_grad_()]
    inputs += [] if edge_dim is None else [randn(2, EDGES, edge_dim).requires_grad_()]
    ours = value_and_gradients(conv(inputs[0], edge_index, *inputs[1:]), *inputs, *conv.parameters())
    dense = value_and_gradients(by_definition(conv, inputs[0], edge_index, *inputs[1:]), *inputs, *conv.parameters())
    assert_close(ours, dense)
    assert conv.kl > 0


@with_and_without_features
@every_layer
def test_a_feature_map_of_your_own_over_a_batch(layer, edge_dim):
    """Its last graph has no edges."""
    options = {"add_self_loops": False} if layer == "gat" else {}
    conv = build(layer, edge_dim=edge_dim, spectrum=CubicSpectrum(width_of_key(layer, edge_dim)), **options)
    batch = batch_of_graphs(edge_dim)
    alone = [conv(part.x, part.edge_index, part.edge_attr) for part in batch.to_data_list()]
    assert_close(conv(batch.x, batch.edge_index, batch.edge_attr, batch=batch.batch), torch.cat(alone))


@with_and_without_features
@pytest.mark.parametrize("kind", ["direct", "softmax", "softmax, learned p"])
@every_layer
def test_second_derivatives(layer, kind, edge_dim):
    conv, edge_index = build(layer, edge_dim=edge_dim, **KINDS[kind]), graph()
    inputs = [randn(1, NODES, IN).requires_grad_()]
    inputs += [] if edge_dim is None else [randn(2, EDGES, edge_dim).requires_grad_()]
    wanted = [*inputs, *conv.core.parameters()]
    results = []
    for function in (conv, partial(by_definition, conv)):
        out = function(inputs[0], edge_index, *inputs[1:])
        gradients = torch.autograd.grad(out.sin().sum(), wanted, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in gradients)
        results.append(torch.autograd.grad(penalty, wanted))
    assert_close(*results)


@pytest.mark.parametrize("slope", [0.0, 1.0, 1.7])
def test_negative_slope_is_of_the_exact_part(slope):
    conv, x = build("gat", negative_slope=slope, **few), randn(1, NODES, IN)
    assert_close(conv(x, graph()), by_definition(conv, x, graph()))
    paper = [build("gat", negative_slope=s, **sampled)(x, graph()) for s in (slope, 0.2)]
    assert paper[0].equal(paper[1])


# ----- symmetries


@with_and_without_features
@pytest.mark.parametrize("kind", ["direct", "copula", "softmax, learned p"])
@every_layer
def test_permuting_nodes_permutes_outputs(layer, kind, edge_dim):
    conv, edge_index, x = build(layer, edge_dim=edge_dim, **KINDS[kind]), graph(), randn(1, NODES, IN)
    edge_attr = None if edge_dim is None else randn(2, EDGES, edge_dim)
    generator = torch.Generator().manual_seed(3)
    nodes, edges = torch.randperm(NODES, generator=generator), torch.randperm(EDGES, generator=generator)
    renumbered = torch.argsort(nodes)[edge_index][:, edges]
    permuted = conv(x[nodes], renumbered, None if edge_attr is None else edge_attr[edges])
    assert_close(permuted, conv(x, edge_index, edge_attr)[nodes])


@every_layer
def test_a_duplicate_edge_counts_twice(layer):
    conv, x = build(layer, **few), randn(1, NODES, IN)
    once = torch.tensor([[1, 2], [0, 0]])
    _, (_, single) = conv(x, once, return_attention_weights=True)
    _, (_, double) = conv(x, torch.cat([once, once[:, :1]], 1), return_attention_weights=True)
    single, double = single[:2], double[[0, 1, 2]]
    assert_close(double[0], double[2])
    assert_close(2 * double[0] / double[1], 2 * single[0] / single[1])


@pytest.mark.parametrize("loop", [False, True], ids=["without", "with a self-loop"])
@every_kind
@every_layer
def test_an_isolated_node_changes_nothing_else(layer, kind, loop):
    conv, edge_index, x = build(layer, **KINDS[kind]), graph(), randn(1, NODES, IN)
    more = torch.cat([x, 100 * randn(2, 2, IN)])
    joined = torch.cat([edge_index, torch.tensor([[NODES], [NODES]])], 1) if loop else edge_index
    assert_close(conv(more, joined)[:NODES], conv(x, edge_index), rtol=0, atol=1e-13)


@with_and_without_features
@pytest.mark.parametrize("kind", ["direct", "implicit", "copula", "softmax, learned p", "softmax, copula"])
@every_layer
def test_a_batch_of_graphs_is_each_of_them_alone(layer, kind, edge_dim):
    conv, batch = build(layer, edge_dim=edge_dim, **KINDS[kind]), batch_of_graphs(edge_dim)
    alone = torch.cat([conv(part.x, part.edge_index, part.edge_attr) for part in batch.to_data_list()])
    together = conv(batch.x, batch.edge_index, batch.edge_attr, batch=batch.batch)
    assert_close(together, alone)
    inputs = [parameter for parameter in conv.parameters()]
    assert_close(value_and_gradients(together, *inputs)[1], value_and_gradients(alone, *inputs)[1])


def test_graphs_of_a_batch_must_be_in_order():
    conv = build("gat", spectrum="implicit")
    with pytest.raises(ValueError, match="batch must be in ascending order"):
        conv(randn(1, 3, IN), torch.tensor([[0], [1]]), batch=torch.tensor([0, 1, 0]))


# ----- PyG's conventions


@every_layer
def test_shapes(layer):
    x, edge_index = randn(1, NODES, IN), graph()
    assert build(layer, IN, OUT, HEADS)(x, edge_index).shape == (NODES, HEADS * OUT)
    assert build(layer, IN, OUT, HEADS, concat=False)(x, edge_index).shape == (NODES, OUT)
    lazy = LAYERS[layer](-1, OUT, HEADS).double()
    assert lazy(x, edge_index).shape == (NODES, HEADS * OUT)
    assert f"({IN}, " in str(next(child for name, child in lazy.named_children() if name.startswith("lin")))
    lazy = LAYERS[layer]((-1, -1), OUT).double()
    assert lazy((x, x[:7, :2]), edge_index[:, edge_index[1] < 7]).shape == (7, OUT)
    assert repr(build(layer, IN, OUT, HEADS)) == f"{LAYERS[layer].__name__}({IN}, {OUT}, heads={HEADS})"


def test_takes_the_place_of_gat_conv_in_models_of_pyg():
    class KernelGAT(GAT):
        def init_conv(self, in_channels, out_channels, **kwargs):
            return KernelGATConv(in_channels, out_channels // HEADS, heads=HEADS, dropout=self.dropout.p)

    assert KernelGAT(IN, 8, num_layers=3, dropout=0.5)(randn(1, NODES, IN).float(), graph()).shape == (NODES, 8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"concat": False, "bias": False},
        {"residual": True},
        {"add_self_loops": False},
        {"edge_dim": 1},
        {"edge_dim": EDGE_DIM, "fill_value": 1.5},
        {"edge_dim": EDGE_DIM, "fill_value": "max"},
    ],
    ids=str,
)
def test_options_mean_what_they_mean_for_gat_conv(options):
    """Shapes, parameters and the list of edges are those of PyG's layer; what differs are the weights."""
    torch.manual_seed(0)
    ours, theirs = KernelGATConv(IN, OUT, HEADS, **options), GATConv(IN, OUT, HEADS, **options)
    named = {name: p.shape for name, p in ours.named_parameters() if not name.startswith("core.")}
    assert named == {name: p.shape for name, p in theirs.named_parameters()}
    ours.load_state_dict(theirs.state_dict(), strict=False)
    x = torch.randn(NODES, IN)
    dim = options.get("edge_dim")
    edge_attr = None if dim is None else torch.randn(EDGES, dim).squeeze(-1)
    (out, (edge_index, weights)), (their_out, (their_index, their_weights)) = (
        conv(x, graph(), edge_attr, return_attention_weights=True) for conv in (ours, theirs)
    )
    assert out.shape == their_out.shape
    assert edge_index.equal(their_index)
    assert weights.shape == their_weights.shape
    # the same weights give the same output: put ours into theirs
    message = theirs.propagate(edge_index, x=(ours.lin(x).view(-1, HEADS, OUT),) * 2, alpha=weights)
    rest = their_out - _joined(theirs, x, their_index, their_weights)
    assert_close(out, (message.flatten(1) if ours.concat else message.mean(1)) + rest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fill_value", [1.5, torch.tensor([0.5, -1.0, 0.0, 2.0]), "mean", "max", "add"], ids=str)
@pytest.mark.parametrize("kind", ["copula", "softmax, learned p"])
@pytest.mark.parametrize("case", ["bare", "features", "one feature", "fewer targets", "the other direction"])
def test_self_loops_are_replaced_whoever_sees_the_edges(case, kind, fill_value):
    """Weights that are asked for are of edges that were counted; else nobody waits for how many there are."""
    dim = {"features": EDGE_DIM, "one feature": 1}.get(case)
    if isinstance(fill_value, Tensor) and dim is not None:
        fill_value = fill_value[:dim].double()
    flow = {"flow": "target_to_source"} if case == "the other direction" else {}
    channels = (IN, IN) if case == "fewer targets" else IN
    conv = build("gat", channels, OUT, HEADS, edge_dim=dim, fill_value=fill_value, **flow, **KINDS[kind])
    x = randn(1, NODES, IN).requires_grad_()
    edge_index = torch.cat([graph(), graph()[:, :5], torch.tensor([[3, 3], [3, 3]])], 1)
    nodes = (x, x[:4]) if case == "fewer targets" else x
    edge_index = edge_index[:, edge_index[1] < 4] if case == "fewer targets" else edge_index
    edge_attr = None if dim is None else randn(2, edge_index.size(1), dim).squeeze(-1).requires_grad_()
    inputs = [x, *conv.parameters(), *([] if dim is None else [edge_attr])]
    uncounted = value_and_gradients(conv(nodes, edge_index, edge_attr), *inputs)
    out, (all_edges, _) = conv(nodes, edge_index, edge_attr, return_attention_weights=True)
    assert all_edges.size(1) < edge_index.size(1) + NODES
    assert_close(uncounted, value_and_gradients(out, *inputs))


def _joined(conv: GATConv, x: Tensor, edge_index: Tensor, weights: Tensor) -> Tensor:
    message = conv.propagate(edge_index, x=(conv.lin(x).view(-1, HEADS, OUT),) * 2, alpha=weights)
    return message.flatten(1) if conv.concat else message.mean(1)


@with_and_without_features
@every_layer
def test_every_form_of_a_graph_gives_the_same(layer, edge_dim):
    conv, x, edge_index = build(layer, spectrum="copula", edge_dim=edge_dim, **few), randn(1, NODES, IN), graph()
    edge_index = edge_index[:, (edge_index[0] * NODES + edge_index[1]).unique(return_inverse=True)[1].sort().indices]
    edge_index = torch.unique(edge_index, dim=1)  # an adjacency matrix has each entry once
    edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
    edge_attr = None if edge_dim is None else randn(2, edge_index.size(1), edge_dim)
    expected = conv(x, edge_index, edge_attr)
    size = (NODES, NODES)
    # the last node has no edge, and is not known of
    assert_close(conv(x, EdgeIndex(edge_index, sort_order="col"), edge_attr), expected)
    assert_close(conv(x, EdgeIndex(edge_index, sparse_size=size, sort_order="col"), edge_attr), expected)
    assert_close(conv((x, x), edge_index, edge_attr), expected)
    if layer == "gat":
        assert_close(conv(x, edge_index, edge_attr, size=size), expected)
    if edge_dim is None:
        adjacency = to_torch_csr_tensor(edge_index, size=size).transpose(0, 1)
        out, (sparse, weights) = conv(x, adjacency.to_sparse_csr(), return_attention_weights=True)
        assert_close(out, expected)
        assert sparse.values().shape == weights.shape


class Atomic(TorchDispatchMode):
    """Notes operations in which an accelerator's threads wait to add to one number, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.removeprefix("aten::")
        if name.startswith(("index_add", "scatter", "index_put")):
            self.found.add(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@with_and_without_features
@every_layer
def test_edges_that_are_sorted_are_summed_without_atomics(layer, edge_dim, flow):
    options = {"add_self_loops": False} if layer == "gat" else {}
    conv = build(layer, flow=flow, edge_dim=edge_dim, **options, **few)
    order, row = ("col", 1) if flow == "source_to_target" else ("row", 0)
    edge_index = graph()[:, graph()[row].argsort(stable=True)]
    ordered = EdgeIndex(edge_index, sparse_size=(NODES, NODES), sort_order=order)
    x, edge_attr = randn(1, NODES, IN).requires_grad_(), None if edge_dim is None else randn(2, EDGES, edge_dim)
    with Atomic() as atomic:
        out = conv(x, ordered, edge_attr)
    assert atomic.found == set()
    with Atomic() as atomic:
        expected = conv(x, edge_index, edge_attr)
    assert atomic.found
    parameters = (x, *conv.parameters())
    assert_close(value_and_gradients(out, *parameters), value_and_gradients(expected, *parameters))


@every_layer
def test_the_other_direction_of_flow_is_the_transposed_graph(layer):
    forward, backward = (build(layer, flow=flow, **few) for flow in ("source_to_target", "target_to_source"))
    x, edge_index = randn(1, NODES, IN), graph()
    assert_close(backward(x, edge_index.flip(0)), forward(x, edge_index))


@every_layer
def test_bipartite(layer):
    source, target = randn(1, 7, IN), randn(2, 4, 2)
    edge_index = torch.tensor([[0, 1, 6, 6, 2], [0, 0, 3, 1, 2]])
    options = {"add_self_loops": False} if layer == "gat" else {}
    conv = build(layer, (IN, 2), OUT, HEADS, spectrum="implicit", **options, **few)
    out, (_, weights) = conv((source, target), edge_index, return_attention_weights=True)
    assert out.shape == (4, HEADS * OUT)
    assert weights.shape == (5, HEADS)
    # 2 and 2 are different nodes, so the edge between them is no self-loop
    without = conv((source.index_fill(0, torch.tensor(2), 0.0), target), edge_index)
    assert not torch.isclose(without[0], out[0]).any()
    order = torch.tensor([3, 1, 0, 2])
    assert_close(
        conv((source, target[order]), torch.stack([edge_index[0], order.argsort()[edge_index[1]]])), out[order]
    )


@pytest.mark.parametrize("root_weight", [True, False])
@pytest.mark.parametrize("attending", [4, 11])
def test_bipartite_against_the_direction_of_edges(root_weight, attending):
    """Edges are read the other way round, and nodes that attend stay the second."""
    attended, attending = randn(1, 7, IN), randn(2, attending, 2)
    edge_index = torch.tensor([[0, 1, 6, 6, 2], [0, 0, 3, 1, 2]])
    options = {"root_weight": root_weight}
    forward = build("transformer", (IN, 2), OUT, HEADS, **options, **few)
    backward = build("transformer", (IN, 2), OUT, HEADS, flow="target_to_source", **options, **few)
    backward.load_state_dict(forward.state_dict())
    out = backward((attended, attending), edge_index.flip(0))
    assert out.shape == (len(attending), HEADS * OUT)
    assert_close(out, forward((attended, attending), edge_index))
    theirs = TransformerConv((IN, 2), OUT, HEADS, flow="target_to_source", **options).double()
    assert theirs((attended, attending), edge_index.flip(0)).shape == out.shape


def test_arguments_stand_in_the_order_of_gat_conv():
    for ours, theirs in ((KernelGATConv, GATConv), (KernelTransformerConv, TransformerConv)):
        named = [
            [name for name, x in inspect.signature(kind).parameters.items() if x.kind is x.POSITIONAL_OR_KEYWORD]
            for kind in (ours, theirs)
        ]
        assert named[0] == named[1]
    conv = KernelGATConv(IN, OUT, HEADS, True, 0.3, 0.6, False)
    assert (conv.negative_slope, conv.dropout, conv.add_self_loops) == (0.3, 0.6, False)


def test_weights_are_returned_as_pygs_layers_return_them():
    """With some dropped by the one, and none by the other."""
    x, edge_index = randn(1, NODES, IN).float(), graph()
    for ours, theirs in ((KernelGATConv, GATConv), (KernelTransformerConv, TransformerConv)):
        found = []
        for kind in (ours, theirs):
            torch.manual_seed(0)
            conv = kind(IN, OUT, HEADS, dropout=0.5)
            found.append(bool(conv(x, edge_index, return_attention_weights=True)[1][1].eq(0.0).any()))
        assert found == [ours is KernelGATConv] * 2


@every_layer
def test_a_batch_of_another_length_is_refused(layer):
    conv, x = build(layer, IN, OUT, HEADS, spectrum="implicit", **few), randn(1, NODES, IN)
    with pytest.raises(ValueError, match=rf"batch must name the graph of each of {NODES} nodes, got shape \(3,\)"):
        conv(x, graph(), batch=torch.zeros(3, dtype=torch.long))


def test_target_nodes_of_which_nothing_is_known():
    conv, x = build("gat", (IN, IN), OUT, HEADS, add_self_loops=False, residual=True, **few), randn(1, NODES, IN)
    edge_index = graph()
    zeros = conv((x, torch.zeros_like(x)), edge_index)
    assert_close(conv((x, None), edge_index), zeros)
    assert_close(conv((x, None), edge_index, size=(NODES, NODES)), zeros)
    few_targets = edge_index[:, edge_index[1] < 3]
    assert_close(conv((x, None), few_targets, size=(NODES, 3)), conv((x, torch.zeros(3, IN).double()), few_targets))
    adjacency = to_torch_csr_tensor(torch.unique(few_targets, dim=1), size=(NODES, 3)).t().to_sparse_csr()
    assert conv((x, None), adjacency).shape == (3, HEADS * OUT)


@every_layer
def test_reset_is_in_place_and_complete(layer):
    conv = LAYERS[layer](IN, OUT, HEADS, spectrum="copula", edge_dim=EDGE_DIM)
    before = dict(conv.named_parameters())
    with torch.no_grad():
        for parameter in before.values():
            parameter.fill_(7.0)
    conv.reset_parameters()
    for name, parameter in conv.named_parameters():
        assert parameter is before[name]
        assert not parameter.eq(7.0).any(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_layer
def test_half_precision(layer, dtype):
    conv = build(layer, spectrum="implicit", **few).float()
    x, edge_index = randn(1, NODES, IN).float(), graph()
    with torch.autocast("cpu", dtype):
        half = conv(x, edge_index)
    assert_close(half.float(), conv(x, edge_index), rtol=0.1, atol=0.1)


@every_kind
@every_layer
def test_copies(layer, kind):
    conv, x = build(layer, **KINDS[kind]), randn(1, NODES, IN)
    expected = conv(x, graph())
    assert copy.deepcopy(conv)(x, graph()).equal(expected)
    file = io.BytesIO()
    torch.save(conv, file)
    file.seek(0)
    assert torch.load(file, weights_only=False)(x, graph()).equal(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*_prims_common.check:FutureWarning")  # PyTorch's own
@with_and_without_features
@pytest.mark.parametrize("kind", ["direct", "copula", "softmax, learned p"])
@every_layer
def test_compiles_as_one_graph(layer, kind, edge_dim):
    torch.compiler.reset()
    conv, x = build(layer, edge_dim=edge_dim, **KINDS[kind]), randn(1, NODES, IN).requires_grad_()
    edge_attr = None if edge_dim is None else randn(2, EDGES, edge_dim)
    compiled = torch.compile(conv, fullgraph=True)
    results = [value_and_gradients(f(x, graph(), edge_attr), x, *conv.parameters()) for f in (compiled, conv)]
    assert_close(*results)


@pytest.mark.parametrize("algorithm", [AttentionExplainer, partial(GNNExplainer, epochs=3)])
@every_layer
def test_can_be_explained(layer, algorithm):
    algorithm = algorithm()
    explainer = Explainer(
        build(layer, **few).float(), algorithm, explanation_type="model", edge_mask_type="object",
        model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"},
    )  # fmt: skip
    x, edge_index = randn(1, NODES, IN).float(), graph()
    mask = explainer(x, edge_index).edge_mask
    assert mask.shape == (EDGES,)
    assert mask.max() > 0
    if isinstance(algorithm, AttentionExplainer):
        # a self-loop is replaced by that which is added
        apart = (edge_index[0] != edge_index[1]) | (layer != "gat")
        _, (_, weights) = explainer.model(x, edge_index, return_attention_weights=True)
        assert_close(mask[apart], weights[: apart.sum()].amax(-1))
        assert mask[~apart].eq(0).all()


# ----- any graph


@every_kind
@every_layer
def test_no_edges(layer, kind):
    conv, x = build(layer, **KINDS[kind]), randn(1, NODES, IN).requires_grad_()
    out = conv(x, torch.empty(2, 0, dtype=torch.long))
    expected = conv.lin(x) + conv.bias if layer == "gat" else conv.lin_skip(x)
    assert_close(out, expected)
    _, gradients = value_and_gradients(out, x, *conv.parameters())
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_kind
@every_layer
def test_no_nodes(layer, kind):
    conv = build(layer, **KINDS[kind])
    out = conv(randn(1, 0, IN), torch.empty(2, 0, dtype=torch.long))
    assert out.shape == (0, HEADS * OUT)


@pytest.mark.parametrize("init", ["softmax", "rbf"])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf, "learned"])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e4, 1e12])
@every_layer
def test_any_magnitude(layer, size, p, init):
    conv = build(layer, p=p, spectrum="implicit", init=init, **few).float().train()
    x = (size * randn(1, NODES, IN)).float().requires_grad_()
    _, (_, weights) = conv(x, graph(), return_attention_weights=True)
    gradients = torch.autograd.grad(weights.square().sum(), [x, *conv.parameters()], materialize_grads=True)
    assert weights.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_layer
def test_any_degree(layer):
    """A hub to which 10,007 nodes send."""
    count = 10_007
    conv, x = build(layer, **few).float(), randn(1, count, IN).float()
    edge_index = torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.long)])
    _, (index, weights) = conv(x, edge_index, return_attention_weights=True)
    sums = torch.zeros(count, HEADS).index_add(0, index[1], weights)
    assert_close(sums[0], torch.ones(HEADS), rtol=1e-3, atol=0.0)
    assert degree(index[1])[0] == count


@every_layer
def test_an_edge_to_a_node_that_is_missing_is_refused(layer):
    conv, x = build(layer, **few), randn(1, 3, IN)
    for wrong in ([[0], [7]], [[7], [0]]):
        with pytest.raises((IndexError, RuntimeError)):
            conv(x, torch.tensor(wrong))


# ----- training


@pytest.mark.parametrize("kind", ["implicit", "copula"])
@every_layer
def test_regulariser(layer, kind):
    conv = build(layer, **KINDS[kind])
    assert attention_kl(conv) == 0
    conv(randn(1, NODES, IN), graph())
    assert conv.kl > 0
    model = torch.nn.ModuleList([conv, IKAN(4, 2), build(layer, **few)])
    assert_close(attention_kl(model), conv.kl)
    attention_kl(model).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in conv.core.spectrum.parameters())


@every_layer
def test_weights_are_dropped_in_training_alone(layer):
    conv, x = build(layer, dropout=0.5, **few), randn(1, NODES, IN)
    evaluated = conv(x, graph())
    assert conv(x, graph()).equal(evaluated)
    conv.train()
    torch.manual_seed(0)
    dropped, (_, weights) = conv(x, graph(), return_attention_weights=True)
    assert not torch.isclose(dropped, evaluated).all()
    # each layer returns them as PyG's does
    assert (0.2 < weights.eq(0).double().mean() < 0.8) if layer == "gat" else weights.ne(0).all()


@pytest.mark.parametrize("kind", ["direct", "copula", "softmax"])
@every_layer
def test_learns_which_neighbours_matter(layer, kind):
    """Each node is to say the sign of its neighbour with the large first feature; a mean over neighbours cannot."""
    torch.manual_seed(0)
    nodes = 200
    x = torch.randn(nodes, 4)
    neighbours = torch.randint(nodes, (nodes, 5))
    edge_index = torch.stack([neighbours.flatten(), torch.arange(nodes).repeat_interleave(5)])
    told = neighbours.gather(1, x[neighbours][..., 0].argmax(1, keepdim=True)).squeeze(1)
    label = (x[told, 1] > 0).long()
    conv = LAYERS[layer](4, 8, 2, **{**KINDS[kind], "num_samples": 16})
    head = torch.nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*conv.parameters(), *head.parameters()], lr=0.02)
    for _ in range(150):
        loss = F.cross_entropy(head(conv(x, edge_index)), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head(conv.eval()(x, edge_index)).argmax(-1) == label).double().mean() > 0.75


# ----- what PyTorch does around a layer


FUNCTIONAL = ["direct", "copula", "softmax", "softmax, learned p", "softmax, copula"]


@with_and_without_features
@pytest.mark.parametrize("kind", FUNCTIONAL)
@every_layer
def test_transforms_of_torch_func(layer, kind, edge_dim):
    """Gradients, maps over several sets of features of nodes, gradients of each, and gradients of a map."""
    conv, edge_index, x = build(layer, edge_dim=edge_dim, **KINDS[kind]), graph(), randn(1, 3, NODES, IN)
    edges = () if edge_dim is None else (randn(2, EDGES, edge_dim),)
    parameters = {name: p.detach() for name, p in conv.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(conv, parameters, (x, edge_index, *edges)).sin().sum()

    expected = []
    for one in x:
        out = conv(one, edge_index, *edges).sin().sum()
        expected.append(torch.autograd.grad(out, list(conv.parameters()), materialize_grads=True))
    mapped = torch.func.vmap(lambda one: conv(one, edge_index, *edges))(x)
    assert_close(mapped, torch.stack([conv(one, edge_index, *edges) for one in x]))
    assert_close(tuple(torch.func.grad(loss)(parameters, x[0]).values()), expected[0])
    of_each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    stacked = [torch.stack(parts) for parts in zip(*expected, strict=True)]
    assert_close(list(of_each.values()), stacked)
    of_map = torch.func.grad(lambda p: torch.func.vmap(loss, (None, 0))(p, x).sum())(parameters)
    assert_close(list(of_map.values()), [part.sum(0) for part in stacked])


@with_and_without_features
@pytest.mark.parametrize("kind", FUNCTIONAL)
@every_layer
def test_derivatives_along_a_direction(layer, kind, edge_dim):
    conv, edge_index, x, along = build(layer, edge_dim=edge_dim, **KINDS[kind]), graph(), *randn(1, 2, NODES, IN)
    edges = () if edge_dim is None else (randn(2, EDGES, edge_dim),)
    expected = torch.func.jacrev(lambda x: conv(x, edge_index, *edges))(x).flatten(2) @ along.flatten()
    _, found = torch.func.jvp(lambda x: conv(x, edge_index, *edges), (x,), (along,))
    assert_close(found, expected)
    with forward_ad.dual_level():
        assert_close(forward_ad.unpack_dual(conv(forward_ad.make_dual(x, along), edge_index, *edges)).tangent, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
@with_and_without_features
@pytest.mark.parametrize("kind", ["copula", "softmax, copula", "softmax, learned p"])
@every_layer
def test_activation_checkpoints_keep_the_gradient_of_the_regulariser(layer, kind, edge_dim, use_reentrant):
    conv, x = build(layer, edge_dim=edge_dim, **KINDS[kind]).train(), randn(1, NODES, IN).requires_grad_()
    edges = () if edge_dim is None else (randn(2, EDGES, edge_dim).requires_grad_(),)
    found = []
    for run in (conv, lambda *inputs: checkpoint(conv, *inputs, use_reentrant=use_reentrant)):
        conv.zero_grad()
        x.grad = None
        torch.manual_seed(0)
        out = run(x, graph(), *edges)
        kl = attention_kl(conv)
        (out.square().sum() + 3.0 * kl).backward()
        found.append((kl.detach(), x.grad, [p.grad for p in conv.parameters()]))
    assert found[0][0] > 0
    assert_close(*found)


@with_and_without_features
@every_kind
@every_layer
def test_it_is_built_without_data_and_materialised(layer, kind, edge_dim):
    """By the outermost module, or by each in turn, as distributed training does; all parameters have their law."""
    torch.manual_seed(0)
    options = {"edge_dim": edge_dim, **KINDS[kind]}
    with torch.device("meta"):
        conv = LAYERS[layer](IN, OUT, HEADS, **options)
    assert all(x.is_meta for x in [*conv.parameters(), *conv.buffers()])

    def drawn(build_again) -> dict[str, Tensor]:
        several = [build_again() for _ in range(20)]
        return {name: torch.stack([state[name] for state in several]).flatten() for name in several[0]}

    def materialised(reset) -> dict[str, Tensor]:
        conv.to_empty(device="cpu")
        with torch.no_grad():
            for part in [*conv.parameters(), *conv.buffers()]:
                part.fill_(math.nan)
        reset()
        assert conv(torch.randn(NODES, IN), graph(), *_edges(edge_dim)).isfinite().all()
        return {name: value.detach().clone() for name, value in [*conv.named_parameters(), *conv.named_buffers()]}

    def built() -> dict[str, Tensor]:
        plain = LAYERS[layer](IN, OUT, HEADS, **options)
        return {name: value.detach() for name, value in [*plain.named_parameters(), *plain.named_buffers()]}

    expected = drawn(built)
    for reset in (conv.reset_parameters, lambda: _reset_each(conv)):
        for name, found in drawn(partial(materialised, reset)).items():
            # constants are the same, and what is drawn has the same law
            assert found.equal(expected[name]) or ks_2samp(found, expected[name]).pvalue > 1e-6, name


def _reset_each(module: torch.nn.Module) -> None:
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()


def _edges(edge_dim: int | None) -> tuple[Tensor, ...]:
    return () if edge_dim is None else (torch.randn(EDGES, edge_dim),)


# ----- mistakes


@pytest.mark.parametrize(
    "options, message",
    [
        ({"p": 0.5}, "p must be at least 1"),
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
        ({"spectrum": "explicit"}, "spectrum must be one of 'direct', 'implicit', 'copula', got 'explicit'"),
        ({"init": "zero"}, "init must be one of 'softmax', 'rbf', 'wide', 'paper', got 'zero'"),
        ({"spectrum": "implicit", "prior_std": 0.0}, "prior_std must be positive"),
        ({"init": "rbf", "smoothing": 1.0}, r"smoothing must be in \[0, 1\), the exact part of the Gaussian, got 1.0"),
        ({"smoothing": 0.5}, "smoothing goes with init='rbf' alone, got smoothing=0.5 with init='softmax'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
@every_layer
def test_options_out_of_range(layer, options, message):
    with pytest.raises(ValueError, match=message):
        LAYERS[layer](IN, OUT, HEADS, **options)


@every_layer
def test_wrong_inputs(layer):
    conv = build(layer, edge_dim=EDGE_DIM)
    with pytest.raises(ValueError, match=f"edge_attr is missing; this layer was made for edges of {EDGE_DIM} features"):
        conv(randn(1, NODES, IN), graph())


def test_a_static_graph_is_refused():
    with pytest.raises(ValueError, match=r"x must have shape \(nodes, channels\)"):
        build("gat")(randn(1, 2, NODES, IN), graph())


def test_the_rest_of_the_package_needs_no_pyg():
    code = "import sys, ika_lightning.attention; assert 'torch_geometric' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
