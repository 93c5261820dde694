"""Pictures that a task draws of its own results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule
from typing_extensions import override

from ika_lightning.callbacks.pictures import Pictures

if TYPE_CHECKING:
    from ika_lightning.callbacks.pictures import Figures


class TaskPictures(Pictures):
    """Draws what the model says can be drawn of its last validation: predictions beside the truth, for instance.

    A model that has something to show has a method ``pictures()``, which returns figures by name, each as a function
    that draws it when it is called. Other models get no pictures.

    Args:
        share: Most of the training time that this callback may take. 0 draws nothing.
    """

    @override
    def figures(self, pl_module: LightningModule) -> Figures:
        ask = getattr(pl_module, "pictures", None)
        return {} if ask is None else ask()
