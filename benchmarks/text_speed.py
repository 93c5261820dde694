"""Texts a second of training, of every attention by turns in one run, as ratios to the first.

    python benchmarks/text_speed.py [--data trec sst2] [--attentions DotProduct IKANDirect]

Everything but the attention comes from ``configs/text_classification/<data>.yaml``; the batches are its texts. One
process uses one core. Medians of the repeats are reported; the first warms up and is not counted.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import seed_everything
from lightning.pytorch.cli import LightningArgumentParser

from ika_lightning.attention import attention_kl
from ika_lightning.data import TextClassificationData
from ika_lightning.tasks import TextClassification

CONFIGS = Path(__file__).parents[1] / "configs" / "text_classification"
DATA = ("trec", "sst2", "mr", "subj")
ATTENTIONS = ("DotProduct", "IKANDirect", "IKAN", "MIKAN")


def build(name: str, attention: str, root: str | None) -> tuple[TextClassification, TextClassificationData]:
    """Build what the configuration of a data set says, with another attention."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    learned = {"num_samples": model["attention"]["init_args"]["num_samples"]}
    model["attention"] = {
        "class_path": f"ika_lightning.attention.{attention}",
        "init_args": {} if attention in ("DotProduct", "RBF") else learned,
    }
    data["root"] = root
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(TextClassification, "model", subclass_mode=True)
    parser.add_lightning_class_args(TextClassificationData, "data", subclass_mode=True)
    seed_everything(0, verbose=False)
    with warnings.catch_warnings():
        # Lightning asks its parser in a way that the parser gives up
        warnings.simplefilter("ignore", DeprecationWarning)
        built = parser.instantiate_classes(parser.parse_object({part: config[part] for part in ("model", "data")}))
    return built.model, built.data


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the texts a second of each attention on a data set."""
    models, batches = {}, []
    for attention in arguments.attentions:
        model, data = build(name, attention, arguments.root)
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
    return {attention: texts / float(np.median(measured[1:])) for attention, measured in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    parser.add_argument("--attentions", nargs="+", default=ATTENTIONS)
    parser.add_argument("--batches", type=int, default=32, help="batches of a repeat")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each attention")
    parser.add_argument("--root", help="folder of the benchmark data; by default IKA_DATA, else the cache folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | attention | texts a second | relative to the first |")
    print("| --- | --- | --- | --- |")
    for name in arguments.data:
        rates = measure(name, arguments)
        for attention, rate in rates.items():
            print(f"| {name} | {attention} | {rate:.0f} | {rate / next(iter(rates.values())):.2f} |", flush=True)


if __name__ == "__main__":
    main()
