"""What a study compares, as its file says: data, variants, what is tuned, repeats, and what is reported.

The file is YAML. Everything in it is checked here, once, as far as that needs no data and no model: names of its keys,
types, ranges, and that one variant is the baseline. What a configuration has to know of is checked by
``worker.py``, before the first training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ika_lightning.data.files import decode
from ika_lightning.data.messages import closest, quote, quoted

__all__ = ["Choice", "DataSet", "Mode", "Range", "Repeats", "Sampler", "Study", "Tuning", "Variant", "read_study"]

Mode = Literal["min", "max"]
Sampler = Literal["quasi-random", "tpe"]

# What separates the parts of a cell's name on the command line.
_SEPARATOR = "/"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Args:
        low: The least.
        high: The greatest.
        log: Whether it is the ratio of two numbers that counts, and not their difference.
        limits: How far the range may be widened: the least and the greatest number that make sense.

    Example:
        >>> Range(0.001, 0.1, log=True).position(0.01)
        0.5
    """

    low: float
    high: float
    log: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)

    @property
    def whole(self) -> bool:
        """Whether all of it are whole numbers, as both ends were written without a decimal point."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def position(self, value: float) -> float:
        """Where a number is: 0 at ``low``, 1 at ``high``, and outside of both beyond."""
        low, high, at = ((math.log(x) if self.log else x) for x in (self.low, self.high, value))
        return (at - low) / (high - low)


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Args:
        values: The values, two or more: numbers, texts, or None.
    """

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Repeats:
    """What a cell is repeated over: seeds, folds, or published splits.

    Args:
        options: The options of the configuration that take the value.
        values: The values, two or more.
    """

    options: tuple[str, ...]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Tuning:
    """What is tuned for each variant on each data set, by validation.

    Args:
        metric: The measure, of the best checkpoint.
        mode: Whether less of it is better (``"min"``) or more (``"max"``).
        trials: How many settings are tried, the same for every variant.
        ranges: What is tuned, by the option that takes the value.
        sampler: Settings by a quasi-random sequence, or by Optuna's tree-structured Parzen estimator.
        seed: Seed of the settings.
        repeats: The repeats whose validation decides, by the mean of their measures, for all repeats; None for each
            repeat to decide for itself, which takes as many times the trials.
    """

    metric: str
    mode: Mode
    trials: int
    ranges: Mapping[str, Range | Choice]
    sampler: Sampler = "quasi-random"
    seed: int = 0
    repeats: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class DataSet:
    """A configuration file, and what is changed in it for all variants.

    Args:
        name: What the study calls it.
        config: The file.
        overrides: Values by option.
        repeats: What its cells are repeated over.
        refit: Values by option that cells take and trials do not: what changes once tuning is over.
    """

    name: str
    config: Path
    overrides: Mapping[str, Any]
    repeats: Repeats
    refit: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """What is compared: an attention, or whatever else options can say; or a reference from outside.

    Args:
        name: What the study calls it.
        overrides: Values by option, on top of the data set's.
        ranges: What is tuned besides what is tuned for all.
        reference: The class of a :class:`~ika_lightning.study.references.Reference`, by its path; overrides are then
            the arguments of this class.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, Range | Choice] = field(default_factory=dict)
    reference: str | None = None


@dataclass(frozen=True)
class Study:
    """A study, as its file says.

    Args:
        name: The name of its file, without the ending.
        file: The file.
        data: Data sets by name.
        variants: Variants by name.
        baseline: The variant that the others are compared to.
        tuning: What is tuned; None for nothing.
        report: Measures of ``test`` that are reported, and whether less or more of each is better. The first is drawn.
        threads: Threads of each training. Sums of floating-point numbers depend on them, so they belong to the study.
    """

    name: str
    file: Path
    data: Mapping[str, DataSet]
    variants: Mapping[str, Variant]
    baseline: str
    tuning: Tuning | None
    report: Mapping[str, Mode]
    threads: int = 1

    def ranges(self, variant: Variant) -> dict[str, Range | Choice]:
        """What is tuned for a variant: nothing for a reference."""
        if self.tuning is None or variant.reference is not None:
            return {}
        return {**self.tuning.ranges, **variant.ranges}


def read_study(file: str | Path) -> Study:
    """Read a study file.

    Args:
        file: YAML, as docs/study.md describes. Paths of configuration files in it start where the file is.

    Raises:
        ValueError: If it says something wrong, or too little. One line says what, and where.

    Example:
        >>> read_study("nowhere.yaml")
        Traceback (most recent call last):
        ...
        ValueError: no study file at nowhere.yaml
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"no study file at {file}")
    try:
        # of PyYAML's safe loader, as it is one
        given = yaml.load(decode(file.read_bytes(), file), _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        line = mark.line + 1 if (mark := getattr(error, "problem_mark", None)) else 1
        raise ValueError(f"{file}:{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    top = _Section(file, "", given, ("baseline", "data", "variants", "tune", "refit", "repeats", "report", "threads"))
    repeats = _repeats(top, "repeats") if top.has("repeats") else None
    tuning = _tuning(top, "tune") if top.has("tune") else None
    refit = _refit(top, tuning)
    variants = {name: _variant(top, name, given, tuning) for name, given in top.named("variants").items()}
    if len(variants) < 2:
        raise top.error("variants", f"there is nothing to compare {next(iter(variants))!r} to: give two or more")
    study = Study(
        name=file.stem,
        file=file,
        data={name: _data_set(top, name, given, repeats, tuning, refit) for name, given in top.named("data").items()},
        variants=variants,
        baseline=_baseline(top, variants),
        tuning=tuning,
        report=_report(top),
        threads=top.least("threads", 1, 1),
    )
    if tuning is not None and not any(study.ranges(variant) for variant in variants.values()):
        raise top.error("tune", "there are no ranges; give some, or leave out tune")
    _check_options(top, study)
    return study


def _check_options(top: _Section, study: Study) -> None:
    """Refuse options that two parts of a study set, as the later would win in silence."""
    for variant in study.variants.values():
        if variant.reference is not None:
            continue
        for option in study.ranges(variant):
            if option in variant.overrides:
                raise top.error(
                    f"variants.{variant.name}.overrides.{option}", "is tuned as well; leave out one of them"
                )
            for data in study.data.values():
                if option in data.overrides:
                    raise top.error(f"data.{data.name}.overrides.{option}", "is tuned as well; leave out one of them")
                if option in data.refit:
                    raise top.error(f"refit of {data.name}", f"{option} is tuned as well; leave out one of them")
        for data in study.data.values():
            for option in data.repeats.options:
                given = {**data.overrides, **variant.overrides, **data.refit}
                if option in study.ranges(variant) or option in given:
                    raise top.error(
                        f"repeats of {data.name}", f"{option} is set or tuned as well; leave out one of them"
                    )


def _baseline(top: _Section, variants: Mapping[str, Variant]) -> str:
    given = top.take("baseline", object)
    if not isinstance(given, str):
        raise top.error("baseline", f"must be the name of one variant, got {_short(given)}")
    if given not in variants:
        raise top.error(
            "baseline", f"unknown variant {given!r}{closest(given, variants)}; there are {_listed(variants)}"
        )
    return given


def _data_set(
    top: _Section, name: str, given: object, repeats: Repeats | None, tuning: Tuning | None, refit: Mapping[str, Any]
) -> DataSet:
    section = top.inner(f"data.{name}", given, ("config", "overrides", "refit", "repeats"))
    own = _repeats(section, "repeats") if section.has("repeats") else repeats
    if own is None:
        raise section.error("repeats", "is missing, here and for all data sets")
    tuned_on = None if tuning is None else tuning.repeats
    for value in tuned_on or ():
        if value not in own.values:
            # texts in quotation marks: '0' is none of 0, 1, 2
            there = ", ".join(map(repr, own.values))
            raise top.error("tune.repeats", f"{value!r} is no repeat of {name}, which are {there}")
    config = top.file.parent / section.take("config", str)
    if not config.is_file():
        raise section.error("config", f"no configuration file at {config}")
    own_refit = _refit(section, tuning) if section.has("refit") else refit
    return DataSet(name, config, section.options("overrides"), own, own_refit)


def _variant(top: _Section, name: str, given: object, tuning: Tuning | None) -> Variant:
    # one that changes nothing needs no more than its name
    section = top.inner(f"variants.{name}", given or {}, ("overrides", "ranges", "reference", "arguments"))
    if section.has("reference"):
        for key in ("overrides", "ranges"):
            if section.has(key):
                raise section.error(key, "a reference has arguments alone, and is not tuned")
        return Variant(name, section.options("arguments"), {}, section.take("reference", str))
    if section.has("arguments"):
        raise section.error("arguments", "those are of a reference; give overrides")
    ranges = _ranges(section)
    if ranges and tuning is None:
        raise section.error("ranges", "needs tune, which says by what and how often")
    return Variant(name, section.options("overrides"), ranges)


def _refit(section: _Section, tuning: Tuning | None) -> dict[str, Any]:
    if section.has("refit") and tuning is None:
        raise section.error("refit", "is what changes once tuning is over; without tune, give overrides")
    return section.options("refit")


def _repeats(outer: _Section, key: str) -> Repeats:
    section = outer.inner(key, outer.take(key, object), ("options", "values"))
    options = section.take("options", list)
    for option in options:
        section.check_option("options", option)
    if not options:
        raise section.error("options", "there is none; name what takes the values, such as seed_everything")
    values = section.take("values", (int, list))
    if isinstance(values, int):
        values = list(range(values))
    for value in values:
        if not isinstance(value, int | str) or isinstance(value, bool):
            raise section.error("values", f"must be whole numbers or texts, got {_short(value)}")
        if _SEPARATOR in str(value):
            raise section.error("values", f"a value has no {_SEPARATOR}, got {value!r}")
    if len(set(map(str, values))) < len(values):
        raise section.error("values", f"are not all different: {_short(values)}")
    if len(values) < 2:
        raise section.error("values", f"one repeat tells nothing of chance: give two or more, got {_short(values)}")
    return Repeats(tuple(options), tuple(values))


def _tuning(top: _Section, key: str) -> Tuning:
    keys = ("metric", "mode", "trials", "sampler", "seed", "repeats", "ranges")
    section = top.inner(key, top.take(key, object), keys)
    metric = section.take("metric", str)
    if not metric.startswith("val/"):
        raise section.error("metric", f"must be one of validation, such as val/loss, got {metric!r}")
    repeats = section.take("repeats", (str, list))
    if repeats == "each":
        tuned_on = None
    elif isinstance(repeats, str) or not repeats:
        raise section.error("repeats", f"must be a list of repeats, or each, got {_short(repeats)}")
    else:
        tuned_on = tuple(repeats)
    return Tuning(
        metric=metric,
        mode=section.choice("mode", get_args(Mode)),
        trials=section.least("trials", 2),
        ranges=_ranges(section),
        sampler=section.choice("sampler", get_args(Sampler), "quasi-random"),
        seed=section.least("seed", 0, 0),
        repeats=tuned_on,
    )


def _ranges(outer: _Section) -> dict[str, Range | Choice]:
    return {option: _range(outer, f"ranges.{option}", given) for option, given in outer.options("ranges").items()}


def _range(outer: _Section, place: str, given: object) -> Range | Choice:
    if isinstance(given, list):
        if len(given) < 2 or len({str(value) for value in given}) < len(given):
            raise outer.error(place, f"must be two or more different values, got {_short(given)}")
        for value in given:
            if not isinstance(value, str | int | float | None):
                raise outer.error(place, f"must be numbers, texts or null, got {_short(value)}")
        return Choice(tuple(given))
    section = outer.inner(place, given, ("low", "high", "log", "limits"))
    low, high = (section.take(end, (int, float)) for end in ("low", "high"))
    log = section.take("log", bool, False)
    if not low < high or not math.isfinite(high - low):
        raise outer.error(place, f"is empty, or has no end: low is {low}, high is {high}")
    if log and low <= 0:
        raise outer.error(place, f"a logarithmic range begins above 0, got low {low}")
    limits = section.take("limits", list, [-math.inf, math.inf])
    if len(limits) != 2 or not all(isinstance(limit, int | float) for limit in limits):
        raise section.error("limits", f"must be two numbers, got {_short(limits)}")
    if not limits[0] <= low or not high <= limits[1]:
        raise section.error("limits", f"{limits[0]} to {limits[1]} does not hold the range {low} to {high}")
    return Range(low, high, log, (limits[0], limits[1]))


def _report(top: _Section) -> dict[str, Mode]:
    section = top.inner("report", top.take("report", object))
    for metric in section.given:
        if not metric.startswith("test/"):
            raise top.error("report", f"must be measures of test, such as test/loss, got {metric!r}")
        section.choice(metric, get_args(Mode))
    if not section.given:
        raise top.error("report", "there is none; name a measure of test, and min or max")
    return dict(section.given)


class _Loader(yaml.SafeLoader):
    """Reads YAML as the command line does: 1e-4 is a number, as in YAML 1.2. A key that is there twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is there twice; the second would take the place of the first",
                    problem_mark=key.start_mark,
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _Section:
    """A mapping in the file, and where in it that is.

    Args:
        file: The file.
        place: The keys on the way to it; empty for the whole.
        given: What is there.
        known: The keys that it may have; None for any.
    """

    def __init__(self, file: Path, place: str, given: object, known: Sequence[str] | None = None) -> None:
        self.file, self._place = file, place
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise ValueError(f"{file}: {place or 'the file'} must be names with values, got {_short(given)}")
        self.given: Mapping[str, Any] = given
        for key in given:
            if known is not None and key not in known:
                raise self.error(key, f"there is no such key{closest(key, known)}; there are {_listed(known)}")

    def error(self, key: str, problem: str) -> ValueError:
        return ValueError(f"{self.file}: {self._place}{'.' if self._place else ''}{key}: {problem}")

    def has(self, key: str) -> bool:
        return key in self.given

    def inner(self, key: str, given: object, known: Sequence[str] | None = None) -> _Section:
        return _Section(self.file, f"{self._place}{'.' if self._place else ''}{key}", given, known)

    def take(self, key: str, kind: type | tuple[type, ...], *default: Any) -> Any:
        """Return the value of a key, or its default; without one, the key has to be there."""
        if key not in self.given:
            if not default:
                raise self.error(key, "is missing")
            return default[0]
        value, kinds = self.given[key], kind if isinstance(kind, tuple) else (kind,)
        # to Python, True is a number
        if not isinstance(value, kinds) or (isinstance(value, bool) and not {bool, object} & set(kinds)):
            wanted = " or ".join(_KINDS.get(each, each.__name__) for each in kinds)
            raise self.error(key, f"must be {wanted}, got {_short(value)}")
        return value

    def least(self, key: str, least: int, *default: int) -> int:
        """Return a whole number that is not too small."""
        value: int = self.take(key, int, *default)
        if value < least:
            raise self.error(key, f"must be at least {least}, got {value}")
        return value

    def choice(self, key: str, choices: Sequence[Any], *default: Any) -> Any:
        """Return one of several values."""
        value = self.take(key, object, *default)
        if value not in choices:
            raise self.error(key, f"must be {' or '.join(choices)}, got {_short(value)}")
        return value

    def named(self, key: str) -> dict[str, Any]:
        """Return the sections below a key by their names, which the command line takes; one or more."""
        section = self.inner(key, self.take(key, object))
        for name in section.given:
            if _SEPARATOR in name or not name.strip():
                raise self.error(key, f"a name is not empty and has no {_SEPARATOR}, got {name!r}")
        if not section.given:
            raise self.error(key, "there is none")
        return dict(section.given)

    def options(self, key: str) -> dict[str, Any]:
        """Return values by option of the command line; empty if there are none."""
        section = self.inner(key, self.take(key, object, {}))
        for option in section.given:
            section.check_option(option, option)
        return dict(section.given)

    def check_option(self, key: str, option: object) -> None:
        """Refuse what cannot be an option."""
        if not isinstance(option, str) or not all(part.isidentifier() for part in option.split(".")):
            raise self.error(key, f"{_short(option)} is no option; write it as on the command line, without --")


_KINDS = {str: "a text", int: "a whole number", float: "a number", list: "a list", bool: "true or false"}


def _short(value: object) -> str:
    return quote(yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).removesuffix("\n...\n").strip())


def _listed(names: Sequence[Any] | Mapping[str, Any]) -> str:
    return quoted([str(name) for name in names])
