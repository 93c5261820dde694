"""Data of the translation task: sentences and their translations, as tokens."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from ika_lightning.data.base import DataModule, plain
from ika_lightning.data.checks import check_least, check_source
from ika_lightning.data.datasets import ParallelSet, find_dataset
from ika_lightning.data.loader import LengthSampler, Loader, update_shares
from ika_lightning.data.pairs import (
    PairCorpus,
    PairEncoder,
    PairTokens,
    Pieces,
    TranslationBatch,
    check_both,
    languages_of,
)
from ika_lightning.data.parallel import Pairs
from ika_lightning.data.tokenizer import PADDING

__all__ = ["TranslationBatch", "TranslationData"]


class TranslationData(DataModule[Pairs, PairEncoder, PairTokens, TranslationBatch]):
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
        self.predict_path, self.test_path = predict_path, test_source
        self.max_length, self.max_ratio = max_length, max_ratio
        self.batch_tokens, self.batch_size, self.seed = batch_tokens, batch_size, seed
        own = "--data.source FILE --data.target FILE"
        dataset = None if name is None else find_dataset(name, ParallelSet, own)
        known = None if dataset is None else languages_of(dataset, source, target)
        sides = {"val": (val_source, val_target), "test": (test_source, test_target)}
        files = {part: check_both(f"{part}_", *pair, "both or neither") for part, pair in sides.items()}
        if known is None:
            instead = f"two parallel files with {own}, or a known corpus with --data.name"
            files["train"] = check_both("", source, target, instead)
        check_source(ParallelSet, own, None, source or name, test_source, predict_path)
        if not 0.0 < val_fraction < 1.0:
            raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction}")
        check_least(
            # four special tokens and the bytes
            vocabulary=(vocabulary, 260),
            max_length=(max_length, 1),
            max_ratio=(max_ratio, 1.0),
            batch_tokens=(batch_tokens, 1),
            batch_size=(batch_size, 1),
            seed=(seed, 0),
        )
        self.source, self.target = known or (source, target)
        self.own_target_language = target_language
        self.left_out: dict[str, int] = {}  # training pairs, by what was wrong with them
        self.corpus = PairCorpus(
            dataset=dataset,
            path=None if known else source,
            root=root,
            languages=known,
            files={part: pair for part, pair in files.items() if pair is not None},
            val_fraction=val_fraction,
            vocabulary=vocabulary,
            joint=joint,
            seed=seed,
        )

    def loader(self, part: str) -> Loader[TranslationBatch]:
        """Batches of ``batch_tokens`` of training pairs that are not left out; others from short to long."""
        tokens = self.encoded(part)
        if part == "predict":
            pieces = Pieces.cut(tokens.source, self.max_length, self.learned.source)
            return Loader(LengthSampler(pieces.lengths, batch_size=self.batch_size, shuffle=False), pieces.take)
        dealt = update_shares(self, training=part == "train")
        if part == "train":
            tokens, self.left_out = tokens.usable(self.max_length, self.max_ratio)
            sampler = LengthSampler(tokens.lengths, max_tokens=self.batch_tokens, seed=self.seed, **dealt)
        else:
            sampler = LengthSampler(tokens.lengths, batch_size=self.batch_size, shuffle=False, **dealt)
        return Loader(sampler, tokens.take)

    @property
    def vocabularies(self) -> tuple[int, int | None] | None:
        """Sizes of the source's vocabulary and the target's, which is None if they are one; None if none is known."""
        if not self.is_fitted:
            return None
        source, target = self.learned
        return len(source), None if self.learned.is_joint else len(target)

    def target_texts(self, tokens: Iterable[Sequence[int]]) -> list[str]:
        """Return the text that each sequence of target tokens stands for, on one line."""
        return self.learned.texts(tokens)

    @property
    def target_language(self) -> str | None:
        """The code of the language of the translations; None if nothing says it."""
        if self.own_target_language or self.corpus.dataset is not None:
            return self.own_target_language or self.target
        file = self.target or self.hparams["test_target"] or ""
        ending = Path(file.removesuffix(".gz")).suffix.removeprefix(".").lower()
        return ending if len(ending) == 2 and ending.isalpha() else None

    @property
    def references(self) -> list[str]:
        """Translations that were read, for testing if there are any, else for validation."""
        return next((self.part(part).target for part in ("test", "val", "train") if part in self._parts), [])

    @property
    def compares_in_lowercase(self) -> bool:
        """Whether the figure that is published for the data is of lower-cased, tokenised text."""
        return isinstance(known := self.corpus.dataset, ParallelSet) and known.published_in_lowercase

    def token_names(self, tokens: Tensor, target: bool = False) -> list[list[str]]:
        """Return each token of sentences, or of their translations, as a person would read it, without padding.

        Args:
            tokens: (b, n), padded.
            target: Whether they are translations.
        """
        return [self.learned[target].names([token for token in row if token != PADDING]) for row in tokens.tolist()]
