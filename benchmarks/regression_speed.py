"""How long a training epoch takes on Boston with each attention, as a ratio to DotProduct in the same run.

    python benchmarks/regression_speed.py [--rows 506] [--repeats 30]

Width 64, 8 heads, M = 64, as in the authors' code, where an epoch of MIKAN takes about 17 times one of dot product.
Timed are a training step in which all rows attend to all rows, as theirs do ("rows x rows"), with one and two layers,
and an epoch of this package's regression task ("epoch"), in which half of the rows attend to the other half. Repeats
are interleaved over the attentions; the median is printed, and the spread from the 10th to the 90th percentile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect, attention_kl
from ika_lightning.models import AttentionFactory, RowTransformer

SAMPLES = 64
ATTENTIONS: dict[str, AttentionFactory] = {
    "DotProduct": DotProduct,
    "RBF": RBF,
    "IKANDirect": partial(IKANDirect, num_samples=SAMPLES),
    "IKAN": partial(IKAN, num_samples=SAMPLES),
    "MIKAN": partial(MIKAN, num_samples=SAMPLES),
}


def training_step(attention: AttentionFactory, rows: int, depth: int, asking: int) -> Callable[[], None]:
    """Return a step on drawn rows of Boston's 13 features; the last ``asking`` rows ask, or all if there are none."""
    torch.manual_seed(0)
    features, target = torch.randn(rows, 13), torch.randn(rows)
    net = RowTransformer(13, width=64, depth=depth, num_heads=8, attention=attention, dropout=0.1)
    optimizer = torch.optim.AdamW(net.parameters())

    def step() -> None:
        if asking:
            answers, truth = net(features[:-asking], features[-asking:]), target[-asking:]
        else:
            answers, truth = net(features), target
        loss = F.mse_loss(answers, truth) + 0.01 * attention_kl(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def interleaved(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, np.ndarray]:
    """Return milliseconds of every repeat."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 3):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if repeat >= 3:  # the first ones warm caches and allocator up
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: np.array(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=506)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    rows = arguments.rows
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rows} rows, median of {arguments.repeats}")
    print(f"{'what':<22}{'attention':<12}{'ms':>8}{'10-90 %':>16}{'x DotProduct':>14}")
    for what, depth, asking in (
        ("rows x rows, 1 layer", 1, 0),
        ("rows x rows, 2 layers", 2, 0),
        ("epoch, 2 layers", 2, rows // 2),
    ):
        steps = {name: training_step(attention, rows, depth, asking) for name, attention in ATTENTIONS.items()}
        times = interleaved(steps, arguments.repeats)
        ratios = {name: np.median(values / times["DotProduct"]) for name, values in times.items()}
        for name, values in times.items():
            low, middle, high = np.percentile(values, [10, 50, 90])
            print(f"{what:<22}{name:<12}{middle:>8.1f}{f'{low:.1f} - {high:.1f}':>16}{ratios[name]:>14.2f}")


if __name__ == "__main__":
    main()
