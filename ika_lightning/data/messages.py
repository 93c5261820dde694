"""Words for what this package says about data: names in quotes, hints, and notes that are no warnings."""

import difflib
import sys
from collections.abc import Iterable, Sequence

from lightning.pytorch.utilities import rank_zero_only

__all__ = ["InMemory", "closest", "none_held_out", "option", "quote", "quoted", "row_of", "say"]


class InMemory(str):
    """The name of a table that a person holds in Python: its rows count from 0, and its options are arguments.

    Example:
        >>> row_of(InMemory("X"), 3), option(InMemory("X"), "missing", "mean")
        ('row 3', "missing='mean'")
    """

    __slots__ = ()


def row_of(source: str, place: int) -> str:
    """How a person finds a row.

    Args:
        source: What errors call the table.
        place: Where the row is, from 0.

    Example:
        >>> row_of("rows.csv", 3)
        'row 4'
    """
    return f"row {place if isinstance(source, InMemory) else place + 1}"


def option(source: str, name: str, value: str) -> str:
    """How a person sets an option of the data.

    Args:
        source: What errors call the table.
        name: The option.
        value: What to set it to.

    Example:
        >>> option("rows.csv", "missing", "mean")
        '--data.missing mean'
    """
    return f"{name}={value!r}" if isinstance(source, InMemory) else f"--data.{name} {value}"


def closest(name: str, known: Iterable[str]) -> str:
    """A hint for an error about an unknown name.

    Args:
        name: What was given.
        known: What there is.

    Returns:
        `` (did you mean ...?)``, or nothing if no known name is close.

    Example:
        >>> closest("bostom", ["boston", "co2"])
        " (did you mean 'boston'?)"
    """
    match = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def quote(text: str, most: int = 80) -> str:
    r"""A text in quotes and on one line, cut short if it is long.

    Args:
        text: The text.
        most: How many characters of it to show.

    Example:
        >>> quote("two\nlines"), quote("abcdefgh", most=5)
        ("'two\\nlines'", "'abcde...'")
    """
    return repr(text if len(text) <= most else f"{text[:most]}...")


def quoted(names: Sequence[str], most: int = 10) -> str:
    """Names for an error message, cut short if they are many.

    Args:
        names: The names.
        most: How many to show.

    Returns:
        The names in quotes, separated by commas.

    Example:
        >>> quoted(["a", "b", "c"], most=2)
        "'a', 'b', ... (3 in all)"
    """
    shown = ", ".join(map(quote, names[:most]))
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def none_held_out(samples: str, test_fraction: float) -> str:
    """An error about testing where nothing is held out for it.

    Args:
        samples: What would be.
        test_fraction: Which share of them.
    """
    return (
        f"there are no test {samples}, as test_fraction={test_fraction}; give a file with --data.test_path, or train "
        "with --data.test_fraction 0.1"
    )


@rank_zero_only
def say(message: str) -> None:
    """Tell the user how data was read: one line on standard error, where no prediction goes.

    Args:
        message: The line.
    """
    print(message, file=sys.stderr)
