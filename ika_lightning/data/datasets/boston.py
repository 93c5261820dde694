"""Boston housing."""

from ika_lightning.data.datasets.kinds import TableSet
from ika_lightning.data.download import RemoteFile


def _housing(original: bytes) -> bytes:
    """UCI's housing.data has columns aligned with blanks, and no header."""
    header = "CRIM,ZN,INDUS,CHAS,NOX,RM,AGE,DIS,RAD,TAX,PTRATIO,B,LSTAT,MEDV"
    rows = [",".join(line.split()) for line in original.decode("latin-1").splitlines() if line.strip()]
    return "\n".join([header, *rows, ""]).encode()


DATASET = TableSet(
    name="boston",
    title="Boston housing",
    licence="unclear; mind the ethical objection to column B",
    figure="RMSE 2.97 ± 0.85 over the 20 splits (MC-dropout, Gal and Ghahramani 2016)",
    files={
        "table": RemoteFile(
            path="regression/boston.csv",
            url="https://archive.ics.uci.edu/ml/machine-learning-databases/housing/housing.data",
            size=41_359,
            sha256="ebf8b4a9ceaf375f9591be7b862b3eafc6efc952251e77f09dd6c2df9e216ba0",
            convert=_housing,
        ),
    },
    target="MEDV",
    published_splits=True,
)
