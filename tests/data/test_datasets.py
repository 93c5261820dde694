"""The registry: every data set says what it is, and is read from where the benchmark data are."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch_geometric.data import Data

import ika_lightning.data.datasets
from ika_lightning.cli import main
from ika_lightning.data import RegressionData, TextClassificationData
from ika_lightning.data.datasets import DATASETS, GraphSet, ParallelSet, TableSet, TextSet, find_dataset, names_of
from ika_lightning.data.download import RemoteFile, data_root

FOLDER = Path(ika_lightning.data.datasets.__file__).parent
FILES = sorted(set(FOLDER.glob("*.py")) - {FOLDER / name for name in ("__init__.py", "kinds.py", "planetoid.py")})


def test_a_file_is_a_data_set_and_short() -> None:
    assert {file.stem for file in FILES} == set(DATASETS) and len(FILES) == 28
    lines = {file.stem: file.read_text(encoding="utf-8").count("\n") for file in FILES}
    assert {name: count for name, count in lines.items() if count >= 60} == {}


@pytest.mark.parametrize("name", DATASETS)
def test_it_says_what_it_is(name) -> None:
    dataset = DATASETS[name]
    assert dataset.name == name and dataset.title and dataset.licence
    for file in dataset.files.values():
        if isinstance(file, RemoteFile):
            assert file.path.split("/")[1].removesuffix(".csv") in (name, name.removesuffix("_fine"))
            assert (file.size is None) == (file.sha256 is None)
            assert file.url or file.otherwise
        else:
            assert file.is_file()


@pytest.mark.parametrize("name", names_of(TableSet))
def test_tables(benchmark_root, name) -> None:
    if name == "power":
        pytest.skip("it is not in the benchmark data")
    data = RegressionData(name, root=str(benchmark_root))
    data.setup("fit")
    assert data.num_features >= 2 and data.target_name == DATASETS[name].target


@pytest.mark.parametrize("name", ["energy", "kin8nm", "wine_quality_red", "yacht"])
def test_the_published_splits_are_those_of_their_recipe(benchmark_root, name) -> None:
    dataset = DATASETS[name]
    count = len(pd.read_csv(dataset.file("table", str(benchmark_root))))
    generator = np.random.RandomState(1)
    for split in range(20):
        order = generator.choice(range(count), count, replace=False)
        expected = order[round(count * 0.9) :]
        assert dataset.test_rows(split, str(benchmark_root)).tolist() == expected.tolist()


ORIGINALS = {
    "energy": lambda rows: "\n".join("  ".join(row) for row in rows) + "\n",
    "kin8nm": lambda rows: "\n".join(" " + " ".join(row) + " " for row in rows),
    "yacht": lambda rows: "\r\n".join(" ".join(row) for row in rows) + "\r\n\r\n",
    "wine_quality_red": lambda rows: "\n".join(['"fixed acidity";"quality"', *map(";".join, rows)]) + "\n",
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_public_original_becomes_the_stored_file(benchmark_root, name) -> None:
    """The original, as it is documented, is made of the stored file here."""
    remote = DATASETS[name].files["table"]
    stored = (benchmark_root / remote.path).read_bytes()
    rows = [line.split(",") for line in stored.decode().splitlines()[1:]]
    assert remote.convert(ORIGINALS[name](rows).encode()) == stored
    assert isinstance(remote.convert(b"<html>\xff\n,</html>"), bytes)


@pytest.mark.parametrize("name, classes", [("cr", 2), ("mpqa", 2), ("sst1", 5)])
def test_texts_whose_checksums_are_not_known_are_counted(tmp_path, name, classes) -> None:
    dataset = DATASETS[name]
    for part, remote in dataset.files.items():
        file = tmp_path / remote.path
        file.parent.mkdir(parents=True, exist_ok=True)
        original = "".join(f"{row % classes} text number {row} of {part}\n" for row in range(dataset.rows[part]))
        file.write_bytes(remote.convert(original.encode()))
    data = TextClassificationData(name, root=str(tmp_path))
    data.setup("fit")
    assert sorted(data.classes) == sorted(dataset.classes) and len(data.classes) == classes
    with file.open("a") as last:
        last.write("0\tone more\n")
    with pytest.raises(ValueError, match=rf"has {dataset.rows[part] + 1} rows, not {dataset.rows[part]}; remove it"):
        TextClassificationData(name, root=str(tmp_path)).setup("fit")


def test_dblp(tmp_path) -> None:
    """The archive as it is documented: two matrices in compressed rows, and labels."""
    folder = tmp_path / "graph" / "dblp"
    folder.mkdir(parents=True)
    np.savez(
        folder / "dblp.npz", attr_shape=(3, 5), attr_indptr=[0, 2, 2, 3], attr_indices=[0, 4, 2], attr_data=[1.0, 2, 3],
        adj_shape=(3, 3), adj_indptr=[0, 1, 2, 3], adj_indices=[1, 1, 0], adj_data=[1.0, 1, 1], labels=[2, 0, 1],
    )  # fmt: skip
    graph = DATASETS["dblp"].graph(str(tmp_path))
    assert isinstance(graph, Data)
    assert graph.x.tolist() == [[1, 0, 0, 0, 2], [0, 0, 0, 0, 0], [0, 0, 3, 0, 0]] and graph.y.tolist() == [2, 0, 1]
    assert sorted(map(tuple, graph.edge_index.T.tolist())) == [(0, 1), (0, 2), (1, 0), (2, 0)]
    np.savez(folder / "dblp.npz", attr_shape=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"is not the graph DBLP .*; remove it to fetch it again"):
        DATASETS["dblp"].graph(str(tmp_path))


def test_names_by_kind() -> None:
    assert sum(len(names_of(kind)) for kind in (TableSet, TextSet, ParallelSet, GraphSet)) == len(DATASETS)
    with pytest.raises(ValueError, match="name='boston' is a data set for regression; for text classification there a"):
        find_dataset("boston", TextSet, "--data.path FILE")


class TestCommand:
    def test_it_lists_all(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setenv("IKA_DATA", str(tmp_path))
        (tmp_path / "regression").mkdir()
        (tmp_path / "regression" / "yacht.csv").write_text("")
        raw = tmp_path / "graph" / "cora" / "raw"
        raw.mkdir(parents=True)
        (raw / "ind.cora.x").write_text("")
        main(["datasets"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"looked for under {tmp_path}; give one as --data.name NAME"
        state = {line.split()[0]: line[22:46].strip() for line in lines if line.startswith("  ") and line[2] != " "}
        assert set(state) == set(DATASETS)
        assert (state["co2"], state["yacht"], state["boston"]) == ("ships with the package", "here", "to download")
        assert (state["cora"], state["karate"]) == ("1 of 8 files", "ships with the package")
        assert max(map(len, lines)) <= 120 or str(data_root()) in lines[0]

    def test_another_root(self, capsys, tmp_path):
        main(["datasets", "--root", str(tmp_path)])
        assert str(tmp_path) in capsys.readouterr().out
        with pytest.raises(SystemExit) as end:
            main(["datasets", "--rot", "x"])
        assert end.value.code == 2
