"""Pictures that a task draws of its own results."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from typing_extensions import override

from ika_lightning.callbacks.pictures import Pictures
from ika_lightning.protocols import DrawsResults, Figures


class TaskPictures(Pictures):
    """Draws what the model says can be drawn of its last validation: predictions beside the truth, for instance.

    A model that has something to show is a :class:`~ika_lightning.protocols.DrawsResults`. Others get no pictures.

    Args:
        share: Most of the training time that this callback may take. 0 draws nothing.
    """

    @override
    def figures(self, pl_module: LightningModule) -> Figures:
        return pl_module.pictures() if isinstance(pl_module, DrawsResults) else {}
