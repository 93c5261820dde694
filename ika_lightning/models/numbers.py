"""Numbers as vectors: what a network makes of the features of a row before attention sees them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ika_lightning.models.base import Network


class PeriodicEmbedding(Network):
    r"""A linear map of the features, beside a small network over waves of each of them.

    .. math:: h = W x + b + \sum_f V_f \max\bigl(0, A_f [\cos 2 \pi c_f x_f, \sin 2 \pi c_f x_f] + b_f\bigr)

    with learned frequencies c, k of each feature, in periods per unit (Gorishniy et al. 2022, "On Embeddings for
    Numerical Features in Tabular Deep Learning"). A linear map alone makes a steep bend of one feature the work of all
    layers that follow, and a similarity of rows as smooth in each feature as in any other; waves let it be as steep in
    a feature as the data wants. Far from the training rows, where waves come again, the linear map goes on.

    Args:
        num_features: Number of features of a row, each of about unit size.
        width: Width of the result.
        scale: Standard deviation of the frequencies at the start: the larger, the steeper.
        num_frequencies: Number of frequencies of a feature, k.
        hidden: What each feature is reduced to.
        dropout: Probability with which a number of that is dropped in training.

    Raises:
        ValueError: If scale is not positive.

    Example:
        >>> PeriodicEmbedding(num_features=3, width=8)(torch.randn(5, 3)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        num_features: int,
        width: int,
        scale: float = 0.3,
        num_frequencies: int = 16,
        hidden: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        self.scale = scale
        self.linear = nn.Linear(num_features, width)
        self.frequency = nn.Parameter(torch.empty(num_features, num_frequencies))
        self.weight = nn.Parameter(torch.empty(num_features, 2 * num_frequencies, hidden))
        self.bias = nn.Parameter(torch.empty(num_features, hidden))
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(num_features * hidden, width, bias=False)
        self._draw()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        super().reset_parameters()
        self._draw()

    def _draw(self) -> None:
        nn.init.normal_(self.frequency, std=self.scale)
        nn.init.normal_(self.weight, std=self.weight.size(1) ** -0.5)
        nn.init.zeros_(self.bias)

    def forward(self, rows: Tensor) -> Tensor:
        """Embed rows.

        Shapes:
            rows (..., num_features); the result (..., width).
        """
        phase = 2.0 * math.pi * rows.unsqueeze(-1) * self.frequency
        waves = torch.cat([phase.cos(), phase.sin()], -1)
        of_each = (torch.einsum("...fk,fkd->...fd", waves, self.weight) + self.bias).relu()
        embedded: Tensor = self.linear(rows) + self.mix(self.dropout(of_each.flatten(-2)))
        return embedded
