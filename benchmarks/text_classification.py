"""Test accuracy of every attention on four data sets of sentences, in one harness, and the speed of its training.

    python benchmarks/text_classification.py [--data trec sst2] [--attentions IKAN MIKAN]
    python benchmarks/text_classification.py --speed

Everything but attention and learning rate comes from ``configs/text_classification/<data>.yaml``. The learning rate is
chosen for each attention on its own, from the same values: by the mean accuracy on validation texts after the last
epoch. Then the model is trained and tested once for each of 5 seeds, or each of 10 folds where there is no official
split. Test texts choose nothing; with folds, the choice is made within the training texts of the first, some of which
are test texts of the others.

Every fit is a line of ``benchmarks/results/text_classification.csv``, and is not done again; delete the file to start
anew. One process uses one core; start one for each data set to use more.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import logging
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser

from ika_lightning.attention import attention_kl
from ika_lightning.data import TextClassificationData
from ika_lightning.tasks import TextClassification

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "text_classification.csv"
ATTENTIONS = ("DotProduct", "IKANDirect", "IKAN", "MIKAN")
LEARNING_RATES = (0.001, 0.002, 0.004)
#: Without an official test split, the seed of a fit is the fold that it is tested on.
FOLDED = ("mr", "subj")
#: Kim 2014, CNN-rand: word vectors from random numbers, as here. Its sst2 is trained on phrases, too.
PUBLISHED = {"trec": 91.2, "sst2": 82.7, "mr": 76.1, "subj": 89.6}


class Fit(NamedTuple):
    """One training: on what, with what, and whether it is to choose (validation texts) or to report (test texts)."""

    data: str
    attention: str
    lr: float
    seed: int
    stage: str  # "val" or "test"


def build(fit: Fit, root: str | None) -> tuple[TextClassification, TextClassificationData, Trainer]:
    """Build what the configuration says, with the attention and learning rate of the fit."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    config = yaml.safe_load((HERE.parent / "configs" / "text_classification" / f"{fit.data}.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    samples = model["attention"]["init_args"]["num_samples"]
    model["attention"] = {
        "class_path": f"ika_lightning.attention.{fit.attention}",
        "init_args": {} if fit.attention == "DotProduct" else {"num_samples": samples},
    }
    model["optimizer"]["init_args"]["lr"] = fit.lr
    data["root"] = root
    if fit.data in FOLDED:
        data["fold"] = fit.seed
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
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(TextClassification, "model", subclass_mode=True)
    parser.add_lightning_class_args(TextClassificationData, "data", subclass_mode=True)
    sections = {name: config[name] for name in ("model", "data", "trainer")}
    seed_everything(fit.seed, verbose=False)
    built = parser.instantiate_classes(parser.parse_object(sections))
    return built.model, built.data, Trainer(**built.trainer)


def measure(fit: Fit, root: str | None) -> float:
    """Train as the configuration says and return the accuracy on validation or test texts, in percent."""
    model, data, run = build(fit, root)
    run.fit(model, data)
    run.limit_val_batches = 1.0
    evaluate = run.test if fit.stage == "test" else run.validate
    (measured,) = evaluate(model, data, verbose=False)
    return 100.0 * measured[f"{fit.stage}/accuracy"]


def known() -> dict[Fit, float]:
    """Return what has been measured already."""
    if not RESULTS.is_file():
        return {}
    with RESULTS.open(newline="") as file:
        return {
            Fit(r["data"], r["attention"], float(r["lr"]), int(r["seed"]), r["stage"]): float(r["accuracy"])
            for r in csv.DictReader(file)
        }


def measure_all(fits: list[Fit], root: str | None) -> dict[Fit, float]:
    """Measure what is not known yet, a line of the file after each."""
    results = known()
    RESULTS.parent.mkdir(exist_ok=True)
    for fit in fits:
        if fit in results:
            continue
        results[fit] = measure(fit, root)
        with RESULTS.open("a", newline="") as file:  # opened anew, as other processes write to it, too
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow([*Fit._fields, "accuracy"])
            writer.writerow([*fit, f"{results[fit]:.6g}"])
        print(*fit, f"{results[fit]:.2f}", flush=True)
    return results


def tuned_on(data: str) -> range:
    """Return the seeds whose validation texts choose."""
    return range(1) if data in FOLDED else range(2)


def choose(results: dict[Fit, float], data: str, attention: str) -> float:
    """Return the learning rate of the highest mean validation accuracy."""

    def validation(lr: float) -> float:
        return float(np.mean([results[Fit(data, attention, lr, seed, "val")] for seed in tuned_on(data)]))

    return max(LEARNING_RATES, key=validation)


def accuracy(arguments: argparse.Namespace) -> None:
    """Print the table of accuracies."""
    pairs = list(itertools.product(arguments.data, arguments.attentions))
    tuning = [Fit(*pair, lr, seed, "val") for pair in pairs for lr in LEARNING_RATES for seed in tuned_on(pair[0])]
    results = measure_all(tuning, arguments.root)
    chosen = {pair: choose(results, *pair) for pair in pairs}
    reported = {
        pair: [Fit(*pair, chosen[pair], seed, "test") for seed in range(10 if pair[0] in FOLDED else 5)]
        for pair in pairs
    }
    results = measure_all(list(itertools.chain(*reported.values())), arguments.root)

    print("| data | attention | test accuracy, mean ± standard error | learning rate |")
    print("| --- | --- | --- | --- |")
    for (data, attention), fits in reported.items():
        measured = np.array([results[fit] for fit in fits])
        error = measured.std(ddof=1) / np.sqrt(measured.size)
        print(f"| {data} | {attention} | {measured.mean():.1f} ± {error:.1f} | {chosen[data, attention]} |")
    for data in arguments.data:
        print(f"| {data} | CNN-rand (Kim 2014) | {PUBLISHED[data]} | |")


def speed(arguments: argparse.Namespace) -> None:
    """Print the texts a second of training, of all attentions by turns in one run."""
    for name in arguments.data:
        models, batches = {}, []
        for attention in arguments.attentions:
            model, data, _ = build(Fit(name, attention, 0.001, 0, "test"), arguments.root)
            data.setup("fit")
            model.hparams.update(num_tokens=data.vocab_size, classes=data.classes)
            model.configure_model()
            models[attention] = model, model.configure_optimizers()["optimizer"]
            batches = list(itertools.islice(data.train_dataloader(), arguments.batches))
        seconds: dict[str, list[float]] = {attention: [] for attention in models}
        for _ in range(arguments.repeats + 1):
            for attention, (model, optimizer) in models.items():
                start = time.perf_counter()
                for batch in batches:
                    loss = F.cross_entropy(model(batch.tokens), batch.label) + model.kl_weight * attention_kl(model)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                seconds[attention].append(time.perf_counter() - start)
        texts = sum(len(batch.label) for batch in batches)
        rates = {
            attention: texts / np.median(measured[1:]) for attention, measured in seconds.items()
        }  # first: warm-up
        print("| data | attention | texts a second | relative to the first |")
        print("| --- | --- | --- | --- |")
        for attention, rate in rates.items():
            print(f"| {name} | {attention} | {rate:.0f} | {rate / next(iter(rates.values())):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--attentions", nargs="+", default=ATTENTIONS)
    parser.add_argument("--speed", action="store_true", help="measure the speed of training instead of accuracy")
    parser.add_argument("--batches", type=int, default=32, help="with --speed: batches of a repeat")
    parser.add_argument("--repeats", type=int, default=5, help="with --speed: repeats of each attention")
    parser.add_argument("--root", help="folder of the benchmark data; by default IKA_DATA, else the cache folder")
    arguments = parser.parse_args()
    (speed if arguments.speed else accuracy)(arguments)


if __name__ == "__main__":
    main()
