"""The divergence of the spectra from their priors, from where it arises to the loss that it is added to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Regulariser:
    """The regulariser of one spectrum in the last forward.

    A loss is made of it after the forward, by :func:`attention_kl`. Under reentrant activation checkpointing the
    forward leaves no graph, and the one that is recorded later, in the backward, comes too late for the loss. The loss
    then gets a leaf in the place of the regulariser, and the recorded forward passes on, together with the gradient of
    its values, the gradient that the leaf has received: of the loss, autograd reaches the leaf first.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._leaf: Tensor | None = None

    def keep(self, kl: Tensor, carrier: Tensor, training: bool) -> Tensor:
        """Keep the regulariser of a forward; return the carrier, a tensor on the way from that forward to its output.

        Args:
            kl: The regulariser.
            carrier: Any tensor of the forward, which is used in the place of the one that was given.
            training: Whether the forward is one of training.
        """
        if torch.is_grad_enabled():
            leaf, self._leaf, self.value = self._leaf, None, kl
            if leaf is not None and leaf.grad is not None and kl.requires_grad:
                carrier = _Deliver.apply(carrier, kl, leaf.grad)
            return carrier
        self._leaf = kl.detach().requires_grad_() if training and not torch.is_inference_mode_enabled() else None
        self.value = kl if self._leaf is None else self._leaf
        return carrier

    def __deepcopy__(self, memo: dict[int, Any]) -> Regulariser:
        """Leave the graph of the last forward out of copies, which refuse tensors that have one."""
        return Regulariser()

    def __reduce__(self) -> tuple[type[Regulariser], tuple[()]]:
        """Leave it out of pickles, too."""
        return Regulariser, ()


class _Deliver(torch.autograd.Function):
    """The identity, whose backward gives a second tensor a gradient that was known before."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, kl: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, grad_carrier: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad_carrier, grad, None


def attention_kl(module: nn.Module) -> Tensor:
    """Sum the regularisers of the last forward over all attention of a model.

    Args:
        module: Any module that contains layers of this package, of sequences or of graphs, or cores of them.

    Returns:
        A scalar with the graph of that forward; zero without such layers.

    Example:
        >>> from ika_lightning.attention import IKAN, DotProduct
        >>> model = nn.ModuleList([IKAN(8, 2), DotProduct(8, 2)])
        >>> attention_kl(model)
        tensor(0.)
    """
    from ika_lightning.attention.core import Core

    terms = [core.kl for core in module.modules() if isinstance(core, Core) and core.spectrum is not None]
    # layers of one model may be on several devices
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() if terms else torch.zeros(())
