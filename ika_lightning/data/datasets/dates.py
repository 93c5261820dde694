"""Dates, times and units in English and German; see :mod:`ika_lightning.data.dates`."""

from ika_lightning.data.datasets.kinds import EMBEDDED, ParallelSet

DATASET = ParallelSet(
    name="dates",
    title="dates, times and units in English and German",
    licence="Unicode, see embedded/LICENSE.unicode",
    files={"pairs": EMBEDDED / "dates.tsv.gz"},
    languages=("en", "de"),
)
