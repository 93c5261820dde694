"""The pictures of docs/pictures.md, and what the callbacks that draw while training cost.

    python benchmarks/pictures.py

trains ``configs/regression/co2.yaml`` and ``configs/text_classification/languages.yaml`` as they are, and prints the
share of the training time that the callbacks took (in CPU seconds of the training thread, so that other programs on the
machine do not count). Then it trains them again with more time for pictures, which changes nothing else, and writes
what that drew at its end, as it is in TensorBoard, to docs/pictures.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import chdir
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ika_lightning.cli import main
from ika_lightning.output import write_output

ROOT = Path(__file__).parents[1]
RUNS = {"co2": "regression", "languages": "text_classification"}
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
# What the page shows of what each training drew at its end: tags in TensorBoard, and names in docs/pictures.
SHOWN = {
    "co2": {
        "results/fit": "fit",
        "similarity/net.encoder.layers.1.attention": "similarity",
        "spectrum/net.encoder.layers.1.attention": "spectrum",
        "magnitude/net.encoder.layers.1.attention": "magnitude",
    },
    "languages": {
        "results/confusion": "confusion",
        "attention/net.encoder.layers.0.attention": "maps",
        "correlation/net.encoder.layers.0.attention": "correlation",
        "parts/net.encoder.layers.0.attention": "parts",
        "tokens/net.encoder.layers.0.attention": "tokens",
    },
}


class Clock(Callback):
    """Measures a training, and of it the callbacks that say how many seconds they took."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        whole = time.perf_counter() - self.started
        spent = sum(getattr(callback, "seconds", 0.0) for callback in trainer.callbacks)
        print(f"{trainer.logger.name}: callbacks took {spent:.2f} s of {whole:.1f} s, {spent / whole:.2%}")


def fit(name: str, *options: str) -> None:
    """Train as the configuration says, here."""
    main(["fit", "--config", str(ROOT / "configs" / RUNS[name] / f"{name}.yaml"), *QUIET, *options])


def write_pictures(folder: Path) -> None:
    """Train, and keep what the page shows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shown in SHOWN.items():
        fit(name, "--trainer.callbacks+", f"{Clock.__module__}.Clock")
        fit(name, "--pictures", "0.2")
        board = EventAccumulator(f"runs/{name}/version_1").Reload()
        for tag, target in shown.items():
            write_output(folder / f"{target}.png", board.Images(tag)[-1].encoded_image_string)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    time.perf_counter = time.thread_time
    with tempfile.TemporaryDirectory() as elsewhere, chdir(elsewhere):
        write_pictures(ROOT / "docs" / "pictures")
