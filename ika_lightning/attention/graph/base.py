"""What the convolutions share: a core over the pairs of nodes that an edge joins, and the sum over neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.typing import Adj, OptPairTensor, OptTensor
from torch_geometric.utils import is_torch_sparse_tensor
from torch_geometric.utils.sparse import set_sparse_value

from ika_lightning.attention.backends.call import with_atom
from ika_lightning.attention.core import Core
from ika_lightning.attention.graph.edges import neighbourhood_weights, segment_sum


class KernelConv(MessagePassing):
    """Base of the convolutions: a core, heads, and weights that are normalised over neighbours."""

    in_channels: int | tuple[int, int]
    # PyG's Linear, or None; it has no types
    lin_edge: Any
    edge_updater: Callable[..., Tensor]
    propagate: Callable[..., Tensor]

    def __init__(
        self,
        out_channels: int,
        heads: int,
        concat: bool,
        dropout: float,
        edge_dim: int | None,
        core: Core,
        **kwargs: Any,
    ) -> None:
        super().__init__(node_dim=0, **{"aggr": "add", **kwargs})
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.out_channels = out_channels
        self.heads = heads
        self.concat = concat
        self.dropout = dropout
        self.edge_dim = edge_dim
        self.core = core

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        super().reset_parameters()
        for child in self.children():
            if isinstance(child, Linear):
                child.reset_parameters()
        self.core.reset_parameters()

    @property
    def kl(self) -> Tensor:
        """The regulariser of the last forward; zero before the first."""
        return self.core.kl

    def _split_heads(self, x: Tensor) -> Tensor:
        # (n, h c) -> (n, h, c)
        return x.view(-1, self.heads, self.out_channels)

    def _join_heads(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.concat else x.mean(1)

    def _graphs(self, batch: Tensor | tuple[Tensor, Tensor] | None, num_source: int, num_target: int) -> OptPairTensor:
        """Return the graph of each node that attends and of each that is attended to, if the spectrum asks for it."""
        if batch is None or self.core.spectrum is None or not self.core.spectrum.conditional:
            return None, None
        source, target = (batch, batch) if isinstance(batch, Tensor) else batch
        for x, nodes in ((source, num_source), (target, num_target)):
            if x.shape != (nodes,):
                raise ValueError(f"batch must name the graph of each of {nodes} nodes, got shape {tuple(x.shape)}")
            check_ascending(x)
        return target, source

    def _project_edges(self, edge_attr: OptTensor) -> OptTensor:
        """Project the features of edges (E, edge_dim), or (E,) if there is one, to (E, h, d)."""
        if self.lin_edge is None:
            return None
        if edge_attr is None:
            raise ValueError(f"edge_attr is missing; this layer was made for edges of {self.edge_dim} features")
        return self._split_heads(self.lin_edge(edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr))

    def _weights(
        self, similarity: Tensor, exponent: Tensor, query: Tensor, num_queries: int, starts: OptTensor
    ) -> Tensor:
        """Put the atom beside what was sampled, and normalise."""
        share = self.core.share
        similarity = with_atom(similarity, None if share is None else share.to(similarity.dtype))
        return neighbourhood_weights(similarity, exponent, query, num_queries, starts)

    def aggregate(self, inputs: Tensor, index: Tensor, ptr: OptTensor = None, dim_size: int | None = None) -> Tensor:
        """Sum what neighbours send; where edges are sorted, without threads that wait for one another."""
        # nodes after the last one with an edge may be missing
        starts = None if ptr is None or ptr.numel() - 1 != dim_size else ptr
        if starts is None or self.aggr not in ("add", "sum"):
            return super().aggregate(inputs, index, starts, dim_size)
        summed: Tensor = segment_sum(inputs, index, starts)
        return summed

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # until version 0.1, the spectrum was the layer's own
        for key in [key for key in state_dict if key.startswith(f"{prefix}spectrum.")]:
            state_dict[f"{prefix}core.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})"


def means_of_joined(
    queries: Tensor, keys: Tensor, edges: OptTensor, i: Tensor, j: Tensor, graphs: OptPairTensor, same: bool
) -> tuple[Tensor, Tensor, OptTensor]:
    """Average over what joins a node to another: nodes that attend, that are attended to, and edges.

    A node alone, with or without a self-loop, has no part in it: nothing else depends on whether it is there.

    Args:
        queries: Nodes that attend, (n, h, d).
        keys: Nodes that are attended to, (m, h, d).
        edges: Edges (E, h, d), or None.
        i: The node at which each edge attends, (E,).
        j: The node that it attends to.
        graphs: The graph of each of the nodes, (n,) and (m,), or None and None.
        same: Whether both kinds of nodes are the same, so that an edge from i to i is a self-loop.
    """
    apart = i != j if same else torch.ones_like(i, dtype=torch.bool)
    graph, key_graph = graphs
    count = number_of_graphs(graphs)

    def mean(x: Tensor, chosen: Tensor, graph: OptTensor) -> Tensor:
        x = x.masked_fill(~chosen[:, None, None], 0.0)
        if graph is None:
            return x.sum(0) / chosen.sum().clamp_min(1)
        sums, counts = x.new_zeros(count, *x.shape[1:]), x.new_zeros(count)
        counts = counts.index_add(0, graph, chosen.to(x)).clamp_min(1.0)
        return sums.index_add(0, graph, x) / counts[:, None, None]

    def joined(x: Tensor, index: Tensor) -> Tensor:
        return index.new_zeros(x.size(0)).index_add(0, index, apart.to(index)) > 0

    return (
        mean(queries, joined(queries, i), graph),
        mean(keys, joined(keys, j), key_graph),
        None if edges is None else mean(edges, apart, None if graph is None else graph[i]),
    )


def check_ascending(batch: Tensor) -> None:
    """Refuse nodes that are not sorted by their graphs.

    An accelerator checks it by itself, and stops at what comes next: to hear of it here, all of its work so far would
    have to be waited for in each layer.

    Raises:
        ValueError: If they are not, on a CPU; elsewhere a RuntimeError comes of the device.
    """
    rule = "batch must be in ascending order, as PyG's loaders have it; sort the nodes by graph"
    is_ascending = (batch[1:] >= batch[:-1]).all()
    if batch.device.type != "cpu":
        torch._assert_async(is_ascending, rule)
    elif not is_ascending:
        raise ValueError(rule)


def number_of_graphs(graphs: OptPairTensor) -> int:
    """Return how many graphs the nodes of either kind are of, those without edges included; 0 if none is named.

    Where graphs are named, this waits for an accelerator: sizes of tensors depend on it.

    Example:
        >>> number_of_graphs((torch.tensor([0, 1]), torch.tensor([0, 2, 2])))
        3
    """
    return 0 if graphs[0] is None else 1 + max(int(x.max()) if x.numel() else 0 for x in graphs if x is not None)


def without_guess(edge_index: Adj) -> Adj:
    """Return edges as they are, but an ``EdgeIndex`` that was not told how many nodes there are as a tensor.

    It would take them to end with the last one that has an edge.
    """
    return (
        edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) and None in edge_index.sparse_size() else edge_index
    )


def with_values(edge_index: Adj, values: Tensor) -> Adj:
    """Put values into an adjacency matrix; edges in another form are returned as they are."""
    return set_sparse_value(edge_index, values) if is_torch_sparse_tensor(edge_index) else edge_index
