r"""How a kernel is made up, in few numbers for each head, and how they went over a training.

.. math::
    w_{ij} = e^{-s |q_i - k_j|^2 / 2 \sqrt d} \bigl((1 - a + a\, \rho(q_i, k_j))^2 + 10^{-5}\bigr)
             e^{c |k_j|_p^2 / 2 \sqrt d}

with the s of the exact part, the share a of the sampled part, and the exponent p and the factor c of the magnitude.
Dot-product attention has s = 1, a = 0, p = 2 and c = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ika_lightning.attention.core import Core
from ika_lightning.attention.kernels import RBFKernel
from ika_lightning.pictures.canvas import COLOURS, GREY, array, few_ticks, of_all, panels, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What a head has learned by the names below, each (h,); what is not learned is not there.
Parts = Mapping[str, Tensor]

# What each is called in pictures, and what it is in dot-product attention.
_TOLD = {
    "precision": ("s, exact part", 1.0),
    "share": ("a, sampled part", 0.0),
    "p": ("p, exponent", 2.0),
    "magnitude_scale": ("c, factor", 1.0),
}
_MAX_HEADS = 8

# --- Numbers ----------------------------------------------------------------------------------------------------------


def parts(core: Core) -> dict[str, Tensor]:
    """Return what each head has learned of s, a, p and c, as far as they are learned.

    Example:
        >>> from ika_lightning.attention import RBF
        >>> parts(RBF(8, 2, p="learned").core)
        {'precision': tensor([1., 1.]), 'p': tensor([2., 2.]), 'magnitude_scale': tensor([1., 1.])}
    """
    values: dict[str, Tensor] = {}
    if isinstance(core.kernel, RBFKernel):
        values["precision"] = core.kernel.precision.flatten()
    if core.share is not None:
        values["share"] = core.share
    if isinstance(core.p, Tensor) and core.magnitude.scale is not None:
        values |= {"p": core.p, "magnitude_scale": core.magnitude.scale}
    return {name: value.detach().float().cpu().clone() for name, value in values.items()}


# --- Drawing ----------------------------------------------------------------------------------------------------------


@styled
def draw_parts(history: Sequence[tuple[int, Parts]], name: str) -> Figure:
    """Draw s, a, p and c of each head against the steps of a training; a dot for each head if one moment is known.

    Args:
        history: Steps, and what :func:`parts` returned at each.
        name: The layer.

    Example:
        >>> history = [(step, {"share": torch.tensor([0.0, step / 100])}) for step in (0, 10, 20)]
        >>> panel = draw_parts(history, "encoder").axes[0]
        >>> panel.get_ylabel(), [line.get_label() for line in panel.lines[1:]]
        ('a, sampled part', ['head 0', 'head 1'])
    """
    steps, last = [step for step, _ in history], history[-1][1]
    there = len(next(iter(last.values())))
    heads = min(there, _MAX_HEADS)
    moments = [moment for _, moment in history]
    when = (
        f"at {len(steps)} validations up to step {steps[-1]:,}"
        if len(steps) > 1
        else f"after step {steps[-1]:,}; how it went before is not in the checkpoint"
    )
    meaning = {
        "precision": "s is the precision of the exact part, less is a wider kernel",
        "share": "a is the share of the sampled part",
        "p": "p is the exponent of the norm in the magnitude",
        "magnitude_scale": "c is the factor of the magnitude",
    }
    caption = (
        f"What {of_all(heads, there, 'heads')} have learned, {when}: "
        f"{'; '.join(text for key, text in meaning.items() if key in last)}. None has a unit. "
        "Dashed: dot-product attention."
    )
    columns = min(2, len(last))
    rows = -(-len(last) // columns)
    figure, axes = panels(
        rows, columns, f"Parts of the kernel: {name}", caption, width=2.85 if columns == 1 else 1.25, height=1.1,
        right=1.1, top=0.4, gap=(0.55, 0.45),
    )  # fmt: skip
    drawn = [panel for row in axes for panel in row]
    for panel, key in zip(drawn, last, strict=False):
        label, start = _TOLD[key]
        panel.axhline(start, color=GREY, linestyle="--", linewidth=0.8)
        values = array(torch.stack([moment[key][:heads] for moment in moments]))
        for head in range(heads):
            x = steps if len(steps) > 1 else [head]
            panel.plot(x, values[:, head], "." if len(steps) == 1 else "-", color=COLOURS[head], label=f"head {head}")
        panel.set(ylabel=label, xlabel="step" if len(steps) > 1 else "head")
        few_ticks(panel)
        if len(steps) == 1:
            panel.set_xticks(range(heads))
    for panel in drawn[len(last) :]:
        panel.set_axis_off()
    handles = drawn[0].lines[1:]
    drawn[columns - 1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), handlelength=1.2)
    return figure
