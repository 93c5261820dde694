"""Speed of translation, as ratios within one run.

    python benchmarks/translation_speed.py                   decoding and training, on random tokens
    python benchmarks/translation_speed.py --what decoding   with caches, against prefixes computed anew
    python benchmarks/translation_speed.py --what training   tokens a second of each attention over those of DotProduct

Decoding writes sentences of a fixed length with a beam of 5 over a batch of 64, once with the caches of the attention
layers and once by a forward over the whole prefix at each step (without beams being reordered, which would be in its
disfavour). Training interleaves the attentions batch by batch. Both report medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect
from ika_lightning.models import AttentionFactory, EncoderDecoder

START = 2


def attentions(samples: int, p: float | str) -> dict[str, AttentionFactory]:
    learned = {"IKANDirect": IKANDirect, "IKAN": IKAN, "MIKAN": MIKAN}
    return {"DotProduct": DotProduct, "RBF": partial(RBF, p=p)} | {
        name: partial(layer, num_samples=samples, p=p) for name, layer in learned.items()
    }


def norm(text: str) -> float | str:
    return text if text == "learned" else float(text)


def build(name: str, arguments: argparse.Namespace) -> EncoderDecoder:
    torch.manual_seed(0)
    return EncoderDecoder(
        arguments.vocabulary, width=arguments.width, depth=arguments.depth, num_heads=arguments.heads,
        attention=attentions(arguments.samples, arguments.p)[name], ffn_width=2 * arguments.width, dropout=0.1,
    ).to(arguments.device)  # fmt: skip


def tokens(batch: int, length: int, arguments: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, arguments.vocabulary, (batch, length), generator=generator).to(arguments.device)


def synchronize(arguments: argparse.Namespace) -> None:
    if arguments.device == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def cached_steps(net: EncoderDecoder, source: Tensor, arguments: argparse.Namespace) -> list[float]:
    """Seconds of each step of beam search, for every hypothesis goes on to the end."""
    from ika_lightning.models.decoding import Search, _Beams

    # an end that is no token: all sentences get as long as they may
    search = Search(START, end=1, never=(0, 1, START), beam=arguments.beam, max_ratio=0.0, max_extra=arguments.length)
    beams, seconds = _Beams(search, net, source), []
    while beams.going.numel():
        synchronize(arguments)
        started = time.perf_counter()
        beams.step()
        synchronize(arguments)
        seconds.append(time.perf_counter() - started)
    return seconds[: arguments.length]


@torch.no_grad()
def recomputed_step(net: EncoderDecoder, source: Tensor, length: int, arguments: argparse.Namespace) -> float:
    """Seconds of a step that computes all of a prefix of some length anew, of source and target."""
    rows = source.repeat_interleave(arguments.beam, 0)
    prefix = tokens(len(rows), length, arguments)
    synchronize(arguments)
    started = time.perf_counter()
    net.scores(net.hidden(rows, prefix)[:, -1]).topk(2 * arguments.beam)
    synchronize(arguments)
    return time.perf_counter() - started


def decoding(arguments: argparse.Namespace) -> None:
    """Print milliseconds a step, by the length of the prefix."""
    marks = [length for length in (1, 5, 10, 20, 40, 80, 160) if length < arguments.length] + [arguments.length]
    source = tokens(arguments.batch, arguments.source_length, arguments)
    print("| attention | " + " | ".join(f"t = {length}" for length in marks) + " | all | recomputed / cached |")
    print("| --- " * (len(marks) + 3) + "|")
    for name in arguments.attentions:
        net = build(name, arguments).eval()
        cached = np.median([cached_steps(net, source, arguments) for _ in range(arguments.repeats)], axis=0)
        anew = [
            np.median([recomputed_step(net, source, length, arguments) for _ in range(arguments.repeats)])
            for length in marks
        ]
        total = np.interp(np.arange(1, arguments.length + 1), marks, anew).sum()
        print(
            f"| {name}, ms a step | "
            + " | ".join(f"{1000 * cached[max(0, t - 3) : t + 2].mean():.1f}" for t in marks)
            + f" | {cached.sum():.2f} s | {total / cached.sum():.1f} |"
        )
        print(f"| {name}, anew | " + " | ".join(f"{1000 * t:.1f}" for t in anew) + f" | {total:.2f} s | |", flush=True)


def training(arguments: argparse.Namespace) -> None:
    """Print target tokens a second, and the ratio to DotProduct in the same repeat."""
    batch = arguments.batch_tokens // arguments.source_length
    source = tokens(batch, arguments.source_length, arguments)
    target = tokens(batch, arguments.source_length + 1, arguments)
    nets = {name: build(name, arguments) for name in arguments.attentions}
    optimizers = {name: torch.optim.AdamW(net.parameters(), lr=1e-4) for name, net in nets.items()}

    def step(name: str) -> None:
        scores = nets[name](source, target[:, :-1])
        F.cross_entropy(scores.flatten(0, 1), target[:, 1:].flatten(), label_smoothing=0.1).backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    seconds = interleaved({name: partial(step, name) for name in nets}, arguments)
    print("| attention | target tokens / s | over DotProduct | 10th to 90th percentile |")
    print("| --- | --- | --- | --- |")
    dot = seconds[:, list(nets).index("DotProduct")]
    for column, name in enumerate(nets):
        ratio = dot / seconds[:, column]
        low, high = np.percentile(ratio, [10, 90])
        rate = target[:, 1:].numel() / np.median(seconds[:, column])
        print(f"| {name} | {rate:.0f} | {np.median(ratio):.2f} | {low:.2f} - {high:.2f} |")


def interleaved(steps: dict[str, Callable[[], None]], arguments: argparse.Namespace) -> np.ndarray:
    """Return seconds, (repeats, steps); the first round warms up and is not counted."""
    seconds = np.empty((arguments.repeats + 1, len(steps)))
    for repeat in range(len(seconds)):
        for column, step in enumerate(steps.values()):
            synchronize(arguments)
            started = time.perf_counter()
            step()
            synchronize(arguments)
            seconds[repeat, column] = time.perf_counter() - started
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("speed", "decoding", "training"), default="speed")
    parser.add_argument("--attentions", nargs="+", default=["DotProduct", "IKANDirect", "IKAN", "MIKAN"])
    parser.add_argument("--samples", type=int, default=32, help="spectral samples M of a head")
    parser.add_argument("--p", type=norm, default=2.0, help="the norm of the magnitude: a number, inf or learned")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    sizes = {"vocabulary": 4000, "width": 128, "depth": 4, "heads": 4, "source_length": 20}
    for size, default in (sizes | {"batch": 64, "beam": 5, "length": 80, "batch_tokens": 2048}).items():
        parser.add_argument(f"--{size}", type=int, default=default)
    arguments = parser.parse_args()
    if arguments.what in ("speed", "decoding"):
        decoding(arguments)
    if arguments.what in ("speed", "training"):
        training(arguments)


if __name__ == "__main__":
    main()
