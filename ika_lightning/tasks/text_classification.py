"""Text classification: a class for each text, by attention over its words."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from ika_lightning.attention import MIKAN
from ika_lightning.data import TextClassificationData
from ika_lightning.data.messages import quoted
from ika_lightning.data.text_classification import TextBatch
from ika_lightning.data.tokenizer import UNKNOWN
from ika_lightning.data.vectors import read_vectors
from ika_lightning.models import AttentionFactory, TextClassifier
from ika_lightning.models.inference import TextProbabilities
from ika_lightning.models.text import Pooling
from ika_lightning.pictures.results import draw_confusion
from ika_lightning.protocols import Figures, Program
from ika_lightning.tasks.base import UNSAVED, Loss, Stage, Task
from ika_lightning.tasks.layers import find_layer
from ika_lightning.tasks.recipe import Recipe
from ika_lightning.tasks.schedule import WarmupCosine
from ika_lightning.tasks.start import Start, carry_rows, read_words


class TextClassification(Task[TextClassificationData]):
    r"""Tell the class of a text.

    The loss is the cross entropy, with ``label_smoothing`` and ``class_weights``, plus ``kl_weight`` times the
    divergence of the attention's spectra from their priors. ``val/loss`` and ``test/loss`` are the cross entropy alone.
    ``accuracy`` is the share of texts that are right, ``f1`` the plain mean of the classes' F1. The confusion matrix
    is printed after a test, and a text of each validation in TensorBoard.

    A prediction does not depend on what is in the batch with it, and evaluation gives the same answer twice.

    Args:
        attention: The attention layer, called with (width, num_heads).
        width: Width of the network.
        depth: Number of encoder layers.
        num_heads: Number of attention heads; it must divide the width.
        ffn_width: Hidden width of the feed-forward networks; 4 times the width if None.
        embed_dim: Width of word vectors; that of ``vectors``, else of the network, if None.
        window: How many neighbouring words the first layer sees at once, an odd number.
        pooling: How a text becomes one vector: ``"mean"``, ``"max"``, ``"cls"`` or ``"attention"``.
        dropout: Probability with which an output of attention or network is dropped in training.
        embed_dropout: Probability with which a number of a word vector, or of the text's vector, is dropped.
        word_dropout: Probability with which a whole word is dropped.
        vectors: A text file of word vectors, as GloVe and word2vec write them, to start from; how many words of the
            vocabulary it has is printed. Other words start at random.
        freeze_vectors: Leave all word vectors as they start.
        class_weights: Weight of each class in the training loss, in the order of the classes, or ``"balanced"``: the
            rarer in training, the heavier, with a mean of 1 over the training texts.
        label_smoothing: Share of the target's probability that all classes get alike.
        kl_weight: Weight of the attention's regulariser.
        optimizer: Called with the parameters.
        scheduler: Called with the optimizer and stepped each epoch; None keeps the learning rate.
        compile: Compile the network with ``torch.compile`` for training, which takes a C++ compiler.
        init_from: A checkpoint whose weights a new training starts from. The vocabulary is that of the new texts; words
            that both know keep their vectors, and for other classes the classifier starts anew.
        num_tokens: Number of tokens. This and the classes are taken from the data.
        classes: Names of the classes.

    Raises:
        ValueError: If label_smoothing is not in [0, 1), a class weight is not positive, or both vectors and init_from
            are given.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from ika_lightning.data import TextClassificationData
        >>> trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False)
        >>> data = TextClassificationData("languages", unit="subword", vocab_size=500)
        >>> trainer.fit(TextClassification(MIKAN, width=16, depth=1, num_heads=2), data)
    """

    net: TextClassifier
    data_class = TextClassificationData
    # the width of word vectors is that of their file
    sizes = ("num_tokens", "classes", "embed_dim")
    optional_sizes = ("embed_dim",)
    encoding = ("tokenizer", "classes")
    headline = "accuracy"
    recipe = Recipe(updates=700)

    def __init__(
        self,
        attention: AttentionFactory = MIKAN,
        width: int = 64,
        depth: int = 1,
        num_heads: int = 4,
        ffn_width: int | None = None,
        embed_dim: int | None = None,
        window: int = 3,
        pooling: Pooling = "attention",
        dropout: float = 0.2,
        embed_dropout: float = 0.5,
        word_dropout: float = 0.0,
        vectors: str | None = None,
        freeze_vectors: bool = False,
        class_weights: Literal["balanced"] | list[float] | None = None,
        label_smoothing: float = 0.1,
        kl_weight: float = 0.01,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=0.002, weight_decay=0.1),
        scheduler: LRSchedulerCallable | None = WarmupCosine,
        compile: bool = False,
        init_from: str | None = None,
        num_tokens: int | None = None,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler, kl_weight, compile, init_from)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be at least 0 and less than 1, got {label_smoothing}")
        if isinstance(class_weights, list) and not all(weight > 0.0 for weight in class_weights):
            raise ValueError(f"class_weights must all be positive, got {class_weights}")
        if vectors is not None and init_from is not None:
            raise ValueError(f"vectors={vectors!r} and init_from={init_from!r} both say how words start; leave out one")
        self.save_hyperparameters(ignore=UNSAVED)
        self.save_arguments("attention")
        self.attention = find_layer(attention)
        self.vectors, self.class_weights, self.label_smoothing = vectors, class_weights, label_smoothing
        # of the classes, once a training has begun; no buffer, which averages of weights would have to know before
        self.weights: Tensor | None = None
        # rows of the vocabulary, and their vectors, for a network that is about to be built
        self._vectors: tuple[Tensor, Tensor] | None = None
        # of the last validation
        self._confusion: Tensor | None = None

    def read_sizes(self, data: TextClassificationData) -> dict[str, Any] | None:
        """Return vocabulary and classes of the training texts, and the width of word vectors that a file brings."""
        if not data.has_training_data:
            return None
        sizes: dict[str, Any] = {"num_tokens": data.vocab_size, "classes": data.classes}
        if self.vectors is not None and self.trainer.training and not self.is_built:
            self._vectors = self._read_vectors(self.vectors, data)
            sizes["embed_dim"] = self._vectors[1].size(1)
        return {"embed_dim": self.hparams["embed_dim"], **sizes}

    def build(self) -> TextClassifier:
        """Make the network, with the word vectors that were read for it."""
        sizes = self.hparams
        net = TextClassifier(
            sizes["num_tokens"],
            len(sizes["classes"]),
            width=sizes["width"],
            depth=sizes["depth"],
            num_heads=sizes["num_heads"],
            attention=self.attention,
            embed_dim=sizes["embed_dim"],
            window=sizes["window"],
            pooling=sizes["pooling"],
            ffn_width=sizes["ffn_width"],
            dropout=sizes["dropout"],
            embed_dropout=sizes["embed_dropout"],
            word_dropout=sizes["word_dropout"],
        )
        net.embed.weight.requires_grad_(not sizes["freeze_vectors"])
        if self._vectors is not None:
            found, vectors = self._vectors
            with torch.no_grad():
                net.embed.weight[found] = vectors.to(net.embed.weight)
            self._vectors = None
        return net

    def adapt(self, start: Start, data: TextClassificationData) -> tuple[dict[str, Tensor], str]:
        """Keep the vectors of words that both vocabularies have, and the classifier if the classes are the same."""
        known = read_words(start, "tokenizer")
        words, weights = data.tokenizer.words, dict(start.weights)
        if weights["embed.weight"].shape[1:] == self.net.embed.weight.shape[1:]:
            weights["embed.weight"], shared = carry_rows(weights["embed.weight"], known, self.net.embed.weight, words)
            note = f"{shared} of the {len(words)} tokens of the new vocabulary keep their vectors"
        if start.hparams["classes"] != data.classes:
            weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
            note += f", and the classifier starts anew, for the classes {quoted(data.classes)}"
        return weights, note

    def on_train_start(self) -> None:
        """Weigh the classes of the training texts, whose order a checkpoint may have said."""
        assert self.data is not None
        weights = self._weigh_classes(self.data)
        self.weights = None if weights is None else weights.to(self.device, self.net.head.weight.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the classes: tokens (b, n), padded with 0, -> (b, c)."""
        logits: Tensor = self.net(tokens)
        return logits

    def loss(self, batch: TextBatch) -> Loss:
        """Return the loss of a batch, whose samples weigh what their classes do."""
        loss = F.cross_entropy(
            self(batch.tokens), batch.label, weight=self.weights, label_smoothing=self.label_smoothing
        )
        return Loss(loss, len(batch.label) if self.weights is None else self.weights[batch.label].sum())

    def make_metrics(self) -> dict[str, Metric]:
        """Make what is measured of texts."""
        num_classes = len(self.hparams["classes"])
        return {
            "loss": MeanMetric(),
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "f1": MulticlassF1Score(num_classes, average="macro"),
            "confusion": MulticlassConfusionMatrix(num_classes),
        }

    def measure(self, batch: TextBatch, metrics: MetricCollection, stage: Stage) -> None:
        """Measure a batch of texts."""
        # the share of one process may have none
        if not len(batch.label):
            return
        logits = self(batch.tokens)
        metrics["loss"].update(F.cross_entropy(logits, batch.label, reduction="none"))
        for name in ("accuracy", "f1", "confusion"):
            metrics[name].update(logits.argmax(-1), batch.label)

    def show(self, stage: Stage, measured: Mapping[str, Tensor]) -> None:
        """Put the confusion matrix of validation into TensorBoard, and print that of a test."""
        confusion = measured["confusion"]
        table = describe_confusion(confusion, self.hparams["classes"])
        if stage == "val":
            self._confusion = confusion
            if isinstance(self.logger, TensorBoardLogger) and not self.trainer.sanity_checking:
                self.logger.experiment.add_text("val/confusion", table, self.global_step - 1)
        elif self.trainer.test_loop.verbose:
            self.print(table)

    def predict_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Return the probabilities of the classes, (b, c)."""
        return self(batch.tokens).softmax(-1)

    def export_program(self, data: TextClassificationData) -> Program:
        """Return what tells the probabilities of the classes."""
        return Program(
            TextProbabilities(self.net),
            example={"tokens": torch.full((7, 11), UNKNOWN).tril(3)},
            axes={"tokens": {0: "texts", 1: "tokens"}, "logits": {0: "texts"}, "probabilities": {0: "texts"}},
            meaning={
                "tokens": "the ids of the tokens of each text, at least one, then padding",
                "logits": "a score of each class, in their order",
                "probabilities": "the probability of each class, in their order",
            },
            encoding=data.learned.describe(),
        )

    def pictures(self) -> Figures:
        """Return what can be drawn of the last validation."""
        if self._confusion is None:
            return {}
        return {"results/confusion": partial(draw_confusion, self._confusion.cpu(), self.hparams["classes"])}

    def attention_names(self, batch: TextBatch, layer: str) -> tuple[list[list[str]], list[list[str]]] | None:
        """Name what attends and what is attended to: the tokens of each text."""
        if self.data is None:
            return None
        tokenizer, first = self.data.tokenizer, ["<cls>"] if self.hparams["pooling"] == "cls" else []
        names = [first + tokenizer.names([token for token in text if token]) for text in batch.tokens.tolist()]
        return names, names

    def _read_vectors(self, file: str, data: TextClassificationData) -> tuple[Tensor, Tensor]:
        """Read vectors of words of the vocabulary, and which these are."""
        if data.unit != "word":
            raise ValueError(f"vectors are of words, not of a vocabulary with unit={data.unit!r}; use --data.unit word")
        words = data.tokenizer.words
        found, vectors = read_vectors(file, words)
        width = vectors.size(1)
        if self.hparams["embed_dim"] not in (None, width):
            raise ValueError(f"{file} has {width} numbers a word, embed_dim={self.hparams['embed_dim']}; leave it out")
        self.print(f"{file} has {len(found)} of the {len(words)} words ({len(found) / len(words):.1%})")
        return found, vectors

    def _weigh_classes(self, data: TextClassificationData) -> Tensor | None:
        if self.class_weights is None:
            return None
        counts = data.class_counts
        if self.class_weights == "balanced":
            return counts.sum() / (len(counts) * counts)
        if len(self.class_weights) != len(counts):
            raise ValueError(
                f"class_weights must be one for each of the {len(counts)} classes, {data.classes}, got "
                f"{self.class_weights}"
            )
        return torch.tensor(self.class_weights)


def describe_confusion(counts: Tensor, classes: list[str]) -> str:
    r"""Write a confusion matrix as a table in Markdown; of more than 12 classes, the commonest confusions alone.

    Args:
        counts: How many texts of class i were taken for class j.
        classes: Names of the classes.

    Shapes:
        counts (c, c).

    Example:
        >>> print(describe_confusion(torch.tensor([[5, 1], [0, 7]]), ["bad", "good"]))
        | true \ predicted | bad | good |
        | --- | --- | --- |
        | bad | 5 | 1 |
        | good | 0 | 7 |
    """
    if len(classes) <= 12:
        rows = [["true \\ predicted", *classes], ["---"] * (len(classes) + 1)]
        rows += [[name, *map(str, row)] for name, row in zip(classes, counts.tolist(), strict=True)]
    else:
        wrong = counts.clone().fill_diagonal_(0)
        rows = [["true", "predicted", "texts"], ["---"] * 3]
        for place in wrong.flatten().argsort(descending=True, stable=True)[:12].tolist():
            true, predicted = divmod(place, len(classes))
            if wrong[true, predicted]:
                rows.append([classes[true], classes[predicted], str(wrong[true, predicted].item())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
