"""The divergence of the spectra from their priors, from where it arises to the loss that it is added to."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn


class Regulariser:
    """The regulariser of one spectrum in the last forward.

    A loss is made of it after the forward, by :func:`attention_kl`. Under reentrant activation checkpointing the
    forward leaves no graph, and the one that is recorded later, in the backward, comes too late for the loss. The loss
    then gets a leaf in the place of the regulariser, and the recorded forward passes on, together with the gradient of
    its values, the gradient that the leaf has received: of the loss, autograd reaches the leaf first.

    Attributes:
        value: The regulariser; None before the first forward.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._use: _Use | None = None
        # Of forwards that left no graph, in their order. Those that no backward asks for are not told from the others,
        # so the oldest are forgotten.
        self._leaves: deque[Tensor] = deque(maxlen=64)

    @property
    def is_spent(self) -> bool:
        """Whether a backward has passed through the value."""
        return self._use is not None and self._use.is_over

    def watch(self) -> None:
        """Notice when a backward passes through the value."""
        value = self.value
        # a compiler has no place for hooks within a graph, and sees a whole step, in which nothing is old
        if self._use is None and value is not None and value.requires_grad and not torch.compiler.is_compiling():
            # a value's own, so that neither it nor its graph refers to this object
            self._use = _Use()
            value.register_hook(self._use.end)

    def keep(self, kl: Tensor, carrier: Tensor, training: bool) -> Tensor:
        """Keep the regulariser of a forward; return the carrier, a tensor on the way from that forward to its output.

        Args:
            kl: The regulariser.
            carrier: Any tensor of the forward, which is used in the place of the one that was given.
            training: Whether the forward is one of training.
        """
        if is_in_backward():
            # a checkpoint runs a forward anew, whose value is known
            if kl.requires_grad and any(leaf.grad is not None for leaf in self._leaves):
                leaf = self._claim(kl)
                carrier = carrier if leaf.grad is None else _Deliver.apply(carrier, kl, leaf.grad)
            return carrier
        self.value, self._use = kl, None
        if training and not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            self.value = kl.detach().requires_grad_()
            self._leaves.append(self.value)
        return carrier

    def _claim(self, kl: Tensor) -> Tensor:
        """Take the leaf of the forward that is recorded now: the one of its value, of equal ones the last."""
        found = len(self._leaves) - 1
        if found:
            # waits for an accelerator, but only where a step has several such forwards
            values = torch.stack([leaf.detach().to(kl) for leaf in self._leaves])
            distances = (values - kl.detach()).abs().tolist()
            asked = [leaf.grad is not None for leaf in self._leaves]
            found = min(range(len(distances)), key=lambda place: (distances[place], not asked[place], -place))
        leaf = self._leaves[found]
        del self._leaves[found]
        return leaf

    def __deepcopy__(self, memo: dict[int, Any]) -> Regulariser:
        """Leave the graph of the last forward out of copies, which refuse tensors that have one."""
        return Regulariser()

    def __reduce__(self) -> tuple[type[Regulariser], tuple[()]]:
        """Leave it out of pickles, too."""
        return Regulariser, ()


def is_in_backward() -> bool:
    """Whether autograd is running a backward, as it is where an activation checkpoint runs a forward anew.

    PyTorch's checkpoints ask the same, and there is no public way to.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class _Use:
    """Whether a backward has passed through a tensor."""

    def __init__(self) -> None:
        self.is_over = False

    def end(self, grad: Tensor) -> None:
        self.is_over = True


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

    Of a layer that runs several times in a forward, the last time counts. A layer that has not run since the last
    backward, as one that LayerDrop leaves out, has no part in the sum: what is left of it belongs to a step that is
    over. Where that is so of all, as after a backward, the sum is a number for a log, without a graph.

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

    cores = [core for core in module.modules() if isinstance(core, Core) and core.spectrum is not None]
    for core in cores:
        core.regulariser.watch()
    learning = [core for core in cores if core.kl.requires_grad]
    fresh = [core for core in cores if not core.regulariser.is_spent]
    over = bool(learning) and not any(core in fresh for core in learning)
    terms = [core.kl.detach() for core in cores] if over else [core.kl for core in fresh]
    # layers of one model may be on several devices
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() if terms else torch.zeros(())
