"""How long a task trains, and with what, where a user says neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A training of a length in updates, not epochs: small data needs as many of them as large data does.

    Args:
        updates: How many there are. A time that is given instead (``max_time``) takes their place.
        measurements: How many times there is a validation, and a last checkpoint, in as many updates.
        decay: The decay of the average of the weights; see :class:`~ika_lightning.callbacks.AveragedWeights`.
        model: What arguments of the task are where they are None, unless it starts from another's weights.

    Example:
        >>> options = Recipe(updates=1000, measurements=50, decay=0.99).options(timed=False)
        >>> options["trainer.max_steps"], options["trainer.val_check_interval"]
        ((-1, 1000), (None, 20))
    """

    updates: int
    measurements: int = 50
    decay: float = 0.99
    model: Mapping[str, Any] = field(default_factory=dict)

    def options(self, timed: bool) -> dict[str, tuple[Any, Any]]:
        """Return what the recipe says of the sections of a training's configuration.

        Args:
            timed: Whether the training ends with a time.

        Returns:
            What each option is where nobody says it, and what it is to be then.
        """
        every = max(1, self.updates // self.measurements)
        average = {"class_path": "ika_lightning.callbacks.AveragedWeights", "init_args": {"decay": self.decay}}
        return {
            "trainer.max_epochs": (None, -1),
            "trainer.max_steps": (-1, -1 if timed else self.updates),
            # counted over epochs, which may be shorter
            "trainer.check_val_every_n_epoch": (1, None),
            "trainer.val_check_interval": (None, every),
            "trainer.callbacks": (None, [average]),
            "last.every_n_train_steps": (None, every),
            "last.every_n_epochs": (1, self.updates),
            **{f"model.init_args.{name}": (None, value) for name, value in self.model.items()},
        }
