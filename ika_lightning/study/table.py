"""The results of a study as a table: a row for each cell, a column for each thing that is known of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from ika_lightning.study.cells import Identity

__all__ = ["Row", "to_csv"]


@dataclass(frozen=True)
class Row:
    """The result of a cell.

    Args:
        data: The data set.
        variant: The variant.
        repeat: The repeat, as a text.
        identity: What it is the result of.
        measures: What validation and testing have measured, by name.
        seconds: Of the training, by the clock.
        processor_seconds: Of the training, of all its threads together.
        peak_memory: Of its process, in MB; None where that is not known.
        updates: Of the weights, until the best checkpoint, which is tested; None of a reference.
        chosen: The values that tuning chose, by option.
        at_ends: Options whose value is at an end of its range, and which end; widened ranges included.
        versions: Versions of what computed it.
        host: The machine.
        changed: What of its identity is not what it would be today; empty if it is the same.
    """

    data: str
    variant: str
    repeat: str
    identity: Identity
    measures: Mapping[str, float]
    seconds: float
    processor_seconds: float
    peak_memory: float | None
    updates: int | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    at_ends: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    changed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what a ledger keeps of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any], changed: tuple[str, ...] = ()) -> Row:
        """Make a row of what a ledger has kept."""
        return cls(**{**kept, "identity": Identity(**kept["identity"]), "changed": changed})


def to_csv(rows: Sequence[Row]) -> bytes:
    """Write results as a table.

    Args:
        rows: The results, in the order of the table.

    Example:
        >>> row = Row("concrete", "MIKAN", "7", Identity("a", "b", "c"), {"test/rmse": 4.5}, 61.23, 60.0, None)
        >>> print(to_csv([row]).decode())
        data,variant,repeat,test/rmse,seconds,processor_seconds,...
        concrete,MIKAN,7,4.5,61.2,60.0,...
    """
    measures = sorted({name for row in rows for name in row.measures})
    versions = sorted({name for row in rows for name in row.versions})
    flat = [
        {
            "data": row.data,
            "variant": row.variant,
            "repeat": row.repeat,
            **{name: row.measures.get(name) for name in measures},
            "seconds": round(row.seconds, 1),
            "processor_seconds": round(row.processor_seconds, 1),
            "peak_memory_mb": None if row.peak_memory is None else round(row.peak_memory),
            "updates": row.updates,
            "chosen": json.dumps(row.chosen),
            "at_ends": json.dumps(row.at_ends),
            "configuration": row.identity.configuration,
            "data_hash": row.identity.data,
            "code": row.identity.code,
            **{name: row.versions.get(name) for name in versions},
            "host": row.host,
            "changed": " ".join(row.changed),
        }
        for row in rows
    ]
    # whole numbers, also where some are missing
    table = pd.DataFrame(flat).astype({"updates": "Int64"} if flat else {})
    return table.to_csv(index=False, lineterminator="\n").encode()
