"""What a study says: each variant beside the baseline, on each data set, by each measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ika_lightning.study.definition import Mode, Study
from ika_lightning.study.statistics import Mean, Paired, holm, mean, paired
from ika_lightning.study.table import Row

__all__ = ["LEVEL", "Comparison", "compare"]

#: Probability that an interval holds the true difference; what is significant is wrong with one minus it.
LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """A variant on a data set by a measure.

    Args:
        data: The data set.
        metric: The measure.
        mode: Whether less or more of it is better.
        variant: The variant.
        values: What was measured, by repeat; repeats without a number are left out.
        mean: Their mean.
        paired: How the variant differs from the baseline; None for the baseline, and where either has a repeat that
            came to nothing, as the repeats that are left would be those that went well.
        p: The probability of that, adjusted for all variants on the data set; NaN where it is None.
        seconds: Of its trainings.
        lost: Repeats that came to no number, as a training diverged.
    """

    data: str
    metric: str
    mode: Mode
    variant: str
    values: Mapping[str, float]
    mean: Mean
    paired: Paired | None
    p: float
    seconds: Mean
    lost: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """``"better"`` or ``"worse"`` than the baseline if that is significant, else nothing."""
        if self.paired is None or not self.p <= 1 - LEVEL:
            return ""
        return "better" if self.paired.gain > 0 else "worse"


def compare(study: Study, rows: Sequence[Row]) -> list[Comparison]:
    """Compare the variants of a study to its baseline, as far as there are results.

    Args:
        study: The study.
        rows: Its results.

    Returns:
        By data set, measure and variant, in the order of the study.
    """
    return [
        found
        for data in study.data
        for metric, mode in study.report.items()
        for found in _compare([row for row in rows if row.data == data], study, data, metric, mode)
    ]


def _compare(rows: Sequence[Row], study: Study, data: str, metric: str, mode: Mode) -> list[Comparison]:
    values: dict[str, dict[str, float]] = {}
    lost: dict[str, list[str]] = {}
    for row in rows:
        # a reference does not measure everything, and a training may have come to nothing
        if metric in row.measures:
            values.setdefault(row.variant, {})
            if math.isfinite(value := row.measures[metric]):
                values[row.variant][row.repeat] = value
            else:
                lost.setdefault(row.variant, []).append(row.repeat)
    baseline = values.get(study.baseline, {})
    found = []
    for variant in study.variants:
        if variant in values:
            seconds = mean([row.seconds for row in rows if row.variant == variant])
            own = values[variant]
            difference = None
            if variant != study.baseline and not {variant, study.baseline} & lost.keys():
                difference = paired(own, baseline, less_is_better=mode == "min", level=LEVEL)
            average = mean(list(own.values()))
            without = tuple(lost.get(variant, ()))
            found.append(Comparison(data, metric, mode, variant, own, average, difference, math.nan, seconds, without))
    adjusted = holm({each.variant: each.paired.p for each in found if each.paired is not None})
    return [replace(each, p=adjusted.get(each.variant, math.nan)) for each in found]
