"""Attention of a learned vector to both ends of an edge."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.nn.inits import glorot, zeros
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, Size
from torch_geometric.utils import add_self_loops, is_torch_sparse_tensor, remove_self_loops

from ika_lightning.attention.build import SpectrumName, build_core
from ika_lightning.attention.core import at_least_float32
from ika_lightning.attention.graph.base import KernelConv, means_of_joined, with_values, without_guess
from ika_lightning.attention.graph.similarity import similarity_of_vector
from ika_lightning.attention.kernels import RBFKernel
from ika_lightning.attention.magnitude import Exponent, norm
from ika_lightning.attention.operation import without_autocast
from ika_lightning.attention.spectrum import Spectrum
from ika_lightning.attention.start import Init


class KernelGATConv(KernelConv):
    r"""Graph attention as similarity x magnitude, in the place of ``torch_geometric.nn.GATConv``.

    .. math::
        x'_i = \sum_{j \in N(i)} \frac{w_{ij}}{\sum_{j'} w_{ij'}} \Theta x_j, \qquad
        w_{ij} = e^{\text{LeakyReLU}(s\, a \cdot c_{ij} / s_g) - s |c_{ij}|^2 / 2 s_g}
                 \bigl((1 - b + b\, \rho(a, c_{ij}))^2 + 10^{-5}\bigr) e^{|c_{ij}|_p^2 / 2 s_g}, \qquad
        c_{ij} = [\Theta x_i, \Theta x_j]

    with :math:`s_g = \sqrt{2 d}`, for d channels a head, and :math:`N(i)` with i itself. The derivation is that of
    section 3 of `Implicit Kernel Attention <https://arxiv.org/abs/2006.06147>`_ for the attention of `Graph Attention
    Networks <https://arxiv.org/abs/1710.10903>`_: up to a factor that cancels,

    .. math:: \exp(a \cdot c / s_g) = e^{-|a - c|^2 / 2 s_g} \; e^{|c|^2 / 2 s_g}

    so an inner product is an exact kernel, which learns a precision s, times a magnitude, whose norm is any L^p; and a
    sampled kernel stands beside the exact one, with a share b. With ``init="softmax"`` and p = 2 the layer starts at
    s = 1 and b = 0, as GAT with inner products that are scaled as in dot-product attention. With ``init="rbf"``,
    ``"wide"`` and ``"paper"`` there is no exact part, as in the paper: the first factor is absent, and b = 1. With edge
    features e, :math:`c_{ij} = [\Theta x_i, \Theta x_j, \Theta_e e_{ij}]` and :math:`s_g = \sqrt{3 d}`.

    The LeakyReLU is GAT's. Without it, with ``negative_slope=1``, what the exact part knows of i would be the same for
    all neighbours, and cancel. Arguments before the star are those of ``GATConv``, in its order. Weights of a trained
    ``GATConv`` load (``strict=False``): parameters have the same names.

    A conditional spectrum is told the mean of :math:`c_{ij}`'s parts over nodes that are joined to another node, of the
    same graph alone if ``batch`` says which they are.

    Args:
        in_channels: Width of the input, -1 to take it from the first call; a pair for a bipartite graph, whose two
            kinds of nodes get projections of their own.
        out_channels: Channels a head, d.
        heads: Number of heads, h. Default: 1.
        concat: Concatenate the heads, else average them. Default: True.
        negative_slope: Slope of the LeakyReLU that the exact part's product passes, where it is negative; 1 leaves it
            as it is. Default: 0.2.
        dropout: Probability with which a weight is dropped in training. Default: 0.
        add_self_loops: Let each node attend to itself as well. Default: True.
        edge_dim: Width of the features of edges; None if there are none.
        fill_value: Features of added self-loops: a number, a tensor, or how to reduce those of the edges that end in
            the node (``"add"``, ``"mean"``, ``"min"``, ``"max"``, ``"mul"``). Default: ``"mean"``.
        bias: Add a learned bias. Default: True.
        residual: Add a learned projection of the input. Default: False.
        p: Exponent of the norm in the magnitude, in [1, inf], or ``"learned"``: one a head. Default: 2.
        num_samples: Number of spectral samples a head, M. Default: 32.
        spectrum: ``"direct"``: frequencies are parameters; ``"implicit"``: their density is learned; ``"copula"``:
            the same, heads coupled; or a :class:`~ika_lightning.attention.Spectrum` for keys of width 2d, 3d with
            features of edges. Default: ``"direct"``.
        stationary: Learn a kernel of the difference (Bochner) instead of any kernel (Yaglom). Default: False.
        init: How the kernel starts, and whether it has an exact part: see
            :func:`~ika_lightning.attention.build.build_core`. Default: ``"softmax"``.
        smoothing: The part of the Gaussian that is exact, with ``init="rbf"``. Default: 0.
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
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | Tensor | str = "mean",
        bias: bool = True,
        residual: bool = False,
        *,
        p: Exponent = 2.0,
        num_samples: int = 32,
        spectrum: SpectrumName | Spectrum = "direct",
        stationary: bool = False,
        init: Init = "softmax",
        smoothing: float = 0.0,
        prior_std: float = 1.0,
        conditional: bool = True,
        **kwargs: Any,
    ) -> None:
        core = build_core(
            heads,
            (2 if edge_dim is None else 3) * out_channels,
            spectrum=spectrum,
            num_samples=num_samples,
            stationary=stationary,
            init=init,
            smoothing=smoothing,
            p=p,
            prior_std=prior_std,
            conditional=conditional,
        )
        super().__init__(out_channels, heads, concat, dropout, edge_dim, core, **kwargs)
        self.in_channels = in_channels
        self.add_self_loops = add_self_loops
        self.fill_value = fill_value
        self.negative_slope = negative_slope

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
            return_attention_weights: Also return ``(edge_index, weights)``, with the self-loops that were added; after
                dropout, as ``GATConv`` does.
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

        replaced = None
        if self.add_self_loops:
            # Where source and target nodes differ, those of one number are taken for the same node.
            nodes = min(source.size(0), target.size(0)) if size is None else min(size)
            # those who see the edges want each of them once
            if return_attention_weights or self.explain or is_torch_sparse_tensor(edge_index):
                edge_index, edge_attr = remove_self_loops(edge_index, edge_attr)
                edge_index, edge_attr = add_self_loops(edge_index, edge_attr, self.fill_value, num_nodes=nodes)
            else:
                edge_index, edge_attr, replaced = with_self_loops(edge_index, edge_attr, self.fill_value, nodes)
        alpha = self.edge_updater(
            without_guess(edge_index),
            queries=target,
            keys=source,
            edge_attr=edge_attr,
            graphs=self._graphs(batch, source.size(0), target.size(0)),
            same=same or self.add_self_loops,
            replaced=replaced,
        )
        out = self._join_heads(self.propagate(edge_index, x=(source, target), alpha=alpha, size=size))
        if self.res is not None and x_target is not None:
            out = out + self.res(x_target)
        if self.bias is not None:
            out = out + self.bias
        return (out, (with_values(edge_index, alpha), alpha)) if return_attention_weights else out

    def edge_update(
        self,
        queries: Tensor,
        keys: Tensor,
        edge_attr: OptTensor,
        graphs: OptPairTensor,
        same: bool,
        edge_index_i: Tensor,
        edge_index_j: Tensor,
        ptr: OptTensor,
        replaced: OptTensor,
    ) -> Tensor:
        """Return the weights (E, h)."""
        i, j, dtype, core = edge_index_i, edge_index_j, keys.dtype, self.core
        edges = self._project_edges(edge_attr)
        parts = (self.att_dst, self.att_src, self.att_edge)
        with without_autocast(keys.device):
            queries, keys = at_least_float32(queries), at_least_float32(keys)
            edges = None if edges is None else at_least_float32(edges)
            vectors = [at_least_float32(part[0]) for part in parts if part is not None]
            mean_key = None
            if core.spectrum is not None and core.spectrum.conditional:
                means = means_of_joined(queries, keys, edges, i, j, graphs, same)
                mean_key = torch.cat([x for x in means if x is not None], -1)
            feature_map, keys = core.sample(mean_key, keys)
            vector = torch.cat(vectors, -1)
            similarity = similarity_of_vector(feature_map, vector, (queries, keys), edges, (i, j), graphs)
            exponent = self._exponent(vectors, queries, keys, edges, i, j)
            if replaced is not None:
                exponent = exponent.masked_fill(replaced.unsqueeze(-1), -math.inf)
            weights = self._weights(similarity, exponent, i, queries.size(0), ptr)
        return F.dropout(weights.to(dtype), self.dropout, self.training)

    def _exponent(
        self, vectors: list[Tensor], queries: Tensor, keys: Tensor, edges: OptTensor, i: Tensor, j: Tensor
    ) -> Tensor:
        """Return the logarithm of the exact part times the magnitude (E, h), up to what all neighbours share."""
        core = self.core

        def over_edges(function: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
            """Apply a function to each part and what of a meets it, and take the results to the edges."""
            of_query, of_key = function(queries, vectors[0]), function(keys, vectors[1])
            terms = [of_query.index_select(0, i), of_key.index_select(0, j)]
            return terms if edges is None else [*terms, function(edges, vectors[2])]

        def magnitude() -> Tensor:
            # the norm of c is the norm of the norms of its parts
            norms = torch.stack(over_edges(lambda x, _: core.magnitude.norm(x)), -1)
            return core.magnitude.of_norm(norm(norms, core.magnitude.p), core.head_dim)

        if not isinstance(core.kernel, RBFKernel):
            return magnitude()
        root = math.sqrt(core.head_dim)
        precision = core.kernel.precision.flatten()
        score = torch.stack(over_edges(lambda x, a: (x * a).sum(-1))).sum(0) * precision / root
        squares = torch.stack(over_edges(lambda x, _: x.square().sum(-1))).sum(0) / (2.0 * root)
        # with p = 2, both are multiples of the same square, whose difference is exactly zero where s = 1
        rest = squares * (1.0 - precision) if core.magnitude.fixed_p == 2.0 else magnitude() - squares * precision
        return F.leaky_relu(score, self.negative_slope) + rest

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        """Weigh what a neighbour sends."""
        return alpha.unsqueeze(-1) * x_j


def with_self_loops(
    edge_index: Tensor, edge_attr: OptTensor, fill_value: float | Tensor | str, nodes: int
) -> tuple[Tensor, OptTensor, Tensor]:
    """Give each node a self-loop, in place of those that it has, without counting these.

    PyG's functions take out what is there; an accelerator has to be waited for, to hear how many edges are left.

    Args:
        edge_index: Edges, (2, E).
        edge_attr: Their features, (E, k) or (E,); None if there are none.
        fill_value: Features of the loops, as in :class:`KernelGATConv`.
        nodes: How many nodes get one, n.

    Returns:
        The edges and then the loops, (2, E + n); their features; and which of them are replaced, (E + n,).

    Example:
        >>> edges, _, replaced = with_self_loops(torch.tensor([[0, 1], [1, 1]]), None, "mean", nodes=2)
        >>> edges.tolist(), replaced.tolist()
        ([[0, 1, 0, 1], [1, 1, 0, 1]], [False, True, False, False])
    """
    source, target = edge_index.unbind(0)
    replaced = source == target
    if edge_attr is not None:
        # what a loop is filled with, edges that are replaced tell a node that there is not
        elsewhere = target.masked_fill(replaced | (target >= nodes), nodes)
        _, edge_attr = add_self_loops(torch.stack([source, elsewhere]), edge_attr, fill_value, num_nodes=nodes + 1)
        edge_attr = edge_attr[:-1]
    loops = torch.arange(nodes, device=edge_index.device)
    ends = (torch.cat([end, loops]) for end in (source, target))
    return torch.stack(list(ends)), edge_attr, torch.cat([replaced, replaced.new_zeros(nodes)])
