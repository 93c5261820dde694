"""What all data modules share: which rows a checkpoint was trained on, and predictions that are read back."""

import csv
import gzip
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from ika_lightning.data import NodeClassificationData, RegressionData, TextClassificationData, TranslationData
from ika_lightning.data.base import DataModule
from ika_lightning.data.labelled import read_labelled, read_texts
from ika_lightning.data.table import read_table


@pytest.fixture
def build(tmp_path):
    """Make the data module of a task, whose rows are dealt out by a seed."""

    def build(task: str, **options) -> DataModule:
        rows = [f"{'ab'[row % 2]}\ttext {row}" for row in range(40)]
        (tmp_path / "rows.tsv").write_text("\n".join(rows))
        (tmp_path / "target.txt").write_text("\n".join(rows))
        pd.DataFrame({"x": range(40), "y": [row % 7 for row in range(40)]}).to_csv(tmp_path / "rows.csv", index=False)
        data: DataModule
        if task == "regression":
            data = RegressionData(path=str(tmp_path / "rows.csv"), target="y", **options)
        elif task == "text":
            data = TextClassificationData(path=str(tmp_path / "rows.tsv"), **options)
        elif task == "translation":
            files = {"source": str(tmp_path / "rows.tsv"), "target": str(tmp_path / "target.txt")}
            data = TranslationData(**files, vocabulary=300, **options)
        else:
            data = NodeClassificationData("karate", **options)
        data.setup("fit")
        return data

    return build


TASKS = ["regression", "text", "translation", "nodes"]


@pytest.mark.parametrize("task", TASKS)
def test_what_is_encoded_in_evaluation_can_be_trained_on(build, task):
    data = build(task)
    with torch.inference_mode():
        data.train_dataloader()
    (*_, batch) = data.train_dataloader()
    tensors = [tensor for tensor in batch if isinstance(tensor, torch.Tensor)]
    assert len(tensors) > 2 and not any(tensor.is_inference() for tensor in tensors)


class TestLifeCycle:
    @pytest.mark.parametrize("task", TASKS)
    def test_a_corpus_needs_no_lightning(self, build, task):
        data = build(task)
        corpus = data.corpus
        found = corpus.read("fit", (), None)
        learned = corpus.learn(found.parts["train"])
        assert corpus.restore(learned.state()).state() == learned.state()
        assert learned.state() == {name: value for name, value in data.state_dict().items() if name != "drawn"}
        # runs that are resumed know their data by these
        whole = {"regression": ["table"], "nodes": ["graph"]}.get(task, [])
        read = ["train", "val"] if task == "translation" else ["train", "val", "test"]
        assert sorted(data.fingerprints) == sorted(whole + read)
        assert corpus.fingerprints(found.parts) == data.fingerprints
        encoded = corpus.encode("val", found.parts["val"], learned)
        counted = sum(next(iter(batch.counts.values())) for batch in data.val_dataloader())
        assert counted == len(encoded.asked if task == "nodes" else encoded[0]) > 1

    @pytest.mark.parametrize("task", TASKS)
    def test_loaders_set_up_what_nobody_did(self, build, task):
        data = build(task)
        fresh = type(data)(**data.hparams)
        assert [len(loader) for loader in (fresh.train_dataloader(), fresh.val_dataloader())] == [
            len(loader) for loader in (data.train_dataloader(), data.val_dataloader())
        ]
        assert fresh.state_dict() == data.state_dict()

    @pytest.mark.parametrize("task", ["regression", "text", "translation"])
    def test_testing_without_test_rows_is_refused_at_once(self, build, task):
        data = build(task) if task == "translation" else build(task, test_fraction=0)
        with pytest.raises(ValueError, match=r"there are no test (rows|texts|sentences)[,;] .*give "):
            data.setup("test")

    def test_new_rows_are_read_anew_from_another_file(self, build, tmp_path):
        (tmp_path / "one.csv").write_text("x\n1\n")
        (tmp_path / "two.csv").write_text("x\n1\n2\n")
        data = build("regression")
        for name, count in (("one", 1), ("two", 2)):
            data.predict_path = str(tmp_path / f"{name}.csv")
            data.setup("predict")
            (batch,) = data.predict_dataloader()
            assert len(batch.row) == count

    def test_new_rows_that_are_all_dropped_are_an_error(self, build, tmp_path):
        (tmp_path / "new.csv").write_text("x,z\n,1\n,2\n")
        data = build("regression", predict_path=str(tmp_path / "new.csv"), missing="drop")
        data.setup("predict")
        with pytest.raises(
            ValueError, match=r"new\.csv: missing='drop' dropped all 2 rows to predict; try --data\.miss"
        ):
            data.predict_dataloader()

    def test_a_test_file_without_a_header_is_read_by_the_classes_of_training(self, build, tmp_path):
        (tmp_path / "test.tsv").write_text("a\tnew\nb\tother\n")
        data = build("text", test_path=str(tmp_path / "test.tsv"))
        data.setup("test")
        (batch,) = data.test_dataloader()
        assert sorted(batch.label.tolist()) == [0, 1]


class TestDrawnRows:
    @pytest.mark.parametrize("task", TASKS)
    def test_the_same_rows_are_served(self, build, task):
        data, other = build(task), build(task)
        other.load_state_dict(data.state_dict())
        assert len(other.val_dataloader()) > 0 and len(other.train_dataloader()) > 0

    @pytest.mark.parametrize("task", TASKS)
    def test_other_rows_are_warned_of(self, build, task):
        data, other = build(task), build(task, seed=1)
        other.load_state_dict(data.state_dict())
        with pytest.warns(UserWarning, match="other rows are drawn for val than when the checkpoint was trained"):
            other.val_dataloader()

    @pytest.mark.parametrize("task", TASKS)
    def test_a_checkpoint_that_does_not_say_is_refused(self, build, task):
        """Those of the first version drew rows in another way, so that today's test rows may be their training rows."""
        data, other = build(task), build(task)
        state = {key: value for key, value in data.state_dict().items() if key != "drawn"}
        other.load_state_dict(state)
        with pytest.raises(ValueError, match=r"does not say which rows it drew for val .*give files of their own for"):
            other.val_dataloader()

    def test_rows_that_nobody_drew_need_no_saying(self, build, tmp_path):
        state = build("regression").state_dict()
        for options in ({"split": "ordered"}, {"test_path": str(tmp_path / "rows.csv")}):
            data = build("regression", **options)
            data.setup("test")
            data.load_state_dict({key: value for key, value in state.items() if key != "drawn"})
            assert len(data.test_dataloader()) == 1
        files = {f"{part}_path": str(tmp_path / "rows.tsv") for part in ("val", "test")}
        with pytest.warns(UserWarning, match="are also in training"):
            data = build("text", **files)
        assert "drawn" not in data.state_dict()
        data.load_state_dict(data.state_dict())
        assert len(data.test_dataloader()) == 1


TRICKY = [
    "one, two", 'say "so"', '"whole"', "tab\there", " blank ", "🤷🏽‍♀️ 日本", "lone\rreturn", "\u2028\x85\x1c", "-3",
]  # fmt: skip


class TestPredictionsAreReadBack:
    @pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.jsonl", "out.csv.gz", "out.TSV", "out"])
    def test_texts(self, build, tmp_path, name):
        (tmp_path / "new.txt").write_text("".join(f"{text}\n" for text in TRICKY), newline="")
        data = build("text", predict_path=str(tmp_path / "new.txt"))
        data.setup("predict")
        data.write_predictions(tmp_path / name, torch.eye(2)[[0] * len(TRICKY)])
        path = str(tmp_path / name)
        if name == "out":
            path = str((tmp_path / name).rename(tmp_path / "renamed.csv"))
        assert read_texts(path) == TRICKY
        rows = read_labelled(path, "predicted_label", "text")
        assert (rows.texts, rows.labels) == (TRICKY, ["a"] * len(TRICKY))

    @pytest.mark.parametrize("name, separator", [("out.csv", ","), ("out.tsv", "\t"), ("out.tsv.gz", "\t")])
    def test_tables(self, build, tmp_path, name, separator):
        table = pd.DataFrame({"x": ["1.50"] * len(TRICKY), "no\nte": TRICKY}, dtype="str")
        table.to_csv(tmp_path / "new.csv", index=False, quoting=csv.QUOTE_ALL, lineterminator="\n")
        data = build("regression", predict_path=str(tmp_path / "new.csv"))
        data.setup("predict")
        data.write_predictions(tmp_path / name, torch.arange(len(TRICKY)) / 3)
        found = read_table(str(tmp_path / name))
        assert found[["x", "no\nte"]].equals(table)
        assert found["predicted_y"].astype("float32").tolist() == (torch.arange(len(TRICKY)) / 3).tolist()

    def test_numbers_are_numbers_in_jsonl(self, build, tmp_path):
        table = pd.DataFrame({"x": ["1.50", "", "2"]}, dtype="str")
        table.to_csv(tmp_path / "new.csv", index=False)
        data = build("regression", predict_path=str(tmp_path / "new.csv"), missing="drop")
        data.setup("predict")
        predictions = torch.tensor([0.1, 1e-7])
        data.write_predictions(tmp_path / "out.jsonl", predictions)
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["x"] for row in rows] == ["1.50", "", "2"]
        assert [row["predicted_y"] for row in rows] == [0.1, None, 1e-7]
        data.write_predictions(tmp_path / "out.csv", predictions)
        assert read_table(str(tmp_path / "out.csv"))["predicted_y"].tolist() == ["0.1", "", "1e-07"]

    def test_probabilities_keep_all_digits(self, build, tmp_path):
        (tmp_path / "new.txt").write_text("one\ntwo\n")
        data = build("text", predict_path=str(tmp_path / "new.txt"))
        data.setup("predict")
        probabilities = torch.tensor([[1 / 3, 2 / 3], [1e-20, 1.0]])
        for name in ("out.tsv", "out.jsonl"):
            data.write_predictions(tmp_path / name, probabilities)
        found = read_table(str(tmp_path / "out.tsv"))[["probability_a", "probability_b"]].astype("float32")
        assert found.to_numpy().tolist() == probabilities.tolist()
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert torch.tensor([[row["probability_a"], row["probability_b"]] for row in rows]).equal(probabilities)

    def test_translations(self, build, tmp_path):
        data = build("translation")
        (tmp_path / "new.txt").write_text("one\ntwo\n")
        data.predict_path = str(tmp_path / "new.txt")
        data.setup("predict")
        tokens = data.learned.target.encode(["text 1", "text\r2"])
        data.write_predictions(tmp_path / "out.gz", [(row, [[(tokens[row], 0.0)]]) for row in (0, 1)])
        assert gzip.decompress(Path(tmp_path, "out.gz").read_bytes()) == b"text 1\ntext 2\n"

    def test_other_formats_are_refused(self, build, tmp_path):
        with pytest.raises(ValueError, match=r"cannot write .*out\.parquet: predictions are written as"):
            build("nodes").write_predictions(tmp_path / "out.parquet", torch.ones(34, 4))
