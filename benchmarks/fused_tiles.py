"""Which tiles of the fused kernels are the fastest on this machine's GPU.

    python benchmarks/fused_tiles.py                          3 minutes, into benchmarks/results/gpu/<card>/tiles.csv
    python benchmarks/fused_tiles.py --features 64 --causal   one width, causal calls
    TRITON_INTERPRET=1 python benchmarks/fused_tiles.py --tiny      a trial without a GPU, of sizes that mean nothing

Each pass (forward, gradient of queries, gradient of keys) is timed alone, in bfloat16 with d = e = 64, over every tile
that a program has room for; ``tile_for`` in ``ika_lightning/attention/backends/fused_launch.py`` holds the choice, and
the column ``chosen`` says which it is. Programs are compiled first, by as many processes as there are cores, into
Triton's cache. What does not fit the card is left out.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
from gpu import RESULTS, Machine
from torch import Tensor

from ika_lightning.attention.backends import fused_kernels, fused_launch
from ika_lightning.attention.backends.fused_launch import PASSES, Tile, Widths, tile_for
from ika_lightning.output import write_output

WIDTH = 64


class Candidate(NamedTuple):
    """A pass with R features, in a tile."""

    kernel: str
    features: int
    tile: Tile


def candidates(features: list[int], tiny: bool) -> Iterator[Candidate]:
    """All that may be worth a try: a program's part of a tile is at most 128 numbers a thread."""
    sizes_of_tiny = (16,), (16, 32), (4,), (2,)
    sizes_of_all = (32, 64, 128), (32, 64, 128), (4, 8), (2, 3)
    for kernel, number in itertools.product(PASSES, features):
        for sizes in itertools.product(*(sizes_of_tiny if tiny else sizes_of_all)):
            tile = Tile(*sizes)
            if tile.rows * tile.columns <= 128 * 32 * tile.num_warps:
                yield Candidate(kernel, number, tile)


def drawn(features: int, heads: int, n: int, device: str) -> list[Tensor]:
    """The tensors of a call, as the kernels take them."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q, k, v = (torch.randn(heads, n, WIDTH, device=device, dtype=dtype) for _ in range(3))
    a, b = (torch.randn(heads, n, features, device=device, dtype=dtype) for _ in range(2))
    bias, constant = torch.randn(heads, n, device=device), torch.empty(heads, 0, device=device)
    return [q / WIDTH**0.5, k, a / features**0.5, b, v, bias, constant]


def launcher(candidate: Candidate, tensors: list[Tensor], is_causal: bool) -> Callable[[], None]:
    """Return how one pass is launched in a tile."""
    q, k, a, b, v, bias, _ = tensors
    heads, n = q.shape[:2]
    row, like = torch.ones(heads, n, device=q.device), torch.empty_like
    # the result and its gradient, the normaliser of a row and its product of both: any numbers take the same time
    saved = {"out": like(v).normal_(), "normaliser": 10.0 * row, "grad_out": like(v).normal_(), "projection": row}
    kernel, rest = {
        "forward": (fused_kernels.forward_kernel, [like(v), row]),
        "query gradient": (fused_kernels.query_gradient_kernel, [*saved.values(), like(q), like(a), row.new_empty(0)]),
        "key gradient": (
            fused_kernels.key_gradient_kernel,
            [*list(saved.values())[1:], like(k), like(b), like(v), like(bias)],
        ),
    }[candidate.kernel]
    launch = fused_launch._Launch(tensors, 1e-5, is_causal)

    def run() -> None:
        with mock.patch.object(fused_launch, "tile_for", lambda *_: candidate.tile):
            launch(candidate.kernel, kernel, [*tensors, *rest], heads, n, n)

    return run


def fits(candidate: Candidate, is_causal: bool, device: str) -> bool:
    """Compile a candidate and run it once; whether the card has room for it."""
    try:
        launcher(candidate, drawn(candidate.features, 1, 128 if device == "cuda" else 32, device), is_causal)()
    except Exception as error:
        if type(error).__name__ != "OutOfResources":
            raise
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing, to try the command out")
    arguments = parser.parse_args()
    machine = Machine("cpu" if arguments.tiny else "cuda", arguments.tiny)
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; TRITON_INTERPRET=1 with --tiny tries the command out")
    features, heads, n = ([16], 1, 32) if arguments.tiny else (arguments.features, arguments.heads, arguments.n)
    everything, began = list(candidates(features, arguments.tiny)), time.monotonic()
    check = partial(fits, is_causal=arguments.causal, device=machine.device)
    if arguments.tiny:
        room = [check(candidate) for candidate in everything]
    else:
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            room = pool.map(check, everything, chunksize=2)
    print(f"compiled {len(everything)} programs in {time.monotonic() - began:.0f} s, {sum(room)} fit", flush=True)
    rows: list[dict[str, object]] = []
    arch = fused_launch.arch(torch.device(machine.device))
    for number in features:
        tensors = drawn(number, heads, n, machine.device)
        for kernel in PASSES:
            chosen = tile_for(kernel, Widths(WIDTH, number, WIDTH), 2, arch)
            timed = [
                (1e3 * machine.seconds(launcher(candidate, tensors, arguments.causal), most=0.05), candidate.tile)
                for candidate, is_there_room in zip(everything, room, strict=True)
                if is_there_room and candidate[:2] == (kernel, number)
            ]
            timed.sort(key=lambda pair: pair[0])
            for milliseconds, tile in timed:
                rows.append(
                    {"pass": kernel, "d": WIDTH, "R": number, "e": WIDTH, "n": n, "heads": heads,
                     "causal": arguments.causal, "rows": tile.rows, "columns": tile.columns, "warps": tile.num_warps,
                     "stages": tile.num_stages, "ms": round(milliseconds, 4), "chosen": tile == chosen}
                )  # fmt: skip
            best = ", ".join(f"{milliseconds:.3f} {tuple(vars(tile).values())}" for milliseconds, tile in timed[:3])
            now = next((f"{milliseconds:.3f}" for milliseconds, tile in timed if tile == chosen), "not among them")
            print(f"{kernel}, R = {number}: {best}; chosen {tuple(vars(chosen).values())}: {now}", flush=True)
    if not arguments.tiny:
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file = RESULTS / machine.card / f"tiles{'_causal' if arguments.causal else ''}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_output(file, table.getvalue().encode())
        print(f"written: {file}")


if __name__ == "__main__":
    main()
