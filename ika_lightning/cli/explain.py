"""From an exception to the one line that helps.

jsonargparse reports a wrong option under the whole usage and every type it tried. All that is of use is in the chain
of causes: each level names its key or class, and the last one says what was wrong. ``explain`` reads that chain.
"""

import difflib
import dis
import errno
import inspect
import io
import itertools
import os
import re
import sys
import traceback
import types
import typing
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ika_lightning.data.files import decode
from ika_lightning.internals import option_names
from ika_lightning.output import OutputError
from ika_lightning.trust import Untrusted, check_size

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what the system says of a disk that takes no more
BASES: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}

#: The first line of a configuration that is given as text. jsonargparse looks for a file of that name first, and no
#: file has one as long.
NO_FILE = "#" * 5000


class UsageError(Exception):
    """What the user can put right: printed as one line, without a traceback."""


def user_message(error: BaseException) -> str | None:
    """What to tell the user about ``error``, or None where it is a bug and its traceback tells more.

    An error counts as the user's if this package raised it on purpose, if Lightning refused a value or a combination
    of options, or if the system refused a file.
    """
    meant = raised_on_purpose(error)
    ours, lightnings = (meant and raised_by(error, package) for package in ("ika_lightning", "lightning"))
    match error:
        case MisconfigurationException() if str(error) == "No supported gpu backend found!":
            return (
                "--trainer.accelerator gpu: PyTorch finds no GPU that it can use; install its build for your GPU "
                f"(this is {torch.__version__}), or train without: --trainer.accelerator cpu"
            )
        case UsageError() | Untrusted() | MisconfigurationException():
            return str(error)
        case OSError() if ours:
            return str(error)
        case BrokenPipeError():
            return "cannot write standard output: Broken pipe"
        case OSError() if (file := _refused_file(error)) is not None:
            return f"{'cannot write ' if error.errno in FULL else ''}{file}: {error.strerror or error}"
        case ValueError() | TypeError() | ImportError() if ours:
            return str(error)
        # an interval of validation beyond an epoch, for instance
        case ValueError() if lightnings:
            return str(error)
        # a logger that is not installed; where Python finds no module of ours, it says its name
        case ImportError() if lightnings and error.name is None:
            return str(error)
        case RuntimeError() if "EADDRINUSE" in str(error):
            port = re.search(r"port: (\d+)", str(error))
            return (
                f"port {port[1] if port else ''} of this machine, by which the processes were to meet, is in use; "
                "choose another with the environment variable MASTER_PORT"
            )
        case RuntimeError() if "gloo/transport/tcp/pair.cc" in str(error):  # closed, reset, a broken pipe
            return "another process of this training has ended; it says why"
        case RuntimeError() if found := re.match(r"Early stopping conditioned on metric `(.+?)` which", str(error)):
            others = re.search(r"the following: (.+)", str(error))
            return (
                f"early stopping watches {found[1]}, which this training does not measure: let it validate, or give "
                f"another --early_stopping.monitor{': ' + others[1].replace('`', '') if others else ''}"
            )
        case RuntimeError() if str(error).startswith("InvalidCxxCompiler"):
            return "torch.compile found no C++ compiler: install g++, name another in CXX, or leave out --model.compile"
        case RuntimeError() if str(error).startswith("Error(s) in loading state_dict"):
            return f"the checkpoint does not fit the model: {error}"
    # what Lightning and PyTorch make of a disk that is full
    full = (cause for cause in causes(error) if isinstance(cause, OSError) and cause is not error)
    return next((user_message(cause) for cause in full if cause.errno in FULL or isinstance(cause, OutputError)), None)


def _refused_file(error: OSError) -> str | None:
    """The file that the system refused: as it says; else the one that was open where it happened."""
    if error.filename is not None:
        return os.fsdecode(error.filename)
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            name = getattr(value, "name", None) if isinstance(value, io.IOBase) else None
            if isinstance(name, str | bytes | Path):
                return os.fsdecode(name)
    return None


def raised_on_purpose(error: BaseException) -> bool:
    """Whether ``error`` comes from a ``raise``, and not from an operation that failed: the instruction tells."""
    entries = list(_traceback(error))
    return bool(entries) and entries[-1].tb_frame.f_code.co_code[entries[-1].tb_lasti] == dis.opmap["RAISE_VARARGS"]


def raised_by(error: BaseException, package: str) -> bool:
    """Whether the line that raised ``error`` belongs to a package.

    Args:
        error: The error.
        package: The name of the package, such as ``jsonargparse``.
    """
    modules = [entry.tb_frame.f_globals.get("__name__", "") for entry in _traceback(error)]
    return bool(modules) and f"{modules[-1]}.".startswith(f"{package}.")


def _traceback(error: BaseException) -> Iterator[types.TracebackType]:
    entry = error.__traceback__
    while entry is not None:
        yield entry
        entry = entry.tb_next


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The chain of exceptions that led to ``error``, itself first."""
    seen: list[BaseException] = []
    # one that is raised again while another is handled that it led to makes the chain a circle
    while error is not None and all(error is not other for other in seen):
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _told(error: BaseException) -> list[str]:
    """What each error of the chain says, but for the one that no file has a whole configuration for its name."""
    return [text for cause in causes(error) if NO_FILE not in (text := str(cause).strip())]


@dataclass
class _Trail:
    """The way down to an error: key ``model``, its class Regression, key ``attention``, its class IKAN, the end."""

    keys: list[str]
    owners: list[type]
    filled: int  # how many arguments of the last class are filled in later, by who calls it
    leaf: str

    @classmethod
    def of(cls, error: BaseException, subcommand: str) -> "_Trail":
        keys: list[str] = []
        owners: list[str] = []
        filled = 0
        texts = _told(error)
        for text in texts:
            if key := re.match(r'Parser key "([^"]+)"|--([\w.]+)\.help: ', text):
                keys.append((key[1] or key[2]).removeprefix(f"{subcommand}."))
            if owner := re.match(r"Problem with given class_path '([\w.]+)'", text):
                owners.append(owner[1])
            if owner := re.match(r"Type [\w.]*Callable\[\[(.*?)\].*?class_path='([\w.]+)'", text, re.DOTALL):
                owners.append(owner[2])
                filled = len(owner[1].split(","))
        # an exception passed on through several handlers repeats its text
        return cls(_unrepeated(keys), list(_imported(_unrepeated(owners))), filled, texts[-1])


def explain(error: ArgumentError, parser: ArgumentParser, files: list[Path]) -> str:
    """One line for a mistake in the options: what, where, the nearest valid names, and how to get help.

    Args:
        error: What parsing raised.
        parser: The parser of the subcommand.
        files: The configuration files given, to name file and line.
    """
    trail = _Trail.of(error, parser.prog.split()[-1])
    path, leaf = ".".join(trail.keys), trail.leaf
    owner = trail.owners[-1] if trail.owners else None
    place = _place(path, files)
    hint = f" Try: {parser.prog} --help"
    if owner and owner not in BASES.values():
        outer = f"--{trail.keys[0]} {trail.owners[0].__name__} " if len(trail.owners) > 1 else ""
        hint = f" Try: {parser.prog} {outer}--{'.'.join(trail.keys[: len(trail.owners)])}.help {owner.__name__}"

    if found := re.match(r"unrecognized arguments: (--?)?([^\s=]+)|Option '([^']+)' is not accepted", leaf):
        name = found[2] or found[3]
        if owner and owner in BASES.values():
            classes = _listing(_subclasses([owner]))
            return f"--{path}.{name}: of which {path}? Add --{path} NAME, which may be {classes}.{hint}"
        if owner:
            near = _near(name, _options(owner, trail.filled))
            return f"{_place(f'{path}.{name}', files)}: {owner.__name__} has no such option{near}{hint}"
        if not found[1]:
            return f"unexpected argument {name!r}.{hint}"
        return f"unknown option --{name}{_near(name, _names(parser), '--')}{hint}"
    if found := re.search(r"does not accept option '([^']+)'", leaf):
        return f"{_place(found[1], files)}: no such option{_near(found[1], _names(parser))}{hint}"
    if found := re.match(r"Expected a dot import path string: (\S+)", leaf):
        return f"{place}: unknown class {found[1]!r}{_near(found[1], _classes(trail))}{hint}"
    if found := re.match(r"the following arguments are required: (.+)", leaf):
        needed = " and ".join(f"--{key.split('.')[-1]} NAME" for key in sorted(found[1].split(", "), reverse=True))
        return f"nothing says what to run: give --config FILE, or {needed}.{hint}"
    if found := re.match(r"Expected a .*?Got value: (.*)", leaf, re.DOTALL):
        note = ""
        if "str" in _expected(error):
            note = " (YAML takes words such as No and null, and numbers, for no text: put text in quotes, '[\"No\"]')"
        return f"{place}: expected {_expected(error)}, got {found[1]!r}{note}.{hint}"
    leaf = re.sub(r'^Parser key "[^"]*":', "", leaf)
    return f"{f'{place}: ' if path else ''}{leaf}.{hint}"


def read_file(file: Path) -> dict[str, Any]:
    """Read a configuration file; see :func:`read_sections`."""
    if not file.is_file():
        near = difflib.get_close_matches(str(file), map(str, file.parent.glob("*.yaml")), n=3, cutoff=0.7)
        raise UsageError(f"no configuration file at {file}{_near(str(file), near)}")
    return read_sections(file.read_bytes(), file)


def read_sections(content: bytes, source: object) -> dict[str, Any]:
    """Read a configuration, or say what is wrong with it, by name and line.

    Args:
        content: YAML, in UTF-8.
        source: What errors call it.

    Raises:
        UsageError: If it is not YAML, has tags that ask for more than plain values, or has no sections.
        ValueError: If it is not UTF-8, or has no end.
    """
    text = decode(content, source)
    try:
        sections = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = mark.line + 1 if (mark := getattr(error, "problem_mark", None)) else 1
        problem = getattr(error, "problem", None) or error
        raise UsageError(f"{source}:{line}: not valid YAML: {problem}") from error
    # a date that is none, brackets without end
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: not valid YAML: {error}") from error
    if not isinstance(sections, dict):
        raise UsageError(f"{source}: expected sections such as model, data and trainer")
    check_size(sections, source)
    return sections


def _place(path: str, files: list[Path]) -> str:
    """``path`` as the user wrote it: with file and line where a configuration file holds it, else as an option."""
    for file in files:
        node, mark = yaml.compose(decode(file.read_bytes(), file)), None
        for key in path.split("."):
            node, mark = _child(node, key)
        if mark:
            return f"{file}:{mark.line + 1}: {path}"
    return f"--{path}"


def _child(node: yaml.Node | None, key: str) -> tuple[yaml.Node | None, yaml.Mark | None]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                return value, name.start_mark
        for name, value in node.value:
            if name.value == "init_args":
                return _child(value, key)
    return None, None


def _near(name: str, candidates: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence about a wrong name: those like it, or all if they are few."""
    names = sorted(set(candidates))
    if near := difflib.get_close_matches(name, names, n=3, cutoff=0.5):
        return f"; did you mean {_listing(f'{prefix}{word}' for word in near)}?"
    return f"; choose from {', '.join(names)}." if 0 < len(names) <= 12 else "."


def _listing(words: Iterable[str]) -> str:
    *rest, last = dict.fromkeys(words)
    return f"{', '.join(rest)} or {last}" if rest else last


def _unrepeated(words: list[str]) -> list[str]:
    return [word for word, _ in itertools.groupby(words)]


def _names(parser: ArgumentParser) -> list[str]:
    return option_names(parser)


def _options(owner: type, filled: int) -> list[str]:
    return ArgumentParser(exit_on_error=False).add_class_arguments(owner, fail_untyped=False, skip={filled})


def _expected(error: BaseException) -> str:
    """The types that a value may have, in words."""
    *_, outer, leaf = ("", *_told(error))
    union = re.search(r"Subtypes: \[(.*)\]", outer)
    types = union[1] if union else leaf.partition(". Got value")[0].removeprefix("Expected a ")
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", types).replace("NoneType", "null").replace(", ", " or ")


def _classes(trail: _Trail) -> list[str]:
    """Names of the classes that fit where the trail ends, by the annotation of the parameter there."""
    if not trail.owners and trail.keys[0] in BASES:
        return _subclasses([BASES[trail.keys[0]]])
    owner = trail.owners[-1] if trail.owners else Trainer
    hint = typing.get_type_hints(owner.__init__).get(trail.keys[-1].rpartition(".")[2])  # type: ignore[misc]
    return _subclasses(_leaves(hint))


def _leaves(hint: object) -> list[type]:
    """The classes in an annotation; of a callable, what it returns."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Callable:
        args = args[-1:]
    if isinstance(hint, type) and not args:
        return [hint]
    return [leaf for arg in args for leaf in _leaves(arg)]


def _subclasses(bases: Iterable[type]) -> list[str]:
    """Public names of all imported classes below ``bases``, as far as one can be built."""
    names: list[str] = []
    for base in bases:
        children: list[type] = [] if base.__module__ in {"builtins", "collections.abc"} else base.__subclasses__()
        names += [c.__name__ for c in children if not inspect.isabstract(c) and not c.__name__.startswith("_")]
        names += _subclasses(children)
    return names


def _imported(paths: Iterable[str]) -> Iterator[type]:
    """Go through the classes of these names, as far as they are imported: an error's text is no reason to import."""
    for path in paths:
        module, _, name = path.rpartition(".")
        if isinstance(found := getattr(sys.modules.get(module), name, None), type):
            yield found
