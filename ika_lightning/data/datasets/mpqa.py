"""MPQA, polarity of phrases."""

from ika_lightning.data.datasets.kinds import TextSet
from ika_lightning.data.download import RemoteFile, label_first

DATASET = TextSet(
    name="mpqa",
    title="MPQA, polarity of phrases",
    licence="unclear",
    figure="accuracy 83.4 over 10 folds (CNN-rand, Kim 2014)",
    files={
        "train": RemoteFile(
            path="text_classification/mpqa/all.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/mpqa.all",
            size=None,
            sha256=None,
            convert=label_first("windows-1252"),
        ),
    },
    classes=("negative", "positive"),
    # their checksums are not known here
    rows={"train": 10606},
)
