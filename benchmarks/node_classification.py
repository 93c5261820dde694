"""Accuracy of convolutions on citation graphs and handwritten digits, in one harness.

    python benchmarks/node_classification.py [--data cora citeseer] [--convs GATConv direct] [--seeds 50] [--jobs 2]

Everything but convolution and learning rate comes from ``configs/node_classification/<data>.yaml``. The learning rate
is chosen for each convolution on its own, from the same values, by the mean validation accuracy of the first seeds at
the epoch of the lowest validation loss; where those are equal, of all seeds. Then the chosen one is trained with every
seed, on the public split; the test nodes are looked at once, at that same epoch, and choose nothing. A seed draws
weights and dropout; of the digits, it also draws which are labelled.

Every fit is a line of ``benchmarks/results/node_classification.csv``, and is not done again; delete the file to start
anew.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser

from ika_lightning.data import NodeClassificationData
from ika_lightning.tasks import NodeClassification

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "node_classification.csv"
OURS = "ika_lightning.attention.graph.KernelGATConv"
CONVS: dict[str, tuple[str, dict[str, Any]]] = {
    "GATConv": ("torch_geometric.nn.GATConv", {}),
    "softmax": (OURS, {"init": "softmax"}),
    "learned norm": (OURS, {"init": "softmax", "p": "learned"}),
    "direct": (OURS, {"spectrum": "direct"}),
    "implicit": (OURS, {"spectrum": "implicit"}),
    "copula": (OURS, {"spectrum": "copula"}),
}
LEARNING_RATES = (0.005, 0.01)
TUNED_ON = range(3)  # seeds


class Fit(NamedTuple):
    """One training: on what, with what."""

    data: str
    conv: str
    lr: float
    seed: int


class Accuracy(NamedTuple):
    """What a training reached at the epoch of the lowest validation loss."""

    val: float
    test: float


def measure(fit: Fit, root: str | None) -> Accuracy:
    """Train as the configuration says."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    config = yaml.safe_load((HERE.parent / "configs" / "node_classification" / f"{fit.data}.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    path, options = CONVS[fit.conv]
    given = model["conv"]["init_args"]
    shared = given if path == OURS else {"dropout": given["dropout"]}
    model["conv"] = {"class_path": path, "init_args": shared | options}
    model["optimizer"]["init_args"] |= {"lr": fit.lr}
    data |= {"root": root, "seed": fit.seed}

    seed_everything(fit.seed, verbose=False)
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(NodeClassification, "model", subclass_mode=True)
    parser.add_lightning_class_args(NodeClassificationData, "data", subclass_mode=True)
    built = parser.instantiate_classes(parser.parse_object({name: config[name] for name in ("model", "data")}))
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val/loss", save_weights_only=True)
        trainer = Trainer(
            max_epochs=config["trainer"]["max_epochs"],
            accelerator="cpu",
            callbacks=[best, EarlyStopping("val/loss", patience=config["early_stopping"]["patience"])],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(built.model, built.data)
        measured: dict[str, float] = {}
        for evaluate in (trainer.validate, trainer.test):
            measured |= evaluate(built.model, built.data, best.best_model_path, weights_only=True, verbose=False)[0]
    return Accuracy(measured["val/accuracy"], measured["test/accuracy"])


def known() -> dict[Fit, Accuracy]:
    """Return what has been measured already."""
    if not RESULTS.is_file():
        return {}
    with RESULTS.open(newline="") as file:
        return {
            Fit(r["data"], r["conv"], float(r["lr"]), int(r["seed"])): Accuracy(float(r["val"]), float(r["test"]))
            for r in csv.DictReader(file)
        }


def measure_all(fits: list[Fit], jobs: int, root: str | None) -> dict[Fit, Accuracy]:
    """Measure what is not known yet, a line of the file after each."""
    results = known()
    RESULTS.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool, RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow([*Fit._fields, *Accuracy._fields])
        futures = {pool.submit(measure, fit, root): fit for fit in fits if fit not in results}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            writer.writerow([*futures[future], *(f"{value:.6g}" for value in future.result())])
            file.flush()
    return results


def choose(
    results: dict[Fit, Accuracy], data: str, conv: str, rates: Sequence[float], seeds: Iterable[int]
) -> list[float]:
    """Return the learning rates of the highest mean validation accuracy: several if they have the same."""
    seeds = list(seeds)
    means = {lr: round(float(np.mean([results[Fit(data, conv, lr, seed)].val for seed in seeds])), 9) for lr in rates}
    return [lr for lr, mean in means.items() if mean == max(means.values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["cora", "citeseer", "digits"])
    parser.add_argument("--convs", nargs="+", default=list(CONVS), choices=list(CONVS))
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--root", help="folder of the benchmark data; by default IKA_DATA, else the cache folder")
    arguments = parser.parse_args()
    pairs = list(itertools.product(arguments.data, arguments.convs))

    tried = [Fit(*pair, lr, seed) for seed in TUNED_ON for pair in pairs for lr in LEARNING_RATES]
    results = measure_all(tried, arguments.jobs, arguments.root)
    rates = {pair: choose(results, *pair, LEARNING_RATES, TUNED_ON) for pair in pairs}
    seeds = range(arguments.seeds)
    # seed by seed, so that what is there when it is stopped is as much of each
    fits = [Fit(*pair, lr, seed) for seed in seeds for pair in pairs for lr in rates[pair]]
    results = measure_all(fits, arguments.jobs, arguments.root)
    chosen = {pair: choose(results, *pair, rates[pair], seeds)[0] for pair in pairs}

    print(f"| data | convolution | test accuracy, mean ± standard error of {arguments.seeds} seeds | learning rate |")
    print("| --- | --- | --- | --- |")
    for pair in pairs:
        test = 100 * np.array([results[Fit(*pair, chosen[pair], seed)].test for seed in seeds])
        error = test.std(ddof=1) / np.sqrt(test.size)
        print(f"| {pair[0]} | {pair[1]} | {test.mean():.2f} ± {error:.2f} | {chosen[pair]} |")


if __name__ == "__main__":
    main()
