"""Node classification: a class for each node of a graph, by attention over its edges."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from ika_lightning.attention.graph import KernelGATConv
from ika_lightning.data import NodeClassificationData
from ika_lightning.data.node_classification import NodeBatch
from ika_lightning.models import ConvFactory, GraphNetwork
from ika_lightning.pictures.results import draw_embeddings
from ika_lightning.tasks.base import Task, find_layer

# What only the data knows; it is written to the hyper-parameters, so that a checkpoint is enough to build the model.
_FROM_DATA = ("num_features", "num_edge_features", "num_classes")


class NodeClassification(Task):
    r"""Predict the class of each node of a graph; nodes attend to their neighbours.

    The loss is the cross-entropy of the training nodes plus ``kl_weight`` times the divergence of the attention's
    spectra from their priors. ``val/loss`` and ``test/loss`` are the cross-entropy alone; ``f1`` is the mean of the
    classes' F1. In evaluation the whole graph is looked at, so a prediction never depends on a batch.

    Args:
        conv: The convolution: ``KernelGATConv``, PyG's ``GATConv``, ``GCNConv`` or another; called with (width of the
            input, width of the output), and ``heads`` and ``concat`` if it has them.
        width: Channels of a head.
        depth: Number of convolutions.
        num_heads: Number of heads of each layer but the last.
        out_heads: Number of heads of the last layer, which are averaged.
        dropout: Probability with which an input of a convolution is dropped in training. A dropout of attention
            weights is an argument of the convolution.
        kl_weight: Weight of the attention's regulariser.
        optimizer: Called with the parameters.
        scheduler: Called with the optimizer and stepped each epoch; None keeps the learning rate.
        compile: Compile the network with ``torch.compile`` for training, which takes a C++ compiler.
        num_features: Number of features of a node. This and the rest are taken from the data.
        num_edge_features: Number of features of an edge.
        num_classes: Number of classes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from ika_lightning.data import NodeClassificationData
        >>> trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False, log_every_n_steps=1)
        >>> trainer.fit(NodeClassification(KernelGATConv), NodeClassificationData("karate"))
    """

    net: GraphNetwork | None

    def __init__(
        self,
        conv: ConvFactory = KernelGATConv,
        width: int = 8,
        depth: int = 2,
        num_heads: int = 8,
        out_heads: int = 1,
        dropout: float = 0.6,
        kl_weight: float = 0.01,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
        num_features: int | None = None,
        num_edge_features: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler, kl_weight, compile)
        self.save_hyperparameters_with_attention("conv")
        self.train_loss = MeanMetric()
        # of the last evaluation: what the last layer was told of each node, and their classes
        self._embedded: Tensor | None = None
        self._labels: Tensor | None = None

    def configure_model(self) -> None:
        """Build the network for the data; without data (in prediction) the checkpoint says how."""
        if self.net is not None:
            return
        data = self.find_data(NodeClassificationData)
        if data is not None and data.is_fitted:
            self.hparams.update(
                num_features=data.num_features,
                num_edge_features=data.num_edge_features,
                num_classes=len(data.classes),
            )
        if self.hparams["num_features"] is not None:
            self._build()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network as the checkpoint's was."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if any(saved.get(name) is None for name in _FROM_DATA):
            raise ValueError(
                "the checkpoint is not one of NodeClassification: it does not say " + ", ".join(_FROM_DATA)
            )
        self.hparams.update({name: saved[name] for name in _FROM_DATA})
        if self.net is None:
            self._build()

    def forward(self, batch: NodeBatch) -> Tensor:
        """Score the classes of the nodes asked for; returns (r, num_classes)."""
        assert self.net is not None
        scores: Tensor = self.net(batch.x, batch.edge_index, batch.edge_attr)
        if not self.training:
            self._labels = batch.y
        return scores.index_select(0, batch.asked)

    def training_step(self, batch: NodeBatch, batch_idx: int) -> Tensor:
        """Return the loss of the nodes asked for."""
        samples = len(batch.asked)
        # the share of one process may have none
        loss = F.cross_entropy(self(batch), batch.y[batch.asked], reduction="sum") / max(1, samples)
        self.train_loss.update(loss.detach(), weight=samples)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, batch_size=max(1, samples))
        return self.objective(loss, samples)

    def validation_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """Measure the validation nodes."""
        self._measure(self.val_metrics, batch)

    def test_step(self, batch: NodeBatch, batch_idx: int) -> None:
        """Measure the test nodes."""
        self._measure(self.test_metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log what was measured."""
        self._log_metrics("test", self.test_metrics)

    def predict_step(self, batch: NodeBatch, batch_idx: int) -> Tensor:
        """Return the probabilities of the classes, (r, num_classes)."""
        probabilities: Tensor = self(batch).softmax(-1)
        return probabilities

    def pictures(self) -> dict[str, Callable[[], Any]]:
        """Return what can be drawn of the last evaluation."""
        data = self.find_data(NodeClassificationData)
        if data is None or self._embedded is None or self._labels is None:
            return {}
        return {"results/embeddings": partial(draw_embeddings, self._embedded, self._labels, data.classes)}

    def attention_names(self, batch: NodeBatch, layer: str) -> tuple[list[list[str]], list[list[str]]] | None:
        """Name what attends and what is attended to: the nodes of the graph."""
        data = self.find_data(NodeClassificationData)
        if data is None or len(data.node_names) != len(batch.x):
            return None
        return [data.node_names], [data.node_names]

    def _build(self) -> None:
        sizes = self.hparams
        self.net = GraphNetwork(
            sizes["num_features"],
            sizes["num_classes"],
            find_layer(sizes["conv"]),
            width=sizes["width"],
            depth=sizes["depth"],
            num_heads=sizes["num_heads"],
            out_heads=sizes["out_heads"],
            dropout=sizes["dropout"],
            num_edge_features=sizes["num_edge_features"],
        )
        self.net.last.register_forward_pre_hook(self._keep_embedding)
        self.val_metrics, self.test_metrics = (_metrics(sizes["num_classes"]).to(self.device) for _ in range(2))

    def _keep_embedding(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if not self.training:
            self._embedded = arguments[0].detach()

    def _measure(self, metrics: MetricCollection, batch: NodeBatch) -> None:
        if not len(batch.asked):  # the share of one process may have none
            return
        scores, label = self(batch), batch.y[batch.asked]
        metrics["loss"].update(F.cross_entropy(scores, label, reduction="none"))
        for name in ("accuracy", "f1"):
            metrics[name].update(scores.argmax(-1), label)

    def _log_metrics(self, stage: str, metrics: MetricCollection) -> None:
        for name, value in metrics.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "accuracy")
        metrics.reset()


def _metrics(num_classes: int) -> MetricCollection:
    metrics = {
        "loss": MeanMetric(),
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "f1": MulticlassF1Score(num_classes, average="macro"),
    }
    return MetricCollection(metrics, compute_groups=False)  # type: ignore[arg-type]
