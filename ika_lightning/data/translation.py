"""Data of the translation task: sentences and their translations, as tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ika_lightning.data import splits
from ika_lightning.data.base import DataModule, plain
from ika_lightning.data.cells import compress
from ika_lightning.data.checks import check_least, check_source
from ika_lightning.data.datasets import ParallelSet, find_dataset
from ika_lightning.data.files import read_lines
from ika_lightning.data.fingerprint import fingerprint
from ika_lightning.data.loader import LengthSampler, Loader, pad, processes, update_shares
from ika_lightning.data.messages import quoted, say
from ika_lightning.data.parallel import Pairs, pair_up
from ika_lightning.data.tokenizer import END, PADDING, START, Tokenizer

__all__ = ["TranslationBatch", "TranslationData"]


class TranslationBatch(NamedTuple):
    """Sentences, and what is known of their translations.

    Attributes:
        source: Tokens of the sentences, with one that ends them, (b, m).
        target: Tokens of their translations, between one that starts and one that ends them, (b, n); n is 0 in
            prediction.
        number: Which line of its file, or pair of its split, each is, from 0, (b,). In prediction, several rows may be
            pieces of one line, in order.
        texts: The sentences and their translations as text; none in training.
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


class TranslationData(DataModule):
    """Parallel text, cut into parts of words that are learned on its training part.

    Each digit is a token of its own, so that numbers are copied and not learned by heart.

    The corpus is one known by name, or two own files, of which line n of one is the translation of line n of the
    other. A line with a blank side is left out; so are training pairs that are too long or of too different length.
    Training batches hold sentences of similar length, at most ``batch_tokens`` with padding on either side. The
    tokenizers travel in the checkpoint, so that testing and predicting need no training text.

    Args:
        name: A known corpus: ``dates`` (dates, times and units, en and de) ships with the package; ``multi30k`` (en, de
            and fr) and ``iwslt14`` (de and en) are looked for under ``root``, the former is else downloaded.
        source: With ``name``, the language to translate from; without it, a file of sentences, one a line, ``.gz`` too.
        target: The language to translate to, or the file of the translations.
        val_source: An own file of sentences for validation; without one, training pairs are held out.
        val_target: Their translations.
        test_source: An own file of sentences for testing, instead of the corpus's own.
        test_target: Their translations.
        target_language: The language of own translations, such as ``zh``, which says how BLEU cuts them up. By default
            the ending of ``target``, such as ``.zh``, or else their script.
        predict_path: Sentences to translate, one a line; ``-`` is standard input.
        val_fraction: Share of the pairs of own files, at least one, that is held out if there is no ``val_source``.
        vocabulary: Most tokens, bytes included; of each side if they are not joint.
        joint: Learn one vocabulary for both sides, and let the model share their embeddings.
        max_length: Most tokens of a side of a training pair. A longer line is predicted in pieces.
        max_ratio: How many times as many tokens one side of a training pair may have as the other.
        batch_tokens: Tokens in a training batch, of either side and with padding, for each process.
        batch_size: Sentences in a batch of evaluation.
        root: Folder of the corpora; by default ``IKA_DATA``, else the user's cache folder.
        seed: Seed of what is held out and of the batches, 0 or more.

    Raises:
        ValueError: If the arguments contradict one another.

    Example:
        >>> data = TranslationData("dates", source="de", target="en", vocabulary=500)
        >>> data.setup("fit")
        >>> batch = next(iter(data.val_dataloader()))
        >>> batch.texts[0], data.target_texts([batch.target[0].tolist()])
        (('43 Minuten', '43 minutes'), ['43 minutes'])
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        source: str | None = None,
        target: str | None = None,
        val_source: str | None = None,
        val_target: str | None = None,
        test_source: str | None = None,
        test_target: str | None = None,
        target_language: str | None = None,
        predict_path: str | None = None,
        val_fraction: float = 0.05,
        vocabulary: int = 8000,
        joint: bool = True,
        max_length: int = 128,
        max_ratio: float = 4.0,
        batch_tokens: int = 4096,
        batch_size: int = 64,
        root: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        source, target, val_source, val_target, test_source, test_target, predict_path, root = plain(
            source, target, val_source, val_target, test_source, test_target, predict_path, root
        )
        self.save_hyperparameters()
        self.name, self.source, self.target = name, source, target
        self.files = {"val": (val_source, val_target), "test": (test_source, test_target)}
        self.predict_path, self.root = predict_path, root
        self.own_target_language = target_language
        self.val_fraction, self.vocabulary, self.joint = val_fraction, vocabulary, joint
        self.max_length, self.max_ratio = max_length, max_ratio
        self.batch_tokens, self.batch_size, self.seed = batch_tokens, batch_size, seed
        own = "--data.source FILE --data.target FILE"
        self.dataset: ParallelSet | None = None if name is None else find_dataset(name, ParallelSet, own)
        self.test_path = test_source
        self._check_arguments(own)

        self._drawn: dict[str, np.ndarray] = {}
        self.left_out: dict[str, int] = {}  # training pairs, by what was wrong with them
        self._pairs: dict[str, Pairs] = {}  # of "train", "val" and "test"
        self._lines: list[str] | None = None  # to predict for
        self._tokenizers: tuple[Tokenizer, Tokenizer] | None = None  # of source and target; joint: one, twice

    # --- What Lightning calls -----------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read and check the files that a stage needs; in fitting, learn the tokenizers.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None for all that there are files for.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If a file does not fit, or a stage lacks its file.
        """
        # When a checkpoint is given, Lightning loads the tokenizers after this: so encoding waits for the loaders.
        if stage == "predict" or (stage is None and self.predict_path is not None):
            if self.predict_path is None:
                raise ValueError(
                    "there is nothing to translate; give the sentences with --input FILE (predict_path in Python)"
                )
            if self._lines is None:  # standard input can be read only once
                self._lines = [line.strip() for line in read_lines(self.predict_path)]
            if not self._lines:
                raise ValueError(f"there is nothing to translate: {self.predict_path} has no lines")
        if stage in ("fit", "validate") or (stage is None and self.source is not None):
            self._setup_fit(stage)
        if stage == "test" or (stage is None and (self.name or self.files["test"][0])):
            self._pairs["test"] = self._read("test")
        if stage in ("fit", None) and "train" in self._pairs and self._tokenizers is None:
            self._tokenizers = self._learn(self._pairs["train"])

    def train_dataloader(self) -> Loader[TranslationBatch]:
        """Batches of ``batch_tokens`` of the training pairs that are neither too long nor too uneven."""
        self.check_drawn("train")
        tokens = self._encode("train")
        lengths = np.array([[len(side) for side in pair] for pair in tokens])
        kept = self._filter(lengths - (1, 2))
        sampler = LengthSampler(lengths[kept], max_tokens=self.batch_tokens, seed=self.seed, **update_shares(self))

        def take(index: Tensor) -> TranslationBatch:
            number = torch.from_numpy(kept)[index]
            return TranslationBatch(*_pad_sides([tokens[i] for i in number.tolist()]), number)

        return Loader(sampler, take)

    def val_dataloader(self) -> Loader[TranslationBatch]:
        """Validation pairs, from short to long."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> Loader[TranslationBatch]:
        """Test pairs, from short to long."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> Loader[TranslationBatch]:
        """The lines of ``predict_path``, from short to long, those of more than ``max_length`` tokens in pieces."""
        assert self._lines is not None
        pieces = [self._cut(tokens) for tokens in self._fitted()[0].encode(self._lines)]
        if long := [number for number, line in enumerate(pieces, 1) if len(line) > 1]:
            warnings.warn(
                f"{len(long)} lines have more than max_length={self.max_length} tokens (first: line {long[0]}); they "
                "are translated in pieces, whose translations are joined by blanks",
                stacklevel=2,
            )
        lengths = np.array([len(line) * len(line[0]) for line in pieces])

        def take(index: Tensor) -> TranslationBatch:
            rows = [(number, piece) for number in index.tolist() for piece in pieces[number]]
            source = pad([[*piece, END] for _, piece in rows])
            return TranslationBatch(source, source.new_zeros(len(rows), 0), torch.tensor([row[0] for row in rows]))

        return Loader(LengthSampler(lengths, batch_size=self.batch_size, shuffle=False), take)

    def learned(self) -> dict[str, Any]:
        """The tokenizers."""
        if self._tokenizers is None:
            return {}
        source, target = self._tokenizers
        return {"source": source.state()} if source is target else {"source": source.state(), "target": target.state()}

    def adopt(self, learned: dict[str, Any]) -> None:
        """Take the tokenizers of a checkpoint."""
        source = Tokenizer(learned["source"])
        self._tokenizers = source, Tokenizer(learned["target"]) if "target" in learned else source

    @property
    def drawn(self) -> dict[str, np.ndarray]:
        """The pairs that were held out for validation, and those for training, if there are such."""
        return self._drawn

    @property
    def fingerprints(self) -> dict[str, str]:
        """A SHA-256 of the pairs of each split that was read."""
        return {split: fingerprint(pairs.source, pairs.target) for split, pairs in self._pairs.items()}

    # --- What the model asks ------------------------------------------------------------------------------------------

    @property
    def vocabularies(self) -> tuple[int, int | None] | None:
        """Sizes of the source's vocabulary and the target's, which is None if they are one; None if none is known."""
        if self._tokenizers is None:
            return None
        source, target = self._tokenizers
        return len(source), None if source is target else len(target)

    def target_texts(self, tokens: Iterable[Sequence[int]]) -> list[str]:
        """Return the text that each sequence of target tokens stands for, on one line."""
        tokenizer = self._fitted()[1]
        return [" ".join(tokenizer.decode(sequence).splitlines()).strip() for sequence in tokens]

    @property
    def target_language(self) -> str | None:
        """The code of the language of the translations; None if nothing says it."""
        if self.own_target_language or self.name is not None:
            return self.own_target_language or self.target
        file = self.target or self.files["test"][1] or ""
        ending = Path(file.removesuffix(".gz")).suffix.removeprefix(".").lower()
        return ending if len(ending) == 2 and ending.isalpha() else None

    @property
    def references(self) -> list[str]:
        """Translations that were read, for testing if there are any, else for validation."""
        split = next((split for split in ("test", "val", "train") if split in self._pairs), None)
        return self._pairs[split].target if split else []

    @property
    def compares_in_lowercase(self) -> bool:
        """Whether the figure that is published for the data is of lower-cased, tokenised text."""
        return self.dataset is not None and self.dataset.published_in_lowercase

    def token_names(self, tokens: Tensor, target: bool = False) -> list[list[str]]:
        """Return each token of sentences, or of their translations, as a person would read it, without padding.

        Args:
            tokens: (b, n), padded.
            target: Whether they are translations.
        """
        tokenizer = self._fitted()[target]
        return [tokenizer.names([token for token in row if token != PADDING]) for row in tokens.tolist()]

    def render(self, predictions: Sequence[tuple[int, list[list[Any]]]], path: str | Path) -> bytes:
        """The translations of ``predict_path``, line by line.

        A blank line stays one, so line n of the file is the translation of line n. If there are several translations
        of each line, each is written as ``<line, from 0> ||| <translation> ||| <score>`` instead, the best first.

        Args:
            predictions: For each line, in any order, its number and, for each of its pieces, translations as tokens
                and score, the best first.
            path: The file.

        Raises:
            ValueError: If a line is not translated, or more than once.
        """
        assert self._lines is not None
        if sorted(number for number, _ in predictions) != list(range(len(self._lines))):
            raise ValueError(f"predictions must be one for each of {len(self._lines)} lines, got {len(predictions)}")
        several = max(len(hypotheses) for _, pieces in predictions for hypotheses in pieces) > 1
        written = []
        for number, pieces in sorted(predictions, key=lambda line: line[0]):
            for ranked in zip(*pieces, strict=False):  # the best of each piece, the second of each, ...
                text = " ".join(self.target_texts(tokens for tokens, _ in ranked)) if self._lines[number] else ""
                written.append(f"{number} ||| {text} ||| {sum(score for _, score in ranked):.4f}" if several else text)
                if not self._lines[number]:
                    break
        return compress("".join(f"{line}\n" for line in written), path)

    # --- How it is done -----------------------------------------------------------------------------------------------

    def _check_arguments(self, own: str) -> None:
        if self.dataset is not None:
            self._check_languages(self.dataset)
        elif (self.source is None) != (self.target is None):
            raise ValueError(
                f"source and target go together, got source={self.source!r}, target={self.target!r}; give two parallel "
                "files with --data.source FILE --data.target FILE, or a known corpus with --data.name"
            )
        check_source(ParallelSet, own, None, self.source or self.name, self.test_path, self.predict_path)
        for split, (source, target) in self.files.items():
            if (source is None) != (target is None):
                raise ValueError(
                    f"{split}_source and {split}_target go together, got {split}_source={source!r}, "
                    f"{split}_target={target!r}; give both or neither"
                )
        if not 0.0 < self.val_fraction < 1.0:
            raise ValueError(f"val_fraction must be between 0 and 1, got {self.val_fraction}")
        check_least(
            # four special tokens and the bytes
            vocabulary=(self.vocabulary, 260),
            max_length=(self.max_length, 1),
            max_ratio=(self.max_ratio, 1.0),
            batch_tokens=(self.batch_tokens, 1),
            batch_size=(self.batch_size, 1),
            seed=(self.seed, 0),
        )

    def _check_languages(self, dataset: ParallelSet) -> None:
        name, languages = dataset.name, dataset.languages
        self.source = self.source or next(language for language in languages if language != self.target)
        self.target = self.target or next(language for language in languages if language != self.source)
        for side, language in (("source", self.source), ("target", self.target)):
            if language not in languages:
                raise ValueError(f"{name} has no {side} language {language!r}: there are {quoted(languages)}")
        if self.source == self.target:
            raise ValueError(f"source and target must be two languages, got {self.source!r} twice")

    def _read(self, split: str) -> Pairs:
        own_source, own_target = self.files.get(split, (None, None))
        if own_source is not None and own_target is not None:
            pairs = pair_up(own_source, own_target)
        elif self.dataset is not None:
            assert self.source is not None and self.target is not None
            pairs = self.dataset.pairs(split, self.source, self.target, self.root)
        elif split == "train" and self.source is not None and self.target is not None:
            pairs = pair_up(self.source, self.target)
        else:
            raise ValueError(
                f"there are no {split} sentences; give --data.{split}_source FILE --data.{split}_target FILE"
                if split != "train"
                else "there is nothing to learn from; give --data.name, or --data.source FILE --data.target FILE"
            )
        if pairs.empty:
            say(f"{split} pairs left out because a side is blank: {pairs.empty}")
        return pairs

    def _setup_fit(self, stage: str | None) -> None:
        held_out = self.name is None and self.files["val"][0] is None
        if held_out or stage != "validate":
            self._pairs["train"] = self._read("train")
        if not held_out:
            self._pairs["val"] = self._read("val")
            return
        pairs = self._pairs["train"]
        count = splits.share_of(self.val_fraction, len(pairs.source))
        if count == len(pairs.source):
            raise ValueError(f"{self.source} has a single pair with text: too few to hold one out; give more")
        parts = splits.deal(np.arange(len(pairs.source)), count, 0, ordered=False, seed=self.seed)
        self._drawn = {split: parts[split] for split in ("train", "val")}
        for split in ("train", "val"):
            rows = parts[split].tolist()
            self._pairs[split] = Pairs([pairs.source[i] for i in rows], [pairs.target[i] for i in rows])

    def _learn(self, pairs: Pairs) -> tuple[Tokenizer, Tokenizer]:
        def learn(texts: list[str]) -> Tokenizer:
            return Tokenizer.learn(texts, unit="subword", size=self.vocabulary, split_digits=True)

        if self.joint:
            tokenizer = learn(pairs.source + pairs.target)
            return tokenizer, tokenizer
        return learn(pairs.source), learn(pairs.target)

    def _fitted(self) -> tuple[Tokenizer, Tokenizer]:
        if self._tokenizers is None:
            raise ValueError(
                "the vocabulary is not known: this needs a checkpoint (--ckpt_path FILE), or training first "
                "(setup('fit') in Python)"
            )
        return self._tokenizers

    def _encode(self, split: str) -> list[tuple[list[int], list[int]]]:
        """Return the tokens of each pair, with those that start and end a sentence."""
        pairs, (source, target) = self._pairs[split], self._fitted()
        sides = zip(source.encode(pairs.source), target.encode(pairs.target), strict=True)
        return [([*s, END], [START, *t, END]) for s, t in sides]

    def _filter(self, lengths: np.ndarray) -> np.ndarray:
        """Return which training pairs, of lengths (r, 2) without special tokens, are kept, and say how many are not."""
        longest, shortest = lengths.max(1), lengths.min(1)
        long = longest > self.max_length
        uneven = ~long & (longest > self.max_ratio * shortest)
        kept = np.flatnonzero(~long & ~uneven)
        self.left_out = {"long": int(long.sum()), "uneven": int(uneven.sum())}
        if len(kept) < len(lengths):
            say(
                f"training pairs: {len(kept)} of {len(lengths)}; left out: {long.sum()} with more than "
                f"{self.max_length} tokens, {uneven.sum()} with over {self.max_ratio:g} times as many as the other side"
            )
        if not len(kept):
            raise ValueError(
                f"no training pair is left; raise max_length={self.max_length} or max_ratio={self.max_ratio:g}"
            )
        return kept

    def _cut(self, tokens: list[int]) -> list[list[int]]:
        """Cut a line into pieces of at most ``max_length`` tokens, before a word where there is one."""
        pieces = []
        while len(tokens) > self.max_length:
            starts = (i for i in range(self.max_length, 0, -1) if self._fitted()[0].starts_word(tokens[i]))
            cut = next(starts, self.max_length)
            pieces.append(tokens[:cut])
            tokens = tokens[cut:]
        return [*pieces, tokens]

    def _evaluation_loader(self, split: str) -> Loader[TranslationBatch]:
        self.check_drawn(split)
        tokens = self._encode(split)
        texts = list(zip(self._pairs[split].source, self._pairs[split].target, strict=True))
        lengths = np.array([[len(side) for side in pair] for pair in tokens])
        rank, world = processes(self)
        sampler = LengthSampler(lengths, batch_size=self.batch_size, shuffle=False, rank=rank, world=world)

        def take(index: Tensor) -> TranslationBatch:
            chosen = index.tolist()
            return TranslationBatch(*_pad_sides([tokens[i] for i in chosen]), index, [texts[i] for i in chosen])

        return Loader(sampler, take)


def _pad_sides(pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    return pad([source for source, _ in pairs]), pad([target for _, target in pairs])
