"""Pictures of what attention has learned: numbers first, then figures of them.

:class:`~ika_lightning.pictures.record.Recorder` takes down what the layers of a model saw and did in one pass. From
that, pure functions compute the numbers behind each picture, and others draw them:

===========================================  ===================================================================
:mod:`~ika_lightning.pictures.weights`       maps of attention, its entropy, and the magnitude of keys
:mod:`~ika_lightning.pictures.similarity`    the learned kernel, beside the Gaussian that it replaces
:mod:`~ika_lightning.pictures.spectrum`      its spectral density, and the correlation between heads
:mod:`~ika_lightning.pictures.parts`         what heads learn of it in few numbers
:mod:`~ika_lightning.pictures.results`       predictions beside the truth
===========================================  ===================================================================

:func:`~ika_lightning.pictures.draw` returns all that can be drawn of a layer, for trainings and reports alike.
Nothing here knows of Lightning: :mod:`ika_lightning.callbacks` says when to draw and where pictures go.
"""

from ika_lightning.pictures.layers import draw
from ika_lightning.pictures.record import Recorder, Recording, record_spectra

__all__ = ["Recorder", "Recording", "draw", "record_spectra"]
