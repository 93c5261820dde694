"""Searching for the best translation: greedy and beam search over an encoder-decoder, whole batches at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ika_lightning.models.encoder_decoder import EncoderDecoder


class Hypothesis(NamedTuple):
    """One translation of a sentence.

    Attributes:
        tokens: The translation, without the tokens that start and end it.
        score: Logarithm of its probability, divided by the length penalty.
    """

    tokens: list[int]
    score: float


@dataclass(frozen=True)
class Search:
    r"""How to look for translations, and which tokens have a meaning of their own.

    Beam search keeps the ``beam`` most probable beginnings of a translation, and stops once as many translations have
    ended. They are ranked by

    .. math::
        \text{score}(y) = \frac{\log p(y)}{\text{lp}(y)}, \qquad
        \text{lp}(y) = \Bigl(\frac{5 + |y|}{6}\Bigr)^\alpha

    (Wu et al. 2016, `eq. 14 <https://arxiv.org/abs/1609.08144>`_), where the end counts as a token of y. A beam of one
    is greedy search: the most probable token at each step.

    A translation that has not ended after ``max_ratio`` times the tokens of its source and ``max_extra`` more is ended
    there. The limit and all else depend on the sentence alone, not on what it is translated together with.

    Args:
        start: The token before the first.
        end: The token after the last.
        never: Tokens that no translation contains.
        beam: How many beginnings to keep.
        length_penalty: :math:`\alpha`; 0 prefers short translations, larger values longer ones.
        max_ratio: Most tokens of a translation, for each of its source.
        max_extra: How many more it may have.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> from ika_lightning.attention import IKAN
        >>> net = EncoderDecoder(11, width=8, depth=1, num_heads=2, attention=IKAN).eval()
        >>> search = Search(start=2, end=3, never=(0, 2), beam=4)
        >>> [len(hypotheses) for hypotheses in search(net, torch.tensor([[5, 6, 7], [8, 0, 0]]), n_best=2)]
        [2, 2]
    """

    start: int
    end: int
    never: tuple[int, ...] = ()
    beam: int = 5
    length_penalty: float = 1.0
    max_ratio: float = 2.0
    max_extra: int = 10

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ValueError(f"beam must be at least 1, got {self.beam}")
        for name, number in (("length_penalty", self.length_penalty), ("max_ratio", self.max_ratio)):
            if not 0.0 <= number < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {number}")
        if self.max_extra < 0:
            raise ValueError(f"max_extra must be at least 0, got {self.max_extra}")

    @torch.no_grad()
    def __call__(self, net: EncoderDecoder, source: Tensor, n_best: int = 1) -> list[list[Hypothesis]]:
        """Translate.

        Args:
            net: The network, in evaluation.
            source: Tokens of each sentence, padded at the end.
            n_best: How many translations of each sentence are wanted, at most ``beam``.

        Shapes:
            source (b, m).

        Returns:
            For each sentence its translations, the best first.

        Raises:
            ValueError: If n_best is larger than the beam.
        """
        if not 1 <= n_best <= self.beam:
            raise ValueError(f"n_best must be from 1 to beam={self.beam}, got {n_best}")
        if len(source) == 0:
            return []
        beams = _Beams(self, net, source)
        while beams.going.numel():
            beams.step()
        ranked = (sorted(ended, key=lambda hypothesis: -hypothesis.score) for ended in beams.ended)
        return [hypotheses[:n_best] for hypotheses in ranked]


class _Beams:
    """A search under way.

    Letters: b sentences that are going on, k beginnings of each, t tokens in a beginning, V tokens to choose from.

    Attributes:
        ended: For each sentence of the batch the translations that have ended.
        going: Which sentences of the batch are going on, (b,).
        tokens: The beginnings, (b, k, t), with the token of the start.
        log_p: Logarithms of their probabilities, (b, k).
    """

    def __init__(self, search: Search, net: EncoderDecoder, source: Tensor) -> None:
        b, k = source.size(0), search.beam
        self.search, self.net = search, net
        self.ended: list[list[Hypothesis]] = [[] for _ in range(b)]
        self.going = torch.arange(b, device=source.device)
        self.limit = (search.max_ratio * (source != net.padding).sum(1)).long() + search.max_extra
        self.tokens = source.new_full((b, k, 1), search.start)
        # All beginnings are one and the same at first, so that only one may go on.
        self.log_p = torch.full((b, k), -math.inf, device=source.device)
        self.log_p[:, 0] = 0.0
        self.state = net.start(source)

    def step(self) -> None:
        """Write one more token of each beginning."""
        b, k, t = self.tokens.shape
        last_chance = self.limit[self.going] < t
        log_p, token = self._best_tokens(2 * k, last_chance)  # (b, k, c)

        # Of the best 2k continuations at most k end the sentence, so that k are left to go on.
        width = log_p.size(-1)
        log_p, index = (self.log_p.unsqueeze(-1) + log_p).flatten(1).topk(min(2 * k, k * width))
        parent, token = index // width, token.flatten(1).gather(1, index)
        ends = token == self.search.end
        self._collect(log_p[:, :k], parent[:, :k], ends[:, :k])

        done = last_chance | torch.tensor([len(self.ended[i]) >= k for i in self.going.tolist()], device=ends.device)
        keep = _keep_places(~done)
        self.log_p, chosen = log_p[keep].masked_fill(ends[keep], -math.inf).topk(k)
        parent, token = parent[keep].gather(1, chosen), token[keep].gather(1, chosen)
        order = _stay_with_parents(parent)
        self.log_p, parent, token = (x.gather(1, order) for x in (self.log_p, parent, token))
        self.tokens = torch.cat([self.tokens[keep.unsqueeze(1), parent], token.unsqueeze(-1)], -1)
        self.going = self.going[keep]
        if keep.numel() < b:
            self.state = self.state.select_sources(keep)
        self.state = self.state.select_((keep.unsqueeze(1) * k + parent).flatten())

    def _best_tokens(self, count: int, last_chance: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and number of the best next tokens of each beginning, (b, k, count)."""
        b, k, _ = self.tokens.shape
        scores, self.state = self.net.decode(self.tokens[:, :, -1].reshape(b * k, 1), self.state)
        scores = scores.view(b, k, -1).to(torch.promote_types(scores.dtype, torch.float32))
        total = scores.logsumexp(-1, keepdim=True)
        scores[..., self.search.never] = -math.inf
        if last_chance.any():
            end = scores[last_chance, :, self.search.end]
            scores[last_chance] = -math.inf
            scores[last_chance, :, self.search.end] = end
        best, token = scores.topk(min(count, scores.size(-1)))
        return best - total, token

    def _collect(self, log_p: Tensor, parent: Tensor, ends: Tensor) -> None:
        """Take down the continuations that end a sentence, (b, k)."""
        penalty = ((5 + self.tokens.size(-1)) / 6) ** self.search.length_penalty
        row, column = (ends & (log_p > -math.inf)).nonzero(as_tuple=True)
        texts = self.tokens[row, parent[row, column], 1:]
        for number, text, value in zip(
            self.going[row].tolist(), texts.tolist(), (log_p[row, column] / penalty).tolist(), strict=True
        ):
            self.ended[number].append(Hypothesis(text, value))


def _keep_places(keep: Tensor) -> Tensor:
    """Return which sentences are kept, in an order in which few move: those at the end go to the gaps.

    Example:
        >>> _keep_places(torch.tensor([True, False, True, False, True, True]))
        tensor([0, 4, 2, 5])
    """
    count = int(keep.sum())
    places = torch.arange(count, device=keep.device)
    places[~keep[:count]] = keep[count:].nonzero().squeeze(1) + count
    return places


def _stay_with_parents(parent: Tensor) -> Tensor:
    """Return an order of the k continuations in which the first child of each beginning stands where that stood.

    The keys of a beginning need not be copied then, unless it has several children.

    Shapes:
        parent (b, k), from 0 to k - 1; the result (b, k), a permutation in each row.

    Example:
        >>> parent = torch.tensor([[3, 1, 3, 0]])
        >>> order = _stay_with_parents(parent)
        >>> parent.gather(1, order)
        tensor([[0, 1, 3, 3]])
    """
    same = parent.unsqueeze(2) == parent.unsqueeze(1)
    first = ~same.tril(-1).any(2)
    taken = torch.zeros_like(parent, dtype=torch.bool).scatter_(1, parent, True)
    free = taken.long().argsort(dim=1, stable=True)  # places without children come first
    number = (~first).long().cumsum(1) - 1
    place = torch.where(first, parent, free.gather(1, number.clamp_min(0)))
    return place.argsort(1)
