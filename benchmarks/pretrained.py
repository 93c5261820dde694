"""Test accuracy of a pretrained encoder that is fine-tuned, with its own attention and with those of this package.

    python benchmarks/pretrained.py --pretrained FOLDER_OR_NAME [--data trec sst2] [--attentions DotProduct IKANDirect]

Everything but the attention comes from ``configs/text_classification/<data>_minilm.yaml``, which was chosen on
validation texts; ``DotProduct`` is the encoder's own attention. Each model is measured once on validation texts and
once on test texts, with the weights that its training ended with: neither chooses anything.

Every fit is a line of ``benchmarks/results/pretrained.csv``, and is not done again; delete the file to start anew. One
process uses one core. Fits go seed by seed, so a table of few seeds is there early.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser

from ika_lightning.data import TextClassificationData
from ika_lightning.tasks import TextClassification

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "pretrained.csv"
DATA = ("trec", "sst2")
ATTENTIONS = ("DotProduct", "IKANDirect")


class Fit(NamedTuple):
    """One training: on what, with what, from which random numbers."""

    data: str
    attention: str
    seed: int


class Measured(NamedTuple):
    """What became of it: accuracies in percent, losses, and minutes of a core in training."""

    val_accuracy: float
    val_loss: float
    test_accuracy: float
    test_loss: float
    minutes: float


def build(fit: Fit, pretrained: str, root: str | None) -> tuple[TextClassification, TextClassificationData, Trainer]:
    """Build what the configuration says, with the attention of the fit."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    config = yaml.safe_load((HERE.parent / "configs" / "text_classification" / f"{fit.data}_minilm.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    if fit.attention != model["attention"]["class_path"]:
        samples = {} if fit.attention in ("DotProduct", "RBF") else model["attention"]["init_args"]
        model["attention"] = {"class_path": fit.attention, "init_args": samples}
    model["attention"]["class_path"] = f"ika_lightning.attention.{fit.attention}"
    model["pretrained"] = data["pretrained"] = pretrained
    data["root"] = root
    config["trainer"] |= {
        "accelerator": "cpu",
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(TextClassification, "model", subclass_mode=True)
    parser.add_lightning_class_args(TextClassificationData, "data", subclass_mode=True)
    seed_everything(fit.seed, verbose=False)
    built = parser.instantiate_classes(
        parser.parse_object({name: config[name] for name in ("model", "data", "trainer")})
    )
    return built.model, built.data, Trainer(**built.trainer)


def measure(fit: Fit, pretrained: str, root: str | None) -> Measured:
    """Train as the configuration says, and measure what came out."""
    model, data, run = build(fit, pretrained, root)
    # of this process alone, whatever else the machine does
    began = time.process_time()
    run.fit(model, data)
    minutes = (time.process_time() - began) / 60
    run.limit_val_batches = 1.0
    (val,), (test,) = run.validate(model, data, verbose=False), run.test(model, data, verbose=False)
    accuracies = 100 * val["val/accuracy"], 100 * test["test/accuracy"]
    return Measured(accuracies[0], val["val/loss"], accuracies[1], test["test/loss"], minutes)


def known() -> dict[Fit, Measured]:
    """Return what has been measured already."""
    if not RESULTS.is_file():
        return {}
    with RESULTS.open(newline="") as file:
        return {
            Fit(row["data"], row["attention"], int(row["seed"])): Measured(*(float(row[x]) for x in Measured._fields))
            for row in csv.DictReader(file)
        }


def measure_all(fits: list[Fit], pretrained: str, root: str | None) -> dict[Fit, Measured]:
    """Measure what is not known yet, a line of the file after each."""
    for fit in fits:
        # read anew, as other processes write to it, too
        if fit in known():
            continue
        measured = measure(fit, pretrained, root)
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow([*Fit._fields, *Measured._fields])
            writer.writerow([*fit, *(f"{value:.6g}" for value in measured)])
        print(*fit, *(f"{value:.3f}" for value in measured), flush=True)
    return known()


def show(results: dict[Fit, Measured], fits: list[Fit]) -> None:
    """Print the table: means over seeds, and their standard errors."""
    print("| data | attention | test accuracy | validation accuracy | validation loss | minutes of a core |")
    print("| --- | --- | --- | --- | --- | --- |")
    for data, attention in dict.fromkeys((fit.data, fit.attention) for fit in fits):
        rows = np.array([results[fit] for fit in fits if (fit.data, fit.attention) == (data, attention)])
        error = rows.std(0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else np.full(len(Measured._fields), np.nan)
        mean, error = Measured(*rows.mean(0)), Measured(*error)
        print(
            f"| {data} | {attention} | {mean.test_accuracy:.1f} ± {error.test_accuracy:.1f} | "
            f"{mean.val_accuracy:.1f} ± {error.val_accuracy:.1f} | {mean.val_loss:.3f} ± {error.val_loss:.3f} | "
            f"{mean.minutes:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True, help="folder of the encoder, or its name on the hub")
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    parser.add_argument("--attentions", nargs="+", default=ATTENTIONS)
    parser.add_argument("--seeds", type=int, default=3, help="how many fits of each")
    parser.add_argument("--root", help="folder of the benchmark data; by default IKA_DATA, else the cache folder")
    arguments = parser.parse_args()
    fits = [
        Fit(data, attention, seed)
        for data in arguments.data
        for seed in range(arguments.seeds)
        for attention in arguments.attentions
    ]
    show(measure_all(fits, arguments.pretrained, arguments.root), fits)


if __name__ == "__main__":
    main()
