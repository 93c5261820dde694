"""What a model answers: predictions beside the truth, classes that are taken for one another, nodes in the plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ika_lightning.pictures.canvas import (
    COLOURS,
    GREY,
    array,
    category_styles,
    colour_bar,
    few_ticks,
    of_all,
    panels,
    shortened,
    styled,
)

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
# Points of an SVG that are pixels: each by itself makes a large file.
_MANY_POINTS = 500


@styled
def draw_fit(
    row: Tensor,
    predicted: Tensor,
    target: Tensor,
    unit: str,
    interval: tuple[Tensor, Tensor] | None = None,
    level: float | None = None,
) -> Figure:
    """Draw predictions and truth over the rows of the table, what is left over, and one against the other.

    The truth is drawn as rings, over predictions: where both are the same, a ring has a filled middle.

    Args:
        row: The row of each prediction in its table, (r,), which for a series is the time.
        predicted: Predictions, (r,).
        target: The truth, (r,).
        unit: What is predicted, for the axes.
        interval: Lower and upper ends of intervals around predictions, each (r,), if there are any.
        level: The probability with which an interval holds the target.

    Example:
        >>> x = torch.arange(5.0)
        >>> [panel.get_ylabel() for panel in draw_fit(torch.arange(5), x + 0.1, x, "ppm").axes]
        ['ppm', 'residual, ppm', 'predicted ppm']
    """
    order = row.argsort()
    order = order[:: -(-len(order) // _MAX_POINTS)]
    x, y, truth = (array(values[order].double()) for values in (row + 1, predicted, target))
    unit = shortened(unit, 24)
    rmse = (predicted - target).double().square().mean().sqrt().item()
    spread = target.double().std(correction=0).item()
    caption = (
        f"Predictions for {f'{len(x):,} of ' if len(x) < len(row) else 'all '}{len(row):,} validation rows, beside the "
        f"truth. RMSE {rmse:.4g}, in the unit of {unit}, whose standard deviation on these rows is {spread:.4g}. "
        "Middle: residuals, prediction minus truth. "
    )
    if interval is not None:
        inside = ((target >= interval[0]) & (target <= interval[1])).sum().item()
        said = "" if level is None else f" that should hold {level:.0%} of targets"
        caption += f"Light blue: intervals{said}; they hold {inside:,} of these {len(row):,}, by which they were set."
    else:
        caption += "There are no intervals."
    figure, axes = panels(
        3, 1, f"Fit of {unit}: RMSE {rmse:.4g}", caption, width=3.8, height=1.35, left=0.75, gap=(0, 0.5), top=0.55
    )
    (over,), (left,), (against,) = axes
    many = len(x) > _MANY_POINTS
    # neighbouring rows are a series
    line = "-" if len(x) > 2 and (x[1:] - x[:-1] == 1).all() else "."
    if interval is not None:
        low, high = (array(end[order].double()) for end in interval)
        # a residual is inside of its bar if the truth is inside of the interval
        for panel, ends in ((over, (low, high)), (left, (y - high, y - low))):
            if line == "-":
                panel.fill_between(x, ends[0], ends[1], color=COLOURS[5], alpha=0.35, linewidth=0, label="interval")
            else:
                panel.vlines(
                    x, ends[0], ends[1], color=COLOURS[5], alpha=0.5, linewidth=1.6, label="interval", rasterized=many
                )
    ring: dict[str, Any] = {
        "markerfacecolor": "none",
        "markeredgecolor": COLOURS[1],
        "markeredgewidth": 0.7,
        "rasterized": many,
    }
    over.plot(x, y, line, color=COLOURS[0], linewidth=0.9, markersize=3, label="prediction", rasterized=many)
    over.plot(x, truth, "o", markersize=4 if len(x) <= 200 else 2.5, label="truth", **ring)
    over.set(xlabel="row of the table", ylabel=shortened(unit, 22))
    # above, where it hides no row
    over.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, handlelength=1.2, borderaxespad=0.1)
    left.axhline(0.0, color=GREY, linestyle="--", linewidth=0.8)
    left.plot(x, y - truth, ".", color=COLOURS[0], markersize=3, rasterized=many)
    left.set(xlabel="row of the table", ylabel=shortened(f"residual, {unit}", 22))
    low, high = min(y.min(), truth.min()), max(y.max(), truth.max())
    against.plot([low, high], [low, high], color=GREY, linestyle="--", linewidth=0.8)
    against.plot(truth, y, ".", color=COLOURS[0], markersize=3, rasterized=many)
    against.set(xlabel=f"true {unit}", ylabel=shortened(f"predicted {unit}", 22))
    for (panel,) in axes:
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
    caption = (
        f"Which share of the targets of all {len(errors):,} validation rows is inside of central intervals of the "
        "predicted normal distributions, against the share that should be, neither with a unit. Below the dashed "
        "diagonal the model is too sure of itself, above it not sure enough; in the grey band so few rows cannot tell."
    )
    figure, axes = panels(
        1, 1, f"Calibration on {len(errors):,} rows", caption, width=2.4, height=2.1, top=0.4, right=1.6
    )
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
def draw_confusion(counts: Tensor, classes: Sequence[str], of: str = "validation samples") -> Figure:
    """Draw which class is taken for which: colours are shares of the true class, numbers count mistakes.

    Args:
        counts: How many samples of class i were taken for class j, (c, c).
        classes: Names of the classes; the first 40 are drawn.
        of: What the samples are, in the plural.

    Example:
        >>> len(draw_confusion(torch.tensor([[5, 1], [0, 7]]), ["bad", "good"]).axes)
        2
    """
    there, right = int(counts.sum()), sum(counts.diagonal().tolist())
    share = array(counts / counts.sum(1, keepdim=True).clamp_min(1))[:_MAX_CLASSES, :_MAX_CLASSES]
    shown = of_all(min(len(classes), _MAX_CLASSES), len(classes), "classes")
    counts, classes = counts[:_MAX_CLASSES, :_MAX_CLASSES], classes[:_MAX_CLASSES]
    side = min(2.8, max(1.6, 0.2 * len(classes)))
    numbered = len(classes) <= 24
    numbers = "counts" if len(classes) <= 8 else "counts of mistakes"
    caption = (
        f"What {of} are taken for: a row is a true class, a column a predicted one ({shown}); colour is the share "
        f"of the row{f', numbers are {numbers}' if numbered else ''}. {right:,} of {there:,} are right."
    )
    figure, axes = panels(
        1, 1, f"Confusion: {right / max(1, there):.1%} right", caption, width=side, height=side, left=1.05, bottom=1.0,
        top=0.4, right=0.9,
    )  # fmt: skip
    (panel,) = axes[0]
    image = panel.imshow(share, vmin=0.0, vmax=1.0, cmap="cividis", interpolation="none")
    names, ticks = [shortened(name, 12) for name in classes], range(len(classes))
    # as high as a row of the matrix, in points
    size = min(7.0, 72 * side / len(classes) * 0.9)
    panel.set_xticks(ticks, names, rotation=90, fontsize=size)
    panel.set_yticks(ticks, names, fontsize=size)
    panel.set(xlabel="predicted", ylabel="true")
    if numbered:
        for i, j in counts.nonzero().tolist():
            if i != j or len(classes) <= 8:
                colour = "black" if share[i, j] > 0.55 else "white"
                panel.text(
                    j, i, str(int(counts[i, j])), ha="center", va="center", fontsize=min(6.0, size), color=colour
                )
    colour_bar(figure, image, panel, "share of the true class")
    return figure


@styled
def draw_embeddings(
    x: Tensor,
    label: Tensor,
    classes: Sequence[str],
    asked: Tensor | None = None,
    predicted: Tensor | None = None,
) -> Figure:
    """Draw points in the plane of their first two principal components, coloured by their true class.

    Args:
        x: Points, (r, f).
        label: Their true classes, (r,); -1 where unknown.
        classes: Names of the classes.
        asked: The points that were answered for, (q,); None if none were.
        predicted: The answers, (q,). Wrong ones are marked.

    Example:
        >>> figure = draw_embeddings(torch.randn(9, 4), torch.arange(9) % 3 - 1, ["a", "b"])
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['unknown', 'a', 'b']
    """
    step = -(-len(x) // _MAX_POINTS)
    components, share = principal_components(x)
    of_all_points, label = array(components), label.cpu()
    points, of_points = of_all_points[::step], label[::step]
    caption = (
        f"What the last layer is told of {f'{len(points):,} of ' if len(points) < len(x) else 'all '}{len(x):,} nodes "
        "of the graph, for training and not, in the plane in which it spreads most; axes have no unit. Colour and "
        "marker are the true class"
    )
    wrong = None
    if asked is not None and predicted is not None:
        asked = asked.cpu()
        wrong = asked[predicted.cpu() != label[asked]]
        count = f"{len(wrong):,} of {len(asked):,}"
        caption += f". A black cross is a validation node for which another class is predicted: {count}"
    unknown = int((label < 0).sum())
    caption += f"; {unknown:,} are unknown." if unknown else "."
    columns = 1 if len(classes) <= 16 else 2
    figure, axes = panels(
        1, 1, f"Embeddings of {len(x):,} nodes", caption, width=2.9 if columns == 1 else 2.4, height=2.6, top=0.4,
        right=1.25 if columns == 1 else 1.75, left=0.65,
    )  # fmt: skip
    (panel,) = axes[0]
    styles = category_styles(len(classes))
    many = len(points) > _MANY_POINTS
    for number in sorted(set(of_points.tolist())):
        chosen = array(of_points == number).astype(bool)
        colour, marker = (GREY, ".") if number < 0 else styles[number]
        name = "unknown" if number < 0 else shortened(classes[number], 14 if columns == 1 else 9)
        panel.scatter(
            points[chosen, 0], points[chosen, 1], s=8 if many else 16, color=colour, marker=marker, label=name,
            linewidths=0, rasterized=many,
        )  # fmt: skip
    if wrong is not None and len(wrong):
        panel.scatter(
            of_all_points[wrong, 0], of_all_points[wrong, 1], s=18, color="black", marker="x", linewidths=0.8,
            label="mistaken", rasterized=len(wrong) > _MANY_POINTS,
        )  # fmt: skip
    shares = [f"{value:.0%}" if math.isfinite(value) else "0%" for value in share.tolist()]
    panel.set(xlabel=f"first component ({shares[0]} of variance)", ylabel=f"second ({shares[1]} of variance)")
    few_ticks(panel)
    panel.legend(
        loc="center left", bbox_to_anchor=(1.02, 0.5), handletextpad=0.2, ncols=columns, columnspacing=0.6,
        title="true class", title_fontsize=7,
    )  # fmt: skip
    return figure
