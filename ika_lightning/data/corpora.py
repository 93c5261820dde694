"""Parallel text: the corpora that are known by name, and pairs of files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from ika_lightning.data.download import RemoteFile, fetch, find
from ika_lightning.data.files import read_lines

__all__ = ["CORPORA", "Corpus", "CorpusFiles", "EmbeddedDates", "Pairs", "pair_up"]

#: The embedded pairs: split, English and German in each line.
DATES = Path(__file__).parent / "embedded" / "dates.tsv.gz"


class Pairs(NamedTuple):
    """Sentences and their translations.

    Attributes:
        source: Sentences.
        target: Their translations, in the same order.
        empty: How many pairs were left out because a side was blank.
    """

    source: list[str]
    target: list[str]
    empty: int = 0


class Corpus(Protocol):
    """A parallel corpus known by name."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Its languages; the first two are source and target if nobody says otherwise."""

    @property
    def published_in_lowercase(self) -> bool:
        """Whether its published BLEU is that of lower-cased, tokenised text."""

    def pairs(self, split: str, source: str, target: str, root: str | None = None) -> Pairs:
        """Read a split in a direction.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            source: The language to translate from.
            target: The language to translate to.
            root: See :func:`ika_lightning.data.download.data_root`.

        Raises:
            FileNotFoundError: If a file is not on this computer and cannot be downloaded.
        """


class EmbeddedDates:
    """Dates, times and units, which ship with the package; see :mod:`ika_lightning.data.dates`.

    Example:
        >>> pairs = EmbeddedDates().pairs("test", "de", "en")
        >>> pairs.source[1], pairs.target[1]
        ('22. Juni 2023', 'June 22, 2023')
    """

    languages = ("en", "de")
    published_in_lowercase = False

    def pairs(self, split: str, source: str, target: str, root: str | None = None) -> Pairs:
        """Read a split in a direction; ``root`` is not looked at."""
        rows = [line.split("\t") for line in read_lines(DATES)]
        chosen = [row for row in rows if row[0] == split]
        first, second = (1 + self.languages.index(language) for language in (source, target))
        return Pairs([row[first] for row in chosen], [row[second] for row in chosen])


@dataclass(frozen=True)
class CorpusFiles:
    """A corpus in files ``<root>/translation/<name>/<split>.<language>.gz``.

    Args:
        name: Its folder.
        languages: Its languages.
        splits: What its files call training, validation and testing.
        url: Where the files can be downloaded, with ``{file}`` for a file's name; or where the original is.
        checksums: Size and sha256 of the files that can be downloaded.
        published_in_lowercase: Whether its published BLEU is that of lower-cased, tokenised text.
    """

    name: str
    languages: tuple[str, ...]
    splits: dict[str, str]
    url: str
    checksums: dict[str, tuple[int, str]] = field(default_factory=dict)
    published_in_lowercase: bool = True

    def pairs(self, split: str, source: str, target: str, root: str | None = None) -> Pairs:
        """Read a split in a direction; files that are not there are downloaded if they can be."""
        return pair_up(*(self._file(split, language, root) for language in (source, target)))

    def _file(self, split: str, language: str, root: str | None) -> Path:
        file = f"{self.splits[split]}.{language}.gz"
        path = f"translation/{self.name}/{file}"
        if file in self.checksums:
            return fetch(RemoteFile(path, self.url.format(file=file), *self.checksums[file]), root)
        return find(path, root, otherwise=f"put it there, one sentence a line; the original is {self.url}")


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


CORPORA: dict[str, Corpus] = {
    "dates": EmbeddedDates(),
    "multi30k": CorpusFiles(
        name="multi30k",
        languages=("en", "de", "fr"),
        splits={"train": "train", "val": "val", "test": "test_2016_flickr"},
        url="https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/{file}",
        checksums={
            "test_2016_flickr.de.gz": (22_890, "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"),
            "test_2016_flickr.en.gz": (21_077, "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"),
            "test_2016_flickr.fr.gz": (22_310, "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90"),
            "train.de.gz": (637_044, "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
            "train.en.gz": (568_929, "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
            "train.fr.gz": (604_242, "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c"),
            "val.de.gz": (24_681, "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"),
            "val.en.gz": (21_650, "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
            "val.fr.gz": (23_001, "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9"),
        },
    ),
    "iwslt14": CorpusFiles(
        name="iwslt14",
        languages=("de", "en"),
        splits={"train": "train", "val": "val", "test": "test"},
        url="https://wit3.fbk.eu/archive/2014-01/texts/de/en/de-en.tgz",
    ),
}
