"""Customer reviews, polarity of sentences."""

from ika_lightning.data.datasets.kinds import TextSet
from ika_lightning.data.download import RemoteFile, label_first

DATASET = TextSet(
    name="cr",
    title="Customer reviews, polarity of sentences",
    licence="unclear",
    figure="accuracy 79.8 over 10 folds (CNN-rand, Kim 2014)",
    files={
        "train": RemoteFile(
            path="text_classification/cr/all.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/custrev.all",
            size=None,
            sha256=None,
            convert=label_first("windows-1252"),
        ),
    },
    classes=("negative", "positive"),
    # their checksums are not known here
    rows={"train": 3775},
)
