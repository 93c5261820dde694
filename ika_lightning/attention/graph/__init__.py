r"""Kernel attention over the edges of a graph, as convolutions of PyTorch Geometric.

===============================  ========================  ================================  ===================
layer                            query                     key                               instead of PyG's
===============================  ========================  ================================  ===================
:class:`.KernelGATConv`          a learned vector a head   both ends of the edge, together   ``GATConv``
:class:`.KernelTransformerConv`  a projection of one end   a projection of the other         ``TransformerConv``
===============================  ========================  ================================  ===================

Both have a :class:`~ika_lightning.attention.core.Core`, the one of the layers over sequences;
:mod:`~ika_lightning.attention.graph.similarity` computes its sampled part over edges.
"""

from ika_lightning.attention.graph.gat import KernelGATConv
from ika_lightning.attention.graph.transformer import KernelTransformerConv

__all__ = ["KernelGATConv", "KernelTransformerConv"]
