"""Samples of neighbourhoods."""

import numpy as np
import pytest
import torch
import torch_geometric.typing
from torch_geometric.sampler import SamplerOutput

from ika_lightning.data.neighbours import Neighbours

NODES, EDGES = 31, 211


def graph() -> torch.Tensor:
    return torch.randint(NODES, (2, EDGES), generator=torch.Generator().manual_seed(0))


def sample(seeds: list[int], counts: list[int], seed: int = 0):
    return Neighbours(graph(), NODES, counts).sample(torch.tensor(seeds), np.random.default_rng(seed))


def test_edges_are_those_of_the_graph():
    nodes, edges, edge_index = sample([3, 17, 5], [4, 2])
    assert nodes[:3].tolist() == [3, 17, 5]
    assert len(nodes.unique()) == len(nodes)
    assert nodes[edge_index].equal(graph()[:, edges])
    assert len(edges.unique()) == len(edges)


def test_no_more_than_asked_for_and_no_fewer_than_there_are():
    _, _, edge_index = sample([3, 17, 5], [4])
    degrees = torch.bincount(graph()[1], minlength=NODES)
    assert torch.bincount(edge_index[1], minlength=3).tolist() == [min(4, int(degrees[i])) for i in (3, 17, 5)]


def test_all_neighbours_make_the_whole_neighbourhood():
    nodes, edges, _ = sample([3], [-1, -1])
    source, target = graph()
    first = set(source[target == 3].tolist()) | {3}
    second = first | {int(s) for s, t in zip(source, target, strict=True) if int(t) in first}
    assert set(nodes.tolist()) == second
    assert len(edges) == sum(int(t) in first for t in target)


def test_each_neighbour_is_as_likely():
    star = torch.stack([torch.arange(1, 8), torch.zeros(7, dtype=torch.long)])
    sampler, generator = Neighbours(star, 8, [3]), np.random.default_rng(0)
    counts = torch.zeros(8)
    for _ in range(1400):
        nodes, *_ = sampler.sample(torch.tensor([0]), generator)
        counts[nodes[1:]] += 1
    assert (counts[1:] / 1400 - 3 / 7).abs().max() < 0.06


def test_a_function_of_the_generator():
    first, second, other = (sample([3, 17], [2, 2], seed) for seed in (0, 0, 1))
    assert all(x.equal(y) for x, y in zip(first, second, strict=True))
    assert not first[1].equal(other[1])


def test_a_node_without_neighbours():
    nodes, edges, edge_index = Neighbours(torch.tensor([[0], [1]]), 3, [5, 5]).sample(
        torch.tensor([2]), np.random.default_rng(0)
    )
    assert (nodes.tolist(), edges.tolist(), tuple(edge_index.shape)) == ([2], [], (2, 0))


@pytest.mark.skipif(
    torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE, reason="a stand-in is not needed"
)
def test_pygs_sampler_is_used_where_its_library_is(monkeypatch):
    """Its library is not installed here, so that something stands in for the sampler."""

    class Sampler:
        def __init__(self, data, num_neighbors):
            assert data.num_nodes == NODES and num_neighbors == [2]

        def sample_from_nodes(self, asked):
            drawn = torch.randint(NODES, ())
            return SamplerOutput(torch.stack([asked.node[0], drawn]), torch.tensor([1]), torch.tensor([0]), drawn)

    monkeypatch.setattr(torch_geometric.typing, "WITH_PYG_LIB", True)
    monkeypatch.setattr(torch_geometric.sampler, "NeighborSampler", Sampler)
    first, second = (sample([3], [2]) for _ in range(2))
    assert first[2].tolist() == [[1], [0]]
    assert first[0].equal(second[0])
