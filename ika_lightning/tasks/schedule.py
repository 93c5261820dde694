"""The schedule of the learning rate with which transformers are trained from scratch."""

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
