"""TREC question types, fine."""

from ika_lightning.data.datasets.kinds import TextSet
from ika_lightning.data.download import RemoteFile, label_first

DATASET = TextSet(
    name="trec_fine",
    title="TREC question types, fine",
    licence="unclear",
    files={
        "train": RemoteFile(
            path="text_classification/trec/train_fine.tsv",
            url="https://cogcomp.seas.upenn.edu/Data/QA/QC/train_5500.label",
            size=335_859,
            sha256="4428b0118135b9122ac9671f66fe7fd45c61b08beacb591ddbdc2a1a09ea5834",
            convert=label_first("latin-1"),
        ),
        "test": RemoteFile(
            path="text_classification/trec/test_fine.tsv",
            url="https://cogcomp.seas.upenn.edu/Data/QA/QC/TREC_10.label",
            size=23_354,
            sha256="362f949499f30ea9c006498007971397ad6c9a46c75d598ce7b5729673785de3",
            convert=label_first("latin-1"),
        ),
    },
)
