"""A small model and data for each task, for tests that train all of them; run as a script, the same in several
processes."""

import functools
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything

from ika_lightning.attention import MIKAN
from ika_lightning.attention.graph import KernelGATConv
from ika_lightning.data import NodeClassificationData, RegressionData, TextClassificationData, TranslationData
from ika_lightning.tasks import NodeClassification, Regression, TextClassification, Translation
from ika_lightning.tasks.base import Task

TASKS = ["regression", "sure_regression", "text_classification", "translation", "node_classification", "node_batches"]
STEPS = 10


def write_files(folder: Path) -> None:
    """Put the data of all tasks into a folder."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (150, 2))
    pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": np.sin(3 * x[:, 0]) + x[:, 1]}).to_csv(
        folder / "rows.csv", index=False
    )
    words = np.array([f"word{number}" for number in range(40)])
    with (folder / "texts.tsv").open("w") as texts, (folder / "a").open("w") as a, (folder / "b").open("w") as b:
        for number in range(150):
            text = rng.choice(words, rng.integers(1, 12))
            texts.write(f"{'xyz'[number % 3]}\t{' '.join(text)}\n")
            # short, as a network that has learned nothing translates until it is stopped, a token at a time
            a.write(" ".join(text[:4]) + "\n")
            b.write(" ".join(text[3::-1]) + "\n")
    for side in "ab":
        lines = (folder / side).read_text().splitlines(keepends=True)
        (folder / f"{side}.test").write_text("".join(lines[:9]))


def build(
    task: str, folder: Path, joint: int = 1, budget: int = 100, **options: object
) -> tuple[Task, LightningDataModule]:
    """Return model and data of a task, with batches that hold what ``joint`` of them do otherwise."""
    optimizer = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.5)
    small = {"dropout": 0.0, "kl_weight": 0.5, "optimizer": optimizer, **options}
    net = {"width": 8, "depth": 1, "num_heads": 2, **small}
    attention = functools.partial(MIKAN, num_samples=4)
    if task in ("regression", "sure_regression"):
        sure = {"likelihood": "gaussian", "ensemble": 2} if task == "sure_regression" else {}
        data = RegressionData(path=str(folder / "rows.csv"), target="y", batch_size=20)
        return Regression(attention, **net, **sure), data
    if task == "text_classification":
        data = TextClassificationData(path=str(folder / "texts.tsv"), batch_size=7 * joint)
        model = TextClassification(attention, **net, class_weights=[1.0, 3.0, 0.5], embed_dropout=0.0)
        return model, data
    if task == "translation":
        files = {"source": str(folder / "a"), "target": str(folder / "b")}
        files |= {"test_source": str(folder / "a.test"), "test_target": str(folder / "b.test")}
        data = TranslationData(**files, val_fraction=0.05, vocabulary=300, batch_tokens=budget * joint, batch_size=8)
        return Translation(attention, **net, label_smoothing=0.1), data
    # a conditional spectrum looks at the mean of a whole batch of nodes
    conv = functools.partial(KernelGATConv, num_samples=4, spectrum="copula", conditional=task == "node_classification")
    model = NodeClassification(conv, width=4, **small)
    if task == "node_classification":
        return model, NodeClassificationData("karate", num_val=11, num_test=9)
    batches = {"batch_size": 4 * joint, "num_neighbors": [-1, -1]}
    return model, NodeClassificationData("karate", train_per_class=4, num_val=5, num_test=3, **batches)


def train(task: str, folder: Path, trainer: dict[str, object], **options: object) -> dict[str, dict[str, torch.Tensor]]:
    """Train in double precision; return the weights and everything that was measured."""
    seed_everything(1, verbose=False)
    model, data = build(task, folder, **options)
    fit = Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=STEPS,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, precision="64-true",
        gradient_clip_val=1.0, num_sanity_val_steps=0, max_epochs=STEPS, **trainer,
    )  # fmt: skip
    fit.fit(model, data)
    measured = {name: value.double() for name, value in fit.callback_metrics.items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    # after which a regression has intervals, which the test measures
    for evaluate in (fit.validate, fit.test):
        measured |= {name: torch.tensor(value) for name, value in evaluate(model, data, verbose=False)[0].items()}
    return {"weights": weights, "measured": measured}


def train_in_a_group(rank: int, world: int, port: str, where: Path) -> None:
    """Train all tasks in one of several processes, as ``torchrun`` would have begun it."""
    group = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in group.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"})
    trainer = {"devices": world, "strategy": "ddp"}
    for name in TASKS:
        found = train(name, where, trainer, dropout=0.2, budget=300)
        if torch.distributed.get_rank() == 0:
            torch.save(found, where / f"{name}.pt")
    data = where
    if torch.distributed.get_rank() == 1:  # a machine with an edition of its own
        data = where / "other"
        data.mkdir()
        write_files(data)
        (data / "rows.csv").write_text((data / "rows.csv").read_text() + "0.0,0.0,0.0\n")
    try:
        train("regression", data, trainer)
    except ValueError as error:
        (where / f"error{torch.distributed.get_rank()}").write_text(str(error))
    torch.distributed.destroy_process_group()  # or threads that still hold tensors may abort the process at its end


if __name__ == "__main__":
    # optimizers import it; where processes can be forked, what takes long to import is imported once for all of them
    import torch._dynamo

    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    count = int(sys.argv[2])
    ranks = [
        context.Process(target=train_in_a_group, args=(rank, count, sys.argv[3], Path(sys.argv[1])))
        for rank in range(count)
    ]
    for process in ranks:
        process.start()
    # one that has failed lets the others wait for ever
    end, alive = time.monotonic() + 240, ranks
    while alive and not any(process.exitcode for process in ranks) and time.monotonic() < end:
        multiprocessing.connection.wait([process.sentinel for process in alive], timeout=end - time.monotonic())
        alive = [process for process in ranks if process.is_alive()]
    for process in ranks:
        process.kill()
        process.join()
    sys.exit(any(process.exitcode for process in ranks))
