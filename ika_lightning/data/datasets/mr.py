"""Movie reviews, polarity of sentences."""

from ika_lightning.data.datasets.kinds import TextSet
from ika_lightning.data.download import RemoteFile, label_first

DATASET = TextSet(
    name="mr",
    title="Movie reviews, polarity of sentences",
    licence="unclear",
    figure="accuracy 76.1 over 10 folds (CNN-rand, Kim 2014)",
    files={
        "train": RemoteFile(
            path="text_classification/mr/all.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/rt-polarity.all",
            size=1_249_474,
            sha256="42351736f55d212e37e6dbd1671b2d0932b3c79fb07cbdd4b8f250d3f978c918",
            convert=label_first("windows-1252"),
        ),
    },
    classes=("negative", "positive"),
)
