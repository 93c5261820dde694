"""What Lightning imports as it is imported itself, and uses late or never: left out of the start of a command.

Together this is half of the time that a command takes to begin:

- SciPy's signal processing, to which torchmetrics adds a name that another library misses;
- two classes of transformers, for a metric of texts, and networks of torchvision, for metrics of pictures, where these
  are installed;
- PyTorch's compiler, to know what it has compiled, and to keep two functions from it.

Each is there as soon as it is used, by this package or another. Lightning is what it always is when it was imported
before: a command alone, which is a process of its own, calls :func:`import_lightning`.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

__all__ = ["import_lightning"]

_COMPILER = "torch._dynamo"


def import_lightning() -> None:
    """Import PyTorch Lightning, without what it does not need yet."""
    modules = ["transformers", "torchvision", _COMPILER]
    # that other library, whose import needs the name
    if find_spec("srmrpy") is None:
        modules.append("scipy.signal")
    with _stood_in_for(modules), patch.object(torch.compiler, "disable", _disable_once_compiling):
        import lightning.pytorch.cli  # noqa: F401 (imported here for others to find)


@contextmanager
def _stood_in_for(modules: list[str]) -> Iterator[None]:
    """Let modules that nobody has imported yet be imported in name alone, and what is in them."""
    names = [name for name in modules if name not in sys.modules and _is_installed(name)]
    finder = _StandInFinder()
    sys.modules.update({name: _StandIn(name) for name in names})
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in names:
            _step_aside(name)


def _is_installed(name: str) -> bool:
    return find_spec(name.partition(".")[0]) is not None


def _step_aside(name: str) -> None:
    """Let the next import of a module be one, if something stands in for it."""
    for other in [*sys.modules]:
        if f"{other}.".startswith(f"{name}.") and isinstance(sys.modules[other], _StandIn):
            del sys.modules[other]


class _StandIn(ModuleType):
    """A module of which names can be imported, but nothing is used yet."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # that of a package, so that modules in it are looked for
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name)


class _StandInFinder(MetaPathFinder, Loader):
    """Finds what is in a module for which another stands in: more of the kind."""

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        package = sys.modules.get(name.rpartition(".")[0])
        return ModuleSpec(name, self, is_package=True) if isinstance(package, _StandIn) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


class _Later:
    """A class or function of a module that is imported when it is used."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _found(self) -> Any:
        if isinstance(sys.modules.get(self._module), _StandIn):
            # it is used while others are still imported: from here on there is the module itself
            for package in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
                if f"{self._module}.".startswith(f"{package}."):
                    _step_aside(package)
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
