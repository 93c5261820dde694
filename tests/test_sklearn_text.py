"""The estimator of texts keeps the contract of scikit-learn, and is the model of the command line.

(Scikit-learn's own ``check_estimator`` has no checks for what takes texts.)
"""

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from ika_lightning.attention import IKAN
from ika_lightning.cli import main
from ika_lightning.data import TextClassificationData
from ika_lightning.sklearn import KernelAttentionTextClassifier
from ika_lightning.tasks import TextClassification

SMALL = {"width": 8, "num_heads": 2, "dropout": 0.0, "embed_dropout": 0.0, "random_state": 0}
GOOD, BAD, PLAIN = ("gem", "joy", "moving"), ("dull", "long", "mess"), ("film", "plot", "cast", "scene", "score")


def small(updates: int = 3, **options) -> KernelAttentionTextClassifier:
    return KernelAttentionTextClassifier(updates=updates, **{**SMALL, **options})


@pytest.fixture
def reviews() -> tuple[list[str], list[str]]:
    """What decides is one word, anywhere in a sentence of others."""
    rng, texts, moods = np.random.default_rng(0), [], []
    for number in range(83):
        words = list(rng.choice(PLAIN, rng.integers(1, 9)))
        words.insert(rng.integers(len(words) + 1), str(rng.choice((GOOD, BAD)[number % 2])))
        texts.append(" ".join(words))
        moods.append(("yes", "no")[number % 2])
    return texts, moods


def test_it_learns(reviews) -> None:
    texts, moods = reviews
    model = small(updates=150, width=16, learning_rate=0.02).fit(texts[:61], moods[:61])
    assert model.score(texts[61:], moods[61:]) == 1.0
    assert is_classifier(model) and list(model.classes_) == ["no", "yes"]


def test_probabilities_are_of_the_classes_in_their_order_whatever_else_is_asked(reviews) -> None:
    texts, _ = reviews
    # ten classes, which files sort as numbers and numpy as such, too, but text does not
    labels = np.array([7, 10, 2, 100, 33, 5, 21, 8, 3, 1])[np.arange(83) % 10]
    model = small(20, batch_size=7).fit(texts, labels)
    assert_array_equal(model.classes_, np.unique(labels))
    found = model.predict_proba(texts)
    assert found.shape == (83, 10)
    assert_allclose(found.sum(1), 1.0, rtol=1e-5)
    assert_array_equal(model.predict(texts), model.classes_[found.argmax(1)])
    assert model.predict(texts).dtype == labels.dtype
    assert_allclose(model.predict_proba(texts[3:4]), found[3:4], rtol=1e-4)
    model.batch_size = 83
    assert_allclose(model.predict_proba(texts), found, rtol=1e-4)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series, partial(np.array, dtype=object)])
def test_texts_come_in_any_sequence(kind, reviews) -> None:
    texts, moods = reviews
    expected = small().fit(texts, moods).predict_proba(texts)
    assert_array_equal(small().fit(kind(texts), kind(moods)).predict_proba(kind(texts)), expected)


def test_a_seed_repeats_and_nothing_outside_changes(reviews) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (small(random_state=seed).fit(*reviews).predict_proba(reviews[0]) for seed in (0, 0, 1))
    assert_array_equal(torch.rand(3), expected)
    assert_array_equal(first, second)
    assert not np.allclose(first, other)


def test_it_copies_pickles_and_is_searched(reviews) -> None:
    texts, moods = reviews
    model = small().fit(texts, moods)
    again = pickle.loads(pickle.dumps(model))
    assert_array_equal(again.predict_proba(texts), model.predict_proba(texts))
    assert clone(model).get_params() == model.get_params()
    search = GridSearchCV(small(), {"pooling": ["mean", "max"]}, cv=2).fit(texts, moods)
    assert search.best_params_["pooling"] in ("mean", "max")
    lower = FunctionTransformer(lambda texts: [text.upper() for text in texts])
    assert cross_val_predict(make_pipeline(lower, small()), texts, moods, cv=2, method="predict_proba").shape == (83, 2)


def test_the_command_line_predicts_from_what_is_saved(reviews, tmp_path) -> None:
    texts, moods = reviews
    model = small(attention=partial(IKAN, num_samples=5), unit="subword", vocab_size=300).fit(texts, moods)
    model.save(tmp_path / "model.ckpt")
    (tmp_path / "new.txt").write_text("\n".join(texts[:7]) + "\n")
    words = ["predict", "--ckpt_path", tmp_path / "model.ckpt", "--input", tmp_path / "new.txt"]
    assert main([*map(str, words), "--output", str(tmp_path / "out.csv")]) in (0, None)
    table = pd.read_csv(tmp_path / "out.csv")
    assert list(table["predicted_label"]) == list(model.predict(texts[:7]))
    assert_allclose(table["probability_yes"], model.predict_proba(texts[:7])[:, 1], rtol=1e-4)


class TestClassWeight:
    def test_weights_go_to_the_classes_that_they_name(self, reviews):
        texts, _ = reviews
        labels = [(10, 9, 100)[number % 3] for number in range(len(texts))]
        model = small(class_weight={9: 2.0, 10: 3.0, 100: 0.5}).fit(texts, labels)
        trained, data = model._fitted()
        assert dict(zip(data.classes, trained.hparams["class_weights"], strict=True)) == {"9": 2, "10": 3, "100": 0.5}
        assert small(class_weight="balanced").fit(texts, labels)._fitted()[0].hparams["class_weights"] == "balanced"

    @pytest.mark.parametrize("weights", [{"yes": 1.0}, {"yes": 1.0, "no": 2.0, "perhaps": 1.0}])
    def test_each_class_needs_one(self, weights, reviews):
        with pytest.raises(
            ValueError, match=r"class_weight must have a weight for each of the classes \['no', 'yes'\]"
        ):
            small(class_weight=weights).fit(*reviews)


def test_defaults_are_those_of_the_task_and_its_data() -> None:
    """What the estimator's documentation says, and a model from the command line has."""
    ours = KernelAttentionTextClassifier().get_params()
    assert ours["attention"] == "MIKAN"
    task = TextClassification().hparams
    for name in ("width", "depth", "num_heads", "window", "pooling", "dropout", "embed_dropout", "label_smoothing"):
        assert ours[name] == task[name], name
    data = TextClassificationData("languages").hparams
    for name in ("batch_size", "unit", "vocab_size", "min_count", "lowercase", "max_length"):
        assert ours[name] == data[name], name
    (group,) = TextClassification().optimizer([torch.zeros(1, requires_grad=True)]).param_groups
    assert (ours["learning_rate"], ours["weight_decay"]) == (group["lr"], group["weight_decay"])
    assert ours["updates"] == TextClassification.recipe.updates
    assert ours["validation_fraction"] == data["val_fraction"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("texts", "error", "message"),
        [
            ("a gem", ValueError, r"got one text; give \['a gem'\]"),
            (np.full((3, 2), "a"), ValueError, r"got shape \(3, 2\); give the column of texts"),
            (["a", None, "b"], TypeError, r"X\[1\] is None, of NoneType"),
            (["a", 7.5], TypeError, r"X\[1\] is 7.5, of float"),
            ([], ValueError, "X has no text; give one or more"),
        ],
    )
    def test_of_texts(self, texts, error, message, reviews):
        with pytest.raises(error, match=message):
            small().fit(texts, ["x", "y", "x"][: len(texts)])
        with pytest.raises(error, match=message):
            small().fit(*reviews).predict(texts)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"updates": 0}, "updates must be a whole number of at least 1, got 0"),
            ({"width": 7.5}, "width must be a whole number of at least 1, got 7.5"),
            ({"attention": "IKANS"}, "attention must be a class of layers or one of IKANDirect, IKAN, MIKAN"),
            ({"learning_rate": 0.0}, "learning_rate must be a positive, finite number, got 0.0"),
            ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
            ({"max_time": 0}, "max_time must be a positive, finite number, got 0"),
            ({"class_weight": "even"}, "class_weight must be .*balanced.*, got 'even'"),
            ({"unit": "letter"}, "letter"),
            ({"pooling": "sum"}, "sum"),
        ],
    )
    def test_of_arguments(self, options, message, reviews):
        with pytest.raises(ValueError, match=message):
            small(**options).fit(*reviews)

    def test_of_classes(self, reviews):
        texts, moods = reviews
        with pytest.raises(ValueError, match="one class only, 'yes'; a classifier needs two or more"):
            small().fit(texts, ["yes"] * 83)
        with pytest.raises(ValueError, match="none empty and no two alike"):
            small().fit(texts, ["", *moods[1:]])
        for nothing in (None, float("nan"), pd.NA):
            with pytest.raises(ValueError, match=r"y\[3\] is missing; leave out texts without a class"):
                small().fit(texts, pd.Series([*moods[:3], nothing, *moods[4:]], dtype=object))
        with pytest.raises(ValueError, match="y must have classes of one type, got int and str; make them strings"):
            small().fit(texts, pd.Series([1, *moods[1:]], dtype=object))
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            small().fit(texts, moods[1:])
        with pytest.raises(ValueError, match="requires y to be passed"):
            small().fit(texts, None)

    def test_of_order(self, tmp_path: Path):
        for ask in (lambda model: model.predict(["a"]), lambda model: model.save(tmp_path / "model.ckpt")):
            with pytest.raises(NotFittedError, match="is not fitted yet; call fit first"):
                ask(small())
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("y", [[np.nan, "a", "b"] * 4, [None, "a", "b"] * 4])
def test_a_class_that_is_missing_is_none(y: list[object]) -> None:
    with pytest.raises(ValueError, match=r"^y\[0\] is missing"):
        KernelAttentionTextClassifier().fit(["a text"] * 12, y)


def test_classes_are_of_one_type() -> None:
    with pytest.raises(ValueError, match=r"^y must have classes of one type, got int and str; make them strings"):
        KernelAttentionTextClassifier().fit(["a text"] * 12, [1, "a", "b"] * 4)
