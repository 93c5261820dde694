"""A small study, and how it is run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

HERE = Path(__file__).parent
CONFIG = {
    "model": {
        "class_path": "Regression",
        "init_args": {
            "attention": {"class_path": "MIKAN", "init_args": {"num_samples": 4}},
            "width": 8, "depth": 1, "num_heads": 2, "ffn_width": 8,
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
        },
    },
    "data": {"class_path": "watched.WatchedData", "init_args": {"target": "y", "batch_size": 20}},
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
}  # fmt: skip
STUDY = {
    "baseline": "DotProduct",
    "data": {"hills": {"config": "hills.yaml"}},
    "variants": {
        "DotProduct": {"overrides": {"model.attention": "DotProduct"}},
        "MIKAN": {},
        "trees": {"reference": "sklearn.ensemble.ExtraTreesRegressor", "arguments": {"random_state": 0}},
    },
    "tune": {
        "metric": "val/rmse",
        "mode": "min",
        "trials": 2,
        "repeats": [3],
        # of its first two settings, the second is at the high end of a range
        "seed": 10,
        # so short that the best is at an end
        "ranges": {"model.optimizer.lr": {"low": 0.01, "high": 0.03, "limits": [0.0, 0.1]}},
    },
    "repeats": {"options": ["data.seed", "seed_everything"], "values": [3, 5]},
    "report": {"test/rmse": "min", "test/r2": "max"},
}


def write_study(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Put a study, its configuration and its data into a folder."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (60, 2))
    table = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": np.sin(3 * x[:, 0]) + x[:, 1]})
    table.to_csv(folder / "hills.csv", index=False)
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    config["data"]["init_args"]["path"] = "hills.csv"
    (folder / "hills.yaml").write_text(yaml.safe_dump(config))
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump({**STUDY, **(changes or {})}, sort_keys=False))
    return file


def command(folder: Path, *words: str) -> tuple[list[str], dict[str, Any]]:
    """A command of the package's as a process of its own, and where it runs."""
    path = os.pathsep.join(filter(None, [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "WATCHED": str(folder / "watched"), "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "ika_lightning", *words], {"cwd": folder, "env": environment, "text": True}


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    command_words, options = command(folder, *words)
    return subprocess.run(command_words, capture_output=True, **options)


def results(folder: Path) -> pd.DataFrame:
    """The table of a study, without what differs from one time to the next."""
    table = pd.read_csv(folder / "results" / "small" / "results.csv")
    return table.drop(columns=["seconds", "processor_seconds", "peak_memory_mb", "host"])
