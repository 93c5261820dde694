"""Logs of a run: those of a training that goes on, and on a disk that is full."""

import csv
import io
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from typing_extensions import override

from ika_lightning.internals import purge_from, use_writer
from ika_lightning.output import OutputError, write_output

__all__ = ["Metrics", "go_on_logging", "quiet_threads"]


def go_on_logging(logger: Logger, step: int | None) -> None:
    """Keep what a logger has logged before a step, and let what comes take the place of the rest.

    Args:
        logger: A TensorBoard or CSV logger; others look after themselves.
        step: The number of updates at which the training goes on; None if it begins.
    """
    if isinstance(logger, TensorBoardLogger):
        if step is not None:
            purge_from(logger, step)
    elif isinstance(logger, CSVLogger):
        use_writer(logger, Metrics(logger.log_dir, step or 0))


class Metrics(ExperimentWriter):
    """The files of a ``CSVLogger``: what was whole in them stays so, whatever the disk says and whenever it ends.

    Lightning deletes the metrics of a training that goes on, and empties the file when there is a new column.

    Args:
        log_dir: The folder of the logger.
        step: The number of updates whose metrics are kept of what is there.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     metrics = Metrics(folder, 0)
        ...     metrics.log_metrics({"loss": 0.5}, step=2)
        ...     metrics.save()
        ...     Path(folder, "metrics.csv").read_text().splitlines()
        ['loss,step', '0.5,2']
    """

    def __init__(self, log_dir: str, step: int) -> None:
        super().__init__(log_dir)
        self._file = Path(self.metrics_file_path)
        self._before: int | None = step

    @override
    def _check_log_dir_exists(self) -> None:
        """Lightning would delete what is there."""

    @override
    def log_hparams(self, params: dict[str, Any]) -> None:
        self.hparams.update(params)
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder, self.NAME_HPARAMS_FILE)
            save_hparams_to_yaml(written, self.hparams)
            write_output(Path(self.log_dir, self.NAME_HPARAMS_FILE), written.read_bytes())

    @override
    def save(self) -> None:
        """Write what was logged since the last time.

        Raises:
            OutputError: If the disk refuses; the file is what it was.
        """
        if not self.metrics:
            return
        if self._before is not None or not set().union(*self.metrics) <= set(self.metrics_keys):
            rows = self._rows() + self.metrics
            self.metrics_keys = sorted(set().union(*rows))
            write_output(self._file, self._text(rows, header=True))
        else:
            self._append(self._text(self.metrics))
        self._before, self.metrics = None, []

    def _rows(self) -> list[dict[str, Any]]:
        """What is in the file, as far as it is to be kept; a line that has no end was never finished."""
        text = self._file.read_bytes().decode() if self._file.is_file() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [row for row in csv.DictReader(lines) if self._before is None or int(row["step"]) < self._before]

    def _text(self, rows: list[dict[str, Any]], header: bool = False) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    def _append(self, text: bytes) -> None:
        size = self._file.stat().st_size
        try:
            with self._file.open("ab") as file:
                file.write(text)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._file, size)
            raise OutputError(self._file, error) from error


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Keep the thread that writes for TensorBoard from printing the error that the training is about to be told."""
    # TensorBoard is imported by its logger when it writes, and not before
    from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

    show = threading.excepthook

    def show_others(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.thread, _AsyncWriterThread) and isinstance(args.exc_value, OSError)):
            show(args)

    threading.excepthook = show_others
    try:
        yield
    finally:
        threading.excepthook = show
