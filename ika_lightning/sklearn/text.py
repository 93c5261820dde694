"""Attention over the words of texts as an estimator of scikit-learn."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_consistent_length, column_or_1d

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect
from ika_lightning.data import TextClassificationData
from ika_lightning.data.checks import check_choices
from ika_lightning.data.labelled import Labelled
from ika_lightning.data.texts import TextCorpus, in_order
from ika_lightning.models.text import Pooling
from ika_lightning.sklearn.base import KernelAttentionEstimator, in_memory
from ika_lightning.tasks import TextClassification

__all__ = ["KernelAttentionTextClassifier"]

_LAYERS: dict[str, Any] = {layer.__name__: layer for layer in (IKANDirect, IKAN, MIKAN, RBF, DotProduct)}


@dataclass(frozen=True, kw_only=True)
class _Texts(TextCorpus):
    """Labelled texts in memory."""

    rows: Labelled

    def read_labelled(self, path: str, classes: Collection[str] = ()) -> Labelled:
        return self.rows


class KernelAttentionTextClassifier(
    ClassifierMixin, KernelAttentionEstimator[TextClassification, TextClassificationData]
):
    r"""Classify texts by attention over their words, with a kernel that is learned.

    The same task, data and training as ``python -m ika_lightning fit --model TextClassification``: what is not said
    here is what stands there. Vocabulary and word vectors are learned on the texts of ``fit``; a share of them, of each
    class, is for validation, and chooses when in the training the weights were best.

    Args:
        attention: The attention layer: ``"MIKAN"``, ``"IKAN"``, ``"IKANDirect"``, ``"RBF"`` or ``"DotProduct"``; or a
            class of layers, or a ``functools.partial`` of one.
        width: Width of the network.
        depth: Number of layers.
        num_heads: Number of attention heads; it must divide the width.
        window: How many neighbouring words the first layer sees at once, an odd number.
        pooling: How a text becomes one vector: ``"mean"``, ``"max"``, ``"cls"`` or ``"attention"``.
        dropout: Probability with which an output of attention or network is dropped in training.
        embed_dropout: Probability with which a number of a word vector, or of the text's vector, is dropped.
        label_smoothing: Share of the target's probability that all classes get alike.
        class_weight: Weights of classes in the training loss: ``"balanced"``, the rarer the heavier; a weight for each
            class; or None for equal ones.
        learning_rate: The highest learning rate.
        weight_decay: That of AdamW.
        updates: How many updates the training has.
        max_time: Seconds that it has instead, if it is given.
        batch_size: Texts in a training batch.
        unit: A vocabulary of whole words (``"word"``) or of parts of words (``"subword"``).
        vocab_size: Most tokens in the vocabulary.
        min_count: How often a token has to occur to be in it.
        lowercase: Fold case.
        max_length: Most tokens of a text; what comes after is cut off, which a warning counts.
        validation_fraction: Share of the texts for validation, of each class; 0 takes the weights of the end.
        random_state: Seed of everything that is drawn: a number, a ``numpy.random.RandomState``, or None.
        verbose: 1 shows a progress bar and what Lightning says.

    Attributes:
        classes_: The classes, ascending.
        checkpoint_: The trained model as the bytes of a checkpoint, which ``save`` writes.

    Raises:
        ValueError: In ``fit``, if an argument is out of its range or the data does not fit: the message says which.
        TypeError: If a text is no string.

    Example:
        >>> texts = [f"{word} film, part {number}" for number in range(10) for word in ("a lovely", "a dull")]
        >>> model = KernelAttentionTextClassifier(width=16, num_heads=2, updates=5, random_state=0)
        >>> model.fit(texts, ["good", "bad"] * 10).predict_proba(["so dull"]).shape
        (1, 2)
    """

    task = TextClassification
    data_class = TextClassificationData
    layers = MappingProxyType(_LAYERS)

    def __init__(
        self,
        attention: Any = "MIKAN",
        *,
        width: int = 64,
        depth: int = 1,
        num_heads: int = 4,
        window: int = 3,
        pooling: Pooling = "attention",
        dropout: float = 0.2,
        embed_dropout: float = 0.5,
        label_smoothing: float = 0.1,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
        learning_rate: float = 0.002,
        weight_decay: float = 0.1,
        updates: int = 700,
        max_time: float | None = None,
        batch_size: int = 64,
        unit: Literal["word", "subword"] = "word",
        vocab_size: int = 30_000,
        min_count: int = 1,
        lowercase: bool = True,
        max_length: int = 256,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        # as scikit-learn asks: what is given is kept, and looked at in fit
        self.attention = attention
        self.width = width
        self.depth = depth
        self.num_heads = num_heads
        self.window = window
        self.pooling = pooling
        self.dropout = dropout
        self.embed_dropout = embed_dropout
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.updates = updates
        self.max_time = max_time
        self.batch_size = batch_size
        self.unit = unit
        self.vocab_size = vocab_size
        self.min_count = min_count
        self.lowercase = lowercase
        self.max_length = max_length
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.verbose = verbose
        self._model = None

    def fit(self, X: Any, y: Any) -> Self:
        """Train on texts and their classes.

        Args:
            X: The texts, a sequence of strings.
            y: Their classes, (r,): strings, numbers or truth values.
        """
        self._check(updates=1, width=1, depth=1, num_heads=1, batch_size=1, vocab_size=1, min_count=1, max_length=1)
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if isinstance(self.class_weight, str):
            check_choices(class_weight=(self.class_weight, ("balanced",)))
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        # of a list, an array of strings would hide what is none
        listed = np.array([*y, None], dtype=object)[:-1] if isinstance(y, list | tuple) else y
        texts, labels = _texts(X), column_or_1d(listed, warn=True)
        check_consistent_length(texts, labels)
        if (missing := np.flatnonzero(pd.isna(labels))).size:
            raise ValueError(f"y[{missing[0]}] is missing; leave out texts without a class")
        if len(kinds := {type(label).__name__ for label in labels.tolist()}) > 1:
            raise ValueError(f"y must have classes of one type, got {' and '.join(sorted(kinds))}; make them strings")
        if isinstance(y, list | tuple):
            labels = np.asarray(labels.tolist())
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        self._names = _names(self.classes_)
        seed = self._seed()
        rows = Labelled([self._names[number] for number in numbers], texts, [*range(len(texts))], "X")
        self._train(self._data(rows, seed), seed)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict the probabilities of the classes.

        Args:
            X: The texts, a sequence of strings.

        Returns:
            A row for each text and a column for each of ``classes_``, (r, c) float32.

        Raises:
            sklearn.exceptions.NotFittedError: Before :meth:`fit`.
            TypeError: If a text is no string.
        """
        model, data = self._fitted()
        texts = _texts(X)
        tokens = data.corpus.encode("predict", Labelled([], texts, [], "X"), data.learned)
        probabilities = torch.empty(len(texts), len(self.classes_))
        # those of similar length together, as padding costs time
        order = torch.from_numpy(np.argsort(tokens.lengths, kind="stable"))
        with torch.inference_mode():
            for part in order.split(self.batch_size):
                probabilities[part] = model.predict_step(tokens.take(part), 0)
        columns = [data.classes.index(name) for name in self._names]
        return probabilities[:, columns].numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Predict classes.

        Args:
            X: The texts, a sequence of strings.

        Returns:
            The most probable of ``classes_`` for each text, (r,).

        Raises:
            sklearn.exceptions.NotFittedError: Before :meth:`fit`.
            TypeError: If a text is no string.
        """
        most = self.predict_proba(X).argmax(1)
        return self.classes_[most]

    def __sklearn_tags__(self) -> Any:
        """Say that texts are what it takes."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags

    def _data(self, rows: Labelled, seed: int) -> TextClassificationData:
        self._check_held_out(len(rows.texts), least=len(self.classes_))
        data = TextClassificationData(
            path="X",
            val_fraction=self.validation_fraction,
            test_fraction=0.0,
            unit=self.unit,
            vocab_size=self.vocab_size,
            min_count=self.min_count,
            lowercase=self.lowercase,
            max_length=self.max_length,
            batch_size=self.batch_size,
            seed=seed,
        )
        data.corpus = in_memory(_Texts, data.corpus, rows=rows)
        return data

    def _make_task(self, layer: Any) -> TextClassification:
        return TextClassification(
            layer,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            window=self.window,
            pooling=self.pooling,
            dropout=self.dropout,
            embed_dropout=self.embed_dropout,
            class_weights=self._class_weights(),
            label_smoothing=self.label_smoothing,
            optimizer=partial(torch.optim.AdamW, lr=self.learning_rate, weight_decay=self.weight_decay),
        )

    def _class_weights(self) -> Literal["balanced"] | list[float] | None:
        """The weights of the classes in the order that the task has them in."""
        if self.class_weight is None or isinstance(self.class_weight, str):
            return self.class_weight
        weights = dict(self.class_weight)
        missing = [name for name in self.classes_.tolist() if name not in weights]
        if missing or len(weights) != len(self.classes_):
            raise ValueError(
                f"class_weight must have a weight for each of the classes {self.classes_.tolist()}, got {weights}"
            )
        by_name = dict(zip(self._names, (weights[name] for name in self.classes_.tolist()), strict=True))
        return [float(by_name[name]) for name in in_order(self._names)]


def _texts(given: Any) -> list[str]:
    """Texts as a list of strings.

    Raises:
        ValueError: If it is a single text, a table, or nothing.
        TypeError: If one of them is no string.
    """
    if isinstance(given, str | bytes):
        raise ValueError(f"X must be a sequence of texts, got one text; give [{given[:20]!r}]")
    if getattr(given, "ndim", 1) != 1:
        raise ValueError(f"X must be a sequence of texts, (r,), got shape {given.shape}; give the column of texts")
    texts = list(given)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"X must be a sequence of texts, but X[{place}] is {text!r}, of {type(text).__name__}")
    if not texts:
        raise ValueError("X has no text; give one or more")
    return [str(text) for text in texts]


def _names(classes: np.ndarray) -> list[str]:
    """The names of classes, as files have them.

    Raises:
        ValueError: If one is empty, or two have the same name.
    """
    names = [str(name) for name in classes.tolist()]
    if len({*names}) < len(names) or not all(names):
        raise ValueError(f"y must have classes with a name each, none empty and no two alike, got {classes.tolist()}")
    return names
