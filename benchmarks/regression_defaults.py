"""What a table gets without any configuration, beside a Gaussian process and gradient boosting with their defaults.

    python benchmarks/regression_defaults.py --tables energy yacht --splits 5

On the published splits of each table. Ours is ``python -m ika_lightning fit --model Regression --data RegressionData
--data.name TABLE`` and nothing else, so its epoch is chosen on a tenth of the training rows; the others train on all of
them: scikit-learn's ``GaussianProcessRegressor`` with a lengthscale for each feature and noise, on standardised rows
(2,000 of them at most, as its time grows with their cube), ``GradientBoostingRegressor`` and
``HistGradientBoostingRegressor``. Test rows choose nothing.

``coverage`` is the share of test rows whose target is inside of an interval for 90 %: ours by split conformal
prediction, that of the process by its standard deviation.

Every fit is a line of ``benchmarks/results/regression_defaults.csv``, and is not done again. Seconds are those of
processors.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ika_lightning.data import RegressionData

RESULTS = Path(__file__).parent / "results" / "regression_defaults.csv"
FIELDS = ("table", "split", "model", "rmse", "coverage", "seconds")
TABLES = ("boston", "concrete", "energy", "kin8nm", "wine_quality_red", "yacht")
MOST_ROWS_OF_A_PROCESS = 2000
# standard deviations to each side of a normal distribution that hold 90 %
GAUSSIAN_90 = 1.6449


def gaussian_process(features: int) -> Any:
    kernel = ConstantKernel(1.0) * RBF(np.ones(features)) + WhiteKernel(0.1)
    return make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True))


OTHERS: dict[str, Callable[[int], Any]] = {
    "Gaussian process": gaussian_process,
    "gradient boosting": lambda _: GradientBoostingRegressor(random_state=0),
    "histogram boosting": lambda _: HistGradientBoostingRegressor(random_state=0),
}


def rows(table: str, split: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and targets of training and test, in their own units."""
    data = RegressionData(table, published_split=split, val_fraction=0.0)
    data.setup("fit")
    data.setup("test")
    parts = {part: data.encoded(part) for part in ("train", "test")}
    return {
        part: (found.features.numpy(), data.target_mean + data.target_std * found.target.double().numpy())
        for part, found in parts.items()
    }


def other(model: str, table: str, split: int) -> tuple[float, float | None]:
    parts = rows(table, split)
    x, y = parts["train"]
    if model == "Gaussian process" and len(y) > MOST_ROWS_OF_A_PROCESS:
        some = np.random.default_rng(0).choice(len(y), MOST_ROWS_OF_A_PROCESS, replace=False)
        x, y = x[some], y[some]
    with warnings.catch_warnings():
        # of a lengthscale at the end of its range, of a feature that does not matter
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = OTHERS[model](x.shape[1]).fit(x, y)
    x, y = parts["test"]
    if model == "Gaussian process":
        mean, std = fitted.predict(x, return_std=True)
        coverage = float(np.mean(np.abs(y - mean) <= GAUSSIAN_90 * std))
    else:
        mean, coverage = fitted.predict(x), None
    return float(np.sqrt(np.mean((mean - y) ** 2))), coverage


def ours(table: str, split: int, options: list[str]) -> tuple[float, float | None]:
    """Fit and test in processes of their own, by the command line."""
    with tempfile.TemporaryDirectory() as folder:
        data = ["--data", "RegressionData", "--data.name", table, "--data.published_split", str(split)]
        quiet = ["--trainer.enable_progress_bar=false", "--pictures=0"]
        command(folder, "fit", "--model", "Regression", *data, *quiet, *options)
        (best,) = Path(folder, "runs").glob("*/version_0/checkpoints/best.ckpt")
        printed = command(folder, "test", "--ckpt_path", str(best))
    # what Lightning prints: test/rmse │ 0.37012345
    found = {name: re.search(rf"test/{name}\W+([\d.]+)", printed) for name in ("rmse", "coverage")}
    rmse, coverage = (None if each is None else float(each[1]) for each in found.values())
    assert rmse is not None, printed
    return rmse, coverage


def command(folder: str, *words: str) -> str:
    root = Path(__file__).resolve().parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "ika_lightning", *words],
        cwd=folder, env=os.environ | {"PYTHONPATH": path}, check=True, text=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime + time.process_time()


def read_results() -> list[dict[str, str]]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def measure(table: str, split: int, model: str, options: list[str]) -> None:
    if any((row["table"], row["split"], row["model"]) == (table, str(split), model) for row in read_results()):
        return
    before = processor_seconds()
    rmse, coverage = ours(table, split, options) if model == "ours" else other(model, table, split)
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(FIELDS)
        covered = "" if coverage is None else f"{coverage:.3f}"
        writer.writerow([table, split, model, f"{rmse:.5g}", covered, f"{processor_seconds() - before:.0f}"])


def report(splits: int) -> None:
    """Print the mean over splits that all models have, and ours over the better of a process and boosting."""
    scores: dict[str, dict[str, dict[int, float]]] = {}
    covered: dict[str, list[float]] = {}
    for row in read_results():
        if int(row["split"]) < splits:
            scores.setdefault(row["table"], {}).setdefault(row["model"], {})[int(row["split"])] = float(row["rmse"])
            if row["model"] == "ours" and row["coverage"]:
                covered.setdefault(row["table"], []).append(float(row["coverage"]))
    print("| table | splits | ours | " + " | ".join(OTHERS) + " | ours / better one | coverage of ours |")
    print("| --- " * (len(OTHERS) + 5) + "|")
    ratios = []
    for table, models in scores.items():
        if {"ours", *OTHERS} <= models.keys():
            shared = sorted(set.intersection(*(set(each) for each in models.values())))
            means = {model: float(np.mean([each[split] for split in shared])) for model, each in models.items()}
            ratios.append(means["ours"] / min(means[model] for model in OTHERS))
            shown = " | ".join(f"{means[model]:.3g}" for model in ("ours", *OTHERS))
            inside = f"{np.mean(covered[table]):.3f}" if table in covered else ""
            print(f"| {table} | {len(shared)} | {shown} | {ratios[-1]:.2f} | {inside} |")
    if ratios:
        print(f"\nmedian of the ratios: {np.median(ratios):.2f}, the largest: {max(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=TABLES)
    parser.add_argument("--splits", type=int, default=5, help="how many of the published splits, from the first")
    parser.add_argument("--models", nargs="+", choices=("ours", *OTHERS), default=("ours", *OTHERS))
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of ours, at the end")
    arguments = parser.parse_args()
    for split in range(arguments.splits):
        for table in arguments.tables:
            for model in arguments.models:
                measure(table, split, model, arguments.options)
    report(arguments.splits)


if __name__ == "__main__":
    main()
