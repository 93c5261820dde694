"""What the networks share: they can be made anywhere, and start again in place."""

from __future__ import annotations

from typing import Self

from torch import nn

from ika_lightning.attention.start import reset_children


class Network(nn.Module):
    """Base of the networks: a module that is made of modules.

    Example:
        >>> import torch
        >>> from ika_lightning.attention import IKAN
        >>> from ika_lightning.models import Encoder
        >>> with torch.device("meta"):
        ...     net = Encoder(width=8, depth=1, num_heads=2, attention=IKAN)
        >>> net.to_empty(device="cpu").reset_parameters()
        >>> net(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        reset_children(self)


class Embedding(nn.Embedding):
    """:class:`torch.nn.Embedding` that can start with another standard deviation than 1.

    Example:
        >>> table = Embedding(1000, 8, padding_idx=0).starting(std=0.1)
        >>> table.reset_parameters()
        >>> 0.09 < table.weight.std() < 0.11, table.weight[0].any().item()
        (tensor(True), False)
    """

    std: float | None = None

    def starting(self, std: float) -> Self:
        """Draw vectors with a standard deviation, now and at every reset; that of padding is zero."""
        self.std = std
        self._draw(std)
        return self

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        super().reset_parameters()
        if self.std is not None:
            self._draw(self.std)

    def _draw(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)
        self._fill_padding_idx_with_zero()
