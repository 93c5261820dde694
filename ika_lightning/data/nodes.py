"""Graphs whose nodes are classified: how they are read, split, scaled and sampled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ika_lightning.data import splits
from ika_lightning.data.cells import class_columns, format_of, pack
from ika_lightning.data.checks import check_choices, check_least, check_shape
from ika_lightning.data.corpus import Corpus, Found
from ika_lightning.data.datasets import GraphSet
from ika_lightning.data.fingerprint import fingerprint
from ika_lightning.data.graphs import SPLITS, NodeGraph, load_graph, read_graph
from ika_lightning.data.neighbours import Neighbours
from ika_lightning.lazy import torch_geometric as pyg

__all__ = ["NodeBatch", "NodeCorpus", "NodeEncoder", "Scaling", "check_edges"]

Scaling = Literal["rows", "standard", "none"]


class NodeBatch(NamedTuple):
    """A graph, and which of its nodes are asked for; with n nodes, f features, E edges and r nodes asked for.

    Args:
        x: Features of nodes, (n, f) float32.
        edge_index: Edges, (2, E) int64.
        edge_attr: Features of edges, (E, k) float32; None if there are none.
        y: Classes of nodes, (n,) int64; -1 where unknown.
        asked: Nodes asked for, (r,) int64.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None
    y: Tensor
    asked: Tensor

    @property
    def counts(self) -> dict[str, int]:
        """How many nodes are asked for, and over how many edges."""
        return {"nodes": len(self.asked), "edges": self.edge_index.size(1)}

    def sample(self, neighbours: Neighbours, index: Tensor, generator: np.random.Generator) -> NodeBatch:
        """Some of the nodes asked for, and a sample of the graph around them.

        Args:
            neighbours: What samples.
            index: Which of the nodes asked for, (b,) int64.
            generator: Where randomness comes from.
        """
        nodes, edges, edge_index = neighbours.sample(self.asked[index], generator)
        edge_attr = None if self.edge_attr is None else self.edge_attr[edges]
        return NodeBatch(self.x[nodes], edge_index, edge_attr, self.y[nodes], torch.arange(len(index)))


@dataclass(frozen=True)
class NodeEncoder:
    """What is known of the features and classes of a graph.

    Args:
        classes: Names of the classes, in the order of their numbers.
        features: The columns of features, if the graph is a table.
        num_features: How many features a node has.
        num_edge_features: How many features an edge has.
        scaling: ``"rows"``: each node's features sum to 1; ``"standard"``: mean 0 and standard deviation 1 over the
            training nodes; ``"none"``.
        mean: Mean of each feature over the training nodes, for ``"standard"``.
        std: Its standard deviation.
    """

    classes: list[str]
    features: list[str] | None
    num_features: int
    num_edge_features: int
    scaling: Scaling
    mean: list[float] | None = None
    std: list[float] | None = None

    @classmethod
    def learn(cls, found: NodeGraph, scaling: Scaling) -> NodeEncoder:
        """Learn on training nodes.

        Args:
            found: The graph.
            scaling: How to scale features.
        """
        graph = found.graph
        known = cls(found.classes, found.features, graph.num_features, graph.num_edge_features, scaling)
        if scaling != "standard":
            return known
        x = graph.x[graph.train_mask].double()
        std = x.std(0, correction=0)
        # a constant feature becomes 0
        std = std.masked_fill(std == 0, 1.0)
        return replace(known, mean=x.mean(0).float().tolist(), std=std.float().tolist())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        state = asdict(self)
        return {name: state[name] for name in state if name not in ("mean", "std") or state[name] is not None}

    def describe(self) -> dict[str, Any]:
        """How a graph is encoded, for a reader who has nothing else."""
        scaling = {
            "rows": "divide the features of each node by the sum of their absolute values, or by 1 if that is 0",
            "standard": "subtract mean from the features of each node and divide by std, in float32",
            "none": "take the features as they are",
        }
        return {
            "how": [
                f"x has a row for each node, in any order, with its features in float32: {scaling[self.scaling]}.",
                "edge_index has a column for each edge: the row in x of its source, then that of its target, which "
                "attends to the source. Where edges have no direction, each is there in both.",
                *(["edge_attr has a row for each edge, with its features as they are."] * bool(self.num_edge_features)),
            ],
            **self.state(),
        }

    def scale(self, found: NodeGraph) -> pyg.data.Data:
        """A graph with its features scaled.

        Args:
            found: The graph, which stays as it is.

        Raises:
            ValueError: If it has other features or more classes than in training.
        """
        graph, source = found.graph, found.source
        for kind, count, expected in (
            ("features", graph.num_features, self.num_features),
            ("features of edges", graph.num_edge_features, self.num_edge_features),
        ):
            if count != expected:
                raise ValueError(f"{source} has {count} {kind}, but the model was trained on {expected}")
        if (graph.y >= len(self.classes)).any():
            raise ValueError(f"{source} has class {int(graph.y.max())}, but the model knows {len(self.classes)}")
        graph = graph.clone()
        if self.scaling == "rows":
            total = graph.x.abs().sum(1, keepdim=True)
            graph.x = graph.x / total.masked_fill(total == 0, 1.0)
        elif self.scaling == "standard":
            graph.x = (graph.x - torch.tensor(self.mean)) / torch.tensor(self.std)
        return graph


@dataclass(frozen=True, kw_only=True)
class NodeCorpus(Corpus[NodeGraph, NodeEncoder, NodeBatch]):
    """A graph that is split by nodes, and others like it.

    Args:
        dataset: The data set that is known by name, if it is one.
        read_tables: :func:`~ika_lightning.data.graphs.read_graph`, told how own tables are written.

    All others are those of :class:`~ika_lightning.data.NodeClassificationData`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    unknown = "the classes and features are"
    no_source = (
        "there is no graph to train or test on; give --data.name, or --data.path FILE (--data.predict_path FILE is "
        "enough to predict with a checkpoint)"
    )

    is_read_by_learned = True

    dataset: GraphSet | None = None
    edges_path: str | None = None
    predict_edges_path: str | None = None
    read_tables: Callable[..., NodeGraph] = read_graph
    split: Literal["public", "full", "random"] | None = None
    train_per_class: int | None = None
    num_val: int | None = None
    num_test: int | None = None
    scaling: Scaling | None = None
    inductive: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_edges("path", self.path, self.edges_path)
        check_choices(
            split=(self.split, ("public", "full", "random")), scaling=(self.scaling, ("rows", "standard", "none"))
        )
        check_least(
            train_per_class=(self.train_per_class, 1),
            num_val=(self.num_val, 0),
            num_test=(self.num_test, 0),
            seed=(self.seed, 0),
        )

    @property
    def no_test(self) -> str:
        """Says that there are no test nodes."""
        return f"{self.source} has no labelled test nodes; say which with a split or a test_mask"

    def read(self, stage: str | None, known: Collection[str], learned: NodeEncoder | None) -> Found[NodeGraph]:
        """Read and split the graph, once for all stages; each split that has labelled nodes is the whole of it."""
        if "train" in known:
            return Found({}, {})
        if self.dataset is not None:
            found = NodeGraph.of(self.dataset.graph(self.root), self.source)
        else:
            found = self._read_graph(str(self.path), self.edges_path, learned)
        if found.graph.edge_index.size(1) == 0:
            raise ValueError(f"{self.source} has no edges; a graph network has nothing to attend to")
        drawn = self._split(found.graph)
        return Found({part: found for part in SPLITS if part == "train" or found.asked(part).any()}, drawn)

    def _split(self, graph: pyg.data.Data) -> dict[str, np.ndarray]:
        """Give a graph a mask for each split, and return the nodes of each that was drawn."""
        has_split = isinstance(graph.get("train_mask"), Tensor)
        draws = self.dataset is not None and self.dataset.draws
        split = self.split or ("random" if not has_split or draws else "public")
        if split != "random" and not has_split:
            raise ValueError(f"{self.source} does not say how to split it; leave out --data.split {split}")
        drawn = self._draw(graph) if split == "random" else {}
        nodes = torch.arange(graph.num_nodes)
        for part in SPLITS:
            if part in drawn:
                graph[f"{part}_mask"] = torch.isin(nodes, torch.from_numpy(drawn[part]))
            elif f"{part}_mask" not in graph:
                graph[f"{part}_mask"] = torch.zeros(graph.num_nodes, dtype=torch.bool)
        if split == "full":
            graph.train_mask = ~(graph.val_mask | graph.test_mask) & (graph.y >= 0)
        return drawn

    def _draw(self, graph: pyg.data.Data) -> dict[str, np.ndarray]:
        """Draw the nodes of each split."""
        known, y = self.dataset, graph.y.numpy()
        per_class, val, test = self.train_per_class, self.num_val, self.num_test
        if per_class is None:
            per_class = known.train_per_class if known else 20
        labelled = np.flatnonzero(y >= 0)
        # a data set that is drawn anew may have an example of each class
        named = np.flatnonzero(graph.train_mask) if known and known.draws else None
        train = splits.per_class(y, labelled, per_class, self.seed, first=named)
        rest = np.setdiff1d(labelled, train)
        if known is None and val is None and len(labelled) and not len(rest):
            few = max(1, int(np.bincount(y[labelled]).max()) // 2)
            raise ValueError(
                f"{self.source}: all {len(labelled)} labelled nodes are for training, {per_class} of each class, and "
                f"none is left for validation; give --data.train_per_class, such as {few}"
            )
        if val is None:
            val = known.num_val if known else len(rest) // 3
        if test is None:
            test = known.num_test if known else max(0, len(rest) - val)
        if val + test > len(rest):
            raise ValueError(
                f"{self.source} has {len(rest)} labelled nodes besides those for training, too few for {val} in "
                f"validation and {test} in testing; lower --data.num_val or --data.num_test"
            )
        for_test = splits.draw(rest, test, self.seed)
        for_val = splits.draw(np.setdiff1d(rest, for_test), val, self.seed)
        return {"train": train, "val": for_val, "test": for_test}

    def _read_graph(self, path: str, edges: str | None, learned: NodeEncoder | None, **options: Any) -> NodeGraph:
        if edges is None:
            return NodeGraph.of(load_graph(path), path)
        features, classes = (learned.features, learned.classes) if learned else (None, None)
        return self.read_tables(path, edges, features=features, classes=classes, **options)

    def read_own(self, part: str, path: str, learned: NodeEncoder | None) -> NodeGraph:
        """Read a new graph, whose labels are not looked at."""
        return self._read_graph(path, self.predict_edges_path, learned, label="")

    def check_training(self, train: NodeGraph) -> None:
        """Check that there are training nodes, of each class.

        Raises:
            ValueError: If not.
        """
        source, y = train.source, train.graph.y
        trained = y[train.asked("train")].unique()
        if len(trained) == 0:
            raise ValueError(f"{source} has no labelled node for training; say which with a split or a train_mask")
        for part in ("val", "test"):
            lacking = train.asked(part) & ~torch.isin(y, trained)
            if lacking.any():
                node = int(lacking.nonzero()[0])
                raise ValueError(
                    f"{source}: node {train.names[node]!r} of the {part} split is of class "
                    f"{train.classes[int(y[node])]!r}, of which there is no training node; add one, or take the class "
                    "out"
                )
        if missing := sorted(set(range(len(train.classes))) - set(trained.tolist())):
            raise ValueError(
                f"{source}: there is no training node of class {train.classes[missing[0]]!r}; label one, or number the "
                "classes without gaps"
            )

    def learn(self, train: NodeGraph) -> NodeEncoder:
        """Learn the names of classes and features, and the scaling."""
        usual: Scaling = self.dataset.scaling if self.dataset else "none" if self.edges_path is None else "standard"
        return NodeEncoder.learn(train, self.scaling or usual)

    def restore(self, state: dict[str, Any]) -> NodeEncoder:
        """The names and the scaling of a checkpoint."""
        return NodeEncoder(**state)

    def encode(self, part: str, found: NodeGraph, learned: NodeEncoder) -> NodeBatch:
        """The graph with its features scaled, and the nodes of a split; of a new graph, all.

        Raises:
            ValueError: If it has other features or more classes than in training.
        """
        graph = learned.scale(found)
        asked = torch.ones(graph.num_nodes, dtype=torch.bool) if part == "predict" else found.asked(part)
        x, y, edge_index, edge_attr = graph.x, graph.y, graph.edge_index, graph.edge_attr
        if part == "train" and self.inductive:
            kept = ~(graph.val_mask | graph.test_mask)
            edge_index, edge_attr = pyg.utils.subgraph(kept, edge_index, edge_attr, relabel_nodes=True)
            x, y, asked = x[kept], y[kept], asked[kept]
        return NodeBatch(x, edge_index, edge_attr, y, asked.nonzero().squeeze(1))

    def fingerprints(self, parts: Mapping[str, NodeGraph]) -> dict[str, str]:
        """Those of the graph, and of the mask of each split."""
        if "train" not in parts:
            return {}
        graph = parts["train"].graph
        whole = fingerprint(graph.x, graph.y, (graph.edge_index, graph.edge_attr))
        return {"graph": whole, **{part: fingerprint(graph[f"{part}_mask"]) for part in SPLITS}}

    def render(
        self, new: NodeGraph, encoded: NodeBatch, learned: NodeEncoder, predictions: Tensor, path: str | Path
    ) -> bytes:
        """A row for each node: ``node``, ``label``, and ``probability_<class>`` of each class.

        Predictions are (n, c) probabilities.
        """
        shape = len(new.names), len(learned.classes)
        check_shape(predictions, shape, "one row per node and one column per class")
        return pack({"node": new.names, **class_columns("label", learned.classes, predictions)}, path)


def check_edges(argument: str, file: str | None, edges: str | None) -> None:
    """Check that a table of nodes, and nothing else, comes with one of edges.

    Args:
        argument: What the file is called.
        file: A table of nodes, or a whole graph.
        edges: A table of edges.

    Raises:
        ValueError: If not.
    """
    if file is None and edges is not None:
        raise ValueError(f"{edges} are edges of which nodes? Give the table of nodes with --data.{argument}")
    if file is not None and (edges is None) == (format_of(file) in (".csv", ".tsv", ".parquet")):
        raise ValueError(
            f"{argument}={file!r} "
            + ("is a whole graph; leave out the table of edges" if edges else "needs its edges as well")
            + ", or give a table of nodes and one of edges, or a .pt file with a PyG Data"
        )
