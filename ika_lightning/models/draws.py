"""A network whose kernels are known by samples, asked with several sets of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ika_lightning.attention.implicit import ImplicitSpectrum
from ika_lightning.attention.start import normal_points
from ika_lightning.models.base import Network


class SpectralDraws(Network):
    """A network that is asked once for each of several draws of its implicit spectra.

    In training, such a spectrum makes its frequencies from new noise for each batch; in evaluation, from a fixed set of
    points. Other points make other frequencies, no less likely. So the spread of the answers is how little is known of
    a kernel by as many samples. The first answer is that of the network itself; the others are drawn by their number
    alone, and repeat.

    Args:
        net: A network in evaluation.
        count: How many draws there are.

    Raises:
        ValueError: If count is not positive, or the network has no implicit spectrum.

    Example:
        >>> from ika_lightning.attention import IKAN
        >>> from ika_lightning.models import RowTransformer
        >>> net = RowTransformer(num_features=3, width=8, depth=1, num_heads=2, attention=IKAN).eval()
        >>> SpectralDraws(net, count=5)(torch.randn(11, 3), torch.randn(7, 3)).shape
        torch.Size([5, 7])
    """

    def __init__(self, net: nn.Module, count: int) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        spectra = {name: module for name, module in net.named_modules() if isinstance(module, ImplicitSpectrum)}
        if not spectra:
            raise ValueError(
                "draws are of implicit spectra, and the network has none; give it IKAN or MIKAN, or leave draws at 1"
            )
        self.net = net
        self._points = [
            {f"{name}.points": _drawn(number, spectrum.points) for name, spectrum in spectra.items()}
            for number in range(1, count)
        ]

    def forward(self, *args: Tensor | None) -> Tensor:
        """Return the answers of all draws, (count, ...)."""
        others = [functional_call(self.net, points, args) for points in self._points]
        return torch.stack([self.net(*args), *others])


def _drawn(number: int, points: Tensor) -> Tensor:
    """Points of the same law as these, drawn on the CPU: the same on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(number)
        num_heads, num_samples, head_dim = points.shape
        return normal_points(num_heads, num_samples, head_dim, torch.device("cpu")).to(points)
