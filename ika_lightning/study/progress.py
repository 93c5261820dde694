"""How far a study is, and how long it still takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

__all__ = ["duration", "seconds_to_go"]


def seconds_to_go(
    left: Mapping[tuple[str, str], int], seconds: Mapping[tuple[str, str], Sequence[float]], jobs: int
) -> float | None:
    """Estimate how long the trainings take that are left.

    A training takes as long as the mean of those of its variant on its data set; if there is none yet, of all on its
    data set, and else of all.

    Args:
        left: How many trainings are left of each variant on each data set; those that run count.
        seconds: How long trainings took.
        jobs: How many run at a time.

    Returns:
        Seconds; None if there is nothing to go by.

    Example:
        >>> seconds_to_go({("a", "x"): 2, ("a", "y"): 1}, {("a", "x"): [10.0, 20.0]}, jobs=3)
        15.0
    """
    known = {place: fmean(took) for place, took in seconds.items() if took}
    if not known:
        return None
    total = 0.0
    for (data, variant), count in left.items():
        near = [known[place] for place in known if place == (data, variant)]
        near = near or [known[place] for place in known if place[0] == data] or list(known.values())
        total += count * fmean(near)
    return total / jobs


def duration(seconds: float) -> str:
    """Say how long something takes, no more exactly than one cares to know.

    Example:
        >>> [duration(seconds) for seconds in (7.4, 100, 5000, 200_000)]
        ['7 s', '2 min', '1 h 23 min', '2 days 7 h']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"
