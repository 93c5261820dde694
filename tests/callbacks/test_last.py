import errno
import functools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import four_tasks
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ika_lightning.callbacks.last import LastCheckpoint, WholeCheckpointIO
from ika_lightning.cli.logs import go_on_logging


class Snapshots(Callback):
    """Keeps each last checkpoint under the number of the update that it was written before."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        last = next(callback for callback in trainer.callbacks if isinstance(callback, LastCheckpoint))
        shutil.copy(last.path, last.path.parent.parent / f"{trainer.global_step}.snapshot")


def fit(
    task: str, data: Path, folder: Path, go_on: Path | None = None, *callbacks: Callback, **options: Any
) -> Trainer:
    """Train with noise, and with everything that has a state of its own."""
    seed_everything(3, verbose=False)
    scheduler = functools.partial(ReduceLROnPlateau, patience=0, factor=0.5)
    model, rows = four_tasks.build(task, data, dropout=0.3, scheduler=scheduler)
    logger = CSVLogger(folder, name=None, version="")
    if go_on is not None:
        go_on_logging(logger, torch.load(go_on, weights_only=True)["global_step"])
    trainer = Trainer(
        accelerator="cpu", logger=logger, log_every_n_steps=1, use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[
            LastCheckpoint(every_n_train_steps=1), *callbacks, EMAWeightAveraging(decay=0.9),
            EarlyStopping("val/loss", patience=2),
            ModelCheckpoint(monitor="val/loss", filename="best", enable_version_counter=False),
        ],
        **{"max_epochs": 3, **options},
    )  # fmt: skip
    trainer.fit(model, rows, ckpt_path=go_on, weights_only=True)
    return trainer


def states(folder: Path) -> dict[str, Any]:
    """What a training has come to: everything that it would go on from, and its best checkpoint."""
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "callbacks")
    last, best = (torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("last", "best"))
    for state in last["callbacks"].values():
        state.pop("current_score", None)  # which ModelCheckpoint keeps, does not load, and makes no use of
    calibration = [state.get("calibration") for state in (last, best)]
    return {
        **{key: last[key] for key in kept}, "best": best["state_dict"], "step": last["global_step"],
        "calibration": calibration,
    }  # fmt: skip


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other) or (one.isnan().all() and other.isnan().all())
    else:
        assert one == other


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    four_tasks.write_files(folder)
    return folder


quiet = pytest.mark.filterwarnings(
    "ignore:You're using the WeightAveraging callback with", "ignore:Experiment logs directory",
    "ignore:Checkpoint directory .* exists",
)  # fmt: skip


@quiet
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("regression", {}),
        ("regression", {"accumulate_grad_batches": 2}),
        ("regression", {"val_check_interval": 4, "check_val_every_n_epoch": None, "max_steps": 15}),
        ("regression", {"val_check_interval": 0.5}),
        ("sure_regression", {}),
        ("text_classification", {}),
        ("translation", {"max_epochs": 2}),
        ("node_classification", {}),
        ("node_batches", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_training_goes_on_bit_by_bit(task, options, data, tmp_path) -> None:
    fit(task, data, tmp_path, None, Snapshots(), **options)
    whole, metrics = states(tmp_path), (tmp_path / "metrics.csv").read_bytes()
    snapshots = sorted(tmp_path.glob("*.snapshot"), key=lambda file: int(file.stem))
    assert len(snapshots) == whole["step"] and whole["step"] > 2
    # the best weights were validated
    assert (whole["calibration"][1] is not None) == ("regression" in task)
    # the beginning, somewhere, the ends of epochs, and the end
    chosen = snapshots if len(snapshots) < 5 else [snapshots[i] for i in (0, 1, len(snapshots) // 2, -2, -1)]
    for snapshot in [*chosen, tmp_path / "checkpoints" / "last.ckpt"]:
        fit(task, data, tmp_path, snapshot, **options)
        assert_same(states(tmp_path), whole)
        assert (tmp_path / "metrics.csv").read_bytes() == metrics


@quiet
def test_noise_depends_on_the_seed_and_nothing_else(data, tmp_path) -> None:
    weights = []
    for seed in (0, 0, 1):
        seed_everything(seed, verbose=False)
        model, rows = four_tasks.build("regression", data, dropout=0.3)
        seed_everything(7 + seed, verbose=False)
        model.on_train_epoch_start = lambda: torch.rand(int(torch.randint(9, ()).item()))  # what else may draw
        Trainer(
            default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
        ).fit(model, rows)  # fmt: skip
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


class TestMetrics:
    def test_those_before_a_step_are_kept(self, tmp_path):
        # what a process left that was killed: its last line was never finished
        file = tmp_path / "metrics.csv"
        file.write_text("step,train/loss\n0,0.5\n1,0.25\n2,0.125\n1")
        before = file.read_bytes()
        logger = CSVLogger(tmp_path, name=None, version="")
        go_on_logging(logger, step=2)
        # all that is there may be of use until there is something in its place
        assert file.read_bytes() == before
        logger.log_metrics({"train/loss": 0.0625, "new": 7}, step=2)
        logger.save()
        lines = ["new,step,train/loss", ",0,0.5", ",1,0.25", "7,2,0.0625"]
        assert file.read_text().splitlines() == lines
        logger.log_metrics({"train/loss": 0.03125}, step=3)
        logger.save()
        assert file.read_text().splitlines() == [*lines, ",3,0.03125"]
        assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]

    @pytest.mark.parametrize("name", ["loss", "new"], ids=["another line", "another column"])
    def test_a_full_disk_leaves_them(self, name, tmp_path, file_size_limit):
        logger = CSVLogger(tmp_path, name=None, version="")
        go_on_logging(logger, None)
        for step in range(100):
            logger.log_metrics({"loss": step}, step)
        logger.save()
        before = (tmp_path / "metrics.csv").read_bytes()
        logger.log_metrics({name: 7}, step=100)
        with file_size_limit(len(before) + 2), pytest.raises(OSError, match=r"metrics.csv: File too large"):
            logger.save()
        assert (tmp_path / "metrics.csv").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


class Terminated(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


@quiet
def test_a_terminated_training_is_saved_first(data, tmp_path) -> None:
    fit("regression", data, tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        fit("regression", data, tmp_path / "cut", None, Terminated())
    assert signal.getsignal(signal.SIGTERM) == before
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4
    fit("regression", data, tmp_path / "cut", last)
    one, other = states(tmp_path / "whole"), states(tmp_path / "cut")
    assert_same(*({key: value for key, value in state.items() if key != "callbacks"} for state in (one, other)))


@pytest.mark.parametrize("argument", ["every_n_train_steps", "every_n_epochs"])
def test_numbers_are_positive(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        LastCheckpoint(**{argument: 0})


class TestWholeCheckpoints:
    def test_written_and_read(self, tmp_path):
        WholeCheckpointIO().save_checkpoint({"x": torch.ones(3)}, tmp_path / "new" / "a.ckpt")
        assert WholeCheckpointIO().load_checkpoint(tmp_path / "new" / "a.ckpt")["x"].tolist() == [1, 1, 1]
        assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.ckpt"]

    @pytest.mark.parametrize("failing", ["fsync", "replace"])
    def test_the_one_before_is_kept(self, failing, tmp_path, monkeypatch):
        path = tmp_path / "a.ckpt"
        WholeCheckpointIO().save_checkpoint({"x": 1}, path)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), full)
        with pytest.raises(OSError, match=r"cannot write .*a.ckpt: No space left on device; the one before is kept"):
            WholeCheckpointIO().save_checkpoint({"x": 2}, path)
        assert torch.load(path, weights_only=True) == {"x": 1}
        assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]

    def test_a_full_disk(self, tmp_path, file_size_limit):
        path = tmp_path / "a.ckpt"
        WholeCheckpointIO().save_checkpoint({"x": 1}, path)
        with (
            file_size_limit(10_000),
            pytest.raises(OSError, match=r"cannot write the checkpoint .*: File too large; the one before is kept"),
        ):
            WholeCheckpointIO().save_checkpoint({"x": torch.zeros(10**5)}, path)
        assert torch.load(path, weights_only=True) == {"x": 1}
        assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]

    def test_what_is_no_disk_is_told_as_it_is(self, tmp_path):
        with pytest.raises(AttributeError, match="local object"):
            WholeCheckpointIO().save_checkpoint({"x": lambda: None}, tmp_path / "a.ckpt")
        assert list(tmp_path.iterdir()) == []

    def test_a_link_is_followed(self, tmp_path):
        (tmp_path / "big").mkdir()
        path = tmp_path / "last.ckpt"
        path.symlink_to("big/last.ckpt")
        WholeCheckpointIO().save_checkpoint({"x": 1}, path)
        WholeCheckpointIO().save_checkpoint({"x": 2}, path)
        assert path.is_symlink() and torch.load(tmp_path / "big" / "last.ckpt", weights_only=True) == {"x": 2}

    def test_code_is_not_run(self, tmp_path):
        torch.save({"x": Path("a")}, tmp_path / "a.ckpt")
        with pytest.raises(Exception, match="Weights only load failed"):
            WholeCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
