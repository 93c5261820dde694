"""How long a training is of which nobody says so."""

import sys
from typing import Any

from ika_lightning.tasks import Task

__all__ = ["set_length"]

# of what has no recipe
EPOCHS = 200


def set_length(config: Any) -> None:
    """Train as the task's recipe says, where a configuration has neither epochs nor updates.

    What else the configuration says stays: the recipe fills in what was left at its default.

    Args:
        config: The parsed configuration of ``fit``, which is changed.
    """
    trainer = config.trainer
    if trainer.max_epochs is not None or trainer.max_steps != -1:
        return
    timed = trainer.max_time is not None
    module, _, name = config.model.class_path.rpartition(".")
    task = getattr(sys.modules.get(module), name, None)
    recipe = task.recipe if isinstance(task, type) and issubclass(task, Task) else None
    if recipe is None:
        trainer.max_epochs = -1 if timed else EPOCHS
        return
    starts_from_another = bool(config.get("model.init_args.init_from"))
    for place, (default, value) in recipe.options(timed).items():
        if config.get(place) == default and not (starts_from_another and place.startswith("model.")):
            config.update(value, place)
