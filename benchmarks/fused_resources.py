"""Registers, spills and shared memory of the fused kernels, compiled ahead of time: no GPU is needed, Triton is.

    python benchmarks/fused_resources.py            all configurations, into benchmarks/results/fused_resources.csv
    python benchmarks/fused_resources.py --tiny     one of them, into no file

A configuration is a pass with the tile that it takes for its widths (d of the exponent, R of the features, e of the
values), dtype and architecture; causal calls are compiled, which have all the code. Registers are those of a thread, of
which there are 255 at most. Spills are instructions that store what no register was left for. On sm_80
half precision has none, by which tiles were chosen there; on sm_90 they were chosen by time, on an H200, where large
tiles that spill a little are faster than smaller ones that do not. Shared memory is in bytes: a program may have
166,912 on sm_80, 232,448 on sm_90, and about 101,376 on cards for desktops, which run what is compiled for sm_80.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ika_lightning.attention.backends import fused_kernels
from ika_lightning.attention.backends.fused_launch import PASSES, Tile, Widths, constants, tile_for
from ika_lightning.output import write_output

RESULTS = Path(__file__).parent / "results" / "fused_resources.csv"
KERNELS = {
    "forward": fused_kernels.forward_kernel,
    "query gradient": fused_kernels.query_gradient_kernel,
    "key gradient": fused_kernels.key_gradient_kernel,
}
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# What is float32 in every dtype of the call.
FLOAT32 = {"bias", "constant", "normaliser", "projection", "of_constant", "of_bias"}


class Configuration(NamedTuple):
    """What is compiled: a pass, its widths, the dtype of its products with their precision, and the architecture."""

    kernel: str
    widths: Widths
    dtype: str
    precision: str
    arch: int

    @property
    def tile(self) -> Tile:
        """The tile that a call of this kind takes."""
        return tile_for(self.kernel, self.widths, 4 if self.dtype == "fp32" else 2, self.arch)


def configurations() -> Iterator[Configuration]:
    half = [(0, 32, 64), (0, 64, 64), (0, 128, 64), (32, 64, 32), (64, 32, 64), (64, 64, 64), (64, 128, 64)]
    for arch in (80, 90):
        for kernel in PASSES:
            for sizes in (*half, (128, 128, 128)):
                yield Configuration(kernel, Widths(*sizes), "bf16", "ieee", arch)
            for sizes in ((0, 64, 64), (64, 64, 64), (64, 128, 64), (128, 128, 128)):
                for precision in ("ieee", "tf32"):
                    yield Configuration(kernel, Widths(*sizes), "fp32", precision, arch)


def compiled(configuration: Configuration) -> dict[str, object]:
    """Compile a configuration and return its row of the table."""
    kernel, widths, dtype, precision, arch = configuration
    tile, function = configuration.tile, KERNELS[kernel]
    flags = {"HAS_CONSTANT": True, "IS_CAUSAL": True, "PRECISION": precision, "IS_FLOORED": True}
    values = constants(kernel, tile, widths, **flags)
    types = {"n": "i32", "m": "i32", "group": "i32", "floor": "fp32"}
    pointers = {name: "*fp32" if name in FLOAT32 else f"*{dtype}" for name in function.arg_names}
    signature = {name: "constexpr" if name in values else types.get(name, pointers[name]) for name in pointers}
    # PyTorch's memory begins at multiples of 16 bytes
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(function.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(function, signature, values, aligned)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    program = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spills = used(program.asm["cubin"])
    return {
        "arch": f"sm_{arch}", "pass": kernel, "d": widths.d, "R": widths.r, "e": widths.e, "dtype": dtype,
        "precision": precision if dtype == "fp32" else "", "rows": tile.rows, "columns": tile.columns,
        "warps": tile.num_warps, "stages": tile.num_stages, "registers": registers, "spills": spills,
        "shared memory": program.metadata.shared,
    }  # fmt: skip


def used(program: bytes) -> tuple[int, int]:
    """Return the registers and the spills of a program."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "program.cubin")
        file.write_bytes(program)
        usage, code = (
            subprocess.run([TOOL, option, file], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None:
        raise RuntimeError(f"cuobjdump has another format than expected: {usage!r}")
    return int(registers.group(1)), len(re.findall(r"\bSTL\b", code))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    rows = []
    chosen = [Configuration("forward", Widths(0, 16, 16), "bf16", "ieee", 80)] if arguments.tiny else configurations()
    for configuration in chosen:
        rows.append(compiled(configuration))
        print(*rows[-1].values(), flush=True)
    if not arguments.tiny:
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_output(RESULTS, table.getvalue().encode())
        print(f"written: {RESULTS}; spilling: {sum(row['spills'] > 0 for row in rows)} of {len(rows)}")


if __name__ == "__main__":
    main()
