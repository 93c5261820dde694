"""How far the tuning of variants on a data set is, and what is to be tried next: pure functions of what was tried.

All variants get the same number of trials. If the best settings of any of them are at an end of a range, what lies
beyond is tried as well, once, by all variants alike, with half as many trials again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ika_lightning.study.definition import Choice, Range, Tuning
from ika_lightning.study.search import End, beyond, ends, propose

__all__ = ["Trial", "Tried", "best", "budget", "due", "ends_to_widen", "ranges_of_trial"]

Ranges = Mapping[str, Range | Choice]


@dataclass(frozen=True)
class Tried:
    """A trial that is over.

    Args:
        value: What validation has measured.
        settings: With which values, by option.
    """

    value: float
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """A trial to make.

    Args:
        number: Which one of the variant.
        settings: The values, by option.
        ranges: The ranges that they are of.
    """

    number: int
    settings: Mapping[str, Any]
    ranges: Ranges


def best(tuning: Tuning, tried: Mapping[int, Tried]) -> Tried:
    """Return the best trial, the first of equals.

    Args:
        tuning: What is tuned.
        tried: Trials by their numbers, one or more.
    """
    sign = 1.0 if tuning.mode == "min" else -1.0
    return tried[min(tried, key=lambda number: (sign * tried[number].value, number))]


def budget(tuning: Tuning, wider: Sequence[End]) -> int:
    """Return the number of trials of each variant.

    Args:
        tuning: What is tuned.
        wider: The ends beyond which is searched as well.
    """
    return tuning.trials + (-(-tuning.trials // 2) if wider else 0)


def ends_to_widen(
    tuning: Tuning, ranges: Mapping[str, Ranges], tried: Mapping[str, Mapping[int, Tried]]
) -> tuple[End, ...] | None:
    """Return the ends that the best settings of any variant are at, and beyond which there is something.

    Args:
        tuning: What is tuned.
        ranges: The ranges of each variant.
        tried: The trials of each variant, by their numbers.

    Returns:
        The ends; None if some variant has not made its trials yet.
    """
    first = range(tuning.trials)
    if any(number not in tried[variant] for variant in ranges for number in first):
        return None
    found = {
        end
        for variant, own in ranges.items()
        for end in ends(own, best(tuning, {number: tried[variant][number] for number in first}).settings)
        if beyond(own[end.option], end.side) is not None
    }
    return tuple(sorted(found))


def due(
    tuning: Tuning, ranges: Ranges, tried: Mapping[int, Tried], running: Collection[int], wider: Sequence[End]
) -> Iterator[Trial]:
    """Go through the trials of a variant that can be begun.

    Args:
        tuning: What is tuned.
        ranges: The ranges of the variant.
        tried: Its trials that are over.
        running: The numbers of those that are being made.
        wider: The ends beyond which is searched as well, once that is known.
    """
    for number in range(budget(tuning, wider)):
        if number in tried or number in running:
            continue
        earlier = _earlier(tuning, number, wider)
        if tuning.sampler == "tpe" and any(before not in tried for before in earlier):
            continue
        # a quasi-random sequence does not look at what was measured
        values = [tried[before].value if tuning.sampler == "tpe" else 0.0 for before in earlier]
        own = ranges_of_trial(tuning, ranges, number, wider)
        seed = tuning.seed + _lane(tuning, number, wider)
        yield Trial(number, propose(own, tuning.sampler, seed, tuning.mode, values), own)


def ranges_of_trial(tuning: Tuning, ranges: Ranges, number: int, wider: Sequence[End]) -> Ranges:
    """Return the ranges of a trial: the variant's own, or for one of the later trials what lies beyond an end.

    Args:
        tuning: What is tuned.
        ranges: The ranges of the variant.
        number: Which trial.
        wider: The ends beyond which is searched as well.
    """
    lane = _lane(tuning, number, wider)
    if not lane:
        return ranges
    end = wider[lane - 1]
    # a variant that does not have the option tries as many settings of those that it has
    outer = beyond(ranges[end.option], end.side) if end.option in ranges else None
    return ranges if outer is None else {**ranges, end.option: outer}


def _lane(tuning: Tuning, number: int, wider: Sequence[End]) -> int:
    """Which sequence of settings a trial belongs to: 0 for the first trials, then one for each end, in turns."""
    return 0 if number < tuning.trials else 1 + (number - tuning.trials) % len(wider)


def _earlier(tuning: Tuning, number: int, wider: Sequence[End]) -> list[int]:
    """The trials before a trial in its sequence."""
    lane = _lane(tuning, number, wider)
    return [before for before in range(number) if _lane(tuning, before, wider) == lane]
