"""What a model answers: predictions beside the truth, classes that are taken for one another, nodes in the plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ika_lightning.pictures.canvas import COLOURS, GREY, array, colour_bar, few_ticks, panels, shortened, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# --- Numbers ----------------------------------------------------------------------------------------------------------


def principal_components(x: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """Project points on the directions in which they spread most.

    The sign of each direction is the one that makes its largest coordinate positive, so that it does not flip from
    one time to the next.

    Args:
        x: Points, (r, f).
        count: Number of components, c; where points have fewer coordinates the rest is zero.

    Returns:
        The components of each point, (r, c), and the share of the variance that each has, (c,).

    Example:
        >>> points = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 5.0]])
        >>> principal_components(points)[0].tolist()
        [[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]]
    """
    x = x.detach().cpu()  # not every device has float64
    centred = (x - x.mean(0)).double()
    _, size, directions = torch.linalg.svd(centred, full_matrices=False)
    count_there = min(count, len(size))
    directions = directions[:count_there]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    components = centred @ (directions * torch.where(largest < 0, -1.0, 1.0)).mT
    share = size.square() / size.square().sum().clamp_min(1e-300)
    missing = count - count_there
    components = torch.nn.functional.pad(components, (0, missing)) + 0.0  # no negative zeros
    return components.to(x.dtype), torch.nn.functional.pad(share[:count_there], (0, missing)).to(x.dtype)


def observed_coverage(errors: Tensor, levels: Tensor) -> Tensor:
    r"""Which share of targets is inside of the central intervals of normal distributions.

    Args:
        errors: How far targets are from the means, in standard deviations, (r,).
        levels: Which share should be, (k,), each in [0, 1).

    Returns:
        The shares, (k,).

    Example:
        >>> observed_coverage(torch.tensor([0.1, -0.5, 2.0, -3.0]), torch.tensor([0.1, 0.5, 0.95]))
        tensor([0.2500, 0.5000, 0.5000])
    """
    # of a level of 0.95, 1.96
    half = math.sqrt(2.0) * torch.erfinv(levels)
    return (errors.abs() <= half.unsqueeze(-1)).to(levels.dtype).mean(-1)


# --- Drawing ----------------------------------------------------------------------------------------------------------

_MAX_CLASSES = 40
_MAX_POINTS = 3000


@styled
def draw_fit(
    row: Tensor, predicted: Tensor, target: Tensor, unit: str, interval: tuple[Tensor, Tensor] | None = None
) -> Figure:
    """Draw predictions and truth over the rows of the table, one against the other, and what is left over.

    Args:
        row: The row of each prediction in its table, (r,), which for a series is the time.
        predicted: Predictions, (r,).
        target: The truth, (r,).
        unit: What is predicted, for the axes.
        interval: Lower and upper ends of intervals around predictions, each (r,), if there are any.

    Example:
        >>> x = torch.arange(5.0)
        >>> len(draw_fit(torch.arange(5), x + 0.1, x, "ppm").axes)
        3
    """
    order = row.argsort()
    order = order[:: -(-len(order) // _MAX_POINTS)]
    x, y, truth = (array(values[order].double()) for values in (row + 1, predicted, target))
    unit = shortened(unit, 24)
    rmse = (predicted - target).double().square().mean().sqrt().item()
    figure, axes = panels(
        1, 3, f"Fit of {len(row)} rows: RMSE {rmse:.4g}", width=2.5, height=1.9, gap=(0.6, 0), top=0.5
    )
    over, against, left = axes[0]
    # neighbouring rows are a series
    line = "-" if len(x) > 2 and (x[1:] - x[:-1] == 1).all() else "."
    if interval is not None:
        low, high = (array(end[order].double()) for end in interval)
        # a residual is inside of its bar if the truth is inside of the interval
        for panel, ends in ((over, (low, high)), (left, (y - high, y - low))):
            if line == "-":
                panel.fill_between(x, ends[0], ends[1], color=COLOURS[5], alpha=0.35, linewidth=0, label="interval")
            else:
                panel.vlines(x, ends[0], ends[1], color=COLOURS[5], alpha=0.5, linewidth=1.6, label="interval")
    over.vlines(x, truth, y, color=GREY, linewidth=0.6)
    over.plot(x, truth, ".", color=GREY, markersize=4, label="truth")
    over.plot(x, y, line, color=COLOURS[0], linewidth=0.9, markersize=3, label="prediction")
    over.set(xlabel="row of the table", ylabel=unit)
    over.legend(loc="upper left", handlelength=1.2)
    low, high = min(y.min(), truth.min()), max(y.max(), truth.max())
    against.plot([low, high], [low, high], color=GREY, linestyle="--", linewidth=0.8)
    against.plot(truth, y, ".", color=COLOURS[0], markersize=3)
    against.set(xlabel=f"true {unit}", ylabel=f"predicted {unit}")
    left.axhline(0.0, color=GREY, linestyle="--", linewidth=0.8)
    left.plot(x, y - truth, ".", color=COLOURS[1], markersize=3)
    left.set(xlabel="row of the table", ylabel=f"residual, {unit}")
    for panel in axes[0]:
        few_ticks(panel)
    return figure


@styled
def draw_calibration(errors: Tensor) -> Figure:
    """Draw which share of targets is inside of central intervals, against that which should be.

    Below the diagonal, standard deviations are too small; above it, too large. The band is where 95 % of the points of
    a model are that is right, each for itself: how far so few rows can tell.

    Args:
        errors: How far targets are from the means, in standard deviations, (r,).

    Example:
        >>> len(draw_calibration(torch.randn(31)).axes)
        1
    """
    levels = torch.linspace(0.0, 0.99, 100, dtype=torch.float64)
    observed = observed_coverage(errors.detach().cpu().double(), levels)
    spread = 1.96 * (levels * (1.0 - levels) / len(errors)).sqrt()
    figure, axes = panels(1, 1, f"Calibration on {len(errors)} rows", width=2.1, height=2.1, top=0.4)
    (panel,) = axes[0]
    nominal, low, high = array(levels), array((levels - spread).clamp(0, 1)), array((levels + spread).clamp(0, 1))
    panel.fill_between(nominal, low, high, color=GREY, alpha=0.25, linewidth=0, label="chance")
    panel.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=0.8)
    panel.plot(nominal, array(observed), color=COLOURS[0], linewidth=1.2, label="observed")
    panel.set(xlabel="share that should be inside", ylabel="share that is inside", xlim=(0, 1), ylim=(0, 1))
    panel.legend(loc="upper left", handlelength=1.2)
    few_ticks(panel)
    return figure


@styled
def draw_confusion(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Draw which class is taken for which: colours are shares of the true class, numbers count mistakes.

    Args:
        counts: How many samples of class i were taken for class j, (c, c).
        classes: Names of the classes.

    Example:
        >>> len(draw_confusion(torch.tensor([[5, 1], [0, 7]]), ["bad", "good"]).axes)
        2
    """
    counts, classes = counts[:_MAX_CLASSES, :_MAX_CLASSES], classes[:_MAX_CLASSES]
    share = array(counts / counts.sum(1, keepdim=True).clamp_min(1))
    side = max(1.6, 0.2 * len(classes))
    right = sum(counts.diagonal().tolist()) / max(1, int(counts.sum()))
    figure, axes = panels(
        1, 1, f"Confusion: {right:.1%} right", width=side, height=side, left=1.05, bottom=1.0, top=0.4, right=0.85
    )
    (panel,) = axes[0]
    image = panel.imshow(share, vmin=0.0, vmax=1.0, cmap="cividis")
    names, ticks = [shortened(name, 12) for name in classes], range(len(classes))
    size = 7 if len(classes) <= 24 else 6
    panel.set_xticks(ticks, names, rotation=90, fontsize=size)
    panel.set_yticks(ticks, names, fontsize=size)
    panel.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 24:
        for i, j in counts.nonzero().tolist():
            if i != j or len(classes) <= 8:
                colour = "black" if share[i, j] > 0.55 else "white"
                panel.text(j, i, str(int(counts[i, j])), ha="center", va="center", fontsize=6, color=colour)
    colour_bar(figure, image, panel, "share of the true class")
    return figure


@styled
def draw_embeddings(x: Tensor, label: Tensor, classes: Sequence[str]) -> Figure:
    """Draw points in the plane of their first two principal components, coloured by class.

    Up to eight classes have a colour of their own, and each has its own marker among those of its colour.

    Args:
        x: Points, (r, f).
        label: Their classes, (r,); -1 where unknown.
        classes: Names of the classes.

    Example:
        >>> figure = draw_embeddings(torch.randn(9, 4), torch.arange(9) % 3 - 1, ["a", "b"])
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['unknown', 'a', 'b']
    """
    step = -(-len(x) // _MAX_POINTS)
    components, share = principal_components(x)
    points, label = array(components[::step]), label[::step].cpu()
    figure, axes = panels(1, 1, f"Embeddings of {len(x)} nodes", width=3.2, height=2.6, top=0.4, right=1.4, left=0.65)
    (panel,) = axes[0]
    for number in sorted(set(label.tolist())):
        chosen = array(label == number).astype(bool)
        colour = GREY if number < 0 else COLOURS[number % len(COLOURS)]
        marker = "." if number < 0 else "o^sDv"[number // len(COLOURS) % 5]
        name = "unknown" if number < 0 else shortened(classes[number], 16)
        size = 8 if len(label) > 500 else 16
        panel.scatter(
            points[chosen, 0], points[chosen, 1], s=size, color=colour, marker=marker, label=name, linewidths=0
        )
    of_all = [f"{value:.0%}" if math.isfinite(value) else "0%" for value in share.tolist()]
    panel.set(xlabel=f"first component ({of_all[0]} of variance)", ylabel=f"second component ({of_all[1]})")
    panel.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), handletextpad=0.2)
    return figure
