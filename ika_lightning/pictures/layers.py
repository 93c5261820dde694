"""All pictures of an attention layer: those of a training, and those of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ika_lightning.pictures.parts import Parts, draw_parts, parts
from ika_lightning.pictures.record import GraphRecording, Recording, SequenceRecording
from ika_lightning.pictures.similarity import draw_similarity
from ika_lightning.pictures.spectrum import (
    Frequencies,
    correlation,
    draw_correlation,
    draw_density,
    frequencies,
    start_std,
)
from ika_lightning.pictures.weights import (
    SIDES,
    Sides,
    draw_alignment,
    draw_magnitude,
    draw_maps,
    draw_neighbourhoods,
    draw_tokens,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ika_lightning.protocols import Figures

__all__ = ["draw"]


def draw(
    recording: Recording,
    names: Any = None,
    step: int = 0,
    before: Sequence[tuple[int, Frequencies]] = (),
    parts_before: Sequence[tuple[int, Parts]] = (),
    sides: Sides = SIDES,
) -> Figures:
    """Return what can be drawn of a layer; what it has not, or did not do, has no picture.

    ========================  =========================================================================================
    ``attention/<layer>``     which keys each head attends to: maps of a few sequences, or neighbours of a few nodes
    ``tokens/<layer>``        how much weight each token of a sentence gets that attends to itself
    ``alignment/<layer>``     which words of one sentence attend to which of another, in the mean over the heads
    ``similarity/<layer>``    the kernel of each head as a function, beside the Gaussian of dot-product attention; that
                              has nothing else, and gets no picture
    ``spectrum/<layer>``      the density of each head's frequencies
    ``parts/<layer>``         s, a, p and c of each head; see :mod:`~ika_lightning.pictures.parts`
    ``correlation/<layer>``   that between heads, where they are coupled
    ``magnitude/<layer>``     the magnitude of keys, and over how many of them each head spreads its weights
    ========================  =========================================================================================

    Args:
        recording: What the layer did; of one that has not done anything, its kernel is drawn.
        names: Names of queries and keys, as :class:`~ika_lightning.protocols.NamesAttention` tells them; None for none.
        step: How many steps the model was trained for.
        before: Steps before that, and the frequencies then; see :class:`~ika_lightning.pictures.history.History`.
        parts_before: Steps before that, and the parts then.
        sides: What queries and keys are, in words; see :class:`~ika_lightning.protocols.DescribesAttention`.

    Example:
        >>> import torch
        >>> from ika_lightning.attention import IKAN
        >>> from ika_lightning.pictures import Recorder
        >>> layer, x = IKAN(8, 2, batch_first=True).eval(), torch.randn(3, 5, 8)
        >>> with Recorder(layer) as recorder:
        ...     out, _ = layer(x, x, x, need_weights=False)
        >>> sorted(draw(recorder.recordings[""]))
        ['attention/', 'magnitude/', 'parts/', 'similarity/', 'spectrum/']
    """
    name = recording.name
    figures: dict[str, Callable[[], Figure]] = {}
    if isinstance(recording, SequenceRecording):
        figures[f"attention/{name}"] = partial(draw_maps, recording, names, sides=sides)
        if names is not None and names[0] != names[1]:
            figures[f"alignment/{name}"] = partial(draw_alignment, recording, names, sides=sides)
        # what may only look back looks at the first tokens most, whatever they are
        elif names is not None and not recording.mask.causal:
            figures[f"tokens/{name}"] = partial(draw_tokens, recording, names[1])
    if isinstance(recording, GraphRecording):
        figures[f"attention/{name}"] = partial(draw_neighbourhoods, recording, names and names[0][0])
    if recording.learned:
        figures[f"similarity/{name}"] = partial(draw_similarity, recording)
    if recording.frequencies:
        history = [*before, (step, frequencies(recording))]
        figures[f"spectrum/{name}"] = partial(draw_density, history, start_std(recording), name)
        matrix = correlation(recording)
        if matrix is not None and recording.num_heads > 1:
            figures[f"correlation/{name}"] = partial(draw_correlation, matrix, name)
    if now := parts(recording.core):
        figures[f"parts/{name}"] = partial(draw_parts, [*parts_before, (step, now)], name)
    if isinstance(recording, SequenceRecording | GraphRecording):
        figures[f"magnitude/{name}"] = partial(draw_magnitude, recording)
    return figures
