"""Data of the node classification task: a graph, some of whose nodes have a known class."""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ika_lightning.data.base import DataModule, one_or_several, plain
from ika_lightning.data.checks import check_least, check_source
from ika_lightning.data.datasets import GraphSet, find_dataset
from ika_lightning.data.graphs import NodeGraph, read_graph
from ika_lightning.data.loader import Loader, RowSampler, shares, update_shares
from ika_lightning.data.neighbours import Neighbours
from ika_lightning.data.nodes import NodeBatch, NodeCorpus, NodeEncoder, Scaling, check_edges
from ika_lightning.data.numbers import NumberFormat

__all__ = ["NodeBatch", "NodeClassificationData"]


class NodeClassificationData(DataModule[NodeGraph, NodeEncoder, NodeBatch, NodeBatch]):
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
        missing_values: Labels, one or a list, that say that nothing is known, besides empty cells. None refuses those
            that may say so, such as ``NA``.
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
        missing_values: list[str] | str | None = None,
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
        missing_values = one_or_several(missing_values)
        self.save_hyperparameters()
        self.predict_path, self.predict_edges_path = predict_path, predict_edges_path
        self.batch_size, self.seed = batch_size, seed
        self.num_neighbors = [15, 10] if num_neighbors is None else num_neighbors
        known = None if name is None else find_dataset(name, GraphSet, "--data.path FILE")
        check_source(GraphSet, "--data.path FILE", name, path, predict_path)
        check_edges("predict_path", predict_path, predict_edges_path)
        check_least(batch_size=(batch_size, 1))
        written = NumberFormat(decimal, thousands)
        written.check()
        if not self.num_neighbors or any(count < -1 for count in self.num_neighbors):
            raise ValueError(f"num_neighbors must be counts, or -1 for all, got {self.num_neighbors}")
        self.corpus = NodeCorpus(
            dataset=known,
            path=path,
            root=root,
            edges_path=edges_path,
            predict_edges_path=predict_edges_path,
            read_tables=partial(
                read_graph,
                node=node,
                label=label,
                split=split_column,
                undirected=undirected,
                edges_header=edges_header,
                separator=separator,
                written=written,
                missing_values=missing_values,
            ),
            split=split,
            train_per_class=train_per_class,
            num_val=num_val,
            num_test=num_test,
            scaling=scaling,
            inductive=inductive,
            seed=seed,
        )

    def setup_new(self) -> None:
        """Read the new graph, by default the graph itself; that of a table when the names of features are known."""
        files = [file for file in (self.predict_path, self.predict_edges_path) if file is not None]
        if not files:
            self.read("predict")
            self.keep("predict", self.part("train"))
        elif self.is_fitted:
            super().setup_new()
        else:
            # When a checkpoint is given, Lightning loads the names after this.
            for file in files:
                if not Path(file).is_file():
                    raise FileNotFoundError(f"there is no file {file}; check the spelling and the folder")

    def loader(self, part: str) -> Loader[NodeBatch]:
        """The whole graph, asked for the nodes of a split; in training perhaps ``batch_size`` nodes at a time."""
        batch = self.encoded(part)
        dealt = update_shares(self, training=part == "train")
        if part != "train" or self.batch_size is None:
            # in each process, which asks for its share of the nodes, in as many batches as make an update
            asked = shares([batch.asked.numpy()], **dealt)
            return Loader(tuple(map(torch.from_numpy, asked)), lambda asked: batch._replace(asked=asked))
        sampler = RowSampler(len(batch.asked), self.batch_size, seed=self.seed, **dealt)
        neighbours = Neighbours(batch.edge_index, len(batch.x), self.num_neighbors)

        def around(index: Tensor) -> NodeBatch:
            # what is sampled around a set of nodes is a function of seed, epoch and set, as the set is of the first two
            return batch.sample(neighbours, index, np.random.default_rng([self.seed, sampler.epoch, *index.tolist()]))

        return Loader(sampler, around)

    @property
    def num_features(self) -> int:
        """How many features a node has."""
        return self.learned.num_features

    @property
    def num_edge_features(self) -> int:
        """How many features an edge has."""
        return self.learned.num_edge_features

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.learned.classes

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes of the graph that was read last, those of its table, else their numbers."""
        return [*self._parts.values()][-1].names if self._parts else []
