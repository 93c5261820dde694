"""Citation graphs: as PyG reads them, and without running what a pickle may carry."""

import hashlib
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.io import read_planetoid_data

from ika_lightning.data.datasets import DATASETS
from ika_lightning.data.datasets.planetoid import PARTS


def read_planetoid(name: str, root: str) -> Data:
    return DATASETS[name].graph(root)


@pytest.fixture
def copied(benchmark_root, tmp_path) -> Path:
    """Cora's files in a folder that may be spoiled."""
    raw = tmp_path / "graph" / "cora" / "raw"
    shutil.copytree(benchmark_root / "graph" / "cora" / "raw", raw)
    raw.chmod(0o755)
    for file in raw.iterdir():
        file.chmod(0o644)
    return raw


@pytest.mark.parametrize(
    "name, nodes, features, edges, classes", [("cora", 2708, 1433, 5278, 7), ("citeseer", 3327, 3703, 4552, 6)]
)
def test_sizes_and_split(benchmark_root, name, nodes, features, edges, classes):
    graph = read_planetoid(name, str(benchmark_root))
    assert graph.x.shape == (nodes, features)
    assert graph.edge_index.shape == (2, 2 * edges)
    assert graph.is_undirected() and not graph.has_self_loops()
    assert graph.y.max() == classes - 1
    assert [int(graph[f"{part}_mask"].sum()) for part in ("train", "val", "test")] == [20 * classes, 500, 1000]
    assert graph.y[graph.train_mask].bincount().tolist() == [20] * classes


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_is_what_pyg_reads(benchmark_root, name):
    pytest.importorskip("scipy", reason="PyG reads the files with SciPy")
    ours = read_planetoid(name, str(benchmark_root))
    theirs = read_planetoid_data(str(benchmark_root / "graph" / name / "raw"), name)
    for key in ("x", "edge_index", "train_mask", "val_mask", "test_mask"):
        assert ours[key].equal(theirs[key]), key
    known = ours.y >= 0
    assert ours.y[known].equal(theirs.y[known])
    assert int((~known).sum()) == {"cora": 0, "citeseer": 15}[name]
    assert theirs.x[~known].eq(0).all()


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_is_what_the_plain_arrays_say(benchmark_root, name):
    graph, arrays = read_planetoid(name, str(benchmark_root)), np.load(benchmark_root / "graph" / name / f"{name}.npz")
    assert graph.y.tolist() == arrays["y"].tolist()
    upper = graph.edge_index[:, graph.edge_index[0] < graph.edge_index[1]]
    assert set(map(tuple, upper.T.tolist())) == set(map(tuple, arrays["edges_undirected"].T.tolist()))
    for part in ("train", "val", "test"):
        assert set(torch.where(graph[f"{part}_mask"])[0].tolist()) == set(arrays[f"{part}_idx"].tolist())


def test_checksums_are_those_of_the_files(benchmark_root):
    checked = 0
    for name in ("cora", "citeseer", "pubmed"):
        for part in PARTS:
            remote = DATASETS[name].files[part]
            file, known = benchmark_root / remote.path, (remote.size, remote.sha256)
            if file.is_file() and known != (None, None):
                content = file.read_bytes()
                assert known == (len(content), hashlib.sha256(content).hexdigest())
                checked += 1
    assert checked == 23


def test_a_part_that_is_missing_is_named_with_its_address(benchmark_root, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("requests.get", no_network)
    address = "https://github.com/kimiyoung/planetoid/raw/master/data/ind.pubmed.allx"
    with pytest.raises(
        FileNotFoundError, match=f"there is no graph/pubmed/raw/ind.pubmed.allx under .* and {address} could not"
    ):
        read_planetoid("pubmed", str(benchmark_root))


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harm",)


def test_code_in_a_file_is_not_run(copied, monkeypatch):
    monkeypatch.chdir(copied)
    (copied / "ind.cora.allx").write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(ValueError, match=r"ind.cora.allx is no part of Planetoid \(it asks for posix.system\)"):
        read_planetoid("cora", str(copied.parents[2]))
    assert not Path("harm").exists()


@pytest.mark.parametrize("part", ["x", "allx", "ally", "graph"])
def test_damaged_files(copied, part):
    file = copied / f"ind.cora.{part}"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=f"ind.cora.{part} is no part of Planetoid .*remove it to fetch it again"):
        read_planetoid("cora", str(copied.parents[2]))


@pytest.mark.parametrize(
    "part, other", [("allx", "ally"), ("tx", "x"), ("test.index", "graph"), ("graph", "y"), ("ally", "graph")]
)
def test_files_that_do_not_fit_together(copied, part, other):
    shutil.copy(copied / f"ind.cora.{other}", copied / f"ind.cora.{part}")
    with pytest.raises(ValueError, match=r"do not make a graph|is no part of Planetoid"):
        read_planetoid("cora", str(copied.parents[2]))
