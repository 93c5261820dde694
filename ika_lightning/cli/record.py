"""What a run is made of, for it to be repeated: versions, commit, data. And what differs where it is gone on with."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule

from ika_lightning import __version__
from ika_lightning.protocols import HasFingerprints

__all__ = ["differences", "record"]

PACKAGES = ("torch", "lightning", "torchmetrics", "torch-geometric", "numpy", "pandas", "tokenizers", "sacrebleu")

# Where a run writes and how it shows itself; none of it changes what is learned.
_ELSEWHERE = (
    "ckpt_path",
    "trust",
    "trainer.logger",
    "trainer.enable_",
    "trainer.default_root_dir",
    "trainer.log_every_n_steps",
)

# What makes a run the one that it is; with another of these, it is another run.
_DECISIVE = (
    "seed_everything",
    "model",
    "data",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
    "trainer.limit_train_batches",
    "trainer.overfit_batches",
)
# Of these, what says where things are, or how they are computed.
_WHEREVER = ("data.root", "data.predict_path", "data.predict_edges_path", "model.compile")


def record(data: LightningDataModule | None) -> dict[str, Any]:
    """Describe what a run depends on besides its configuration.

    Args:
        data: The data, after ``setup``; a SHA-256 of each of its parts is told, if it can tell.

    Returns:
        Strings in dicts.
    """
    return {
        "command": sys.argv[1:],
        "versions": {
            "ika-lightning": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "git": _commit(),
        "data": dict(data.fingerprints) if isinstance(data, HasFingerprints) else {},
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, decisive: bool = False) -> list[str]:
    """Tell what differs between two nested dicts, as far as results may depend on it.

    Args:
        old: What was.
        new: What is.
        decisive: Leave out what a training may go on with, such as its length, and options that the old one does not
            know.

    Example:
        >>> differences({"model": {"width": 64}, "ckpt_path": None}, {"model": {"width": 32}, "ckpt_path": "x.ckpt"})
        ['model.width: 64 -> 32']
        >>> differences({"trainer": {"max_epochs": 2}}, {"trainer": {"max_epochs": 3}}, decisive=True)
        []
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in dict.fromkeys([*before, *after])
        if _shown(before, key) != _shown(after, key)
        and not key.startswith(_ELSEWHERE)
        and not (decisive and (key not in before or not _is_decisive(key)))
    ]


def _is_decisive(key: str) -> bool:
    inside = any(key == name or key.startswith(f"{name}.") for name in _DECISIVE)
    return inside and key not in _WHEREVER


def _flat(nested: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(nested, Mapping) and nested:
        for key, value in nested.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        # a class may be told with its module or without
        if prefix.endswith(".class_path") and isinstance(nested, str):
            nested = nested.rpartition(".")[2]
        yield prefix.replace(".init_args", "").replace(".class_path", ""), nested


def _shown(flat: dict[str, Any], key: str) -> str:
    return yaml.safe_dump(flat.get(key), default_flow_style=True).split("\n")[0]


def _commit() -> str | None:
    """The commit that is checked out here, with a + if files differ from it; None outside of a repository."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True, timeout=10, env=environment
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
