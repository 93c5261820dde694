"""Which settings are tried: by Optuna, as a function of ranges, seed and what was measured, and of nothing else.

A sampler of Optuna draws from a state of its own, which a process that is killed takes with it, and which depends on
how many processes ask it. Here, the settings of trial k come from a new sampler that is told all trials before. So they
are the same however often a study is interrupted, and however many work on it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, QMCSampler, TPESampler
from optuna.study import StudyDirection

from ika_lightning.study.definition import Choice, Mode, Range, Sampler

__all__ = ["End", "beyond", "distribution", "ends", "propose", "widened"]

# The outermost share of a range that counts as its end.
_END = 0.1
# By how much of its width a range is widened.
_WIDENING = 0.5

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, order=True)
class End:
    """An end of the range of an option.

    Args:
        option: The option.
        side: Which of its ends.
    """

    option: str
    side: Literal["low", "high"]


def distribution(range_: Range | Choice) -> BaseDistribution:
    """Return what Optuna calls a range.

    Example:
        >>> distribution(Range(1, 9))
        IntDistribution(high=9, log=False, low=1, step=1)
    """
    match range_:
        case Choice(values):
            return CategoricalDistribution(values)
        case Range(low, high, log) if range_.whole:
            return IntDistribution(int(low), int(high), log=log)
        case Range(low, high, log):
            return FloatDistribution(low, high, log=log)


def propose(
    ranges: Mapping[str, Range | Choice], sampler: Sampler, seed: int, mode: Mode, before: Sequence[float]
) -> dict[str, Any]:
    """Return the settings of the next trial.

    Args:
        ranges: The ranges.
        sampler: How settings are chosen. A quasi-random sequence does not look at what was measured.
        seed: Seed of the sampler.
        mode: Whether less or more is better.
        before: What the trials before have measured, in their order.

    Example:
        >>> ranges = {"lr": Range(0.001, 0.1, log=True)}
        >>> a, b = (propose(ranges, "quasi-random", 0, "min", before) for before in ([], [1.0]))
        >>> a != b, a == propose(ranges, "quasi-random", 0, "min", [])
        (True, True)
    """
    space = {option: distribution(each) for option, each in ranges.items()}
    with warnings.catch_warnings():
        # of the sampler and of options of it that are experimental, and of what a fixed seed does not mind
        warnings.simplefilter("ignore")
        direction = StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE
        study = optuna.create_study(sampler=_sampler(sampler, seed), direction=direction)
        for value in before:
            study.tell(study.ask(space), value)
        return dict(study.ask(space).params)


def _sampler(sampler: Sampler, seed: int) -> BaseSampler:
    if sampler == "tpe":
        # below ten, it would only draw at random
        return TPESampler(seed=seed, n_startup_trials=4)
    return QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)


def ends(ranges: Mapping[str, Range | Choice], settings: Mapping[str, Any]) -> list[End]:
    """Return the ends of ranges that settings are at: in the outer tenth of the range, or the first or last choice.

    Args:
        ranges: The ranges.
        settings: A value for each.

    Example:
        >>> ends({"lr": Range(0.001, 0.1, log=True), "width": Choice((8, 16))}, {"lr": 0.0012, "width": 16})
        [End(option='lr', side='low'), End(option='width', side='high')]
    """
    found = []
    for option, range_ in ranges.items():
        value = settings[option]
        if isinstance(range_, Range):
            at = range_.position(value)
        elif _is_grid(range_):
            at = sorted(range_.values).index(value) / (len(range_.values) - 1)
        else:
            # texts have no order, and so no ends
            continue
        if at <= _END:
            found.append(End(option, "low"))
        if at >= 1 - _END:
            found.append(End(option, "high"))
    return found


def _is_grid(choice: Choice) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in choice.values)


def beyond(range_: Range | Choice, side: Literal["low", "high"]) -> Range | None:
    """Return what lies beyond an end of a range: half of the range's width, as far as its limits let it be.

    Args:
        range_: The range.
        side: Which of its ends.

    Returns:
        The range to try besides; None if there is nothing beyond, or the range is a choice.

    Example:
        >>> beyond(Range(0.0, 1.0), "high"), beyond(Range(0.01, 1.0, log=True), "low")
        (Range(low=1.0, high=1.5, ...), Range(low=0.001, high=0.01, log=True, ...))
        >>> beyond(Range(0.0, 1.0, limits=(0.0, 1.2)), "low") is None
        True
    """
    if isinstance(range_, Choice):
        return None
    least, most = range_.limits
    if range_.log:
        step = (range_.high / range_.low) ** _WIDENING
        low, high = range_.low / step, range_.high * step
    else:
        step = (range_.high - range_.low) * _WIDENING
        low, high = range_.low - step, range_.high + step
    inner_low, inner_high = range_.low, range_.high
    if range_.whole:
        # without the end itself, which was tried
        inner_low, inner_high = range_.low - 1, range_.high + 1
        low, high = math.floor(low), math.ceil(high)
        # ratios of whole numbers begin at 1
        least = max(least, 1) if range_.log else least
        low, high = math.ceil(max(low, least)), math.floor(min(high, most))
    low, high = max(low, least), min(high, most)
    outer = (low, inner_low) if side == "low" else (inner_high, high)
    if outer[0] > outer[1] or (outer[0] == outer[1] and not range_.whole):
        return None
    return replace(range_, low=outer[0], high=outer[1])


def widened(ranges: Mapping[str, Range | Choice], beyond_ends: Sequence[End]) -> dict[str, Range | Choice]:
    """Return ranges together with what lies beyond some of their ends.

    Args:
        ranges: The ranges.
        beyond_ends: The ends, some of which may be of other ranges.

    Example:
        >>> widened({"dropout": Range(0.0, 0.4)}, [End("dropout", "high"), End("width", "low")])
        {'dropout': Range(low=0.0, high=0.6000000000000001, ...)}
    """
    wide = dict(ranges)
    for end in beyond_ends:
        inner = ranges.get(end.option)
        outer = beyond(inner, end.side) if inner is not None else None
        now = wide.get(end.option)
        if outer is not None and isinstance(now, Range):
            wide[end.option] = replace(now, low=outer.low) if end.side == "low" else replace(now, high=outer.high)
    return wide
