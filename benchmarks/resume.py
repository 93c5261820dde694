"""Kill trainings at random moments, go on from their last checkpoints, and compare with one that was never killed.

    python benchmarks/resume.py                        # 20 kills of each task, in one process and in two
    python benchmarks/resume.py --tasks translation --kills 5 --processes 2

Every run is the command line's own ``fit``, in a process of its own, with dropout and fresh spectral noise, validation,
and a checkpoint every few updates; it is killed by SIGKILL, all of its processes at once. Weights, the state of the
optimizer, everything else in the last checkpoint, the best checkpoint and the metrics have to be the same in every bit.
Processes are forked after the imports, which take longer than these trainings.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from ika_lightning.cli.command import Command

MODEL = ["--model.width", "8", "--model.dropout", "0.2", "--model.optimizer.class_path", "torch.optim.AdamW"]
ATTENTION = [*MODEL, "--model.depth", "1", "--model.num_heads", "2", "--model.attention.num_samples", "4"]
TASKS = {
    "regression": [
        "--model", "Regression", "--data", "RegressionData", "--data.name", "airline_passengers",
        "--data.batch_size", "16", *ATTENTION, "--trainer.max_epochs", "12",
    ],
    "text_classification": [
        "--model", "TextClassification", "--data", "TextClassificationData", "--data.path", "texts.tsv",
        "--data.batch_size", "16", *ATTENTION, "--trainer.max_epochs", "8",
    ],
    "translation": [
        "--model", "Translation", "--data", "TranslationData", "--data.source", "source", "--data.target", "target",
        "--data.vocabulary", "300", "--data.batch_tokens", "400", *ATTENTION, "--trainer.max_epochs", "3",
    ],
    "node_classification": [
        "--model", "NodeClassification", "--data", "NodeClassificationData", "--data.name", "karate", *MODEL,
        "--model.conv.spectrum", "copula", "--model.conv.num_samples", "4", "--trainer.max_epochs", "60",
    ],
}  # fmt: skip
SHARED = [
    "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
    "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs", "--trainer.logger.name", "run",
    "--trainer.logger.version", "0", "--last.every_n_train_steps", "5", "--trainer.log_every_n_steps", "1",
]  # fmt: skip

KILLS_OF_A_TRAINING = 6  # at most; then it is left alone


def write_texts(folder: Path) -> None:
    """Write labelled texts, and sentences with the same words the other way round."""
    draw = random.Random(0)
    texts = [[f"word{draw.randrange(40)}" for _ in range(draw.randint(1, 12))] for _ in range(200)]
    (folder / "texts.tsv").write_text("".join(f"{'xyz'[len(text) % 3]}\t{' '.join(text)}\n" for text in texts))
    (folder / "source").write_text("".join(" ".join(text) + "\n" for text in texts))
    (folder / "target").write_text("".join(" ".join(text[::-1]) + "\n" for text in texts))


def start(folder: Path, args: list[str]) -> int:
    """Start a command in a folder, in a process group of its own; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        Command(args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid: int, seconds: float = 600.0) -> int | None:
    """Return the exit code of a process, or None if it still runs after some time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def results(folder: Path) -> dict[str, Any]:
    """Everything that a training has come to."""
    run = folder / "runs" / "run" / "version_0"
    last, best = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("last", "best"))
    for checkpoint in (last, best):
        del checkpoint["config"], checkpoint["run"]  # which say how it was gone on with
        # a count of batches of validation since the start of the epoch, which Lightning shows and does not decide by
        del checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        for state in checkpoint["callbacks"].values():
            state.pop("current_score", None)  # which ModelCheckpoint keeps, does not load, and makes no use of
    return {"last": last, "best": best["state_dict"], "metrics": (run / "metrics.csv").read_bytes()}


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Names of all that is not the same in every bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [name for key in one for name in differing(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [
            name for i, pair in enumerate(zip(one, other, strict=True)) for name in differing(*pair, f"{place}/{i}")
        ]
    if isinstance(one, torch.Tensor):
        same = (
            one.shape == other.shape and one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()
        )
    else:
        same = one == other
    return [] if same else [place]


def measure(task: str, processes: int, kills: int, draw: random.Random) -> bool:
    """Kill and compare, and print the counts; return whether all was the same."""
    args = ["fit", *TASKS[task], *SHARED]
    if processes > 1:
        args += ["--trainer.strategy", "ddp_fork", "--trainer.devices", str(processes)]
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        whole.mkdir()
        write_texts(whole)
        began = time.monotonic()
        if wait(start(whole, args)) != 0:
            raise SystemExit(f"{task} fails:\n{(whole / 'log').read_text()}")
        duration = time.monotonic() - began
        expected = results(whole)
        killed = gone_on = trainings = 0
        wrong: list[str] = []
        while killed < kills:
            folder = Path(place, f"{trainings}")
            folder.mkdir()
            write_texts(folder)
            resumes: list[str] = []
            for remaining in reversed(range(KILLS_OF_A_TRAINING + 1)):
                began = time.monotonic()
                pid = start(folder, [*args, *resumes])
                code = wait(pid, draw.uniform(0.0, 0.8) * duration if remaining else 600.0)
                if code is not None:
                    if code:
                        raise SystemExit(f"{task} fails:\n{(folder / 'log').read_text()[-3000:]}")
                    if not resumes:
                        duration = min(duration, time.monotonic() - began)  # the machine may have been busy
                    break
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                killed += 1
                run = folder / "runs" / "run" / "version_0"
                # without a checkpoint yet, it begins anew
                resumes = ["--ckpt_path", "last"] if run.is_dir() else []
                gone_on += (run / "checkpoints" / "last.ckpt").is_file()
            trainings += 1
            wrong += differing(expected, results(folder))
    print(
        f"{task:<20} {processes} process{'es' if processes > 1 else '  '}: {killed} kills, {gone_on} resumed, in "
        f"{trainings} trainings; {'all bit-identical' if not wrong else f'DIFFERENT: {wrong[:5]}'}",
        flush=True,
    )
    return not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--kills", type=int, default=20, help="how often each is killed, at least")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    same = [measure(task, n, options.kills, draw) for n in options.processes for task in options.tasks]
    raise SystemExit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
