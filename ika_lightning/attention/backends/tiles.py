"""What the backends that never hold an n x m matrix share: tiles, magnitudes folded into values, and quotients of sums.

Sums are held transposed, (..., e + 1, n), as products with narrow matrices are faster that way; the last row of them is
the sum of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ika_lightning.attention.backends.call import nonzero

# A tile of 256 x 256 float32 and its operands stay in the second-level cache of a core; larger ones spill, and waste
# more on the diagonal of a causal call. Smaller ones make the matrix products inefficient.
TILE = 256

# Numbers in the matrices of one step: heads smaller than that go together, and each core takes some of them whole.
CPU_STEP = 2**19

# An accelerator has no such cache to stay in, and wants work for all its cores at once.
ACCELERATOR_TILE, ACCELERATOR_STEP = 2048, 2**25


def blocks(length: int, size: int) -> list[slice]:
    """Cut a length into slices of a size, the last one perhaps shorter.

    Example:
        >>> blocks(5, 3)
        [slice(0, 3, None), slice(3, 5, None)]
    """
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def tile_size(x: Tensor) -> int:
    """Return how many queries, and keys, make a tile on the device of a tensor."""
    return TILE if x.device.type == "cpu" else ACCELERATOR_TILE


def head_groups(x: Tensor, numbers: int) -> list[slice]:
    """Cut the leading axis so that a step of a group, with this many numbers for each head, fits where it should."""
    step = CPU_STEP if x.device.type == "cpu" else ACCELERATOR_STEP
    return blocks(x.size(0), max(1, step // max(1, numbers)))


def seen_maximum(log_magnitude: Tensor, length: int, is_causal: bool) -> Tensor:
    """Return the largest log-magnitude that each row sees; where there is none, the lowest finite number.

    Shapes:
        log_magnitude (b, m); the result (b, length), length at least m.

    Example:
        >>> seen_maximum(torch.tensor([[1.0, 3.0, 2.0]]), 4, is_causal=True)
        tensor([[1., 3., 3., 3.]])
    """
    if log_magnitude.size(-1) == 0:
        return log_magnitude.new_zeros(log_magnitude.size(0), length)
    seen = log_magnitude.cummax(-1).values if is_causal else log_magnitude.amax(-1, keepdim=True)
    seen = torch.cat([seen, seen[:, -1:].expand(-1, length - seen.size(-1))], dim=-1)
    return seen.clamp_min(torch.finfo(seen.dtype).min)  # (-inf) - (-inf) would be NaN


def append_one(value: Tensor) -> Tensor:
    """Return [v, 1] of each key, transposed: products with narrow matrices (e + 1, m) are faster.

    Shapes:
        value (..., m, e); the result (..., e + 1, m), contiguous.

    Example:
        >>> append_one(torch.tensor([[[3.0], [4.0]]]))
        tensor([[[3., 4.],
                 [1., 1.]]])
    """
    *lead, m, width = value.shape
    values = value.new_empty(*lead, width + 1, m)
    values[..., :-1, :], values[..., -1, :] = value.mT, 1.0
    return values


def weigh(value: Tensor, log_magnitude: Tensor, shift: Tensor) -> Tensor:
    """Return exp(mag - shift) [v, 1] of each key, transposed.

    Shapes:
        value (..., m, e); log_magnitude (..., m); shift (...); the result (..., e + 1, m).

    Example:
        >>> weigh(torch.tensor([[[3.0], [4.0]]]), torch.tensor([[2.0, 2.0]]), torch.tensor([2.0]))
        tensor([[[3., 4.],
                 [1., 1.]]])
    """
    return append_one(value).mul_((log_magnitude - shift[..., None]).exp().unsqueeze(-2))


def diagonal_sums(
    query: Tensor, key: Tensor, value: Tensor, log_magnitude: Tensor, shift: Tensor, floor: float
) -> Tensor:
    """Return the sums of a tile on the diagonal, whose row i sees keys 0..i, relative to the shift of each row.

    Shapes:
        query (b, n, R); key (b, m, R); value (b, m, e); log_magnitude (b, m); shift (b, n); the result (b, e + 1, n).
    """
    decay = (log_magnitude[:, None] - shift[..., None]).exp_()
    weights = (query @ key.mT).square_().add_(floor).mul_(decay).tril_()
    return append_one(value) @ weights.mT


def diagonal_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_magnitude: Tensor,
    shift: Tensor,
    floor: float,
    grad_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a tile on the diagonal adds to the gradients of query, key and exp(mag) [v, 1], over exp(mag)."""
    decay = (log_magnitude[:, None] - shift[..., None]).exp_()
    similarity = query @ key.mT
    grad_similarity = (grad_sums.mT @ append_one(value)).mul_(similarity).mul_(decay).mul_(2).tril_()
    weights = similarity.square_().add_(floor).mul_(decay).tril_()
    return grad_similarity @ key, grad_similarity.mT @ query, grad_sums @ weights


def divide_into(out: Tensor, weight_sum: Tensor, sums: Tensor) -> None:
    """Write averages and sums of weights; a row without weight averages nothing, 0 / 0 = 0.

    Shapes:
        out (..., n, e); weight_sum (..., n); sums (..., e + 1, n).
    """
    weight_sum.copy_(sums[..., -1, :])
    out.copy_((sums[..., :-1, :] / nonzero(sums[..., -1:, :])).mT)


def sums_gradient(out: Tensor, weight_sum: Tensor, grad_out: Tensor) -> Tensor:
    """Return the gradient of the sums, given the gradient of their quotient; as :func:`divide_into`."""
    grad = grad_out.new_empty(out.size(0), out.size(-1) + 1, out.size(1))
    grad[:, :-1] = grad_out.mT
    grad[:, -1] = torch.linalg.vecdot(grad_out, out).neg_()
    return grad.div_(nonzero(weight_sum).unsqueeze(1))


def unweigh_into(grad_value: Tensor, grad_log_magnitude: Tensor, value: Tensor, grad_weighted: Tensor) -> None:
    """Write the gradients of values and log-magnitudes, given that of exp(mag) [v, 1], times exp(mag).

    Shapes:
        value and its gradient (b, m, e); grad_log_magnitude (b, m); grad_weighted (b, e + 1, m).
    """
    grad_value.copy_(grad_weighted[:, :-1].mT)
    grad_log_magnitude.copy_(torch.linalg.vecdot(grad_value, value)).add_(grad_weighted[:, -1])
