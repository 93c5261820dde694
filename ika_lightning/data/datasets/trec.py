"""TREC question types, coarse."""

from ika_lightning.data.datasets.kinds import TextSet
from ika_lightning.data.download import RemoteFile, label_first

DATASET = TextSet(
    name="trec",
    title="TREC question types, coarse",
    licence="unclear",
    figure="accuracy 91.2 (CNN-rand, Kim 2014)",
    files={
        "train": RemoteFile(
            path="text_classification/trec/train.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/TREC.train.all",
            size=292_403,
            sha256="09ba0b820f9d469d291211478c46ae8cc64070b6f3935a5a23ad89f58eb5bd64",
            convert=label_first("latin-1"),
        ),
        "test": RemoteFile(
            path="text_classification/trec/test.tsv",
            url="https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/TREC.test.all",
            size=19_479,
            sha256="20813be1306604e1b54386dc9ef13d6c777cac26f17e479cad07f3706d05df89",
            convert=label_first("latin-1"),
        ),
    },
    classes=("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM"),
)
