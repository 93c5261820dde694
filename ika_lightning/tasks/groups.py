"""Groups of parameters with learning rates of their own: layers of an encoder, and what is learned of kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

__all__ = ["optimize_in_groups"]


def optimize_in_groups(
    make: Callable[..., Optimizer],
    parts: Sequence[Iterable[nn.Parameter]],
    kernels: Sequence[nn.Parameter],
    layer_decay: float = 1.0,
    kernel_lr: float | None = None,
) -> Optimizer:
    r"""Build an optimizer that trains the upper parts of a network faster than the lower ones.

    .. math:: \eta_i = \eta \, \text{decay}^{\, m - 1 - i}, \qquad i = 0, \ldots, m - 1

    Args:
        make: Called with groups of parameters.
        parts: Parameters of the m parts, from the bottom to the top; they learn at the rates above.
        kernels: Those of kernels, in none of the parts.
        layer_decay: What the rate of a part is multiplied with for the part below it.
        kernel_lr: The rate of kernels; that of the optimizer, ``\eta``, if None.

    Example:
        >>> import torch
        >>> bottom, top = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> optimizer = optimize_in_groups(torch.optim.SGD, [bottom.parameters(), top.parameters()], [], 0.5)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.0005, 0.001]
    """
    groups: list[dict[str, Any]] = [{"params": list(part)} for part in parts]
    if kernels:
        groups.append({"params": list(kernels)})
    optimizer = make(groups)
    for below_top, group in enumerate(reversed(optimizer.param_groups[: len(groups) - bool(kernels)])):
        group["lr"] *= layer_decay**below_top
    if kernels and kernel_lr is not None:
        optimizer.param_groups[-1]["lr"] = kernel_lr
    return optimizer
