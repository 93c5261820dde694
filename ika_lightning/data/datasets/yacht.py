"""UCI yacht hydrodynamics."""

from ika_lightning.data.datasets.kinds import TableSet
from ika_lightning.data.download import RemoteFile


def _with_header(original: bytes) -> bytes:
    """The published table has columns aligned with blanks, and no header."""
    header = ",".join([*(f"x{number}" for number in range(6)), "target"])
    rows = [",".join(line.split()[:7]) for line in original.decode("latin-1").splitlines() if line.strip()]
    return "\n".join([header, *rows, ""]).encode()


DATASET = TableSet(
    name="yacht",
    title="UCI yacht hydrodynamics",
    licence="CC BY 4.0",
    figure="RMSE 1.11 ± 0.38 over the 20 splits (MC-dropout, Gal and Ghahramani 2016)",
    files={
        "table": RemoteFile(
            path="regression/yacht.csv",
            url="https://archive.ics.uci.edu/ml/machine-learning-databases/00243/yacht_hydrodynamics.data",
            size=11_454,
            sha256="4bb84850cefde6066c5d3772c3d605bdad177069bcb0ab318f0fbbe266228646",
            convert=_with_header,
        ),
    },
    target="target",
    published_splits=True,
)
