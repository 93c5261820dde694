"""All that a machine with a GPU is asked, in one command that ends in time: ``make gpu``.

    python benchmarks/gpu.py                       tests, attention, training: at most 6 minutes together
    python benchmarks/gpu.py --what attention      one of the three
    python benchmarks/gpu.py --device cpu --tiny   a trial without a GPU, of sizes that mean nothing

Three parts, each with a share of the time: the tests marked ``gpu``; attention, forward and backward, from 1,024 to
65,536 queries, with peak memory; and training steps a second of the translation network of
``configs/translation/multi30k.yaml`` and of graph layers, on drawn data. What does not begin in time is named and left
out, and what has begun is stopped when all of the time is over. Each row is printed, and written with those before it,
as CSV and Markdown, into ``benchmarks/results/gpu/<card>``, as soon as it is measured: whatever ends the command, they
are there. What fails has its reason in its row, the rest goes on, and the exit status is 1.

Attention is the operation alone: features, queries and keys are given in the dtype, biases in float32, and all get
gradients. Widths are d = e = 64; R features stand beside an exponent in ``fused``, ``chunked`` and ``dense``, and alone
in ``features: fused`` and ``features: linear``. ``sdpa`` is PyTorch's own, which in half precision is the flash kernel;
``flex`` is FlexAttention with a bias for each key, which has no place for a second product; ``authors`` is the formula
of the authors' code, the logarithm of the kernel through a softmax. ``ratio`` is to ``sdpa`` of the same row of cases,
``of rate`` the share of the card's rate, as a large matrix product of the dtype attains it here, that the products of
the definition take: n^2 (d + R + e) multiply-adds forward and twice that backward, n R^2 (e + 1) for ``linear``.
"""

from __future__ import annotations

import _thread
import argparse
import csv
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv, TransformerConv

from ika_lightning.attention import (
    IKAN,
    MIKAN,
    RBF,
    DotProduct,
    IKANDirect,
    KernelGATConv,
    KernelTransformerConv,
    kernel_attention,
)
from ika_lightning.models import EncoderDecoder, compile_layers
from ika_lightning.output import write_output

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "gpu"
WIDTH = 64
Row = dict[str, object]
# what the remark of a row begins with that should have been a figure
FAILED = "failed"
# seconds after the time is over until what is under way is stopped
GRACE = 10.0


class Clock:
    """What is left of a number of seconds."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()


class Stopped(BaseException):
    """A signal, or the end of the time, has stopped what was under way."""


@contextmanager
def stoppable(seconds: float) -> Iterator[None]:
    """Let signals raise :class:`Stopped` in what is inside, and one of them come after some seconds."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    timer = threading.Timer(seconds, _thread.interrupt_main, [signal.SIGTERM])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def reason(error: Exception) -> str:
    """Return why there is no figure, in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines()
    return f"{FAILED}: {type(error).__name__}{f': {lines[0]}' if lines else ''}"


class Machine(NamedTuple):
    """Where it is measured, and in which sizes."""

    device: str
    tiny: bool

    @property
    def card(self) -> str:
        """The name of the device, as a folder may be called."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else self.device
        return re.sub(r"\W+", "-", name).strip("-").lower()

    def synchronize(self) -> None:
        """Wait for what was begun."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, step: Callable[[], object], most: float = 0.5) -> float:
        """Return the median time of a step, of as many as go into some seconds; the first warms up."""
        times: list[float] = []
        while len(times) < 2 or (len(times) < 31 and sum(times[1:]) < (0.0 if self.tiny else most)):
            self.synchronize()
            began = time.perf_counter()
            step()
            self.synchronize()
            times.append(time.perf_counter() - began)
        return sorted(times[1:])[(len(times) - 1) // 2]

    def rate(self, dtype: torch.dtype) -> float:
        """Return the multiply-adds a second of a large matrix product."""
        size = 64 if self.tiny else 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        return size**3 / self.seconds(lambda: a @ b)

    def peak_memory(self, step: Callable[[], object]) -> float | None:
        """Return the MiB that a step takes on top of what there is."""
        if self.device != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


# --- Tests ------------------------------------------------------------------------------------------------------------


def run_tests(machine: Machine, clock: Clock) -> Iterator[Row]:
    """Run the tests marked ``gpu``, which print as they go."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py", "-v"]
    command += ["-k", "DotProduct"] if machine.tiny else []
    environment = os.environ | {"IKA_TEST_DEVICE": machine.device, "PYTHONUNBUFFERED": "1"}
    last = ""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        # one that hangs prints nothing
        watch = threading.Timer(max(0.0, clock.left()), process.kill)
        watch.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.strip(" =\n") or last
        except BaseException:
            process.kill()
            raise
        finally:
            watch.cancel()
    if clock.left() < 0:
        yield {"tests": last, "remark": "out of time"}
    else:
        yield {"tests": last, "remark": FAILED if process.returncode else None}


# --- Attention --------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A call: n queries and keys, R features, in a dtype."""

    n: int
    features: int
    causal: bool
    dtype: torch.dtype


def cases(machine: Machine) -> Iterator[Case]:
    """What the bars are about comes first."""
    if machine.tiny:
        yield from (Case(32, 4, causal, torch.float32) for causal in (False, True))
        return
    for dtype, sizes in (
        (torch.bfloat16, (4096, 16384, 65536, 1024)),
        (torch.float32, (4096, 16384, 1024, 65536)),
    ):
        for n in sizes:
            for causal in (False, True):
                for features in (32, 64, 128):
                    yield Case(n, features, causal, dtype)


def authors_formula(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, causal: bool) -> Tensor:
    """Attend through logarithms, as the authors' code does."""
    log_weight = ((query @ key.mT).square() + 1e-5).log() + bias.unsqueeze(-2)
    if causal:
        n = query.size(-2)
        log_weight = log_weight.masked_fill(~torch.ones(n, n, dtype=torch.bool, device=query.device).tril(), -torch.inf)
    return log_weight.softmax(-1).to(value.dtype) @ value


def flex(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attend with a bias for each key by FlexAttention."""
    from torch.nn.attention.flex_attention import flex_attention

    def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[b, h, j]

    attend: Callable[..., Tensor] = torch.compile(flex_attention)  # the same one each time, as PyTorch keeps it
    return attend(query, key, value, score_mod=add, scale=1.0)


def methods(machine: Machine, case: Case) -> dict[str, tuple[Callable[[], Tensor], float]]:
    """Return what is compared: how it is called, and its multiply-adds forward; and let all inputs have gradients."""
    heads = 2 if machine.tiny else 16
    lead = (max(1, (64 if machine.tiny else 16384) // case.n), heads)
    q, k, v = (torch.randn(*lead, case.n, WIDTH, device=machine.device, dtype=case.dtype) for _ in range(3))
    q = q / WIDTH**0.5
    a, b = (
        (torch.randn(*lead, case.n, case.features, device=machine.device) / case.features**0.5).to(case.dtype)
        for _ in range(2)
    )
    bias = torch.randn(*lead, case.n, device=machine.device)
    for x in (q, k, v, a, b, bias):
        x.requires_grad_()
    pairs = lead[0] * heads * case.n**2 / (2 if case.causal else 1)
    both, alone = pairs * (2 * WIDTH + case.features), pairs * (WIDTH + case.features)
    tokens = lead[0] * heads * case.n
    found: dict[str, tuple[Callable[[], Tensor], float]] = {
        "sdpa": (partial(F.scaled_dot_product_attention, q, k, v, is_causal=case.causal, scale=1.0), pairs * 2 * WIDTH)
    }
    ours = partial(kernel_attention, a, b, v, bias, is_causal=case.causal)
    fused, short = machine.device == "cuda", case.n <= 4096
    if fused:
        found["fused"] = (partial(ours, query=q, key=k, backend="fused"), both)
        found["features: fused"] = (partial(ours, backend="fused"), alone)
    if case.features == 32 or machine.tiny:
        found["features: linear"] = (partial(ours, backend="linear"), tokens * case.features**2 * (WIDTH + 1))
    if case.n <= 16384:
        found["chunked"] = (partial(ours, query=q, key=k, backend="chunked"), both)
    if short:
        found["dense"] = (partial(ours, query=q, key=k, backend="dense"), both)
        found["authors"] = (partial(authors_formula, a, b, v, bias, case.causal), alone)
    if fused and short and not case.causal and case.features == 32:
        found["flex"] = (partial(flex, q, k, v, bias), pairs * 2 * WIDTH)
    return found


def run_attention(machine: Machine, clock: Clock) -> Iterator[Row]:
    """Measure forward, and forward and backward, of every method on every case for which there is time."""
    rates: dict[torch.dtype, float] = {}
    for case in cases(machine):
        if case.dtype not in rates:
            rates[case.dtype] = machine.rate(case.dtype)
        baseline = None
        for name, (attend, multiply_adds) in methods(machine, case).items():
            row: Row = {
                **case._asdict(), "causal": case.causal, "dtype": str(case.dtype).removeprefix("torch."), "method": name
            }  # fmt: skip
            if clock.left() < 0:
                yield {**row, "remark": "no time left"}
                return

            def both(attend: Callable[[], Tensor] = attend) -> None:
                out = attend()
                out.backward(torch.ones_like(out))

            try:
                forward, whole = machine.seconds(attend), machine.seconds(both)
                memory = machine.peak_memory(both)
            except Exception as error:
                yield {**row, "remark": reason(error)}
                continue
            baseline = whole if name == "sdpa" else baseline
            yield {
                **row, "forward ms": round(1e3 * forward, 3), "both ms": round(1e3 * whole, 3),
                "ratio": None if baseline is None else round(whole / baseline, 2),
                "MiB": None if memory is None else round(memory),
                "of rate": round(3 * multiply_adds / whole / rates[case.dtype], 3),
            }  # fmt: skip


# --- Training ---------------------------------------------------------------------------------------------------------


def training_step(net: nn.Module, machine: Machine) -> Callable[[], None]:
    """Return a step of the translation network on a drawn batch, in bfloat16 as ``bf16-mixed`` has it."""
    sentences, length = (2, 5) if machine.tiny else (128, 16)
    source, target = (torch.randint(4, 4000, (sentences, length), device=machine.device) for _ in range(2))
    optimizer = torch.optim.AdamW(net.parameters())

    def step() -> None:
        with torch.autocast(machine.device, torch.bfloat16):
            scores = net(source, target)
            loss = F.cross_entropy(scores.flatten(0, 1).float(), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def run_training(machine: Machine, clock: Clock) -> Iterator[Row]:
    """Measure steps of training and of graph layers, and then of compiled training, which begins with a minute each."""
    width, depth, tokens = (16, 1, 2 * 5) if machine.tiny else (128, 4, 128 * 16)

    def translation(layer: type[nn.Module], compiled: bool) -> float:
        options = {} if layer in (DotProduct, RBF) else {"num_samples": 32}
        net: nn.Module = EncoderDecoder(
            4000, width=width, depth=depth, num_heads=4, ffn_width=2 * width, attention=partial(layer, **options)
        ).to(machine.device)
        if compiled:
            compile_layers(net)
        return tokens / machine.seconds(training_step(net, machine))

    nodes, edges = (31, 101) if machine.tiny else (100_000, 1_000_000)

    def graph(conv: type[nn.Module], compiled: bool) -> float:
        x = torch.randn(nodes, 64, device=machine.device)
        ends = torch.randint(nodes, (2, edges), device=machine.device)
        module: nn.Module = conv(64, 8, heads=8).to(machine.device)
        return edges / machine.seconds(lambda: module(x, ends).square().mean().backward())

    attentions = ("translation, tokens/s", translation, (DotProduct, IKANDirect, RBF, IKAN, MIKAN))
    # the first of each is what the others are compared with
    compared = [
        (*attentions, False),
        ("graph layer, edges/s", graph, (GATConv, KernelGATConv), False),
        ("graph layer, edges/s", graph, (TransformerConv, KernelTransformerConv), False),
    ]
    compared += [(*attentions, True)] if machine.device == "cuda" else []
    for what, measure, modules, compiled in compared:
        baseline = None
        for module in modules:
            row: Row = {"what": what, "module": module.__name__, "compiled": compiled}
            if clock.left() < 0:
                yield {**row, "remark": "no time left"}
                return
            try:
                rate = measure(module, compiled)
            except Exception as error:
                yield {**row, "remark": reason(error)}
                continue
            baseline = rate if module is modules[0] else baseline
            yield {
                **row, "a second": round(rate), "ratio": None if baseline is None else round(rate / baseline, 2)
            }  # fmt: skip


# --- Tables -----------------------------------------------------------------------------------------------------------

#: By name, a part and its share of the time.
PARTS = {"tests": (run_tests, 0.35), "attention": (run_attention, 0.4), "training": (run_training, 0.25)}


def save(folder: Path, name: str, rows: list[Row], title: str) -> None:
    """Write a table as CSV and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_output(folder / f"{name}.csv", text.getvalue().encode())
    lines = [title, "", "| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for row in rows:
        cells = ("" if row.get(column) is None else str(row[column]) for column in columns)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    write_output(folder / f"{name}.md", ("\n".join(lines) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["all", *PARTS], default="all")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing, to try the command out")
    parser.add_argument("--seconds", type=float, default=345.0, help="for all parts together")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the tables")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --tiny tries the command out")
    machine = Machine(arguments.device, arguments.tiny)
    names = list(PARTS) if arguments.what == "all" else [arguments.what]
    title = f"{machine.card}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    print(title, flush=True)
    tables: dict[str, list[Row]] = {name: [] for name in names}
    whole, stopped = Clock(arguments.seconds), ""

    def note(name: str, row: Row) -> None:
        print(*(f"{column}={value}" for column, value in row.items() if value is not None), flush=True)
        tables[name].append(row)
        save(arguments.output / machine.card, name, tables[name], title)

    name = names[0]
    try:
        with stoppable(arguments.seconds + GRACE):
            for number, name in enumerate(names):
                part, share = PARTS[name]
                # what a part leaves of its share is for those after it
                clock = Clock(whole.left() * share / sum(PARTS[other][1] for other in names[number:]))
                for row in part(machine, clock):
                    note(name, row)
    except Stopped as signalled:
        stopped = "out of time" if whole.left() < 0 else str(signalled)
        note(name, {"remark": f"stopped here: {stopped}"})
    failed = sum(str(row.get("remark")).startswith(FAILED) for rows in tables.values() for row in rows)
    print(f"written: {arguments.output / machine.card}; {whole.left():.0f} s left; failed: {failed}", flush=True)
    if failed or stopped not in ("", "out of time"):
        sys.exit(1)


if __name__ == "__main__":
    main()
