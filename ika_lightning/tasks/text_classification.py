"""Text classification: a class for each text, by attention over its words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from ika_lightning.attention import MIKAN
from ika_lightning.data import TextClassificationData
from ika_lightning.data.text_classification import TextBatch
from ika_lightning.data.vectors import read_vectors
from ika_lightning.models import AttentionFactory, TextClassifier
from ika_lightning.models.text import Pooling
from ika_lightning.pictures.results import draw_confusion
from ika_lightning.tasks.base import Task, find_layer

# What only data and vectors know; it is written to the hyper-parameters, so that a checkpoint is enough to build the
# model.
_FROM_DATA = ("num_tokens", "classes", "embed_dim")


class TextClassification(Task):
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
        num_tokens: Number of tokens. This and the classes are taken from the data.
        classes: Names of the classes.

    Raises:
        ValueError: If label_smoothing is not in [0, 1), or a class weight is not positive.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from ika_lightning.data import TextClassificationData
        >>> trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False)
        >>> data = TextClassificationData("languages", unit="subword", vocab_size=500)
        >>> trainer.fit(TextClassification(MIKAN, width=16, depth=1, num_heads=2), data)
    """

    net: TextClassifier | None
    weights: Tensor | None

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
        label_smoothing: float = 0.0,
        kl_weight: float = 0.01,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
        num_tokens: int | None = None,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler, kl_weight, compile)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be at least 0 and less than 1, got {label_smoothing}")
        if isinstance(class_weights, list) and not all(weight > 0.0 for weight in class_weights):
            raise ValueError(f"class_weights must all be positive, got {class_weights}")
        self.save_hyperparameters_with_attention("attention")
        self.attention = find_layer(attention)
        self.vectors, self.class_weights, self.label_smoothing = vectors, class_weights, label_smoothing
        self.register_buffer("weights", None, persistent=False)
        self._confusion: Tensor | None = None  # of the last validation
        self.train_loss = MeanMetric()

    def configure_model(self) -> None:
        """Build the network for the data; without data (in prediction) the checkpoint says how."""
        if self.net is not None:
            return
        data = self.find_data(TextClassificationData)
        if data is not None and data.has_training_data:
            self.hparams.update(num_tokens=data.vocab_size, classes=data.classes)
            if self.trainer.training:
                self.weights = self._weigh_classes(data)
                if self.vectors is not None:
                    self._start_from_vectors(data)
                    return
        if self.hparams["num_tokens"] is not None:
            self._build()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network as the checkpoint's was."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if any(saved.get(name) is None for name in ("num_tokens", "classes")):
            raise ValueError("the checkpoint is not one of TextClassification: it does not say num_tokens and classes")
        sizes = {name: saved[name] for name in _FROM_DATA}
        # a training that goes on takes the vocabulary of the checkpoint, too
        if self.net is None or any(self.hparams[name] != size for name, size in sizes.items()):
            self.hparams.update(sizes)
            self._build()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the classes: tokens (b, n), padded with 0, -> (b, c)."""
        assert self.net is not None
        logits: Tensor = self.net(tokens)
        return logits

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = F.cross_entropy(
            self(batch.tokens), batch.label, weight=self.weights, label_smoothing=self.label_smoothing
        )
        samples = len(batch.label) if self.weights is None else self.weights[batch.label].sum()
        self.train_loss.update(loss.detach(), weight=samples)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        return self.objective(loss, samples, inputs=len(batch.label))

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Measure a batch of validation texts."""
        self._measure(self.val_metrics, batch)

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Measure a batch of test texts."""
        self._measure(self.test_metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured, and put the confusion matrix into TensorBoard."""
        confusion = self._confusion = self._log_metrics("val", self.val_metrics)
        if isinstance(self.logger, TensorBoardLogger) and not self.trainer.sanity_checking:
            table = describe_confusion(confusion, self.hparams["classes"])
            self.logger.experiment.add_text("val/confusion", table, self.global_step - 1)

    def on_test_epoch_end(self) -> None:
        """Log what was measured, and print the confusion matrix."""
        confusion = self._log_metrics("test", self.test_metrics)
        if self.trainer.test_loop.verbose:
            self.print(describe_confusion(confusion, self.hparams["classes"]))

    def predict_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Return the probabilities of the classes, (b, c)."""
        return self(batch.tokens).softmax(-1)

    def pictures(self) -> dict[str, Callable[[], Any]]:
        """Return what can be drawn of the last validation."""
        if self._confusion is None:
            return {}
        return {"results/confusion": partial(draw_confusion, self._confusion.cpu(), self.hparams["classes"])}

    def attention_names(self, batch: TextBatch, layer: str) -> tuple[list[list[str]], list[list[str]]] | None:
        """Name what attends and what is attended to: the tokens of each text."""
        data = self.find_data(TextClassificationData)
        if data is None:
            return None
        first = ["<cls>"] if self.hparams["pooling"] == "cls" else []
        names = [first + data.tokenizer.names([token for token in text if token]) for text in batch.tokens.tolist()]
        return names, names

    def _build(self) -> None:
        sizes = self.hparams
        self.net = TextClassifier(
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
        self.net.embed.weight.requires_grad_(not sizes["freeze_vectors"])
        self.val_metrics, self.test_metrics = (_metrics(len(sizes["classes"])) for _ in range(2))

    def _start_from_vectors(self, data: TextClassificationData) -> None:
        """Build the network with word vectors of the file."""
        assert self.vectors is not None
        if data.unit != "word":
            raise ValueError(f"vectors are of words, not of a vocabulary with unit={data.unit!r}; use --data.unit word")
        words = data.tokenizer.words
        found, vectors = read_vectors(self.vectors, words)
        width = vectors.size(1)
        if self.hparams["embed_dim"] not in (None, width):
            raise ValueError(
                f"{self.vectors} has {width} numbers a word, embed_dim={self.hparams['embed_dim']}; leave it out"
            )
        self.hparams["embed_dim"] = width
        self._build()
        assert self.net is not None
        with torch.no_grad():
            self.net.embed.weight[found] = vectors
        self.print(f"{self.vectors} has {len(found)} of the {len(words)} words ({len(found) / len(words):.1%})")

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

    def _measure(self, metrics: MetricCollection, batch: TextBatch) -> None:
        if not len(batch.label):  # the share of one process may have none
            return
        logits = self(batch.tokens)
        metrics["loss"].update(F.cross_entropy(logits, batch.label, reduction="none"))
        for name in ("accuracy", "f1", "confusion"):
            metrics[name].update(logits.argmax(-1), batch.label)

    def _log_metrics(self, stage: str, metrics: MetricCollection) -> Tensor:
        """Log what was measured, but the confusion matrix, which is returned."""
        measured = metrics.compute()
        metrics.reset()
        confusion: Tensor = measured.pop("confusion")
        for name, value in measured.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "accuracy")
        return confusion


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


def _metrics(num_classes: int) -> MetricCollection:
    metrics = {
        "loss": MeanMetric(),
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "f1": MulticlassF1Score(num_classes, average="macro"),
        "confusion": MulticlassConfusionMatrix(num_classes),
    }
    return MetricCollection(metrics, compute_groups=False)  # type: ignore[arg-type]
