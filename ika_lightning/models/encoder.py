"""The transformer encoder that the tasks share, with any attention of this package inside."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ika_lightning.attention import MultiheadAttention
from ika_lightning.models.base import Network

#: What a model is told its attention by: a layer class, or anything else to be called with (embed_dim, num_heads,
#: batch_first=True). The command line reads of a type how many arguments are not its own: those without a name.
AttentionFactory = Callable[[int, int], MultiheadAttention]


def build_attention(attention: AttentionFactory, width: int, num_heads: int) -> MultiheadAttention:
    """Build an attention layer whose sequences come as (batch, length, width).

    Example:
        >>> from ika_lightning.attention import RBF
        >>> build_attention(RBF, 8, 2).batch_first
        True
    """
    return attention(width, num_heads, batch_first=True)  # type: ignore[call-arg]


class EncoderLayer(Network):
    r"""A pre-norm transformer layer: attention, then a feed-forward network, each beside a residual connection.

    .. math:: x \leftarrow x + \text{attention}(\text{norm}(x)), \qquad x \leftarrow x + \text{ffn}(\text{norm}(x))

    Norms come first (Xiong et al. 2020), so that deep stacks train without a warm-up.

    Args:
        width: Width of the sequence.
        num_heads: Number of attention heads; it must divide the width.
        attention: The attention layer, called with (width, num_heads, batch_first=True).
        ffn_width: Hidden width of the feed-forward network.
        dropout: Probability with which an output of attention or network is dropped in training.

    Example:
        >>> import torch
        >>> from ika_lightning.attention import IKAN
        >>> EncoderLayer(8, 2, IKAN, ffn_width=16)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self, width: int, num_heads: int, attention: AttentionFactory, ffn_width: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = build_attention(attention, width, num_heads)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = feed_forward(width, ffn_width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, context_length: int | None = None) -> Tensor:
        """Transform a sequence; arguments are those of :meth:`Encoder.forward`."""
        normed = self.attention_norm(x)
        context = normed[:, :context_length]
        attended, _ = self.attention(normed, context, context, key_padding_mask=key_padding_mask, need_weights=False)
        x = x + self.dropout(attended)
        x = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return x


class Encoder(Network):
    """A stack of :class:`EncoderLayer`, normed at the end.

    Args:
        width: Width of the sequence.
        depth: Number of layers.
        num_heads: Number of attention heads; it must divide the width.
        attention: The attention layer, called with (width, num_heads, batch_first=True).
        ffn_width: Hidden width of the feed-forward networks; 4 times the width if None.
        dropout: Probability with which an output of attention or network is dropped in training.

    Raises:
        ValueError: If depth is negative, or num_heads does not divide the width.

    Example:
        >>> import torch
        >>> from ika_lightning.attention import MIKAN
        >>> Encoder(width=8, depth=2, num_heads=2, attention=MIKAN)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        attention: AttentionFactory,
        ffn_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 0:
            raise ValueError(f"depth must be at least 0, got {depth}")
        ffn_width = 4 * width if ffn_width is None else ffn_width
        self.layers = nn.ModuleList(EncoderLayer(width, num_heads, attention, ffn_width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, context_length: int | None = None) -> Tensor:
        """Transform a sequence.

        Args:
            x: The sequence.
            key_padding_mask: Positions that nothing may attend to, True = ignore; None means there are none.
            context_length: Number of leading positions that may be attended to; None means all. The others attend to
                them, but not to one another, and no sums are spent on them.

        Shapes:
            x (b, n, width); key_padding_mask (b, context_length); the result (b, n, width).
        """
        for layer in self.layers:
            x = layer(x, key_padding_mask, context_length)
        return self.norm(x)


def feed_forward(width: int, ffn_width: int, dropout: float) -> nn.Sequential:
    """Build the network that transformer layers apply to each position on its own."""
    return nn.Sequential(nn.Linear(width, ffn_width), nn.GELU(), nn.Dropout(dropout), nn.Linear(ffn_width, width))
