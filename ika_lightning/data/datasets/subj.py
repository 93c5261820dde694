"""Subjectivity of sentences."""

from ika_lightning.data.datasets.kinds import TextSet
from ika_lightning.data.download import RemoteFile, label_first

DATASET = TextSet(
    name="subj",
    title="Subjectivity of sentences",
    licence="unclear",
    figure="accuracy 89.6 over 10 folds (CNN-rand, Kim 2014)",
    files={
        "train": RemoteFile(
            path="text_classification/subj/all.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/subj.all",
            size=1_310_417,
            sha256="f031e3423d5d75bba4517c1a35212bc2c6ff45bb7fd9d029ba70b887230bf762",
            convert=label_first("windows-1252"),
        ),
    },
    classes=("subjective", "objective"),
)
