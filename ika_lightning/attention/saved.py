"""States that were saved by earlier versions."""

from __future__ import annotations

from typing import Any

import torch

from ika_lightning.attention.implicit import ImplicitSpectrum
from ika_lightning.attention.spectrum import DirectSpectrum
from ika_lightning.attention.start import initial_scale


def add_exact_part(
    state: dict[str, Any], prefix: str, num_heads: int, spectrum: DirectSpectrum | ImplicitSpectrum
) -> None:
    """Complete, in place, the state of a learned kernel that had no exact part, for a core that has one.

    Until version 0.1 none had. An exact part with a lengthscale of e^40, which is 1 everywhere, and a share of 1 beside
    it are the same kernel. Such a layer started with ``init="rbf"``: others are built with their own init again, and
    then have no exact part.

    Args:
        state: The state, in which the keys of the core begin with the prefix.
        prefix: That prefix.
        num_heads: Number of heads, h.
        spectrum: That of the core.
    """
    kernel, share = f"{prefix}kernel.log_relative_lengthscale", f"{prefix}free_share"
    has_spectrum = any(key.startswith(f"{prefix}spectrum.") for key in state)
    if not has_spectrum or kernel in state or share in state:
        return
    state[kernel] = torch.full((num_heads, 1, 1), 40.0)
    state[share] = torch.ones(num_heads)
    if isinstance(spectrum, ImplicitSpectrum):
        heads, num_samples, head_dim = spectrum.points.shape
        scale = initial_scale(heads, head_dim, num_samples, "rbf")
        for number in range(len(spectrum.generators)):
            state[f"{prefix}spectrum.generators.{number}.scale"] = torch.tensor(scale)
