"""UCI Parkinsons telemonitoring."""

from ika_lightning.data.datasets.kinds import TableSet
from ika_lightning.data.download import RemoteFile


def _parkinsons(original: bytes) -> bytes:
    """UCI's header calls the first column ``subject#``; total_UPDRS stands sixth and goes last, as a target does."""
    rows = [line.split(",") for line in original.decode("latin-1").splitlines() if line.strip()]
    moved = [",".join(cells[:5] + cells[6:] + cells[5:6]) for cells in rows]
    return "\n".join([*moved, ""]).replace("subject#", "subject", 1).encode()


DATASET = TableSet(
    name="parkinsons",
    title="UCI Parkinsons telemonitoring",
    licence="CC BY 4.0",
    files={
        "table": RemoteFile(
            path="regression/parkinsons.csv",
            url="https://archive.ics.uci.edu/ml/machine-learning-databases/parkinsons/telemonitoring/"
            "parkinsons_updrs.data",
            size=911_261,
            sha256="6023ead439dd011151a6070ec2d56e9e3703142757f86104db7cfe2a44ecf696",
            convert=_parkinsons,
        ),
    },
    target="total_UPDRS",
    # the other target; who it is
    drop=("motor_UPDRS", "subject"),
    group="subject",
)
