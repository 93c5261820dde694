"""Speed of translation, as ratios within one run; and fits of dates and Multi30k with every attention.

    python benchmarks/translation.py                   decoding and training, on random tokens
    python benchmarks/translation.py --what decoding   with caches, against prefixes computed anew
    python benchmarks/translation.py --what training   tokens a second of each attention over those of DotProduct
    python benchmarks/translation.py --what fits --corpus dates --attentions DotProduct MIKAN
    python benchmarks/translation.py --what fits --corpus multi30k --attentions DotProduct IKANDirect
    python benchmarks/translation.py --what short --attentions DotProduct IKANDirect --seed 1

Decoding writes sentences of a fixed length with a beam of 5 over a batch of 64, once with the caches of the attention
layers and once by a forward over the whole prefix at each step (without beams being reordered, which would be in its
disfavour). Training interleaves the attentions batch by batch. Both report medians.

``fits`` trains as ``configs/translation/<corpus>.yaml`` says, one attention after another, those with learned kernels
with its options, and tests the checkpoint of the best validation score. Every fit is a line of
``benchmarks/results/translation.csv``, and is not done again. Minutes are those of processors, of training with its
validations: where two cores are at work, about twice those of a clock.

``short`` trains Multi30k for 1,200 updates, to the end of a schedule of that length and without averaged weights, and
takes loss and BLEU on validation sentences: enough to tell attentions apart, as seeds differ by 0.002 in loss. Every
fit is a line of ``benchmarks/results/translation_short.csv``, and is not done again. Of learned kernels, ``--p`` and
``--samples`` are the exponent of the magnitude and the spectral samples of a head.
"""

from __future__ import annotations

import argparse
import csv
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect
from ika_lightning.models import AttentionFactory, EncoderDecoder

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "translation.csv"
SHORT_RESULTS = HERE / "results" / "translation_short.csv"
SHORT_UPDATES = 1200
START = 2


def attentions(samples: int) -> dict[str, AttentionFactory]:
    learned = {"IKANDirect": IKANDirect, "IKAN": IKAN, "MIKAN": MIKAN}
    return {"DotProduct": DotProduct, "RBF": RBF} | {
        name: partial(layer, num_samples=samples) for name, layer in learned.items()
    }


def build(name: str, arguments: argparse.Namespace) -> EncoderDecoder:
    torch.manual_seed(0)
    return EncoderDecoder(
        arguments.vocabulary, width=arguments.width, depth=arguments.depth, num_heads=arguments.heads,
        attention=attentions(arguments.samples)[name], ffn_width=2 * arguments.width, dropout=0.1,
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


def fits(arguments: argparse.Namespace) -> None:
    """Fit a corpus with each attention, and print what was measured."""
    RESULTS.parent.mkdir(exist_ok=True)
    done: dict[tuple[str, ...], dict[str, str]] = {}
    if RESULTS.is_file():
        with RESULTS.open(newline="") as file:
            done = {(row["corpus"], row["attention"], row["p"], row["seed"]): row for row in csv.DictReader(file)}
    config = HERE.parent / "configs" / "translation" / f"{arguments.corpus}.yaml"
    learned = yaml.safe_load(config.read_text())["model"]["init_args"]["attention"].get("init_args", {})
    for name in arguments.attentions:
        options = learned if name in ("IKANDirect", "IKAN", "MIKAN") else {}
        if (arguments.corpus, name, p_of(options), str(arguments.seed)) not in done:
            row = fit(name, options, config, arguments)
            with RESULTS.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
            done[arguments.corpus, name, row["p"], row["seed"]] = row
    print("| corpus | attention | p | updates | minutes of processors | BLEU, beam 5 | chrF | exact matches |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    shown = ("corpus", "attention", "p", "updates", "minutes", "bleu", "chrf", "exact_match")
    for row in done.values():
        print("| " + " | ".join(row[key] for key in shown) + " |")


def short_fits(arguments: argparse.Namespace) -> None:
    """Fit Multi30k for a few updates with each attention, and print what validation sentences say."""
    rows = []
    if SHORT_RESULTS.is_file():
        with SHORT_RESULTS.open(newline="") as file:
            rows = [*csv.DictReader(file)]
    for name in arguments.attentions:
        options = {} if name == "DotProduct" else {"p": arguments.p}
        if name in ("IKANDirect", "IKAN", "MIKAN"):
            options["num_samples"] = arguments.samples
        cell = {
            "attention": name, "p": p_of(options), "samples": str(options.get("num_samples", "")),
            "seed": str(arguments.seed),
        }  # fmt: skip
        if any(all(row[key] == value for key, value in cell.items()) for row in rows):
            continue
        row = cell | short_fit(name, options, arguments)
        with SHORT_RESULTS.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        rows.append(row)
    print("| attention | p | M | seed | validation loss | validation BLEU |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


def short_fit(name: str, options: dict[str, Any], arguments: argparse.Namespace) -> dict[str, str]:
    """Fit for a few updates in a process of its own, by the command line; return what its only validation measured."""
    run = "-".join(["short", name, *map(str, options.values()), str(arguments.seed)])
    words = ["--config", str(HERE.parent / "configs" / "translation" / "multi30k.yaml"), f"--model.attention={name}"]
    words += [f"--model.attention.{option}={value}" for option, value in options.items()]
    words += [f"--trainer.max_steps={SHORT_UPDATES}", f"--model.scheduler.init_args.total_steps={SHORT_UPDATES}"]
    words += [f"--trainer.val_check_interval={SHORT_UPDATES}", "--trainer.callbacks=null", "--pictures=0"]
    words += ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=runs"]
    words += [f"--trainer.logger.name={run}", f"--seed_everything={arguments.seed}"]
    if arguments.root is not None:
        words += [f"--data.root={arguments.root}"]
    command("fit", *words, "--trainer.enable_progress_bar=false", *arguments.options)
    folder = max(Path("runs", run).glob("version_*"), key=lambda path: path.stat().st_mtime)
    with (folder / "metrics.csv").open(newline="") as file:
        measured = [row for row in csv.DictReader(file) if row.get("val/loss")][-1]
    return {"val_loss": f"{float(measured['val/loss']):.4f}", "val_bleu": f"{float(measured['val/bleu']):.2f}"}


def p_of(options: dict[str, Any]) -> str:
    return str(options.get("p", 2.0))


def fit(name: str, options: dict[str, Any], config: Path, arguments: argparse.Namespace) -> dict[str, str]:
    """Fit and test in processes of their own, by the command line."""
    run = f"{arguments.corpus}_{name}_{arguments.seed}"
    words = ["--config", str(config), f"--model.attention={name}"]
    words += [f"--model.attention.{option}={value}" for option, value in options.items()]
    words += [f"--trainer.logger.init_args.name={run}", f"--seed_everything={arguments.seed}"]
    if arguments.root is not None:
        words += [f"--data.root={arguments.root}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command("fit", *words, "--trainer.enable_progress_bar=false", *arguments.options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    folder = max(Path("runs", run).glob("version_*"), key=lambda path: path.stat().st_mtime)
    best = folder / "checkpoints" / "best.ckpt"
    # what Lightning prints: test/bleu │ 37.012345
    scores = dict(re.findall(r"test/(bleu|chrf|exact_match)\W+([\d.]+)", command("test", "--ckpt_path", str(best))))
    return {
        "corpus": arguments.corpus, "attention": name, "p": p_of(options), "seed": str(arguments.seed),
        "updates": str(torch.load(best, weights_only=True)["global_step"]),
        "minutes": f"{(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60:.1f}",
        **{name: f"{float(score):.4g}" for name, score in scores.items()},
    }  # fmt: skip


def command(*words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "ika_lightning", *words], check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("speed", "decoding", "training", "fits", "short"), default="speed")
    parser.add_argument("--corpus", choices=("dates", "multi30k"), default="multi30k", help="with --what fits")
    parser.add_argument("--attentions", nargs="+", default=["DotProduct", "IKANDirect", "IKAN", "MIKAN"])
    parser.add_argument("--samples", type=int, default=32, help="spectral samples M of a head")
    parser.add_argument("--p", default="learned", help="exponent of the magnitude, with --what short")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    sizes = {"vocabulary": 4000, "width": 128, "depth": 4, "heads": 4, "source_length": 20}
    for size, default in (sizes | {"batch": 64, "beam": 5, "length": 80, "batch_tokens": 2048, "seed": 0}).items():
        parser.add_argument(f"--{size}", type=int, default=default)
    parser.add_argument("--root", help="folder of the corpora; by default IKA_DATA, else the cache folder")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of a fit, at the end")
    arguments = parser.parse_args()
    if arguments.what in ("speed", "decoding"):
        decoding(arguments)
    if arguments.what in ("speed", "training"):
        training(arguments)
    if arguments.what == "fits":
        fits(arguments)
    if arguments.what == "short":
        short_fits(arguments)


if __name__ == "__main__":
    main()
