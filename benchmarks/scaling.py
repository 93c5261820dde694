"""On paper: what data-parallel training sends, what it computes, and from how many tokens a GPU it scales.

    python benchmarks/scaling.py [--rate 20e12] [--length 25]

For the shipped configurations of translation: bytes of gradients a step, and multiply-adds of a step forwards and
backwards, times two, counted by PyTorch on sentences of ``--length`` tokens. A ring of N processes sends and receives
2 (N - 1) / N times the gradients; 2 is taken, its limit. DistributedDataParallel does that while the backward, two
thirds of the step, is computed: it scales as long as sending takes no longer. ``--rate`` is what a GPU really computes
a second, the links below are what really arrives; latency and the starting of kernels are left out. Nothing is timed.
"""

from __future__ import annotations

import argparse
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from ika_lightning.attention import MIKAN
from ika_lightning.data import TranslationData
from ika_lightning.models import EncoderDecoder
from ika_lightning.tasks import Translation

CONFIGS = Path(__file__).parents[1] / "configs" / "translation"
# Bytes a second, one way, of what the gradients go through.
LINKS = {
    "1 Gbit/s": 0.11e9,
    "10 Gbit/s": 1.1e9,
    "100 Gbit/s": 11e9,
    "PCIe 4 x16": 20e9,
    "NVLink 4": 300e9,
}


def measure(config: Path, length: int, sentences: int = 4) -> tuple[int, float, int]:
    """Return the bytes of a configuration's gradients, operations for a token of a batch, and tokens of its batches."""
    sections = yaml.safe_load(config.read_text())
    model = defaults_of(Translation) | sections["model"]["init_args"]
    data = defaults_of(TranslationData) | sections["data"]["init_args"]
    vocabulary = data["vocabulary"]
    net = EncoderDecoder(
        vocabulary,
        width=model["width"],
        depth=model["depth"],
        num_heads=model["num_heads"],
        ffn_width=model["ffn_width"],
        attention=partial(MIKAN, **model["attention"].get("init_args", {}), backend="dense"),
    )
    source, target = torch.randint(1, vocabulary, (2, sentences, length)).unbind()
    with FlopCounterMode(display=False) as counter:
        net(source, target).sum().backward()
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in net.parameters())
    return gradients, counter.get_total_flops() / (sentences * length), data["batch_tokens"]


def defaults_of(owner: type) -> dict[str, Any]:
    """The arguments of a class, as far as a configuration does not say otherwise."""
    return {name: parameter.default for name, parameter in inspect.signature(owner).parameters.items()}


def least_tokens(gradients: int, operations: float, rate: float, link: float) -> float:
    """Return the tokens of a batch, for each process, from which sending is hidden behind the backward."""
    sending = 2 * gradients / link
    return sending / (2 / 3 * operations / rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=20e12, help="operations a second that a GPU really does")
    parser.add_argument("--length", type=int, default=25, help="tokens of a sentence")
    options = parser.parse_args()

    names = list(LINKS)
    print(f"{'':10} {'gradients':>10} {'a token':>9} {'a step':>8} {'computed':>9}   tokens a process, at least")
    print(f"{'':10} {'MB':>10} {'MFLOP':>9} {'TFLOP':>8} {'ms':>9}   " + " ".join(f"{name:>11}" for name in names))
    for config in sorted(CONFIGS.glob("*.yaml")):
        gradients, operations, tokens = measure(config, options.length)
        step = operations * tokens
        least = [least_tokens(gradients, operations, options.rate, link) for link in LINKS.values()]
        print(
            f"{config.stem:10} {gradients / 1e6:10.1f} {operations / 1e6:9.1f} {step / 1e12:8.3f} "
            f"{step / options.rate * 1e3:9.2f}   " + " ".join(f"{number:11,.0f}" for number in least)
        )


if __name__ == "__main__":
    main()
