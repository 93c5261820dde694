"""Implicit kernel attention in plain PyTorch: similarity x magnitude, both learned.

Read :mod:`~ika_lightning.attention.operation` for the operation that all of it is and
:mod:`~ika_lightning.attention.backends` for the ways to compute it; :mod:`~ika_lightning.attention.features`,
:mod:`~ika_lightning.attention.spectrum`, :mod:`~ika_lightning.attention.kernels` and
:mod:`~ika_lightning.attention.magnitude` for the parts; :mod:`~ika_lightning.attention.core` for how they meet, and
:mod:`~ika_lightning.attention.multihead` for the layers. :mod:`~ika_lightning.attention.graph` attends over the edges
of a graph. :func:`replace_attention` puts the layers into a model made of PyTorch's, and
:mod:`~ika_lightning.attention.huggingface` their cores into one of Hugging Face's.
"""

from typing import Any

from ika_lightning.attention.copula import GaussianCopula
from ika_lightning.attention.core import Core
from ika_lightning.attention.features import Bochner, FeatureMap, Fourier, Yaglom
from ika_lightning.attention.implicit import ImplicitSpectrum
from ika_lightning.attention.kernels import (
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RationalQuadraticKernel,
    RBFKernel,
)
from ika_lightning.attention.layer import MultiheadAttention
from ika_lightning.attention.magnitude import log_magnitude
from ika_lightning.attention.multihead import IKAN, MIKAN, RBF, DotProduct, ExplicitKernel, IKANDirect
from ika_lightning.attention.operation import kernel_attention
from ika_lightning.attention.regulariser import attention_kl
from ika_lightning.attention.replace import replace_attention
from ika_lightning.attention.spectrum import DirectSpectrum, Spectrum

__all__ = [
    "IKAN",
    "MIKAN",
    "RBF",
    "Bochner",
    "Core",
    "DirectSpectrum",
    "DotProduct",
    "ExplicitKernel",
    "FeatureMap",
    "Fourier",
    "GaussianCopula",
    "IKANDirect",
    "ImplicitSpectrum",
    "Kernel",
    "KernelGATConv",
    "KernelTransformerConv",
    "LinearKernel",
    "MaternKernel",
    "MultiheadAttention",
    "PeriodicKernel",
    "RBFKernel",
    "RationalQuadraticKernel",
    "Spectrum",
    "Yaglom",
    "attention_kl",
    "kernel_attention",
    "log_magnitude",
    "replace_attention",
]


def __getattr__(name: str) -> Any:
    """Import the layers of graphs when they are asked for: all else needs no PyTorch Geometric."""
    if name in ("KernelGATConv", "KernelTransformerConv"):
        from ika_lightning.attention import graph

        return getattr(graph, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
