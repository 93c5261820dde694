"""Which of 24 languages is a phrase of? See :mod:`ika_lightning.data.languages`."""

from ika_lightning.data.datasets.kinds import EMBEDDED, TextSet

DATASET = TextSet(
    name="languages",
    title="phrases of 24 languages",
    licence="Unicode, see embedded/LICENSE.unicode",
    files={"train": EMBEDDED / "languages.tsv.gz"},
)
