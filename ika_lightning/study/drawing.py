"""Pictures of a study: gains with their intervals, all repeats, and what a training takes beside what it reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ika_lightning.pictures.canvas import COLOURS, GREY, panels, shortened, styled
from ika_lightning.study.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["forest", "strip", "time_beside"]

_COLUMNS = 3
_LINE = 0.24


@styled
def forest(found: Sequence[Comparison], baseline: str) -> Figure:
    """Draw how much better than the baseline each variant is, with an interval, a panel for each data set.

    Args:
        found: Comparisons by one measure.
        baseline: What the variants are compared to.
    """

    def draw(panel: Axes, here: Sequence[Comparison], variants: Sequence[str]) -> None:
        panel.axvline(0.0, color=GREY, linewidth=0.8)
        for each in here:
            if each.paired is None:
                continue
            at = variants.index(each.variant)
            colour = {"better": COLOURS[0], "worse": COLOURS[1]}.get(each.verdict, GREY)
            if each.paired.count > 1:
                panel.plot([each.paired.low, each.paired.high], [at, at], color=colour, linewidth=1.5)
            panel.plot(each.paired.gain, at, "o", color=colour, markersize=4)
        panel.set_xlabel(f"gain in {found[0].metric}, 95 % interval")

    title = f"Gain over {baseline}: right is better"
    return _by_data([each for each in found if each.variant != baseline], title, draw)


@styled
def strip(found: Sequence[Comparison], baseline: str) -> Figure:
    """Draw what each repeat has measured, and the mean, a panel for each data set.

    Args:
        found: Comparisons by one measure.
        baseline: What the variants are compared to, whose mean is a line through the panel.
    """

    def draw(panel: Axes, here: Sequence[Comparison], variants: Sequence[str]) -> None:
        for each in here:
            at = variants.index(each.variant)
            if each.variant == baseline:
                panel.axvline(each.mean.value, color=GREY, linewidth=0.8)
            values = np.array(list(each.values.values()))
            # above and below the line, in turns, for equal values to be told apart
            spread = 0.22 if len(values) > 1 else 0.0
            heights = at + np.linspace(-spread, spread, len(values))
            panel.plot(values, heights, "o", color=COLOURS[0], markersize=3, alpha=0.5, markeredgewidth=0)
            panel.plot([each.mean.value] * 2, [at - 0.32, at + 0.32], color=COLOURS[1], linewidth=1.6)
        panel.set_xlabel(_axis(found[0]))

    return _by_data(found, f"All repeats and their means (line: {baseline})", draw)


@styled
def time_beside(found: Sequence[Comparison], baseline: str) -> Figure:
    """Draw what a training takes beside what it reaches, a panel for each data set.

    Args:
        found: Comparisons by one measure.
        baseline: What the variants are compared to.
    """
    variants = _variants(found)
    data = list(dict.fromkeys(each.data for each in found))
    figure, axes = _grid(
        len(data), "Time of a training beside what it reaches", height=1.7, left=0.75, gap=(0.75, 0.62), bottom=0.85
    )
    for panel, name in zip(_flat(figure, axes, len(data)), data, strict=True):
        here = [each for each in found if each.data == name]
        for each in here:
            colour = COLOURS[variants.index(each.variant) % len(COLOURS)]
            marker = "D" if each.variant == baseline else "o"
            label = shortened(each.variant, 24)
            panel.plot(each.seconds.value, each.mean.value, marker, color=colour, markersize=5, label=label)
        panel.set_title(shortened(name, 40))
        panel.set_xscale("log")
        panel.margins(0.15)
        panel.set(xlabel="seconds", ylabel=_axis(found[0]))
        _plain_numbers(panel)
    handles, labels = axes[0][0].get_legend_handles_labels()
    everywhere = dict(zip(labels, handles, strict=True))
    for row in axes:
        for panel in row:
            everywhere.update(dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True)))
    figure.legend(everywhere.values(), everywhere.keys(), loc="lower center", ncols=min(5, len(everywhere)))
    return figure


def _by_data(
    found: Sequence[Comparison], title: str, draw: Callable[[Axes, Sequence[Comparison], Sequence[str]], None]
) -> Figure:
    """A panel for each data set, a line in it for each variant, the first at the top."""
    variants, data = _variants(found), list(dict.fromkeys(each.data for each in found))
    names = [shortened(variant, 24) for variant in variants]
    left = 0.25 + 0.068 * max(map(len, names))
    figure, axes = _grid(len(data), title, height=0.2 + _LINE * len(variants), left=left, gap=(0.3, 0.62))
    for number, (panel, name) in enumerate(zip(_flat(figure, axes, len(data)), data, strict=True)):
        draw(panel, [each for each in found if each.data == name], variants)
        panel.set_title(shortened(name, 40))
        panel.set_ylim(len(variants) - 0.5, -0.5)
        panel.set_yticks(range(len(variants)), names if number % _COLUMNS == 0 else [""] * len(names))
        panel.tick_params(axis="y", length=0)
    return figure


def _grid(
    count: int, title: str, *, height: float, left: float, gap: tuple[float, float], bottom: float = 0.5
) -> tuple[Figure, list[list[Axes]]]:
    """Make room for so many panels."""
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    # wide enough for the title of a figure of a single panel
    width = 2.3 if columns > 1 else 4.6
    return panels(rows, columns, title, width=width, height=height, left=left, top=0.6, bottom=bottom, gap=gap)


def _flat(figure: Figure, axes: list[list[Axes]], count: int) -> list[Axes]:
    """The panels that are drawn into; others are taken away."""
    every = [panel for row in axes for panel in row]
    for panel in every[count:]:
        figure.delaxes(panel)
    return every[:count]


def _variants(found: Sequence[Comparison]) -> list[str]:
    return list(dict.fromkeys(each.variant for each in found))


def _axis(each: Comparison) -> str:
    return f"{each.metric}, {'less' if each.mode == 'min' else 'more'} is better"


def _plain_numbers(panel: Axes) -> None:
    """Seconds as people write them, at two or three places."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panel.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
