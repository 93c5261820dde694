"""Box and Jenkins' airline passengers."""

from ika_lightning.data.datasets.kinds import EMBEDDED, TableSet

DATASET = TableSet(
    name="airline_passengers",
    title="airline passengers by month, 1949 to 1960",
    licence="see embedded/SOURCES.md",
    files={"table": EMBEDDED / "airline_passengers.csv"},
    target="passengers_thousands",
    drop=("year",),
)
