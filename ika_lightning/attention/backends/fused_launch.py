"""How the kernels of fused attention are launched: in tiles of which sizes, with which products, on which memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A tile of weights and the program that makes it.

    Args:
        rows: Queries in a tile, a power of 2 of at least 16.
        columns: Keys in a tile, the same.
        num_warps: Groups of 32 threads in a program.
        num_stages: Tiles that are on their way from memory at a time.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Widths:
    """Widths of the vectors of a call: d of the exponent, R of the features, e of the values; 0 where there are none.

    Example:
        >>> Widths(0, 33, 64).padded
        Widths(d=0, r=64, e=64)
    """

    d: int
    r: int
    e: int

    @property
    def padded(self) -> Widths:
        """What a product of tiles takes: powers of 2, at least 16."""
        return Widths(*(max(16, 1 << (width - 1).bit_length()) if width else 0 for width in (self.d, self.r, self.e)))

    @property
    def total(self) -> int:
        """Numbers in the rows of a tile."""
        return self.d + self.r + self.e


#: The passes, as they are named in tables.
PASSES = ("forward", "query gradient", "key gradient")

#: The widest vectors, padded and all together, for which there are tiles.
WIDEST = 384

# By pass, the widths up to which a tile is taken. Registers are what limits them: sums of gradients take one for each
# 256 or 128 numbers, and a program that runs out of them keeps the rest in memory.
_Sizes = dict[str, tuple[tuple[int, Tile], ...]]
_SMALL, _SMALLEST = Tile(32, 32, 4, 2), Tile(16, 16, 8, 2)
_HALF: _Sizes = {
    "forward": ((WIDEST, Tile(128, 32, 8, 2)),),
    "query gradient": ((192, Tile(64, 32, 4, 2)), (WIDEST, _SMALL)),
    "key gradient": ((96, Tile(32, 128, 8, 2)), (128, Tile(16, 128, 8, 2)), (WIDEST, _SMALL)),
}
_HALF_HOPPER: _Sizes = {
    "forward": ((192, Tile(64, 128, 4, 2)), (256, Tile(128, 64, 4, 2)), (WIDEST, Tile(128, 32, 8, 2))),
    "query gradient": (
        (160, Tile(64, 128, 4, 2)), (192, Tile(128, 32, 4, 3)), (256, Tile(64, 64, 4, 2)), (WIDEST, Tile(64, 32, 8, 2)),
    ),
    "key gradient": ((192, Tile(64, 64, 4, 2)), (256, Tile(32, 64, 4, 3)), (WIDEST, _SMALL)),
}  # fmt: skip
_FLOAT32: _Sizes = {
    "forward": ((128, Tile(32, 16, 8, 2)), (192, Tile(32, 32, 8, 2)), (WIDEST, _SMALLEST)),
    "query gradient": ((128, Tile(32, 16, 8, 2)), (192, Tile(32, 32, 8, 2)), (WIDEST, Tile(32, 16, 8, 2))),
    "key gradient": ((192, Tile(16, 32, 8, 2)), (WIDEST, _SMALLEST)),
}


def tile_for(kernel: str, widths: Widths, itemsize: int, arch: int = 80) -> Tile:
    """Return the tile of a pass: from Hopper on the fastest on an H200, else the largest that keeps to its registers.

    The larger a tile, the fewer bytes pass through memory. ``benchmarks/fused_resources.py`` compiles them and writes
    down what they use; ``benchmarks/fused_tiles.py`` times all that fit, on a GPU. It has timed d = e = 64 with R = 32,
    64 and 128 in bfloat16; calls of other widths take the tiles of those that are as wide in all.

    Args:
        kernel: One of :data:`PASSES`.
        widths: Widths of the call, padded at most :data:`WIDEST` in all.
        itemsize: Bytes of a number.
        arch: Compute capability that the program is for, 10 times the version; from 90 on, products have operands in
            shared memory instead of registers.

    Example:
        >>> tile_for("forward", Widths(64, 64, 64), 2, arch=90)
        Tile(rows=64, columns=128, num_warps=4, num_stages=2)
    """
    sizes = _FLOAT32 if itemsize > 2 else _HALF if arch < 90 else _HALF_HOPPER
    width = widths.padded.total
    return next(tile for most, tile in sizes[kernel] if width <= most)


def constants(kernel: str, tile: Tile, widths: Widths, **others: Any) -> dict[str, Any]:
    """Return what a kernel is compiled for."""
    padded = widths.padded
    sizes = {"D": widths.d, "R": widths.r, "E": widths.e}
    sizes |= {"D_PADDED": padded.d, "R_PADDED": padded.r, "E_PADDED": padded.e}
    if kernel == "forward":
        others.pop("IS_FLOORED")
    return {**sizes, "ROWS": tile.rows, "COLUMNS": tile.columns, **others}


def forward(
    query: Tensor,
    key: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    value: Tensor,
    bias: Tensor,
    constant: Tensor,
    floor: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """Return the averages (b, n, e) and the normalisers (b, n); see :mod:`.fused` for the shapes."""
    from ika_lightning.attention.backends.fused_kernels import forward_kernel

    tensors = [x.contiguous() for x in (query, key, query_features, key_features, value, bias, constant)]
    heads, n, m = query.size(0), query.size(1), value.size(1)
    out, normaliser = value.new_empty(heads, n, value.size(-1)), bias.new_empty(heads, n)
    launch = _Launch(tensors, floor, is_causal)
    launch("forward", forward_kernel, [*tensors, out, normaliser], heads, n, m)
    return out, normaliser


def backward(
    query: Tensor,
    key: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    value: Tensor,
    bias: Tensor,
    constant: Tensor,
    out: Tensor,
    normaliser: Tensor,
    grad_out: Tensor,
    floor: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the seven tensors."""
    from ika_lightning.attention.backends.fused_kernels import key_gradient_kernel, query_gradient_kernel

    tensors = [x.contiguous() for x in (query, key, query_features, key_features, value, bias, constant)]
    q, k, a, b, v, added, one = tensors
    heads, n, m = query.size(0), query.size(1), value.size(1)
    of_q, of_k, of_a, of_b, of_v, of_bias = (torch.empty_like(x) for x in (q, k, a, b, v, added))
    # a number for each query, which are then summed in a fixed order
    of_one, projection = bias.new_empty(heads, n * one.size(-1)), torch.empty_like(normaliser)
    launch, grad_out = _Launch(tensors, floor, is_causal), grad_out.contiguous()
    saved = [out, normaliser, grad_out, projection]
    launch("query gradient", query_gradient_kernel, [*tensors, *saved, of_q, of_a, of_one], heads, n, m)
    saved = [normaliser, grad_out, projection]
    launch("key gradient", key_gradient_kernel, [*tensors, *saved, of_k, of_b, of_v, of_bias], heads, n, m)
    of_constant = of_one.sum(-1, keepdim=True) if one.size(-1) else torch.empty_like(one)
    return of_q, of_k, of_a, of_b, of_v, of_bias, of_constant


class _Launch:
    """All that the passes of a call have in common."""

    def __init__(self, tensors: list[Tensor], floor: float, is_causal: bool) -> None:
        query, _, query_features, _, value, _, constant = tensors
        self.value, self.floor = value, floor
        self.group = query.size(0) // max(1, value.size(0))
        self.widths = Widths(query.size(-1), query_features.size(-1), value.size(-1))
        self.flags = {
            "HAS_CONSTANT": constant.size(-1) > 0,
            "IS_CAUSAL": is_causal,
            "PRECISION": precision(),
            "IS_FLOORED": floor > 0.0,
        }

    def __call__(self, name: str, kernel: Any, tensors: list[Tensor], heads: int, n: int, m: int) -> None:
        tile = tile_for(name, self.widths, self.value.itemsize, arch(self.value.device))
        rows = -(-n // tile.rows) * heads
        columns = -(-m // tile.columns) * (heads // self.group)
        programs = columns if name == "key gradient" else rows
        if programs == 0:
            return
        compiled = constants(name, tile, self.widths, **self.flags)
        options = {key: size for key, size in asdict(tile).items() if key.startswith("num_")}
        # Triton launches on the current device
        with torch.cuda.device_of(self.value):
            kernel[(programs,)](*tensors, n, m, self.group, self.floor, **compiled, **options)


def arch(device: torch.device) -> int:
    """Return the compute capability of a device, 10 times the version; 80 for that of the interpreter."""
    if device.type == "cpu":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def precision() -> str:
    """Return how products of float32 are made: as PyTorch is told to make its own.

    Example:
        >>> precision()
        'ieee'
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
