"""Sampling the neighbourhood of a few nodes of a large graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ika_lightning.lazy import torch_geometric as pyg

__all__ = ["Neighbours"]


class Neighbours:
    """Samples neighbours of nodes, neighbours of those, and so on (Hamilton et al., 2017).

    PyG's sampler is used where its native library is installed; else NumPy does the same without a loop over nodes.

    Args:
        edge_index: Edges of the graph, from source to target, (2, E).
        num_nodes: Number of nodes of the graph.
        num_neighbors: Most sources that are sampled of a target, without repetition, a number for each step away; -1
            for all.

    Example:
        >>> star = torch.tensor([[1, 2, 3, 0], [0, 0, 0, 1]])
        >>> nodes, edges, edge_index = Neighbours(star, 4, [2]).sample(torch.tensor([0]), np.random.default_rng(0))
        >>> len(nodes), edge_index.tolist()
        (3, [[1, 2], [0, 0]])
    """

    def __init__(self, edge_index: Tensor, num_nodes: int, num_neighbors: list[int]) -> None:
        self.num_neighbors = num_neighbors
        self.native = None
        if pyg.typing.WITH_PYG_LIB or pyg.typing.WITH_TORCH_SPARSE:
            self.native = pyg.sampler.NeighborSampler(
                pyg.data.Data(edge_index=edge_index, num_nodes=num_nodes), num_neighbors
            )
        self.source, self.target = edge_index.numpy()
        self.by_target = np.argsort(self.target, kind="stable")
        self.starts = np.searchsorted(self.target[self.by_target], np.arange(num_nodes + 1))
        self.number = np.full(num_nodes, -1)  # of a node in the sample

    def sample(self, seeds: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Sample around nodes.

        Args:
            seeds: The nodes, each once.
            generator: Where randomness comes from.

        Returns:
            The nodes of the sample, seeds first; its edges, as columns of the graph's ``edge_index``; and the
            ``edge_index`` of the sample.
        """
        if self.native is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(generator.integers(2**31)))
                found = self.native.sample_from_nodes(pyg.sampler.NodeSamplerInput(None, seeds))
            return found.node, found.edge, torch.stack([found.row, found.col])
        nodes = front = seeds.numpy()
        self.number[nodes] = np.arange(len(nodes))
        chosen = []
        for count in self.num_neighbors:
            edges = self._into(front, count, generator)
            chosen.append(edges)
            reached = self.source[edges]
            new, first = np.unique(reached[self.number[reached] < 0], return_index=True)
            front = new[np.argsort(first)]
            self.number[front] = len(nodes) + np.arange(len(front))
            nodes = np.concatenate([nodes, front])
        edges = np.concatenate(chosen)
        edge_index = np.stack([self.number[self.source[edges]], self.number[self.target[edges]]])
        self.number[nodes] = -1
        return torch.from_numpy(nodes), torch.from_numpy(edges), torch.from_numpy(edge_index)

    def _into(self, targets: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        """Sample edges that end in the targets, the edges of a target side by side."""
        degrees = self.starts[targets + 1] - self.starts[targets]
        ends = degrees.cumsum()
        owner = np.repeat(np.arange(len(targets)), degrees)
        place = np.arange(len(owner)) - np.repeat(ends - degrees, degrees)  # among the edges of the target
        edges = self.by_target[np.repeat(self.starts[targets], degrees) + place]
        if count < 0:
            return edges
        shuffled = np.lexsort([generator.random(len(owner)), owner])
        return edges[shuffled[place < count]]
