import math
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from ika_lightning.attention import IKAN
from ika_lightning.cli import main
from ika_lightning.data import RegressionData
from ika_lightning.sklearn import KernelAttentionRegressor, KernelAttentionTextClassifier
from ika_lightning.tasks import Regression

SMALL = {"width": 8, "depth": 1, "num_heads": 2, "dropout": 0.0, "random_state": 0}


def small(updates: int = 3, **options) -> KernelAttentionRegressor:
    return KernelAttentionRegressor(updates=updates, **{**SMALL, **options})


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(-1, 1, (151, 2))
    return x, 1e4 + 50 * (np.sin(3 * x[:, 0]) + x[:, 1] ** 2)


@pytest.fixture
def frame() -> tuple[pd.DataFrame, pd.Series]:
    """The target depends on the city most of all."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({
        "rooms": rng.integers(1, 7, 61),
        "city": pd.Categorical(rng.choice(["Ulm", "Bonn", "Köln"], 61)),
        "garden": rng.choice([True, False], 61),
    })  # fmt: skip
    price = 100.0 * table["rooms"] + table["city"].map({"Ulm": 0.0, "Bonn": 500.0, "Köln": 2000.0}).astype(float)
    return table, price.rename("price")


@parametrize_with_checks([small()])
@pytest.mark.filterwarnings("ignore:.*SCIPY_ARRAY_API")
def test_what_scikit_learn_checks(estimator, check) -> None:
    # the only one that asks for more than how it behaves
    if check.func.__name__ == "check_regressors_train":
        estimator.set_params(updates=60, learning_rate=0.03)
    check(estimator)


def test_it_learns(rows) -> None:
    x, y = rows
    model = small(updates=200, width=16, learning_rate=0.01).fit(x[:121], y[:121])
    assert model.score(x[121:], y[121:]) > 0.95


def test_defaults_are_those_of_the_task_and_its_data() -> None:
    ours, task = KernelAttentionRegressor().get_params(), Regression().hparams
    shared = ("width", "depth", "num_heads", "dropout", "embedding", "frequency_scale")
    for name in (*shared, "likelihood", "interval"):
        assert ours[name] == task[name], name
    assert {"ensemble": ours["ensemble"]} == Regression.recipe.model
    layer, named = KernelAttentionRegressor.layers[ours["attention"]], task["attention"]
    assert named == {"class_path": f"ika_lightning.attention.{layer.func.__name__}", "init_args": layer.keywords}
    data = RegressionData("airline_passengers").hparams
    for name in ("batch_size", "max_context", "missing", "unseen"):
        assert ours[name] == data[name], name
    assert ours["validation_fraction"] == data["val_fraction"]
    (group,) = Regression().optimizer([torch.zeros(1, requires_grad=True)]).param_groups
    assert ours["learning_rate"] == group["lr"]
    assert ours["updates"] == Regression.recipe.updates


class TestSure:
    def test_standard_deviations_are_in_the_units_of_the_target(self, rows):
        x, y = rows
        model = small(likelihood="gaussian").fit(x, y)
        mean, std = model.predict(x, return_std=True)
        assert mean.shape == std.shape == (151,) and mean.dtype == std.dtype == np.float64
        assert_array_equal(mean, model.predict(x))
        # of those of the target's own
        assert (std > 0.01 * y.std()).all() and (std < 3 * y.std()).all()
        alone, own = model.predict(x[7:8], return_std=True)
        np.testing.assert_allclose((alone, own), (mean[7:8], std[7:8]), rtol=1e-12)

    @pytest.mark.parametrize("likelihood", [None, "gaussian"])
    def test_intervals_hold_as_many_targets_as_they_promise(self, likelihood, rows):
        x, y = rows
        y = y + 5 * np.random.default_rng(1).standard_normal(151)
        model = small(
            updates=200, width=16, learning_rate=0.01, interval=0.8, validation_fraction=0.3, likelihood=likelihood
        ).fit(x[:111], y[:111])
        found = model.predict_interval(x[111:])
        assert found.shape == (40, 2) and found.dtype == np.float64
        lower, upper = found.T
        # four standard deviations of the share that is expected of 40
        assert 0.55 < ((lower <= y[111:]) & (y[111:] <= upper)).mean() <= 1
        np.testing.assert_allclose(found.mean(1), model.predict(x[111:]))
        assert np.allclose(upper - lower, (upper - lower)[0]) == (likelihood is None)
        np.testing.assert_allclose(model.predict_interval(x[111:][3:5]), found[3:5], rtol=1e-12)

    def test_members_of_an_ensemble_disagree(self, rows):
        x, y = rows
        model = small(ensemble=3).fit(x, y)
        mean, std = model.predict(x, return_std=True)
        assert mean.shape == std.shape == (151,) and (std > 0).all()
        # a spread, and no scale of errors
        lower, upper = model.predict_interval(x).T
        np.testing.assert_allclose(upper - lower, upper[0] - lower[0])

    def test_numbers_may_be_those_of_numpy(self, rows):
        x, y = rows
        model = small(interval=np.float64(0.8), ensemble=np.int64(2)).fit(x, y)
        assert_array_equal(model.predict_interval(x), small(interval=0.8).fit(x, y).predict_interval(x))

    def test_what_was_not_learned_is_refused(self, rows):
        x, y = rows
        with pytest.raises(
            ValueError, match=r"^return_std: this .* has learned no standard deviation; fit with likelihood="
        ):
            small().fit(x, y).predict(x, return_std=True)
        with pytest.raises(ValueError, match="has no intervals: validation_fraction=0 kept no rows to measure them"):
            small(validation_fraction=0).fit(x, y).predict_interval(x)
        with pytest.raises(
            ValueError, match=r"has no intervals: 6 validation rows are too few for interval=0.9, which takes 9; give"
        ):
            small().fit(x[:61], y[:61]).predict_interval(x)
        for ask in (lambda: small().predict(x, return_std=True), lambda: small().predict_interval(x)):
            with pytest.raises(NotFittedError):
                ask()


class TestTables:
    def test_text_and_categories_are_features(self, frame):
        table, price = frame
        model = small(updates=150, width=16, learning_rate=0.01).fit(table, price)
        assert list(model.feature_names_in_) == ["rooms", "city", "garden"]
        moved = model.predict(table.assign(city="Köln")) - model.predict(table.assign(city="Ulm"))
        assert (moved > 1000).all()

    def test_columns_are_found_by_name(self, frame):
        table, price = frame
        model = small().fit(table, price)
        with pytest.raises(ValueError, match="Feature names must be in the same order"):
            model.predict(table[["city", "rooms", "garden"]])
        with pytest.raises(ValueError, match="missing"):
            model.predict(table[["rooms", "garden"]])

    def test_a_new_category_is_refused(self, frame):
        table, price = frame
        with pytest.raises(
            ValueError, match=r"X, row 0, column 'city': 'Rom' was never seen in training, .* unseen='ignore'"
        ):
            small().fit(table, price).predict(table.assign(city="Rom"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"city": [f"{i} %" for i in range(40)]}, "X, row 0: '0 %' in column 'city' is a number that is written in "
             "an unknown way; make them numbers, or leave the column out"),
            ({"rooms": 3, "city": "Rom", "garden": True}, "X: no feature is left: 'rooms', 'city', 'garden' besides "
             "the target 'price', and a column that is constant in training says nothing"),
        ],
    )  # fmt: skip
    def test_what_to_do_is_said_in_python(self, frame, change: dict[str, object], message: str) -> None:
        table, price = frame
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            small().fit(table[:40].assign(**change), price[:40])

    @pytest.mark.parametrize(
        ("rows", "fraction", "message"),
        [
            (2, 0.1, "X has 2 rows, too few for 1 in validation and at least 2 in training"),
            (60, 0.99, "X has 60 rows, too few for 59 in validation and at least 2 in training"),
        ],
    )
    def test_too_few_rows_beside_those_of_validation(self, rows: int, fraction: float, message: str) -> None:
        x = np.arange(rows)[:, None]
        what = f"^{message}; give more, or lower validation_fraction={fraction}$"
        with pytest.raises(ValueError, match=what):
            small(validation_fraction=fraction).fit(x, x[:, 0])
        with pytest.raises(ValueError, match=what):
            KernelAttentionTextClassifier(validation_fraction=fraction).fit(["a", "b"] * (rows // 2), x[:, 0] % 2)

    def test_what_is_missing_or_new_may_be_filled_in(self, frame):
        table, price = frame
        table["rooms"] = table["rooms"].astype(float)
        holes = table.copy()
        holes.loc[3, "rooms"], holes.loc[5, "city"] = np.nan, None
        with pytest.raises(
            ValueError,
            match=r"X: 2 missing .* in 2 rows \(row 3 column 'rooms', row 5 column 'city'\); .* missing='mean'",
        ):
            small().fit(holes, price)
        model = small(missing="mean", unseen="ignore").fit(holes, price)
        assert np.isfinite(model.predict(holes.assign(city="Rom"))).all()
        numbers = small(missing="mean").fit(holes[["rooms"]], price)
        assert np.isfinite(numbers.predict(holes[["rooms"]])).all()

    def test_a_column_called_as_the_target_is_kept(self, frame):
        table, price = frame
        model = small().fit(table.rename(columns={"rooms": "price"}), price)
        assert model.predict(table.rename(columns={"rooms": "price"})).shape == (61,)


class TestScikitLearn:
    def test_clone_pipeline_and_search(self, rows):
        x, y = rows
        model = clone(small(learning_rate=0.02))
        assert model.learning_rate == 0.02
        search = GridSearchCV(
            make_pipeline(StandardScaler(), model), {"kernelattentionregressor__width": [8, 16]}, cv=2, n_jobs=2
        )
        assert search.fit(x, y).best_estimator_[-1].width in (8, 16)

    def test_a_pickle_predicts_the_same(self, rows):
        x, y = rows
        model = small().fit(x, y)
        assert_array_equal(pickle.loads(pickle.dumps(model)).predict(x), model.predict(x))
        assert not hasattr(pickle.loads(pickle.dumps(small())), "checkpoint_")

    def test_the_same_seed_the_same_model_and_other_draws_are_left_alone(self, rows):
        x, y = rows
        torch.manual_seed(3)
        np.random.seed(3)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        first, second = (small(dropout=0.3).fit(x, y).predict(x) for _ in range(2))
        assert_array_equal(first, second)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert_array_equal(np.random.get_state()[1], before[1])
        assert not np.isclose(small(random_state=1).fit(x, y).predict(x), first).all()

    def test_it_is_quiet_unless_asked(self, rows, capfd, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        x, y = rows
        small().fit(x, y)
        # of which there are too few for an interval
        small().fit(x[:20], y[:20])
        assert capfd.readouterr() == ("", "")
        assert list(tmp_path.iterdir()) == []
        small(verbose=1).fit(x, y)
        assert "val/loss" in "".join(capfd.readouterr()) or list(tmp_path.iterdir()) == []


class TestSaved:
    @pytest.mark.filterwarnings("ignore:.*does not have many workers")
    def test_the_command_line_predicts_from_it(self, frame, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        table, price = frame
        model = small(attention=partial(IKAN, p=1.5), likelihood="gaussian", interval=0.8).fit(table, price)
        model.save("houses.ckpt")
        table.assign(garden=table["garden"].astype(int)).to_csv("new.csv", index=False)
        main(["predict", "--ckpt_path", "houses.ckpt", "--input", "new.csv", "--output", "out.csv",
              "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])  # fmt: skip
        written = pd.read_csv("out.csv")
        mean, std = model.predict(table, return_std=True)
        lower, upper = model.predict_interval(table).T
        for name, values in {"": mean, "_std": std, "_lower": lower, "_upper": upper}.items():
            # the command line computes in float32, whose rounding is that of the standardised target
            np.testing.assert_allclose(written[f"predicted_price{name}"], values, rtol=1e-6, atol=1e-6 * price.std())

    def test_nothing_is_saved_before_fit(self, tmp_path):
        with pytest.raises(NotFittedError, match="this KernelAttentionRegressor is not fitted yet; call fit"):
            small().save(tmp_path / "x.ckpt")
        assert not Path(tmp_path, "x.ckpt").exists()


class TestTraining:
    def test_without_validation_the_weights_of_the_end_are_taken(self, rows):
        x, y = rows
        assert small(validation_fraction=0).fit(x, y).predict(x).shape == (151,)

    def test_a_time_is_enough(self, rows):
        x, y = rows
        model = small(max_time=0.5, learning_rate=0.02).fit(x, y)
        saved = torch.load(__import__("io").BytesIO(model.checkpoint_), weights_only=True)
        assert saved["global_step"] >= 1


class TestWrong:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"updates": 0}, "updates must be a whole number of at least 1, got 0"),
            ({"updates": 2.5}, "updates must be a whole number of at least 1, got 2.5"),
            ({"width": "8"}, "width must be a whole number of at least 1, got '8'"),
            ({"batch_size": 1}, "batch_size must be a whole number of at least 2, got 1"),
            ({"missing": "drop"}, "missing must be one of 'error', 'mean', got 'drop'"),
            ({"learning_rate": -1.0}, "learning_rate must be a positive, finite number, got -1.0"),
            ({"max_time": 0}, "max_time must be a positive, finite number, got 0"),
            ({"attention": "Softmax"}, "attention must be a class of layers or one of IKANDirect, .* got 'Softmax'"),
            (
                {"validation_fraction": 1.0},
                "validation_fraction must be a number of at least 0 and less than 1, got 1.0",
            ),
            ({"num_heads": 3}, "num_heads"),
            ({"likelihood": "laplace"}, "^likelihood must be one of 'gaussian', got 'laplace'$"),
            ({"ensemble": 0}, "^ensemble must be a whole number of at least 1, got 0$"),
            ({"interval": 90}, "^interval must be a number between 0 and 1, such as 0.9, got 90$"),
            ({"interval": "0.9"}, "^interval must be a number between 0 and 1, such as 0.9, got '0.9'$"),
        ],
    )
    def test_arguments(self, options, message, rows):
        with pytest.raises(ValueError, match=message):
            small(**options).fit(*rows)

    def test_rows(self, rows):
        x, y = rows
        with pytest.raises(ValueError, match="y contains NaN"):
            small().fit(x, np.where(np.arange(151) == 7, np.nan, y))
        with pytest.raises(ValueError, match="the target 'target' is 3 in all of the 136 training rows"):
            small().fit(x, np.full(151, 3.0))
        with pytest.raises(ValueError, match="minimum of 2 is required"):
            small().fit(x[:1], y[:1])
        with pytest.raises(TypeError, match="sample_weight"):
            small().fit(x, y, sample_weight=np.ones(151))
        with pytest.raises(NotFittedError):
            small().predict(x)


class TestOutsiders:
    """What others have tried."""

    def test_threads_take_turns(self) -> None:
        X, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40.0)

        def train(_: int) -> float:
            return float(small(5, dropout=0.5).fit(X, y).predict(X[:1])[0])

        alone, before = train(0), torch.get_rng_state()
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(train, range(3))) == [alone] * 3
        assert torch.get_rng_state().equal(before)

    def test_another_default_precision_changes_nothing(self, rows: tuple[np.ndarray, np.ndarray]) -> None:
        expected = small().fit(*rows).predict(rows[0])
        torch.set_default_dtype(torch.float64)
        try:
            assert_array_equal(small().fit(*rows).predict(rows[0]), expected)
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)

    def test_long_whole_numbers_are_numbers(self) -> None:
        """As times in nanoseconds are; beside a column of text they are not taken for codes."""
        when = 1704067200000000000 + 3600 * 10**9 * np.arange(40)
        X, y = pd.DataFrame({"when": when, "colour": ["red", "blue"] * 20}), np.arange(40.0)
        X["count"] = pd.array([*range(39), None], dtype="Int64")
        model = small(missing="mean").fit(X, y)
        assert model._fitted()[0].hparams["num_features"] == 4
        X["when"] += 7
        assert np.isfinite(model.predict(X)).all()

    def test_a_name_that_is_there_twice_is_refused(self) -> None:
        X = pd.DataFrame([[1, 2, "a"], [3, 4, "b"]] * 20, columns=["n", "n", "c"])
        with pytest.raises(ValueError, match="'n'"):
            small().fit(X, np.arange(40.0))

    def test_categories_that_are_numbers_are_refused(self) -> None:
        X = pd.DataFrame({"z": pd.Categorical([0, 1, 2, 1] * 10), "a": np.arange(40.0)})
        with pytest.raises(
            ValueError, match=r"^X: column 'z' has categories that are numbers, such as 0, which would be "
        ):
            small().fit(X, X["a"])
        X["z"] = X["z"].cat.rename_categories("c{}".format)
        assert small().fit(X, X["a"])._fitted()[0].hparams["num_features"] == 4

    @pytest.mark.parametrize("name", ["missing", "unseen"])
    def test_none_is_no_choice(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"^{name} must be 'error' or '\w+', got None$"):
            small(**{name: None}).fit([[0.0], [1.0]], [0.0, 1.0])

    @pytest.mark.parametrize(
        ("argument", "value", "rule"),
        [
            ("validation_fraction", "a", "must be a number of at least 0 and less than 1, got 'a'"),
            ("validation_fraction", 1, "must be a number of at least 0 and less than 1, got 1"),
            ("dropout", None, "must be a number of at least 0 and less than 1, got None"),
            ("learning_rate", None, "must be a positive, finite number, got None"),
            ("learning_rate", math.inf, "must be a positive, finite number, got inf"),
            ("frequency_scale", "a", "must be a positive, finite number, got 'a'"),
            ("max_time", math.inf, "must be a positive, finite number, got inf"),
            ("num_heads", 3, "must divide width, got num_heads=3, width=8"),
        ],
    )
    def test_an_argument_that_is_wrong_is_named(self, argument: str, value: object, rule: str) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(f'{argument} {rule}')}$"):
            small(**{argument: value}).fit([[0.0], [1.0]], [0.0, 1.0])

    def test_numbers_beyond_all_others_are_refused(self) -> None:
        X = np.arange(40.0)[:, None]
        with pytest.raises(ValueError, match=r"^X, row 1: a number is too far from those of fit to be computed with"):
            small().fit(X, X[:, 0]).predict([[1.0], [1e300]])
