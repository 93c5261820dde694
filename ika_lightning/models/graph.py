"""A graph network over any convolution of PyG's kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ika_lightning.models.base import Network

#: What a model is told its convolution by: a class such as ``KernelGATConv`` or PyG's ``GATConv`` and ``GCNConv``, or
#: anything else to be called with (width of the input, width of the output), and ``heads`` and ``concat`` if it has
#: these arguments.
ConvFactory = Callable[[int, int], nn.Module]

# Share of features that are not zero, below which they are few.
_FEW = 0.2


class GraphNetwork(Network):
    r"""Map each node of a graph to the scores of its classes, by convolutions (Velickovic et al. 2018).

    .. math:: x \leftarrow \text{elu}(\text{conv}(\text{dropout}(x)))

    for each layer but the last, which averages its heads and has no elu.

    Args:
        num_features: Number of features of a node.
        num_classes: Number of classes.
        conv: The convolution.
        width: Channels of a head; of all heads together for a convolution without heads it is ``width * num_heads``.
        depth: Number of convolutions.
        num_heads: Number of heads of each layer but the last.
        out_heads: Number of heads of the last layer.
        dropout: Probability with which an input of a convolution is dropped in training.
        num_edge_features: Number of features of an edge, for convolutions with an argument ``edge_dim``; 0 if there are
            none.

    Raises:
        ValueError: If depth is below 1, or there are edge features that the convolution cannot use.

    Example:
        >>> import torch
        >>> from ika_lightning.attention import KernelGATConv
        >>> net = GraphNetwork(5, 3, KernelGATConv, width=4, depth=2, num_heads=2)
        >>> net(torch.randn(7, 5), torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([7, 3])
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        conv: ConvFactory,
        width: int = 8,
        depth: int = 2,
        num_heads: int = 8,
        out_heads: int = 1,
        dropout: float = 0.0,
        num_edge_features: int = 0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        takes = inspect.signature(conv).parameters
        if num_edge_features and "edge_dim" not in takes:
            raise ValueError(
                f"the graph has {num_edge_features} features of edges, and the convolution no argument edge_dim for "
                "them; take another convolution, or a graph without them"
            )
        edges = {"edge_dim": num_edge_features} if num_edge_features else {}

        def layer(width_in: int, channels: int, heads: int, concat: bool) -> nn.Module:
            if "heads" in takes:
                return conv(width_in, channels, heads=heads, concat=concat, **edges)  # type: ignore[call-arg]
            return conv(width_in, channels * heads if concat else channels, **edges)

        hidden = width * num_heads
        widths = [num_features] + [hidden] * (depth - 1)
        self.hidden = nn.ModuleList(layer(width_in, width, num_heads, True) for width_in in widths[:-1])
        self.last = layer(widths[-1], num_classes, out_heads, False)
        self.has_edge_features = bool(num_edge_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """Score the classes of each node.

        Shapes:
            x (n, num_features); edge_index (2, E); edge_attr (E, num_edge_features); the result (n, num_classes).
        """
        edges = (edge_attr,) if self.has_edge_features else ()
        for conv in self.hidden:
            x = F.elu(conv(self._drop(x), edge_index, *edges))
        scores: Tensor = self.last(self._drop(x), edge_index, *edges)
        return scores

    def _drop(self, x: Tensor) -> Tensor:
        """Drop features in training."""
        # Bags of words are nearly all zeros, which stay what they are whatever is drawn for them. Drawing for the
        # others alone takes a sixth of the time on Cora. Zeros that are differentiated do need a draw. An accelerator
        # draws faster than it can be asked how many there are.
        if not self.training or x.requires_grad or x.device.type != "cpu" or x.count_nonzero() > _FEW * x.numel():
            return self.dropout(x)
        where = x.flatten().nonzero().squeeze(1)
        return torch.zeros_like(x).put_(where, self.dropout(x.flatten().index_select(0, where)))
