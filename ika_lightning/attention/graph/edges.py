r"""Similarities of pairs of nodes that an edge joins, without a tensor of edges x heads x samples.

An edge lets node i attend to node j. The key of the pair, c, is made of what is known of i, of j and of the edge, each
with its own frequencies, so its phases are sums. With the query's part in an amplitude a and an offset (see
:meth:`~ika_lightning.attention.features.Fourier.amplitude_and_offset`), the estimated kernel of a pair is

.. math::
    \rho_{ij} = \sum_r a_{ir} \cos(\alpha_{ir} - \beta_{jr} - \omega_r \cdot e_{ij})

**Without edge features** the cosine of the difference is an inner product of points on the circle,

.. math:: a \cos(\alpha - \beta) = a \, [\cos \alpha, \sin \alpha] \cdot [\cos \beta, \sin \beta]

so trigonometric functions are taken per node, and an edge costs 2 R multiply-adds a head: a dense product of which only
the entries at edges are computed. Its gradient is two products of a sparse matrix with a dense one,
:math:`S_i = \sum_j g_{ij} [\cos \beta_j, \sin \beta_j]` and the same the other way round. One head's points are held at
a time, and the backward makes them again.

**With edge features** an edge has a phase of its own. Edges are taken in blocks, a cosine for each phase, and the
backward takes it again.

The letters, beside those of :mod:`~ika_lightning.attention.operation`: E edges; n nodes that attend and m nodes that
are attended to; R phases: M of a stationary kernel, 2M of another; g graphs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ika_lightning.attention.backends.operators import differentiable_operator
from ika_lightning.attention.backends.tiles import blocks
from ika_lightning.attention.operation import FLOOR

# Numbers gathered for a block of edges: 512 kB of float32, which stay in the second-level cache of a core. An
# accelerator wants more at once.
CPU_BLOCK, ACCELERATOR_BLOCK = 2**17, 2**25


def edge_similarity(
    amplitude: Tensor,
    query_phase: Tensor,
    key_phase: Tensor,
    query: Tensor,
    key: Tensor,
    edge: Tensor | None = None,
    frequencies: Tensor | None = None,
    graph: Tensor | None = None,
) -> Tensor:
    r"""Estimate the kernel for each edge; see the top of the file for the formula.

    Args:
        amplitude: :math:`a`, of each node that attends or the same for all.
        query_phase: :math:`\alpha`.
        key_phase: :math:`\beta`.
        query: The node at which each edge attends, i.
        key: The node that it attends to, j.
        edge: Features of each edge, :math:`e`; None if there are none.
        frequencies: :math:`\omega`, of the features of edges in each graph.
        graph: The graph that each edge is in; None if all are in one.

    Shapes:
        amplitude (h, n, R) or (h, 1, R); query_phase (h, n, R); key_phase (h, m, R); query, key and graph (E,);
        edge (E, h, d); frequencies (g, h, R, d); the result (E, h).

    Example:
        >>> one, query_phase, key_phase = torch.ones(1, 1, 1), torch.tensor([[[0.5]]]), torch.tensor([[[0.0], [0.5]]])
        >>> edge_similarity(one, query_phase, key_phase, torch.tensor([0, 0]), torch.tensor([0, 1])).squeeze(-1)
        tensor([0.8776, 1.0000])
    """
    if edge is None:
        return _similarity(amplitude, query_phase, key_phase, query, key)
    assert frequencies is not None
    graph = torch.zeros_like(query) if graph is None else graph
    return _similarity_with_features(amplitude, query_phase, key_phase, query, key, edge, frequencies, graph)


def neighbourhood_weights(
    similarity: Tensor,
    log_magnitude: Tensor,
    query: Tensor,
    num_queries: int,
    starts: Tensor | None = None,
    floor: float = FLOOR,
) -> Tensor:
    r"""Normalise similarity x magnitude over the neighbours of each node.

    .. math::
        \frac{(\rho_{ij}^2 + \text{floor})\, e^{\text{mag}_{ij} - s_i}}{\sum_{j'} (\dots)}, \qquad
        s_i = \max_{j'} \text{mag}_{ij'}

    One neighbour has :math:`e^0`, so no sum is below the floor, however large magnitudes or degrees are. The shift
    cancels and needs no gradient. Sums over edges that are sorted are made segment by segment, each by one thread in
    one order; over others, edges of a node are added as they come.

    Args:
        similarity: :math:`\rho`.
        log_magnitude: Logarithm of the magnitude of each pair.
        query: The node at which each edge attends.
        num_queries: How many nodes there are to attend, n.
        starts: Where the edges of each node begin, and where they end; None if they are not sorted by these nodes.
        floor: Added to the squared similarity so that no neighbourhood vanishes.

    Shapes:
        similarity, log_magnitude and the result (E, h); query (E,); starts (n + 1,).

    Example:
        >>> weights = neighbourhood_weights(torch.ones(3, 1), torch.zeros(3, 1), torch.tensor([0, 1, 1]), num_queries=2)
        >>> weights.squeeze(-1)
        tensor([1.0000, 0.5000, 0.5000])
    """
    sums = similarity.new_zeros(num_queries, similarity.size(-1))
    if starts is None:
        index = query.unsqueeze(-1).expand_as(similarity)
        shift = sums.scatter_reduce(0, index, log_magnitude.detach(), "amax", include_self=False)
    else:
        shift = torch.segment_reduce(log_magnitude.detach(), "max", offsets=starts, unsafe=True)
    weight = (similarity.square() + floor) * (log_magnitude - shift.index_select(0, query)).exp()
    total = sums.index_add(0, query, weight) if starts is None else segment_sum(weight, query, starts)
    return weight / total.index_select(0, query)


def _sum_segments(x: Tensor, index: Tensor, starts: Tensor) -> Tensor:
    return torch.segment_reduce(x, "sum", offsets=starts, unsafe=True)


def _sum_segments_backward(x: Tensor, index: Tensor, starts: Tensor, out: Tensor, grad: Tensor) -> tuple[Tensor]:
    return (grad.index_select(0, index),)


def _plain_segments(x: Tensor, index: Tensor, starts: Tensor) -> Tensor:
    return x.new_zeros(starts.numel() - 1, *x.shape[1:]).index_add(0, index, x)


#: Sums rows (E, ...) over the edges of each node, given their nodes (E,) and where those of each start (n + 1,), to
#: (n, ...). PyTorch's own sum of segments has no second derivative.
segment_sum = differentiable_operator(
    "segment_sum", _sum_segments, _sum_segments_backward, _plain_segments, 3, _plain_segments, batched=False
)


# --- Without edge features --------------------------------------------------------------------------------------------


def _forward(amplitude: Tensor, query_phase: Tensor, key_phase: Tensor, query: Tensor, key: Tensor) -> Tensor:
    similarity = query_phase.new_empty(query.numel(), query_phase.size(0))
    for head, out in enumerate(similarity.unbind(1)):
        q = _on_circle(query_phase[head]).mul_(amplitude[head].unsqueeze(1)).flatten(1)
        k = _on_circle(key_phase[head]).flatten(1)
        for edges in _edge_blocks(query, q.size(1)):
            pairs = q.index_select(0, query[edges]).mul_(k.index_select(0, key[edges]))
            torch.sum(pairs, -1, out=out[edges])
    return similarity


def _backward(
    amplitude: Tensor,
    query_phase: Tensor,
    key_phase: Tensor,
    query: Tensor,
    key: Tensor,
    similarity: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_amplitude = torch.empty_like(amplitude)
    grad_query_phase, grad_key_phase = torch.empty_like(query_phase), torch.empty_like(key_phase)
    into_queries = _Gather(query, key, grad, query_phase.size(1))
    into_keys = _Gather(key, query, grad, key_phase.size(1))
    for head, a in enumerate(amplitude.unsqueeze(2)):
        q, k = _on_circle(query_phase[head]), _on_circle(key_phase[head])
        gathered = into_queries(k, head)
        torch.mul(_turn(q, gathered), a.squeeze(1), out=grad_query_phase[head])
        grad_amplitude[head] = (q * gathered).sum(1).sum_to_size(a.squeeze(1).shape)
        grad_key_phase[head] = _turn(k, into_keys(q.mul_(a), head))
    return grad_amplitude, grad_query_phase, grad_key_phase


def _plain(amplitude: Tensor, query_phase: Tensor, key_phase: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Compute the same by PyTorch's own operations, with a tensor of edges x heads x samples."""
    phase = query_phase.index_select(1, query) - key_phase.index_select(1, key)
    return (_of_queries(amplitude, query) * phase.cos()).sum(-1).mT


class _Gather:
    """Sums over the edges of each node, the edges weighted by one head's gradient: a sparse matrix times a dense one.

    Edges are sorted by node once for all heads.
    """

    def __init__(self, into: Tensor, source: Tensor, grad: Tensor, count: int) -> None:
        ordered, order = into.sort(stable=True)
        self.source = source[order]
        self.weights = grad[order].mT.contiguous()
        self.starts = torch.searchsorted(ordered, torch.arange(count, device=into.device))

    def __call__(self, points: Tensor, head: int) -> Tensor:
        """Sum points (m, 2, R) over the edges of each node; returns (n, 2, R)."""
        sums = F.embedding_bag(
            self.source, points.flatten(1), self.starts, mode="sum", per_sample_weights=self.weights[head]
        )
        return sums.unflatten(1, (2, -1))


def _on_circle(phase: Tensor) -> Tensor:
    """Map phases (n, R) to points (n, 2, R): cosines, then sines."""
    return torch.stack([phase.cos(), phase.sin()], 1)


def _turn(point: Tensor, direction: Tensor) -> Tensor:
    """Differentiate the inner product of points on the circle with given directions in their phases; (n, R)."""
    cos, sin = point.unbind(1)
    return torch.addcmul(cos * direction[:, 1], sin, direction[:, 0], value=-1)


# --- With edge features -----------------------------------------------------------------------------------------------


def _forward_with_features(
    amplitude: Tensor,
    query_phase: Tensor,
    key_phase: Tensor,
    query: Tensor,
    key: Tensor,
    edge: Tensor,
    frequencies: Tensor,
    graph: Tensor,
) -> Tensor:
    similarity = query_phase.new_empty(query.numel(), query_phase.size(0))
    for _, edges, w in _edges_of_graphs(graph, frequencies):
        phase = _pair_phase(query_phase, key_phase, query[edges], key[edges], edge[edges], w)
        a = _of_queries(amplitude, query[edges])
        similarity[edges] = (a * phase.cos_()).sum(-1).mT
    return similarity


def _backward_with_features(
    amplitude: Tensor,
    query_phase: Tensor,
    key_phase: Tensor,
    query: Tensor,
    key: Tensor,
    edge: Tensor,
    frequencies: Tensor,
    graph: Tensor,
    similarity: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_amplitude, grad_query_phase = torch.zeros_like(amplitude), torch.zeros_like(query_phase)
    grad_key_phase, grad_edge = torch.zeros_like(key_phase), torch.zeros_like(edge)
    grad_frequencies = torch.zeros_like(frequencies, memory_format=torch.contiguous_format)
    for number, edges, w in _edges_of_graphs(graph, frequencies):
        i, j, e = query[edges], key[edges], edge[edges]
        phase = _pair_phase(query_phase, key_phase, i, j, e, w)
        a, of_similarity = _of_queries(amplitude, i), grad[edges].mT.unsqueeze(-1)
        of_amplitude = of_similarity * phase.cos()
        if amplitude.size(1) == 1:
            grad_amplitude += of_amplitude.sum(1, keepdim=True)
        else:
            grad_amplitude.index_add_(1, i, of_amplitude)
        of_phase = phase.sin_().mul_(a).mul_(of_similarity).neg_()  # (h, b, R)
        grad_query_phase.index_add_(1, i, of_phase)
        grad_key_phase.index_add_(1, j, of_phase, alpha=-1)
        grad_edge[edges] = -(of_phase @ w).transpose(0, 1)
        grad_frequencies[number] -= of_phase.mT @ e.transpose(0, 1)
    return grad_amplitude, grad_query_phase, grad_key_phase, grad_edge, grad_frequencies


def _plain_with_features(
    amplitude: Tensor,
    query_phase: Tensor,
    key_phase: Tensor,
    query: Tensor,
    key: Tensor,
    edge: Tensor,
    frequencies: Tensor,
    graph: Tensor,
) -> Tensor:
    """Compute the same by PyTorch's own operations, with a tensor of edges x heads x frequencies x width."""
    of_edge = torch.einsum("ehd,ehrd->her", edge, frequencies.index_select(0, graph))
    phase = query_phase.index_select(1, query) - key_phase.index_select(1, key) - of_edge
    return (_of_queries(amplitude, query) * phase.cos()).sum(-1).mT


def _pair_phase(
    query_phase: Tensor, key_phase: Tensor, query: Tensor, key: Tensor, edge: Tensor, frequencies: Tensor
) -> Tensor:
    """Return the phases (h, b, R) of a block of edges whose features are (b, h, d)."""
    phase = query_phase.index_select(1, query).sub_(key_phase.index_select(1, key))
    return phase.baddbmm_(edge.transpose(0, 1), frequencies.mT, alpha=-1)


def _of_queries(amplitude: Tensor, query: Tensor) -> Tensor:
    return amplitude if amplitude.size(1) == 1 else amplitude.index_select(1, query)


def _edges_of_graphs(graph: Tensor, frequencies: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Cut the edges into blocks, none of them with edges of two graphs.

    Returns:
        For each block the number of the graph, the edges (b,), and the graph's frequencies.
    """
    # of an edge
    numbers = frequencies[0, ..., 0].numel()
    if frequencies.size(0) == 1:
        edges = torch.arange(len(graph), device=graph.device)
        return [(0, edges[block], frequencies[0]) for block in _edge_blocks(edges, numbers)]
    order = graph.argsort(stable=True)
    sizes = torch.bincount(graph, minlength=frequencies.size(0)).tolist()
    return [
        (number, edges[block], w)
        for number, (edges, w) in enumerate(zip(order.split(sizes), frequencies, strict=True))
        for block in _edge_blocks(edges, numbers)
    ]


# --- Both -------------------------------------------------------------------------------------------------------------


def _edge_blocks(edges: Tensor, numbers: int) -> list[slice]:
    """Cut edges into blocks in which this many numbers of each edge fit where they should."""
    size = CPU_BLOCK if edges.device.type == "cpu" else ACCELERATOR_BLOCK
    return blocks(edges.numel(), max(1, size // max(1, numbers)))


def _similarity_shape(amplitude: Tensor, query_phase: Tensor, key_phase: Tensor, query: Tensor, *_: Any) -> Tensor:
    return query_phase.new_empty(query.numel(), query_phase.size(0))


_similarity = differentiable_operator(
    "edge_similarity", _forward, _backward, _plain, 5, _similarity_shape, batched=False
)
_similarity_with_features = differentiable_operator(
    "edge_similarity_with_features",
    _forward_with_features,
    _backward_with_features,
    _plain_with_features,
    8,
    _similarity_shape,
    batched=False,
)
