"""The mean over samples that come in batches, without a look at them."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """The mean of values by their weights, over many batches and processes.

    Unlike ``torchmetrics.MeanMetric`` it does not look for values that are no numbers, for which an accelerator would
    be waited for at every batch: where there are any, so is the mean. (With ``nan_strategy="disable"`` that metric does
    not look either, but takes all weights for 1: torchmetrics issue 3434.)

    Example:
        >>> mean = WeightedMean()
        >>> mean.update(torch.tensor(1.0), weight=3)
        >>> mean.update(torch.tensor(5.0), weight=1)
        >>> mean.compute()
        tensor(2.)
    """

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor | float) -> None:
        """Add the mean of a batch, and the weight of all of it."""
        self.total = self.total + value * weight
        self.weight = self.weight + weight

    def compute(self) -> Tensor:
        """Return the mean; it is no number where nothing was added."""
        return self.total / self.weight
