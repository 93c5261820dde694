"""Where in its sequence a token stands, as a vector."""

import torch
from torch import Tensor


def sinusoids(first: int, count: int, like: Tensor) -> Tensor:
    r"""Encode positions by waves of different length (Vaswani et al. 2017).

    .. math:: [\sin(t f_0), \dots, \sin(t f_{w/2 - 1}), \cos(t f_0), \dots, \cos(t f_{w/2 - 1})], \qquad
        f_i = 10000^{-2i/w}

    Args:
        first: The first position.
        count: How many positions.
        like: A tensor (..., w) of the device and dtype of the result.

    Shapes:
        the result (count, w).

    Example:
        >>> sinusoids(0, 2, torch.empty(1, 2))
        tensor([[0.0000, 1.0000],
                [0.8415, 0.5403]])
    """
    width = like.size(-1)
    position = torch.arange(first, first + count, device=like.device, dtype=torch.float32)
    frequency = 10_000.0 ** -(torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    phase = torch.outer(position, frequency)
    return torch.cat([phase.sin(), phase.cos()], -1)[:, :width].to(like.dtype)
