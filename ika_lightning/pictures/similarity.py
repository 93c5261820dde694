r"""The learned similarity as a function, beside the Gaussian that it replaces.

.. math::
    \kappa(x, y) = e^{-s |x - y|^2 / 2 \sqrt d} \bigl((1 - a + a\, \rho(x, y))^2 + 10^{-5}\bigr), \qquad
    \kappa_{\text{RBF}}(x, y) = e^{-|x - y|^2 / 2 \sqrt d}

The whole of it: the exact part, if a layer has one, the atom 1 - a, and what was sampled. (Without an exact part,
s = 0 and a = 1.)

A kernel of d dimensions is shown along the direction in which its frequencies are largest: there it varies most.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ika_lightning.attention.features import Bochner, Fourier
from ika_lightning.attention.kernels import RBFKernel
from ika_lightning.pictures.canvas import (
    COLOURS,
    GREY,
    array,
    colour_bar,
    few_ticks,
    listed,
    of_all,
    panels,
    styled,
    tiles,
)
from ika_lightning.pictures.record import Recording

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

# --- Numbers ----------------------------------------------------------------------------------------------------------


def log_similarity(recording: Recording, x: Tensor, y: Tensor) -> Tensor:
    """Evaluate the logarithm of a layer's kernel between points.

    Args:
        recording: The layer.
        x: Points in the place of queries.
        y: Points in the place of keys.

    Shapes:
        x (..., h, n, d); y (..., h, m, d); the result (..., h, n, m).

    Example:
        >>> from ika_lightning.attention import IKANDirect
        >>> from ika_lightning.pictures.record import record_spectra
        >>> recording, x = record_spectra(IKANDirect(6, 2))[""], torch.randn(2, 4, 3)
        >>> log_similarity(recording, x, x).diagonal(dim1=1, dim2=2).allclose(torch.tensor(1e-5).log1p(), atol=1e-6)
        True
    """
    feature_map = recording.feature_map
    if isinstance(feature_map, Fourier):
        feature_map = type(feature_map)(tuple(w.to(x) for w in feature_map.frequencies))
    with torch.no_grad():
        return recording.core.to(x).log_similarity(x, y, feature_map)


def of_first_sequence(recording: Recording) -> Recording:
    """Return a recording with the kernels of its first sequence alone, where each has its own."""
    feature_map = recording.feature_map
    if recording.frequencies and recording.frequencies[0].dim() == 4 and isinstance(feature_map, Fourier):
        feature_map = type(feature_map)(tuple(w[0] for w in feature_map.frequencies))
    copula = recording.copula[0] if recording.copula is not None and recording.copula.dim() == 3 else recording.copula
    return replace(recording, feature_map=feature_map, copula=copula)


def main_direction(recording: Recording) -> Tensor:
    """Return, for each head, the unit vector along which frequencies have the largest second moment; (h, d).

    Where a formula gives the kernel all directions are alike, and the first axis is returned.
    """
    if not recording.frequencies:
        return torch.eye(recording.width)[0].expand(recording.num_heads, -1)
    w = torch.cat(of_first_sequence(recording).frequencies, 1).cpu()
    return torch.linalg.eigh(w.mT @ w).eigenvectors[..., -1]


def is_stationary(recording: Recording) -> bool:
    """Whether the kernel is one of the difference of its arguments, as far as the layer's kind tells."""
    if recording.core.spectrum is not None:
        return isinstance(recording.feature_map, Bochner)
    return recording.core.kernel is None or isinstance(recording.core.kernel, RBFKernel)


def kernel_along(recording: Recording, distances: Tensor) -> Tensor:
    """Evaluate each head's kernel between the origin and points on a ray; (r,) -> (h, r)."""
    recording = of_first_sequence(recording)
    ray = distances.unsqueeze(-1) * main_direction(recording).to(distances).unsqueeze(1)  # (h, r, d)
    return log_similarity(recording, torch.zeros_like(ray[:, :1]), ray).exp().squeeze(1)


def kernel_over(recording: Recording, positions: Tensor) -> Tensor:
    """Evaluate each head's kernel between all pairs of points on a line; (r,) -> (h, r, r), queries first."""
    recording = of_first_sequence(recording)
    line = positions.unsqueeze(-1) * main_direction(recording).to(positions).unsqueeze(1)
    return log_similarity(recording, line, line).exp()


# --- Drawing ----------------------------------------------------------------------------------------------------------

_POINTS = 61
_MAX_HEADS = 8


@styled
def draw_similarity(recording: Recording) -> Figure:
    """Draw each head's kernel: along a ray if it is stationary, else as a surface over two positions.

    Positions reach three of the Gaussian's lengthscales, :math:`d^{1/4}`, far.

    Example:
        >>> from ika_lightning.attention import IKANDirect
        >>> from ika_lightning.pictures.record import record_spectra
        >>> recording = record_spectra(IKANDirect(8, 2, stationary=True))[""]
        >>> [line.get_label() for line in draw_similarity(recording).axes[0].lines]
        ['head 0', 'head 1', 'the RBF it replaces']
    """
    return _draw_rays(recording) if is_stationary(recording) else _draw_surfaces(recording)


def _draw_rays(recording: Recording) -> Figure:
    distances = torch.linspace(0.0, 3.0 * recording.width**0.25, _POINTS)
    curves = array(kernel_along(recording, distances))[:_MAX_HEADS]
    caption = (
        f"Similarity κ of a query and a key against their distance, of {_heads(recording)}, each along the direction "
        "in which its frequencies are largest; distance in units of the query, up to three lengthscales of the RBF. "
        f"{_which(recording)}{_cut(curves.max(1), 1.05)}"
    )
    figure, [[panel]] = panels(
        1, 1, f"Similarity: {recording.name}", caption, width=2.8, height=2.0, right=1.35, top=0.4
    )
    for head, learned in enumerate(curves):
        panel.plot(distances, learned, color=COLOURS[head], label=f"head {head}")
    gaussian = (-0.5 * distances.square() * recording.width**-0.5).exp()
    panel.plot(distances, gaussian, color=GREY, linestyle="--", label="the RBF it replaces")
    panel.set(xlabel="distance of q and k", ylabel="κ(q, k)", ylim=(-0.03, 1.05))
    panel.set_xlim(0.0, float(distances[-1]))
    few_ticks(panel)
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.4)
    return figure


def _draw_surfaces(recording: Recording) -> Figure:
    reach = 3.0 * recording.width**0.25
    positions = torch.linspace(-reach, reach, _POINTS)
    surfaces = array(kernel_over(recording, positions).flip(1))[:_MAX_HEADS]
    gaussian = (-0.5 * (positions - positions.unsqueeze(1)).square() * recording.width**-0.5).exp().flip(0)
    titles = ["the RBF", *(f"head {head}" for head in range(len(surfaces)))]
    columns = 3 if len(titles) in (5, 6, 9) else min(4, len(titles))
    rows = -(-len(titles) // columns)
    caption = (
        f"Similarity κ of a query and a key that both move along one line: for each of {_heads(recording)}, that on "
        "which its frequencies are largest; positions in units of the query, up to three lengthscales of the RBF. The "
        f"first square is the RBF of dot-product attention. {_which(recording)}{_cut(surfaces.max((1, 2)), 1.0)}"
    )
    title = f"Similarity over two positions: {recording.name}"
    side = 1.03 if columns == 3 else 0.73
    figure, [[panel]] = panels(
        1, 1, title, caption, width=(side + 0.15) * columns - 0.15, height=(side + 0.15) * rows - 0.15, right=0.8,
        top=0.5,
    )  # fmt: skip
    images = [array(gaussian), *surfaces]
    image, corners = tiles(panel, images, titles, columns, (0.15 / side,) * 2, vmin=0.0, vmax=1.0, cmap="viridis")
    ends = [f"{-reach:.1f}", "0", f"{reach:.1f}"]
    middle = (_POINTS - 1) / 2
    left, top = corners[(rows - 1) * columns]
    panel.set_xticks([left + 0.5 + k * middle for k in range(3)], ends)
    panel.set_yticks([top + 0.5 + k * middle for k in range(3)], ends[::-1])
    panel.set(xlabel="position of k", ylabel="position of q")
    colour_bar(figure, image, panel, "κ(q, k)")
    return figure


def _heads(recording: Recording) -> str:
    return of_all(min(recording.num_heads, _MAX_HEADS), recording.num_heads, "heads")


def _which(recording: Recording) -> str:
    """Of which sequence a kernel is that differs between sequences."""
    if recording.frequencies and recording.frequencies[0].dim() == 4:
        return "Each sequence has a kernel of its own; this is that of the first. "
    return ""


def _cut(highest: np.ndarray, end: float) -> str:
    beyond = [head for head, value in enumerate(highest.tolist()) if value > end + 0.005]
    return f"Cut at {end:g}: head {listed(beyond)}, up to {highest.max():.3g}." if beyond else "Nothing is cut."
