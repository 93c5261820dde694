"""NodeClassificationData: graphs, splits, scaling, batches, predictions, and what it says when something is wrong."""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close
from torch_geometric.data import Data, HeteroData

from ika_lightning.data import NodeClassificationData
from ika_lightning.data.datasets.digits import read_digits

NODES = 23


def write_tables(folder: Path, rows: int = NODES, name: str = "nodes", **columns) -> dict[str, str]:
    """Nodes n0, n1, ... of three classes on a ring; two features, a split of 12, 5 and 5, the last node without one."""
    split = (["train"] * 12 + ["val"] * 5 + ["test"] * 5 + [""] * rows)[:rows]
    table = {
        "node": [f"n{row}" for row in range(rows)],
        "height": np.arange(rows) * 0.7 - 3,
        "width": (np.arange(rows) % 5) ** 2,
        "label": [["red", "green", "blue"][row % 3] for row in range(rows)],
        "split": split,
    }
    table |= columns
    pd.DataFrame({key: value for key, value in table.items() if value is not None}).to_csv(
        folder / f"{name}.csv", index=False
    )
    ring = [(f"n{row}", f"n{(row + 1) % rows}") for row in range(rows)]
    pd.DataFrame(ring, columns=["from", "to"]).to_csv(folder / f"{name}_edges.csv", index=False)
    return {"path": str(folder / f"{name}.csv"), "edges_path": str(folder / f"{name}_edges.csv")}


@pytest.fixture
def tables(tmp_path):
    return lambda *args, **kwargs: write_tables(tmp_path, *args, **kwargs)


@pytest.fixture
def save(tmp_path):
    def save(**changes) -> str:
        """The same ring as a saved graph."""
        number = torch.arange(NODES)
        parts = {
            "x": torch.stack([number * 0.7 - 3, (number % 5) ** 2], 1),
            "edge_index": torch.stack(
                [torch.cat([number, (number + 1) % NODES]), torch.cat([(number + 1) % NODES, number])]
            ),
            "y": number % 3,
            "train_mask": number < 12,
            "val_mask": (number >= 12) & (number < 17),
            "test_mask": (number >= 17) & (number < 22),
        }
        parts |= changes
        torch.save(Data(**{key: value for key, value in parts.items() if value is not None}), tmp_path / "graph.pt")
        return str(tmp_path / "graph.pt")

    return save


def fitted(**options) -> NodeClassificationData:
    data = NodeClassificationData(**options)
    data.setup("fit")
    return data


def parts(data: NodeClassificationData) -> list[list[int]]:
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    return [next(iter(loader)).asked.tolist() for loader in loaders]


class TestNamed:
    def test_karate(self):
        data = fitted(name="karate")
        train, val, test = parts(data)
        assert (train, len(val), len(test)) == ([0, 4, 8, 24], 10, 20)
        assert not set(train) & set(val) and not set(val) & set(test)
        assert parts(fitted(name="karate", seed=1))[0] == train

    def test_digits(self):
        data = fitted(name="digits")
        (batch,) = data.train_dataloader()
        assert batch.y[batch.asked].bincount().tolist() == [5] * 10
        assert [len(part) for part in parts(data)] == [50, 300, 1447]
        assert data.num_features == 64
        assert batch.x.amax() == 1
        assert parts(fitted(name="digits")) == parts(data) != parts(fitted(name="digits", seed=1))

    def test_digits_are_joined_to_the_nearest(self):
        graph = read_digits({}, 3)
        distance = torch.cdist(graph.x.double(), graph.x.double()).fill_diagonal_(torch.inf)
        assert graph.is_undirected() and not graph.has_self_loops()
        for node in range(0, 1797, 101):
            joined = graph.edge_index[0][graph.edge_index[1] == node]
            near = distance[node].sort().values[2]
            assert (distance[node, joined] <= near + 1e-9).sum() >= 3
            for other in joined[distance[node, joined] > near + 1e-9]:
                assert distance[other].sort().values[2] >= distance[other, node] - 1e-9

    def test_cora(self, benchmark_root):
        started = time.perf_counter()
        data = fitted(name="cora", root=str(benchmark_root))
        assert time.perf_counter() - started < 10  # in fact a small part of it, but computers get busy
        (batch,) = data.train_dataloader()
        assert_close(batch.x.sum(1), torch.ones(2708))
        assert [len(part) for part in parts(data)] == [140, 500, 1000]
        assert data.classes == [str(number) for number in range(7)]

    def test_splits_of_citeseer(self, benchmark_root):
        root = str(benchmark_root)
        public = parts(fitted(name="citeseer", root=root))
        full = parts(fitted(name="citeseer", root=root, split="full"))
        assert full[1:] == public[1:]
        assert len(full[0]) == 3327 - 15 - 1500  # those of which nothing is known are not trained on
        drawn = parts(fitted(name="citeseer", root=root, split="random"))
        assert [len(part) for part in drawn] == [120, 500, 1000]
        assert drawn[0] != public[0]
        assert len({*drawn[0], *drawn[1], *drawn[2]}) == 1620


class TestOwn:
    def test_tables(self, tables):
        data = fitted(**tables())
        assert data.classes == ["blue", "green", "red"]
        assert parts(data) == [list(range(12)), list(range(12, 17)), list(range(17, 22))]
        (batch,) = data.train_dataloader()
        assert batch.edge_index.size(1) == 2 * NODES
        assert batch.edge_attr is None
        assert_close(batch.x[:12].mean(0), torch.zeros(2), atol=1e-6, rtol=0)
        assert_close(batch.x[:12].std(0, correction=0), torch.ones(2))
        assert batch.y[:3].tolist() == [2, 1, 0]

    def test_directed_edges_with_features(self, tables, tmp_path):
        paths = tables()
        edges = pd.read_csv(paths["edges_path"])
        edges["strength"] = np.arange(NODES) / 2
        edges.to_csv(paths["edges_path"], index=False)
        (batch,) = fitted(**paths, undirected=False).train_dataloader()
        assert batch.edge_index.tolist() == [list(range(NODES)), [*range(1, NODES), 0]]
        assert batch.edge_attr.tolist() == [[row / 2] for row in range(NODES)]
        data = fitted(**paths)
        (batch,) = data.train_dataloader()
        assert data.num_edge_features == 1 and batch.edge_attr.shape == (2 * NODES, 1)

    def test_saved_is_the_same_graph(self, tables, save):
        (table,), (saved,) = (
            fitted(**options).train_dataloader() for options in (tables(), {"path": save(), "scaling": "standard"})
        )
        assert_close(saved.x, table.x)
        pairs = [set(map(tuple, batch.edge_index.T.tolist())) for batch in (table, saved)]
        assert pairs[0] == pairs[1]
        assert saved.asked.equal(table.asked)

    def test_a_dict_of_tensors(self, save, tmp_path):
        torch.save(torch.load(save(), weights_only=False).to_dict(), tmp_path / "dict.pt")
        assert fitted(path=str(tmp_path / "dict.pt")).num_features == 2

    def test_without_a_split(self, save):
        path = save(train_mask=None, val_mask=None, test_mask=None)
        train, val, test = parts(fitted(path=path, train_per_class=2))
        assert [len(part) for part in (train, val, test)] == [6, 5, 12]
        assert sorted([*train, *val, *test]) == list(range(NODES))
        assert parts(fitted(path=path, train_per_class=2, num_val=3, num_test=4))[1:] != [val, test]

    def test_unknown_labels_are_in_no_split(self, save):
        y = torch.arange(NODES) % 3
        y[[2, 13, 20]] = -1
        train, val, test = parts(fitted(path=save(y=y)))
        assert not {2, 13, 20} & {*train, *val, *test}
        drawn = fitted(path=save(y=y), split="random", train_per_class=2)
        assert not {2, 13, 20} & {node for part in parts(drawn) for node in part}

    def test_inductive_training_does_not_see_what_is_held_out(self, save):
        data = fitted(path=save(), inductive=True)
        (batch,) = data.train_dataloader()
        assert len(batch.x) == 13  # the node without a split is no secret
        assert len(batch.asked) == 12
        assert batch.edge_index.size(1) == 2 * 12  # of the ring, without two arcs
        (whole,) = data.val_dataloader()
        assert len(whole.x) == NODES
        assert data.train_dataloader().take(None).x.equal(whole.x[[*range(12), 22]])

    def test_scaling_is_learned_on_training_nodes_alone(self, save):
        x = torch.randn(NODES, 2)
        (before,) = fitted(path=save(x=x), scaling="standard").train_dataloader()
        x[12:] *= 1e6
        (after,) = fitted(path=save(x=x), scaling="standard").train_dataloader()
        assert before.x[:12].equal(after.x[:12])

    def test_a_constant_feature_is_zero(self, save):
        (batch,) = fitted(path=save(x=torch.ones(NODES, 1)), scaling="standard").train_dataloader()
        assert batch.x.eq(0).all()

    def test_rows(self, save):
        x = torch.rand(NODES, 3)
        x[4] = 0
        (batch,) = fitted(path=save(x=x), scaling="rows").train_dataloader()
        assert_close(batch.x.sum(1), (torch.arange(NODES) != 4).float())


class TestBatches:
    def test_are_drawn_anew_by_seed_and_epoch(self, save):
        loader = fitted(path=save(), batch_size=4, num_neighbors=[2, 1]).train_dataloader()
        first = [(batch.x.tolist(), batch.edge_index.tolist()) for batch in loader]
        assert len(first) == 3
        assert [(batch.x.tolist(), batch.edge_index.tolist()) for batch in loader] == first
        loader.sampler.set_epoch(1)
        assert [(batch.x.tolist(), batch.edge_index.tolist()) for batch in loader] != first

    def test_each_training_node_once_with_its_label(self, save):
        data = fitted(path=save(), batch_size=4, num_neighbors=[1])
        (whole,) = data.val_dataloader()
        position = {tuple(row): node for node, row in enumerate(whole.x.tolist())}
        seen = []
        for batch in data.train_dataloader():
            nodes = [position[tuple(row)] for row in batch.x.tolist()]
            assert batch.y.tolist() == [node % 3 for node in nodes]
            assert batch.asked.tolist() == [0, 1, 2, 3]
            seen += nodes[:4]
        assert sorted(seen) == list(range(12))

    def test_a_batch_with_all_neighbours_gives_what_the_whole_graph_gives(self, save):
        from ika_lightning.attention import KernelGATConv
        from ika_lightning.models import GraphNetwork

        data = fitted(path=save(), batch_size=4, num_neighbors=[-1, -1])
        torch.manual_seed(0)
        net = GraphNetwork(2, 3, KernelGATConv).eval()
        (whole,) = data.val_dataloader()
        expected = net(whole.x, whole.edge_index)
        position = {tuple(row): node for node, row in enumerate(whole.x.tolist())}
        for batch in data.train_dataloader():
            nodes = [position[tuple(row)] for row in batch.x[batch.asked].tolist()]
            assert_close(net(batch.x, batch.edge_index)[batch.asked], expected[nodes])

    def test_evaluation_is_on_the_whole_graph(self, save):
        data = fitted(path=save(), batch_size=4)
        for loader in (data.val_dataloader(), data.test_dataloader()):
            (batch,) = loader
            assert len(batch.x) == NODES


class TestState:
    def test_round_trip_to_a_new_graph(self, tables, tmp_path):
        data = fitted(**tables())
        torch.save(data.state_dict(), tmp_path / "state.pt")
        paths = tables(7, "new", label=["?"] * 7, height=np.arange(7.0) * 0.7 - 3, note=["text"] * 7)
        new = NodeClassificationData(predict_path=paths["path"], predict_edges_path=paths["edges_path"])
        new.setup("predict")
        new.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        (batch,) = new.predict_dataloader()
        (old,) = data.train_dataloader()
        assert_close(batch.x[:, 0], old.x[:7, 0])
        assert batch.asked.tolist() == list(range(7))
        new.write_predictions(tmp_path / "out.csv", torch.eye(3)[[0, 1, 2, 0, 1, 2, 0]])
        lines = (tmp_path / "out.csv").read_text().splitlines()
        assert lines[0] == "node,label,probability_blue,probability_green,probability_red"
        assert lines[2] == "n1,green,0.0,1.0,0.0"
        assert len(lines) == 8

    def test_by_default_the_nodes_of_the_graph_itself(self, save, tmp_path):
        data = fitted(path=save())
        data.setup("predict")
        (batch,) = data.predict_dataloader()
        assert batch.asked.tolist() == list(range(NODES))
        data.write_predictions(tmp_path / "out.csv", torch.rand(NODES, 3))
        assert pd.read_csv(tmp_path / "out.csv")["node"].tolist() == list(range(NODES))
        with pytest.raises(ValueError, match=r"must have shape \(23, 3\), one row per node and one column per class"):
            data.write_predictions(tmp_path / "out.csv", torch.rand(NODES, 2))

    def test_the_table_itself_as_new_data(self, tables, tmp_path):
        """Its labels are labels where it is trained on, though those of new data are not looked at."""
        paths = tables()
        data = fitted(**paths, predict_path=paths["path"], predict_edges_path=paths["edges_path"])
        assert data.classes == ["blue", "green", "red"] and data.num_features == 2
        data.setup("predict")
        (batch,), (trained,) = data.predict_dataloader(), data.train_dataloader()
        assert batch.x.equal(trained.x) and batch.y.eq(-1).all() and len(batch.asked) == NODES

    def test_loaders_read_what_was_not_set_up(self, tables):
        data, new = fitted(**tables()), NodeClassificationData(**tables())
        new.load_state_dict(data.state_dict())
        assert parts(new) == parts(data)

    def test_classes_of_the_checkpoint_rule(self, tables):
        data = fitted(**tables())
        other = NodeClassificationData(**tables(name="other", label=["green", "blue"] * 11 + ["green"]))
        other.setup("test")
        other.load_state_dict(data.state_dict())
        (batch,) = other.test_dataloader()
        assert batch.y[:2].tolist() == [1, 0]
        strange = NodeClassificationData(**tables(name="strange", label=["violet"] * NODES))
        strange.load_state_dict(data.state_dict())
        with pytest.raises(ValueError, match="row 1: label 'violet' is none of the classes of training, 'blue'"):
            strange.test_dataloader()

    def test_other_features(self, save):
        state = fitted(path=save()).state_dict()
        other = NodeClassificationData(path=save(x=torch.rand(NODES, 5)))
        other.load_state_dict(state)
        with pytest.raises(ValueError, match="has 5 features, but the model was trained on 2"):
            other.test_dataloader()

    def test_nothing_known_yet(self, save):
        data = NodeClassificationData(predict_path=save())
        data.setup("predict")
        for ask in (lambda: data.num_features, data.predict_dataloader):
            with pytest.raises(ValueError, match="needs a checkpoint"):
                ask()


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harm",)


class TestBadInput:
    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({}, r"no data: give --data.name, one of 'digits', 'karate'.*--data.path"),
            ({"name": "coora"}, r"no known data set \(did you mean 'cora'\?\)"),
            ({"name": "cora", "path": "a.pt"}, "name or path, not both"),
            ({"path": "a.csv"}, "path='a.csv' needs its edges as well"),
            ({"path": "a.pt", "edges_path": "b.csv"}, "path='a.pt' is a whole graph; leave out the table of edges"),
            ({"name": "cora", "edges_path": "b.csv"}, "b.csv are edges of which nodes"),
            ({"predict_path": "a.csv"}, "predict_path='a.csv' needs its edges"),
            ({"name": "cora", "split": "half"}, "split must be one of 'public', 'full', 'random', got 'half'"),
            ({"name": "cora", "scaling": "max"}, "scaling must be one of 'rows', 'standard', 'none', got 'max'"),
            ({"name": "cora", "train_per_class": 0}, "train_per_class must be at least 1, got 0"),
            ({"name": "cora", "batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"name": "cora", "seed": -1}, "seed must be at least 0, got -1"),
            ({"name": "cora", "num_neighbors": []}, r"num_neighbors must be counts, or -1 for all, got \[\]"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            NodeClassificationData(**arguments)

    def test_files_that_are_not_there(self, tables, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no file gone.pt"):
            fitted(path="gone.pt")
        with pytest.raises(FileNotFoundError, match=r"there is no file gone.csv"):
            fitted(path=tables()["path"], edges_path="gone.csv")
        with pytest.raises(FileNotFoundError, match=r"there is no file gone.pt"):
            NodeClassificationData(predict_path="gone.pt").setup("predict")
        with pytest.raises(ValueError, match="there is no graph to train or test on"):
            NodeClassificationData(predict_path="gone.pt").setup("fit")

    def test_an_edge_to_a_missing_node(self, tables, save):
        paths = tables()
        with open(paths["edges_path"], "a") as file:
            file.write("n3,n33\n")
        with pytest.raises(ValueError, match=r"nodes_edges.csv, row 24: there is no node 'n33' in .*nodes.csv"):
            fitted(**paths)
        with pytest.raises(
            ValueError, match=r"column 1 of edge_index, \[2, 23\], names a node that is missing; nodes are 0"
        ):
            fitted(path=save(edge_index=torch.tensor([[0, 2], [1, 23]])))

    def test_a_node_twice(self, tables):
        names = [f"n{row}" for row in range(NODES)]
        names[9] = "n4"
        with pytest.raises(ValueError, match="row 10: node 'n4' is there already, in row 5; remove one"):
            fitted(**tables(node=names))

    @pytest.mark.parametrize("part, first", [("val", 12), ("test", 17)])
    def test_a_class_that_training_lacks(self, tables, save, part, first):
        labels = ["red", "green"] * 11 + ["red"]
        labels[first] = "violet"
        message = f"node 'n{first}' of the {part} split is of class 'violet', of which there is no training node"
        with pytest.raises(ValueError, match=message):
            fitted(**tables(label=labels))
        y = torch.arange(NODES) % 2
        y[first] = 2
        with pytest.raises(ValueError, match=f"node '{first}' of the {part} split is of class '2'"):
            fitted(path=save(y=y))

    def test_no_training_node_for_a_class(self, save):
        y = torch.arange(NODES) % 2
        y[22] = 2  # in no split
        with pytest.raises(ValueError, match="there is no training node of class '2'; label one"):
            fitted(path=save(y=y))
        with pytest.raises(ValueError, match="there is no training node of class '1'"):
            fitted(path=save(y=2 * (torch.arange(NODES) % 2)))

    def test_no_labels_at_all(self, tables, save):
        for options in ({"path": save(y=None)}, tables(label=None)):
            with pytest.raises(ValueError, match="no labelled node for training"):
                fitted(**options)

    def test_no_edges(self, save, tables):
        with pytest.raises(ValueError, match="has no edges"):
            fitted(path=save(edge_index=torch.empty(2, 0, dtype=torch.long)))
        paths = tables()
        Path(paths["edges_path"]).write_text("from,to\n")
        with pytest.raises(ValueError, match=r"nodes_edges.csv has a header but no rows"):
            fitted(**paths)

    def test_features_that_are_no_numbers(self, tables, save):
        x = torch.rand(NODES, 2)
        x[7, 1] = torch.nan
        with pytest.raises(ValueError, match="feature 1 of node 7 is nan; fill it in"):
            fitted(path=save(x=x))
        heights = [*map(str, range(NODES))]
        heights[7] = ""
        with pytest.raises(ValueError, match="row 8, column 'height': '' is no finite number"):
            fitted(**tables(height=heights))
        heights[7] = "tall"
        with pytest.raises(ValueError, match="row 8: column 'height' is a feature, but 'tall' is not a number"):
            fitted(**tables(height=heights))
        with pytest.raises(ValueError, match="has no features"):
            fitted(**tables(height=None, width=None))

    def test_a_split_that_is_none(self, tables):
        with pytest.raises(ValueError, match=r"row 1: split 'training' is none of 'train', 'val', 'test' or empty"):
            fitted(**tables(split=["training"] * NODES))
        with pytest.raises(ValueError, match=r"does not say how to split it; leave out --data.split public"):
            fitted(**tables(split=None), split="public")
        with pytest.raises(ValueError, match="has 17 labelled nodes besides those for training, too few for 15 in"):
            fitted(**tables(), split="random", train_per_class=2, num_val=15, num_test=3)

    def test_edges_without_a_target(self, tables):
        paths = tables()
        Path(paths["edges_path"]).write_text("from\nn1\n")
        with pytest.raises(ValueError, match="has one column; it needs two"):
            fitted(**paths)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"x": torch.ones(NODES)}, r"x must be numbers of shape \(nodes, features\)"),
            ({"x": torch.ones(NODES, 2, dtype=torch.long)}, "x must be numbers"),
            (
                {"edge_index": torch.ones(3, 2, dtype=torch.long)},
                r"edge_index must be whole numbers of shape \(2, edges\)",
            ),
            ({"y": torch.ones(NODES)}, "y must be a whole number for each node"),
            ({"train_mask": torch.ones(NODES, 10, dtype=torch.bool)}, "train_mask must be a boolean for each node"),
            ({"edge_attr": torch.full((2 * NODES, 1), torch.inf)}, "edge_attr of edge 0 is not finite"),
        ],
    )
    def test_tensors_of_another_shape(self, save, changes, message):
        with pytest.raises(ValueError, match=message):
            fitted(path=save(**changes))

    def test_unsafe_files_are_not_run(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.save({"x": Harmful()}, "harmful.pt")
        with pytest.raises(ValueError, match=r"harmful.pt holds posix.system, which takes running code .*: refused"):
            fitted(path="harmful.pt")
        assert not Path("harm").exists()
        torch.save(HeteroData(), "hetero.pt")
        with pytest.raises(
            ValueError, match=r"hetero.pt holds torch_geometric[.a-zA-Z_]*, which takes running code .*refused"
        ):
            fitted(path="hetero.pt")

    @pytest.mark.parametrize(
        "content, message",
        [
            (b"", "is no file of torch.save, or is damaged"),
            (b"hello", "is no file of torch.save, or is damaged|holds more than tensors"),
            ([1, 2], "holds a list, not a graph"),
            ({"x": torch.ones(3, 1)}, "the graph has no edge_index, only 'x'"),
            ({"edge_index": torch.ones(2, 1)}, "the graph has no x"),
        ],
    )
    def test_files_that_are_no_graph(self, tmp_path, content, message):
        path = tmp_path / "wrong.pt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            fitted(path=str(path))

    def test_a_file_that_was_cut(self, save):
        path = Path(save())
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(ValueError, match=r"is no file of torch.save, or is damaged"):
            fitted(path=str(path))

    def test_no_test_nodes(self, save):
        data = fitted(path=save(test_mask=None))
        with pytest.raises(ValueError, match="has no labelled test nodes"):
            data.test_dataloader()


class TestEdgesWithoutAHeader:
    @pytest.fixture
    def edges(self, tables):
        def edges(*lines: str, **options) -> NodeClassificationData:
            paths = tables()
            Path(paths["edges_path"]).write_text("".join(f"{line}\n" for line in lines))
            return fitted(**paths, **options)

        return edges

    ring = tuple(f"n{row},n{(row + 1) % NODES}" for row in range(NODES))

    def test_the_first_edge_is_kept(self, edges, capsys):
        graph = edges(*self.ring, undirected=False)._parts["train"].graph
        assert graph.edge_index.tolist() == [list(range(NODES)), [*range(1, NODES), 0]]
        assert "line 1, 'n0', 'n1', is read as an edge, as it names two nodes" in capsys.readouterr().err
        assert edges("from,to", *self.ring, undirected=False)._parts["train"].graph.edge_index.equal(graph.edge_index)

    def test_with_features_and_loops(self, edges):
        graph = edges("n1,n1,0.5", "n1,n2,2", undirected=False)._parts["train"].graph
        assert graph.edge_index.tolist() == [[1, 1], [1, 2]] and graph.edge_attr.tolist() == [[0.5], [2.0]]

    @pytest.mark.parametrize("first", ["n0,nobody", "source,n1", "17,23", "n0,n1,weight"])
    def test_what_is_unclear_is_refused(self, edges, first):
        with pytest.raises(ValueError, match=r"is line 1, '.*', a header or an edge\? Say which with --data.edges"):
            edges(first, *(f"{edge},1" if "weight" in first else edge for edge in self.ring))

    def test_a_header_is_said(self, edges, capsys):
        assert edges("paper,cites", *self.ring, undirected=False)._parts["train"].graph.edge_index.size(1) == NODES
        assert "line 1, 'paper', 'cites', is read as a header, as it names no node" in capsys.readouterr().err

    def test_edges_that_occur_twice_with_other_features_are_said(self, edges, capsys):
        graph = edges("n0,n1,1", "n1,n0,3", "n1,n2,7", "n1,n2,7", "n3,n3,1", "n3,n3,2")._parts["train"].graph
        assert graph.edge_index.tolist() == [[0, 1, 1, 2, 3], [1, 0, 2, 1, 3]]
        assert graph.edge_attr.flatten().tolist() == [2.0, 2.0, 7.0, 7.0, 1.5]
        assert "2 edges occur more than once, in either direction, with other features" in capsys.readouterr().err

    def test_one_column(self, edges):
        with pytest.raises(ValueError, match="has one column; it needs two, the source and the target of each edge"):
            edges("n0", "n1")

    def test_the_option_settles_it(self, edges):
        assert (
            edges("n0,n1", *self.ring, edges_header=True, undirected=False)._parts["train"].graph.edge_index.size(1)
            == NODES
        )
        with pytest.raises(ValueError, match="row 1: there is no node 'nobody'"):
            edges("n0,nobody", *self.ring, edges_header=False)

    def test_a_header_of_numbers_is_one_if_the_user_says_so(self, tables, capsys):
        paths = tables(node=[str(row) for row in range(NODES)])
        ring = [f"{row},{(row + 1) % NODES}" for row in range(NODES)]
        for first in ("17,23", "0,1", "7,99"):
            Path(paths["edges_path"]).write_text("".join(f"{line}\n" for line in [first, *ring]))
            graph = fitted(**paths, edges_header=True, undirected=False)._parts["train"].graph
            assert graph.edge_index.tolist() == [list(range(NODES)), [*range(1, NODES), 0]]
            assert capsys.readouterr().err == ""


class TestCellsOfTables:
    def test_labels_that_may_be_missing_are_refused(self, tables):
        labels = ["red", "green", "None"] * 7 + ["red", ""]
        with pytest.raises(ValueError, match=r"row 3: the label 'None' may be a class or say that none is known; say"):
            fitted(**tables(label=labels))
        assert fitted(**tables(label=labels), missing_values=[]).classes == ["None", "green", "red"]
        data = fitted(**tables(label=labels), missing_values="None")
        assert data.classes == ["green", "red"] and data._parts["train"].graph.y[:4].tolist() == [1, 0, -1, 1]

    def test_numbers_as_people_write_them(self, tables):
        heights = [f"{row},5" for row in range(NODES)]
        with pytest.raises(ValueError, match=r"'0,5' is not a number; say how numbers are written with --data.decimal"):
            fitted(**tables(height=heights))
        assert fitted(**tables(height=heights), decimal=",")._parts["train"].graph.x[:2, 0].tolist() == [0.5, 1.5]

    def test_a_number_by_python_alone(self, tables):
        with pytest.raises(ValueError, match="row 8: column 'height' is a feature, but '1_0' is not a number"):
            fitted(**tables(height=["1_0" if row == 7 else str(row) for row in range(NODES)]))

    @pytest.mark.parametrize("code", ["007", "9007199254740993"])
    def test_codes_are_no_numbers(self, tables, code):
        with pytest.raises(ValueError, match=rf"column 'height' is a feature, but '{code}' is a code and no number"):
            fitted(**tables(height=[*map(str, range(NODES - 1)), code]))

    def test_a_node_without_a_name(self, tables):
        with pytest.raises(ValueError, match="row 3: the node has no name"):
            fitted(**tables(node=["" if row == 2 else f"n{row}" for row in range(NODES)]))

    def test_separators(self, tables):
        paths = tables()
        for path in paths.values():
            Path(path).write_text(Path(path).read_text().replace(",", ";"))
        assert fitted(**paths, separator=";")._parts["train"].graph.num_nodes == NODES
        assert fitted(**paths, separator="auto")._parts["train"].graph.edge_index.size(1) == 2 * NODES


class TestSavedAttributes:
    edges = 2 * NODES

    @pytest.mark.parametrize(
        "shape", [(NODES,), (NODES, 2), (1,), (0, 3), (1, 2 * NODES), (2 * NODES, 1, 1), (), (2 * NODES, 0)]
    )
    def test_features_of_edges_that_do_not_fit(self, save, shape):
        with pytest.raises(ValueError, match=rf"edge_attr must have a row for each of the {self.edges} edges, of "):
            fitted(path=save(edge_attr=torch.ones(shape)))

    @pytest.mark.parametrize("shape", [(2 * NODES,), (2 * NODES, 1), (2 * NODES, 3)])
    def test_features_of_edges_stay_with_their_edges(self, save, shape):
        edge_attr = torch.arange(torch.Size(shape).numel()).reshape(shape)
        kept = fitted(path=save(edge_attr=edge_attr))._parts["train"].graph.edge_attr
        assert len(kept) == self.edges and kept[:, 0].tolist() == edge_attr.reshape(self.edges, -1)[:, 0].tolist()

    @pytest.mark.parametrize("form", ["to_sparse", "to_sparse_csr"])
    def test_sparse_features_are_features(self, save, form):
        x = torch.eye(NODES)
        assert fitted(path=save(x=getattr(x, form)()))._parts["train"].graph.x.equal(x)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"x": torch.ones(NODES, 2, dtype=torch.float64) * 1e300}, "feature 0 of node 0 is inf"),
            ({"x": torch.ones(NODES, 2, dtype=torch.complex64)}, "x must be numbers"),
            (
                {"x": torch.ones(NODES, 0)},
                rf"x must be numbers .* one of each at least, got torch.float32 \({NODES}, 0\)",
            ),
            (
                dict.fromkeys(["y", "train_mask", "val_mask", "test_mask"])
                | {"x": torch.ones(0, 2), "edge_index": torch.zeros(2, 0, dtype=torch.long)},
                r"x must be numbers .* one of each at least, got torch.float32 \(0, 2\)",
            ),
            ({"num_nodes": NODES + 1}, rf"num_nodes is {NODES + 1}, but x has {NODES} rows"),
            ({"y": torch.ones(NODES, 1, dtype=torch.long)}, "y must be a whole number for each node"),
            ({"y": torch.ones(NODES, dtype=torch.bool)}, "y must be a whole number for each node"),
            ({"y": torch.full((NODES,), -100)}, "y of node 0 is -100; a class is 0 or more"),
            ({"edge_index": torch.ones(2, 5, dtype=torch.bool)}, "edge_index must be whole numbers"),
            ({"train_mask": [True] * NODES}, "train_mask must be a tensor, got a list"),
            ({"edge_attr": [1.0]}, "edge_attr must be a tensor, got a list"),
            ({"train_mask": None}, "has a val_mask but no train_mask; say which nodes are for training as well"),
        ],
    )
    def test_what_does_not_fit(self, save, changes, message):
        with pytest.raises(ValueError, match=message):
            fitted(path=save(**changes))

    def test_what_is_not_used_is_said(self, save, capsys):
        fitted(path=save(edge_weight=torch.ones(self.edges), pos=torch.ones(NODES, 2)))
        assert "'edge_weight', 'pos' of the graph is not used; what is used is called x" in capsys.readouterr().err

    def test_masks_that_overlap(self, save):
        with pytest.warns(UserWarning) as warned:
            fitted(path=save(test_mask=torch.arange(NODES) < 12))
        message = "12 nodes are in train_mask and in test_mask; figures measured on them flatter the model"
        assert [str(warning.message).partition(": ")[2] for warning in warned] == [message]


def test_all_labelled_nodes_for_training_are_refused_with_the_way_on(tables):
    """Early stopping and the best checkpoint would have nothing to go by."""
    files = tables(split=None)
    with pytest.raises(
        ValueError, match=r"all 23 labelled nodes are for training, 20 of each class, and none is left "
    ):
        fitted(**files)
    assert len(parts(fitted(**files, train_per_class=4))[1]) > 0
    # who asks for no validation gets none
    fitted(**files, num_val=0)


def test_a_table_without_nodes_names_the_option(tables):
    files = tables(node=None, name="other", person=[f"n{row}" for row in range(NODES)])
    with pytest.raises(ValueError, match=r"has no column 'node'.*; name one with --data\.node$"):
        fitted(**files)
