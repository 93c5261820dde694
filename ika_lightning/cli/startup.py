"""What Lightning imports as it is imported itself, and uses late or never: left out of the start of a command.

Together this is half of the time that a command takes to begin:

- SciPy's signal processing, to which torchmetrics adds a name that another library misses;
- two classes of transformers, for a metric of texts, if transformers is installed;
- PyTorch's compiler, to know what it has compiled, and to keep two functions from it.

Each is there as soon as it is used, by this package or another. Lightning is what it always is when it was imported
before: a command alone, which is a process of its own, calls :func:`import_lightning`.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

__all__ = ["import_lightning"]

_COMPILER = "torch._dynamo"


def import_lightning() -> None:
    """Import PyTorch Lightning, without what it does not need yet."""
    modules = ["transformers", _COMPILER]
    # that other library, whose import needs the name
    if find_spec("srmrpy") is None:
        modules.append("scipy.signal")
    with _stood_in_for(modules), patch.object(torch.compiler, "disable", _disable_once_compiling):
        import lightning.pytorch.cli  # noqa: F401 (imported here for others to find)


@contextmanager
def _stood_in_for(modules: list[str]) -> Iterator[None]:
    """Let modules that nobody has imported yet be imported in name alone."""
    names = [name for name in modules if name not in sys.modules and _is_installed(name)]
    sys.modules.update({name: _StandIn(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _is_installed(name: str) -> bool:
    return find_spec(name.partition(".")[0]) is not None


class _StandIn(ModuleType):
    """A module of which names can be imported, but nothing is used yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name)


class _Later:
    """A class or function of a module that is imported when it is used."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _found(self) -> Any:
        return getattr(import_module(self._module), self._name)

    def __getattr__(self, name: str) -> Any:
        # annotations ask for these, which are no use of it
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._found(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._found()(*args, **kwargs)

    def __instancecheck__(self, thing: Any) -> bool:
        # nothing is of a class whose module was never imported
        return self._module in sys.modules and isinstance(thing, self._found())


def _disable_once_compiling(
    function: Callable[..., Any], recursive: bool = True, *, reason: str | None = None
) -> Callable[..., Any]:
    """``torch.compiler.disable`` that takes effect when there is a compiler to keep out."""
    disable = functools.cache(functools.partial(_DISABLE, function, recursive, reason=reason))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (disable() if _COMPILER in sys.modules else function)(*args, **kwargs)

    return call


_DISABLE = torch.compiler.disable
