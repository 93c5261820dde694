"""How the noise of several heads is drawn together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ika_lightning.attention.start import TwoLayers, reset_children


class GaussianCopula(nn.Module):
    r"""A Gaussian copula between the heads: what couples their noise and leaves each head's own law as it is.

    .. math::
        R_c = C C^T, \qquad C_{i \cdot} = \frac{(l_{i1}, \dots, l_{i,i-1}, 1, 0, \dots)}{\| \cdot \|}, \qquad
        \epsilon = C \xi, \; \xi \sim N(0, I_h)

    Rows of norm 1 make :math:`R_c` a correlation matrix, so marginals stay standard normal; every correlation matrix
    of full rank is reached by some l. l is learned, and moved by a small encoder of all heads' mean keys. It starts
    at zero: independent heads.

    Departures from the authors' code, which multiplies the noise by the row sums of C and does not normalise it, so
    that its heads are never coupled and their marginals are off.

    Args:
        num_heads: Number of heads, h.
        head_dim: Width of a head, d.
        conditional: Let the correlation depend on the mean keys.

    Shapes:
        mean_key (b, h, d) or None; the result, C, (b, h, h), or (h, h) without a mean key.

    Example:
        >>> GaussianCopula(num_heads=2, head_dim=3)()
        tensor([[1., 0.],
                [0., 1.]], grad_fn=<DivBackward0>)
    """

    def __init__(self, num_heads: int, head_dim: int, *, conditional: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        entries = num_heads * (num_heads - 1) // 2
        self.lower = nn.Parameter(torch.zeros(entries))
        # one head has nothing to be coupled with
        self.encoder = small_encoder(num_heads * head_dim, entries) if conditional and entries else None
        self.width = num_heads * head_dim

    def reset_parameters(self) -> None:
        """Uncouple the heads, in place."""
        reset_children(self)
        nn.init.zeros_(self.lower)

    def forward(self, mean_key: Tensor | None = None) -> Tensor:
        """Return the factor C of the correlation between heads."""
        lower = self.lower
        if self.encoder is not None:
            lower = lower + self.encoder(lower.new_zeros(self.width) if mean_key is None else mean_key.flatten(-2))
        rows, columns = torch.tril_indices(self.num_heads, self.num_heads, offset=-1, device=lower.device)
        # no assignment to a new tensor, which vmap forbids
        below = lower.new_zeros(*lower.shape[:-1], self.num_heads**2)
        below = below.index_add(-1, rows * self.num_heads + columns, lower).unflatten(-1, (self.num_heads, -1))
        return F.normalize(torch.eye(self.num_heads, dtype=lower.dtype, device=lower.device) + below, dim=-1)


def small_encoder(width_in: int, width_out: int) -> TwoLayers:
    """Build the two-layer network that moves a posterior; it starts by returning zeros.

    Example:
        >>> small_encoder(3, 2)(torch.ones(3)).detach()
        tensor([0., 0.])
    """
    return TwoLayers(width_in, max(16, width_in), width_out, nn.init.zeros_)
