"""The callbacks of training: they show what there is, never disturb it, and never stop it."""

import functools
import inspect
import itertools
import logging
import math
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from ika_lightning.attention import IKAN, MIKAN, DotProduct, KernelGATConv
from ika_lightning.attention.core import Core
from ika_lightning.callbacks import Hyperparameters, Pictures, TrainingSignals, watching
from ika_lightning.callbacks.pictures import parts_in
from ika_lightning.data import NodeClassificationData, RegressionData, TextClassificationData, TranslationData
from ika_lightning.tasks import NodeClassification, Regression, TextClassification, Translation


class Small(LightningModule):
    """A project of somebody else's: our layer, and nothing else that the callbacks could know of."""

    def __init__(self, layer: nn.Module, length: int = 5) -> None:
        super().__init__()
        self.mixer, self.length = layer, length
        self.seen_training_mode: list[bool] = []

    def step(self, x: Tensor) -> Tensor:
        out, _ = self.mixer(x, x, x, need_weights=False)
        return (out - x).square().mean()

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        self.seen_training_mode.append(self.mixer.training)
        return self.step(batch)

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.log("val/loss", self.step(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def loader(self) -> DataLoader:
        x = torch.randn(12, self.length, self.mixer.embed_dim, generator=torch.Generator().manual_seed(0))
        return DataLoader(x, batch_size=4)

    train_dataloader = val_dataloader = loader


class Deep(Small):
    """One of two layers."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__(first)
        self.second = second

    def step(self, x: Tensor) -> Tensor:
        x, _ = self.mixer(x, x, x, need_weights=False)
        return super().step(self.second(x, x, x, need_weights=False)[0])


def always() -> list:
    """All callbacks, with all the time there is."""
    pictures = Pictures()
    # of the training, after it was checked
    pictures.share = math.inf
    return [TrainingSignals(every_n_steps=1), Hyperparameters(), pictures]


def trainer(folder: Path, callbacks=(), logger=None, **options) -> Trainer:
    options = {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1, **options}
    logger = TensorBoardLogger(folder, name=None, default_hp_metric=False) if logger is None else logger
    return Trainer(
        default_root_dir=folder, callbacks=list(callbacks), logger=logger, use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False, **{"enable_checkpointing": False, **options},
    )  # fmt: skip


def board(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "version_0"), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return events.Reload()


@pytest.fixture(autouse=True)
def no_complaints(caplog, request):
    """A picture that fails says a line and no more, so each test listens; those that expect a line do so themselves."""
    yield
    if "caplog" not in inspect.signature(request.function).parameters:
        assert not [record.getMessage() for record in caplog.records if record.name.startswith("ika_lightning")]


TASKS = {
    "regression": (
        lambda: Regression(MIKAN, width=16, depth=1, num_heads=2),
        lambda: RegressionData("airline_passengers"),
        {"results/fit"},
        ("net.encoder.layers.0.attention",),
    ),
    "text": (
        lambda: TextClassification(functools.partial(MIKAN, num_samples=4), width=16, depth=1, num_heads=2),
        lambda: TextClassificationData("languages", unit="subword", vocab_size=400),
        {"results/confusion", "tokens/net.encoder.layers.0.attention"},
        ("net.encoder.layers.0.attention",),
    ),
    "translation": (
        lambda: Translation(functools.partial(MIKAN, num_samples=4), width=16, depth=1, num_heads=2),
        lambda: TranslationData("dates", vocabulary=300),
        {"tokens/net.encoder.layers.0.attention", "alignment/net.layers.0.cross_attention"},
        ("net.encoder.layers.0.attention", "net.layers.0.self_attention", "net.layers.0.cross_attention"),
    ),
    "nodes": (
        lambda: NodeClassification(functools.partial(KernelGATConv, spectrum="copula"), num_heads=2, out_heads=2),
        lambda: NodeClassificationData("karate"),
        {"results/embeddings"},
        ("net.hidden.0", "net.last"),
    ),
}
UNITS = {"regression": ["rows"], "text": ["texts", "tokens"], "translation": ["sentences", "tokens"],
         "nodes": ["nodes", "edges"]}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_pictures_and_training_is_the_same_to_the_last_bit(task, tmp_path) -> None:
    build, data, results, layers = TASKS[task]
    weights, metrics, rates = [], [], []
    for watched in (False, True):
        seed_everything(0, verbose=False)
        model = build()
        fit = trainer(
            tmp_path / str(watched), always() if watched else (), limit_train_batches=3, limit_val_batches=3,
            check_val_every_n_epoch=1,
        )  # fmt: skip
        fit.fit(model, data())
        weights.append(model.state_dict())
        metrics.append({name: value for name, value in fit.callback_metrics.items() if not name.startswith("hp")})
        rates.append(torch.rand(()))
    assert all(a.equal(b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))
    assert metrics[0] == metrics[1] and rates[0] == rates[1]
    tags = board(tmp_path / "True").Tags()
    kinds = ("attention", "similarity", "spectrum", "correlation", "magnitude", "parts")
    assert set(tags["images"]) == results | {f"{kind}/{layer}" for kind in kinds for layer in layers}
    expected = {f"kl/{layer}" for layer in layers} | {f"speed/{unit}_per_second" for unit in UNITS[task]}
    assert expected | {"gradient/norm", "learning_rate", "memory/process_gib"} <= set(tags["scalars"])


def test_pictures_in_somebody_elses_project(tmp_path) -> None:
    trainer(tmp_path, always()).fit(Small(IKAN(8, 2)))
    events = board(tmp_path)
    tags = {f"{kind}/mixer" for kind in ("attention", "similarity", "spectrum", "magnitude", "parts")}
    assert set(events.Tags()["images"]) == tags
    for tag in tags:
        assert [event.step for event in events.Images(tag)] == [2, 5]
    assert {"kl/mixer", "speed/samples_per_second"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize(
    ("layer", "length", "kinds"),
    [
        (lambda: DotProduct(8, 2), 5, {"attention", "magnitude"}),
        (lambda: MIKAN(4, 1), 5, {"attention", "similarity", "spectrum", "magnitude", "parts"}),
        (lambda: MIKAN(4, 1), 1, {"attention", "similarity", "spectrum", "magnitude", "parts"}),
    ],
    ids=["no spectrum", "one head", "one token"],
)
def test_what_there_is_not_is_not_drawn(layer, length, kinds, tmp_path) -> None:
    trainer(tmp_path, always()).fit(Small(layer(), length))
    assert {tag.split("/")[0] for tag in board(tmp_path).Tags()["images"]} == kinds


def test_a_model_without_attention(tmp_path) -> None:
    class Line(Small):
        def step(self, x: Tensor) -> Tensor:
            return self.mixer(x).square().mean()

    line = nn.Linear(4, 4)
    line.embed_dim = 4
    trainer(tmp_path, always()).fit(Line(line))
    assert board(tmp_path).Tags()["images"] == []


def test_without_a_logger_or_validation_nothing_is_drawn(tmp_path) -> None:
    trainer(tmp_path, always(), logger=False).fit(Small(IKAN(8, 2)))
    assert list(tmp_path.iterdir()) == []
    trainer(tmp_path, always(), limit_val_batches=0).fit(Small(IKAN(8, 2)))
    tags = board(tmp_path).Tags()
    assert tags["images"] == [] and "kl/mixer" in tags["scalars"]


def test_debugging_runs_draw_nothing(tmp_path) -> None:
    trainer(tmp_path, always(), fast_dev_run=True).fit(Small(IKAN(8, 2)))
    assert list(tmp_path.iterdir()) == []


def test_a_logger_without_pictures_gets_figures_and_one_line(tmp_path, caplog) -> None:
    trainer(tmp_path, always(), CSVLogger(tmp_path, name=None)).fit(Small(IKAN(8, 2)))
    assert [r.getMessage() for r in caplog.records if r.name.startswith("ika_lightning")] == [
        "no pictures are drawn: only a TensorBoardLogger shows them"
    ]
    columns = (tmp_path / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"kl/mixer", "gradient/norm", "learning_rate"} <= set(columns)
    assert not [column for column in columns if column.startswith(("speed/", "memory/"))]  # no seed repeats them


def test_training_does_not_stop_for_a_picture(tmp_path, caplog) -> None:
    class Broken(Small):
        def pictures(self):
            raise RuntimeError("no brush")

    fit = trainer(tmp_path, always())
    fit.fit(Broken(IKAN(8, 2)))
    assert fit.current_epoch == 2
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "no more pictures of results: RuntimeError: no brush"
    ]
    assert len(board(tmp_path).Tags()["images"]) == 5


def test_an_interrupted_validation_leaves_no_hooks(tmp_path) -> None:
    class Stopped(Small):
        def validation_step(self, batch: Tensor, index: int) -> None:
            super().validation_step(batch, index)
            if not self.trainer.sanity_checking:
                raise ValueError("stop")

    model = Stopped(IKAN(8, 2))
    with pytest.raises(ValueError, match="stop"):
        trainer(tmp_path, always()).fit(model)
    assert not any(module._forward_hooks for module in model.modules())
    assert "configure_gradient_clipping" not in vars(model)


class TestTime:
    def test_pictures_keep_to_their_share(self, tmp_path, monkeypatch) -> None:
        """Steps of a clock that training and pictures move on by known amounts."""
        now = [0.0]
        monkeypatch.setattr(time, "perf_counter", lambda: now[0])

        class Slow(Small):
            def training_step(self, batch: Tensor, index: int) -> Tensor:
                now[0] += 10.0
                return super().training_step(batch, index)

        class Picture(Pictures):
            def figures(self, pl_module):
                return {"a": self.draw, "b": self.draw}

            def draw(self):
                now[0] += 2.0
                return Small_figure()

        picture = Picture(share=0.05)
        trainer(tmp_path, [picture], max_epochs=20).fit(Slow(IKAN(8, 2)))
        events = board(tmp_path)
        drawn = sorted(event.step for tag in "ab" for event in events.Images(tag))
        # 60 steps of 10 s: 30 s for pictures, of 2 s each, and those at the end
        before_the_end = [step for step in drawn if step < 59]
        assert picture.seconds == 2.0 * len(drawn) and 2.0 * len(before_the_end) <= 0.05 * now[0]
        assert len(before_the_end) >= 12 and drawn[-2:] == [59, 59]
        assert abs(len(events.Images("a")) - len(events.Images("b"))) <= 1

    def test_the_end_of_a_training_has_all_pictures_whatever_the_time(self, tmp_path) -> None:
        trainer(tmp_path, watching(pictures=1e-9)).fit(Deep(MIKAN(8, 2), MIKAN(8, 2)))
        events = board(tmp_path)
        steps = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
        kinds = ("attention", "correlation", "magnitude", "parts", "similarity", "spectrum")
        assert steps == {f"{kind}/{layer}": [5] for kind in kinds for layer in ("mixer", "second")}

    def test_no_time_no_pictures(self, tmp_path) -> None:
        trainer(tmp_path, [Pictures(share=0.0)]).fit(Small(IKAN(8, 2)))
        assert board(tmp_path).Tags()["images"] == []
        with pytest.raises(ValueError, match=r"share must be from 0 to 1, a part of the training time, got 1.5"):
            Pictures(share=1.5)


def Small_figure():
    from ika_lightning.pictures.canvas import panels

    return panels(1, 1, "small")[0]


def test_the_ridge_shows_the_way_even_if_it_is_drawn_once(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(
        "ika_lightning.pictures.layers.draw_density",
        lambda history, *_: drawn.append(history) or Small_figure(),
    )
    trainer(tmp_path, [Pictures(share=1e-9)], max_epochs=15).fit(Small(IKAN(8, 2)))
    (history,) = drawn  # at the end
    assert [step for step, _ in history] == [3, 15, 27, 39, 45]
    densities = [drawn.samples for _, drawn in history]
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(densities))


def test_the_parts_of_a_kernel_are_told_over_the_whole_training(tmp_path) -> None:
    """A checkpoint has them, too, and a training that goes on goes on with them."""

    def made(epochs: int) -> Trainer:
        return trainer(tmp_path, [Pictures(share=1e-9)], max_epochs=epochs)

    model = Small(IKAN(8, 2, p="learned"))
    fit = made(3)
    fit.fit(model)
    fit.save_checkpoint(tmp_path / "three.ckpt")
    saved = torch.load(tmp_path / "three.ckpt", weights_only=True)["callbacks"]["Pictures"]
    course = parts_in(saved)["mixer"]
    assert [step for step, _ in course] == [3, 6, 9]
    last = course[-1][1]
    assert set(last) == {"precision", "share", "p", "magnitude_scale"}
    assert_close(last["share"], model.mixer.core.share.detach())
    assert_close(last["p"], model.mixer.core.p.detach())
    longer = made(5)
    longer.fit(Small(IKAN(8, 2, p="learned")), ckpt_path=tmp_path / "three.ckpt")
    assert [step for step, _ in longer.callbacks[0]._parts.moments["mixer"]] == [3, 6, 9, 12, 15]


class Stranger(nn.Module):
    """Attention of somebody else's, with none of our parts."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim, self.inside = embed_dim, nn.MultiheadAttention(embed_dim, 2, batch_first=True)

    def forward(self, *args: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        return self.inside(*args, need_weights=False)[0], None


class Strange(Core):
    """A core of somebody else's, of which nothing can be asked that ours can be."""

    @property
    def share(self) -> Tensor:
        raise AttributeError("no such part")

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object):
        return value, None


@pytest.mark.parametrize("what", ["no core", "a strange core"])
def test_a_layer_of_somebody_elses_stops_nothing(what, tmp_path, caplog) -> None:
    other: nn.Module = Stranger(8)
    if what == "a strange core":
        other = IKAN(8, 2)
        other.core = Strange(2, 4)
    fit = trainer(tmp_path, always())
    fit.fit(Deep(other, IKAN(8, 2)))
    assert fit.current_epoch == 2
    shown = {tag for tag in board(tmp_path).Tags()["images"] if tag.endswith("/second")}
    assert shown == {f"{kind}/second" for kind in ("attention", "similarity", "spectrum", "magnitude", "parts")}
    said = [record.getMessage() for record in caplog.records if record.name.startswith("ika_lightning")]
    # a line of each callback that has looked at it
    assert all("mixer: AttributeError: " in line for line in said) and len(said) <= 2


class TestSignals:
    def test_the_gradient_is_measured_before_it_is_clipped(self, tmp_path) -> None:
        class Kept(Small):
            def on_before_optimizer_step(self, optimizer):
                for parameter in self.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(3.0)  # after the hook of callbacks
                self.norms.append(torch.cat([p.grad.flatten() for p in self.parameters()]).norm())

        model = Kept(DotProduct(8, 2))
        model.norms = []
        trainer(tmp_path, [TrainingSignals(every_n_steps=1)], gradient_clip_val=1e-3).fit(model)
        logged = [event.value for event in board(tmp_path).Scalars("gradient/norm")]
        assert_close(torch.tensor(logged), torch.stack(model.norms))
        assert min(logged) > 1e-3

    def test_figures_are_those_of_the_step(self, tmp_path) -> None:
        class Kept(Small):
            def on_train_batch_end(self, outputs, batch, index):
                self.kls.append(self.mixer.kl.item())

        model = Kept(IKAN(8, 2))
        model.kls = []
        trainer(tmp_path, [TrainingSignals(every_n_steps=2)], max_epochs=2).fit(model)
        events = board(tmp_path).Scalars("kl/mixer")
        assert [event.step for event in events] == [1, 3, 5]
        assert_close([event.value for event in events], model.kls[1::2])
        assert [event.value for event in board(tmp_path).Scalars("learning_rate")] == pytest.approx([0.1] * 3)

    def test_what_a_kernel_has_learned_in_few_numbers(self, tmp_path) -> None:
        class Kept(Small):
            def on_train_batch_end(self, outputs, batch, index):
                core = self.mixer.core
                parts = {"share": core.share, "precision": core.kernel.precision, "p": core.p}
                parts["magnitude_scale"] = core.magnitude.scale
                self.seen.append({name: part.mean().item() for name, part in parts.items()})

        model = Kept(MIKAN(8, 2, p="learned", batch_first=True))
        model.seen = []
        trainer(tmp_path, [TrainingSignals(every_n_steps=1)]).fit(model)
        events = board(tmp_path)
        for name in ("share", "precision", "p", "magnitude_scale"):
            logged = [event.value for event in events.Scalars(f"{name}/mixer")]
            assert logged == pytest.approx([seen[name] for seen in model.seen])
            assert len(set(logged)) == len(logged) == 6

    def test_a_kernel_without_an_exact_part_has_none_of_its_numbers(self, tmp_path) -> None:
        trainer(tmp_path, [TrainingSignals(every_n_steps=1)]).fit(Small(IKAN(8, 2, init="rbf")))
        tags = board(tmp_path).Tags()["scalars"]
        assert "kl/mixer" in tags
        assert not [tag for tag in tags if tag.startswith(("share", "precision", "p/", "magnitude_scale"))]

    def test_speed_leaves_validation_out(self, tmp_path, monkeypatch) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "perf_counter", lambda: now[0])

        class Timed(Small):
            def training_step(self, batch: Tensor, index: int) -> Tensor:
                now[0] += 0.5
                return super().training_step(batch, index)

            def validation_step(self, batch: Tensor, index: int) -> None:
                now[0] += 100.0

        trainer(tmp_path, [TrainingSignals(every_n_steps=3)]).fit(Timed(IKAN(8, 2)))
        speeds = [event.value for event in board(tmp_path).Scalars("speed/samples_per_second")]
        assert speeds == pytest.approx([8.0, 8.0])  # 4 samples in half a second

    def test_accumulated_batches_are_one_step(self, tmp_path) -> None:
        trainer(tmp_path, [TrainingSignals(every_n_steps=1)], accumulate_grad_batches=3).fit(Small(IKAN(8, 2)))
        assert [event.step for event in board(tmp_path).Scalars("gradient/norm")] == [0, 1]

    def test_how_often_is_checked(self) -> None:
        with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
            TrainingSignals(every_n_steps=0)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_table_of_runs_has_arguments_and_the_best_score(mode, tmp_path) -> None:
    class Scored(Small):
        def __init__(self, width: int, attention: dict, path: str | None = None) -> None:
            super().__init__(IKAN(width, 2))
            self.save_hyperparameters()
            self.scores = iter([9.0, 3.0, 1.0, 2.0])  # the first is of the check before training

        def validation_step(self, batch: Tensor, index: int) -> None:
            if index == 0:
                self.score = next(self.scores)
            self.log("val/score", self.score)

    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/score", mode=mode)
    trainer(tmp_path, [Hyperparameters(), checkpoint], max_epochs=3, enable_checkpointing=True).fit(
        Scored(8, {"class_path": "ika_lightning.attention.IKAN", "init_args": {"p": 1.5, "bias": True, "kdim": None}})
    )
    events = board(tmp_path)
    scores = [(event.step, event.value) for event in events.Scalars("hp_metric")]
    assert scores == ([(2, 3.0), (5, 1.0)] if mode == "min" else [(2, 3.0)])
    start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    told = HParamsPluginData.FromString(start).session_start_info.hparams
    # TensorBoard sorts columns by their names
    assert sorted(told) == [
        "main/attention", "main/learning_rate", "main/p", "other/attention/bias", "other/optimizer",
        "other/weight_decay", "other/width",
    ]  # fmt: skip
    assert (told["main/attention"].string_value, told["main/p"].number_value) == ("IKAN", 1.5)
    assert (told["other/optimizer"].string_value, told["other/width"].number_value) == ("SGD", 8)
    saved = yaml.safe_load((tmp_path / "version_0" / "hparams.yaml").read_text())
    assert saved["attention"]["class_path"] == "ika_lightning.attention.IKAN"
    assert b"hp_metric" in events.summary_metadata["_hparams_/experiment"].plugin_data.content


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")  # of metrics that are synchronised already
def test_one_of_two_processes_draws(tmp_path) -> None:
    fit = trainer(tmp_path, always(), strategy="ddp_fork", devices=2)
    fit.fit(TASKS["regression"][0](), TASKS["regression"][1]())
    events = list((tmp_path / "version_0").glob("events.*"))
    assert len(events) == 1
    tags = board(tmp_path).Tags()
    assert "results/fit" in tags["images"] and "gradient/norm" in tags["scalars"]
