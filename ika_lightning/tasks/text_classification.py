"""Text classification: a class for each text, by attention over its words."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from ika_lightning.attention import MIKAN
from ika_lightning.attention.parameters import kernel_parameters
from ika_lightning.data import TextClassificationData
from ika_lightning.data.base import plain
from ika_lightning.data.checks import check_unchanged
from ika_lightning.data.messages import quoted
from ika_lightning.data.texts import TextBatch
from ika_lightning.data.tokenizer import UNKNOWN
from ika_lightning.data.vectors import read_vectors
from ika_lightning.hub import check_tokenizer, count_positions, read_config, read_weights
from ika_lightning.models import AttentionFactory, TextClassifier
from ika_lightning.models.inference import TextProbabilities
from ika_lightning.models.text import Pooling
from ika_lightning.pictures.results import draw_confusion
from ika_lightning.protocols import Figures, Program
from ika_lightning.tasks.base import UNSAVED, Loss, Stage, Task
from ika_lightning.tasks.classes import describe_confusion, weigh_classes
from ika_lightning.tasks.groups import optimize_in_groups
from ika_lightning.tasks.layers import find_layer
from ika_lightning.tasks.recipe import Recipe
from ika_lightning.tasks.schedule import WarmupCosine
from ika_lightning.tasks.start import Start, carry_rows, read_words

if TYPE_CHECKING:
    from ika_lightning.models.pretrained import PretrainedClassifier

# How the optimizer trains where nobody says which.
_FROM_NOTHING = partial(torch.optim.AdamW, lr=0.002, weight_decay=0.1)
_FINE_TUNING = partial(torch.optim.AdamW, lr=0.0001, weight_decay=0.01)

# Arguments of a network that starts from nothing, of which an encoder has its own.
_OF_NETWORK = (
    "width",
    "depth",
    "num_heads",
    "ffn_width",
    "embed_dim",
    "window",
    "pooling",
    "dropout",
    "embed_dropout",
    "word_dropout",
    "vectors",
    "freeze_vectors",
)
# And those that make sense with an encoder alone.
_OF_ENCODER = ("frozen_layers", "layer_decay", "encoder")


class TextClassification(Task[TextClassificationData]):
    r"""Tell the class of a text.

    The loss is the cross entropy, with ``label_smoothing`` and ``class_weights``, plus ``kl_weight`` times the
    divergence of the attention's spectra from their priors. ``val/loss`` and ``test/loss`` are the cross entropy alone.
    ``accuracy`` is the share of texts that are right, ``f1`` the plain mean of the classes' F1. The confusion matrix
    is printed after a test, and a text of each validation in TensorBoard.

    A prediction does not depend on what is in the batch with it, and evaluation gives the same answer twice.

    The network starts from nothing; or, with ``pretrained``, from an encoder that was trained on other texts, with its
    tokenizer, the mean over its tokens, and a linear classifier. The core of ``attention`` is put in the place of the
    encoder's own, with all weights as they are (:class:`~ika_lightning.models.pretrained.PretrainedClassifier`): with
    the layers of this package as they are by default, the encoder answers what it did, to rounding, and the kernels
    grow from there; ``DotProduct`` is its own attention. The encoder has what ``width`` to ``freeze_vectors`` say of
    other networks, and they must be left out. The data is given the same ``pretrained``, which the command line does by
    itself. Configuration and tokenizer go into checkpoints, which do without the folder; in Python, a training that
    goes on without it takes model and data from there, by ``load_from_checkpoint``.

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
        pretrained: A folder of a pretrained encoder, as ``save_pretrained`` of ``transformers`` writes it, or its name
            on Hugging Face's hub. Takes the extra ``huggingface``.
        frozen_layers: How many layers of the encoder, from the bottom, stay as they are, with the embeddings below.
        layer_decay: What the learning rate of a layer of the encoder is multiplied with for the layer below it, in
            (0, 1]; the embeddings are the lowest.
        kernel_lr: The learning rate of what attention learns of its kernels, which may have to move much further than
            the weights of an encoder; that of the optimizer if None.
        class_weights: Weight of each class in the training loss, in the order of the classes, or ``"balanced"``: the
            rarer in training, the heavier, with a mean of 1 over the training texts.
        label_smoothing: Share of the target's probability that all classes get alike.
        kl_weight: Weight of the attention's regulariser.
        optimizer: Called with the parameters; None is AdamW, with a learning rate of 0.002 and a weight decay of 0.1,
            or, for an encoder, of 0.0001 and 0.01.
        scheduler: Called with the optimizer and stepped each epoch; None keeps the learning rate.
        compile: Compile the network with ``torch.compile`` for training, which takes a C++ compiler.
        init_from: A checkpoint whose weights a new training starts from. The vocabulary is that of the new texts; words
            that both know keep their vectors, and for other classes the classifier starts anew.
        num_tokens: Number of tokens. This and the classes are taken from the data.
        classes: Names of the classes.
        encoder: The configuration of the encoder, as JSON. It is read from ``pretrained``.

    Raises:
        ValueError: If label_smoothing is not in [0, 1), a class weight or learning rate is not positive, both vectors
            and init_from are given, or arguments of an encoder and of a network that starts from nothing.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from ika_lightning.data import TextClassificationData
        >>> trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False)
        >>> data = TextClassificationData("languages", unit="subword", vocab_size=500)
        >>> trainer.fit(TextClassification(MIKAN, width=16, depth=1, num_heads=2), data)
    """

    net: TextClassifier | PretrainedClassifier
    data_class = TextClassificationData
    # the width of word vectors is that of their file
    sizes = ("num_tokens", "classes", "embed_dim", "encoder")
    optional_sizes = ("embed_dim", "encoder")
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
        pretrained: str | None = None,
        frozen_layers: int = 0,
        layer_decay: float = 1.0,
        kernel_lr: float | None = None,
        class_weights: Literal["balanced"] | list[float] | None = None,
        label_smoothing: float = 0.1,
        kl_weight: float = 0.01,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = WarmupCosine,
        compile: bool = False,
        init_from: str | None = None,
        num_tokens: int | None = None,
        classes: list[str] | None = None,
        encoder: str | None = None,
    ) -> None:
        (pretrained,) = plain(pretrained)
        default = _FROM_NOTHING if pretrained is None else _FINE_TUNING
        super().__init__(optimizer or default, scheduler, kl_weight, compile, init_from)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be at least 0 and less than 1, got {label_smoothing}")
        if isinstance(class_weights, list) and not all(weight > 0.0 for weight in class_weights):
            raise ValueError(f"class_weights must all be positive, got {class_weights}")
        if vectors is not None and init_from is not None:
            raise ValueError(f"vectors={vectors!r} and init_from={init_from!r} both say how words start; leave out one")
        if kernel_lr is not None and not kernel_lr > 0.0:
            raise ValueError(f"kernel_lr must be positive, got {kernel_lr}")
        if not 0.0 < layer_decay <= 1.0:
            raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}")
        self.save_hyperparameters(ignore=UNSAVED)
        if pretrained is None:
            why = "there is no encoder, which --model.pretrained names"
            check_unchanged(TextClassification, self.hparams, _OF_ENCODER, why)
        else:
            why = "pretrained brings an encoder of its own size, pooling and dropout"
            check_unchanged(TextClassification, self.hparams, _OF_NETWORK, why)
        self.save_arguments("attention")
        self.attention = find_layer(attention)
        self.vectors, self.class_weights, self.label_smoothing = vectors, class_weights, label_smoothing
        self.layer_decay, self.kernel_lr = layer_decay, kernel_lr
        # where the encoder is read from, as long as nothing else brings it
        self.pretrained = pretrained
        # of the classes, once a training has begun; no buffer, which averages of weights would have to know before
        self.weights: Tensor | None = None
        # rows of the vocabulary, and their vectors, for a network that is about to be built
        self._vectors: tuple[Tensor, Tensor] | None = None
        # and the weights of its encoder
        self._pretrained: dict[str, Tensor] | None = None
        # of the last validation
        self._confusion: Tensor | None = None

    def read_sizes(self, data: TextClassificationData) -> dict[str, Any] | None:
        """Return vocabulary and classes of the training texts, and what files bring: word vectors, or an encoder."""
        if not data.has_training_data:
            return None
        if data.pretrained != self.hparams["pretrained"]:
            raise ValueError(
                f"the model has pretrained={self.hparams['pretrained']!r} and the data pretrained={data.pretrained!r}; "
                "give both the same, for an encoder knows the tokens of its own tokenizer alone"
            )
        sizes = {name: self.hparams[name] for name in self.sizes}
        sizes |= {"num_tokens": data.vocab_size, "classes": data.classes}
        starts = self.trainer.training and not self.is_built
        if self.vectors is not None and starts:
            self._vectors = self._read_vectors(self.vectors, data)
            sizes["embed_dim"] = self._vectors[1].size(1)
        if self.pretrained is not None and not self.is_built:
            sizes["encoder"] = read_config(self.pretrained)
            self._pretrained = read_weights(self.pretrained) if starts and self.init_from is None else None
        if sizes["encoder"] is not None:
            check_tokenizer(sizes["encoder"], data.tokenizer, data.learned.max_length)
        return sizes

    def build(self) -> TextClassifier | PretrainedClassifier:
        """Make the network, with the word vectors or the weights of an encoder that were read for it."""
        return self._build_from_nothing() if self.hparams["encoder"] is None else self._build_pretrained()

    def _build_pretrained(self) -> PretrainedClassifier:
        from ika_lightning.models.pretrained import PretrainedClassifier

        sizes = self.hparams
        net = PretrainedClassifier(sizes["encoder"], len(sizes["classes"]), self.attention, sizes["frozen_layers"])
        if self._pretrained is not None:
            net.load_encoder(self._pretrained)
            self._pretrained = None
        return net

    def _build_from_nothing(self) -> TextClassifier:
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

    def expect(self, checkpoint: Mapping[str, Any], data: TextClassificationData) -> None:
        """Take encoder and tokenizer from the checkpoint, and not from where they came from."""
        super().expect(checkpoint, data)
        if self.hparams["pretrained"] is None:
            return
        self._check_source(checkpoint)
        self.pretrained = None
        self.hparams["encoder"] = self._sizes_in(checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY], "the checkpoint")[
            "encoder"
        ]
        state = checkpoint.get(type(data).__qualname__)
        if state and not data.is_fitted:
            data.load_state_dict(state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another encoder."""
        self._check_source(checkpoint)
        super().on_load_checkpoint(checkpoint)

    def _check_source(self, checkpoint: Mapping[str, Any]) -> None:
        before, here = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY) or {}, self.hparams["pretrained"]
        if before.get("pretrained") != here:
            raise ValueError(
                f"the checkpoint was trained with pretrained={before.get('pretrained')!r}, and holds that encoder; "
                f"here pretrained={here!r}: leave it out, or say the same, which need not be there any more"
            )

    def adapt(self, start: Start, data: TextClassificationData) -> tuple[dict[str, Tensor], str]:
        """Keep the vectors of words that both vocabularies have, and the classifier if the classes are the same."""
        weights, note = dict(start.weights), ""
        if self.hparams["pretrained"] is not None or start.hparams.get("pretrained") is not None:
            if start.encoding.get("tokenizer") != data.tokenizer.state():
                raise ValueError(
                    f"{start.source} was trained on the tokens of another tokenizer, with "
                    f"pretrained={start.hparams.get('pretrained')!r} (here {self.hparams['pretrained']!r}); give the "
                    "model the options that it was trained with"
                )
            note = "the encoder has the weights that it ended with"
        elif isinstance(self.net, TextClassifier):
            known, words = read_words(start, "tokenizer"), data.tokenizer.words
            if weights["embed.weight"].shape[1:] == (table := self.net.embed.weight).shape[1:]:
                weights["embed.weight"], shared = carry_rows(weights["embed.weight"], known, table, words)
                note = f"{shared} of the {len(words)} tokens of the new vocabulary keep their vectors"
        if start.hparams["classes"] != data.classes:
            weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
            note += f", and the classifier starts anew, for the classes {quoted(data.classes)}"
        return weights, note

    def make_optimizer(self, **options: Any) -> Optimizer:
        """Build the optimizer, with groups of parameters where some have a learning rate of their own."""
        if self.kernel_lr is None and self.layer_decay == 1.0:
            return super().make_optimizer(**options)
        kernels = kernel_parameters(self.net)
        if isinstance(self.net, TextClassifier):
            of_kernels = {id(parameter) for parameter in kernels}
            parts = [[parameter for parameter in self.parameters() if id(parameter) not in of_kernels]]
        else:
            embeddings, layers, top = self.net.split()
            parts = [embeddings, *layers, top]
        make = partial(self.optimizer, **options)
        return optimize_in_groups(make, parts, kernels, self.layer_decay, self.kernel_lr)

    def on_train_start(self) -> None:
        """Weigh the classes of the training texts, whose order a checkpoint may have said."""
        assert self.data is not None
        if self.class_weights is not None:
            weights = weigh_classes(self.class_weights, self.data.class_counts, self.data.classes)
            self.weights = weights.to(self.device, self.net.head.weight.dtype)

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
        some, (token, *_) = torch.ones(7, 11).tril(3).bool(), [*data.tokenizer.first, UNKNOWN]
        return Program(
            TextProbabilities(self.net),
            example={"tokens": torch.full((7, 11), data.tokenizer.padding).masked_fill(some, token)},
            axes={"tokens": {0: "texts", 1: "tokens"}, "logits": {0: "texts"}, "probabilities": {0: "texts"}},
            meaning={
                "tokens": "the ids of the tokens of each text, at least one, then padding",
                "logits": "a score of each class, in their order",
                "probabilities": "the probability of each class, in their order",
            },
            encoding=data.learned.describe(),
            most={} if self.hparams["encoder"] is None else {"tokens": count_positions(self.hparams["encoder"])},
        )

    def pictures(self) -> Figures:
        """Return what can be drawn of the last validation."""
        if self._confusion is None:
            return {}
        return {
            "results/confusion": partial(
                draw_confusion, self._confusion.cpu(), self.hparams["classes"], "validation texts"
            )
        }

    def describe_attention(self, layer: str) -> tuple[str, str]:
        """Say what attends and what is attended to."""
        return "tokens", "tokens"

    def attention_names(self, batch: TextBatch, layer: str) -> tuple[list[list[str]], list[list[str]]] | None:
        """Name what attends and what is attended to: the tokens of each text."""
        if self.data is None:
            return None
        tokenizer, first = self.data.tokenizer, ["<cls>"] if self.hparams["pooling"] == "cls" else []
        texts = ([token for token in text if token != batch.padding] for text in batch.tokens.tolist())
        names = [first + tokenizer.names(text) for text in texts]
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
