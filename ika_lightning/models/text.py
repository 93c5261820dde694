"""A network that reads a text and tells its class."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ika_lightning.models.base import Embedding, Network
from ika_lightning.models.encoder import AttentionFactory, Encoder
from ika_lightning.models.positions import sinusoids

Pooling = Literal["mean", "max", "cls", "attention"]

# Standard deviation of word vectors at the start, and the size of positions: small, so that what training moves soon
# outweighs both.
_EMBED_STD = 0.1
_POSITION_SCALE = 0.1


class TextClassifier(Network):
    r"""Word vectors, a window over neighbouring words, an encoder, masked pooling, and a linear classifier.

    .. math:: x_t = W \, [e_{t - k}, \dots, e_{t + k}] + b + 0.1 \, p_t, \qquad
              \text{logits} = V \, \text{pool}(\text{encoder}(x_1, \dots, x_n))

    with word vectors e, zero outside of the text, and sinusoidal positions p (`Vaswani et al. 2017
    <https://arxiv.org/abs/1706.03762>`_). A window of neighbours lets a small data set teach the phrases that attention
    alone would have to find through positions; with ``window=1``, W is a projection of each word.

    Nothing depends on padding, nor on what else is in the batch: the answer for a text is the same, up to the rounding
    of sums over another number of zeros, with whatever it is batched.

    Args:
        vocab_size: Number of tokens; 0 is padding and 1 the unknown token.
        num_classes: Number of classes.
        width: Width of the network.
        depth: Number of encoder layers.
        num_heads: Number of attention heads; it must divide the width.
        attention: The attention layer, called with (width, num_heads, batch_first=True).
        embed_dim: Width of word vectors; that of the network if None.
        window: How many neighbouring words W sees at once, an odd number.
        pooling: What becomes of the sequence: its ``"mean"``, its ``"max"``, the place of an extra first token
            (``"cls"``), or a mean with learned weights (``"attention"``).
        ffn_width: Hidden width of the feed-forward networks; 4 times the width if None.
        dropout: Probability with which an output of attention or network is dropped in training.
        embed_dropout: Probability with which a number of a word vector, or of what is pooled, is dropped in training.
        word_dropout: Probability with which a whole word is dropped in training.

    Raises:
        ValueError: If window is even or pooling is unknown.

    Example:
        >>> from ika_lightning.attention import IKAN
        >>> net = TextClassifier(11, 3, width=8, depth=1, num_heads=2, attention=IKAN)
        >>> net(torch.tensor([[4, 7, 2, 9], [5, 1, 0, 0]])).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        width: int,
        depth: int,
        num_heads: int,
        attention: AttentionFactory,
        embed_dim: int | None = None,
        window: int = 3,
        pooling: Pooling = "mean",
        ffn_width: int | None = None,
        dropout: float = 0.0,
        embed_dropout: float = 0.0,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window must be an odd number of words, got {window}")
        if pooling not in ("mean", "max", "cls", "attention"):
            raise ValueError(f"pooling must be 'mean', 'max', 'cls' or 'attention', got {pooling!r}")
        embed_dim = width if embed_dim is None else embed_dim
        self.pooling = pooling
        self.word_dropout = word_dropout
        self.embed = Embedding(vocab_size, embed_dim, padding_idx=0).starting(std=_EMBED_STD)
        self.embed_dropout = nn.Dropout(embed_dropout)
        self.window = nn.Conv1d(embed_dim, width, window, padding=window // 2)
        self.first = nn.Parameter(torch.empty(width)) if pooling == "cls" else None
        self._draw_first()
        self.encoder = Encoder(width, depth, num_heads, attention, ffn_width, dropout)
        self.weigh = nn.Linear(width, 1) if pooling == "attention" else None
        self.head = nn.Linear(width, num_classes)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        super().reset_parameters()
        self._draw_first()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the classes.

        Args:
            tokens: Texts, padded with 0 at their ends; each has at least one token.

        Shapes:
            tokens (b, n); the result (b, num_classes).
        """
        padding = tokens == 0
        words = self.embed(tokens)
        if self.training and self.word_dropout:
            words = words * (torch.rand(tokens.shape, device=tokens.device) >= self.word_dropout).unsqueeze(-1)
        x = self.window(self.embed_dropout(words).mT).mT
        x = x + _POSITION_SCALE * sinusoids(0, x.size(1), x)
        if self.first is not None:
            x = torch.cat([self.first.expand(x.size(0), 1, -1), x], 1)
            padding = F.pad(padding, (1, 0))
        pooled = self._pool(self.encoder(x, padding), padding)
        logits: Tensor = self.head(self.embed_dropout(pooled))
        return logits

    def _draw_first(self) -> None:
        if self.first is not None:
            with torch.no_grad():
                self.first.copy_(torch.randn_like(self.first) / math.sqrt(self.first.numel()))

    def _pool(self, x: Tensor, padding: Tensor) -> Tensor:
        """Reduce (b, n, width) to (b, width), over what is no padding."""
        if self.pooling == "cls":
            return x[:, 0]
        if self.pooling == "max":
            return x.masked_fill(padding.unsqueeze(-1), -math.inf).amax(1)
        if self.weigh is not None:
            weights = self.weigh(x).masked_fill(padding.unsqueeze(-1), -math.inf).softmax(1)
        else:
            weights = (~padding / (~padding).sum(1, keepdim=True)).unsqueeze(-1)
        return (weights * x).sum(1)
