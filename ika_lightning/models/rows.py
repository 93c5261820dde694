"""A network over the rows of a table: each row attends to the rows of a context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ika_lightning.models.base import Network
from ika_lightning.models.encoder import AttentionFactory, Encoder


class RowTransformer(Network):
    """Map each row of a table to one number, looking at a context of other rows.

    Every row, of the context or not, attends to context rows only. So the answer for a row never depends on what else
    is asked with it.

    Args:
        num_features: Number of features of a row.
        width: Width of the network.
        depth: Number of encoder layers.
        num_heads: Number of attention heads; it must divide the width.
        attention: The attention layer, called with (width, num_heads, batch_first=True).
        ffn_width: Hidden width of the feed-forward networks; 4 times the width if None.
        dropout: Probability with which an output of attention or network is dropped in training.

    Example:
        >>> from ika_lightning.attention import IKANDirect
        >>> net = RowTransformer(num_features=3, width=8, depth=1, num_heads=2, attention=IKANDirect)
        >>> context, queries = torch.randn(7, 3), torch.randn(5, 3)
        >>> net(context).shape, net(context, queries).shape
        (torch.Size([7]), torch.Size([5]))
    """

    def __init__(
        self,
        num_features: int,
        width: int,
        depth: int,
        num_heads: int,
        attention: AttentionFactory,
        ffn_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(num_features, width)
        self.encoder = Encoder(width, depth, num_heads, attention, ffn_width, dropout)
        self.head = nn.Linear(width, 1)

    def forward(self, context: Tensor, queries: Tensor | None = None) -> Tensor:
        """Answer for the queries, or for the context itself if there are none.

        Shapes:
            context (c, num_features); queries (r, num_features); the result (r,), or (c,) without queries.
        """
        rows = context if queries is None else torch.cat([context, queries])
        encoded = self.encoder(self.embed(rows).unsqueeze(0), context_length=context.size(0)).squeeze(0)
        if queries is not None:
            encoded = encoded[context.size(0) :]
        answers: Tensor = self.head(encoded).squeeze(-1)
        return answers
