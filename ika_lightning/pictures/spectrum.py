r"""The spectral density that a layer has learned, and how its heads depend on one another.

The similarity is the square of a kernel, whose density is drawn:

.. math:: e^{-s |q - k|^2 / 4 \sqrt d}\, (1 - a + a \rho(q, k))

A share a of it are the frequencies of :math:`\rho`, which are known by samples alone, and the rest is at zero; the
exact part spreads both by a Gaussian, :math:`N(0, s / 2 \sqrt d)` in each coordinate. (Without an exact part nothing is
spread, and a = 1.) All d coordinates of the M frequencies of a head are taken together, as the Gaussian inside
dot-product attention, :math:`N(0, 1 / 2 \sqrt d)`, is the same in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ika_lightning.attention.kernels import RBFKernel
from ika_lightning.pictures.canvas import GREY, array, colour_bar, few_ticks, listed, of_all, panels, styled
from ika_lightning.pictures.record import Recording
from ika_lightning.pictures.similarity import of_first_sequence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# --- Numbers ----------------------------------------------------------------------------------------------------------


class Frequencies(NamedTuple):
    """What the density of a layer is made of.

    Attributes:
        samples: The coordinates of all frequencies of each head, in radians per unit of the query, (h, k).
        share: The part a of the density that they make, (h,).
        spread: The standard deviation of the Gaussian by which the exact part spreads all of it, (h,).
    """

    samples: Tensor
    share: Tensor
    spread: Tensor


def frequencies(recording: Recording) -> Frequencies:
    """Return what the density is made of; of a kernel that differs between sequences, that of the first."""
    samples = torch.cat([w.flatten(1) for w in of_first_sequence(recording).frequencies], 1).cpu()
    core, heads = recording.core, recording.num_heads
    share, spread = torch.ones(heads).to(samples), torch.zeros(heads).to(samples)
    if core.share is not None:
        share = core.share.detach().to(samples)
    if isinstance(core.kernel, RBFKernel):
        spread = core.kernel.precision.detach().to(samples).flatten().sqrt() * start_std(recording)
    return Frequencies(samples, share, spread)


def correlation(recording: Recording) -> Tensor | None:
    """Return the correlation between heads, :math:`R_c = C C^T`, (h, h); None where they are not coupled.

    Of a correlation that differs between sequences, that of the first.
    """
    factor = of_first_sequence(recording).copula
    return None if factor is None else factor @ factor.mT


def start_std(recording: Recording) -> float:
    """Return the standard deviation of the frequencies of the Gaussian kernel, from which a layer starts."""
    return (2.0 * math.sqrt(recording.width)) ** -0.5


def density(drawn: Frequencies, at: Tensor) -> Tensor:
    r"""Estimate densities from samples with a Gaussian of Silverman's width around each, spread by the exact part.

    .. math:: b = 0.9 \min(\text{std}, \text{iqr} / 1.34) \, k^{-1/5}

    and no less than half the distance of the places asked for: a narrower peak would pass between them.

    Shapes:
        at (g,), evenly spaced; the result (h, g).

    Example:
        >>> grid = torch.linspace(-8.0, 8.0, 401)
        >>> drawn = Frequencies(torch.randn(2, 100), torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0]))
        >>> density(drawn, grid).sum(1).mul(16.0 / 400).allclose(torch.ones(2), atol=1e-3)
        True
    """
    samples, share, spread = drawn
    low, high = samples.quantile(torch.tensor([0.25, 0.75]).to(samples), 1)
    width = torch.minimum(samples.std(1, correction=0), (high - low) / 1.34)
    least = float(at[1] - at[0]) / 2
    width = (0.9 * width * samples.size(1) ** -0.2).clamp_min(least)

    def gaussians(centres: Tensor, width: Tensor) -> Tensor:
        # (g, h, k)
        scaled = (at[:, None, None] - centres) / width.unsqueeze(-1)
        return (scaled.square().mul(-0.5).exp().mean(-1) / (width * math.sqrt(2 * math.pi))).mT

    sampled = gaussians(samples, (width.square() + spread.square()).sqrt())
    atom = gaussians(torch.zeros_like(samples[:, :1]), spread.clamp_min(least))
    return share.unsqueeze(1) * sampled + (1.0 - share).unsqueeze(1) * atom


# --- Drawing ----------------------------------------------------------------------------------------------------------

_POINTS = 121
_MAX_HEADS = 8
# of a head, for its density
_MAX_SAMPLES = 512


@styled
def draw_density(history: Sequence[tuple[int, Frequencies]], start_std: float, name: str) -> Figure:
    """Draw the density of each head's frequencies as a ridge, one head above the other.

    Each head has a line for each time it was looked at, the darker the later; the last is filled. Lines end at twice
    the height of the dashed one, where the caption and a number at the peak say so.

    Args:
        history: Steps, and what :func:`frequencies` returned at each.
        start_std: What :func:`start_std` returned: the dashed curve.
        name: The layer.

    Example:
        >>> drawn = Frequencies(torch.randn(2, 40), torch.ones(2), torch.zeros(2))
        >>> figure = draw_density([(0, drawn), (10, drawn)], 1.0, "encoder")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['head 0', 'head 1']
    """
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    there = len(history[-1][1].samples)
    drawn = [Frequencies(*(part[:_MAX_HEADS] for part in moment)) for _, moment in history]
    # as far as the last ones reach: on the way there, a head may have had frequencies far out
    last = drawn[-1]
    reach = max(4.0 * start_std, float(last.samples.abs().quantile(0.995)) * 1.25 + 2.0 * float(last.spread.max()))
    grid = torch.linspace(-reach, reach, _POINTS)
    start = (-0.5 * (grid / start_std).square()).exp() / (start_std * math.sqrt(2 * math.pi))
    thinned = [
        moment._replace(samples=moment.samples[:, :: -(-moment.samples.size(1) // _MAX_SAMPLES)]) for moment in drawn
    ]
    whole = [density(moment, grid) for moment in thinned]
    # a head whose frequencies have shrunk to nothing has a peak that would flatten all others
    most = 2.0 * float(start.max())
    curves = [curve.clamp_max(most) for curve in whole]
    cut = {head: float(peak) for head, peak in enumerate(whole[-1].amax(1)) if peak > most}
    on_the_way = {head for curve in whole[:-1] for head in (curve.amax(1) > most).nonzero().flatten().tolist()}
    lift = 1.1 * max(float(start.max()), *(float(curve.max()) for curve in curves))
    heads = len(last.samples)
    moments = f"at {len(history)} moments, the darker the later" if len(history) > 1 else ""
    caption = (
        f"Density of the frequencies of {of_all(heads, there, 'heads')}, all coordinates together: "
        f"{last.samples.size(1):,} numbers a head{' in the sampled part' if (last.share < 1).any() else ''}"
        f"{f', {moments}' if moments else f', after step {history[-1][0]:,}'}. "
        "Dashed: the RBF of dot-product attention. "
    )
    if cut or on_the_way:
        caption += "Flat tops are cut at twice the dashed height: "
        said = [f"head {listed(sorted(cut))}"] if cut else []
        only_before = sorted(on_the_way - cut.keys())
        said += [f"{'on the way ' if cut else 'on the way there, '}head {listed(only_before)}"] if only_before else []
        caption += f"{'; '.join(said)}{'; a number is how many times as high as dashed the peak is' if cut else ''}."
    else:
        caption += "Nothing is cut."
    figure, [[panel]] = panels(
        1, 1, f"Spectral density: {name}", caption, width=3.0, height=max(1.0, 0.42 * heads), right=1.15, top=0.4
    )
    shades = colormaps["viridis"]([0.9 - 0.9 * k / max(1, len(curves) - 1) for k in range(len(curves))])
    bases = [lift * (heads - 1 - head) for head in range(heads)]
    for (step, _), curve, shade in zip(history, curves, shades if len(curves) > 1 else ["#440154"], strict=True):
        lines = [torch.stack([grid, curve[head] + base], 1).numpy() for head, base in enumerate(bases)]
        panel.add_collection(LineCollection(lines, colors=[shade], linewidths=1.0, label=f"step {step:,}"))
    for head, base in enumerate(bases):
        panel.fill_between(grid, base, base + curves[-1][head], color=GREY, alpha=0.2, linewidth=0)
    for head, peak in cut.items():
        times = f"×{peak / float(start.max()):.1f}"
        where = float(grid[whole[-1][head].argmax()]) + 0.02 * reach
        panel.text(where, bases[head] + most, f" {times}", fontsize=6, ha="left", va="top")
    dashed = [torch.stack([grid, start + base], 1).numpy() for base in bases]
    panel.add_collection(LineCollection(dashed, colors=GREY, linestyles="--", linewidths=0.8, label="of the RBF"))
    panel.set(xlim=(-reach, reach), ylim=(0.0, lift * heads), xlabel="frequency, radians per unit of the query")
    few_ticks(panel, y=False)
    panel.set_yticks(bases, [f"head {head}" for head in range(heads)])
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.4)
    return figure


@styled
def draw_correlation(matrix: Tensor, name: str) -> Figure:
    """Draw the correlation between heads, (h, h), as a heat map; with a number in each cell where there is room.

    Example:
        >>> len(draw_correlation(torch.eye(3), "encoder").axes)
        2
    """
    heads = len(matrix)
    side = max(1.4, 0.3 * min(heads, 10))
    caption = (
        f"Correlation of the noise that {of_all(heads, heads, 'heads')} make their frequencies from, without a unit: 0 "
        "is independent, 1 the same, -1 opposite. If it differs between sequences, that of the first."
    )
    figure, [[panel]] = panels(
        1, 1, f"Correlation of heads: {name}", caption, width=side, height=side, top=0.4, right=max(0.9, 4.1 - side)
    )
    values = array(matrix)
    image = panel.imshow(values, vmin=-1.0, vmax=1.0, cmap="PuOr", interpolation="none")
    step = -(-heads // 8)
    panel.set(xlabel="head", ylabel="head", xticks=range(0, heads, step), yticks=range(0, heads, step))
    if heads <= 8:
        for i in range(heads):
            for j in range(i):
                colour = "white" if abs(values[i, j]) > 0.6 else "black"
                panel.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=6, color=colour)
    colour_bar(figure, image, panel, "correlation")
    return figure
