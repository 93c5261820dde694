"""Sentences and their translations: how they are read, split, cut into tokens, filtered and written."""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ika_lightning.data import splits
from ika_lightning.data.cells import compress
from ika_lightning.data.corpus import Corpus, Found
from ika_lightning.data.datasets import ParallelSet
from ika_lightning.data.files import read_lines
from ika_lightning.data.fingerprint import fingerprint
from ika_lightning.data.loader import pad
from ika_lightning.data.messages import quoted, say
from ika_lightning.data.parallel import Pairs, pair_up
from ika_lightning.data.tokenizer import END, HOW_TO_TOKENIZE, PADDING, START, UNKNOWN, Tokenizer

__all__ = [
    "PairCorpus",
    "PairEncoder",
    "PairTokens",
    "Pieces",
    "TranslationBatch",
    "check_both",
    "languages_of",
]


class TranslationBatch(NamedTuple):
    """Sentences, and what is known of their translations.

    Attributes:
        source: Tokens of the sentences, with one that ends them, (b, m).
        target: Tokens of their translations, between one that starts and one that ends them, (b, n); n is 0 in
            prediction.
        number: Which line of its file, or pair of its split, each is, from 0, (b,). In prediction, several rows may be
            pieces of one line, in order.
        texts: The sentences and their translations as text; none in training.

    Example:
        >>> import torch
        >>> batch = TranslationBatch(torch.tensor([[5, 3]]), torch.tensor([[2, 8, 3]]), torch.tensor([0]))
        >>> batch.counts
        {'sentences': 1, 'tokens': tensor(5)}
    """

    source: Tensor
    target: Tensor
    number: Tensor
    texts: Sequence[tuple[str, str]] = ()

    @property
    def counts(self) -> dict[str, Any]:
        """How many sentences this is, and how many tokens on both sides together."""
        tokens = (self.source != PADDING).sum() + (self.target != PADDING).sum()
        return {"sentences": len(self.source), "tokens": tokens}


class PairTokens(NamedTuple):
    """Sentences and their translations as tokens, without those that start and end them.

    Args:
        source: Tokens of each sentence.
        target: Tokens of its translation; none in prediction.
        number: Which pair of its split each is, from 0, (r,) int64.
        texts: Both sides as text; none in training and prediction.
    """

    source: list[list[int]]
    target: list[list[int]]
    number: Tensor
    texts: Sequence[tuple[str, str]] = ()

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens each side of each pair has in a batch, with those that start and end it, (r, 2)."""
        return np.array([[len(s) + 1, len(t) + 2] for s, t in zip(self.source, self.target, strict=True)])

    def take(self, index: Tensor) -> TranslationBatch:
        """A batch of some of the pairs.

        Args:
            index: Which, (b,) int64.
        """
        rows = index.tolist()
        return TranslationBatch(
            source=pad([[*self.source[row], END] for row in rows]),
            target=pad([[START, *self.target[row], END] for row in rows]),
            number=self.number[index],
            texts=[self.texts[row] for row in rows] if self.texts else (),
        )

    def usable(self, max_length: int, max_ratio: float) -> tuple["PairTokens", dict[str, int]]:
        """The pairs that are fit for training, and how many are not; a line says so if there are any.

        Args:
            max_length: Most tokens of a side.
            max_ratio: How many times as many tokens one side may have as the other.

        Returns:
            The pairs that are; and the numbers of those that are too ``long``, and too ``uneven``.

        Raises:
            ValueError: If none is.

        Example:
            >>> tokens = PairTokens([[7, 7, 7], [7]], [[8, 8], [8, 8, 8]], torch.arange(2))
            >>> kept, left_out = tokens.usable(max_length=5, max_ratio=2.0)
            >>> kept.source, left_out
            ([[7, 7, 7]], {'long': 0, 'uneven': 1})
        """
        lengths = self.lengths - (1, 2)
        longest, shortest = lengths.max(1), lengths.min(1)
        long = longest > max_length
        uneven = ~long & (longest > max_ratio * shortest)
        kept = np.flatnonzero(~long & ~uneven)
        if len(kept) < len(lengths):
            say(
                f"training pairs: {len(kept)} of {len(lengths)}; left out: {long.sum()} with more than {max_length} "
                f"tokens, {uneven.sum()} with over {max_ratio:g} times as many as the other side"
            )
        if not len(kept):
            raise ValueError(f"no training pair is left; raise max_length={max_length} or max_ratio={max_ratio:g}")
        source, target = ([side[row] for row in kept.tolist()] for side in (self.source, self.target))
        return PairTokens(source, target, self.number[kept]), {"long": int(long.sum()), "uneven": int(uneven.sum())}


class Pieces(NamedTuple):
    """Sentences to translate, as tokens, those that are long in pieces.

    Args:
        pieces: The pieces of each sentence.
    """

    pieces: list[list[list[int]]]

    @classmethod
    def cut(cls, sentences: Sequence[list[int]], max_length: int, tokenizer: Tokenizer) -> "Pieces":
        """Cut sentences before words, where there are any; a warning counts those that are cut.

        Args:
            sentences: The sentences.
            max_length: Most tokens of a piece.
            tokenizer: What they were encoded by.
        """
        pieces = [_cut(tokens, max_length, tokenizer) for tokens in sentences]
        if long := [number for number, line in enumerate(pieces, 1) if len(line) > 1]:
            warnings.warn(
                f"{len(long)} lines have more than max_length={max_length} tokens (first: line {long[0]}); they are "
                "translated in pieces, whose translations are joined by blanks",
                stacklevel=2,
            )
        return cls(pieces)

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens all pieces of each sentence have with padding, (r,)."""
        return np.array([len(line) * len(line[0]) for line in self.pieces])

    def take(self, index: Tensor) -> TranslationBatch:
        """A batch of all pieces of some sentences, without translations.

        Args:
            index: Which, (b,) int64.
        """
        rows = [(number, piece) for number in index.tolist() for piece in self.pieces[number]]
        source = pad([[*piece, END] for _, piece in rows])
        return TranslationBatch(source, source.new_zeros(len(rows), 0), torch.tensor([row[0] for row in rows]))


def _cut(tokens: list[int], max_length: int, tokenizer: Tokenizer) -> list[list[int]]:
    pieces = []
    while len(tokens) > max_length:
        starts = (i for i in range(max_length, 0, -1) if tokenizer.starts_word(tokens[i]))
        end = next(starts, max_length)
        pieces.append(tokens[:end])
        tokens = tokens[end:]
    return [*pieces, tokens]


class PairEncoder(NamedTuple):
    """What sentences and their translations are encoded by.

    Args:
        source: The vocabulary of sentences.
        target: That of their translations, which may be the same.
    """

    source: Tokenizer
    target: Tokenizer

    @property
    def is_joint(self) -> bool:
        """Whether both are one vocabulary."""
        return self.source is self.target

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the vocabularies, or the one that is joint."""
        return {"source": self.source.state()} | ({} if self.is_joint else {"target": self.target.state()})

    def describe(self) -> dict[str, Any]:
        """How sentences are encoded and translations are decoded, for a reader who has nothing else."""
        return {
            "how": [
                HOW_TO_TOKENIZE,
                "A source is the ids of a sentence, then the id of end. Fill up shorter ones of a batch at their ends, "
                "with the id of padding.",
                "A target is the id of start, then the ids of the translation so far. It is over where the id of end "
                "is chosen; padding, unknown and start are never chosen.",
                "Ids become text by decode(ids) of the tokenizer of the target, which is that of the source if null; "
                "take the blank in front away.",
            ],
            "tokenizer": {
                "source": self.source.describe(),
                "target": None if self.is_joint else self.target.describe(),
            },
            "ids": {"padding": PADDING, "unknown": UNKNOWN, "start": START, "end": END},
        }

    def texts(self, tokens: Iterable[Sequence[int]]) -> list[str]:
        """The translation that each sequence of tokens stands for, on one line.

        Args:
            tokens: The sequences.
        """
        return [" ".join(self.target.decode(sequence).splitlines()).strip() for sequence in tokens]


@dataclass(frozen=True, kw_only=True)
class PairCorpus(Corpus[Pairs, PairEncoder, PairTokens]):
    """Parallel text, each split in files of its own.

    Args:
        dataset: The corpus that is known by name, if it is one.
        path: An own file of sentences for training.
        languages: The languages to translate from and to, of a known corpus.
        files: Own files of sentences and their translations, for ``"train"``, ``"val"`` and ``"test"``.

    All others are those of :class:`~ika_lightning.data.TranslationData`.
    """

    nothing_new = "there is nothing to translate; give the sentences"
    unknown = "the vocabulary is"
    no_source = "there is nothing to learn from; give --data.name, or --data.source FILE --data.target FILE"
    no_test = "there are no test sentences; give --data.test_source FILE --data.test_target FILE"

    dataset: ParallelSet | None
    languages: tuple[str, str] | None
    files: Mapping[str, tuple[str, str]]
    val_fraction: float
    vocabulary: int
    joint: bool
    seed: int

    def read(self, stage: str | None, known: Collection[str], learned: PairEncoder | None) -> Found[Pairs]:
        """Read the pairs of a stage, those for validation out of those for training if there are no others."""
        has_test = self.dataset is not None or "test" in self.files
        tested = {"test": self._read("test")} if stage in ("test", None) and has_test else {}
        if stage == "test":
            return Found(tested, {})
        if self.dataset is None and "val" not in self.files:
            found = self._hold_out(self._read("train"))
            return Found({**found.parts, **tested}, found.drawn)
        parts = ("val",) if stage == "validate" else ("train", "val")
        return Found({**{part: self._read(part) for part in parts}, **tested}, {})

    def _read(self, part: str) -> Pairs:
        if part in self.files:
            pairs = pair_up(*self.files[part])
        else:
            assert self.dataset is not None and self.languages is not None
            pairs = self.dataset.pairs(part, *self.languages, self.root)
        if pairs.empty:
            say(f"{part} pairs left out because a side is blank: {pairs.empty}")
        return pairs

    def _hold_out(self, pairs: Pairs) -> Found[Pairs]:
        count = splits.share_of(self.val_fraction, len(pairs.source))
        if count == len(pairs.source):
            raise ValueError(f"{self.path} has a single pair with text: too few to hold one out; give more")
        rows = splits.deal(np.arange(len(pairs.source)), count, 0, ordered=False, seed=self.seed)
        drawn = {part: rows[part] for part in ("train", "val")}
        return Found({part: pairs.take(chosen.tolist()) for part, chosen in drawn.items()}, drawn)

    def read_own(self, part: str, path: str, learned: PairEncoder | None) -> Pairs:
        """Read sentences and their translations to test on, or sentences alone to translate.

        Raises:
            ValueError: If there are none.
        """
        if part == "test":
            return self._read("test")
        lines = [line.strip() for line in read_lines(path)]
        if not lines:
            raise ValueError(f"there is nothing to translate: {path} has no lines")
        return Pairs(lines, [])

    def learn(self, train: Pairs) -> PairEncoder:
        """Learn the vocabularies."""

        def learn(texts: list[str]) -> Tokenizer:
            return Tokenizer.learn(texts, unit="subword", size=self.vocabulary, split_digits=True)

        if self.joint:
            tokenizer = learn(train.source + train.target)
            return PairEncoder(tokenizer, tokenizer)
        return PairEncoder(learn(train.source), learn(train.target))

    def restore(self, state: dict[str, Any]) -> PairEncoder:
        """The vocabularies of a checkpoint."""
        source = Tokenizer(state["source"])
        return PairEncoder(source, Tokenizer(state["target"]) if "target" in state else source)

    def encode(self, part: str, found: Pairs, learned: PairEncoder) -> PairTokens:
        """The tokens of both sides, with their texts if a model is measured on them."""
        texts = list(zip(found.source, found.target, strict=True)) if part in ("val", "test") else ()
        source, target = learned.source.encode(found.source), learned.target.encode(found.target)
        return PairTokens(source, target, torch.arange(len(source)), texts)

    def fingerprints(self, parts: Mapping[str, Pairs]) -> dict[str, str]:
        """Those of both sides of each part."""
        return {part: fingerprint(pairs.source, pairs.target) for part, pairs in parts.items()}

    def render(
        self,
        new: Pairs,
        encoded: PairTokens,
        learned: PairEncoder,
        predictions: Sequence[tuple[int, list[list[Any]]]],
        path: str | Path,
    ) -> bytes:
        """The translations, line by line.

        A blank line stays one, so line n of the file is the translation of line n. If there are several translations
        of each line, each is written as ``<line, from 0> ||| <translation> ||| <score>`` instead, the best first.

        Predictions are, for each line, in any order, its number and, for each of its pieces, translations as tokens and
        score, the best first.
        """
        lines = new.source
        if sorted(number for number, _ in predictions) != list(range(len(lines))):
            raise ValueError(f"predictions must be one for each of {len(lines)} lines, got {len(predictions)}")
        several = max(len(hypotheses) for _, pieces in predictions for hypotheses in pieces) > 1
        written = []
        for number, pieces in sorted(predictions, key=lambda line: line[0]):
            # the best of each piece, the second of each, ...
            for ranked in zip(*pieces, strict=False):
                text = " ".join(learned.texts(tokens for tokens, _ in ranked)) if lines[number] else ""
                written.append(f"{number} ||| {text} ||| {sum(score for _, score in ranked):.4f}" if several else text)
                if not lines[number]:
                    break
        return compress("".join(f"{line}\n" for line in written), path)


def languages_of(dataset: ParallelSet, source: str | None, target: str | None) -> tuple[str, str]:
    """The languages to translate from and to; if one is not given, the first other one of a corpus.

    Args:
        dataset: The corpus.
        source: The language to translate from.
        target: The language to translate to.

    Raises:
        ValueError: If they are not two languages of the corpus.
    """
    source = source or next(language for language in dataset.languages if language != target)
    target = target or next(language for language in dataset.languages if language != source)
    for side, language in (("source", source), ("target", target)):
        if language not in dataset.languages:
            raise ValueError(
                f"{dataset.name} has no {side} language {language!r}: there are {quoted(dataset.languages)}"
            )
    if source == target:
        raise ValueError(f"source and target must be two languages, got {source!r} twice")
    return source, target


def check_both(argument: str, source: str | None, target: str | None, instead: str) -> tuple[str, str] | None:
    """Check that there are two parallel files or none.

    Args:
        argument: How their arguments begin: ``""``, ``"val_"`` or ``"test_"``.
        source: The file of sentences.
        target: That of their translations.
        instead: What to give instead of one.

    Returns:
        Both, or None.

    Raises:
        ValueError: If there is one.
    """
    if source is not None and target is not None:
        return source, target
    if source is not None or target is not None:
        raise ValueError(
            f"{argument}source and {argument}target go together, got {argument}source={source!r}, "
            f"{argument}target={target!r}; give {instead}"
        )
    return None
