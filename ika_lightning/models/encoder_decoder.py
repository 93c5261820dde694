"""The transformer that turns one sequence into another, with any attention of this package in its three places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from ika_lightning.attention.encoded import Cache, EncodedKeys
from ika_lightning.models.base import Embedding, Network
from ika_lightning.models.encoder import AttentionFactory, Encoder, build_attention, feed_forward
from ika_lightning.models.positions import sinusoids


@dataclass(frozen=True)
class DecoderState:
    """All that later words need to know of the sources and of the words before.

    One source may have several hypotheses, which stand next to one another. They share the encoded keys of
    the source: in cross-attention, the hypotheses of a source are so many queries to the same keys, and nothing is
    copied.

    Args:
        sources: The keys of the sources, encoded by each layer.
        caches: Those of the words so far; none before the first.
        length: How many words there are so far.

    Shapes:
        keys of b sources, caches of s hypotheses, s a multiple of b.

    Example:
        >>> import torch
        >>> from ika_lightning.attention import IKAN
        >>> net = EncoderDecoder(11, width=8, depth=1, num_heads=2, attention=IKAN).eval()
        >>> state = net.start(torch.tensor([[5, 6, 7]]))
        >>> _, state = net.decode(torch.tensor([[2, 4]]), state)
        >>> state.length
        2
    """

    sources: tuple[EncodedKeys, ...]
    caches: tuple[Cache, ...] = ()
    length: int = 0

    def select_(self, index: Tensor) -> DecoderState:
        """Return the state of the hypotheses ``index``, (s,), in place of this one; repeats and omissions are fine.

        Only hypotheses that move are copied, so let those that go on stay where they are.
        """
        return replace(self, caches=tuple(cache.select_(index) for cache in self.caches))

    def select_sources(self, index: Tensor) -> DecoderState:
        """Return a state with only the sources ``index``, (b,); hypotheses stay as they are."""
        return replace(self, sources=tuple(keys.select(index) for keys in self.sources))


class DecoderLayer(Network):
    r"""A pre-norm decoder layer: causal self-attention, attention to the source, and a feed-forward network.

    .. math::
        x \leftarrow x + \text{self}(\text{norm}(x)), \qquad
        x \leftarrow x + \text{cross}(\text{norm}(x), \text{source}), \qquad
        x \leftarrow x + \text{ffn}(\text{norm}(x))

    Args:
        width: Width of both sequences.
        num_heads: Number of attention heads; it must divide the width.
        self_attention: The attention to earlier positions, called with (width, num_heads, batch_first=True).
        cross_attention: The attention to the source, called with (width, num_heads, batch_first=True).
        ffn_width: Hidden width of the feed-forward network.
        dropout: Probability with which an output of attention or network is dropped in training.

    Example:
        >>> import torch
        >>> from ika_lightning.attention import IKAN, DotProduct
        >>> layer = DecoderLayer(8, 2, IKAN, DotProduct, ffn_width=16)
        >>> layer(torch.randn(3, 5, 8), torch.randn(3, 7, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        self_attention: AttentionFactory,
        cross_attention: AttentionFactory,
        ffn_width: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(width)
        self.self_attention = build_attention(self_attention, width, num_heads)
        self.cross_attention_norm = nn.LayerNorm(width)
        self.cross_attention = build_attention(cross_attention, width, num_heads)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = feed_forward(width, ffn_width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor, source_padding: Tensor | None = None) -> Tensor:
        """Transform a whole sequence.

        Padding at the end of a sequence needs no mask: no position before it sees it.

        Shapes:
            x (b, n, width); source (b, m, width); source_padding (b, m), True = ignore; the result (b, n, width).
        """
        normed = self.self_attention_norm(x)
        attended, _ = self.self_attention(normed, normed, normed, need_weights=False, is_causal=True)
        x = x + self.dropout(attended)
        attended, _ = self.cross_attention(
            self.cross_attention_norm(x), source, source, key_padding_mask=source_padding, need_weights=False
        )
        x = x + self.dropout(attended)
        return x + self.dropout(self.ffn(self.ffn_norm(x)))

    def decode(self, x: Tensor, source: EncodedKeys, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Transform the next positions, as :meth:`forward` does with all of them.

        Args:
            x: The next positions of s hypotheses.
            source: What ``cross_attention.encode_keys`` returned of the b sources; those of a source stand together.
            cache: What the call for the positions before returned; None at the beginning.

        Shapes:
            x (s, t, width); the result the same.

        Returns:
            The positions transformed, and the cache for the next call.
        """
        attended, cache = self.self_attention.decode(self.self_attention_norm(x), cache)
        x = x + self.dropout(attended)
        queries = self.cross_attention_norm(x).view(source.num_sequences, -1, x.size(-1))  # (b, s / b * t, width)
        x = x + self.dropout(self.cross_attention.attend(queries, source).view_as(x))
        return x + self.dropout(self.ffn(self.ffn_norm(x))), cache


class EncoderDecoder(Network):
    r"""A pre-norm encoder-decoder over tokens, with sinusoidal positions.

    The output layer is the table of target embeddings, transposed (`Press and Wolf 2017
    <https://arxiv.org/abs/1608.05859>`_); if both sides share a vocabulary, they share that table, too. Embeddings are
    scaled by the root of the width, as by `Vaswani et al. 2017 <https://arxiv.org/abs/1706.03762>`_. Positions are
    computed and not learned, so there is no longest sentence.

    A position of the target sees the source and the target before it. Layers whose kernel depends on the keys
    (:class:`~ika_lightning.attention.IKAN` and :class:`~ika_lightning.attention.MIKAN`) look at the source, without
    its padding, in the encoder and in cross-attention, and at nothing in causal self-attention.

    Args:
        source_vocabulary: Number of source tokens.
        target_vocabulary: Number of target tokens; None if both sides share one vocabulary.
        width: Width of the network.
        depth: Number of layers of encoder and decoder each.
        num_heads: Number of attention heads; it must divide the width.
        attention: The attention layer, called with (width, num_heads, batch_first=True).
        decoder_attention: The causal self-attention of the decoder; as ``attention`` if None.
        cross_attention: The attention of the decoder to the source; as ``attention`` if None.
        ffn_width: Hidden width of the feed-forward networks; 4 times the width if None.
        dropout: Probability with which an embedding, or an output of attention or network, is dropped in training.
        padding: The token that fills up sequences at their ends.

    Raises:
        ValueError: If depth is negative, or num_heads does not divide the width.

    Example:
        >>> import torch
        >>> from ika_lightning.attention import IKAN
        >>> net = EncoderDecoder(11, 13, width=8, depth=1, num_heads=2, attention=IKAN)
        >>> source, target = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[2, 4], [2, 9]])
        >>> net(source, target).shape
        torch.Size([2, 2, 13])
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int | None = None,
        *,
        width: int,
        depth: int,
        num_heads: int,
        attention: AttentionFactory,
        decoder_attention: AttentionFactory | None = None,
        cross_attention: AttentionFactory | None = None,
        ffn_width: int | None = None,
        dropout: float = 0.0,
        padding: int = 0,
    ) -> None:
        super().__init__()
        ffn_width = 4 * width if ffn_width is None else ffn_width
        self.padding = padding
        self.source_embedding = embedding(source_vocabulary, width)
        self.target_embedding = (
            self.source_embedding if target_vocabulary is None else embedding(target_vocabulary, width)
        )
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(width, depth, num_heads, attention, ffn_width, dropout)
        self.layers: Sequence[DecoderLayer] = nn.ModuleList(  # type: ignore[assignment]  # which is no generic
            DecoderLayer(
                width, num_heads, decoder_attention or attention, cross_attention or attention, ffn_width, dropout
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the scores of the token after each target token.

        Shapes:
            source (b, m) and target (b, n), tokens; the result (b, n, target_vocabulary), before the softmax.
        """
        return self.scores(self.hidden(source, target))

    def hidden(self, source: Tensor, target: Tensor) -> Tensor:
        """Return what :meth:`scores` makes scores of, (b, n, width): not every position may need them."""
        padding = source == self.padding
        encoded = self.encoder(self._embed(self.source_embedding, source), padding)
        x = self._embed(self.target_embedding, target)
        for layer in self.layers:
            x = layer(x, encoded, padding)
        return self.norm(x)

    def scores(self, hidden: Tensor) -> Tensor:
        """Return the scores of all tokens: (..., width) -> (..., target_vocabulary)."""
        return F.linear(hidden, self.target_embedding.weight)

    def start(self, source: Tensor) -> DecoderState:
        """Encode the sources and project them for each decoder layer, once and for all words to come.

        Shapes:
            source (b, m), tokens.
        """
        padding = source == self.padding
        encoded = self.encoder(self._embed(self.source_embedding, source), padding)
        return DecoderState(
            tuple(layer.cross_attention.encode_keys(encoded, encoded, padding) for layer in self.layers)
        )

    def decode(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Return the scores after the next tokens of each hypothesis, and the state for those that follow.

        Shapes:
            tokens (s, t), s a multiple of the number of sources; the scores (s, t, target_vocabulary).

        Example:
            >>> import torch
            >>> from ika_lightning.attention import IKAN
            >>> net = EncoderDecoder(11, width=8, depth=1, num_heads=2, attention=IKAN).eval()
            >>> source, target = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[2, 4], [2, 9]])
            >>> _, state = net.decode(target[:, :1], net.start(source))
            >>> scores, _ = net.decode(target[:, 1:], state)
            >>> scores.allclose(net(source, target)[:, 1:], atol=1e-5)
            True
        """
        x = self._embed(self.target_embedding, tokens, state.length)
        caches = []
        for number, (layer, keys) in enumerate(zip(self.layers, state.sources, strict=True)):
            x, cache = layer.decode(x, keys, state.caches[number] if state.caches else None)
            caches.append(cache)
        later = replace(state, caches=tuple(caches), length=state.length + tokens.size(1))
        return self.scores(self.norm(x)), later

    def _embed(self, table: nn.Embedding, tokens: Tensor, first: int = 0) -> Tensor:
        positions = sinusoids(first, tokens.size(1), table.weight)
        return self.dropout(table(tokens) * math.sqrt(table.embedding_dim) + positions)


def embedding(vocabulary: int, width: int) -> nn.Embedding:
    """Make a table of token embeddings that may also serve as an output layer, whose scores start of size 1."""
    return Embedding(vocabulary, width).starting(std=width**-0.5)
