"""From an exception to the one line that helps.

jsonargparse reports a wrong option under the whole usage and every type it tried. All that is of use is in the chain
of causes: each level names its key or class, and the last one says what was wrong. :func:`explain` reads that chain.
"""

import difflib
import dis
import inspect
import itertools
import re
import types
import typing
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ika_lightning.data.files import decode

BASES: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}


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
        case UsageError() | MisconfigurationException():
            return str(error)
        case OSError() if ours or error.filename is not None:
            return str(error)
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
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
        texts = [str(cause).strip() for cause in causes(error)]
        for text in texts:
            if key := re.match(r'Parser key "([^"]+)"|--([\w.]+)\.help: ', text):
                keys.append((key[1] or key[2]).removeprefix(f"{subcommand}."))
            if owner := re.match(r"Problem with given class_path '([\w.]+)'", text):
                owners.append(owner[1])
            if owner := re.match(r"Type [\w.]*Callable\[\[(.*?)\].*?class_path='([\w.]+)'", text, re.DOTALL):
                owners.append(owner[2])
                filled = len(owner[1].split(","))
        # an exception passed on through several handlers repeats its text
        return cls(_unrepeated(keys), [_import(owner) for owner in _unrepeated(owners)], filled, texts[-1])


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


def check_files(files: list[Path]) -> None:
    """Refuse a configuration file that is missing or is not YAML, by name and line."""
    for file in files:
        if not file.is_file():
            near = difflib.get_close_matches(str(file), map(str, file.parent.glob("*.yaml")), n=3, cutoff=0.7)
            raise UsageError(f"no configuration file at {file}{_near(str(file), near)}")
        try:
            root = yaml.compose(read_config(file))
        except yaml.YAMLError as error:
            line = mark.line + 1 if (mark := getattr(error, "problem_mark", None)) else 1
            problem = getattr(error, "problem", None) or error
            raise UsageError(f"{file}:{line}: not valid YAML: {problem}") from error
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(f"{file}: expected sections such as model, data and trainer")


def read_config(file: Path) -> str:
    """The text of a configuration file.

    Args:
        file: The file.

    Raises:
        ValueError: If it is not UTF-8; the message names the line.
    """
    return decode(file.read_bytes(), file)


def _place(path: str, files: list[Path]) -> str:
    """``path`` as the user wrote it: with file and line where a configuration file holds it, else as an option."""
    for file in files:
        node, mark = yaml.compose(read_config(file)), None
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
    return [option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--")]


def _options(owner: type, filled: int) -> list[str]:
    return ArgumentParser(exit_on_error=False).add_class_arguments(owner, fail_untyped=False, skip={filled})


def _expected(error: BaseException) -> str:
    """The types that a value may have, in words."""
    *_, outer, leaf = ("", *map(str, causes(error)))
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


def _import(path: str) -> type:
    module, name = path.rsplit(".", 1)
    return getattr(__import__(module, fromlist=[name]), name)
