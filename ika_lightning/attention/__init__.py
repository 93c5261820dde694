"""Implicit kernel attention in plain PyTorch: similarity x magnitude, both learned.

Read :mod:`~ika_lightning.attention.functional` for the operation, :mod:`~ika_lightning.attention.kernels`,
:mod:`~ika_lightning.attention.spectrum` and :mod:`~ika_lightning.attention.magnitude` for its parts,
:mod:`~ika_lightning.attention.core` for how they meet and :mod:`~ika_lightning.attention.multihead` for the layers.
:func:`replace_attention` puts the layers into a model made of PyTorch's, and
:mod:`~ika_lightning.attention.huggingface` their cores into one of Hugging Face's.
:mod:`~ika_lightning.attention.graph` attends over the edges of a graph.
"""

from typing import Any

from ika_lightning.attention.cache import KeyCache, Memory, StateCache
from ika_lightning.attention.functional import kernel_attention
from ika_lightning.attention.kernels import (
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RationalQuadraticKernel,
    RBFKernel,
)
from ika_lightning.attention.multihead import (
    IKAN,
    MIKAN,
    RBF,
    DotProduct,
    ExplicitKernel,
    IKANDirect,
    MultiheadAttention,
    attention_kl,
)
from ika_lightning.attention.replace import replace_attention

__all__ = [
    "IKAN",
    "MIKAN",
    "RBF",
    "DotProduct",
    "ExplicitKernel",
    "IKANDirect",
    "Kernel",
    "KernelGATConv",
    "KernelTransformerConv",
    "KeyCache",
    "LinearKernel",
    "MaternKernel",
    "Memory",
    "MultiheadAttention",
    "PeriodicKernel",
    "RBFKernel",
    "RationalQuadraticKernel",
    "StateCache",
    "attention_kl",
    "kernel_attention",
    "replace_attention",
]


def __getattr__(name: str) -> Any:
    """Import the layers of graphs when they are asked for: all else needs no PyTorch Geometric."""
    if name in ("KernelGATConv", "KernelTransformerConv"):
        from ika_lightning.attention import graph

        return getattr(graph, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
