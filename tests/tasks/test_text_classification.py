import functools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch.testing import assert_close

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect, attention_kl
from ika_lightning.data import TextClassificationData
from ika_lightning.data.text_classification import TextBatch
from ika_lightning.tasks import TextClassification
from ika_lightning.tasks.classes import describe_confusion

LAYERS = [DotProduct, RBF, IKANDirect, IKAN, MIKAN]
SMALL = {"width": 16, "depth": 1, "num_heads": 2, "dropout": 0.0, "embed_dropout": 0.0}
COLOURS, ANIMALS = ["red", "blue", "green", "grey"], ["ant", "bee", "cat", "dog", "emu"]


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """What decides is whether the first animal comes before the first colour: no word tells the class alone."""
    draw = torch.Generator().manual_seed(0)

    def pick(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=draw))]

    lines = []
    for number in range(300):
        pair = [pick(ANIMALS), pick(COLOURS)]
        rare = number % 3 == 0
        filler = [pick(["so", "very", "and"]) for _ in range(int(torch.randint(5, (), generator=draw)))]
        words = [*filler, *(pair if rare else pair[::-1]), f"n{number}"]
        lines.append(f"{'animal' if rare else 'colour'}\t{' '.join(words)}\n")
    (tmp_path / "texts.tsv").write_text("".join(lines))
    return str(tmp_path / "texts.tsv")


def data(texts: str, **options) -> TextClassificationData:
    return TextClassificationData(**{"path": texts, "batch_size": 32, "min_count": 2, **options})


def trainer(folder: Path, **options) -> Trainer:
    return Trainer(**{
        "default_root_dir": folder, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
        "log_every_n_steps": 1, **options,
    })  # fmt: skip


@pytest.fixture
def trained(texts, tmp_path) -> tuple[TextClassification, TextClassificationData, Path]:
    seed_everything(0, verbose=False)
    model, rows = TextClassification(functools.partial(MIKAN, p=1.8), **SMALL), data(texts)
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(model, rows)
    fit.save_checkpoint(tmp_path / "model.ckpt")
    return model.eval(), rows, tmp_path / "model.ckpt"


@pytest.mark.parametrize("attention", LAYERS)
def test_it_learns(attention, texts, tmp_path) -> None:
    seed_everything(0, verbose=False)
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-2)
    model, rows = TextClassification(attention, **SMALL, optimizer=optimizer), data(texts)
    fit = trainer(tmp_path, max_epochs=12, check_val_every_n_epoch=12)
    fit.fit(model, rows)
    (measured,) = fit.test(model, rows, verbose=False)
    assert measured["test/accuracy"] > 0.95


def test_figures(trained, tmp_path, capsys) -> None:
    model, rows, _ = trained
    (measured,) = trainer(tmp_path).test(model, rows)
    batches = list(rows.test_dataloader())
    logits = torch.cat([model(batch.tokens) for batch in batches]).detach()
    label, predicted = torch.cat([batch.label for batch in batches]), logits.argmax(1)
    counts = [[((label == i) & (predicted == j)).sum().item() for j in range(2)] for i in range(2)]
    f1 = [2 * counts[i][i] / (sum(counts[i]) + counts[0][i] + counts[1][i]) for i in range(2)]
    assert len(label) == 30
    assert measured["test/accuracy"] == pytest.approx((label == predicted).double().mean().item())
    assert measured["test/f1"] == pytest.approx(sum(f1) / 2)
    assert measured["test/loss"] == pytest.approx(F.cross_entropy(logits, label).item())
    table = describe_confusion(torch.tensor(counts), ["animal", "colour"])
    assert table in capsys.readouterr().out
    assert f"| animal | {counts[0][0]} | {counts[0][1]} |" in table


def test_many_classes_show_their_commonest_confusions() -> None:
    counts = torch.diag(torch.arange(13))
    counts[4, 7], counts[2, 1] = 3, 5
    assert describe_confusion(counts, [f"c{i}" for i in range(13)]).splitlines()[2:] == [
        "| c2 | c1 | 5 |",
        "| c4 | c7 | 3 |",
    ]


def test_confusion_goes_to_tensorboard(texts, tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    written: list[str] = []
    logger.experiment.add_text = lambda name, text, step: written.append(f"{name} {text.splitlines()[0]}")
    trainer(tmp_path, max_epochs=2, logger=logger).fit(TextClassification(DotProduct, **SMALL), data(texts))
    assert written == ["val/confusion | true \\ predicted | animal | colour |"] * 2


class TestLoss:
    def batch(self) -> TextBatch:
        return TextBatch(torch.tensor([[4, 5, 6], [7, 0, 0]]), torch.tensor([0, 1]), torch.tensor([0, 1]))

    def test_training_loss(self, trained):
        model, _, _ = trained
        model.train()
        model.kl_weight, model.label_smoothing, model.weights = 3.0, 0.2, torch.tensor([0.5, 2.0])
        model.log = lambda *args, **kwargs: None
        torch.manual_seed(1)
        loss = model.training_step(self.batch(), 0)
        torch.manual_seed(1)
        log = model.net(self.batch().tokens).log_softmax(1)
        kl = attention_kl(model)
        smooth = -(0.5 * (0.9 * log[0, 0]) + 2.0 * 0.1 * log[0, 1] + 0.5 * 0.1 * log[1, 0] + 2.0 * 0.9 * log[1, 1])
        assert kl > 0
        assert_close(loss, smooth / 2.5 + 3.0 * kl)

    @pytest.mark.parametrize("weights", ["balanced", [1.0, 3.0]])
    def test_class_weights(self, texts, tmp_path, weights):
        model, rows = TextClassification(DotProduct, **SMALL, class_weights=weights), data(texts)
        trainer(tmp_path, max_epochs=1).fit(model, rows)
        assert rows.class_counts.tolist() == [80, 160]
        assert model.weights.tolist() == ([1.5, 0.75] if weights == "balanced" else [1.0, 3.0])
        assert "weights" not in model.state_dict()

    def test_wrong_class_weights(self, texts, tmp_path):
        with pytest.raises(ValueError, match=r"one for each of the 2 classes, \['animal', 'colour'\], got \[1.0\]"):
            trainer(tmp_path, max_epochs=1).fit(TextClassification(DotProduct, class_weights=[1.0]), data(texts))
        with pytest.raises(ValueError, match=r"class_weights must all be positive, got \[1.0, 0.0\]"):
            TextClassification(class_weights=[1.0, 0.0])
        with pytest.raises(ValueError, match="label_smoothing must be at least 0 and less than 1"):
            TextClassification(label_smoothing=1.0)


class TestVectors:
    @pytest.fixture
    def vectors(self, tmp_path) -> str:
        (tmp_path / "vectors.txt").write_text("red 1 2 3\nant 4 5 6\nzebra 7 8 9\n")
        return str(tmp_path / "vectors.txt")

    @pytest.mark.parametrize("freeze", [True, False])
    def test_words_start_from_the_file(self, texts, tmp_path, vectors, freeze, capsys):
        model = TextClassification(DotProduct, **SMALL, vectors=vectors, freeze_vectors=freeze)
        rows = data(texts)
        fit = trainer(tmp_path, max_epochs=1)
        fit.fit(model, rows)
        fit.save_checkpoint(tmp_path / "model.ckpt")
        assert f"{vectors} has 2 of the {rows.vocab_size} words" in capsys.readouterr().out
        red = model.net.embed.weight[rows.tokenizer.encode(["red"])[0][0]]
        assert torch.equal(red, torch.tensor([1.0, 2.0, 3.0])) == freeze
        assert_close(red, torch.tensor([1.0, 2.0, 3.0]), rtol=0, atol=0.1)
        Path(vectors).unlink()  # the checkpoint is enough
        loaded = TextClassification.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
        assert_close(loaded.net.embed.weight, model.net.embed.weight, rtol=0, atol=0)
        again = TextClassification(DotProduct, **SMALL, vectors=vectors, freeze_vectors=freeze)
        trainer(tmp_path).test(again, data(texts), ckpt_path=tmp_path / "model.ckpt", weights_only=True, verbose=False)
        assert_close(again.net.embed.weight, model.net.embed.weight, rtol=0, atol=0)

    def test_parts_of_words_have_none(self, texts, tmp_path, vectors):
        rows = data(texts, unit="subword", vocab_size=300)
        with pytest.raises(ValueError, match="vectors are of words, not of a vocabulary with unit='subword'"):
            trainer(tmp_path, max_epochs=1).fit(TextClassification(DotProduct, vectors=vectors), rows)

    def test_width_is_that_of_the_file(self, texts, tmp_path, vectors):
        with pytest.raises(ValueError, match=r"vectors\.txt has 3 numbers a word, embed_dim=5; leave it out"):
            trainer(tmp_path, max_epochs=1).fit(TextClassification(vectors=vectors, embed_dim=5), data(texts))


class TestCheckpoint:
    def test_it_is_enough_in_python(self, trained, tmp_path):
        model, rows, path = trained
        saved = torch.load(path, weights_only=True)
        assert saved["hyper_parameters"]["classes"] == ["animal", "colour"]
        Path(rows.path).unlink()  # the training texts are gone
        (tmp_path / "new.txt").write_text("a red ant\nbee and blue\n\nvery very green cat\n")
        loaded = TextClassification.load_from_checkpoint(path, weights_only=True).eval()
        new = TextClassificationData.load_from_checkpoint(
            path, predict_path=str(tmp_path / "new.txt"), weights_only=True
        )
        new.setup("predict")
        with pytest.warns(UserWarning, match="1 of the 4 texts to predict have no token"):
            (batch,) = new.predict_dataloader()
        predicted = loaded.predict_step(batch, 0)
        assert_close(predicted, model.predict_step(batch, 0), rtol=0, atol=0)
        assert_close(predicted.sum(1), torch.ones(4))

    def test_a_training_goes_on_with_its_own_vocabulary(self, trained, texts, tmp_path):
        _, rows, path = trained
        size = rows.vocab_size
        with Path(texts).open("a") as file:
            file.write("colour\tteal teal\n" * 10)
        more, on = (
            data(texts, val_fraction=0, test_fraction=0),
            TextClassification(functools.partial(MIKAN, p=1.8), **SMALL),
        )
        trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(on, more, ckpt_path=path, weights_only=True)
        assert more.vocab_size == on.net.embed.num_embeddings == size

    def test_a_foreign_one_is_refused(self):
        with pytest.raises(ValueError, match="not one of TextClassification: it does not say num_tokens, classes"):
            TextClassification().on_load_checkpoint({"state_dict": {}})


def test_predictions_do_not_depend_on_their_company(trained) -> None:
    model, rows, _ = trained
    together = torch.cat([model.predict_step(batch, 0)[batch.row.argsort()] for batch in rows.test_dataloader()])
    rows.batch_size = 1
    alone = torch.cat([model.predict_step(batch, 0) for batch in rows.test_dataloader()])
    order = torch.cat([batch.row for batch in rows.test_dataloader()])
    assert_close(alone[order.argsort()], together, rtol=1e-5, atol=1e-6)


def test_same_seed_same_weights(texts, tmp_path) -> None:
    weights = []
    for _ in range(2):
        seed_everything(7, verbose=False)
        model = TextClassification(MIKAN, **(SMALL | {"dropout": 0.1, "word_dropout": 0.1}))
        trainer(tmp_path, max_epochs=2).fit(model, data(texts))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert_close(*weights, rtol=0, atol=0)
    assert math.isfinite(weights[0].sum())


def test_other_data_is_refused(tmp_path) -> None:
    class Pictures(LightningDataModule):
        def train_dataloader(self):
            return []

        val_dataloader = train_dataloader

    with pytest.raises(
        ValueError, match="TextClassification needs TextClassificationData, got Pictures; give --data Te"
    ):
        trainer(tmp_path, max_epochs=1).fit(TextClassification(), Pictures())
