"""The life of a task: what it does with other data, with checkpoints of others, and with its seed."""

import functools
from pathlib import Path
from typing import Any

import four_tasks
import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch.testing import assert_close

from ika_lightning.attention import IKAN, IKANDirect
from ika_lightning.cli import main
from ika_lightning.data import NodeClassificationData, RegressionData, TextClassificationData, TranslationData
from ika_lightning.data.tokenizer import Tokenizer
from ika_lightning.internals import EpochProgressBar
from ika_lightning.tasks import NodeClassification, Regression, Task, TextClassification, Translation
from ika_lightning.trust import Untrusted

TASKS = ["regression", "text_classification", "translation", "node_classification"]
FEW = functools.partial(IKANDirect, num_samples=3)
NET: dict[str, Any] = {"width": 8, "depth": 1, "num_heads": 2}
every_task = pytest.mark.parametrize("task", TASKS)


def trainer(**options: Any) -> Trainer:
    return Trainer(**{
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0, "max_steps": 2,
        "limit_val_batches": 0, **options,
    })  # fmt: skip


def fitted(model: Task, data: LightningDataModule, path: Path | None = None) -> Task:
    fit = trainer()
    fit.fit(model, data)
    if path is not None:
        fit.save_checkpoint(path, weights_only=False)
    return model


def untouched(model: Task, data: LightningDataModule) -> Task:
    """A model that is fitted for no step: what it starts from."""
    trainer(max_steps=0).fit(model, data)
    return model


def weights_of(model: Task) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.net.state_dict().items()}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    four_tasks.write_files(tmp_path)
    return tmp_path


@pytest.fixture
def graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of 23 nodes: the first, one of another class more, and one with a feature more."""
    monkeypatch.chdir(tmp_path)
    edges = pd.DataFrame({"source": range(22), "target": range(1, 23)})
    edges.to_csv("edges.csv", index=False)
    nodes = pd.DataFrame({"node": range(23), "label": [f"c{i % 2}" for i in range(23)]})
    nodes["a"], nodes["b"] = nodes["node"] % 5 / 7, nodes["node"] % 3 / 11
    nodes.to_csv("two.csv", index=False)
    nodes.assign(label=[f"c{i % 3}" for i in range(23)]).to_csv("three.csv", index=False)
    nodes.assign(more=nodes["a"] - nodes["b"]).to_csv("wide.csv", index=False)
    nodes.rename(columns={"b": "z"}).to_csv("renamed.csv", index=False)


def graph(nodes: str) -> NodeClassificationData:
    return NodeClassificationData(
        path=nodes, edges_path="edges.csv", split="random", train_per_class=3, num_val=2, num_test=2
    )


def node_model(**options: Any) -> NodeClassification:
    return NodeClassification(width=4, num_heads=2, **options)


@every_task
def test_double_precision_is_the_same_by_default_and_by_the_trainer(task: str, files: Path) -> None:
    def trained(**options: Any) -> dict[str, torch.Tensor]:
        seed_everything(3, verbose=False)
        model, data = four_tasks.build(task, files)
        fit = trainer(limit_val_batches=1, limit_test_batches=1, **options)
        fit.fit(model, data)
        fit.test(model, data, verbose=False)
        return weights_of(model)

    by_the_trainer = trained(precision="64-true")
    torch.set_default_dtype(torch.float64)
    try:
        assert_close(trained(), by_the_trainer, rtol=1e-12, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


class TestWithoutANetwork:
    @pytest.mark.parametrize("task", [Regression, TextClassification, Translation, NodeClassification])
    def test_it_says_so(self, task: type[Task]) -> None:
        model = task()  # type: ignore[call-arg]
        assert not model.is_built and not hasattr(model, "net")
        with pytest.raises(AttributeError, match=f"^{task.__name__} has no network yet: data or a checkpoint says"):
            _ = model.net

    def test_other_attributes_are_missed_as_ever(self) -> None:
        with pytest.raises(AttributeError, match="object has no attribute 'network'"):
            _ = Regression().network


class TestSeed:
    @pytest.mark.parametrize("evaluate", ["test", "validate"])
    def test_an_evaluation_does_not_change_it(self, evaluate: str, files: Path) -> None:
        seed_everything(1, verbose=False)
        model, data = four_tasks.build("regression", files)
        fit = trainer(limit_val_batches=1)
        fit.fit(model, data)
        getattr(fit, evaluate)(model, data, verbose=False)
        fit.save_checkpoint("last.ckpt", weights_only=False)
        assert torch.load("last.ckpt", weights_only=True)["noise_seed"] == 1

    def test_there_is_none_before_a_training(self, files: Path) -> None:
        model, data = four_tasks.build("regression", files)
        evaluation = trainer()
        evaluation.test(model, data, verbose=False)
        evaluation.save_checkpoint("last.ckpt", weights_only=False)
        assert "noise_seed" not in torch.load("last.ckpt", weights_only=True)


class TestTheSameData:
    @every_task
    def test_a_second_training_goes_on_with_the_weights(self, task: str, files: Path) -> None:
        model, data = four_tasks.build(task, files)
        net, weights = fitted(model, data).net, weights_of(model)
        assert untouched(model, data).net is net
        assert_close(weights_of(model), weights, rtol=0, atol=0)

    @every_task
    def test_of_a_model_that_was_loaded_as_well(
        self, task: str, files: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model, data = four_tasks.build(task, files)
        fitted(model, data, files / "model.ckpt")
        capsys.readouterr()
        loaded = type(model).load_from_checkpoint(files / "model.ckpt", weights_only=True)
        _, again = four_tasks.build(task, files)
        assert_close(weights_of(untouched(loaded, again)), weights_of(model), rtol=0, atol=0)
        assert "starting from" not in capsys.readouterr().err

    @every_task
    def test_init_from_takes_the_weights_and_a_new_beginning(
        self, task: str, files: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model, data = four_tasks.build(task, files)
        fitted(model, data, files / "model.ckpt")
        torch.manual_seed(5)
        new, again = four_tasks.build(task, files, init_from=str(files / "model.ckpt"))
        assert_close(weights_of(untouched(new, again)), weights_of(model), rtol=0, atol=0)
        assert f"starting from the weights of {files / 'model.ckpt'}\n" in capsys.readouterr().err
        assert new.trainer.global_step == 0 and "init_from" not in new.hparams


class TestOtherRows:
    """Another table of as many columns: context and scale are its own, and predictions in its units."""

    @pytest.fixture
    def tables(self, files: Path) -> Path:
        table = pd.read_csv("rows.csv")
        table.assign(y=1e4 + 500 * table["y"], a=7 * table["a"]).iloc[:97].to_csv("other.csv", index=False)
        table.rename(columns={"b": "c"}).to_csv("renamed.csv", index=False)
        table.assign(c=table["a"]).to_csv("wide.csv", index=False)
        fitted(self.model(), self.data("rows.csv"), files / "model.ckpt")
        return files

    def model(self, **options: Any) -> Regression:
        return Regression(FEW, **NET, dropout=0.0, **options)

    def data(self, table: str, **options: Any) -> RegressionData:
        return RegressionData(path=table, target="y", batch_size=20, **options)

    @pytest.mark.parametrize("how", ["loaded", "init_from"])
    def test_context_and_scale_are_new(self, how: str, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
        trained = Regression.load_from_checkpoint("model.ckpt", weights_only=True)
        model = self.model(init_from="model.ckpt") if how == "init_from" else trained
        before, other = weights_of(trained), self.data("other.csv")
        untouched(model, other)
        assert_close(weights_of(model), before, rtol=0, atol=0)
        assert_close(model.context, other.context, rtol=0, atol=0)
        assert model.hparams["target_mean"] == other.target_mean > 9000 and model.hparams["num_context"] == 77
        source = "model.ckpt" if how == "init_from" else "the model"
        line = f"starting from the weights of {source}: with the context and the scale of the new table\n"
        assert line in capsys.readouterr().err
        (batch,) = other.test_dataloader()
        assert (model.eval().predict_step(batch, 0) - 1e4).abs().max() < 5000

    @pytest.mark.parametrize(
        ("table", "has"), [("renamed.csv", r"2 \('a', 'c'\)"), ("wide.csv", r"3 \('a', 'b', 'c'\)")]
    )
    def test_other_columns_are_refused(self, table: str, has: str, tables: Path) -> None:
        message = rf"^model.ckpt was trained on 2 features \('a', 'b'\), but this table has {has}; give a table of the"
        with pytest.raises(ValueError, match=message):
            untouched(self.model(init_from="model.ckpt"), self.data(table))

    def test_it_is_not_evaluated_on_them_by_accident(self, tables: Path) -> None:
        model, other = Regression.load_from_checkpoint("model.ckpt", weights_only=True), self.data("other.csv")
        for evaluate in (trainer().test, trainer(limit_val_batches=1).validate):
            with pytest.raises(
                ValueError, match="trained on data with another target_mean, target_std, columns than this"
            ):
                evaluate(model, other, verbose=False)
        # with its checkpoint, the data is encoded as in training
        with pytest.warns(UserWarning, match="other rows are drawn for test than when the checkpoint was trained"):
            trainer().test(model, self.data("other.csv"), ckpt_path="model.ckpt", weights_only=True, verbose=False)
        assert model.hparams["target_mean"] < 1

    def test_another_network_is_told_by_what_differs(self, tables: Path) -> None:
        with pytest.raises(
            ValueError, match=r"^model.ckpt has another network, with width=8 \(here 16\), dropout=0.0 \("
        ):
            untouched(Regression(FEW, 16, 1, 2, init_from="model.ckpt"), self.data("rows.csv"))

    @pytest.mark.parametrize(
        ("options", "difference"),
        [
            ((FEW, 16, 1, 2), r"width=8 \(here 16\), .*"),
            ((IKAN, 8, 1, 2), r"attention=\w+ \(here IKAN\), .*"),
            ((functools.partial(IKANDirect, num_samples=4), 8, 1, 2), r"attention.num_samples=3 \(here 4\), .*"),
        ],
    )
    @pytest.mark.parametrize("way", ["resume", "init_from"])
    def test_another_network_takes_one_line(self, tables: Path, options, difference: str, way: str) -> None:
        """And not PyTorch's list of all that does not fit."""
        start = {"init_from": "model.ckpt"} if way == "init_from" else {}
        source = "model.ckpt" if way == "init_from" else "the checkpoint"
        model, fit = Regression(*options, **start), trainer(max_epochs=2)
        message = rf"^{source} has another network, with {difference}; give the model the options that it was"
        with pytest.raises(ValueError, match=message) as error:
            fit.fit(model, self.data("rows.csv"), ckpt_path=None if start else "model.ckpt", weights_only=True)
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)


class TestOtherTexts:
    def model(self, **options: Any) -> TextClassification:
        return TextClassification(FEW, **NET, **options)

    def data(self, file: str, **options: Any) -> TextClassificationData:
        return TextClassificationData(path=file, batch_size=7, **options)

    @pytest.fixture
    def texts(self, files: Path) -> Path:
        lines = Path("texts.tsv").read_text().splitlines()
        # words 0 to 9 are no longer there, and there is a new one; then one class less as well
        kept = [" ".join(word for word in line.split() if len(word) != 5) + " fresh" for line in lines]
        kept = [f"{line} n{number}" for number, line in enumerate(kept)]
        rows = [f"{'xyz'[i % 3]}\t{line}\n" for i, line in enumerate(kept)]
        Path("other.tsv").write_text(
            "".join(line.replace("\tx ", "\t").replace("\ty ", "\t").replace("\tz ", "\t") for line in rows)
        )
        Path("fewer.tsv").write_text("".join(f"{'uv'[i % 2]}\t{line.split(chr(9))[1]}" for i, line in enumerate(rows)))
        fitted(self.model(), self.data("texts.tsv"), files / "model.ckpt")
        return files

    @pytest.mark.parametrize("how", ["loaded", "init_from"])
    @pytest.mark.parametrize("file", ["other.tsv", "fewer.tsv"])
    def test_words_keep_their_vectors(
        self, file: str, how: str, texts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trained, old = TextClassification.load_from_checkpoint("model.ckpt", weights_only=True), self.data("texts.tsv")
        old.setup("fit")
        before, words = weights_of(trained), old.tokenizer.words
        model = self.model(init_from="model.ckpt") if how == "init_from" else trained
        untouched(model, new := self.data(file))
        after, names = weights_of(model), new.tokenizer.words
        shared = sorted(set(words) & set(names))
        assert 20 < len(shared) < min(len(words), len(names)) and "fresh" in names
        for name in shared:
            assert_close(
                after["embed.weight"][names.index(name)], before["embed.weight"][words.index(name)], rtol=0, atol=0
            )
        same = [key for key in before if not key.startswith(("embed.", "head."))]
        assert_close({key: after[key] for key in same}, {key: before[key] for key in same}, rtol=0, atol=0)
        assert model.hparams["num_tokens"] == len(names) and model.hparams["classes"] == new.classes
        said = capsys.readouterr().err
        assert f"{len(shared)} of the {len(names)} tokens of the new vocabulary keep their vectors" in said
        assert ("the classifier starts anew, for the classes 'u', 'v'" in said) == (file == "fewer.tsv")
        assert (after["head.weight"].shape == before["head.weight"].shape) == (file == "other.tsv")

    def test_class_weights_are_those_of_the_new_texts(self, texts: Path) -> None:
        for options, expected in (({"class_weights": [1.0, 3.0]}, [1.0, 3.0]), ({}, None)):
            model = TextClassification.load_from_checkpoint("model.ckpt", weights_only=True, **options)
            fitted(model, self.data("fewer.tsv"))
            assert (None if model.weights is None else model.weights.tolist()) == expected

    def test_without_its_vocabulary_it_is_refused(self, texts: Path) -> None:
        checkpoint = torch.load("model.ckpt", weights_only=True)
        for state in ({}, {"tokenizer": "{", "classes": ["x"]}):
            torch.save({**checkpoint, "TextClassificationData": state}, "bare.ckpt")
            with pytest.raises(ValueError, match=r"^bare.ckpt does not say which vocabulary it was trained with"):
                untouched(self.model(init_from="bare.ckpt"), self.data("other.tsv"))

    def test_it_is_not_evaluated_on_them_by_accident(self, texts: Path) -> None:
        model = TextClassification.load_from_checkpoint("model.ckpt", weights_only=True)
        with pytest.raises(
            ValueError, match="another tokenizer than this TextClassificationData has learned; give the"
        ):
            trainer().test(model, self.data("other.tsv"), verbose=False)

    def test_two_starts_are_one_too_many(self) -> None:
        with pytest.raises(
            ValueError, match=r"vectors='a.txt' and init_from='b.ckpt' both say how words start; leave out"
        ):
            TextClassification(vectors="a.txt", init_from="b.ckpt")


class TestOtherSentences:
    def model(self, **options: Any) -> Translation:
        return Translation(FEW, **NET, **options)

    def data(self, side: str = "", **options: Any) -> TranslationData:
        return TranslationData(source=f"a{side}", target=f"b{side}", vocabulary=300, batch_tokens=200, **options)

    @pytest.mark.parametrize("before", [True, False], ids=["joint", "apart"])
    @pytest.mark.parametrize("after", [True, False], ids=["joint", "apart"])
    def test_tokens_keep_their_embeddings(
        self, before: bool, after: bool, files: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for side in "ab":
            text = Path(side).read_text().replace("word1", "bird1")
            Path(f"{side}.new").write_text(text)
        model, old = self.model(), self.data(joint=before)
        weights = weights_of(fitted(model, old, files / "model.ckpt"))
        untouched(adapted := self.model(init_from="model.ckpt"), self.data(".new", joint=after))
        there, here = (
            {side: model._encoding.get(side) or model._encoding["source"] for side in ("source", "target")}
            for model in (model, adapted)
        )
        for side in ("source", "target"):
            (words, names) = (words_of(state[side]) for state in (there, here))
            shared = set(words) & set(names)
            assert 250 < len(shared) < len(names)
            key = f"{side}_embedding.weight"
            table = adapted.net.state_dict()[key]
            if not (after and not before and side == "source"):  # one table has but the target's
                for name in shared:
                    assert_close(table[names.index(name)], weights[key][words.index(name)], rtol=0, atol=0)
            assert f"{len(shared)} of the {len(names)} {side} tokens" in capsys.readouterr().err or side == "target"
        assert (adapted.net.source_embedding is adapted.net.target_embedding) == after


def words_of(state: str) -> list[str]:
    return Tokenizer(state).words


@pytest.mark.usefixtures("graphs")
class TestOtherGraphs:
    def test_other_classes_have_a_new_head(self, capsys: pytest.CaptureFixture[str]) -> None:
        before = weights_of(fitted(node_model(), graph("two.csv"), Path("model.ckpt")))
        after = weights_of(untouched(node_model(init_from="model.ckpt"), graph("three.csv")))
        kept = [key for key in before if not key.startswith("last.")]
        assert kept and before.keys() == after.keys()
        assert_close({key: after[key] for key in kept}, {key: before[key] for key in kept}, rtol=0, atol=0)
        assert "the last convolution starts anew, for the classes 'c0', 'c1', 'c2'" in capsys.readouterr().err

    def test_other_features_are_refused(self) -> None:
        fitted(node_model(), graph("two.csv"), Path("model.ckpt"))
        with pytest.raises(
            ValueError, match=r"^model.ckpt was trained on 2 features, but this graph has 3; give a graph"
        ):
            untouched(node_model(init_from="model.ckpt"), graph("wide.csv"))
        with pytest.raises(
            ValueError, match=r"^model.ckpt was trained on the features 'a', 'b', but this graph has 'a', 'z'"
        ):
            untouched(node_model(init_from="model.ckpt"), graph("renamed.csv"))

    @pytest.mark.parametrize(
        ("nodes", "what"), [("wide.csv", "num_features=2, but the data has num_features=3"),
                            ("three.csv", "num_classes=2, but the data has num_classes=3")],
    )  # fmt: skip
    def test_a_training_does_not_go_on_with_others(self, nodes: str, what: str) -> None:
        fitted(node_model(), graph("two.csv"), Path("model.ckpt"))
        with pytest.raises(ValueError, match=f"^the checkpoint was trained with {what}; give the data"):
            trainer(max_steps=3).fit(node_model(), graph(nodes), ckpt_path="model.ckpt", weights_only=True)


class TestPrecision:
    @pytest.mark.usefixtures("graphs")
    def test_double_stays_double(self) -> None:
        """Of data that knows no sizes before the checkpoint is loaded."""
        model, double = node_model(), {"precision": "64-true"}
        fit = trainer(**double)
        fit.fit(model, graph("two.csv"))
        fit.save_checkpoint("model.ckpt", weights_only=False)
        loaded = node_model()
        trainer(**double).test(loaded, graph("two.csv"), ckpt_path="model.ckpt", weights_only=True, verbose=False)
        assert_close(weights_of(loaded), weights_of(model), rtol=0, atol=0)
        assert {value.dtype for value in weights_of(loaded).values()} == {torch.float64}


class TestOtherFiles:
    """What is no checkpoint of the task is refused in a line, by whatever way it comes."""

    @pytest.mark.parametrize(("task", "other"), [(one, other) for one in TASKS for other in TASKS if one != other])
    def test_another_task(self, task: str, other: str, files: Path) -> None:
        fitted(*four_tasks.build(other, files), files / "other.ckpt")
        model, data = four_tasks.build(task, files)
        message = f"^the checkpoint is not one of {type(model).__name__}: it does not say [a-z_]+(, [a-z_]+)*$"
        with pytest.raises(ValueError, match=message):
            trainer().test(model, data, ckpt_path="other.ckpt", weights_only=True)
        with pytest.raises(ValueError, match=message.replace("the checkpoint", "init_from: other.ckpt")):
            untouched(four_tasks.build(task, files, init_from="other.ckpt")[0], data)

    def test_no_checkpoint_at_all(self, files: Path) -> None:
        Path("text.ckpt").write_text("no checkpoint")
        torch.save([1, 2], "list.ckpt")
        torch.save({"state_dict": {"net.embed.weight": 3}}, "numbers.ckpt")
        torch.save({"state_dict": {}, "hyper_parameters": Path()}, "code.ckpt")
        for name, kind, message in (
            ("gone.ckpt", FileNotFoundError, "init_from: there is no file gone.ckpt; check"),
            ("text.ckpt", ValueError, "init_from: text.ckpt is not a checkpoint, or was cut short"),
            (
                "list.ckpt",
                ValueError,
                "init_from: list.ckpt is not a Lightning checkpoint: it holds no 'state_dict' of",
            ),
            ("numbers.ckpt", ValueError, "init_from: numbers.ckpt is not a Lightning checkpoint"),
            ("code.ckpt", Untrusted, r"code.ckpt holds pathlib.\w+, which takes running code"),
        ):
            model, data = four_tasks.build("regression", files, init_from=name)
            with pytest.raises(kind, match=message):
                untouched(model, data)


class TestCommandLine:
    def fit(self, *options: str) -> None:
        quiet = ["--trainer.accelerator", "cpu"]
        if not any("progress" in option.lower() for option in options):
            quiet += ["--trainer.enable_progress_bar", "false"]
        small = ["--model.width", "8", "--model.depth", "1", "--model.num_heads", "2", "--pictures", "0"]
        data = ["--model", "Regression", "--data", "RegressionData", "--data.target", "y", "--data.path"]
        main(["fit", *data, *options, *quiet, *small, "--trainer.enable_model_summary", "false"])

    def test_a_training_that_started_from_a_file_goes_on_without_it(
        self, files: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.fit("rows.csv", "--trainer.max_epochs", "1")
        Path("runs/rows/version_0/checkpoints/best.ckpt").rename("start.ckpt")
        pd.read_csv("rows.csv").iloc[:90].to_csv("other.csv", index=False)
        start = ["other.csv", "--model.init_from", "start.ckpt"]
        self.fit(*start, "--trainer.max_epochs", "1")
        said = capsys.readouterr().err
        assert said.count("starting from the weights of start.ckpt: with the context and the scale of the new") == 1
        Path("start.ckpt").unlink()
        self.fit(*start, "--trainer.max_epochs", "2", "--ckpt_path", "last")
        main(["test", "--ckpt_path", "runs/other/version_0/checkpoints/last.ckpt", "--trainer.accelerator", "cpu"])
        assert "starting from" not in capsys.readouterr().err
        saved = torch.load("runs/other/version_0/checkpoints/last.ckpt", weights_only=True)
        assert saved["epoch"] == 2 and "init_from: start.ckpt" in saved["config"]

    def test_it_ends_with_the_measures_of_the_best_checkpoint(
        self, files: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The first epoch is the best, as the learning rate is far too large; measures are in the target's units."""
        table = pd.read_csv("rows.csv")
        table.assign(y=1e3 * table["y"]).to_csv("rows.csv", index=False)
        fast = ["--model.optimizer", "SGD", "--model.optimizer.lr", "9", "--trainer.gradient_clip_val", "1"]
        self.fit("rows.csv", *fast, "--trainer.max_epochs", "4")
        lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
        said = {name: float(value) for name, value in lines.items() if name.startswith("val/")}
        best = lines["best checkpoint"].strip()
        arguments = ["--ckpt_path", best, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
        main(["validate", *arguments, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"])
        (metrics,) = Path("csv").rglob("metrics.csv")
        measured = pd.read_csv(metrics).iloc[0]
        assert set(said) == {"val/loss", "val/rmse", "val/mae", "val/r2"} and said["val/rmse"] > 100
        for name, value in said.items():
            assert value == pytest.approx(measured[name], rel=1e-5)
        assert int(lines["of epoch"]) == torch.load(best, weights_only=True)["epoch"] < 3

    def test_a_training_without_an_end_tells_no_last_epoch(
        self, files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("rich", reason="without it, Lightning's other bar tells no last epoch")
        told: list[str] = []
        describe = EpochProgressBar._get_train_description
        monkeypatch.setattr(
            EpochProgressBar, "_get_train_description",
            lambda bar, epoch: told.append(describe(bar, epoch).rstrip()) or describe(bar, epoch),
        )  # fmt: skip
        most = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "8", "--data.batch_size", "60"]
        self.fit("rows.csv", *most, "--trainer.enable_progress_bar", "true")
        assert told[:2] == ["Epoch 0", "Epoch 1"]

    def test_a_mistake_is_one_line(self, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            self.fit("rows.csv", "--model.init_from", "gone.ckpt")
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == "error: init_from: there is no file gone.ckpt; check the spelling and the folder"
