"""Any number of processes, and of batches that are accumulated, gives one result."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import four_tasks
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.testing import assert_close

from ika_lightning.attention import ImplicitSpectrum


@pytest.fixture(scope="module", params=[2, 3])
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """How many processes there were, and the folder with the results of all tasks in them."""
    world, folder = request.param, tmp_path_factory.mktemp("processes")
    four_tasks.write_files(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, four_tasks.__file__, str(folder), str(world), port], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return world, folder


@pytest.mark.parametrize("task", four_tasks.TASKS)
def test_they_are_one_that_accumulates_as_many_batches(task: str, processes: tuple[int, Path]) -> None:
    """With dropout and spectra that are drawn: the noise is that of the same batches in one process."""
    world, folder = processes
    shared = torch.load(folder / f"{task}.pt", weights_only=True)
    alone = four_tasks.train(task, folder, {"accumulate_grad_batches": world}, dropout=0.2, budget=300)
    assert_close(shared["weights"], alone["weights"], rtol=0, atol=1e-12)
    assert_close(shared["measured"], alone["measured"], rtol=1e-6, atol=1e-7)
    stages = {name.partition("/")[0] for name in alone["measured"]}
    assert stages == {"train", "val", "test"} and alone["measured"]["train/kl"] > 0
    assert ("test/coverage" in alone["measured"]) == ("regression" in task)


class Quiet(Callback):
    """Draws frequencies as in evaluation: without noise."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for module in pl_module.modules():
            if isinstance(module, ImplicitSpectrum):
                module.eval()


# of regression, each batch is a set of rows with a context of its own
@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
@pytest.mark.parametrize("task", [task for task in four_tasks.TASKS if "regression" not in task])
def test_batches_that_are_accumulated_are_one_large_batch(task: str, tmp_path: Path) -> None:
    four_tasks.write_files(tmp_path)
    # a budget that is used up would cut other batches if it were three times as large
    options = {"kl_weight": 0.0, "budget": 5000}
    cut = four_tasks.train(task, tmp_path, {"accumulate_grad_batches": 3, "callbacks": [Quiet()]}, **options)
    whole = four_tasks.train(task, tmp_path, {"callbacks": [Quiet()]}, joint=3, **options)
    for found in (cut, whole):
        # a mean over samples, of which the weights of classes and the tokens of sentences make other weights
        found["measured"].pop("train/kl")
    assert_close(cut["weights"], whole["weights"], rtol=0, atol=1e-12)
    assert_close(cut["measured"], whole["measured"], rtol=1e-6, atol=1e-7)


def test_other_data_in_one_of_them_is_noticed_by_all(processes: tuple[int, Path]) -> None:
    world, folder = processes
    first, second = ((folder / f"error{rank}").read_text() for rank in (0, 1))
    end = "; give all machines the same files"
    assert first == f"the processes have read different data (process 0 of {world}){end}"
    # the one row more is for training there, and the draw of the test rows happens to be the same
    parts = "table, train, val differs from process 0"
    assert second == f"the processes have read different data (process 1 of {world}; here, {parts}){end}"
