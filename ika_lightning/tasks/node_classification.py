"""Node classification: a class for each node of a graph, by attention over its edges."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from ika_lightning.data import NodeClassificationData
from ika_lightning.data.messages import quoted
from ika_lightning.data.node_classification import NodeBatch
from ika_lightning.models import ConvFactory, GraphNetwork
from ika_lightning.models.inference import NodeProbabilities
from ika_lightning.pictures.results import draw_embeddings
from ika_lightning.protocols import Figures, Program
from ika_lightning.tasks.base import UNSAVED, Loss, Stage, Task
from ika_lightning.tasks.layers import find_layer
from ika_lightning.tasks.start import Start


class NodeClassification(Task[NodeClassificationData]):
    r"""Predict the class of each node of a graph; nodes attend to their neighbours.

    The loss is the cross-entropy of the training nodes plus ``kl_weight`` times the divergence of the attention's
    spectra from their priors. ``val/loss`` and ``test/loss`` are the cross-entropy alone; ``f1`` is the mean of the
    classes' F1. In evaluation the whole graph is looked at, so a prediction never depends on a batch.

    Args:
        conv: The convolution: ``KernelGATConv``, which None is as well, PyG's ``GATConv``, ``GCNConv`` or another;
            called with (width of the input, width of the output), and ``heads`` and ``concat`` if it has them.
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
        init_from: A checkpoint whose weights a new training starts from; nodes and edges have to have its features, and
            for other classes the last convolution starts anew.
        num_features: Number of features of a node. This and the rest are taken from the data.
        num_edge_features: Number of features of an edge.
        num_classes: Number of classes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from ika_lightning.attention import KernelGATConv
        >>> from ika_lightning.data import NodeClassificationData
        >>> trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False, log_every_n_steps=1)
        >>> trainer.fit(NodeClassification(KernelGATConv), NodeClassificationData("karate"))
    """

    net: GraphNetwork
    data_class = NodeClassificationData
    sizes = ("num_features", "num_edge_features", "num_classes")
    fixed = sizes
    encoding = ("classes", "features", "num_features", "num_edge_features", "scaling", "mean", "std")
    headline = "accuracy"

    def __init__(
        self,
        conv: ConvFactory | None = None,
        width: int = 8,
        depth: int = 2,
        num_heads: int = 8,
        out_heads: int = 1,
        dropout: float = 0.6,
        kl_weight: float = 0.01,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
        init_from: str | None = None,
        num_features: int | None = None,
        num_edge_features: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        # PyTorch Geometric takes as long to import as all else of this package, and other tasks do without
        from ika_lightning.attention.graph import KernelGATConv

        super().__init__(optimizer, scheduler, kl_weight, compile, init_from)
        self.save_hyperparameters(ignore=UNSAVED)
        self.hparams["conv"] = self.hparams["conv"] or KernelGATConv
        self.save_arguments("conv")
        # of the last evaluation: what the last layer was told of each node, and their classes
        self._embedded: Tensor | None = None
        self._labels: Tensor | None = None
        # of the last validation: the nodes asked for, and what was answered
        self._answers: tuple[Tensor | None, Tensor | None] = (None, None)

    def read_sizes(self, data: NodeClassificationData) -> dict[str, Any] | None:
        """Return the numbers of features and classes."""
        if not data.is_fitted:
            return None
        return {
            "num_features": data.num_features,
            "num_edge_features": data.num_edge_features,
            "num_classes": len(data.classes),
        }

    def build(self) -> GraphNetwork:
        """Make the network."""
        sizes = self.hparams
        net = GraphNetwork(
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
        net.last.register_forward_pre_hook(self._keep_embedding)
        return net

    def adapt(self, start: Start, data: NodeClassificationData) -> tuple[dict[str, Tensor], str]:
        """Keep the weights for nodes and edges of the same features; the last convolution starts anew for others."""
        for name, what in (("num_features", "features"), ("num_edge_features", "features of edges")):
            there, here = start.hparams[name], self.hparams[name]
            if there != here:
                raise ValueError(
                    f"{start.source} was trained on {there} {what}, but this graph has {here}; give a graph with the "
                    "same features, or train anew"
                )
        own = self._encoding_of(data)
        there, here = start.encoding.get("features"), own["features"]
        if there is not None and here is not None and there != here:
            raise ValueError(
                f"{start.source} was trained on the features {quoted(there)}, but this graph has {quoted(here)}; give "
                "a graph with the same features, or train anew"
            )
        if start.encoding.get("classes") == own["classes"]:
            return dict(start.weights), "with the scaling of the new graph"
        kept = {key: value for key, value in start.weights.items() if not key.startswith("last.")}
        return kept, f"the last convolution starts anew, for the classes {quoted(own['classes'])}"

    def forward(self, batch: NodeBatch) -> Tensor:
        """Score the classes of the nodes asked for; returns (r, num_classes)."""
        scores: Tensor = self.net(batch.x, batch.edge_index, batch.edge_attr)
        if not self.training:
            self._labels = batch.y
        return scores.index_select(0, batch.asked)

    def loss(self, batch: NodeBatch) -> Loss:
        """Return the loss of the nodes asked for."""
        samples = len(batch.asked)
        # the share of one process may have none
        return Loss(F.cross_entropy(self(batch), batch.y[batch.asked], reduction="sum") / max(1, samples), samples)

    def make_metrics(self) -> dict[str, Metric]:
        """Make what is measured of the nodes asked for."""
        num_classes = self.hparams["num_classes"]
        return {
            "loss": MeanMetric(),
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "f1": MulticlassF1Score(num_classes, average="macro"),
        }

    def measure(self, batch: NodeBatch, metrics: MetricCollection, stage: Stage) -> None:
        """Measure the nodes asked for."""
        # the share of one process may have none
        if not len(batch.asked):
            return
        scores, label = self(batch), batch.y[batch.asked]
        metrics["loss"].update(F.cross_entropy(scores, label, reduction="none"))
        answer = scores.argmax(-1)
        for name in ("accuracy", "f1"):
            metrics[name].update(answer, label)
        if stage == "val":
            self._answers = batch.asked, answer

    def predict_step(self, batch: NodeBatch, batch_idx: int) -> Tensor:
        """Return the probabilities of the classes, (r, num_classes)."""
        probabilities: Tensor = self(batch).softmax(-1)
        return probabilities

    def export_program(self, data: NodeClassificationData) -> Program:
        """Return what tells the probabilities of the classes for all nodes of a graph."""
        nodes, edges, width, of_edges = 7, 11, self.hparams["num_features"], self.hparams["num_edge_features"]
        example = {
            "x": torch.linspace(-1.0, 1.0, nodes * width).view(nodes, width),
            "edge_index": torch.stack([torch.arange(edges), 3 * torch.arange(edges) + 1]) % nodes,
            "edge_attr": torch.linspace(-1.0, 1.0, edges * of_edges).view(edges, of_edges),
        }
        if not of_edges:
            del example["edge_attr"]
        return Program(
            NodeProbabilities(self.net),
            example=example,
            axes={
                "x": {0: "nodes"},
                "edge_index": {1: "edges"},
                "edge_attr": {0: "edges"},
                "logits": {0: "nodes"},
                "probabilities": {0: "nodes"},
            },
            meaning={
                "x": "the features of each node, scaled",
                "edge_index": "the two ends of each edge, as rows of x",
                "edge_attr": "the features of each edge",
                "logits": "a score of each class for each node, in their order",
                "probabilities": "the probability of each class for each node, in their order",
            },
            encoding=data.learned.describe(),
        )

    def pictures(self) -> Figures:
        """Return what can be drawn of the last evaluation."""
        if self.data is None or self._embedded is None or self._labels is None:
            return {}
        of_nodes = self._embedded, self._labels, self.data.classes, *self._answers
        return {"results/embeddings": partial(draw_embeddings, *of_nodes)}

    def attention_names(self, batch: NodeBatch, layer: str) -> tuple[list[list[str]], list[list[str]]] | None:
        """Name what attends and what is attended to: the nodes of the graph."""
        if self.data is None or len(self.data.node_names) != len(batch.x):
            return None
        return [self.data.node_names], [self.data.node_names]

    def _keep_embedding(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if not self.training:
            self._embedded = arguments[0].detach()
