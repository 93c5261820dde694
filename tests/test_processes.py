"""Any number of processes gives one result."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import four_tasks
import pytest
import torch
from torch.testing import assert_close


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of all tasks in two processes."""
    folder = tmp_path_factory.mktemp("processes")
    four_tasks.write_files(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    package = str(Path(__file__).parents[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "PYTHONPATH": package}
    command = [sys.executable, four_tasks.__file__, str(folder)]
    ranks = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(printed)
    return folder


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # the spectra, so that there is no noise
@pytest.mark.parametrize("task", four_tasks.TASKS)
def test_two_processes_are_one_with_the_joint_batch(task: str, two_processes: Path) -> None:
    shared = torch.load(two_processes / f"{task}.pt", weights_only=True)
    alone = four_tasks.train(task, two_processes, joint=2)
    assert_close(shared["weights"], alone["weights"], rtol=0, atol=1e-12)
    assert_close(shared["measured"], alone["measured"], rtol=1e-6, atol=1e-7)
    stages = {name.partition("/")[0] for name in alone["measured"]}
    assert stages == {"train", "val", "test"} and alone["measured"]["train/kl"] > 0


def test_other_data_in_one_of_them_is_noticed_by_all(two_processes: Path) -> None:
    first, second = ((two_processes / f"error{rank}").read_text() for rank in (0, 1))
    end = "; give all machines the same files"
    assert first == f"the processes have read different data (process 0 of 2){end}"
    # the one row more is for training there, and the draw of the test rows happens to be the same
    parts = "table, train, val differs from process 0"
    assert second == f"the processes have read different data (process 1 of 2; here, {parts}){end}"
