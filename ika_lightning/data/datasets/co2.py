"""Monthly CO2 at Mauna Loa."""

from ika_lightning.data.datasets.kinds import EMBEDDED, TableSet

DATASET = TableSet(
    name="co2",
    title="CO2 at Mauna Loa by month, 1974 to 2017",
    licence="public domain, see embedded/SOURCES.md",
    files={"table": EMBEDDED / "co2.csv"},
    target="co2_ppm",
    # the date has the year in it
    drop=("year",),
)
