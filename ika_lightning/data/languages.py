"""Where ``embedded/languages.tsv.gz`` comes from: phrases of the Unicode CLDR, by Babel.

    python -m ika_lightning.data.languages

writes the file anew. The package ships it, so that a first training needs neither Babel nor a network, and is the same
whichever edition of the CLDR is installed.
"""

import gzip
import random
import unicodedata
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import islice
from pathlib import Path

from ika_lightning.output import write_output

__all__ = ["LANGUAGES", "generate", "phrases"]

#: Some are of one family and hard to tell apart (Danish and Norwegian), some have a script of their own.
LANGUAGES = ("ar", "bg", "cs", "da", "de", "el", "en", "es", "fi", "fr", "he", "hu",
             "it", "ja", "nb", "nl", "pl", "pt", "ro", "ru", "sv", "tr", "uk", "zh")  # fmt: skip

_EACH = 400  # phrases of a language
_UNITS = ("area-square-kilometer", "duration-month", "duration-week", "duration-year", "length-kilometer",
          "length-meter", "mass-kilogram", "speed-kilometer-per-hour", "temperature-celsius",
          "volume-liter")  # fmt: skip


def phrases(language: str, rng: random.Random) -> Iterator[str]:
    """Draw phrases of a language without end: two or three dates, spans of time, measures, sums of money or names.

    One thing alone may well be the same in several languages.

    Args:
        language: Its code in the CLDR.
        rng: What draws.

    Yields:
        A phrase in Unicode's form NFC. Digits are those of the language's own default.

    Example:
        >>> next(phrases("en", random.Random(2)))
        'Friday, March 26, 1915 and 22 kilometers'
    """
    from babel import Locale, dates, lists, numbers, units

    locale = Locale(language)
    # only what this language itself has a name for
    names = [
        *(name for code, name in sorted(locale.languages.items()) if name != code),
        *(name for code, name in sorted(locale.territories.items()) if name != code),
        *(name for code, name in sorted(locale.currencies.items()) if name != code),
    ]
    currencies = sorted(locale.currencies)

    measures = [unit for unit in _UNITS if units.get_unit_name(unit, locale=locale)]

    def day() -> str:
        return dates.format_date(date(1900, 1, 1) + timedelta(days=rng.randrange(50_000)), "full", locale)

    def span() -> str:
        seconds = rng.choice([60, 3600, 86400]) * rng.randrange(2, 25) * rng.choice([-1, 1])
        return dates.format_timedelta(seconds, add_direction=True, threshold=1, locale=locale)

    def measure() -> str:
        return units.format_unit(rng.randrange(1, 100), rng.choice(measures), locale=locale)

    def money() -> str:
        amount, currency = rng.randrange(1, 100), rng.choice(currencies)
        return numbers.format_currency(amount, currency, "#,##0", locale, currency_digits=False, format_type="name")

    def name() -> str:
        return rng.choice(names)

    while True:
        things = [rng.choice([day, span, measure, money, name])() for _ in range(rng.randrange(2, 4))]
        yield unicodedata.normalize("NFC", lists.format_list(things, locale=locale))


def generate() -> bytes:
    r"""Draw the same number of phrases of each language; none that two of the languages share, however they write it.

    Returns:
        Rows of ``label<TAB>text``, gzipped; the label is the language's English name.

    Example:
        >>> gzip.decompress(generate()).decode().partition("\n")[0].split("\t")[0]
        'Arabic'
    """
    from babel import Locale

    # phrases by how they read whatever their case
    drawn = {
        code: {text.casefold(): text for text in islice(phrases(code, random.Random(code)), 4 * _EACH)}
        for code in LANGUAGES
    }
    known_by = Counter(form for own in drawn.values() for form in own)
    rows = []
    for code, own in drawn.items():
        texts = [text for form, text in own.items() if known_by[form] == 1][:_EACH]
        assert len(texts) == _EACH
        rows += [f"{Locale(code).get_language_name('en')}\t{text}\n" for text in texts]
    return gzip.compress("".join(rows).encode(), mtime=0)


if __name__ == "__main__":
    write_output(Path(__file__).parent / "embedded" / "languages.tsv.gz", generate())
