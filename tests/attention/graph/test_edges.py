"""Similarities of pairs over edges, against the formula, one pair at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from ika_lightning.attention.features import fourier
from ika_lightning.attention.graph import edges
from ika_lightning.attention.graph.edges import edge_similarity, neighbourhood_weights

HEADS, QUERIES, KEYS, PHASES, EDGES, WIDTH, GRAPHS = 2, 5, 7, 11, 23, 3, 2


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def index(seed: int, count: int) -> Tensor:
    return torch.randint(count, (EDGES,), generator=torch.Generator().manual_seed(seed))


def arguments(rows: int = QUERIES, *, features: bool = False, graphs: int = 1) -> list[Tensor]:
    found = [randn(1, HEADS, rows, PHASES), randn(2, HEADS, QUERIES, PHASES), randn(3, HEADS, KEYS, PHASES)]
    # the last nodes have no edge
    found += [index(4, QUERIES - 1), index(5, KEYS - 1)]
    if features:
        found += [randn(6, EDGES, HEADS, WIDTH), randn(7, graphs, HEADS, PHASES, WIDTH), index(8, graphs)]
    return [x.requires_grad_() if x.is_floating_point() else x for x in found]


def by_definition(amplitude, query_phase, key_phase, query, key, edge=None, frequencies=None, graph=None) -> Tensor:
    rows = []
    for number, (i, j) in enumerate(zip(query.tolist(), key.tolist(), strict=True)):
        phase = query_phase[:, i] - key_phase[:, j]
        if edge is not None:
            phase = phase - torch.einsum("hrd,hd->hr", frequencies[graph[number]], edge[number])
        a = amplitude[:, 0 if amplitude.size(1) == 1 else i]
        rows.append((a * phase.cos()).sum(-1))
    return torch.stack(rows)


CASES = {
    "one query": arguments(1),
    "each its own": arguments(),
    "features, one query": arguments(1, features=True),
    "features": arguments(features=True),
    "features of graphs": arguments(features=True, graphs=GRAPHS),
}
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(params=[17, 2**17], ids=["many blocks", "one block"])
def block(request, monkeypatch) -> None:
    monkeypatch.setattr(edges, "CPU_BLOCK", request.param)


@every_case
def test_is_its_formula(case, block):
    inputs = CASES[case]
    differentiable = [x for x in inputs if x.requires_grad]
    weight = randn(9, EDGES, HEADS)
    results = []
    for function in (edge_similarity, by_definition):
        value = function(*inputs)
        results.append((value, torch.autograd.grad((value * weight).sum(), differentiable)))
    assert_close(*results)


@every_case
def test_gradcheck(case):
    assert torch.autograd.gradcheck(edge_similarity, CASES[case])


def test_sums_of_segments_are_an_operator_of_pytorch():
    x, node = randn(1, EDGES, HEADS, WIDTH).requires_grad_(), index(3, QUERIES).sort().values
    starts = torch.searchsorted(node, torch.arange(QUERIES + 1))
    found = edges.segment_sum(x, node, starts)
    assert_close(found, torch.zeros(QUERIES, HEADS, WIDTH).double().index_add(0, node, x))
    torch.library.opcheck(torch.ops.ika_lightning.segment_sum.default, (x, node, starts))


@every_case
def test_is_an_operator_of_pytorch(case):
    name = "edge_similarity_with_features" if "features" in case else "edge_similarity"
    torch.library.opcheck(getattr(torch.ops.ika_lightning, name).default, tuple(CASES[case]))


@every_case
def test_second_derivatives_are_those_of_its_formula(case, block):
    inputs = CASES[case]
    differentiable = [x for x in inputs if x.requires_grad]
    weight = randn(9, EDGES, HEADS)
    results = []
    for function in (edge_similarity, by_definition):
        gradients = torch.autograd.grad((function(*inputs).sin() * weight).sum(), differentiable, create_graph=True)
        directions = [randn(10 + number, *x.shape) for number, x in enumerate(gradients)]
        along = sum((gradient * x).sum() for gradient, x in zip(gradients, directions, strict=True))
        results.append(torch.autograd.grad(along, differentiable))
    assert_close(*results)
    assert all(second.ne(0).any() for second in results[0])


@every_case
def test_is_mapped_by_vmap(case):
    inputs = [x.detach() for x in CASES[case]]
    several = torch.stack([inputs[1], randn(20, *inputs[1].shape), randn(21, *inputs[1].shape)]).requires_grad_()

    def of_phase(phase: Tensor) -> Tensor:
        return edge_similarity(inputs[0], phase, *inputs[2:])

    results = []
    for mapped in (torch.func.vmap(of_phase)(several), torch.stack([of_phase(x) for x in several])):
        results.append((mapped, torch.autograd.grad(mapped.square().sum(), several)))
    assert_close(*results)


@every_case
def test_without_edges(case):
    *nodes, query, key = CASES[case][:5]
    rest = [x if number == 1 else x[:0] for number, x in enumerate(CASES[case][5:])]
    value = edge_similarity(*nodes, query[:0], key[:0], *rest)
    assert value.shape == (0, HEADS)
    for gradient in torch.autograd.grad(value.sum(), nodes):
        assert gradient.eq(0).all()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(x))])
        return out


@pytest.mark.parametrize("features", [False, True])
def test_no_tensor_of_edges_by_heads_by_phases_is_made(features, monkeypatch):
    monkeypatch.setattr(edges, "CPU_BLOCK", 101)
    count = 1009
    inputs = [x.detach() for x in arguments(features=features)]
    inputs = [x.repeat(count, *[1] * (x.dim() - 1)) if x.size(0) == EDGES else x for x in inputs]
    with Largest() as largest:
        if features:
            similarity = edges._forward_with_features(*inputs)
            edges._backward_with_features(*inputs, similarity, similarity)
        else:
            similarity = edges._forward(*inputs)
            edges._backward(*inputs, similarity, similarity)
    assert similarity.shape == (count * EDGES, HEADS)
    assert largest.numel < count * EDGES * HEADS * PHASES / 2


@pytest.mark.parametrize("stationary", [True, False])
def test_amplitudes_and_offsets_are_the_products_of_features(stationary):
    feature_map = fourier(randn(1, 1 if stationary else 2, 13, WIDTH).unbind())
    query, keys = randn(2, 1, WIDTH), randn(3, KEYS, WIDTH)
    expected = feature_map(query) @ feature_map(keys).mT
    omega = feature_map.joined
    amplitude, offset = feature_map.amplitude_and_offset(query @ omega.mT)
    assert_close((amplitude * (offset - keys @ omega.mT).cos()).sum(-1), expected.squeeze(0))


class TestWeights:
    def test_are_normalised_over_neighbours(self):
        query = torch.tensor([2, 0, 2, 2, 0])
        weights = neighbourhood_weights(randn(1, 5, HEADS), randn(2, 5, HEADS), query, num_queries=3)
        assert_close(torch.zeros(3, HEADS).double().index_add(0, query, weights)[[0, 2]], torch.ones(2, HEADS).double())

    def test_a_gaussian_and_p_2_are_the_softmax_of_inner_products(self):
        """exp(a.c / s) = exp(-|a - c|^2 / 2s) exp(|a|^2 / 2s) exp(|c|^2 / 2s), where |a| cancels."""
        width = 2 * WIDTH
        a, c, query, s = randn(1, width), randn(2, EDGES, width), index(3, QUERIES), math.sqrt(width)
        gaussian = (-(a - c).square().sum(-1) / (2 * s)).exp()
        weights = neighbourhood_weights(
            gaussian.sqrt().unsqueeze(-1), c.square().sum(-1, keepdim=True) / (2 * s), query, QUERIES, floor=0.0
        )
        for i in range(QUERIES):
            assert_close(weights[query == i, 0], (c[query == i] @ a / s).softmax(0))

    @pytest.mark.parametrize("size", [1e-30, 1.0, 1e4, 1e30])
    @pytest.mark.parametrize("degree", [1, 10_007])
    def test_are_finite_for_any_degree_and_magnitude(self, degree, size):
        generator = torch.Generator().manual_seed(0)
        similarity = torch.zeros(degree, 1, requires_grad=True)
        magnitude = size * torch.rand(degree, 1, generator=generator)
        magnitude.requires_grad_()
        weights = neighbourhood_weights(similarity, magnitude, torch.zeros(degree, dtype=torch.long), num_queries=1)
        # one after another, in float32
        assert_close(weights.sum(), torch.ones(()), rtol=1e-3, atol=0.0)
        weights.square().sum().backward()
        assert similarity.grad.isfinite().all() and magnitude.grad.isfinite().all()

    def test_gradcheck(self):
        inputs = randn(1, EDGES, HEADS).requires_grad_(), randn(2, EDGES, HEADS).requires_grad_()
        assert torch.autograd.gradcheck(lambda *x: neighbourhood_weights(*x, index(3, QUERIES), QUERIES), inputs)

    def test_are_the_same_of_edges_that_are_sorted(self):
        """Where each node's edges start is told; the first and the last have none."""
        query = 1 + index(3, QUERIES).sort().values
        starts = torch.searchsorted(query, torch.arange(QUERIES + 3))
        inputs = randn(1, EDGES, HEADS).requires_grad_(), 9.0 * randn(2, EDGES, HEADS).requires_grad_()

        def weights(known: Tensor | None) -> Tensor:
            return neighbourhood_weights(*inputs, query, QUERIES + 2, known)

        assert_close(weights(starts), weights(None))
        found, expected = (
            torch.autograd.grad(weights(known).pow(3).sum(), inputs, create_graph=True) for known in (starts, None)
        )
        assert_close(found, expected)
        again = [torch.autograd.grad(sum(x.pow(3).sum() for x in first), inputs) for first in (found, expected)]
        assert_close(*again)
        assert torch.autograd.gradcheck(lambda *x: neighbourhood_weights(*x, query, QUERIES + 2, starts), inputs)
