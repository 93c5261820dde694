"""Logs of a training that goes on."""

import csv
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

__all__ = ["go_on_logging"]


def go_on_logging(logger: Logger, step: int) -> None:
    """Keep what a logger has logged before a step, and let what comes take the place of the rest.

    Args:
        logger: A TensorBoard or CSV logger; others look after themselves.
        step: The number of updates at which the training goes on.
    """
    if isinstance(logger, TensorBoardLogger):
        logger._kwargs["purge_step"] = step
    elif isinstance(logger, CSVLogger):
        file, aside = Path(logger.log_dir, "metrics.csv"), Path(logger.log_dir, "metrics.before.csv")
        # The logger begins by deleting its file. What is aside was left by a process that got no further than here.
        if file.is_file() and not aside.is_file():
            file.replace(aside)
        if not aside.is_file():
            return
        lines = [line for line in aside.read_text().splitlines(keepends=True) if line.endswith("\n")]  # whole ones
        logger.experiment.metrics = [row for row in csv.DictReader(lines) if int(row["step"]) < step]
        logger.save()
        aside.unlink()
