"""What this package uses of other libraries that they do not promise.

Each has its reason here, and a test that fails when the library changes (``tests/test_internals.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from torchmetrics import Metric
from typing_extensions import override

from ika_lightning.lazy import sacrebleu

__all__ = [
    "EpochProgressBar",
    "argument_of_finder",
    "corpus_statistics",
    "end_of_batch_before",
    "finish_schedulers",
    "forget_best",
    "is_requeued",
    "mark_updated",
    "option_names",
    "purge_from",
    "score_of_statistics",
    "set_version",
    "trainer_of",
    "unwrap_factory",
    "use_writer",
    "validate_now",
    "version_of",
]


# --- Lightning: modules -----------------------------------------------------------------------------------------------


def trainer_of(module: LightningModule) -> Trainer | None:
    """Return the trainer of a module, or None. Lightning's own property raises where there is none."""
    return module._trainer


# --- Lightning: exact resume ------------------------------------------------------------------------------------------


def finish_schedulers(trainer: Trainer) -> None:
    """Let schedulers be stepped at the end of an epoch that a training has gone on with.

    Lightning takes all of that epoch for a restart, and leaves them out.
    """
    trainer.fit_loop._restarting = False


def is_requeued(trainer: Trainer) -> bool:
    """Whether SLURM queues the job again: Lightning has a handler of its own for that, and tells nobody."""
    environment = trainer._accelerator_connector.cluster_environment
    return isinstance(environment, SLURMEnvironment) and environment.auto_requeue


def forget_best(trainer: Trainer) -> None:
    """Let checkpoints start anew with what is best; the files that they have kept stay.

    Lightning keeps measures and paths in the state of :class:`ModelCheckpoint`, and has no way to take them back.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.best_k_models.clear()
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = callback.current_score = None


def validate_now(trainer: Trainer) -> None:
    """Run a validation between two batches, as Lightning does when one is due.

    Lightning has validations at intervals alone, and ``trainer.validate`` would end the training.
    """
    loop = trainer.fit_loop.epoch_loop
    if not trainer.enable_validation:
        return
    first = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first


def end_of_batch_before(state: dict[str, Any]) -> None:
    """Rewrite the state of Lightning's fit loop as if the batch that is about to begin had not been fetched yet.

    What results is the state at the end of the batch before it, from which Lightning knows how to go on.

    Args:
        state: ``checkpoint["loops"]["fit_loop"]``.
    """
    progress = state["epoch_loop.batch_progress"]
    for count in (progress["total"], progress["current"]):
        count["ready"] -= 1
        count["completed"] -= 1
    progress["is_last_batch"] = False
    state["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    for loader in state["state_dict"].get("combined_loader", []):
        if "served" in loader:
            loader["served"] = progress["current"]["ready"]


def mark_updated(metric: Metric) -> None:
    """Say that a metric has something to compute, whose state was put into it: torchmetrics counts updates alone."""
    # any number but none
    metric._update_count = 1


# --- Lightning: what a run shows and writes ---------------------------------------------------------------------------


class EpochProgressBar(RichProgressBar):
    """Lightning's progress bar, for a training without a last epoch as well: ``Epoch 5``, and not ``Epoch 5/-2``."""

    @classmethod
    def like(cls, bar: RichProgressBar) -> EpochProgressBar:
        """Return such a bar with the options of another: the trainer has made it already, or its user."""
        new = cls()
        vars(new).update(vars(bar))
        return new

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        description = super()._get_train_description(current_epoch)
        if self.trainer.max_epochs != -1:
            return description
        # as wide as it was, or the bars would jump
        return f"Epoch {current_epoch}".ljust(len(description))


def version_of(logger: TensorBoardLogger | CSVLogger) -> int | str | None:
    """Return the version that a logger was given; its property would look for the next one that is free."""
    return logger._version


def set_version(logger: TensorBoardLogger | CSVLogger, version: int | str | None) -> None:
    """Give a logger a version: the trainer has made it before the folder of the run is known."""
    logger._version = version


def purge_from(logger: TensorBoardLogger, step: int) -> None:
    """Hide what a logger's files have from a step on: an argument of TensorBoard's writer, which is made later."""
    logger._kwargs["purge_step"] = step


def use_writer(logger: CSVLogger, writer: ExperimentWriter) -> None:
    """Give a logger a writer of one's own."""
    logger._experiment = writer


def argument_of_finder(finder: BatchSizeFinder) -> str:
    """Return the name of the argument that a finder of batch sizes changes."""
    return finder._batch_arg_name


# --- jsonargparse -----------------------------------------------------------------------------------------------------


def option_names(parser: ArgumentParser) -> list[str]:
    """Return the options of a parser without their dashes; it tells them in a help text alone."""
    return [option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--")]


def unwrap_factory(factory: Any) -> tuple[type | None, Mapping[str, Any]]:
    """Return the class that a callable makes objects of, or None, and the keyword arguments that it gives.

    jsonargparse makes a ``functools.partial`` of a function of its own, and passes the class to it.

    Example:
        >>> unwrap_factory(functools.partial(dict, a=1)), unwrap_factory(lambda: 0)
        ((<class 'dict'>, {'a': 1}), (None, {}))
    """
    parts, arguments = [factory], {}
    if isinstance(factory, functools.partial):
        parts, arguments = [factory.func, *factory.args], factory.keywords
    classes = [part for part in parts if isinstance(part, type)]
    return (classes[0], arguments) if len(classes) == 1 and all(map(callable, parts)) else (None, {})


# --- sacreBLEU --------------------------------------------------------------------------------------------------------


def corpus_statistics(
    scorer: sacrebleu.BLEU | sacrebleu.CHRF, hypotheses: Sequence[str], references: Sequence[str]
) -> list[list[int]]:
    """Return the counts of n-grams of each sentence, of which sacreBLEU makes its score: they can be summed."""
    return scorer._extract_corpus_statistics(hypotheses, [references])


def score_of_statistics(scorer: sacrebleu.BLEU | sacrebleu.CHRF, statistics: list[int]) -> float:
    """Return the score of counts that were summed."""
    score: Any = scorer._compute_score_from_stats(statistics)
    return float(score.score)
