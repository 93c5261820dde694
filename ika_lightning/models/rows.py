"""A network over the rows of a table: each row attends to the rows of a context."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ika_lightning.models.base import Network
from ika_lightning.models.encoder import AttentionFactory, Encoder
from ika_lightning.models.numbers import PeriodicEmbedding

#: How the features of a row become a vector.
NumberEmbedding = Literal["linear", "periodic"]


class RowTransformer(Network):
    r"""Map each row of a table to a number or several, looking at a context of other rows.

    .. math::
        h_i = e(x_i) + V [y_i, 1] \text{ for a row of the context}, \qquad
        h_i = e(x_i) + V [0, 0] \text{ for one that asks}

    goes through an :class:`Encoder` in which every row, of the context or not, attends to context rows only; e is a
    linear map or a :class:`PeriodicEmbedding`. So the answer for a row never depends on what else is asked with it.
    With the targets y of the context, attention over rows is kernel regression (Nadaraya 1964, Watson 1964): what a row
    is told is what became of rows like it, as in Non-Parametric Transformers (Kossen et al. 2021) and TabR (Gorishniy
    et al. 2024). Without them, V is absent.

    Args:
        num_features: Number of features of a row.
        width: Width of the network.
        depth: Number of encoder layers.
        num_heads: Number of attention heads; it must divide the width.
        attention: The attention layer, called with (width, num_heads, batch_first=True).
        ffn_width: Hidden width of the feed-forward networks; 4 times the width if None.
        dropout: Probability with which an output of embedding, attention or network is dropped in training.
        targets: Whether rows of the context bring their targets.
        outputs: How many numbers a row is mapped to.
        embedding: What e is: ``"linear"`` or ``"periodic"``.
        frequency_scale: Standard deviation of the frequencies of a periodic one at its start, in periods per unit.

    Raises:
        ValueError: If embedding is unknown, or frequency_scale not positive.

    Example:
        >>> from ika_lightning.attention import IKANDirect
        >>> sizes = {"num_features": 3, "width": 8, "depth": 1, "num_heads": 2}
        >>> context, queries = torch.randn(7, 3), torch.randn(5, 3)
        >>> net = RowTransformer(**sizes, attention=IKANDirect)
        >>> net(context).shape, net(context, queries).shape
        (torch.Size([7]), torch.Size([5]))
        >>> RowTransformer(**sizes, attention=IKANDirect, targets=True)(context, queries, torch.randn(7)).shape
        torch.Size([5])
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
        targets: bool = False,
        outputs: int = 1,
        embedding: NumberEmbedding = "linear",
        frequency_scale: float = 0.3,
    ) -> None:
        super().__init__()
        if embedding not in get_args(NumberEmbedding):
            raise ValueError(f"embedding must be 'linear' or 'periodic', got {embedding!r}")
        self.embed = (
            nn.Linear(num_features, width)
            if embedding == "linear"
            else PeriodicEmbedding(num_features, width, frequency_scale, dropout=dropout)
        )
        # of a target, and of whether there is one
        self.target = nn.Linear(2, width) if targets else None
        self.encoder = Encoder(width, depth, num_heads, attention, ffn_width, dropout)
        self.head = nn.Linear(width, outputs)

    def forward(self, context: Tensor, queries: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
        """Answer for the queries, or for the context itself if there are none.

        Args:
            context: Rows to look at.
            queries: Rows to answer for.
            targets: What became of the rows of the context, standardised.

        Shapes:
            context (c, num_features); queries (r, num_features); targets (c,); the result (r,), or (c,) without
            queries; with several outputs o, (r, o) or (c, o).

        Raises:
            ValueError: If targets are missing or too many, or a row of the context would be asked for its own.
        """
        if (targets is None) != (self.target is None):
            raise ValueError(
                "the network was built with targets=True, and needs targets of the context"
                if targets is None
                else "the network was built with targets=False, and takes none"
            )
        rows = self.embed(context if queries is None else torch.cat([context, queries]))
        if self.target is not None and targets is not None:
            if queries is None:
                raise ValueError("queries are missing: rows of the context know their targets, and cannot be asked")
            known = torch.stack([targets, torch.ones_like(targets)], -1)
            rows = rows + self.target(torch.cat([known, known.new_zeros(queries.size(0), 2)]))
        encoded = self.encoder(rows.unsqueeze(0), context_length=context.size(0)).squeeze(0)
        if queries is not None:
            encoded = encoded[context.size(0) :]
        answers: Tensor = self.head(encoded)
        return answers.squeeze(-1) if self.head.out_features == 1 else answers
