"""Test RMSE of every attention on the published splits of Boston and Concrete, in one harness.

    python benchmarks/regression.py [--data boston concrete] [--attentions IKAN MIKAN] [--jobs 2]

Everything but attention and learning rate comes from ``configs/regression/<data>.yaml``. The learning rate is chosen
for each attention on its own, from the same values: by the mean RMSE on validation rows, drawn from the training rows
of the first splits, after the last epoch. Then the model is trained on all training rows of each of the 20 splits, for
the same number of epochs, and tested once. Test rows choose nothing.

Every fit is a line of ``benchmarks/results/regression.csv``, and is not done again; delete the file to start anew.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import logging
import os
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser

from ika_lightning.data import RegressionData
from ika_lightning.tasks import Regression

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "regression.csv"
ATTENTIONS = ("DotProduct", "RBF", "IKANDirect", "IKAN", "MIKAN")
LEARNING_RATES = (0.001, 0.003)
TUNED_ON = range(6)  # splits
SPLITS = range(20)


class Fit(NamedTuple):
    """One training: on what, with what, and whether it is to choose (validation rows) or to report (test rows)."""

    data: str
    attention: str
    lr: float
    split: int
    stage: str  # "val" or "test"


def measure(fit: Fit, root: str | None) -> float:
    """Train as the configuration says and return the RMSE on validation or test rows, in the target's units."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    config = yaml.safe_load((HERE.parent / "configs" / "regression" / f"{fit.data}.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    samples = model["attention"]["init_args"]["num_samples"]
    learned = fit.attention in ("IKANDirect", "IKAN", "MIKAN")
    model["attention"] = {
        "class_path": f"ika_lightning.attention.{fit.attention}",
        "init_args": {"num_samples": samples} if learned else {},
    }
    model["optimizer"]["init_args"]["lr"] = fit.lr
    data |= {"published_split": fit.split, "root": root}
    if fit.stage == "test":
        data["val_fraction"] = 0.0

    config["trainer"] |= {
        "accelerator": "cpu",
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }

    seed_everything(fit.split, verbose=False)
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(Regression, "model", subclass_mode=True)
    parser.add_lightning_class_args(RegressionData, "data", subclass_mode=True)
    sections = {name: config[name] for name in ("model", "data", "trainer")}
    built = parser.instantiate_classes(parser.parse_object(sections))
    run = Trainer(**built.trainer)
    run.fit(built.model, built.data)
    evaluate = run.test if fit.stage == "test" else run.validate
    run.limit_val_batches = 1.0
    (measured,) = evaluate(built.model, built.data, verbose=False)
    return measured[f"{fit.stage}/rmse"]


def known() -> dict[Fit, float]:
    """Return what has been measured already."""
    if not RESULTS.is_file():
        return {}
    with RESULTS.open(newline="") as file:
        return {
            Fit(r["data"], r["attention"], float(r["lr"]), int(r["split"]), r["stage"]): float(r["rmse"])
            for r in csv.DictReader(file)
        }


def measure_all(fits: list[Fit], jobs: int, root: str | None) -> dict[Fit, float]:
    """Measure what is not known yet, a line of the file after each."""
    results = known()
    missing = [fit for fit in fits if fit not in results]
    RESULTS.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool, RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow([*Fit._fields, "rmse"])
        futures = {pool.submit(measure, fit, root): fit for fit in missing}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            writer.writerow([*futures[future], f"{future.result():.6g}"])
            file.flush()
    return results


def choose(results: dict[Fit, float], data: str, attention: str) -> float:
    """Return the learning rate of the lowest mean validation RMSE."""

    def validation(lr: float) -> float:
        return float(np.mean([results[Fit(data, attention, lr, split, "val")] for split in TUNED_ON]))

    return min(LEARNING_RATES, key=validation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["boston", "concrete"])
    parser.add_argument("--attentions", nargs="+", default=ATTENTIONS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--root", help="folder of the benchmark data; by default IKA_DATA, else the cache folder")
    arguments = parser.parse_args()
    pairs = list(itertools.product(arguments.data, arguments.attentions))

    tuning = [Fit(*pair, lr, split, "val") for pair in pairs for lr in LEARNING_RATES for split in TUNED_ON]
    results = measure_all(tuning, arguments.jobs, arguments.root)
    chosen = {pair: choose(results, *pair) for pair in pairs}
    reported = {pair: [Fit(*pair, chosen[pair], split, "test") for split in SPLITS] for pair in pairs}
    results = measure_all(list(itertools.chain(*reported.values())), arguments.jobs, arguments.root)

    print("| data | attention | test RMSE, mean ± standard error of 20 splits | learning rate |")
    print("| --- | --- | --- | --- |")
    for (data, attention), fits in reported.items():
        rmse = np.array([results[fit] for fit in fits])
        error = rmse.std(ddof=1) / np.sqrt(rmse.size)
        print(f"| {data} | {attention} | {rmse.mean():.2f} ± {error:.2f} | {chosen[data, attention]} |")


if __name__ == "__main__":
    main()
