"""Parallel text: sentences and their translations, read from files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ika_lightning.data.files import read_lines

__all__ = ["Pairs", "pair_up", "read_pairs"]


class Pairs(NamedTuple):
    """Sentences and their translations.

    Attributes:
        source: Sentences.
        target: Their translations, in the same order; none in prediction.
        empty: How many pairs were left out because a side was blank.
    """

    source: list[str]
    target: list[str]
    empty: int = 0

    def take(self, rows: Sequence[int]) -> "Pairs":
        """Some of the pairs.

        Args:
            rows: Which, from 0.
        """
        return Pairs([self.source[row] for row in rows], [self.target[row] for row in rows])


def pair_up(source: str | Path, target: str | Path) -> Pairs:
    """Read two files that are parallel, without blanks at the ends of lines, and leave out lines with a blank side.

    Args:
        source: Sentences, one a line.
        target: Their translations.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the files are not parallel, or there is nothing in them.
    """
    sides = [[line.strip() for line in read_lines(side)] for side in (source, target)]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"parallel files need as many lines each, but {source} has {len(sides[0])} and {target} has "
            f"{len(sides[1])}; line n of one has to be the translation of line n of the other"
        )
    both = [pair for pair in zip(*sides, strict=True) if all(pair)]
    if not both:
        raise ValueError(f"{source} and {target} have no line with text in both; give files with sentences")
    return Pairs([pair[0] for pair in both], [pair[1] for pair in both], empty=len(sides[0]) - len(both))


def read_pairs(file: Path, split: str, source: int, target: int) -> Pairs:
    """Read one split of a file whose lines are a split and a sentence in each language, separated by tabs.

    Args:
        file: The file.
        split: The split.
        source: The column of sentences, from 0.
        target: The column of translations.
    """
    rows = [line.split("\t") for line in read_lines(file)]
    chosen = [row for row in rows if row[0] == split]
    return Pairs([row[source] for row in chosen], [row[target] for row in chosen])
