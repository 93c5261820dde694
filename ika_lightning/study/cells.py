"""The cells of a study, and what makes each the one that it is.

A cell is a variant on a data set in one repeat: a training with the values that tuning chose, and a test of its best
checkpoint. Its identity says of what its result is: of a configuration, of data, and of code. A result of another
identity is another result, whatever it is called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import ika_lightning
from ika_lightning.data.messages import closest, quoted
from ika_lightning.study.definition import Choice, DataSet, Range, Study, Variant

__all__ = [
    "DIGITS",
    "Cell",
    "Identity",
    "cells_of",
    "code_version",
    "configuration_hash",
    "files_of",
    "find_cell",
    "short_hash",
    "words_of",
    "written",
]

#: Digits of a hash: enough for no two of a study to be the same.
DIGITS = 12
# No path of a file is longer.
_LONGEST = 4096
# Parts of the package that only look at what was trained.
_ONLOOKERS = ("study", "pictures", "sklearn")
# What computes and chooses, besides this package.
_LIBRARIES = ("torch", "lightning", "torchmetrics", "torch-geometric", "numpy", "scipy", "scikit-learn", "optuna")


@dataclass(frozen=True)
class Identity:
    """What a result is one of.

    Args:
        configuration: Hash of the configuration file's content, of everything that overrides it, and of how it is
            tuned.
        data: Hash of the files that the configuration, what overrides it and the repeats name, and of what is read for
            training.
        code: Hash of this package, and of the versions of the libraries that it computes with.
    """

    configuration: str
    data: str
    code: str

    @property
    def short(self) -> str:
        """One hash of all of it."""
        return short_hash(asdict(self))

    def differences(self, other: Identity) -> list[str]:
        """What differs from another.

        Example:
            >>> Identity("a", "b", "c").differences(Identity("a", "x", "y"))
            ['data', 'code']
        """
        mine, others = asdict(self), asdict(other)
        return [name for name in mine if mine[name] != others[name]]


@dataclass(frozen=True)
class Cell:
    """A variant on a data set in one repeat.

    Args:
        data: The data set.
        variant: The variant.
        repeat: The value that the options of repeats take.
    """

    data: DataSet
    variant: Variant
    repeat: Any

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return f"{self.data.name}/{self.variant.name}/{self.repeat}"


def cells_of(study: Study) -> Iterator[Cell]:
    """Go through the cells of a study: all variants of a repeat, and then those of the next."""
    for data in study.data.values():
        for repeat in data.repeats.values:
            for variant in study.variants.values():
                yield Cell(data, variant, repeat)


def find_cell(study: Study, name: str) -> Cell:
    """Return the cell of a name.

    Args:
        study: The study.
        name: Data set, variant and repeat, with slashes between them.

    Raises:
        ValueError: If there is no such cell.
    """
    parts = name.split("/")
    if len(parts) != 3:
        raise ValueError(f"--only {name}: must be DATA/VARIANT/REPEAT, such as {next(cells_of(study)).name}")
    data, variant, repeat = parts
    if data not in study.data:
        raise _unknown(name, "data set", data, study.data)
    if variant not in study.variants:
        raise _unknown(name, "variant", variant, study.variants)
    repeats = {str(value): value for value in study.data[data].repeats.values}
    if repeat not in repeats:
        raise _unknown(name, "repeat", repeat, repeats)
    return Cell(study.data[data], study.variants[variant], repeats[repeat])


def words_of(
    data: DataSet, variant: Variant, repeat: Any, chosen: Mapping[str, Any], *, refit: bool = False
) -> list[str]:
    """What to write after ``python -m ika_lightning fit`` for a training of a study.

    Args:
        data: The data set.
        variant: The variant.
        repeat: The value of the repeat.
        chosen: The values of what is tuned, by option.
        refit: Whether tuning is over.
    """
    own = variant.overrides if variant.reference is None else {}
    options = {**data.overrides, **own, **chosen, **(data.refit if refit else {})}
    options |= dict.fromkeys(data.repeats.options, repeat)
    return ["--config", str(data.config), *(f"--{option}={written(value)}" for option, value in options.items())]


def configuration_hash(study: Study, data: DataSet, variant: Variant) -> str:
    """Hash what the trainings of a variant on a data set are made of, but for the repeat."""
    ranges = study.ranges(variant)
    tuned = asdict(replace(study.tuning, ranges=ranges)) if study.tuning is not None and ranges else None
    return short_hash(
        {
            "config": yaml.safe_load(data.config.read_text(encoding="utf-8")),
            # their order counts, as a class comes before its arguments
            "overrides": [list(data.overrides.items()), list(variant.overrides.items())],
            "reference": variant.reference,
            "tuned": tuned,
            "repeats": data.repeats.options,
            "threads": study.threads,
            # results of studies without it stay what they are
            **({"refit": list(data.refit.items())} if data.refit else {}),
        }
    )


def files_of(data: DataSet, variant: Variant, ranges: Mapping[str, Range | Choice]) -> list[list[str]]:
    """Hash the files that the trainings of a variant name.

    They may stand in the configuration of the data set, in what overrides it, and in what it is repeated over.

    Args:
        data: The data set.
        variant: The variant.
        ranges: What is tuned for it.

    Returns:
        Their names, without folders, as a study is the same wherever it lies, and hashes of their contents; of a folder
        of a pretrained encoder, those of its files.
    """
    content = yaml.safe_load(data.config.read_text(encoding="utf-8"))
    choices = [list(range_.values) for range_ in ranges.values() if isinstance(range_, Choice)]
    # where configurations inside one are looked for, and everything else
    folders = [data.config.parent, Path()]
    given = [data.overrides, data.refit, data.repeats.values, variant.overrides, *choices]
    found = {path.resolve() for path in (*_named(content, folders), *_named(given, [Path()]))}
    return sorted([path.name, hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]] for path in found)


def _named(value: Any, folders: Sequence[Path]) -> Iterator[Path]:
    """Go through the files that a part of a configuration names; those of a configuration that it names included."""
    for text in _texts(value):
        for path in (folder / text for folder in folders if text and "\n" not in text and len(text) < _LONGEST):
            if path.is_file():
                yield path
                if path.suffix in (".yaml", ".yml"):
                    yield from _named(yaml.safe_load(path.read_text(encoding="utf-8")), [path.parent, *folders])
            elif (path / "config.json").is_file():
                yield from (file for file in path.iterdir() if file.is_file())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def code_version() -> str:
    """Hash the code that trains and tests, and the versions of the libraries that it computes with."""
    root = Path(ika_lightning.__file__).parent
    files = sorted(root.rglob("*.py"))
    code = {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.relative_to(root).parts[0] not in _ONLOOKERS
    }
    return short_hash([code, {library: version(library) for library in _LIBRARIES}])


def short_hash(content: Any) -> str:
    """Return a hash of strings, numbers, and lists and dicts of them.

    Example:
        >>> short_hash({"a": 1, "b": 2}) == short_hash({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]


def written(value: Any) -> str:
    """Return a value as the command line reads it.

    Args:
        value: A number, a text, None, or lists and dicts of them.

    Example:
        >>> written(None), written(0.1), written("No")
        ('null', '0.1', '"No"')
    """
    if isinstance(value, str):
        # words that YAML takes for something else, such as No, stay the words that they are
        return value if yaml.safe_load(value or "''") == value else json.dumps(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n...\n").strip()


def _unknown(name: str, kind: str, given: str, known: Mapping[str, Any]) -> ValueError:
    return ValueError(f"--only {name}: unknown {kind} {given!r}{closest(given, known)}; there are {quoted([*known])}")
