r"""The sampled part of similarity, for each edge.

A map of frequencies needs no key of an edge: phases are sums, so those of the two nodes and of the edge's features are
made once for each and added up (``edges.py``). Any other feature map is given the keys
of the edges, one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import to_dense_batch

from ika_lightning.attention.features import FeatureMap, Fourier
from ika_lightning.attention.graph.base import number_of_graphs
from ika_lightning.attention.graph.edges import edge_similarity


def similarity_of_vector(
    feature_map: FeatureMap,
    vector: Tensor,
    parts: tuple[Tensor, Tensor],
    edges: Tensor | None,
    ends: tuple[Tensor, Tensor],
    graphs: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    r"""Estimate :math:`\rho(a, c_{ij})` of a learned vector and keys that are concatenated, c = [x_i, y_j, e_ij].

    Args:
        feature_map: What the spectrum returned.
        vector: a, (h, d').
        parts: x and y, of nodes that attend and that are attended to, (n, h, d) and (m, h, d).
        edges: e, (E, h, d), or None.
        ends: i and j, (E,).
        graphs: The graph of each node of either kind, (n,) and (m,), or None and None.

    Shapes:
        the result (E, h).
    """
    (x, y), (i, j), (graph, key_graph) = parts, ends, graphs
    if not isinstance(feature_map, Fourier):
        keys = torch.cat([part for part in (x.index_select(0, i), y.index_select(0, j), edges) if part is not None], -1)
        return _products(feature_map, vector.expand_as(keys), keys, i, graphs)
    width = x.size(-1)
    frequencies = feature_map.joined.to(x.dtype)
    of_query, of_key, of_edge = frequencies.tensor_split((width, 2 * width), -1)
    wave = feature_map.amplitude_and_offset((frequencies @ vector.unsqueeze(-1)).squeeze(-1))
    amplitude, offset = (w.unsqueeze(1) if graph is None else w.transpose(0, 1)[:, graph] for w in wave)
    return edge_similarity(
        amplitude,
        offset - _phases(x, of_query, graph),
        _phases(y, of_key, key_graph),
        i,
        j,
        edges,
        of_edge if graph is not None else of_edge.unsqueeze(0),
        None if graph is None else graph[i],
    )


def similarity_of_nodes(
    feature_map: FeatureMap,
    queries: Tensor,
    keys: Tensor,
    edges: Tensor | None,
    ends: tuple[Tensor, Tensor],
    graphs: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    r"""Estimate :math:`\rho(q_i, k_j + e_{ij})`; arguments and result are as in :func:`similarity_of_vector`."""
    (i, j), (graph, key_graph) = ends, graphs
    if not isinstance(feature_map, Fourier):
        of_edges = keys.index_select(0, j) if edges is None else keys.index_select(0, j) + edges
        return _products(feature_map, queries.index_select(0, i), of_edges, i, graphs)
    frequencies = feature_map.joined.to(queries.dtype)
    amplitude, offset = feature_map.amplitude_and_offset(_phases(queries, frequencies, graph))
    return edge_similarity(
        amplitude,
        offset,
        _phases(keys, frequencies, key_graph),
        i,
        j,
        edges,
        frequencies if graph is not None else frequencies.unsqueeze(0),
        None if graph is None else graph[i],
    )


def _products(
    feature_map: FeatureMap, queries: Tensor, keys: Tensor, i: Tensor, graphs: tuple[Tensor | None, Tensor | None]
) -> Tensor:
    """Return the products of features of queries and keys (E, h, d), row by row; (E, h)."""
    if graphs[0] is None:
        return (feature_map(queries.transpose(0, 1)) * feature_map(keys.transpose(0, 1))).sum(-1).mT
    graph = graphs[0].index_select(0, i)
    order = graph.argsort(stable=True)
    count = number_of_graphs(graphs)

    def features(x: Tensor) -> Tensor:
        dense, is_row = to_dense_batch(x[order], graph[order], batch_size=count)
        return feature_map(dense.transpose(1, 2)).transpose(1, 2)[is_row]

    return (features(queries) * features(keys)).sum(-1)[order.argsort()]


def _phases(x: Tensor, frequencies: Tensor, graph: Tensor | None) -> Tensor:
    """Return the phases (h, n, R) of nodes (n, h, d), by frequencies (h, R, d), or (g, h, R, d) of each graph."""
    if graph is None:
        return x.transpose(0, 1) @ frequencies.mT
    # (g, k, h, d)
    dense, is_node = to_dense_batch(x, graph, batch_size=frequencies.size(0))
    return torch.einsum("gkhd,ghrd->hgkr", dense, frequencies)[:, is_node]
