"""When pictures are drawn, of which examples, and where they go; :mod:`ika_lightning.pictures` draws them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from typing_extensions import override

from ika_lightning.pictures import Recorder, Recording, draw
from ika_lightning.pictures.canvas import to_pixels
from ika_lightning.pictures.history import History
from ika_lightning.pictures.parts import Parts, parts
from ika_lightning.pictures.spectrum import Frequencies, frequencies
from ika_lightning.protocols import DescribesAttention, DrawsResults, Figures, NamesAttention

__all__ = ["Examples", "Pictures"]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

Made = TypeVar("Made")

# How long the first picture is expected to take, in seconds.
_FIRST_GUESS = 0.08
# Of how many moments of a training less than as many are kept: spectra are large, and a picture has room for few.
_MOST_SPECTRA, _MOST_PARTS = 6, 64


class Examples(Callback):
    """Looks at what the attention layers of this package do with a few examples, while a model validates or predicts.

    It looks at the batch in the middle, as loaders that sort by length begin with the shortest. The same examples are
    seen each time if the loader does not shuffle.

    Attributes:
        recordings: What the layers did the last time, by their names.
        batch: The batch that they saw; None before.
        looks: Whether to look at the next examples.
        seconds: How long this callback has taken.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Examples()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self.recordings: dict[str, Recording] = {}
        self.batch: Any = None
        self.looks = True
        self.seconds = 0.0
        self._recorder: Recorder | None = None
        self._recording = False

    def names(self, pl_module: LightningModule, layer: str) -> Any:
        """What a model that :class:`NamesAttention` calls the queries and keys of a layer; None for any other."""
        if self.batch is None or not isinstance(pl_module, NamesAttention):
            return None
        return pl_module.attention_names(self.batch, layer)

    def draw_layer(
        self,
        pl_module: LightningModule,
        recording: Recording,
        step: int,
        before: Sequence[tuple[int, Frequencies]] = (),
        parts_before: Sequence[tuple[int, Parts]] = (),
    ) -> Figures:
        """Return what can be drawn of a layer, in the words of the model; see :func:`ika_lightning.pictures.draw`."""
        names, said = self.names(pl_module, recording.name), {}
        if isinstance(pl_module, DescribesAttention):
            said["sides"] = pl_module.describe_attention(recording.name)
        return draw(recording, names, step, before, parts_before, **said)

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if dataloader_idx == 0 and not trainer.sanity_checking:
            self._start_recording(pl_module, batch, batch_idx, trainer.num_val_batches[0])

    @override
    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if dataloader_idx == 0:
            self._start_recording(pl_module, batch, batch_idx, trainer.num_predict_batches[0])

    @override
    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._stop_recording()

    @override
    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._stop_recording()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_recording()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._recorder = None

    def _start_recording(self, pl_module: LightningModule, batch: Any, number: int, count: float) -> None:
        if not self.looks or number != int(count) // 2:
            return
        began = time.perf_counter()
        self._recorder = self._recorder or Recorder(pl_module)
        self._recorder.__enter__()
        self.batch, self._recording = batch, True
        self.seconds += time.perf_counter() - began

    def _stop_recording(self) -> None:
        if self._recording and self._recorder is not None:
            self._recorder.__exit__()
            self.recordings, self._recording = self._recorder.recordings, False


class Pictures(Examples):
    """Draws what the attention layers learned, and what a model has to show of its own, into TensorBoard.

    After a validation a picture is drawn if all that were drawn so far, and that picture, take no more than ``share``
    of the time since training began; those that were not drawn for longest come first. So a training of hours has its
    pictures renewed every few minutes. At the end of a training all are drawn, however long that takes.

    :func:`ika_lightning.pictures.draw` says what there is of a layer; a model that has something of its own to show is
    a :class:`~ika_lightning.protocols.DrawsResults`, and axes have names if it is a
    :class:`~ika_lightning.protocols.NamesAttention`. Of each spectrum, moments on its way are kept, whether it is drawn
    then or not.

    Pictures go to the TensorBoard logger. Without one nothing is drawn. Nor is anything where a model is in pieces on
    several devices: one process alone could not look at it. A picture that fails says so in a line, and is not tried
    again; training goes on.

    Args:
        share: Most of the training time that pictures may take before its end. 0 draws nothing at all.

    Raises:
        ValueError: If share is not from 0 to 1.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Pictures(share=0.1)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, share: float = 0.02) -> None:
        super().__init__()
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share must be from 0 to 1, a part of the training time, got {share}")
        self.share = share
        self._expected = _FIRST_GUESS
        self._started = 0.0
        self._step = -1
        self._drawn_at: dict[str, int] = {}
        self._failed: set[str] = set()
        self._spectra: History[Frequencies] = History(_MOST_SPECTRA)
        self._parts: History[Parts] = History(_MOST_PARTS)
        self._board: TensorBoardLogger | None = None

    def figures(self, pl_module: LightningModule) -> Figures:
        """Return what could be drawn now, after a validation."""
        figures: dict[str, Callable[[], Figure]] = {}
        if isinstance(pl_module, DrawsResults):
            figures |= self._attempt("results", pl_module.pictures) or {}
        for name, recording in self.recordings.items():
            before = self._spectra.before(name, self._step), self._parts.before(name, self._step)
            make = partial(self.draw_layer, pl_module, recording, self._step, *before)
            figures |= self._attempt(name or "the layer", make) or {}
        return figures

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return how the parts of kernels went, so that a report of the checkpoint can draw it."""
        return {
            "parts": {
                name: {
                    "step": torch.tensor([step for step, _ in moments]),
                    **{key: torch.stack([values[key] for _, values in moments]) for key in moments[-1][1]},
                }
                for name, moments in self._parts.moments.items()
            }
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; the spectra on the way there are not in it."""
        self._parts.moments = parts_in(state_dict)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._board, self.looks = None, False
        debugging = trainer.fast_dev_run  # type: ignore[attr-defined]
        if stage != "fit" or not trainer.is_global_zero or self.share == 0.0 or debugging:
            return
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        whole = trainer.world_size == 1 or type(trainer.strategy) is DDPStrategy
        if boards and whole:
            self._board, self.looks = boards[0], True
        elif trainer.loggers:
            why = "the model may be in pieces on several devices" if boards else "only a TensorBoardLogger shows them"
            log.warning("no pictures are drawn: %s", why)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self.seconds, self._step = time.perf_counter(), 0.0, -1
        self._drawn_at, self._failed, self._spectra = {}, set(), History(_MOST_SPECTRA)
        if trainer.global_step == 0:
            self._parts = History(_MOST_PARTS)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._board is None or trainer.sanity_checking:
            return
        began = time.perf_counter()
        self._step = trainer.global_step
        for name, recording in self.recordings.items():
            self._attempt(name or "the layer", partial(self._keep, name, recording))
        self.seconds += time.perf_counter() - began
        self._draw(self._board, pl_module)

    def _keep(self, name: str, recording: Recording) -> None:
        if recording.frequencies:
            self._spectra.keep(name, self._step, frequencies(recording))
        if learned := parts(recording.core):
            self._parts.keep(name, self._step, learned)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._board is not None and self._step >= 0:
            self._draw(self._board, pl_module, last=True)

    def _draw(self, board: TensorBoardLogger, pl_module: LightningModule, last: bool = False) -> None:
        began = time.perf_counter()
        budget = self.share * (began - self._started)
        if not last and self.seconds + self._expected > budget:
            return
        figures = self.figures(pl_module)
        for tag in sorted(figures, key=lambda tag: self._drawn_at.get(tag, -1)):
            if self._drawn_at.get(tag) == self._step or not (last or self.seconds + self._expected <= budget):
                break
            pixels = self._attempt(tag, partial(_pixels, figures[tag]))
            if pixels is not None:
                # as val/loss
                board.experiment.add_image(tag, pixels, self._step - 1, dataformats="HWC")
            self._drawn_at[tag] = self._step
            now = time.perf_counter()
            self._expected, self.seconds, began = now - began, self.seconds + now - began, now
        self.seconds += time.perf_counter() - began

    def _attempt(self, what: str, make: Callable[[], Made]) -> Made | None:
        """What ``make`` returns; None if it fails, now or before. No training stops for a picture."""
        if what in self._failed:
            return None
        try:
            with torch.no_grad():
                return make()
        except Exception as error:
            self._failed.add(what)
            log.warning("no more pictures of %s: %s: %s", what, type(error).__name__, error)
            return None


def parts_in(state: Mapping[str, Any]) -> dict[str, list[tuple[int, Parts]]]:
    """Return how the parts of each layer went, from what :class:`Pictures` has left in a checkpoint.

    Example:
        >>> parts_in({"parts": {"encoder": {"step": torch.tensor([0, 10]), "share": torch.zeros(2, 4)}}})["encoder"][1]
        (10, {'share': tensor([0., 0., 0., 0.])})
    """
    return {
        name: [
            (int(step), {key: values[number] for key, values in kept.items() if key != "step"})
            for number, step in enumerate(kept["step"])
        ]
        for name, kept in state.get("parts", {}).items()
    }


def _pixels(draw_it: Callable[[], Figure]) -> np.ndarray:
    return to_pixels(draw_it())
