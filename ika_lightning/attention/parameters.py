"""What of a model is learned about its kernels: parameters that may want a learning rate of their own."""

from __future__ import annotations

from torch import nn

from ika_lightning.attention.core import Core


def kernel_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return what the attention of a model has learned of its kernels: all but projections.

    Args:
        module: Any module that contains layers of this package, or cores of them.

    Example:
        >>> from ika_lightning.attention import RBF
        >>> [tuple(parameter.shape) for parameter in kernel_parameters(RBF(8, 2))]
        [(2, 1, 1)]
    """
    return [parameter for core in module.modules() if isinstance(core, Core) for parameter in core.parameters()]
