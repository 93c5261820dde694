"""Averages of the weights of a training, by which it is measured and saved."""

from __future__ import annotations

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

__all__ = ["AveragedWeights"]


class AveragedWeights(WeightAveraging):
    r"""An exponential average of the weights, whose memory grows with the training.

    .. math:: \bar w_t = \bar w_{t-1} + \max\Bigl(1 - \text{decay}, \frac{9}{9 + t}\Bigr) (w_t - \bar w_{t-1})

    after update t = 1, 2, ... So it is of the last ninth of a short training, which has left its beginning behind, and
    of the last 1 / (1 - decay) updates of a long one. Validation, checkpoints and predictions take the average
    (Polyak and Juditsky 1992).

    Args:
        decay: How much of the average stays after an update, at most, in [0, 1).

    Raises:
        ValueError: If decay is not in [0, 1).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AveragedWeights(decay=0.99)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        super().__init__(avg_fn=self._average)

    def _average(self, average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        # the first update is copied, and the number is of those before
        weight = max(1.0 - self.decay, 9.0 / (10.0 + float(updates)))
        return average.lerp(current, weight) if average.is_floating_point() else current
