"""What attention learned, in four callbacks; :mod:`ika_lightning.pictures` says how each picture is made."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from ika_lightning.callbacks.pictures import AttentionPictures
from ika_lightning.pictures import Recording
from ika_lightning.pictures.record import GraphRecording, SequenceRecording
from ika_lightning.pictures.similarity import draw_similarity
from ika_lightning.pictures.spectrum import (
    Frequencies,
    correlation,
    draw_correlation,
    draw_density,
    frequencies,
    start_std,
)
from ika_lightning.pictures.weights import draw_magnitude, draw_maps, draw_neighbourhoods

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ika_lightning.protocols import Figures


class AttentionMaps(AttentionPictures):
    """Draws which keys each head attends to: a map for each of a few sequences, or the neighbours of a few nodes.

    Axes have names if the model is a :class:`~ika_lightning.protocols.NamesAttention`.

    Args:
        share: Most of the training time that this callback may take. 0 draws nothing.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AttentionMaps(share=0.01)], logger=False, enable_checkpointing=False)
    """

    @override
    def pictures_of(self, recording: Recording, names: Any, step: int) -> Figures:
        tag = f"attention/{recording.name}"
        if isinstance(recording, SequenceRecording):
            return {tag: partial(draw_maps, recording, names)}
        if isinstance(recording, GraphRecording):
            return {tag: partial(draw_neighbourhoods, recording, names and names[0][0])}
        return {}


class LearnedSimilarity(AttentionPictures):
    """Draws the kernel of each head as a function, beside the Gaussian that it replaces.

    Dot-product attention has nothing else than that Gaussian, and gets no picture.

    Args:
        share: Most of the training time that this callback may take. 0 draws nothing.
    """

    @override
    def pictures_of(self, recording: Recording, names: Any, step: int) -> Figures:
        return {f"similarity/{recording.name}": partial(draw_similarity, recording)} if recording.learned else {}


class SpectralDensity(AttentionPictures):
    """Draws the density of each head's frequencies as it moves in training, and the correlation between heads.

    Frequencies are kept from up to six validations, evenly apart, whether a picture is drawn then or not. So a training
    with time for a single picture, at its end, shows in it where its spectra came from.

    Args:
        share: Most of the training time that this callback may take. 0 draws nothing.
    """

    _MAX_LINES = 6

    def __init__(self, share: float = 0.005) -> None:
        super().__init__(share)
        self._history: dict[str, list[tuple[int, Frequencies]]] = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._history = {}

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._board is not None and not trainer.sanity_checking:
            began = time.perf_counter()
            for recording in self._leader.recordings.values():
                if recording.frequencies:
                    self._keep_moment(recording, trainer.global_step)
            self.seconds += time.perf_counter() - began
        super().on_validation_end(trainer, pl_module)

    def _keep_moment(self, recording: Recording, step: int) -> None:
        history = self._history.setdefault(recording.name, [])
        if len(history) > 1 and step - history[-1][0] < history[1][0] - history[0][0]:
            return
        history.append((step, frequencies(recording)))
        if len(history) == self._MAX_LINES:  # the first stays, and the others are twice as far apart
            del history[1::2]

    @override
    def pictures_of(self, recording: Recording, names: Any, step: int) -> Figures:
        if not recording.frequencies:
            return {}
        figures = {f"spectrum/{recording.name}": partial(self._draw_density, recording, step)}
        matrix = correlation(recording)
        if matrix is not None and recording.num_heads > 1:
            figures[f"correlation/{recording.name}"] = partial(draw_correlation, matrix, recording.name)
        return figures

    def _draw_density(self, recording: Recording, step: int) -> Figure:
        before = [line for line in self._history.get(recording.name, []) if line[0] != step]
        now = step, frequencies(recording)
        return draw_density([*before, now], start_std(recording), recording.name)


class MagnitudeAndSparsity(AttentionPictures):
    """Draws how the magnitude of keys is distributed, and over how many keys each head spreads its weights.

    Args:
        share: Most of the training time that this callback may take. 0 draws nothing.
    """

    @override
    def pictures_of(self, recording: Recording, names: Any, step: int) -> Figures:
        seen = isinstance(recording, SequenceRecording | GraphRecording)
        return {f"magnitude/{recording.name}": partial(draw_magnitude, recording)} if seen else {}
