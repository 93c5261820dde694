"""Intervals around predictions, by how far the rows of a validation were from theirs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from ika_lightning.tasks.uncertainty import conformal_radius, rows_needed

__all__ = ["Intervals"]

_NOT_VALIDATED = "the weights were not validated; train with validation rows, or validate them"


class Intervals:
    """Intervals that hold the target of a new row with a probability of ``level``, whatever the distribution.

    They are known between the end of a validation and the next update of the weights: the scores of a row, and so the
    radius, are those of the very weights that predict.

    Args:
        level: The probability, in (0, 1).

    Attributes:
        scores: How far the rows of the last validation were from their predictions, ascending; None if they are not
            known.

    Raises:
        ValueError: If level is not in (0, 1).

    Example:
        >>> intervals = Intervals(0.5)
        >>> intervals.begin()
        >>> intervals.add(torch.tensor([3.0, 1.0, 2.0]))
        >>> intervals.end(processes=1)
        >>> intervals.radius
        2.0
    """

    def __init__(self, level: float) -> None:
        if not 0.0 < level < 1.0:
            raise ValueError(f"interval must be between 0 and 1, such as 0.9, got {level}")
        self.level = level
        self.scores: Tensor | None = None
        self._why_unknown = _NOT_VALIDATED
        self._found: list[Tensor] = []

    def forget(self, why: str = _NOT_VALIDATED) -> None:
        """Forget the scores.

        Args:
            why: Why they say nothing, and how to go on.
        """
        self.scores, self._why_unknown = None, why

    def begin(self) -> None:
        """Begin a validation."""
        self._found = []

    def add(self, scores: Tensor) -> None:
        """Add the scores of some of its rows, of which the share of one process may have none."""
        self._found.append(scores)

    def end(self, processes: int) -> None:
        """End it, with the rows of all processes."""
        found = torch.cat(self._found)
        if processes > 1:
            found = torch.cat(gather_all_tensors(found))
        self.scores = found.sort().values.cpu()

    @property
    def radius(self) -> float:
        """The score that a new row does not exceed, with the probability ``level``; infinite if it is not known."""
        if self.scores is None:
            return math.inf
        radius = conformal_radius(self.scores, self.level)
        # a network that has diverged has scores that are no numbers
        return math.inf if math.isnan(radius) else radius

    @property
    def why_none(self) -> str:
        """Why the radius is infinite, where it is, and how to go on."""
        if self.scores is None:
            return self._why_unknown
        if len(self.scores) < (needed := rows_needed(self.level)):
            return (
                f"{len(self.scores)} validation rows are too few for interval={self.level}, which takes "
                f"{needed}; give more, or a lower interval"
            )
        return "the model answers validation rows with what is no number; train with a lower learning rate"
