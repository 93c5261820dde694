"""RegressionData: splits, scaling, contexts, checkpoints, predictions, and what it says when something is wrong."""

import json
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.testing import assert_close

from ika_lightning.data import RegressionData
from ika_lightning.data.encoders import RowBatch
from ika_lightning.data.loader import RowSampler
from ika_lightning.data.rows import RowPredictions


@pytest.fixture
def write(tmp_path):
    def write(rows: int, name: str = "rows.csv", **columns) -> str:
        """Columns x (a ramp), kind (three categories), person (groups of 3), y."""
        table = {
            "x": np.arange(rows) * 0.7 - 3,
            "kind": [["red", "green", "blue"][row % 3] for row in range(rows)],
            "person": [f"p{row // 3}" for row in range(rows)],
            "y": (np.arange(rows) % 11) ** 2,
        }
        path = tmp_path / name
        pd.DataFrame(table | columns).to_csv(path, index=False)
        return str(path)

    return write


def fitted(path: str, **options) -> RegressionData:
    data = RegressionData(path=path, target="y", **{"drop": ["person"], **options})
    data.setup("fit")
    return data


def rows_of(loader) -> list[int]:
    return torch.cat([batch.row for batch in loader]).tolist()


def test_one_column_to_leave_out_needs_no_list(write):
    path = write(29)
    one, several = fitted(path, drop="person"), fitted(path, drop=["person"])
    assert one.num_features == several.num_features == 4
    assert one.hparams["drop"] == several.hparams["drop"] == ["person"]
    with pytest.raises(ValueError, match=r"has no column 'perso' \(did you mean 'person'"):
        fitted(path, drop="perso")


def test_one_cell_that_says_nothing_needs_no_list(write):
    path = write(29, x=["-9", *map(str, range(28))])
    one, several = (fitted(path, missing="drop", missing_values=cells) for cells in ("-9", ["-9"]))
    assert one.hparams["missing_values"] == several.hparams["missing_values"] == ["-9"]
    assert sum(len(rows_of(loader)) for loader in (one.train_dataloader(), one.val_dataloader())) == 25
    one.setup("test")
    assert 0 not in rows_of(one.train_dataloader()) + rows_of(one.val_dataloader()) + rows_of(one.test_dataloader())


class TestNamed:
    @pytest.mark.parametrize("name, rows", [("co2", 521), ("airline_passengers", 144)])
    def test_embedded(self, name, rows):
        data = RegressionData(name)
        data.prepare_data()
        data.setup("fit")
        sizes = [sum(len(b.row) for b in loader) for loader in (data.val_dataloader(), data.test_dataloader())]
        assert sizes == [round(rows / 10)] * 2
        assert len(data.context) == rows - sum(sizes)
        assert data.num_features == 2

    @pytest.mark.parametrize("name, features", [("boston", 13), ("concrete", 8), ("parkinsons", 19)])
    def test_benchmarks(self, benchmark_root, name, features):
        data = RegressionData(name, root=str(benchmark_root))
        data.prepare_data()
        started = time.perf_counter()
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert time.perf_counter() - started < 3  # in fact a small part of it, but computers get busy
        assert data.num_features == batch.features.shape[1] == features
        assert data.context.shape[0] <= 2048

    def test_scaling_of_boston(self, benchmark_root):
        data = RegressionData("boston", root=str(benchmark_root), published_split=3, batch_size=506)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        table = pd.read_csv(benchmark_root / "regression" / "boston.csv").iloc[batch.row.numpy()]
        expected = (table - table.mean()) / table.std(ddof=0)
        assert_close(batch.features, torch.tensor(expected.drop(columns="MEDV").to_numpy(), dtype=torch.float32))
        assert_close(batch.target, torch.tensor(expected["MEDV"].to_numpy(), dtype=torch.float32))
        assert data.target_mean == pytest.approx(table["MEDV"].mean())

    def test_published_splits(self, benchmark_root):
        for name in ("boston", "concrete"):
            file = benchmark_root / "regression" / name / "splits20_test_index.json"
            published = json.loads(file.read_text())["test_index"]
            for k in (0, 7, 19):
                data = RegressionData(name, root=str(benchmark_root), published_split=k, batch_size=1030)
                data.setup("fit")
                test, val = rows_of(data.test_dataloader()), rows_of(data.val_dataloader())
                train = rows_of(data.train_dataloader())
                assert test == sorted(published[k])
                assert sorted(train + val + test) == list(range(len(published[k]) + len(train) + len(val)))
                assert len(val) == round(0.1 * (len(train) + len(val)))

    def test_parkinsons_keeps_subjects_apart(self, benchmark_root):
        data = RegressionData("parkinsons", root=str(benchmark_root), batch_size=10_000)
        data.setup("fit")
        subject = pd.read_csv(benchmark_root / "regression" / "parkinsons.csv")["subject"].to_numpy()
        parts = [
            set(subject[rows_of(loader)])
            for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        ]
        assert [len(part) for part in parts] == [34, 4, 4]
        assert len(set.union(*parts)) == 42

    def test_splits_that_are_not_there(self, tmp_path, write):
        regression = tmp_path / "regression"
        regression.mkdir()
        Path(write(17)).rename(regression / "boston.csv")
        with pytest.raises(FileNotFoundError, match=r"no regression/boston/splits20_test_index.json under .*write it"):
            RegressionData("boston", target="y", published_split=0, root=str(tmp_path)).setup("fit")


class TestSplits:
    def test_every_row_once(self, write):
        data = fitted(write(53))
        parts = [rows_of(x) for x in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
        assert [len(part) for part in parts] == [43, 5, 5]
        assert sorted(chain(*parts)) == list(range(53))

    def test_seeded(self, write):
        path = write(53)
        assert rows_of(fitted(path).test_dataloader()) == rows_of(fitted(path).test_dataloader())
        assert rows_of(fitted(path).test_dataloader()) != rows_of(fitted(path, seed=1).test_dataloader())

    def test_ordered(self, write):
        data = fitted(write(23), split="ordered", val_fraction=0.2, test_fraction=0.3)
        assert sorted(rows_of(data.train_dataloader())) == list(range(11))
        assert rows_of(data.val_dataloader()) == list(range(11, 16))
        assert rows_of(data.test_dataloader()) == list(range(16, 23))

    def test_groups_stay_together(self, write):
        data = fitted(write(53), group="person", test_fraction=0.3)
        parts = [rows_of(x) for x in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
        assert sorted(chain(*parts)) == list(range(53))
        groups = [{row // 3 for row in part} for part in parts]
        assert [len(group) for group in groups] == [11, 2, 5]
        assert len(set.union(*groups)) == 18
        assert data.num_features == 4  # x and three kinds; the group is no feature

    def test_a_test_row_changes_no_training_feature(self, write):
        path = write(31)
        before = fitted(path)
        row = rows_of(before.test_dataloader())[0]
        table = pd.read_csv(path)
        table.loc[row, "x"] = 1e6
        table.loc[row, "y"] = -1e6
        table.to_csv(path, index=False)
        after = fitted(path)
        assert_close(after.context, before.context, rtol=0, atol=0)
        assert after.target_mean == before.target_mean

    def test_no_validation_no_test(self, write):
        data = fitted(write(7), val_fraction=0, test_fraction=0)
        assert len(data.context) == 7
        assert data.val_dataloader() == []
        with pytest.raises(ValueError, match=r"there are no test rows, as test_fraction=0.*--data.test_path"):
            data.test_dataloader()

    def test_own_test_file(self, write):
        data = fitted(write(29), val_fraction=0, test_path=write(5, "test.csv"))
        data.setup("test")
        assert len(data.context) == 29
        assert rows_of(data.test_dataloader()) == list(range(5))

    def test_dropped_rows_are_in_no_split(self, write):
        path = write(29, x=[np.nan if row in (2, 11) else row for row in range(29)])
        data = fitted(path, missing="drop")
        parts = [rows_of(x) for x in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
        assert sorted(chain(*parts)) == sorted(set(range(29)) - {2, 11})


class TestLoaders:
    def test_all_rows_are_one_batch_in_random_order(self, write):
        data = fitted(write(53), batch_size=43)
        (batch,) = data.train_dataloader()
        assert isinstance(batch, RowBatch)
        assert batch.row.tolist() != sorted(batch.row.tolist())
        assert_close(batch.features[batch.row.argsort()], data.context, rtol=0, atol=0)

    def test_batches_are_drawn_anew_by_seed_and_epoch(self, write):
        loader = fitted(write(53), batch_size=13).train_dataloader()
        assert len(loader) == 3  # 43 = 3 * 13 + 4, and 4 is less than half of 13
        first = [batch.row.tolist() for batch in loader]
        assert [len(rows) for rows in first] == [13, 13, 13]
        assert len({row for rows in first for row in rows}) == 39
        assert [batch.row.tolist() for batch in loader] == first
        loader.sampler.set_epoch(1)
        second = [batch.row.tolist() for batch in loader]
        assert second != first
        loader.sampler.set_epoch(0)
        assert [batch.row.tolist() for batch in loader] == first

    def test_half_a_batch_is_kept(self):
        assert [len(rows) for rows in RowSampler(17, batch_size=7)] == [7, 7]
        assert [len(rows) for rows in RowSampler(18, batch_size=7)] == [7, 7, 4]

    def test_processes_share_the_rows_of_an_update(self):
        def sets(count: int, size: int = 7, **place: int) -> list[list[int]]:
            return [rows.tolist() for rows in RowSampler(count, size, seed=3, **place)]

        shares = [sets(53, rank=rank, world=2) for rank in (0, 1)]
        # 53 = 3 * 14 + 11, and 11 is at least half of 14
        assert [[len(rows) for rows in share] for share in shares] == [[7, 7, 7, 6], [7, 7, 7, 5]]
        updates = [sorted(one + other) for one, other in zip(*shares, strict=True)]
        assert updates == [sorted(rows) for rows in sets(53, 14)]
        # one process that accumulates has the same sets, one after another
        assert sets(53, accumulate=2) == [rows for pair in zip(*shares, strict=True) for rows in pair]
        four = [sets(53, rank=rank, world=2, accumulate=2) for rank in (0, 1)]
        assert [rows for pair in zip(*four, strict=True) for rows in pair] == sets(53, accumulate=4)

    def test_few_rows_are_all_in_each_set(self):
        sets = [[rows.tolist() for rows in RowSampler(5, 7, rank=rank, world=3)] for rank in range(3)]
        assert [[sorted(rows) for rows in own] for own in sets] == [[[0, 1, 2, 3, 4]]] * 3
        assert sets[0] != sets[1] != sets[2] != sets[0]
        assert [len(rows) for rows in RowSampler(8, 5, world=4)] == [5]

    def test_goes_on_after_an_interruption(self, write):
        whole, stopped, resumed = (fitted(write(53), batch_size=7).train_dataloader() for _ in range(3))
        batches = iter(stopped)
        next(batches), next(batches)
        resumed.load_state_dict(stopped.state_dict())
        assert rows_of(resumed) == rows_of(whole)[14:]
        assert rows_of(resumed) == rows_of(whole)  # the next epoch is whole again
        assert resumed.state_dict() == {"served": 0}

    def test_evaluation_keeps_every_row_in_order(self, write):
        loader = fitted(write(53), val_fraction=0.4, max_context=8).val_dataloader()
        assert [len(batch.row) for batch in loader] == [8, 8, 5]
        assert rows_of(loader) == sorted(rows_of(loader))

    def test_context_is_capped(self, write):
        path = write(53)
        data = fitted(path, max_context=11)
        assert data.context.shape == (11, 4)
        assert_close(data.context, fitted(path, max_context=11).context, rtol=0, atol=0)
        everything = fitted(path).context.tolist()
        assert all(row in everything for row in data.context.tolist())


class Mean(LightningModule):
    """Predicts one learned number for every row."""

    def __init__(self):
        super().__init__()
        self.guess = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.row.tolist())
        return (batch.target - self.guess).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", (batch.target - self.guess).square().mean())

    def test_step(self, batch, batch_idx):
        self.log("test/loss", (batch.target - self.guess).square().mean())

    def predict_step(self, batch, batch_idx):
        return self.guess.expand(len(batch.row)) + 0 * batch.features.sum(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options) -> Trainer:
    return Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, **options,
    )  # fmt: skip


class TestWithLightning:
    @pytest.fixture
    def checkpoint(self, write, tmp_path):
        """A trained checkpoint whose training file is gone."""
        path = write(53)
        fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, log_every_n_steps=1)
        model = Mean()
        fit.fit(model, RegressionData(path=path, target="y", drop=["person"], batch_size=13))
        assert len(model.seen) == 6
        assert model.seen[:3] != model.seen[3:]
        fit.save_checkpoint(tmp_path / "model.ckpt")
        Path(path).unlink()
        return str(tmp_path / "model.ckpt")

    def test_checkpoint_loads_safely(self, checkpoint):
        stored = torch.load(checkpoint, weights_only=True)
        assert stored["RegressionData"]["encoder"]["target"] == "y"
        assert stored["datamodule_hyper_parameters"]["batch_size"] == 13

    def test_predict_needs_the_checkpoint_alone(self, checkpoint, write, tmp_path):
        new = write(5, "new.csv", y=["?"] * 5)
        data = RegressionData(predict_path=new)
        batches = trainer(tmp_path).predict(Mean(), data, ckpt_path=checkpoint, weights_only=True)
        assert torch.cat(batches).shape == (5,)
        data.write_predictions(tmp_path / "out.csv", torch.cat(batches))
        assert pd.read_csv(tmp_path / "out.csv").columns.tolist() == ["row", "x", "kind", "person", "y", "predicted_y"]

    def test_test_file_needs_the_checkpoint_alone(self, checkpoint, write, tmp_path):
        data = RegressionData(path="gone.csv", target="y", test_path=write(7, "test.csv"))
        (metrics,) = trainer(tmp_path).test(Mean(), data, ckpt_path=checkpoint, weights_only=True, verbose=False)
        assert metrics["test/loss"] > 0

    def test_from_the_checkpoint_in_python(self, checkpoint, write):
        data = RegressionData.load_from_checkpoint(checkpoint, predict_path=write(5, "new.csv"), weights_only=True)
        data.setup("predict")
        assert (data.num_features, data.target_name) == (4, "y")
        assert rows_of(data.predict_dataloader()) == list(range(5))

    def test_without_validation_rows(self, write, tmp_path):
        data = RegressionData(path=write(11), target="y", drop=["person"], val_fraction=0, test_fraction=0)
        fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, log_every_n_steps=1)
        with pytest.warns(UserWarning, match="length of `list` across ranks is zero"):
            fit.fit(Mean(), data)

    def test_another_target_than_the_checkpoint(self, checkpoint, write, tmp_path):
        data = RegressionData(path="gone.csv", target="x", predict_path=write(5, "new.csv"))
        with pytest.raises(ValueError, match="trained to predict 'y', not target='x'"):
            trainer(tmp_path).predict(Mean(), data, ckpt_path=checkpoint, weights_only=True)


class TestState:
    def test_round_trip(self, write, tmp_path):
        path = write(29)
        data = fitted(path)
        torch.save(data.state_dict(), tmp_path / "state.pt")
        other = RegressionData(predict_path=path)
        other.setup("predict")
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        features = torch.cat([batch.features for batch in other.predict_dataloader()])
        assert_close(features[sorted(rows_of(data.train_dataloader()))], data.context, rtol=0, atol=0)

    def test_the_checkpoint_rules_over_the_table(self, write):
        """Lightning sets up first and loads then; loaders must follow the loaded scaling."""
        first, second = fitted(write(29)), fitted(write(29, "other.csv", x=np.arange(29.0) ** 2))
        assert not torch.equal(first.context, second.context)
        state = first.state_dict()
        second.load_state_dict(state)
        expected = (second.drawn["train"] ** 2.0 - state["encoder"]["columns"][0]["mean"]) / (
            state["encoder"]["columns"][0]["std"]
        )
        assert_close(second.context[:, 0], torch.tensor(expected, dtype=torch.float32))

    def test_a_policy_can_be_relaxed_later(self, write):
        state = fitted(write(29)).state_dict()
        new = write(3, "new.csv", x=[1.0, np.nan, 2.0], kind=["red", "red", "violet"])
        strict, mild = (
            RegressionData(predict_path=new),
            RegressionData(predict_path=new, missing="drop", unseen="ignore"),
        )
        for data in (strict, mild):
            data.setup("predict")
            data.load_state_dict(state)
        with pytest.raises(ValueError, match=r"new.csv, row 3, column 'kind': 'violet' was never seen"):
            strict.predict_dataloader()
        assert rows_of(mild.predict_dataloader()) == [0, 2]

    def test_nothing_known_yet(self, write):
        data = RegressionData(predict_path=write(5))
        data.setup("predict")
        for ask in (lambda: data.num_features, data.predict_dataloader):
            with pytest.raises(ValueError, match="needs a checkpoint"):
                ask()


class TestPredictions:
    def predict(self, write, table: dict, predictions: list[float], folder: Path, **options) -> str:
        data = fitted(write(29), predict_path=str(folder / "new.csv"), **options)
        pd.DataFrame(table).to_csv(folder / "new.csv", index=False)
        data.setup("predict")
        data.write_predictions(folder / "out.csv", torch.tensor(predictions))
        return (folder / "out.csv").read_text()

    def test_rows_are_named_and_cells_kept(self, write, tmp_path):
        table = {"kind": ["red", "blue"], "x": ["1.50", "1e0"], "note": ["a, b", ""]}
        text = self.predict(write, table, [0.1, 2.0], tmp_path)
        assert text == 'row,kind,x,note,predicted_y\n1,red,1.50,"a, b",0.1\n2,blue,1e0,,2.0\n'

    def test_a_column_named_row_stays(self, write, tmp_path):
        text = self.predict(write, {"row": ["seven"], "kind": ["red"], "x": [1]}, [3.5], tmp_path)
        assert text == "row,kind,x,predicted_y\nseven,red,1,3.5\n"

    def test_dropped_rows_have_no_prediction(self, write, tmp_path):
        table = {"kind": ["red", "blue", "red"], "x": ["1", "", "2"]}
        text = self.predict(write, table, [3.5, 4.5], tmp_path, missing="drop")
        assert text == "row,kind,x,predicted_y\n1,red,1,3.5\n2,blue,,\n3,red,2,4.5\n"

    def test_what_cannot_be_written(self, write, tmp_path):
        data = fitted(write(29), predict_path=write(2, "new.csv"))
        data.setup("predict")
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            data.write_predictions(tmp_path / "nowhere" / "out.csv", torch.zeros(2))
        with pytest.raises(ValueError, match=r"must have shape \(2,\), one per row, got \(3,\)"):
            data.write_predictions(tmp_path / "out.csv", torch.zeros(3))

    def test_what_is_known_besides_has_columns_of_its_own(self, write, tmp_path):
        data = fitted(write(29), predict_path=str(tmp_path / "new.csv"), missing="drop")
        # of these names there may be features
        pd.DataFrame({"kind": ["red", "blue"], "x": ["1", ""], "lower": [1, 2], "y_std": [3, 4]}).to_csv(
            tmp_path / "new.csv", index=False
        )
        data.setup("predict")
        one = torch.ones(1, dtype=torch.float64)
        data.write_predictions(tmp_path / "out.csv", RowPredictions(one, 0.1 * one, upper=1e6 * one))
        assert (tmp_path / "out.csv").read_text() == (
            "row,kind,x,lower,y_std,predicted_y,predicted_y_std,predicted_y_upper\n"
            "1,red,1,1,3,1.0,0.1,1000000.0\n2,blue,,2,4,,,\n"
        )
        with pytest.raises(ValueError, match=r"must have shape \(1,\), one per row, got \(2,\)"):
            data.write_predictions(tmp_path / "out.csv", RowPredictions(one, one.expand(2)))

    @pytest.mark.parametrize("column", ["predicted_y", "predicted_y_std", "predicted_y_lower", "predicted_y_upper"])
    def test_a_file_of_predictions_is_not_predicted_over(self, column, write):
        data = fitted(write(29), predict_path=write(2, "new.csv", **{column: [1, 2]}))
        data.setup("predict")
        with pytest.raises(ValueError, match=f"already has a column '{column}'; rename it"):
            data.predict_dataloader()


class TestBadInput:
    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({}, r"no data: give --data.name, one of 'airline_passengers', 'co2', 'boston'.*--data.path"),
            (
                {"name": "bostom"},
                r"no known data set \(did you mean 'boston'\?\): there are 'airline_passengers', 'co2'",
            ),
            ({"name": "co2", "path": "a.csv"}, "name or path, not both"),
            ({"path": "a.csv"}, "needs a target"),
            ({"name": "co2", "val_fraction": -0.1}, "val_fraction must be at least 0 and less than 1, got -0.1"),
            ({"name": "co2", "val_fraction": 0.5, "test_fraction": 0.5}, "nothing would be left for training"),
            ({"name": "co2", "max_context": 0}, "max_context must be at least 1, got 0"),
            ({"name": "co2", "batch_size": 1}, "batch_size must be at least 2, got 1"),
            ({"name": "co2", "seed": -1}, "seed must be at least 0, got -1"),
            ({"name": "co2", "split": "sorted"}, "split must be one of 'random', 'ordered', got 'sorted'"),
            ({"name": "co2", "missing": "skip"}, "missing must be one of"),
            ({"name": "co2", "published_split": 0}, "published_split is for 'boston', 'concrete', 'energy', .*only"),
            ({"name": "boston", "published_split": 20}, "published_split must be 0 to 19, got 20"),
            ({"name": "boston", "published_split": 1, "split": "ordered"}, "leave out split, group and test_path"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            RegressionData(**arguments)

    def test_files(self, tmp_path, write):
        with pytest.raises(FileNotFoundError, match=r"there is no file nowhere.csv"):
            fitted("nowhere.csv")
        with pytest.raises(FileNotFoundError, match=r"there is no file gone.csv"):
            RegressionData(predict_path="gone.csv").setup("predict")
        with pytest.raises(ValueError, match=r"nothing to predict; give the new rows with --input FILE"):
            RegressionData("co2").setup("predict")
        with pytest.raises(ValueError, match="there is no table to split"):
            RegressionData(predict_path="new.csv").setup("fit")

    def test_columns(self, write):
        path = write(29)
        with pytest.raises(ValueError, match=r"no column 'z'; its columns are 'x', 'kind', 'person', 'y'"):
            data = RegressionData(path=path, target="z")
            data.setup("fit")
        with pytest.raises(ValueError, match=r"no column 'kinds' \(did you mean 'kind'\?\)"):
            fitted(path, drop=["kinds"])
        with pytest.raises(ValueError, match="no column 'persons'"):
            fitted(path, group="persons")
        with pytest.raises(ValueError, match=r"row 1: column 'kind' is the target, but 'red' is not a number"):
            RegressionData(path=path, target="kind").setup("fit")

    def test_too_few_rows(self, write):
        with pytest.raises(
            ValueError, match="has 3 rows, too few for 1 in validation, 1 in testing and at least 2 in training"
        ):
            fitted(write(3))
        with pytest.raises(ValueError, match=r"has 2 groups \('person'\), too few for 1 in validation, 1 in testing"):
            fitted(write(5), group="person")

    def test_a_group_that_is_not_known(self, write):
        with pytest.raises(ValueError, match=r"2 rows have no group 'person' \(first: row 3\)"):
            fitted(write(7, person=["a", "b", "", "a", "NA", "c", "d"]), group="person")

    def test_a_split_that_missing_cells_empty(self, write):
        path = write(20, x=[*range(18), np.nan, np.nan])
        data = fitted(path, split="ordered", missing="drop")
        with pytest.raises(ValueError, match="missing='drop' dropped all 2 rows of the test split"):
            data.test_dataloader()

    def test_too_few_rows_for_a_published_split(self, tmp_path, write):
        folder = tmp_path / "regression" / "boston"
        folder.mkdir(parents=True)
        (folder / "splits20_test_index.json").write_text(json.dumps({"test_index": [[1, 30]] * 20}))
        Path(write(17)).rename(tmp_path / "regression" / "boston.csv")
        with pytest.raises(ValueError, match="has 17 rows, but published split 0 names row 31; is it the original"):
            RegressionData("boston", target="y", published_split=0, root=str(tmp_path)).setup("fit")
