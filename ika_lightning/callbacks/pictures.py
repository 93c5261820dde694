"""When pictures are drawn, and where they go: what the callbacks that draw have in common."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from typing_extensions import override

from ika_lightning.pictures import Recorder, Recording
from ika_lightning.pictures.canvas import to_pixels
from ika_lightning.protocols import Figures, NamesAttention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

Given = TypeVar("Given")
Drawn = TypeVar("Drawn")

# How long the first picture is expected to take, in seconds.
_FIRST_GUESS = 0.08


class Pictures(Callback):
    """Base of the callbacks that draw: at the end of a validation, as long as it costs next to no time.

    A picture is drawn if all that this callback has drawn, and that picture, take no more than ``share`` of the time
    since training began, and time is left for the end; those that were not drawn for longest come first. So a training
    of hours has its pictures renewed every few minutes. At the end each callback draws once more, and what one has not
    used another may. A training of seconds, in which no picture fits, gets a single one.

    Pictures go to the TensorBoard logger. Without one nothing is drawn. Nor is anything where a model is in pieces on
    several devices: one process alone could not look at it. If drawing fails it says so in a line, and training goes
    on without pictures.

    Args:
        share: Most of the training time that this callback may take. 0 draws nothing.

    Attributes:
        seconds: How long this callback has taken.

    Raises:
        ValueError: If share is not from 0 to 1.
    """

    def __init__(self, share: float = 0.005) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share must be from 0 to 1, got {share}")
        self.share = share
        self.seconds = 0.0
        self._expected = _FIRST_GUESS
        self._started = 0.0
        self._step = -1
        self._drawn_at: dict[str, int] = {}
        self._board: TensorBoardLogger | None = None
        self._all: list[Pictures] = [self]

    def figures(self, pl_module: LightningModule) -> Figures:
        """Return what could be drawn now, after a validation."""
        raise NotImplementedError

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._board = None
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._all = [callback for callback in callbacks if isinstance(callback, Pictures) and callback.share > 0.0]
        debugging = trainer.fast_dev_run  # type: ignore[attr-defined]
        if stage != "fit" or not trainer.is_global_zero or self.share == 0.0 or debugging:
            return
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        whole = trainer.world_size == 1 or type(trainer.strategy) is DDPStrategy
        if boards and whole:
            self._board = boards[0]
        elif trainer.loggers and self is self._all[0]:
            why = "the model may be in pieces on several devices" if boards else "only a TensorBoardLogger shows them"
            log.warning("no pictures are drawn: %s", why)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self.seconds, self._step, self._drawn_at = time.perf_counter(), 0.0, -1, {}

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._board is not None and not trainer.sanity_checking:
            self._step = trainer.global_step
            self._draw(pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._board is not None and self._step >= 0:
            self._draw(pl_module, last=True)

    def _draw(self, pl_module: LightningModule, last: bool = False) -> None:
        began = time.perf_counter()
        trained = began - self._started
        if not self._fits(trained, last, first=True):
            return
        board = self._board
        assert board is not None
        figures = self._attempt(self.figures, pl_module) or {}
        for number, tag in enumerate(sorted(figures, key=lambda tag: self._drawn_at.get(tag, -1))):
            if self._drawn_at.get(tag) == self._step or not self._fits(trained, last, first=number == 0):
                break
            pixels = self._attempt(_pixels, figures[tag])
            if pixels is None:
                break
            board.experiment.add_image(tag, pixels, self._step - 1, dataformats="HWC")  # as val/loss
            self._drawn_at[tag] = self._step
            now = time.perf_counter()
            self._expected, self.seconds, began = now - began, self.seconds + now - began, now
        self.seconds += time.perf_counter() - began

    def _attempt(self, draw: Callable[[Given], Drawn], given: Given) -> Drawn | None:
        """What ``draw`` returns. No training stops for a picture: if that fails, there are no more of them."""
        try:
            with torch.no_grad():
                return draw(given)
        except Exception as error:
            self._board = None
            log.warning("%s draws no more pictures: %s: %s", type(self).__name__, type(error).__name__, error)
            return None

    def _fits(self, trained: float, last: bool, first: bool) -> bool:
        """Whether there is time for another picture, after so many seconds of training."""
        mine = self.share * trained - self.seconds
        if not last:
            return mine >= 2 * self._expected  # one is kept for the end
        left = sum(each.share * trained - each.seconds for each in self._all)
        nothing_yet = not any(each._drawn_at for each in self._all)
        return mine >= self._expected or (first and (left >= self._expected or nothing_yet))


class AttentionPictures(Pictures):
    """Base of the callbacks that draw what the attention layers of this package did with a few validation examples.

    They look on while the model validates: at the batch in the middle, as loaders that sort by length begin with the
    shortest. The same examples are seen at each validation if the loader does not shuffle.

    Of several such callbacks the first looks on for all.

    Args:
        share: Most of the training time that this callback may take. 0 draws nothing.
    """

    def __init__(self, share: float = 0.005) -> None:
        super().__init__(share)
        self.recordings: dict[str, Recording] = {}
        self.batch: Any = None
        self._leader = self
        self._recorder: Recorder | None = None
        self._recording = False

    def pictures_of(self, recording: Recording, names: Any, step: int) -> Figures:
        """Return what could be drawn of a layer.

        Args:
            recording: What the layer did.
            names: Names of queries and keys, or None; see :func:`names_of`.
            step: How many steps the model was trained for.
        """
        raise NotImplementedError

    @override
    def figures(self, pl_module: LightningModule) -> Figures:
        seen = self._leader
        figures: dict[str, Callable[[], Figure]] = {}
        for recording in seen.recordings.values():
            names = names_of(pl_module, seen.batch, recording.name)
            figures.update(self.pictures_of(recording, names, self._step))
        return figures

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._leader = next((each for each in self._all if isinstance(each, AttentionPictures)), self)

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._board is None or self._leader is not self or trainer.sanity_checking or dataloader_idx != 0:
            return
        if batch_idx == int(trainer.num_val_batches[0]) // 2:
            began = time.perf_counter()
            self._recorder = self._recorder or Recorder(pl_module)
            self._recorder.__enter__()
            self.batch, self._recording = batch, True
            self.seconds += time.perf_counter() - began

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._stop_recording()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_recording()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._recorder = None

    def _stop_recording(self) -> None:
        if self._recording and self._recorder is not None:
            self._recorder.__exit__()
            self.recordings, self._recording = self._recorder.recordings, False


def names_of(pl_module: LightningModule, batch: Any, layer: str) -> Any:
    """Ask a model what the queries and keys of a layer are called.

    Returns:
        What its method returns, if it is a :class:`~ika_lightning.protocols.NamesAttention`; else None.
    """
    return pl_module.attention_names(batch, layer) if isinstance(pl_module, NamesAttention) else None


def _pixels(draw: Callable[[], Figure]) -> np.ndarray:
    return to_pixels(draw())
