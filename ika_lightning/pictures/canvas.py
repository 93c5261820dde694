"""Figures without a display: panels of a known size, colours that all can tell apart, and pixels.

matplotlib's objects are used directly, never ``pyplot``: no window, no state that outlives a figure, nothing to close.
It is imported when the first figure is made, so that a program that draws nothing does not wait for it.
"""

from __future__ import annotations

import functools
import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

#: Colours for categories that colour-blind readers can tell apart (Okabe and Ito 2008), the darkest first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
GREY = "#767676"
DPI = 100
#: Inches that no figure of a layer is wider than: what a card of TensorBoard and the width of a telephone can show.
WIDEST = 4.8
_LINE = 0.13  # inches from one line of a caption to the next
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlepad": 3,
    "axes.labelsize": 8,
    "axes.labelpad": 2,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "text.usetex": False,
    "text.parse_math": False,  # a token with two dollars in it is no formula
    "svg.fonttype": "path",  # who looks may not have the font
    "svg.hashsalt": "ika_lightning",  # the same names in the same picture
}


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function draw in the style of this package, whatever the user has set for other figures."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        from matplotlib import rcParams

        # matplotlib.rc_context copies and checks all settings, which takes as long as drawing a small figure
        before = {key: rcParams[key] for key in _STYLE}
        rcParams.update(_STYLE)
        try:
            with warnings.catch_warnings():
                # what a font lacks is drawn as a box, of which a training log need not say a word
                warnings.filterwarnings("ignore", r"Glyph .* missing from")
                return function(*args, **kwargs)
        finally:
            rcParams.update(before)

    return wrapper


def panels(
    rows: int,
    columns: int,
    title: str,
    caption: str = "",
    *,
    width: float = 1.5,
    height: float = 1.2,
    left: float = 0.6,
    right: float = 0.2,
    top: float = 0.55,
    bottom: float = 0.5,
    gap: tuple[float, float] = (0.15, 0.3),
) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure of equal panels, with margins in which labels are known to fit.

    Margins are given, and not found by a layout engine, which would draw each figure several times.

    Args:
        rows: Number of rows of panels.
        columns: Number of columns.
        title: What the figure shows; cut where it would leave the figure.
        caption: What a newcomer has to know of it: what is shown, of which rows, how many of how many, in which units.
            It is written below the panels; :func:`caption_of` returns it.
        width: Width of a panel, in inches like all that follow.
        height: Height of a panel.
        left: Margin to the left of all panels.
        right: Margin to their right.
        top: Margin above them, for the title and the first row's titles.
        bottom: Margin below them.
        gap: Space between columns, and between rows.

    Returns:
        The figure, and its axes, row by row.

    Example:
        >>> figure, axes = panels(2, 3, "Six")
        >>> len(axes), len(axes[0]), figure.get_size_inches().tolist()
        (2, 3, [5.6, 3.75])
    """
    from matplotlib.figure import Figure

    across = left + columns * width + (columns - 1) * gap[0] + right
    foot = _foot(caption, across)
    bottom += foot
    up = top + rows * height + (rows - 1) * gap[1] + bottom
    figure = Figure(figsize=(across, up), dpi=DPI)
    figure.text(0.08 / across, 1 - 0.08 / up, _fitting(title, across), ha="left", va="top", fontsize=9)
    if caption:
        figure.set_label(caption)
        lines = "\n".join(_lines(caption, across))
        spacing = 72 * _LINE / (1.2 * 7)
        figure.text(
            0.08 / across, (foot - 0.02) / up, lines, ha="left", va="top", fontsize=7, color="#444444",
            linespacing=spacing,
        )  # fmt: skip
    axes = [
        [
            figure.add_axes(
                (
                    (left + column * (width + gap[0])) / across,
                    (bottom + (rows - 1 - row) * (height + gap[1])) / up,
                    width / across,
                    height / up,
                )
            )
            for column in range(columns)
        ]
        for row in range(rows)
    ]
    return figure, axes


def caption_of(figure: Figure) -> str:
    """Return the caption of a figure that :func:`panels` made; empty if it has none.

    Example:
        >>> caption_of(panels(1, 1, "Fit", "Of 52 rows.")[0])
        'Of 52 rows.'
    """
    return str(figure.get_label())


def few_ticks(panel: Axes, x: bool = True, y: bool = True) -> None:
    """Leave three to five numbers on each axis of a panel: they are what takes the longest to draw."""
    from matplotlib.ticker import MaxNLocator

    for axis, wanted in ((panel.xaxis, x), (panel.yaxis, y)):
        if wanted:
            axis.set_major_locator(MaxNLocator(4, min_n_ticks=3))


def category_styles(count: int) -> list[tuple[str, str]]:
    """Return a colour and a marker for each of some categories, no two alike.

    Up to seven have :data:`COLOURS` without its greys. More have colours from the whole of a rainbow, and neighbours
    have different markers: nobody can tell 24 colours apart by themselves.

    Example:
        >>> category_styles(2)
        [('#0072B2', 'o'), ('#D55E00', 'o')]
        >>> styles = category_styles(24)
        >>> len({colour for colour, _ in styles}), [marker for _, marker in styles[:3]]
        (24, ['o', 's', '^'])
    """
    if count < len(COLOURS):
        return [(colour, "o") for colour in COLOURS[:count]]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colours = colormaps["turbo"](np.linspace(0.04, 0.96, count))
    return [(to_hex(colour), "os^Dv"[number % 5]) for number, colour in enumerate(colours)]


def listed(numbers: Sequence[int], most: int = 8) -> str:
    """Write numbers as a person would, a row of them by its ends.

    Example:
        >>> listed([3]), listed([0, 1, 2, 3]), listed([1, 3, 4])
        ('3', '0 to 3', '1, 3 and 4')
    """
    numbers = list(numbers)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    words = [str(number) for number in numbers[:most]]
    if len(numbers) > most:
        return f"{', '.join(words)} and {len(numbers) - most} others"
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def of_all(shown: int, there: int, what: str) -> str:
    """Say how many of how many are shown.

    Example:
        >>> of_all(8, 16, "heads"), of_all(2, 2, "heads"), of_all(128, 1417, "queries")
        ('the first 8 of 16 heads', 'all 2 heads', 'the first 128 of 1,417 queries')
    """
    if there == 1:
        return f"the only {what.removesuffix('s')}"
    return f"all {there:,} {what}" if shown >= there else f"the first {shown:,} of {there:,} {what}"


def tiles(
    panel: Axes,
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int,
    gap: tuple[float, float],
    **options: Any,
) -> tuple[Any, list[tuple[float, float]]]:
    """Draw images of one size side by side, as one image in one panel.

    Args:
        panel: Where to draw; its axes are in pixels of the images.
        images: The images, (r, c) each.
        titles: What to write above each.
        columns: How many images stand side by side.
        gap: Space between columns and between rows of them, as a share of an image.
        **options: Of ``imshow``.

    Returns:
        What ``imshow`` returned, and the corner of each image: the left and the upper edge.
    """
    height, width = images[0].shape
    between = [max(1, round(gap[1] * height)), max(1, round(gap[0] * width))]
    rows = -(-len(images) // columns)
    whole = np.full((rows * (height + between[0]) - between[0], columns * (width + between[1]) - between[1]), np.nan)
    corners = []
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = row * (height + between[0]), column * (width + between[1])
        whole[top : top + height, left : left + width] = image
        corners.append((left - 0.5, top - 0.5))
        panel.text(left + width / 2 - 0.5, top - 0.5, titles[number], ha="center", va="bottom")
    panel.spines[:].set_visible(False)
    panel.set(xticks=[], yticks=[])
    return panel.imshow(whole, aspect="auto", interpolation="none", **options), corners


def colour_bar(figure: Figure, image: Any, panel: Axes, label: str) -> None:
    """Put a scale of colours to the right of a panel, with its ends, its middle and a name."""
    box = panel.get_position()
    inch = 1.0 / figure.get_size_inches()[0]
    low, high = image.get_clim()
    bar = figure.add_axes((box.x1 + 0.1 * inch, box.y0, 0.09 * inch, box.height))
    shades = np.linspace(0.0, 1.0, 64)[:, None]
    bar.imshow(shades, aspect="auto", origin="lower", cmap=image.get_cmap(), extent=(0, 1, low, high))
    ends = (low, (low + high) / 2, high)
    bar.set(xticks=[], yticks=ends, yticklabels=[f"{end:.2g}" for end in ends])
    bar.yaxis.set_ticks_position("right")
    figure.text(box.x1 + 0.58 * inch, (box.y0 + box.y1) / 2, label, rotation=90, ha="left", va="center")


@styled
def to_pixels(figure: Figure) -> np.ndarray:
    """Draw a figure. Nothing holds it afterwards but who called this.

    Returns:
        (height, width, 3) uint8.

    Example:
        >>> to_pixels(panels(1, 1, "One")[0]).shape
        (225, 230, 3)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@styled
def to_svg(figure: Figure) -> bytes:
    """Draw a figure as SVG, which is sharp at any size, without its caption: who shows it says that in words.

    Maps are pixels inside, each cell as one of them; so is what an artist says is ``rasterized``.
    """
    from matplotlib.transforms import Bbox

    file = io.BytesIO()
    width, height = figure.get_size_inches()
    whole = Bbox([[0.0, _foot(caption_of(figure), width)], [width, height]])
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", bbox_inches=whole, pad_inches=0, dpi=2 * DPI, metadata=nothing)
    return file.getvalue()


def to_png(pixels: np.ndarray) -> bytes:
    """Write pixels as a PNG of at most 256 colours where that loses next to nothing of a figure.

    Args:
        pixels: What :func:`to_pixels` returned.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def shortened(text: str, most: int) -> str:
    """Cut a text that is too long for a label, and show what would not show.

    Example:
        >>> shortened("attention", 5), shortened(" ", 5)
        ('atte…', '␣')
    """
    text = "".join(sign if sign == " " or (sign.isprintable() and not sign.isspace()) else "·" for sign in text)
    text = text if text.strip() else "␣" * len(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def array(x: Tensor) -> np.ndarray:
    """Return a tensor's numbers for matplotlib."""
    return x.detach().float().cpu().numpy()


def _lines(caption: str, inches: float) -> list[str]:
    return textwrap.wrap(shortened(caption, 2000), max(20, int((inches - 0.16) * 17)), break_long_words=True)


def _foot(caption: str, inches: float) -> float:
    """How many inches of a figure a caption takes."""
    return _LINE * len(_lines(caption, inches)) + 0.1 if caption else 0.0


def _fitting(title: str, inches: float) -> str:
    return shortened(title, max(8, int(inches * 13.5)))
