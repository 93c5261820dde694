"""Schedules of the learning rate with which transformers are trained from scratch."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class InverseSquareRoot(LRScheduler):
    r"""A learning rate that rises evenly for ``warmup`` updates, and then falls with the root of their number.

    .. math:: \eta_t = \eta \, \min\Bigl(\frac{t}{\text{warmup}}, \sqrt{\frac{\text{warmup}}{t}}\Bigr)

    for update t = 1, 2, ..., so that :math:`\eta`, the optimizer's own, is the highest (Vaswani et al. 2017).

    Args:
        optimizer: What updates.
        warmup: Number of updates until the learning rate is at its highest.
        last_epoch: Number of updates before this, less one.

    Raises:
        ValueError: If warmup is below 1.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> schedule, rates = InverseSquareRoot(optimizer, warmup=4), []
        >>> for update in range(16):
        ...     rates.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates[0], rates[3], rates[15]
        (0.125, 0.5, 0.25)
    """

    def __init__(self, optimizer: Optimizer, warmup: int = 4000, last_epoch: int = -1) -> None:
        if warmup < 1:
            raise ValueError(f"warmup must be at least 1 update, got {warmup}")
        self.warmup = warmup
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group for the next update."""
        update = self.last_epoch + 1
        factor = min(update / self.warmup, math.sqrt(self.warmup / update))
        return [factor * highest for highest in self.base_lrs]


class WarmupCosine(LRScheduler):
    r"""A learning rate that rises over the first part of a training, and falls along a cosine to nothing at its end.

    .. math:: \eta(r) = \eta \, \min\Bigl(1, \tfrac{1}{10} + \tfrac{9 r}{10 w}\Bigr) \frac{1 + \cos \pi r}{2}

    r is how much of the training is over, from 0 to 1: a task says so after each update, by the updates or the time
    that the trainer was given (``max_epochs``, ``max_steps``, ``max_time``), whichever ends first. So the schedule ends
    with the training, however long that is, and need not be told.

    Args:
        optimizer: What updates.
        warmup: The part of the training, w, over which the rate rises, in [0, 1).
        last_epoch: Number of updates before this, less one.

    Raises:
        ValueError: If warmup is not in [0, 1).

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> schedule = WarmupCosine(optimizer, warmup=0.1)
        >>> for over in (0.0, 0.1, 0.5, 1.0):
        ...     optimizer.step()
        ...     schedule.advance(over)
        ...     print(f"{optimizer.param_groups[0]['lr']:.3f}")
        0.050
        0.488
        0.250
        0.000
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.05, last_epoch: int = -1) -> None:
        if not 0.0 <= warmup < 1.0:
            raise ValueError(f"warmup must be a part of the training, in [0, 1), got {warmup}")
        self.warmup = warmup
        self.progress = 0.0
        super().__init__(optimizer, last_epoch)

    def advance(self, progress: float) -> None:
        """Set the rate for the next update.

        Args:
            progress: How much of the training is over, from 0 to 1; beyond, it counts as 1.
        """
        self.progress = min(progress, 1.0)
        self.step()

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group for the next update."""
        rise = min(1.0, 0.1 + 0.9 * self.progress / self.warmup) if self.warmup else 1.0
        factor = rise * (1.0 + math.cos(math.pi * self.progress)) / 2.0
        return [factor * highest for highest in self.base_lrs]
