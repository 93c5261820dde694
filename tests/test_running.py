"""The commands of docs/running.md: several processes, started in every way, make the same run."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "running.md").read_text()
FIT = [
    "-m", "ika_lightning", "fit", "--config", str(ROOT / "configs" / "regression" / "airline_passengers.yaml"),
    "--trainer.max_epochs", "2", "--model.width", "16", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false",
]  # fmt: skip
CPU = ["--trainer.accelerator", "cpu"]


def overlay(name: str) -> list[str]:
    return ["--config", str(ROOT / "configs" / "trainer" / f"{name}.yaml")]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_all(commands: list[tuple[list[str], dict[str, str]]], folder: Path) -> None:
    """Run processes side by side, each with variables of its own, and see all of them through."""
    folder.mkdir()
    base = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    started = [
        subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=base | variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for words, variables in commands
    ]  # fmt: skip
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


def weights(folder: Path) -> dict[str, Tensor]:
    (last,) = folder.glob("runs/*/version_0/checkpoints/last.ckpt")
    return torch.load(last, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of two processes that one command has started."""
    folder = tmp_path_factory.mktemp("ddp") / "run"
    run_all([([*FIT, *overlay("ddp"), *CPU, "--trainer.devices", "2"], {"MASTER_PORT": free_port()})], folder)
    return weights(folder)


def by_variables(rank: int, port: str) -> tuple[list[str], dict[str, str]]:
    return FIT, {"MASTER_PORT": port, "NODE_RANK": str(rank)}


def by_torchrun(rank: int, port: str) -> tuple[list[str], dict[str, str]]:
    launcher = ["--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1", "--master_addr", "127.0.0.1"]
    return ["-m", "torch.distributed.run", *launcher, "--master_port", port, *FIT], {}


def by_slurm(rank: int, port: str) -> tuple[list[str], dict[str, str]]:
    """As ``srun`` with two nodes of one task would."""
    variables = {
        "JOB_ID": "1", "JOB_NAME": "ika", "NTASKS": "2", "NTASKS_PER_NODE": "1", "PROCID": str(rank), "LOCALID": "0",
        "NODEID": str(rank), "NODELIST": "127.0.0.1",
    }  # fmt: skip
    return FIT, {"MASTER_PORT": port} | {f"SLURM_{name}": value for name, value in variables.items()}


@pytest.mark.slow
@pytest.mark.parametrize("start", [by_variables, by_torchrun, by_slurm])
def test_two_nodes(start, one_machine: dict[str, Tensor], tmp_path: Path) -> None:
    port = free_port()
    options = [*overlay("multi_node"), *CPU, "--trainer.devices", "1"]
    commands = [start(rank, port) for rank in range(2)]
    run_all([([*words, *options], variables) for words, variables in commands], tmp_path / "run")
    torch.testing.assert_close(weights(tmp_path / "run"), one_machine, rtol=0, atol=0)


@pytest.mark.slow
def test_shares_make_the_same_weights(one_machine: dict[str, Tensor], tmp_path: Path) -> None:
    options = [*overlay("fsdp"), *CPU, "--trainer.devices", "2"]
    run_all([([*FIT, *options], {"MASTER_PORT": free_port()})], tmp_path / "run")
    torch.testing.assert_close(weights(tmp_path / "run"), one_machine)


def test_a_disk_that_is_full_ends_both_processes_with_a_line_each(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has no limits on the size of files")
    import resource

    limit = 50_000  # bytes of a file: less than a checkpoint has
    command = [sys.executable, *FIT, *overlay("ddp"), *CPU, "--trainer.devices", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_PORT": free_port()}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert ended.returncode == 2
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert sorted(errors) == [
        "error: another process of this training has ended; it says why",
        "error: cannot write the checkpoint runs/airline_passengers/version_0/checkpoints/last.ckpt: File too large",
    ]
    assert "Traceback" not in ended.stderr
    assert not [file for file in tmp_path.rglob("*") if ".ckpt" in file.name]


def test_the_page_names_files_that_are_there() -> None:
    files = re.findall(r"configs/\w+/\w+\.yaml|benchmarks/\w+\.py|\]\(([^)]+)\)", DOCS)
    named = set(re.findall(r"(?:configs/\w+/\w+\.yaml|benchmarks/\w+\.py)", DOCS))
    links = {target for target in files if target}
    assert len(named) > 5 and len(links) > 5
    assert all((ROOT / name).is_file() for name in named)
    assert all((ROOT / "docs" / target).exists() for target in links)
