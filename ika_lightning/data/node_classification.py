"""Data of the node classification task: a graph, some of whose nodes have a known class."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import subgraph

from ika_lightning.data import splits
from ika_lightning.data.base import DataModule, plain
from ika_lightning.data.cells import pack, to_numbers
from ika_lightning.data.checks import check_choices, check_least, check_source
from ika_lightning.data.datasets import GraphSet, find_dataset
from ika_lightning.data.fingerprint import fingerprint
from ika_lightning.data.graphs import SPLITS, check_graph, load_graph, read_graph
from ika_lightning.data.loader import Loader, RowSampler, processes, shares, update_shares
from ika_lightning.data.neighbours import Neighbours
from ika_lightning.data.numbers import NumberFormat

__all__ = ["NodeBatch", "NodeClassificationData"]

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


class NodeClassificationData(DataModule):
    """A graph, its nodes split for training, validation and testing.

    The graph is a data set known by name, a saved PyG ``Data``, or a table of nodes with one of edges. In evaluation
    the whole graph is looked at, so a prediction does not depend on a batch; in training the whole graph as well, or
    with ``batch_size`` a few nodes with a sample of their neighbours. Names of classes and features and their scaling
    travel in the checkpoint.

    Args:
        name: A known data set: ``karate`` ships with PyG and ``digits`` with scikit-learn; ``cora``, ``citeseer`` and
            ``pubmed`` are looked for under ``root`` and else downloaded.
        path: An own graph, instead of ``name``: a file with a PyG ``Data`` of tensors, ``.pt``; or a table of nodes,
            ``.csv``, ``.tsv`` (``.gz`` too) or ``.parquet``, with ``edges_path``.
        edges_path: The table of edges: source, target, and further columns that are features of edges.
        node: The column that names a node.
        label: The column of classes; empty cells are unknown.
        split_column: The column that says ``train``, ``val`` or ``test``. All columns left are features, numbers.
        undirected: Take each edge of a table in both directions.
        edges_header: Whether the first line of a table of edges is a header. None: not if it names two nodes; a line
            of which that is not certain is refused.
        separator: What separates cells of own tables, one character; ``"auto"`` looks for it, and says what it found.
            None is a comma in a ``.csv`` and a tab in a ``.tsv``.
        decimal: The sign before the fraction of a number, ``"."`` or ``","``.
        thousands: The sign between groups of three digits, such as ``","`` or a blank; None for none.
        missing_values: Labels that say that nothing is known, besides empty cells. None refuses those that may say so,
            such as ``NA``.
        split: ``"public"``: as the data says it; ``"full"``: the same, with all other labelled nodes for training;
            ``"random"``: drawn. None is public if the data says it, else random.
        train_per_class: Nodes of each class for training in a random split; by default 20, karate 1, digits 5.
        num_val: Nodes for validation in a random split; by default a third of those left, or what the data set has.
        num_test: Nodes for testing in a random split; by default those left, or what the data set has.
        inductive: Train without the nodes for validation and testing, and their edges.
        scaling: ``"rows"``: each node's features sum to 1; ``"standard"``: mean 0 and standard deviation 1 over the
            training nodes; ``"none"``. By default rows for citation graphs, standard for tables.
        batch_size: Nodes in a training batch; None trains on the whole graph.
        num_neighbors: How many neighbours of a node are sampled for a batch, for each layer of the model; -1 for all.
        predict_path: A new graph to predict for, like ``path``; by default the nodes of the graph itself.
        predict_edges_path: The edges of the new graph, if it is a table.
        root: Folder of the benchmarks; by default ``IKA_DATA``, else the user's cache folder.
        seed: Seed of splits and batches, 0 or more.

    Raises:
        ValueError: If the arguments contradict one another.

    Example:
        >>> data = NodeClassificationData("karate")
        >>> data.setup("fit")
        >>> data.num_features, data.classes
        (34, ['0', '1', '2', '3'])
        >>> (batch,) = data.train_dataloader()
        >>> tuple(batch.x.shape), batch.asked.tolist()
        ((34, 34), [0, 4, 8, 24])
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        path: str | None = None,
        edges_path: str | None = None,
        node: str = "node",
        label: str = "label",
        split_column: str = "split",
        undirected: bool = True,
        edges_header: bool | None = None,
        separator: str | None = None,
        decimal: str = ".",
        thousands: str | None = None,
        missing_values: list[str] | None = None,
        split: Literal["public", "full", "random"] | None = None,
        train_per_class: int | None = None,
        num_val: int | None = None,
        num_test: int | None = None,
        inductive: bool = False,
        scaling: Scaling | None = None,
        batch_size: int | None = None,
        num_neighbors: list[int] | None = None,
        predict_path: str | None = None,
        predict_edges_path: str | None = None,
        root: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        path, edges_path, predict_path, predict_edges_path, root = plain(
            path, edges_path, predict_path, predict_edges_path, root
        )
        self.save_hyperparameters()
        self.name, self.path, self.edges_path, self.root = name, path, edges_path, root
        self.node, self.label, self.split_column, self.undirected = node, label, split_column, undirected
        self.edges_header, self.separator, self.missing_values = edges_header, separator, missing_values
        self.written = NumberFormat(decimal, thousands)
        self.split, self.inductive, self.seed = split, inductive, seed
        self.batch_size = batch_size
        self.num_neighbors = [15, 10] if num_neighbors is None else num_neighbors
        self.predict_path, self.predict_edges_path = predict_path, predict_edges_path
        self.dataset: GraphSet | None = None if name is None else find_dataset(name, GraphSet, "--data.path FILE")
        named = self.dataset
        if train_per_class is None:
            train_per_class = 20 if named is None else named.train_per_class
        self.train_per_class = train_per_class
        self.num_val = num_val if num_val is not None or named is None else named.num_val
        self.num_test = num_test if num_test is not None or named is None else named.num_test
        self._check_arguments()
        if scaling is None:
            scaling = named.scaling if named is not None else "standard" if edges_path is not None else "none"
        self.scaling: Scaling = scaling
        self._graph: Data | None = None  # as read, with a mask for each split
        self._new_graph: Data | None = None
        self._node_names: list[str] = []  # of the graph that was read last
        self._is_random = False
        self._known: dict[str, Any] = {}  # what the checkpoint keeps

    # --- What Lightning calls -----------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the graph; learn the scaling if there is none yet.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"`` or None.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If a file does not fit.
        """
        if stage == "predict" and self.predict_path is not None:
            # When a checkpoint is given, Lightning loads the names of features after this: so reading waits.
            for file in filter(None, (self.predict_path, self.predict_edges_path)):
                if not Path(file).is_file():
                    raise FileNotFoundError(f"there is no file {file}; check the spelling and the folder")
            return
        if stage != "fit":
            self._read()
            return
        graph = self._read()
        self._check_classes(graph)
        if not self._known:
            self._known = {
                "classes": self._classes_read,
                "features": self._features_read,
                "num_features": graph.num_features,
                "num_edge_features": graph.num_edge_features,
                **_learn_scaling(self.scaling, graph.x[graph.train_mask]),
            }

    def train_dataloader(self) -> Loader[NodeBatch]:
        """The whole graph with its training nodes; or sets of ``batch_size`` of them, drawn anew each epoch."""
        graph = self._encoded()
        self.check_drawn("train")
        if self.inductive:
            graph = _without(graph, graph.val_mask | graph.test_mask)
        batch = _batch(graph, graph.train_mask & (graph.y >= 0))
        if self.batch_size is None:
            return self._whole(batch, update_shares(self)["accumulate"])
        sampler = RowSampler(len(batch.asked), self.batch_size, seed=self.seed, **update_shares(self))
        neighbours = Neighbours(batch.edge_index, len(batch.x), self.num_neighbors)

        def around(index: Tensor) -> NodeBatch:
            # what is sampled around a set of nodes is a function of seed, epoch and set, as the set is of the first two
            drawn = np.random.default_rng([self.seed, sampler.epoch, *index.tolist()])
            nodes, edges, edge_index = neighbours.sample(batch.asked[index], drawn)
            edge_attr = None if batch.edge_attr is None else batch.edge_attr[edges]
            return NodeBatch(batch.x[nodes], edge_index, edge_attr, batch.y[nodes], torch.arange(len(index)))

        return Loader(sampler, around)

    def val_dataloader(self) -> Loader[NodeBatch] | list[Loader[NodeBatch]]:
        """The whole graph with its validation nodes; no loader if there are none, and Lightning warns of that."""
        batch = self._part("val")
        return self._whole(batch) if len(batch.asked) else []

    def test_dataloader(self) -> Loader[NodeBatch]:
        """The whole graph with its test nodes.

        Raises:
            ValueError: If there are none.
        """
        batch = self._part("test")
        if not len(batch.asked):
            raise ValueError(f"{self._source} has no labelled test nodes; say which with a split or a test_mask")
        return self._whole(batch)

    def predict_dataloader(self) -> Loader[NodeBatch]:
        """The graph to predict for, with all of its nodes."""
        if self.predict_path is None:
            graph = self._encoded()
        else:
            self._new_graph, *_ = self._load(self.predict_path, self.predict_edges_path)
            graph = self._scaled(self._new_graph, self.predict_path)
        return self._whole(_batch(graph, torch.ones(graph.num_nodes, dtype=torch.bool)))

    def learned(self) -> dict[str, Any]:
        """Names of classes and features, and the scaling."""
        return self._known

    def adopt(self, learned: dict[str, Any]) -> None:
        """Take names and scaling of a checkpoint."""
        self._known, self._graph = learned, None

    @property
    def drawn(self) -> dict[str, np.ndarray]:
        """The nodes of each split, if it is a random one."""
        graph = self._graph
        if graph is None or not self._is_random:
            return {}
        return {part: np.flatnonzero(graph[f"{part}_mask"]) for part in SPLITS}

    @property
    def fingerprints(self) -> dict[str, str]:
        """A SHA-256 of the graph that was read, and of the mask of each split."""
        if (graph := self._graph) is None:
            return {}
        edges = (graph.edge_index, graph.edge_attr)
        return {"graph": fingerprint(graph.x, graph.y, edges), **{s: fingerprint(graph[f"{s}_mask"]) for s in SPLITS}}

    # --- What the model asks ------------------------------------------------------------------------------------------

    @property
    def num_features(self) -> int:
        """How many features a node has."""
        return self._fitted()["num_features"]

    @property
    def num_edge_features(self) -> int:
        """How many features an edge has."""
        return self._fitted()["num_edge_features"]

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self._fitted()["classes"]

    @property
    def is_fitted(self) -> bool:
        """Whether classes and features are known."""
        return bool(self._known)

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes of the graph that was read last: those of its table, else their numbers."""
        return self._node_names

    def render(self, predictions: Tensor, path: str | Path) -> bytes:
        """A row for each node: ``node``, ``label``, and ``probability_<class>`` of each class.

        Args:
            predictions: Probabilities of the classes, (n, c), in the order of the nodes.
            path: The file.

        Raises:
            ValueError: If the shape does not fit.
        """
        names, classes = self._node_names, self.classes
        if predictions.shape != (len(names), len(classes)):
            raise ValueError(
                f"predictions must have shape {(len(names), len(classes))}, one row per node and one column per class, "
                f"got {tuple(predictions.shape)}"
            )
        columns: dict[str, list[Any]] = {
            "node": names,
            "label": [classes[number] for number in predictions.argmax(1).tolist()],
        }
        for name, column in zip(classes, predictions.unbind(1), strict=True):
            columns[f"probability_{name}"] = to_numbers(column)
        return pack(columns, path)

    # --- How it is done -----------------------------------------------------------------------------------------------

    def _check_arguments(self) -> None:
        check_source(GraphSet, "--data.path FILE", self.name, self.path, self.predict_path)
        for argument, file, edges in (
            ("path", self.path, self.edges_path),
            ("predict_path", self.predict_path, self.predict_edges_path),
        ):
            if file is None and edges is not None:
                raise ValueError(f"{edges} are edges of which nodes? Give the table of nodes with --data.{argument}")
            if file is not None and (edges is None) != _is_saved(file):
                raise ValueError(
                    f"{argument}={file!r} "
                    + ("is a whole graph; leave out the table of edges" if edges else "needs its edges as well")
                    + ", or give a table of nodes and one of edges, or a .pt file with a PyG Data"
                )
        check_choices(
            split=(self.split, ("public", "full", "random")),
            scaling=(self.hparams["scaling"], ("rows", "standard", "none")),
        )
        check_least(
            train_per_class=(self.train_per_class, 1),
            num_val=(self.num_val, 0),
            num_test=(self.num_test, 0),
            batch_size=(self.batch_size, 1),
            seed=(self.seed, 0),
        )
        self.written.check()
        if not self.num_neighbors or any(count < -1 for count in self.num_neighbors):
            raise ValueError(f"num_neighbors must be counts, or -1 for all, got {self.num_neighbors}")

    @property
    def _source(self) -> str:
        return self.path or f"data set {self.name!r}"

    def _read(self) -> Data:
        if self._graph is not None:
            return self._graph
        if self.dataset is not None:
            graph, classes, features = self.dataset.graph(self.root), None, None
            check_graph(graph, self._source)
        elif self.path is not None:
            graph, classes, features = self._load(self.path, self.edges_path)
        else:
            raise ValueError(
                "there is no graph to train or test on; give --data.name, or --data.path FILE (--data.predict_path "
                "FILE is enough to predict with a checkpoint)"
            )
        if classes is None:
            classes = [str(number) for number in range(int(graph.y.max()) + 1)]
        if graph.edge_index.size(1) == 0:
            raise ValueError(f"{self._source} has no edges; a graph network has nothing to attend to")
        if self.path is None:
            self._node_names = [str(number) for number in range(graph.num_nodes)]
        self._classes_read, self._features_read = classes, features
        self._split(graph)
        self._graph = graph
        return graph

    def _load(self, path: str, edges_path: str | None) -> tuple[Data, list[str] | None, list[str] | None]:
        if edges_path is None:
            graph = load_graph(path)
            check_graph(graph, path)
            self._node_names = [str(number) for number in range(graph.num_nodes)]
            return graph, None, None
        predicts = path == self.predict_path
        graph, classes, features, self._node_names = read_graph(
            path,
            edges_path,
            node=self.node,
            # labels of nodes to predict for are not looked at
            label="" if predicts else self.label,
            split=self.split_column,
            features=self._known.get("features"),
            classes=self._known.get("classes"),
            undirected=self.undirected,
            edges_header=self.edges_header,
            separator=self.separator,
            written=self.written,
            missing_values=self.missing_values,
        )
        check_graph(graph, path)
        return graph, classes, features

    def _split(self, graph: Data) -> None:
        has_split = isinstance(graph.get("train_mask"), Tensor)
        split = self.split or ("random" if not has_split or (self.dataset and self.dataset.draws) else "public")
        if split != "random" and not has_split:
            raise ValueError(f"{self._source} does not say how to split it; leave out --data.split {split}")
        self._is_random = split == "random"
        if self._is_random:
            self._split_at_random(graph)
        for part in SPLITS:
            if f"{part}_mask" not in graph:
                graph[f"{part}_mask"] = torch.zeros(graph.num_nodes, dtype=torch.bool)
        if split == "full":
            graph.train_mask = ~(graph.val_mask | graph.test_mask) & (graph.y >= 0)

    def _split_at_random(self, graph: Data) -> None:
        y = graph.y.numpy()
        labelled = np.flatnonzero(y >= 0)
        # a data set that is drawn anew may have an example of each class
        named = np.flatnonzero(graph.train_mask) if self.dataset is not None and self.dataset.draws else None
        train = splits.per_class(y, labelled, self.train_per_class, self.seed, first=named)
        rest = np.setdiff1d(labelled, train)
        val = len(rest) // 3 if self.num_val is None else self.num_val
        test = max(0, len(rest) - val) if self.num_test is None else self.num_test
        if val + test > len(rest):
            raise ValueError(
                f"{self._source} has {len(rest)} labelled nodes besides those for training, too few for {val} in "
                f"validation and {test} in testing; lower --data.num_val or --data.num_test"
            )
        for_test = splits.draw(rest, test, self.seed)
        for_val = splits.draw(np.setdiff1d(rest, for_test), val, self.seed)
        for part, chosen in zip(SPLITS, (train, for_val, for_test), strict=True):
            graph[f"{part}_mask"] = torch.isin(torch.arange(graph.num_nodes), torch.from_numpy(chosen))

    def _check_classes(self, graph: Data) -> None:
        trained = graph.y[graph.train_mask & (graph.y >= 0)].unique()
        if len(trained) == 0:
            raise ValueError(
                f"{self._source} has no labelled node for training; say which with a split or a train_mask"
            )
        for part in ("val", "test"):
            lacking = graph[f"{part}_mask"] & (graph.y >= 0) & ~torch.isin(graph.y, trained)
            if lacking.any():
                node = int(lacking.nonzero()[0])
                raise ValueError(
                    f"{self._source}: node {self._node_names[node]!r} of the {part} split is of class "
                    f"{self._classes_read[int(graph.y[node])]!r}, of which there is no training node; add one, or take "
                    "the class out"
                )
        if missing := sorted(set(range(len(self._classes_read))) - set(trained.tolist())):
            raise ValueError(
                f"{self._source}: there is no training node of class {self._classes_read[missing[0]]!r}; label one, or "
                "number the classes without gaps"
            )

    def _fitted(self) -> dict[str, Any]:
        if not self._known:
            raise ValueError(
                "the classes and features are not known: this needs a checkpoint (--ckpt_path FILE), or training first "
                "(setup('fit') in Python)"
            )
        return self._known

    def _encoded(self) -> Data:
        return self._scaled(self._read(), self._source)

    def _scaled(self, graph: Data, source: str) -> Data:
        known = self._fitted()
        for kind, count in (("features", graph.num_features), ("features of edges", graph.num_edge_features)):
            expected = known["num_features" if kind == "features" else "num_edge_features"]
            if count != expected:
                raise ValueError(f"{source} has {count} {kind}, but the model was trained on {expected}")
        if (graph.y >= len(known["classes"])).any():
            raise ValueError(f"{source} has class {int(graph.y.max())}, but the model knows {len(known['classes'])}")
        graph = graph.clone()
        if known["scaling"] == "rows":
            total = graph.x.abs().sum(1, keepdim=True)
            graph.x = graph.x / total.masked_fill(total == 0, 1.0)
        elif known["scaling"] == "standard":
            graph.x = (graph.x - torch.tensor(known["mean"])) / torch.tensor(known["std"])
        return graph

    def _whole(self, batch: NodeBatch, accumulate: int = 1) -> Loader[NodeBatch]:
        """The whole graph in each process, which asks for its share of the nodes, in as many batches as accumulate."""
        asked = shares([batch.asked.numpy()], *processes(self), accumulate)
        return Loader(tuple(map(torch.from_numpy, asked)), lambda asked: batch._replace(asked=asked))

    def _part(self, part: str) -> NodeBatch:
        graph = self._encoded()
        self.check_drawn(part)
        return _batch(graph, graph[f"{part}_mask"] & (graph.y >= 0))


def _is_saved(path: str) -> bool:
    return not path.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".parquet"))


def _learn_scaling(scaling: Scaling, x: Tensor) -> dict[str, Any]:
    if scaling != "standard":
        return {"scaling": scaling}
    std = x.double().std(0, correction=0)
    std = std.masked_fill(std == 0, 1.0)  # a constant feature becomes 0
    return {"scaling": scaling, "mean": x.double().mean(0).float().tolist(), "std": std.float().tolist()}


def _without(graph: Data, left_out: Tensor) -> Data:
    """Take nodes out of a graph, and their edges."""
    kept = ~left_out
    edge_index, edge_attr = subgraph(kept, graph.edge_index, graph.edge_attr, relabel_nodes=True)
    return Data(
        x=graph.x[kept], edge_index=edge_index, edge_attr=edge_attr, y=graph.y[kept], train_mask=graph.train_mask[kept]
    )


def _batch(graph: Data, asked: Tensor) -> NodeBatch:
    return NodeBatch(graph.x, graph.edge_index, graph.edge_attr, graph.y, asked.nonzero().squeeze(1))
