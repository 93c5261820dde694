"""Attention between queries and keys of joined nodes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.typing import Adj, OptPairTensor, OptTensor

from ika_lightning.attention.build import SpectrumName, build_core
from ika_lightning.attention.core import at_least_float32
from ika_lightning.attention.graph.base import KernelConv, means_of_joined, with_values, without_guess
from ika_lightning.attention.graph.similarity import similarity_of_nodes
from ika_lightning.attention.kernels import RBFKernel
from ika_lightning.attention.magnitude import Exponent
from ika_lightning.attention.operation import without_autocast
from ika_lightning.attention.spectrum import Spectrum
from ika_lightning.attention.start import Init


class KernelTransformerConv(KernelConv):
    r"""Attention between queries and keys of joined nodes, in the place of ``torch_geometric.nn.TransformerConv``.

    .. math::
        x'_i = W_1 x_i + \sum_{j \in N(i)} \frac{w_{ij}}{\sum_{j'} w_{ij'}} (W_2 x_j + W_6 e_{ij}), \qquad
        w_{ij} = e^{-s |q_i - k_{ij}|^2 / 2 \sqrt d} \bigl((1 - a + a\, \rho(q_i, k_{ij}))^2 + 10^{-5}\bigr)
                 e^{|k_{ij}|_p^2 / 2 \sqrt d}

    with :math:`q_i = W_3 x_i`, :math:`k_{ij} = W_4 x_j + W_6 e_{ij}` and d channels a head; features e of edges are
    there with ``edge_dim`` only. On a graph in which all are joined this is
    :class:`~ika_lightning.attention.IKANDirect`, or :class:`~ika_lightning.attention.IKAN` and
    :class:`~ika_lightning.attention.MIKAN`. With ``init="softmax"`` and p = 2 it starts as the `Graph Transformer
    <https://arxiv.org/abs/2009.03509>`_'s attention, s = 1 and a = 0.

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
        p: Exponent of the norm in the magnitude, in [1, inf], or ``"learned"``: one a head. Default: 2.
        num_samples: Number of spectral samples a head, M. Default: 32.
        spectrum: As in :class:`KernelGATConv`. Default: ``"direct"``.
        stationary: As in :class:`KernelGATConv`. Default: False.
        init: As in :class:`KernelGATConv`. Default: ``"softmax"``.
        smoothing: As in :class:`KernelGATConv`. Default: 0.
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
            out_channels,
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
        """Let each node attend to its neighbours; arguments are those of :meth:`KernelGATConv.forward`.

        Weights are returned as they are before dropout, as ``TransformerConv`` does.
        """
        attended, attending = (x, x) if isinstance(x, Tensor) else x
        queries, values = self._split_heads(self.lin_query(attending)), self._split_heads(self.lin_value(attended))
        alpha = self.edge_updater(
            without_guess(edge_index),
            queries=queries,
            keys=self._split_heads(self.lin_key(attended)),
            edge_attr=edge_attr,
            graphs=self._graphs(batch, values.size(0), queries.size(0)),
            same=attended is attending,
        )
        # of the nodes that edges begin with, and of those that they end with
        size = (values.size(0), queries.size(0))
        size = size if self.flow == "source_to_target" else size[::-1]
        out = self._join_heads(self.propagate(edge_index, x=values, alpha=alpha, edge_attr=edge_attr, size=size))
        if self.lin_skip is not None:
            skipped = self.lin_skip(attending)
            if self.lin_beta is None:
                out = out + skipped
            else:
                gate = self.lin_beta(torch.cat([out, skipped, out - skipped], -1)).sigmoid()
                out = torch.lerp(out, skipped, gate)
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
    ) -> Tensor:
        """Return the weights (E, h)."""
        i, j, dtype, core = edge_index_i, edge_index_j, keys.dtype, self.core
        edges = self._project_edges(edge_attr)
        with without_autocast(keys.device):
            queries, keys = at_least_float32(queries), at_least_float32(keys)
            edges = None if edges is None else at_least_float32(edges)
            mean_key = None
            if core.spectrum is not None and core.spectrum.conditional:
                _, mean_key, mean_edge = means_of_joined(queries, keys, edges, i, j, graphs, same)
                mean_key = mean_key if mean_edge is None else mean_key + mean_edge
            feature_map, keys = core.sample(mean_key, keys)
            similarity = similarity_of_nodes(feature_map, queries, keys, edges, (i, j), graphs)
            if edges is None:
                exponent = core.key_log_magnitude(keys.transpose(0, 1)).mT.index_select(0, j)
            else:
                # the norm of a sum is not known from those of its terms
                exponent = core.key_log_magnitude((keys.index_select(0, j) + edges).transpose(0, 1)).mT
            if isinstance(core.kernel, RBFKernel):
                of_edges = keys.index_select(0, j) if edges is None else keys.index_select(0, j) + edges
                scaled = core.scaled_query(queries.transpose(0, 1)).transpose(0, 1)
                exponent = exponent + (scaled.index_select(0, i) * of_edges).sum(-1)
            weights = self._weights(similarity, exponent, i, queries.size(0), ptr)
        return weights.to(dtype)

    def message(self, x_j: Tensor, alpha: Tensor, edge_attr: OptTensor) -> Tensor:
        """Weigh what a neighbour, and the edge, send."""
        edges = self._project_edges(edge_attr)
        alpha = F.dropout(alpha, self.dropout, self.training)
        return alpha.unsqueeze(-1) * (x_j if edges is None else x_j + edges)
