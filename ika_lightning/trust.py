"""A file from somebody else is data: what a checkpoint may name, and loading that runs nothing of what a file holds.

A checkpoint carries the configuration of its training. The parser of the command line imports and calls what a
configuration names wherever it expects a class, and Lightning's ``load_from_checkpoint`` lets it do the same with the
arguments of a model. So every name is looked at before the parser sees it. It has to be that of a class which is
imported already, is defined by a library of :data:`FOR_EVALUATION` or :data:`TO_RESUME`, and is a subclass of what is
listed there; or the user has named it, too.

The parser also takes a string for a class, for a file with more configuration, or for YAML with a class in it, where
its types allow that. So :class:`Names` reads each value by the annotation of its argument, and takes an argument whose
annotation it cannot tell for one that names a class.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import pickle
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any, Literal, Self

import torch
import yaml
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.fabric.utilities.cloud_io import _load
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.core.saving import CHECKPOINT_PAST_HPARAMS_KEYS
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO, LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "FOR_EVALUATION",
    "TO_RESUME",
    "FromCheckpoint",
    "Names",
    "Untrusted",
    "check_callbacks",
    "check_size",
    "join_places",
    "named_places",
    "parse_option",
    "plain_tensors",
    "refused_code",
]

#: What a checkpoint may name when a model is evaluated: subclasses of these, by the library that defines them.
FOR_EVALUATION: dict[str, tuple[type, ...]] = {
    "ika_lightning": (nn.Module, LightningDataModule),
    "torch.nn": (nn.Module,),
    # not its models, some of which import other packages when they are built
    "torch_geometric.nn.aggr": (nn.Module,),
    "torch_geometric.nn.attention": (nn.Module,),
    "torch_geometric.nn.conv": (nn.Module,),
    "torch_geometric.nn.dense": (nn.Module,),
    "torch_geometric.nn.norm": (nn.Module,),
}

#: What it may name besides when its training goes on.
TO_RESUME: dict[str, tuple[type, ...]] = {
    "ika_lightning": (Callback, CheckpointIO, LRScheduler),
    "torch.optim": (Optimizer, LRScheduler),
    # not all of Lightning: some of its callbacks start servers, or write what they are given
    "lightning.fabric.plugins": (CheckpointIO, ClusterEnvironment),
    "lightning.pytorch.accelerators": (Accelerator,),
    "lightning.pytorch.callbacks": (Callback,),
    "lightning.pytorch.cli": (LRScheduler,),
    "lightning.pytorch.loggers": (Logger,),
    "lightning.pytorch.plugins": (CheckpointIO, ClusterEnvironment, LayerSync, Precision),
    "lightning.pytorch.profilers": (Profiler,),
    "lightning.pytorch.strategies": (Strategy,),
}

#: Arguments of a model that evaluation leaves to their defaults.
TRAINING_ARGUMENTS = ("optimizer", "scheduler", "lr_scheduler", "init_from")

# The keys by which a configuration names a class.
_SPECIFICATION = ("class_path", "init_args", "dict_kwargs")

# What holds other values, in YAML and in checkpoints.
_CONTAINERS = (Mapping, list, tuple, set, frozenset)

# More values, or values deeper in one another, are an attempt to keep a reader busy for ever.
_MOST_VALUES, _MOST_LEVELS = 100_000, 40


class Untrusted(ValueError):
    """A file holds or names what only its user may allow."""


# --- Loading ----------------------------------------------------------------------------------------------------------


@contextmanager
def plain_tensors(*classes: type) -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` build nothing but tensors and Python's own types in a ``with`` block.

    Libraries add classes of theirs to what PyTorch builds, for all files from then on. PyTorch Geometric adds one that
    reads another file when it is built, as a pickle if need be.

    Args:
        *classes: What may be built as well.

    Example:
        >>> import io
        >>> from torch_geometric.data import Data
        >>> file = io.BytesIO()
        >>> torch.save(Data(), file)
        >>> with plain_tensors():
        ...     torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        Traceback (most recent call last):
        ...
        _pickle.UnpicklingError: ...
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(classes))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def refused_code(source: object, error: pickle.UnpicklingError) -> Untrusted:
    """Return what to say of a file that PyTorch has refused for asking for more than tensors.

    Args:
        source: What errors call the file.
        error: PyTorch's.
    """
    code = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = code[1] if code else "more than tensors"
    return Untrusted(f"{source} holds {what}, which takes running code from the file to load: refused")


class FromCheckpoint:
    """Makes ``load_from_checkpoint`` of a model or data module look at what a checkpoint names before it is built.

    It stands before Lightning's class among the bases.
    """

    @_restricted_classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        *args: Any,
        weights_only: bool | None = True,
        trust: Collection[str] = (),
        **kwargs: Any,
    ) -> Self:
        """Build what a checkpoint describes, with what it has learned.

        Args:
            checkpoint_path: The file, its address, or an open file.
            map_location: Where its tensors go; where they were saved from, if None.
            *args: None; Lightning's other arguments go by name, but for ``hparams_file``: the checkpoint holds them.
            weights_only: Load tensors and Python's own types alone. False trusts the file with everything, and runs the
                code that it brings.
            trust: Names of further classes that the checkpoint may name, such as ``"my_package.MyAttention"``. They
                are imported.
            **kwargs: Arguments of the class that take the place of the checkpoint's; Lightning's ``strict``.

        Raises:
            Untrusted: If the checkpoint holds more than tensors, or names anything else.
            TypeError: If ``hparams_file`` is given, or more arguments without a name.

        Example:
            >>> import io
            >>> from ika_lightning.tasks import Regression
            >>> file = io.BytesIO()
            >>> arguments = {"attention": {"class_path": "os.system"}}
            >>> torch.save({"hyper_parameters": arguments, "state_dict": {}}, file)
            >>> Regression.load_from_checkpoint(io.BytesIO(file.getvalue()))
            Traceback (most recent call last):
            ...
            ika_lightning.trust.Untrusted: the checkpoint names os.system as attention; ...
        """
        if args or "hparams_file" in kwargs:
            raise TypeError("hparams_file is not read, for the checkpoint holds the arguments; give others by name")
        load = functools.partial(super().load_from_checkpoint, checkpoint_path, map_location=map_location, **kwargs)  # type: ignore[misc]
        if weights_only is False:
            return load(weights_only=False)
        is_open = not isinstance(checkpoint_path, str | Path)
        source = "the checkpoint" if is_open else checkpoint_path
        try:
            with plain_tensors():
                # on the meta device nothing is read but what describes the tensors
                checkpoint = _load(checkpoint_path, map_location="meta", weights_only=True)
                Names(source, resume=True, trusted=trust).check_hyperparameters(cls, checkpoint, replaced=kwargs)
                if is_open:
                    checkpoint_path.seek(0)
                return load(weights_only=True)
        except pickle.UnpicklingError as error:
            raise refused_code(source, error) from error


# --- Names ------------------------------------------------------------------------------------------------------------


@dataclass
class Names:
    """What a checkpoint may name, and a look at whether it does name anything else.

    Args:
        source: What errors call the checkpoint.
        resume: Whether its training goes on; else it is evaluated.
        trusted: Names of further classes that it may name, whatever they are. They are imported.
        given: Names that the user has given, each with its place; see :func:`named_places`. The checkpoint may give
            them in the same place.

    Example:
        >>> names = Names("x.ckpt", resume=False)
        >>> names.check({"class_path": "ika_lightning.attention.IKAN"}, Any, "model.attention")
        >>> names.check({"class_path": "os.system", "init_args": {"command": "date"}}, Any, "model.attention")
        Traceback (most recent call last):
        ...
        ika_lightning.trust.Untrusted: x.ckpt names os.system as model.attention; ...
    """

    source: object
    resume: bool
    trusted: Collection[str] = ()
    given: Collection[tuple[str, str]] = ()

    def usable(self, sections: Mapping[str, Any], groups: Mapping[str, type]) -> dict[str, Any]:
        """Return what a command may use of a checkpoint's configuration.

        That is all of it to resume. For an evaluation it is what results depend on: seed, model without what trains it,
        data and precision.

        Args:
            sections: The configuration; :func:`check_size` has seen it.
            groups: The classes whose arguments make sections, such as the trainer's.

        Raises:
            Untrusted: If something in it is named that may not be.
            ValueError: If it is no configuration of a training.
        """
        if not self.resume:
            trainer = sections.get("trainer") or {}
            kept = {key: sections[key] for key in ("seed_everything", "model", "data") if key in sections}
            precision = trainer.get("precision") if isinstance(trainer, Mapping) else None
            sections = self._without_training(kept) | {"trainer": {"precision": precision}}
        usable = {key: value for key, value in sections.items() if key not in ("ckpt_path", "trust")}
        for key, value in list(usable.items()):
            try:
                self._check_section(key, value, groups)
            except Untrusted:
                # what the user names instead takes its place
                if key != "data" or not any(place == key for place, _ in self.given):
                    raise
                del usable[key]
        return usable

    def check(self, value: Any, hint: Any, place: str) -> None:
        """Check a value of a configuration, and all that is in it.

        Args:
            value: The value.
            hint: The annotation of the argument whose value it is.
            place: Where it stands, such as ``model.attention``.

        Raises:
            Untrusted: If something in it is named that may not be.
            ValueError: If it is no value of a configuration.
        """
        match value:
            case str():
                self._check_text(value, hint, place)
            case list() | tuple() | set() | frozenset():
                for item in value:
                    self.check(item, hint, place)
            case Mapping() if "class_path" in value:
                owner = self._check_class(value, hint, place)
                for part in ("init_args", "dict_kwargs"):
                    self.check_arguments(owner, value.get(part), place)
            case Mapping():
                for key, item in value.items():
                    if _reading(hint) is not Reading.TEXT:
                        self._check_key(key, place)
                    self.check(item, hint, join_places(place, str(key)))

    def check_arguments(self, owner: Callable[..., Any], arguments: Any, place: str) -> None:
        """Check arguments of a class; see :meth:`check`.

        Args:
            owner: The class.
            arguments: Its arguments by name, or None.
            place: Where the class stands.
        """
        if not isinstance(arguments, Mapping | None):
            kind = type(arguments).__name__
            raise ValueError(f"{self.source}: {place or 'the model'} should have arguments by name, got a {kind}")
        hints = _hints(owner)
        for name, value in (arguments or {}).items():
            self._check_key(name, place)
            self.check(value, hints.get(name, _UNKNOWN), join_places(place, name))

    def check_hyperparameters(self, owner: type, checkpoint: Mapping[str, Any], replaced: Collection[str] = ()) -> None:
        """Check the arguments with which Lightning would build a model or data module; see :meth:`check`.

        Args:
            owner: Its class.
            checkpoint: What Lightning has saved.
            replaced: Names of arguments that are not taken from there.
        """
        past = () if issubclass(owner, LightningDataModule) else CHECKPOINT_PAST_HPARAMS_KEYS
        for key in (*past, owner.CHECKPOINT_HYPER_PARAMS_KEY):  # type: ignore[attr-defined]
            described: Callable[..., Any] = owner
            arguments = checkpoint.get(key)
            check_size(arguments, self.source)
            if isinstance(arguments, Mapping):
                name = arguments.get("_class_path")
                if name is not None and not _is_called(owner, name):
                    described = self._find(name, "its class")
                # what puts a model together is a function of Lightning's, which allows no other
                left_out = {"_class_path", "_instantiator", *replaced}
                arguments = {name: value for name, value in arguments.items() if name not in left_out}
            self.check_arguments(described, arguments, "")

    def _check_section(self, key: str, value: Any, groups: Mapping[str, type]) -> None:
        if key in groups:
            self.check_arguments(groups[key], value, key)
        elif key in ("model", "data"):
            self.check(value, LightningModule if key == "model" else LightningDataModule, key)
        elif key in ("seed_everything", "pictures"):
            self.check(value, float, key)
        else:
            raise ValueError(f"{self.source}: its configuration has a section {key!r}, which no training has")

    def _without_training(self, sections: dict[str, Any]) -> dict[str, Any]:
        """Leave out the model's optimizer and scheduler, unless its class takes none without."""
        model = sections.get("model")
        if not isinstance(model, Mapping) or "class_path" not in model:
            return sections
        parameters = _parameters(self._check_class(model, LightningModule, "model"))
        optional = [
            name
            for name in TRAINING_ARGUMENTS
            if name not in parameters or parameters[name].default is not inspect.Parameter.empty
        ]
        model = {
            part: {name: argument for name, argument in value.items() if name not in optional}
            if part != "class_path" and isinstance(value, Mapping)
            else value
            for part, value in model.items()
        }
        return sections | {"model": model}

    def _check_class(self, named: Mapping[str, Any], hint: Any, place: str) -> Callable[..., Any]:
        if strange := named.keys() - set(_SPECIFICATION):
            raise ValueError(f"{self.source}: {place} names a class, and has {min(map(repr, strange))} beside it")
        # what the user gives for a text or a file names no class, even if it looks like one
        takes_class = _reading(hint) is Reading.NAME and hint is not _UNKNOWN
        return self._find(named["class_path"], place, self._given(place) if takes_class else ())

    def _given(self, place: str) -> Collection[str]:
        return {name for where, name in self.given if where == place}

    def _find(self, name: Any, place: str, given: Collection[str] = ()) -> Callable[..., Any]:
        """Return the class of a name."""
        place = place or "its class"
        if not isinstance(name, str) or not _is_dotted(name):
            raise Untrusted(f"{self.source} names {name!r} as {place}; in a checkpoint, a class has its full name")
        if name in self.trusted or name in given:
            try:
                trusted: Callable[..., Any] = pkgutil.resolve_name(name)
            except (ImportError, AttributeError) as error:
                raise Untrusted(f"{self.source} names {name} as {place}, which cannot be had: {error}") from error
            return trusted
        found = _imported(name)
        if not self._may_name(found):
            libraries = "models, layers and data of ika_lightning, layers of torch.nn and torch_geometric.nn"
            if self.resume:
                libraries += ", and what trains in torch.optim and lightning"
            raise Untrusted(
                f"{self.source} names {name} as {place}; a checkpoint may name classes alone: {libraries}. If you "
                f"trust it: --trust {name}, or trust=[{name!r}] in Python"
            )
        return found

    def _may_name(self, found: Any) -> bool:
        return isinstance(found, type) and any(
            _is_within(found.__module__, library) and issubclass(found, bases) and found not in bases
            for table in ((FOR_EVALUATION, TO_RESUME) if self.resume else (FOR_EVALUATION,))
            for library, bases in table.items()
        )

    def _check_key(self, key: Any, place: str) -> None:
        # a dot reaches into what is below, a + adds to a list, and underscores are jsonargparse's own
        if not isinstance(key, str) or not key.isidentifier() or key.startswith("_"):
            raise ValueError(f"{self.source}: {key!r} in {place or 'its arguments'} is no name of an argument")

    def _check_text(self, text: str, hint: Any, place: str) -> None:
        """Check a string where it may stand for something else: a file, YAML, or a class."""
        reading = _reading(hint)
        if reading is Reading.TEXT or text in self.trusted or text in self._given(place):
            return
        if text.strip() and os.path.lexists(os.path.expanduser(text)):
            raise ValueError(
                f"{self.source}: {place} is {text!r}, which is a file here, too, and would be read; move it away"
            )
        parsed = parse_option(text)
        if isinstance(parsed, _CONTAINERS):
            check_size(parsed, self.source)
            if any(isinstance(parse_option(inner), _CONTAINERS) for _, inner in named_places(parsed)):
                raise ValueError(f"{self.source}: {place} is YAML with YAML in its strings")
            self.check(parsed, hint, place)
        elif reading is Reading.NAME and _is_dotted(text):
            self._find(text, place)
        elif reading is Reading.NAME:
            for found in itertools.chain(*map(_subclasses, _classes(hint))):
                if found.__name__ == text and not self._may_name(found):
                    self._find(f"{found.__module__}.{found.__qualname__}", place)


def check_size(value: Any, source: object) -> None:
    """Check that values in one another come to an end: in YAML and in pickles, one may stand in itself.

    Args:
        value: Mappings, lists and the like.
        source: What errors call them.

    Raises:
        ValueError: If there are too many values, or too many levels of them.

    Example:
        >>> check_size(yaml.safe_load("&a [*a]"), "x.ckpt")
        Traceback (most recent call last):
        ...
        ValueError: x.ckpt: its configuration has no end
    """
    layer, count = [value], 0
    for _ in range(_MOST_LEVELS):
        inside = (
            item.values() if isinstance(item, Mapping) else item for item in layer if isinstance(item, _CONTAINERS)
        )
        layer = list(itertools.islice(itertools.chain(*inside), _MOST_VALUES))
        count += len(layer)
        if not layer:
            return
        if count >= _MOST_VALUES:
            break
    raise ValueError(f"{source}: its configuration has no end")


def named_places(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Go through the strings of a configuration, each with its place, whichever way that is spelled.

    Args:
        value: A part of the configuration.
        place: Where that part stands.

    Example:
        >>> list(named_places({"model": {"class_path": "a.B", "init_args": {"attention": "c.D", "width": 3}}}))
        [('model', 'a.B'), ('model.attention', 'c.D')]
    """
    match value:
        case str():
            yield place, value
        case list() | tuple() | set() | frozenset():
            for item in value:
                yield from named_places(item, place)
        case Mapping():
            for key, item in value.items():
                yield from named_places(item, join_places(place, str(key)))


def join_places(place: str, key: str) -> str:
    """Return the place of a key below another place; how a class is spelled makes no place of its own.

    Example:
        >>> join_places("model", "attention.init_args.kernel+")
        'model.attention.kernel'
    """
    words = [word for word in key.removesuffix("+").split(".") if word not in _SPECIFICATION]
    return ".".join([place, *words] if place else words)


def parse_option(text: str) -> Any:
    """Return what a string stands for as YAML, or itself if it is none.

    Example:
        >>> parse_option("{a: 1}"), parse_option("a: b: c")
        ({'a': 1}, 'a: b: c')
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


# --- Annotations ------------------------------------------------------------------------------------------------------


class Reading(Enum):
    """How a string is read where an argument has a certain annotation; the later, the more it may do."""

    #: As it is.
    TEXT = 0
    #: As it is, or as YAML that may name a class.
    ANYTHING = 1
    #: As the name of a class or of a file as well.
    NAME = 2


# The annotation of an argument of which none is known.
_UNKNOWN = Callable


def _reading(hint: Any) -> Reading:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object, dict, list, tuple, set):
        return Reading.ANYTHING
    if origin is Literal or hint in (None, types.NoneType, Ellipsis):
        return Reading.TEXT
    if origin in (Callable, type) or hint is _UNKNOWN:
        return Reading.NAME
    if parts:
        return max(map(_reading, parts), key=lambda reading: reading.value)
    plain = str | int | float | complex | bytes | os.PathLike | Enum
    return Reading.TEXT if isinstance(hint, type) and issubclass(hint, plain) else Reading.NAME


def _classes(hint: Any) -> Iterator[type]:
    """Go through the classes in an annotation; of a callable, those that it returns."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Callable:
        parts = parts[-1:]
    if isinstance(hint, type) and not parts and _reading(hint) is Reading.NAME:
        yield hint
    for part in parts:
        yield from _classes(part)


def _subclasses(base: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(base)
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)


def _hints(owner: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each argument of a class, as far as it can be told."""
    function = owner.__init__ if isinstance(owner, type) else owner  # type: ignore[misc]
    try:
        known = typing.get_type_hints(function)
    except Exception:
        # an annotation that type checkers alone understand
        known = {}
    hints: dict[str, Any] = {}
    for name, parameter in _parameters(owner).items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        annotation = known.get(name, parameter.annotation)
        if annotation is inspect.Parameter.empty:
            annotation = Any
        hints[name] = _UNKNOWN if isinstance(annotation, str) else annotation
    return hints


def _parameters(owner: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(owner).parameters
    except (ValueError, TypeError):
        # what is written in C does not always tell
        return {}


def _is_dotted(name: str) -> bool:
    return "." in name and all(map(str.isidentifier, name.split(".")))


def _is_within(module: str, library: str) -> bool:
    return module == library or module.startswith(f"{library}.")


def _is_called(owner: type, name: Any) -> bool:
    module, _, attribute = str(name).rpartition(".")
    return module in sys.modules and vars(sys.modules[module]).get(attribute) is owner


def _imported(name: Any) -> Any:
    """What a name means now, in a library that checkpoints may name; None if nothing is imported by it."""
    libraries = ("ika_lightning", "lightning", "torch.nn", "torch.optim", "torch_geometric.nn")
    if not isinstance(name, str) or not any(_is_within(name, library) for library in libraries):
        return None
    if any(_is_within(name, library) for library in ("ika_lightning.attention.graph", "torch_geometric.nn")):
        # imported by what needs it alone, and a checkpoint may need it
        import_module("ika_lightning.attention.graph")
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


# --- State ------------------------------------------------------------------------------------------------------------


def check_callbacks(states: Any, source: object) -> None:
    """Check the state of callbacks, which goes on in a training that is resumed.

    ``ModelCheckpoint`` removes checkpoints that it remembers, if they are below its folder or on another file system.
    A path that leads out of the folder again, and an address, can name anything.

    Args:
        states: The state of each callback.
        source: What errors call the checkpoint.

    Raises:
        Untrusted: If one remembers such a path.

    Example:
        >>> check_callbacks({"ModelCheckpoint": {"dirpath": "run", "best_model_path": "run/../thesis"}}, "x.ckpt")
        Traceback (most recent call last):
        ...
        ika_lightning.trust.Untrusted: x.ckpt remembers the checkpoint 'run/../thesis', which is outside of 'run'; ...
    """
    for state in states.values() if isinstance(states, Mapping) else ():
        if not isinstance(state, Mapping):
            continue
        folder = state.get("dirpath")
        best = state.get("best_k_models")
        remembered = [state.get(f"{name}_model_path") for name in ("best", "kth_best", "last")]
        for path in [*remembered, *(best if isinstance(best, Mapping) else ())]:
            if isinstance(path, str) and _leads_elsewhere(path, folder if isinstance(folder, str) else ""):
                raise Untrusted(
                    f"{source} remembers the checkpoint {path!r}, which is outside of {folder!r}; a training that goes "
                    "on might remove it: train anew"
                )


def _leads_elsewhere(path: str, folder: str) -> bool:
    below = path.removeprefix(f"{folder}{os.sep}") if folder else path
    if below == path and re.search(r"::|://", path):
        return True
    parts = PurePath(below).parts
    climbs = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    return ".." in (parts if below != path else parts[climbs:])
