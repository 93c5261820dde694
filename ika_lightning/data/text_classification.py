"""Data of the text classification task: texts of one of several classes."""

from typing import Literal

import torch
from torch import Tensor

from ika_lightning.data.base import DataModule, plain
from ika_lightning.data.checks import check_least, check_source, check_unchanged
from ika_lightning.data.datasets import TextSet, find_dataset
from ika_lightning.data.labelled import Column, Labelled
from ika_lightning.data.loader import LengthSampler, Loader, update_shares
from ika_lightning.data.texts import TextBatch, TextCorpus, TextEncoder, Tokens
from ika_lightning.data.tokenizer import Tokenizer

__all__ = ["TextBatch", "TextClassificationData"]


class TextClassificationData(DataModule[Labelled, TextEncoder, Tokens, TextBatch]):
    """Texts and their classes, split, cut into tokens, and served in batches of similar length.

    The texts are a data set known by name, or an own file. Official splits are kept; where there is none, rows are
    dealt out by class with the seed. The vocabulary is learned on training texts alone. It travels in the checkpoint
    with the classes: testing on ``test_path`` and predicting need no training texts.

    Texts for validation and testing that are in training, too, are counted in a warning; so are texts that are cut
    at ``max_length``, and texts without any token, which are read as one unknown token.

    Args:
        name: A known data set: ``languages`` (which of 24 languages is this?) ships with the package; others, such as
            ``trec``, ``sst2`` or ``mr``, are looked for under ``root`` and else downloaded. ``python -m ika_lightning
            datasets`` lists all.
        path: An own ``.tsv``, ``.csv`` or ``.jsonl`` (``.gz`` too), instead of ``name``.
        label: The column of labels in own files: its name, or its position, from 1, if there is no header. By default
            one with a usual name, such as ``label`` or ``class``, or the first of a file without a header.
        text: The column of texts; by default one with a usual name, such as ``text`` or ``review``, or the second.
        separator: What separates cells of own files, one character; ``"auto"`` looks for it, and says what it found.
            None is a comma in a ``.csv`` and a tab in a ``.tsv``.
        val_path: An own file for validation; then no rows are held out for it.
        test_path: An own file for testing; then no rows are held out for it.
        predict_path: New texts, one a line, or the column of texts of a ``.csv``, ``.tsv`` or ``.jsonl``; ``-`` for
            standard input.
        val_fraction: Share of the rows of the training file for validation, of each class, at least one row. 0 for
            none.
        test_fraction: Share of the rows for testing, in the same way.
        fold: Test on this one of the ``folds`` equal parts instead of on ``test_fraction``, from 0.
        folds: How many parts there are for ``fold``.
        pretrained: A folder of a pretrained encoder, or its name on Hugging Face's hub, whose tokenizer takes the place
            of a vocabulary that is learned. On the command line, ``--model.pretrained`` says it for model and data.
        unit: A vocabulary of whole words (``"word"``) or of parts of words (``"subword"``).
        vocab_size: Most tokens in the vocabulary.
        min_count: How often a token has to occur in training to be in the vocabulary.
        lowercase: Fold case.
        max_length: Most tokens of a text, with those that the tokenizer of an encoder puts around it; what comes after
            is cut off.
        batch_size: Texts in a batch.
        root: Folder of the benchmarks; by default ``IKA_DATA``, else the user's cache folder.
        seed: Seed of splits and batches, 0 or more.

    Raises:
        ValueError: If the arguments contradict one another.

    Example:
        >>> data = TextClassificationData("languages", unit="subword", vocab_size=1000)
        >>> data.setup("fit")
        >>> len(data.classes), data.vocab_size
        (24, 1000)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.tokens.shape == (64, batch.tokens.size(1)), tuple(batch.label.shape)
        (True, (64,))
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        path: str | None = None,
        label: Column | None = None,
        text: Column | None = None,
        separator: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        predict_path: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        fold: int | None = None,
        folds: int = 10,
        pretrained: str | None = None,
        unit: Literal["word", "subword"] = "word",
        vocab_size: int = 30_000,
        min_count: int = 1,
        lowercase: bool = True,
        max_length: int = 256,
        batch_size: int = 64,
        root: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        path, val_path, test_path, predict_path = plain(path, val_path, test_path, predict_path)
        root, pretrained = plain(root, pretrained)
        self.save_hyperparameters()
        self.test_path, self.predict_path, self.pretrained = test_path, predict_path, pretrained
        self.unit, self.batch_size, self.seed = unit, batch_size, seed
        known = None if name is None else find_dataset(name, TextSet, "--data.path FILE")
        check_source(TextSet, "--data.path FILE", name, path, test_path, predict_path)
        check_least(batch_size=(batch_size, 1))
        if pretrained is not None:
            learned = ("unit", "vocab_size", "min_count", "lowercase")
            check_unchanged(TextClassificationData, self.hparams, learned, "pretrained brings a vocabulary of its own")
        self.corpus = TextCorpus(
            dataset=known,
            path=path,
            root=root,
            columns=(label, text),
            separator=separator,
            files={part: file for part, file in (("val", val_path), ("test", test_path)) if file is not None},
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            fold=fold,
            folds=folds,
            pretrained=pretrained,
            unit=unit,
            vocab_size=vocab_size,
            min_count=min_count,
            lowercase=lowercase,
            max_length=max_length,
            seed=seed,
        )

    def loader(self, part: str) -> Loader[TextBatch]:
        """Batches of texts of similar length; in evaluation, from short to long."""
        texts = self.encoded(part)
        trains = part == "train"
        dealt = update_shares(self, training=trains)
        sampler = LengthSampler(texts.lengths, batch_size=self.batch_size, shuffle=trains, seed=self.seed, **dealt)
        return Loader(sampler, texts.take)

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary.

        Raises:
            ValueError: If it is neither learned nor loaded yet.
        """
        return self.learned.tokenizer

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, with those for padding and the unknown."""
        return len(self.tokenizer)

    @property
    def classes(self) -> list[str]:
        """The classes, in the order of their numbers."""
        return list(self.learned.classes)

    @property
    def class_counts(self) -> Tensor:
        """Training texts of each class, (c,) int64."""
        return torch.bincount(self.encoded("train").labels, minlength=len(self.classes))
