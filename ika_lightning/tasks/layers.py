"""Layers by name: how a task's hyper-parameters name an attention, and how it is found again."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ika_lightning.internals import unwrap_factory

__all__ = ["find_layer", "name_layer"]


def name_layer(factory: Any) -> dict[str, Any]:
    """Describe a layer class, or a ``functools.partial`` of one, by primitives, which load with ``weights_only=True``.

    Args:
        factory: The class, with its keyword arguments.

    Raises:
        ValueError: If it is something else, a lambda for instance, which no checkpoint could name.

    Example:
        >>> from ika_lightning.attention import RBF
        >>> name_layer(functools.partial(RBF, p=1.5))
        {'class_path': 'ika_lightning.attention.multihead.RBF', 'init_args': {'p': 1.5}}
    """
    layer, arguments = unwrap_factory(factory)
    if layer is None:
        raise ValueError(
            "an attention must be a class, or a functools.partial of one with keyword arguments, so that a checkpoint "
            f"can name it; got {factory!r}"
        )
    return {
        "class_path": f"{layer.__module__}.{layer.__qualname__}",
        "init_args": {key: name_layer(value) if callable(value) else value for key, value in arguments.items()},
    }


def find_layer(named: Any) -> Callable[..., Any]:
    """Return what :func:`name_layer` described; anything callable is returned as it is.

    Classes are looked up among those that are imported already: a checkpoint can't make code run.

    Args:
        named: The description.

    Raises:
        ValueError: If the class is not imported, or no module of PyTorch.

    Example:
        >>> find_layer({"class_path": "ika_lightning.attention.RBF", "init_args": {"p": 1.5}})(8, 2).core.p
        1.5
    """
    if callable(named):
        return named
    path = named["class_path"]
    module, _, name = path.rpartition(".")
    layer = getattr(sys.modules.get(module), name, None)
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise ValueError(f"{path} is no layer that is imported; import the module that defines it first")
    arguments = named.get("init_args", {})
    return functools.partial(
        layer,
        **{k: find_layer(v) if isinstance(v, Mapping) and "class_path" in v else v for k, v in arguments.items()},
    )
