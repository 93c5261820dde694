"""Time and memory of attention, from queries, keys and values to the output, as ratios within one run.

    python benchmarks/attention.py                  the table of the README; a CSV and a picture in benchmarks/results
    python benchmarks/attention.py --what scaling   the linear backend from 16k to 131k tokens, with peak memory
    python benchmarks/attention.py --what auto      the backend that "auto" takes against the best, over a grid
    python benchmarks/attention.py --what layers    whole layers on small calls
    python benchmarks/attention.py --device cuda --dtype bfloat16

Compared are ``F.scaled_dot_product_attention``, the backends of ``kernel_attention`` (with Bochner features of the
queries and keys and the magnitude of the keys made inside the timed call; ``exact+`` has the exponential of the inner
product beside the features, as layers that start as softmax attention), and the authors' formula, the logarithm of
the kernel plus that of the magnitude through a softmax, written plainly. Repeats are interleaved over the methods;
printed are medians, and the spread from the 10th to the 90th percentile of the ratio to
``F.scaled_dot_product_attention`` in the same repeat. Peak memory is of a process of its own that makes one call
forward and backward, less what it held before the call.

``of peak`` is the rate of the matrix products that the definition of a method asks for (forward and backward, without
what a backward computes again), divided by the rate of a 1024 x 1024 matrix product on the same machine.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect, kernel_attention
from ika_lightning.attention.backends import Call, choose
from ika_lightning.attention.features import Bochner
from ika_lightning.attention.magnitude import log_magnitude
from ika_lightning.attention.mask import Mask
from ika_lightning.output import open_output, write_output

RESULTS = Path(__file__).parent / "results"
# Backends of calls that have an exponent as well are named "exact+...".
EXACT = "exact+"


class Case(NamedTuple):
    """The shape of a call: n queries and keys, M spectral samples, width d of a head."""

    n: int
    samples: int
    d: int = 64
    heads: int = 8
    batch: int = 1
    causal: bool = False


def authors_formula(query: Tensor, key: Tensor, value: Tensor, magnitude: Tensor, causal: bool) -> Tensor:
    log_weight = ((query @ key.mT).square() + 1e-5).log() + magnitude.unsqueeze(-2)
    if causal:
        n = query.size(-2)
        log_weight = log_weight.masked_fill(~torch.ones(n, n, dtype=torch.bool, device=query.device).tril(), -math.inf)
    return log_weight.softmax(-1) @ value


def call(method: str, case: Case, query: Tensor, key: Tensor, value: Tensor, frequencies: Tensor) -> Tensor:
    """Attend with one method."""
    if method == "sdpa":
        return F.scaled_dot_product_attention(query, key, value, is_causal=case.causal)
    features = [Bochner((frequencies,))(x.float()) for x in (query, key)]
    magnitude = log_magnitude(key.float(), 2.0)
    if method.startswith(EXACT):
        # the exact part of a learned kernel at its start, whose norm cancels the magnitude's
        exponent = {"query": query * case.d**-0.5, "key": key}
        backend = method.removeprefix(EXACT)
        return kernel_attention(*features, value, 0.0 * magnitude, **exponent, is_causal=case.causal, backend=backend)
    if method == "authors":
        return authors_formula(*features, value.float(), magnitude, case.causal).to(value.dtype)
    return kernel_attention(*features, value, magnitude, is_causal=case.causal, backend=method)


def inputs(case: Case, device: str, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.heads, case.n, case.d)
    drawn = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
    frequencies = torch.randn(case.heads, case.samples, case.d, generator=generator) / (2 * math.sqrt(case.d)) ** 0.5
    return drawn, frequencies.to(device).requires_grad_()


def like(case: Case, device: str) -> Call:
    """Return a call of that shape on a device, without memory of its own, for what backends say of it."""
    lead = (case.batch, case.heads, case.n)
    features = torch.empty((), device=device).expand(*lead, 2 * case.samples)
    value = torch.empty((), device=device).expand(*lead, case.d)
    mask = Mask(causal=case.causal)
    return Call(None, None, features, features, value, None, mask, dropout_p=0.0, floor=1e-5, need_weights=False)


def multiply_adds(method: str, case: Case) -> float:
    """Multiply-adds of the matrix products that a method's definition asks for, forward and backward."""
    n, d, features = case.n, case.d, 2 * case.samples
    pairs = n * n / (2 if case.causal else 1)
    if method == "sdpa":
        each = pairs * 2 * d
    elif method == "linear":
        each = 2 * n * features * (features + 1) / 2 * (d + 1)
    else:
        each = pairs * (features + d + 1 + d * method.startswith(EXACT))
    return 3 * case.batch * case.heads * each


def interleaved(steps: dict[str, Callable[[], None]], repeats: int, synchronize: Callable[[], None]) -> np.ndarray:
    """Return seconds, (repeats, methods); the first round warms up and is not counted.

    Each round goes through the methods in another order: one that leaves much memory behind slows the next one down.
    """
    times = np.empty((repeats + 1, len(steps)))
    ordered, rng = list(steps.values()), np.random.default_rng(0)
    for repeat in range(repeats + 1):
        for column in rng.permutation(len(ordered)):
            synchronize()
            started = time.perf_counter()
            ordered[column]()
            synchronize()
            times[repeat, column] = time.perf_counter() - started
    return times[1:]


def peak_rate(device: str, dtype: torch.dtype, synchronize: Callable[[], None]) -> float:
    """Multiply-adds a second of a large matrix product."""
    size = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return size**3 / np.median(interleaved({"product": lambda: a @ b}, 30, synchronize))


def timed(case: Case, methods: list[str], arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Measure forward and forward + backward of every method on one case."""
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    drawn, frequencies = inputs(case, device, dtype)
    gradient = torch.randn_like(drawn[0])

    def forward(method: str) -> None:
        with torch.no_grad():
            call(method, case, *drawn, frequencies)

    def both(method: str) -> None:
        for leaf in (*drawn, frequencies):
            leaf.grad = None
        call(method, case, *drawn, frequencies).backward(gradient)

    peak = peak_rate(device, dtype, synchronize)
    repeats = max(3, min(arguments.repeats, int(2e10 * arguments.repeats / multiply_adds("sdpa", case))))
    rows = []
    sides = {
        what: interleaved({method: partial(step, method) for method in methods}, repeats, synchronize)
        for what, step in (("forward", forward), ("both", both))
    }
    for column, method in enumerate(methods):
        ratio = sides["both"][:, column] / sides["both"][:, 0]
        low, high = np.percentile(ratio, [10, 90])
        rows.append(
            {
                **case._asdict(),
                "method": method,
                "forward_ms": 1000 * np.median(sides["forward"][:, column]),
                "both_ms": 1000 * np.median(sides["both"][:, column]),
                "forward_ratio": np.median(sides["forward"][:, column] / sides["forward"][:, 0]),
                "ratio": np.median(ratio),
                "low": low,
                "high": high,
                "of_peak": multiply_adds(method, case) / np.median(sides["both"][:, column]) / peak,
            }
        )
    return rows


def peak_memory(case: Case, method: str, arguments: argparse.Namespace) -> float:
    """MiB that one call forward and backward needs on top of its inputs, in a process of its own."""
    words = [__file__, "--what", "one-call", "--method", method, "--case", *map(str, map(int, case))]
    done = subprocess.run([sys.executable, *words, "--device", arguments.device, "--dtype", arguments.dtype],
                          capture_output=True, text=True, check=True)  # fmt: skip
    return float(done.stdout)


def one_call(arguments: argparse.Namespace) -> None:
    """Print the peak memory of one call; what a process of its own does."""
    *sizes, causal = arguments.case
    case = Case(*sizes, causal=bool(causal))
    drawn, frequencies = inputs(case, arguments.device, getattr(torch, arguments.dtype))
    warm_up, few = inputs(case._replace(n=16), arguments.device, getattr(torch, arguments.dtype))
    call(arguments.method, case, *warm_up, few).sum().backward()  # loads what is loaded lazily

    before = start_measuring(arguments.device)
    call(arguments.method, case, *drawn, frequencies).sum().backward()
    print(peak(arguments.device) - before)


STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


def start_measuring(device: str) -> float:
    """Return the memory that this process holds, in MiB; :func:`peak` is from here on, where that can be had."""
    if device == "cpu" and STATUS.exists():
        # ru_maxrss of a new process starts at its parent's there, which may be more than it will ever hold itself.
        RESET.write_text("5")
        return memory_status("VmRSS")
    return peak(device)


def peak(device: str) -> float:
    """Return the most memory that this process has held, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if STATUS.exists():
        return memory_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory_status(name: str) -> float:
    (kilobytes,) = (line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(kilobytes) / 2**10


def show(rows: list[dict[str, object]]) -> None:
    """Print one case as Markdown."""
    for row in rows:
        case = f"{row['n']:,}, M = {row['samples']}" + (", causal" if row["causal"] else "")
        memory = f"{row['memory']:,.0f}" if "memory" in row else ""
        print(
            f"| {case} | {row['method']} | {row['forward_ms']:,.1f} | {row['both_ms']:,.1f} | {row['ratio']:.2f} "
            f"({row['low']:.2f} - {row['high']:.2f}) | {row['of_peak']:.0%} | {memory} |",
            flush=True,
        )


HEADER = (
    "| n | method | forward, ms | forward + backward, ms | x SDPA (10 - 90 %) | of peak | peak memory, MiB |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def save(rows: list[dict[str, object]], name: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_output(RESULTS / f"{name}.csv", text.getvalue().encode())


def draw(rows: list[dict[str, object]]) -> None:
    """Draw the time of every method over the length."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    samples, kinds = sorted({row["samples"] for row in rows}), (False, True)
    colours = {"sdpa": "#000000", "linear": "#0072B2", "chunked": "#D55E00", "dense": "#999999", "authors": "#CC79A7",
               "exact+chunked": "#009E73", "exact+dense": "#56B4E9"}  # fmt: skip
    figure, axes = plt.subplots(2, len(samples), figsize=(3.4 * len(samples), 5.6), sharex=True, sharey=True)
    for (causal, many), axis in zip(itertools.product(kinds, samples), axes.flat, strict=True):
        here = [row for row in rows if (row["samples"], row["causal"]) == (many, causal)]
        for method, colour in colours.items():
            points = sorted((row["n"], row["both_ms"]) for row in here if row["method"] == method)
            axis.loglog(*zip(*points, strict=True), marker="o", color=colour, label=method)
        axis.set_title(f"M = {many}" + (", causal" if causal else ""))
        axis.set_xticks(ticks := sorted({row["n"] for row in rows}), [f"{n:,}" for n in ticks], fontsize=8)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.supxlabel("tokens")
    figure.supylabel("forward + backward, ms")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="upper center", ncols=len(colours), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    with open_output(RESULTS / "attention.png") as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


def run_table(arguments: argparse.Namespace) -> None:
    print(HEADER)
    rows = []
    shapes = [(32, n) for n in (512, 2048, 8192)] + [(64, n) for n in (512, 2048, 8192)] + [(16, 2048), (16, 16384)]
    for causal, (samples, n) in itertools.product((False, True), shapes):
        case = Case(n, samples, causal=causal)
        methods = ["sdpa", "linear"]
        if n < 16384:  # where it takes minutes, and says no more than at 8,192
            methods += ["chunked", f"{EXACT}chunked"]
        if n <= 2048:  # beyond, the n x n matrices of these take more memory than a laptop has
            methods += ["dense", f"{EXACT}dense", "authors"]
        measured = timed(case, methods, arguments)
        if n == 2048:
            for row in measured:
                row["memory"] = peak_memory(case, str(row["method"]), arguments)
        show(measured)
        rows += measured
    save(rows, "attention")
    draw(rows)


def run_scaling(arguments: argparse.Namespace) -> None:
    """The linear backend up to 131k tokens. Memory is that of one head, as one call of SDPA takes minutes there."""
    print("| n | causal | linear, forward + backward, s | exponent | linear, MiB | SDPA, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = []
    for causal in (False, True):
        before = None
        for n in (16384, 32768, 65536, 131072):
            case = Case(n, 16, causal=causal)
            (row,) = timed(case, ["linear"], arguments)
            seconds = float(row["both_ms"]) / 1000
            exponent = math.log2(seconds / before) if before else math.nan
            one_head = case._replace(heads=1)
            row["memory"] = peak_memory(one_head, "linear", arguments)
            theirs = peak_memory(one_head, "sdpa", arguments) if n in (16384, 131072) and not causal else math.nan
            print(f"| {n:,} | {causal} | {seconds:.2f} | {exponent:.2f} | {row['memory']:,.0f} | {theirs:,.0f} |",
                  flush=True)  # fmt: skip
            rows.append(row | {"exponent": exponent, "sdpa_memory": theirs})
            before = seconds
    save(rows, "scaling")


def run_auto(arguments: argparse.Namespace) -> None:
    """What "auto" costs against the best backend, over a grid of 30 shapes."""
    grid = [
        Case(n, samples, d, batch=batch, causal=causal)
        for n, batch in ((32, 32), (128, 8), (512, 2), (2048, 1), (8192, 1))
        for samples, d, causal in ((16, 64, False), (32, 64, False), (64, 64, False), (16, 64, True), (64, 64, True),
                                   (64, 8, False))
    ]  # fmt: skip
    print("| batch | n | M | d | causal | taken | best | auto over best |\n" + "| --- " * 8 + "|")
    rows = []
    for case in grid:
        methods = ["auto", "chunked", "linear"] + ["dense"] * (case.n <= 2048)
        measured = timed(case, methods, arguments)
        best = min(measured[1:], key=lambda row: float(row["both_ms"]))
        ratio = float(measured[0]["both_ms"]) / float(best["both_ms"])
        taken = choose(like(case, arguments.device)).name
        shape = f"{case.batch} | {case.n:,} | {case.samples} | {case.d} | {case.causal}"
        print(f"| {shape} | {taken} | {best['method']} | {ratio:.2f} |", flush=True)
        rows += [row | {"taken": taken, "over_best": ratio} for row in measured]
    save(rows, "auto")
    print(f"worst: {max(float(row['over_best']) for row in rows):.2f}")


def run_layers(arguments: argparse.Namespace) -> None:
    """Whole layers, forward and backward, as ratios to DotProduct."""
    kinds = {"DotProduct": DotProduct, "RBF": RBF, "IKANDirect": IKANDirect, "IKAN": IKAN, "MIKAN": MIKAN}
    print("| batch | n | layer | forward + backward, ms | x DotProduct (10 - 90 %) |\n| --- | --- | --- | --- | --- |")
    for batch, n in ((32, 32), (8, 128), (1, 512)):
        torch.manual_seed(0)
        x = torch.randn(batch, n, 512)
        layers = {name: kind(512, 8, batch_first=True) for name, kind in kinds.items()}

        def both(layer: torch.nn.Module, x: Tensor = x) -> None:
            layer.zero_grad()
            out, _ = layer(x, x, x, need_weights=False)
            (out.square().mean() + layer.kl).backward()

        times = interleaved({k: partial(both, v) for k, v in layers.items()}, arguments.repeats, lambda: None)
        for column, name in enumerate(layers):
            ratio = times[:, column] / times[:, 0]
            low, high = np.percentile(ratio, [10, 90])
            print(f"| {batch} | {n} | {name} | {1000 * np.median(times[:, column]):.1f} | {np.median(ratio):.2f} "
                  f"({low:.2f} - {high:.2f}) |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runs = {"table": run_table, "scaling": run_scaling, "auto": run_auto, "layers": run_layers, "one-call": one_call}
    parser.add_argument("--what", choices=runs, default="table")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--case", nargs=6, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what != "one-call":
        print(f"torch {torch.__version__}, {arguments.device}, {arguments.dtype}, {torch.get_num_threads()} threads")
    runs[arguments.what](arguments)


if __name__ == "__main__":
    main()
