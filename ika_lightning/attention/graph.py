r"""Kernel attention over the edges of a graph, as convolutions of PyTorch Geometric.

==============================  ========================  ================================  ===================
layer                           query                     key                               instead of PyG's
==============================  ========================  ================================  ===================
:class:`KernelGATConv`          a learned vector a head   both ends of the edge, together   ``GATConv``
:class:`KernelTransformerConv`  a projection of one end   a projection of the other         ``TransformerConv``
==============================  ========================  ================================  ===================

Both replace the exponential of an inner product by similarity x magnitude, see
:mod:`ika_lightning.attention`; :mod:`~ika_lightning.attention.edges` computes it.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.nn.inits import glorot, zeros
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, Size
from torch_geometric.utils import add_self_loops, is_torch_sparse_tensor, remove_self_loops, to_dense_batch
from torch_geometric.utils.sparse import set_sparse_value

from ika_lightning.attention.core import Regularised, at_least_float32
from ika_lightning.attention.edges import edge_similarity, neighbourhood_weights, query_wave
from ika_lightning.attention.magnitude import Exponent, check_p, log_magnitude, norm
from ika_lightning.attention.spectrum import Init, SpectrumName, build_spectrum


class _KernelConv(Regularised, MessagePassing):
    """What the layers share: a spectrum over keys of a width, the pool that it is told, and the sum over neighbours."""

    in_channels: int | tuple[int, int]
    lin_edge: Any  # PyG's Linear, or None; it has no types
    edge_updater: Callable[..., Tensor]
    propagate: Callable[..., Tensor]

    def __init__(
        self,
        out_channels: int,
        heads: int,
        concat: bool,
        dropout: float,
        edge_dim: int | None,
        key_width: int,
        p: Exponent,
        num_samples: int,
        spectrum: SpectrumName,
        stationary: bool,
        init: Init,
        prior_std: float,
        conditional: bool,
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
        self.p = check_p(p)
        self.stationary = stationary
        self._build_spectrum = functools.partial(
            build_spectrum,
            spectrum,
            heads,
            key_width,
            num_samples,
            stationary=stationary,
            init=init,
            prior_std=prior_std,
            conditional=conditional,
        )
        self.spectrum = self._build_spectrum()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        super().reset_parameters()
        for child in self.children():
            if isinstance(child, Linear):
                child.reset_parameters()
        # as it was built, so that a seed gives the parameters that it always gave
        with torch.device(next(self.spectrum.parameters()).device), torch.no_grad():
            fresh = self._build_spectrum()
            kept = [*self.spectrum.parameters(), *self.spectrum.buffers()]
            for ours, theirs in zip(kept, [*fresh.parameters(), *fresh.buffers()], strict=True):
                ours.copy_(theirs)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(-1, self.heads, self.out_channels)  # (n, h c) -> (n, h, c)

    def _join_heads(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.concat else x.mean(1)

    def _graphs(self, batch: Tensor | tuple[Tensor, Tensor] | None) -> OptPairTensor:
        """Return the graph of each node that attends and of each that is attended to, if the spectrum asks for it."""
        if batch is None or not self.spectrum.conditional:
            return None, None
        source, target = (batch, batch) if isinstance(batch, Tensor) else batch
        if any((x[1:] < x[:-1]).any() for x in (source, target)):
            raise ValueError("batch must be in ascending order, as PyG's loaders have it; sort the nodes by graph")
        return target, source

    def _frequencies(self, mean_key: OptTensor) -> Tensor:
        """Return the frequencies (h, R, d), or (g, h, R, d) of each graph; leave the regulariser in ``kl``."""
        frequencies, self._kl = self.spectrum(mean_key)
        return at_least_float32(torch.cat(frequencies, -2))

    def _project_edges(self, edge_attr: OptTensor) -> OptTensor:
        """Project the features of edges (E, edge_dim), or (E,) if there is one, to (E, h, d)."""
        if self.lin_edge is None:
            return None
        if edge_attr is None:
            raise ValueError(f"edge_attr is missing; this layer was made for edges of {self.edge_dim} features")
        return self._split_heads(self.lin_edge(edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr))

    def _weights(self, similarity: Tensor, log_magnitude: Tensor, query: Tensor, num_queries: int) -> Tensor:
        """Normalise, and drop some in training."""
        weights = neighbourhood_weights(similarity, log_magnitude, query, num_queries)
        return F.dropout(weights, self.dropout, self.training)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})"


class KernelGATConv(_KernelConv):
    r"""Graph attention as similarity x magnitude, in the place of ``torch_geometric.nn.GATConv``.

    .. math::
        x'_i = \sum_{j \in N(i)} \frac{w_{ij}}{\sum_{j'} w_{ij'}} \Theta x_j, \qquad
        w_{ij} = \bigl(\rho(a, c_{ij})^2 + 10^{-5}\bigr) \exp\Bigl(\frac{|c_{ij}|_p^2}{2 s}\Bigr), \qquad
        c_{ij} = [\Theta x_i, \Theta x_j]

    with :math:`s = \sqrt{2 d}`, for d channels a head, and :math:`N(i)` with i itself. The derivation is that of
    section 3 of `Implicit Kernel Attention <https://arxiv.org/abs/2006.06147>`_ for the attention of `Graph Attention
    Networks <https://arxiv.org/abs/1710.10903>`_: up to a factor that cancels,

    .. math:: \exp(a \cdot c / s) = e^{-|a - c|^2 / 2 s} \; e^{|c|^2 / 2 s}

    and a learned kernel :math:`\rho^2` takes the place of the Gaussian, an L^p norm that of L2. With ``init="rbf"`` and
    p = 2 the layer starts as an estimate of :math:`\text{softmax}_j(a \cdot c_{ij} / s)`. With edge features e,
    :math:`c_{ij} = [\Theta x_i, \Theta x_j, \Theta_e e_{ij}]` and :math:`s = \sqrt{3 d}`.

    Departures from GAT: inner products are scaled as in dot-product attention, and there is no LeakyReLU, as the
    kernel is not linear. Weights of a trained ``GATConv`` load (``strict=False``): parameters have the same names.

    A conditional spectrum is told the mean of :math:`c_{ij}`'s parts over nodes that are joined to another node, of the
    same graph alone if ``batch`` says which they are.

    Args:
        in_channels: Width of the input, -1 to take it from the first call; a pair for a bipartite graph, whose two
            kinds of nodes get projections of their own.
        out_channels: Channels a head, d.
        heads: Number of heads, h. Default: 1.
        concat: Concatenate the heads, else average them. Default: True.
        dropout: Probability with which a weight is dropped in training. Default: 0.
        add_self_loops: Let each node attend to itself as well. Default: True.
        edge_dim: Width of the features of edges; None if there are none.
        fill_value: Features of added self-loops: a number, a tensor, or how to reduce those of the edges that end in
            the node (``"add"``, ``"mean"``, ``"min"``, ``"max"``, ``"mul"``). Default: ``"mean"``.
        bias: Add a learned bias. Default: True.
        residual: Add a learned projection of the input. Default: False.
        p: Exponent of the norm in the magnitude, in [1, inf]. Default: 2.
        num_samples: Number of spectral samples a head, M. Default: 32.
        spectrum: ``"direct"``: frequencies are parameters; ``"implicit"``: their density is learned; ``"copula"``:
            the same, heads coupled. Default: ``"direct"``.
        stationary: Learn a kernel of the difference (Bochner) instead of any kernel (Yaglom). Default: False.
        init: The frequencies at the start, see :func:`~ika_lightning.attention.spectrum.initial_scale`.
        prior_std: Standard deviation of the prior of the implicit spectra. Default: 1.
        conditional: Let an implicit density depend on the mean key. Default: True.
        **kwargs: Arguments of ``torch_geometric.nn.MessagePassing``: ``aggr``, ``flow`` and so on.

    Shapes:
        x (n, in_channels), or a pair of source and target nodes; edge_index (2, E), an ``EdgeIndex`` or a transposed
        sparse adjacency matrix; edge_attr (E, edge_dim); the result (n, heads * out_channels), or (n, out_channels)
        without ``concat``; weights (E, heads).

    Raises:
        ValueError: If an argument is out of its range, or edge_attr is missing.

    Example:
        >>> conv, x = KernelGATConv(16, 8, heads=2, spectrum="implicit"), torch.randn(3, 16)
        >>> conv(x, torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([3, 16])
        >>> loss = conv.kl
    """

    lin: Any
    lin_src: Any
    lin_dst: Any
    _check_input: Callable[..., list[int | None]]

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | Tensor | str = "mean",
        bias: bool = True,
        residual: bool = False,
        *,
        p: Exponent = 2.0,
        num_samples: int = 32,
        spectrum: SpectrumName = "direct",
        stationary: bool = False,
        init: Init = "rbf",
        prior_std: float = 1.0,
        conditional: bool = True,
        **kwargs: Any,
    ) -> None:
        parts = 2 if edge_dim is None else 3
        super().__init__(
            out_channels, heads, concat, dropout, edge_dim, parts * out_channels,
            p, num_samples, spectrum, stationary, init, prior_std, conditional, **kwargs,
        )  # fmt: skip
        self.in_channels = in_channels
        self.add_self_loops = add_self_loops
        self.fill_value = fill_value

        def linear(width: int, width_out: int) -> Linear:
            return Linear(width, width_out, bias=False, weight_initializer="glorot")

        width, width_out = heads * out_channels, out_channels * (heads if concat else 1)
        shared = isinstance(in_channels, int)
        pair = (in_channels, in_channels) if isinstance(in_channels, int) else in_channels
        self.lin = linear(pair[0], width) if shared else None
        self.lin_src = None if shared else linear(pair[0], width)
        self.lin_dst = None if shared else linear(pair[1], width)
        self.lin_edge = None if edge_dim is None else linear(edge_dim, width)
        self.res = linear(pair[1], width_out) if residual else None
        # The vector a of each head, in the parts that meet the parts of c.
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_edge = None if edge_dim is None else nn.Parameter(torch.empty(1, heads, out_channels))
        self.bias = nn.Parameter(torch.empty(width_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        super().reset_parameters()
        for attention in (self.att_src, self.att_dst, self.att_edge):
            glorot(attention)
        zeros(self.bias)

    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj,
        edge_attr: OptTensor = None,
        size: Size = None,
        return_attention_weights: bool | None = None,
        *,
        batch: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """Let each node attend to its neighbours.

        Args:
            x: Features of nodes, or of source and target nodes; those of target nodes may be None.
            edge_index: Edges, from source to target.
            edge_attr: Features of edges.
            size: Number of source and of target nodes.
            return_attention_weights: Also return ``(edge_index, weights)``, with the self-loops that were added.
            batch: The graph of each node, or of source and target nodes, in ascending order; None if all are in one.
                Only conditional spectra ask for it.
        """
        x_source, x_target = (x, x) if isinstance(x, Tensor) else x
        if x_source.dim() != 2:
            raise ValueError(f"x must have shape (nodes, channels), got {tuple(x_source.shape)}")
        same = x_source is x_target
        source = self._split_heads((self.lin_src if self.lin is None else self.lin)(x_source))
        if same and self.lin is not None:
            target = source
        elif x_target is not None:
            target = self._split_heads((self.lin_dst if self.lin is None else self.lin)(x_target))
        else:  # nothing is known of the nodes that attend
            count = self._check_input(edge_index, size)[1]
            target = source.new_zeros(source.size(0) if count is None else count, *source.shape[1:])

        if self.add_self_loops:
            # Where source and target nodes differ, those of one number are taken for the same node.
            nodes = min(source.size(0), target.size(0)) if size is None else min(size)
            edge_index, edge_attr = remove_self_loops(edge_index, edge_attr)
            edge_index, edge_attr = add_self_loops(edge_index, edge_attr, self.fill_value, num_nodes=nodes)
        alpha = self.edge_updater(
            edge_index,
            queries=target,
            keys=source,
            edge_attr=edge_attr,
            graphs=self._graphs(batch),
            same=same or self.add_self_loops,
        )
        out = self._join_heads(self.propagate(edge_index, x=(source, target), alpha=alpha, size=size))
        if self.res is not None and x_target is not None:
            out = out + self.res(x_target)
        if self.bias is not None:
            out = out + self.bias
        return (out, (_with_values(edge_index, alpha), alpha)) if return_attention_weights else out

    def edge_update(
        self,
        queries: Tensor,
        keys: Tensor,
        edge_attr: OptTensor,
        graphs: OptPairTensor,
        same: bool,
        edge_index_i: Tensor,
        edge_index_j: Tensor,
    ) -> Tensor:
        """Return the weights (E, h)."""
        i, j, (graph, key_graph), dtype = edge_index_i, edge_index_j, graphs, keys.dtype
        edges = self._project_edges(edge_attr)
        vector = torch.cat([x for x in (self.att_dst, self.att_src, self.att_edge) if x is not None], -1)
        with torch.autocast(keys.device.type, enabled=False):
            queries, keys = at_least_float32(queries), at_least_float32(keys)
            edges = None if edges is None else at_least_float32(edges)
            mean_key = None
            if self.spectrum.conditional:
                mean_key = torch.cat([x for x in _means(queries, keys, edges, i, j, graphs, same) if x is not None], -1)
            frequencies = self._frequencies(mean_key)
            of_query, of_key, of_edge = frequencies.tensor_split((self.out_channels, 2 * self.out_channels), -1)
            wave = query_wave((frequencies @ at_least_float32(vector[0]).unsqueeze(-1)).squeeze(-1), self.stationary)
            amplitude, offset = (x.unsqueeze(1) if graph is None else x.transpose(0, 1)[:, graph] for x in wave)
            similarity = edge_similarity(
                amplitude,
                offset - _phases(queries, of_query, graph),
                _phases(keys, of_key, key_graph),
                i,
                j,
                edges,
                of_edge if graph is not None else of_edge.unsqueeze(0),
                None if graph is None else graph[i],
            )
            # The norm of c is the norm of the norms of its parts; the root makes up for its width.
            norms = [norm(queries, self.p).index_select(0, i), norm(keys, self.p).index_select(0, j)]
            norms += [] if edges is None else [norm(edges, self.p)]
            magnitude = log_magnitude(torch.stack(norms, -1) / self.out_channels**0.25, self.p)
            weights = self._weights(similarity, magnitude, i, queries.size(0))
        return weights.to(dtype)

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        """Weigh what a neighbour sends."""
        return alpha.unsqueeze(-1) * x_j


class KernelTransformerConv(_KernelConv):
    r"""Attention between queries and keys of joined nodes, in the place of ``torch_geometric.nn.TransformerConv``.

    .. math::
        x'_i = W_1 x_i + \sum_{j \in N(i)} \frac{w_{ij}}{\sum_{j'} w_{ij'}} (W_2 x_j + W_6 e_{ij}), \qquad
        w_{ij} = \bigl(\rho(q_i, k_{ij})^2 + 10^{-5}\bigr) \exp\Bigl(\frac{|k_{ij}|_p^2}{2 \sqrt d}\Bigr)

    with :math:`q_i = W_3 x_i`, :math:`k_{ij} = W_4 x_j + W_6 e_{ij}` and d channels a head; features e of edges are
    there with ``edge_dim`` only. On a graph in which all are joined this is
    :class:`~ika_lightning.attention.IKANDirect`, or :class:`~ika_lightning.attention.IKAN` and
    :class:`~ika_lightning.attention.MIKAN`. With ``init="rbf"`` and p = 2 it starts as an estimate of the `Graph
    Transformer <https://arxiv.org/abs/2009.03509>`_'s attention.

    A conditional spectrum is told the mean key over nodes that another node attends to, of the same graph alone if
    ``batch`` says which they are. Weights of a trained ``TransformerConv`` load (``strict=False``).

    Args:
        in_channels: Width of the input, -1 to take it from the first call; a pair for a bipartite graph.
        out_channels: Channels a head, d.
        heads: Number of heads, h. Default: 1.
        concat: Concatenate the heads, else average them. Default: True.
        beta: Weigh :math:`W_1 x_i` against the sum by a learned gate. Default: False.
        dropout: Probability with which a weight is dropped in training. Default: 0.
        edge_dim: Width of the features of edges; None if there are none.
        bias: Give the projections of nodes a bias. Default: True.
        root_weight: Add :math:`W_1 x_i`. Default: True.
        p: Exponent of the norm in the magnitude, in [1, inf]. Default: 2.
        num_samples: Number of spectral samples a head, M. Default: 32.
        spectrum: As in :class:`KernelGATConv`. Default: ``"direct"``.
        stationary: As in :class:`KernelGATConv`. Default: False.
        init: As in :class:`KernelGATConv`.
        prior_std: As in :class:`KernelGATConv`. Default: 1.
        conditional: As in :class:`KernelGATConv`. Default: True.
        **kwargs: Arguments of ``torch_geometric.nn.MessagePassing``: ``aggr``, ``flow`` and so on.

    Shapes:
        as in :class:`KernelGATConv`.

    Raises:
        ValueError: If an argument is out of its range, or edge_attr is missing.

    Example:
        >>> conv, x = KernelTransformerConv(16, 8, heads=2, p=1.5), torch.randn(3, 16)
        >>> conv(x, torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([3, 16])
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        beta: bool = False,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        root_weight: bool = True,
        *,
        p: Exponent = 2.0,
        num_samples: int = 32,
        spectrum: SpectrumName = "direct",
        stationary: bool = False,
        init: Init = "rbf",
        prior_std: float = 1.0,
        conditional: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            out_channels, heads, concat, dropout, edge_dim, out_channels,
            p, num_samples, spectrum, stationary, init, prior_std, conditional, **kwargs,
        )  # fmt: skip
        self.in_channels = in_channels
        attended, attending = (in_channels, in_channels) if isinstance(in_channels, int) else in_channels
        width, width_out = heads * out_channels, out_channels * (heads if concat else 1)
        self.lin_key = Linear(attended, width, bias=bias)
        self.lin_query = Linear(attending, width, bias=bias)
        self.lin_value = Linear(attended, width, bias=bias)
        self.lin_edge = None if edge_dim is None else Linear(edge_dim, width, bias=False)
        self.lin_skip = Linear(attending, width_out, bias=bias) if root_weight else None
        self.lin_beta = Linear(3 * width_out, 1, bias=False) if beta and root_weight else None
        self.reset_parameters()

    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj,
        edge_attr: OptTensor = None,
        return_attention_weights: bool | None = None,
        *,
        batch: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """Let each node attend to its neighbours; arguments are those of :meth:`KernelGATConv.forward`."""
        attended, attending = (x, x) if isinstance(x, Tensor) else x
        queries = self._split_heads(self.lin_query(attending))
        alpha = self.edge_updater(
            edge_index,
            queries=queries,
            keys=self._split_heads(self.lin_key(attended)),
            edge_attr=edge_attr,
            graphs=self._graphs(batch),
            same=attended is attending,
        )
        pair = (self._split_heads(self.lin_value(attended)), queries)  # the second says how many nodes there are
        out = self._join_heads(self.propagate(edge_index, x=pair, alpha=alpha, edge_attr=edge_attr))
        if self.lin_skip is not None:
            skipped = self.lin_skip(attending)
            if self.lin_beta is None:
                out = out + skipped
            else:
                gate = self.lin_beta(torch.cat([out, skipped, out - skipped], -1)).sigmoid()
                out = torch.lerp(out, skipped, gate)
        return (out, (_with_values(edge_index, alpha), alpha)) if return_attention_weights else out

    def edge_update(
        self,
        queries: Tensor,
        keys: Tensor,
        edge_attr: OptTensor,
        graphs: OptPairTensor,
        same: bool,
        edge_index_i: Tensor,
        edge_index_j: Tensor,
    ) -> Tensor:
        """Return the weights (E, h)."""
        i, j, (graph, key_graph), dtype = edge_index_i, edge_index_j, graphs, keys.dtype
        edges = self._project_edges(edge_attr)
        with torch.autocast(keys.device.type, enabled=False):
            queries, keys = at_least_float32(queries), at_least_float32(keys)
            edges = None if edges is None else at_least_float32(edges)
            mean_key = None
            if self.spectrum.conditional:
                _, mean_key, mean_edge = _means(queries, keys, edges, i, j, graphs, same)
                mean_key = mean_key if mean_edge is None else mean_key + mean_edge
            frequencies = self._frequencies(mean_key)
            similarity = edge_similarity(
                *query_wave(_phases(queries, frequencies, graph), self.stationary),
                _phases(keys, frequencies, key_graph),
                i,
                j,
                edges,
                frequencies if graph is not None else frequencies.unsqueeze(0),
                None if graph is None else graph[i],
            )
            if edges is None:
                magnitude = log_magnitude(keys, self.p).index_select(0, j)
            else:  # the norm of a sum is not known from those of its terms
                magnitude = log_magnitude(keys.index_select(0, j) + edges, self.p)
            weights = self._weights(similarity, magnitude, i, queries.size(0))
        return weights.to(dtype)

    def message(self, x_j: Tensor, alpha: Tensor, edge_attr: OptTensor) -> Tensor:
        """Weigh what a neighbour, and the edge, send."""
        edges = self._project_edges(edge_attr)
        return alpha.unsqueeze(-1) * (x_j if edges is None else x_j + edges)


def _phases(x: Tensor, frequencies: Tensor, graph: OptTensor) -> Tensor:
    """Return the phases (h, n, R) of nodes (n, h, d), by frequencies (h, R, d), or (g, h, R, d) of each graph."""
    if graph is None:
        return x.transpose(0, 1) @ frequencies.mT
    dense, is_node = to_dense_batch(x, graph, batch_size=frequencies.size(0))  # (g, k, h, d)
    return torch.einsum("gkhd,ghrd->hgkr", dense, frequencies)[:, is_node]


def _means(
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
    count = 0 if graph is None else 1 + max(int(x.max()) if x.numel() else 0 for x in graphs)

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


def _with_values(edge_index: Adj, values: Tensor) -> Adj:
    """Put values into an adjacency matrix; edges in another form are returned as they are."""
    return set_sparse_value(edge_index, values) if is_torch_sparse_tensor(edge_index) else edge_index
