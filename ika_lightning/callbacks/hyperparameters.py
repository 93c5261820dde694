"""What a run was started with, beside what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.fabric.loggers.tensorboard import TensorBoardLogger as Board
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

# What runs are compared by, by its name among the arguments: what attends is an attention or a convolution.
_MAIN = {
    "attention": "main/attention",
    "conv": "main/attention",
    "data": "main/data",
    "learning_rate": "main/learning_rate",
    **{f"{layer}/{name}": f"main/{name}" for layer in ("attention", "conv") for name in ("num_samples", "p")},
}


class Hyperparameters(Callback):
    """Fills TensorBoard's HPARAMS tab: a row for each run, with its arguments and the best score so far.

    The score is what the first ``ModelCheckpoint`` monitors, the best one so far, under the name ``hp_metric``, which
    is the same for all runs. Besides the arguments that model and data have saved, a row has the optimizer and its
    learning rate and weight decay. A class is told by its name, and its arguments stand beside it.

    TensorBoard sorts columns by their names and shows the first few. So what a reader compares runs by begins with
    ``main/``: ``main/attention``, such as MIKAN, its ``main/p`` and ``main/num_samples``, ``main/data`` and
    ``main/learning_rate``. All else begins with ``other/``, such as ``other/attention/bias``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Hyperparameters()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self._best: float | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._best = None

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        checkpoint = next(iter(trainer.checkpoint_callbacks), None)
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not isinstance(checkpoint, ModelCheckpoint):
            return
        score = trainer.callback_metrics.get(checkpoint.monitor or "")
        if score is None:
            return
        # that of a run that goes on is in its checkpoint
        better = max if checkpoint.mode == "max" else min
        known = [value for value in (self._best, checkpoint.best_model_score) if value is not None]
        best = better(float(score), *(float(value) for value in known)) if known else float(score)
        if best == self._best:
            return
        step = trainer.global_step - 1  # the number of the update before it, as of the score
        for board in boards:
            if self._best is None:
                # not the logger's own method, which would write these names to hparams.yaml as well
                Board.log_hyperparams(board, self._parameters(trainer, pl_module), {"hp_metric": best}, step)
            else:
                board.log_metrics({"hp_metric": best}, step)
        self._best = best

    def _parameters(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        data = getattr(trainer, "datamodule", None)
        parameters = {**getattr(data, "hparams_initial", {}), **pl_module.hparams}
        parameters = dict(_columns({name: value for name, value in parameters.items() if not name.startswith("_")}))
        told = next((parameters[name] for name in ("name", "path", "source") if name in parameters), None)
        if data is not None:
            parameters["data"] = type(data).__name__ if told is None else told
        for optimizer in trainer.optimizers[:1]:
            (group, *_) = optimizer.param_groups
            parameters["optimizer"] = type(optimizer).__name__
            parameters["learning_rate"] = float(group.get("initial_lr", group["lr"]))
            parameters["weight_decay"] = float(group.get("weight_decay", 0.0))
        return {_MAIN.get(name, f"other/{name}"): value for name, value in parameters.items()}


def _columns(parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name the columns of nested arguments, a class by its last name; those that are None have none."""
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            if "class_path" in value:
                yield name, value["class_path"].rpartition(".")[2]
                value = value.get("init_args") or {}
            yield from _columns({f"{name}/{key}": nested for key, nested in value.items()})
        elif value is not None:
            yield name, value
