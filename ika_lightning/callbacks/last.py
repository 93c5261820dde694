"""The last checkpoint of a training: whole, and exactly what the training needs to go on."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from ika_lightning.data.base import DataModule
from ika_lightning.internals import (
    end_of_batch_before,
    finish_schedulers,
    forget_best,
    is_requeued,
    mark_updated,
    validate_now,
)
from ika_lightning.output import open_output, temporary_name
from ika_lightning.protocols import HasFingerprints
from ika_lightning.trust import plain_tensors

__all__ = ["LastCheckpoint", "WholeCheckpointIO"]


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads nothing but plain tensors.

    The bytes go to a temporary name in the same folder, to the disk, and then in one step to their place: until then,
    the file that was there stays as it is. Lightning's own goes by way of the system's folder for temporary files,
    from which nothing moves to another disk in one step.

    Raises:
        OSError: If the disk is full or refuses; nothing is left behind.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_output(path, sync=True) as file:
                torch.save(checkpoint, file)
        except OSError as error:
            reason = error.strerror or str(error).removeprefix(f"cannot write {path}: ")
            kept = "; the one before is kept" if path.is_file() else ""
            raise OSError(f"cannot write the checkpoint {path}: {reason}{kept}") from error

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        with plain_tensors():
            return super().load_checkpoint(path, map_location, weights_only=True)


class LastCheckpoint(Callback):
    """Keeps ``last.ckpt``, from which a training goes on as if it had never stopped, bit by bit.

    It is written before the first batch of an epoch, and before every ``every_n_train_steps``-th update: between two
    batches, after everything that belongs to the batch before, validation and schedulers included. Checkpoints that
    Lightning writes in the middle of this miss a part of it. The one before stays as ``before_last.ckpt``.

    Lightning saves no metrics; here are those of the epoch so far, of each process, and those that callbacks and
    schedulers look at. A training that goes on with other data, or other rows of the same, is measured on these before
    its first batch, and what was measured before is forgotten. What the loaders and the noise need is in their own
    hands: see :class:`~ika_lightning.data.loader.Loader` and :class:`~ika_lightning.tasks.base.Task`.

    On SIGTERM, the training is saved before the next batch and ends with Lightning's ``SIGTERMException``.

    It belongs in front of other callbacks, so that none of them has begun with the next batch, or with the end of the
    training, when it writes.

    Args:
        every_n_train_steps: Write before every n-th update as well; None only at the start of each epoch. In between,
            with accumulated gradients, there is nothing exact to save.
        every_n_epochs: Write at the start of every n-th epoch. The end of the training is always written.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LastCheckpoint(every_n_train_steps=100)], logger=False)
    """

    def __init__(self, every_n_train_steps: int | None = None, every_n_epochs: int = 1) -> None:
        for name, number in (("every_n_train_steps", every_n_train_steps), ("every_n_epochs", every_n_epochs)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.every_n_train_steps, self.every_n_epochs = every_n_train_steps, every_n_epochs
        self.path: Path | None = None  # of the last one that was written, or gone on from
        self._place: str | None = None  # where in the training is being saved
        self._resumed: dict[str, Any] | None = None
        self._terminated = False
        self._data: dict[str, str] = {}  # fingerprints, which are made once a training
        self._measures_first = False  # as the training goes on with other data

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        log_dir = trainer.log_dir  # asked on every rank: it is a broadcast
        self.folder = Path(folder or Path(log_dir or trainer.default_root_dir, "checkpoints"))
        self._data = _data_of(trainer)
        if self._resumed is not None:
            self._restore(trainer, pl_module, self._resumed)
            self._resumed = None
        if threading.current_thread() is threading.main_thread() and not is_requeued(trainer):
            # Lightning's handler stops each process by itself, wherever it is; others would wait for it for ever
            signal.signal(signal.SIGTERM, self._terminate)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._measures_first:
            self._measures_first = False
            validate_now(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        finish_schedulers(trainer)
        if batch_idx % trainer.accumulate_grad_batches:
            return  # a part of a gradient is in no checkpoint
        leaves = trainer.strategy.reduce_boolean_decision(self._terminated, all=False)
        every = self.every_n_train_steps
        due = batch_idx == 0 and trainer.current_epoch % self.every_n_epochs == 0
        if leaves or due or (every is not None and trainer.global_step % every == 0):
            self._save(trainer, "before a batch")
        if leaves:
            raise SIGTERMException

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "the end")

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._place is None:
            return  # another callback saves
        checkpoint["last"] = {
            "place": self._place,
            "stopped": trainer.should_stop,
            "data": self._data,
            "callback_metrics": {name: value.cpu() for name, value in trainer.callback_metrics.items()},
            "epoch_metrics": _collect(trainer, pl_module),
        }
        if self._place == "before a batch":
            end_of_batch_before(checkpoint["loops"]["fit_loop"])

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint.get("last")

    def _save(self, trainer: Trainer, place: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()  # what was logged until here is in no checkpoint
        path = self.folder / "last.ckpt"
        # one that was cut short, by a disk that lost its end, must not take the place of a whole one
        if trainer.is_global_zero and path.is_file() and zipfile.is_zipfile(path):
            _keep(path)
        self._place = place
        try:
            trainer.save_checkpoint(path, weights_only=False)
        finally:
            self._place = None
        self.path = path

    def _restore(self, trainer: Trainer, pl_module: LightningModule, saved: dict[str, Any]) -> None:
        trainer.should_stop = saved["stopped"]
        # of other data nothing is measured yet; earlier versions did not say of which data it was
        self._measures_first = saved.get("data", self._data) != self._data
        if self._measures_first:
            forget_best(trainer)
            return
        trainer.callback_metrics.update(saved["callback_metrics"])
        states = saved["epoch_metrics"]
        if len(states) != trainer.world_size:
            return  # the epoch's figures begin anew; weights do not depend on them
        for name, metric in pl_module.named_modules():
            if name in states[trainer.global_rank]:
                assert isinstance(metric, Metric)
                for key, value in states[trainer.global_rank][name].items():
                    setattr(metric, key, value.to(metric.device))
                mark_updated(metric)

    def _terminate(self, number: int, frame: object) -> None:
        self._terminated = True


def _collect(trainer: Trainer, module: LightningModule) -> list[dict[str, dict[str, Tensor]]]:
    """The state of each metric that has begun, for each process."""
    states = {
        name: {key: value for key, value in metric.metric_state.items() if isinstance(value, Tensor)}
        for name, metric in module.named_modules()
        if isinstance(metric, Metric) and metric.update_called
    }
    if trainer.world_size == 1:
        return [{name: {key: value.cpu() for key, value in state.items()} for name, state in states.items()}]
    gathered: Any = module.all_gather(states)
    return [
        {name: {key: value[rank].cpu() for key, value in state.items()} for name, state in gathered.items()}
        for rank in range(trainer.world_size)
    ]


def _data_of(trainer: Trainer) -> dict[str, str]:
    """Fingerprints of what was read to train and to validate on; empty if they are not known."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    read = dict(data.fingerprints) if isinstance(data, HasFingerprints) else {}
    if isinstance(data, DataModule):
        # of one file, other rows may be drawn
        read |= {f"drawn for {part}": rows for part, rows in data.state_dict().get("drawn", {}).items()}
    return {part: value for part, value in read.items() if not part.endswith("test")}


def _keep(path: Path) -> None:
    """Give a checkpoint the name of the one before it as well: a second name for the file, so that it stays there."""
    before = path.with_name("before_last.ckpt")
    link = temporary_name(before)
    try:
        # what is behind links, or the second name would be one for the link
        os.link(path.resolve(), link)
        link.replace(before.resolve())
    except OSError:
        # not every file system has second names, and none for a file of another
        with path.open("rb") as file, open_output(before) as copy:
            shutil.copyfileobj(file, copy)
    finally:
        link.unlink(missing_ok=True)
