"""Generates the embedded translation data: dates, times, spans and units in English and German.

    python -m ika_lightning.data.dates

wrote ``embedded/dates.tsv.gz`` beside this file, and needs Babel (the extra ``demo``). The file is shipped, so that
training needs no Babel, and so that another version of it, with other words of another CLDR, changes no result.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path

from ika_lightning.data.datasets.kinds import EMBEDDED
from ika_lightning.output import write_output

SPLITS = {"train": 5000, "val": 500, "test": 500}
UNITS = (
    "length-kilometer", "length-meter", "length-centimeter", "length-mile", "length-foot", "length-light-year",
    "mass-kilogram", "mass-gram", "mass-pound", "duration-year", "duration-month", "duration-week", "duration-day",
    "duration-hour", "duration-minute", "duration-second", "temperature-celsius", "temperature-fahrenheit",
    "volume-liter", "area-hectare", "speed-kilometer-per-hour", "energy-kilowatt-hour", "angle-degree",
)  # fmt: skip


def generate(seed: int = 0) -> list[tuple[str, str, str]]:
    """Draw the pairs: each sentence of either language stands once, so every question has one answer.

    Args:
        seed: Seed of the draws.

    Returns:
        Split, English and German of each pair.
    """
    rng = random.Random(seed)
    kinds, weights = zip(*_KINDS.items(), strict=True)
    pairs: dict[str, str] = {}
    german: set[str] = set()
    while len(pairs) < sum(SPLITS.values()):
        (kind,) = rng.choices(kinds, weights)
        say = kind(rng)
        # blanks that keep a number with its unit, or hours with AM and PM, are not on everybody's keyboard
        en, de = (say(language).replace("\u202f", " ").replace("\xa0", " ") for language in ("en", "de"))
        if en not in pairs and de not in german:
            pairs[en] = de
            german.add(de)
    names = [name for name, count in SPLITS.items() for _ in range(count)]
    return [(name, en, de) for name, (en, de) in zip(names, pairs.items(), strict=True)]


def _day(rng: random.Random) -> date:
    return date(1900, 1, 1) + timedelta(days=rng.randrange(200 * 365))


def _date(rng: random.Random, style: str) -> Callable[[str], str]:
    from babel.dates import format_date

    day = _day(rng)
    return lambda language: format_date(day, style, language)


def _interval(rng: random.Random) -> Callable[[str], str]:
    from babel.dates import format_interval

    first = _day(rng)
    last = first + timedelta(days=rng.randrange(1, 100))
    return lambda language: format_interval(first, last, "yMMMd", locale=language)


def _quarter(rng: random.Random) -> Callable[[str], str]:
    from babel.dates import format_skeleton

    day = datetime.combine(_day(rng), datetime.min.time())
    return lambda language: format_skeleton("yQQQQ", day, locale=language)


def _time(rng: random.Random, style: str) -> Callable[[str], str]:
    from babel.dates import format_time

    moment = datetime(2000, 1, 1) + timedelta(seconds=rng.randrange(86_400))
    return lambda language: format_time(moment, style, locale=language)


def _relative(rng: random.Random) -> Callable[[str], str]:
    from babel.dates import format_timedelta

    seconds = rng.choice((1, 60, 3600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400))
    span = timedelta(seconds=rng.choice((-1, 1)) * rng.randrange(2, 100) * seconds)
    return lambda language: format_timedelta(span, threshold=1.5, add_direction=True, locale=language)


def _unit(rng: random.Random) -> Callable[[str], str]:
    from babel.units import format_unit

    unit, number = rng.choice(UNITS), rng.randrange(1, 10 ** rng.randrange(2, 7))
    amount = number / 10 if rng.random() < 0.5 else number
    return lambda language: format_unit(amount, unit, "long", locale=language)


# How to draw a sentence that can be said in several languages, and how often.
_KINDS: dict[Callable[[random.Random], Callable[[str], str]], int] = {
    lambda rng: _date(rng, "full"): 26,
    lambda rng: _date(rng, "long"): 16,
    lambda rng: _date(rng, "short"): 12,
    _interval: 12,
    _quarter: 3,
    lambda rng: _time(rng, "short"): 4,
    lambda rng: _time(rng, "medium"): 12,
    _relative: 3,
    _unit: 12,
}


def write(path: Path = EMBEDDED / "dates.tsv.gz") -> Path:
    """Write the pairs as tab-separated values, the same bytes each time."""
    text = "".join(f"{split}\t{en}\t{de}\n" for split, en, de in generate())
    return write_output(path, gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    print(write())
