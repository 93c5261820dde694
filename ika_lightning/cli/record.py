"""What a run is made of, for it to be repeated: versions, commit, data. And what differs where it is gone on with."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule

from ika_lightning import __version__

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
        "data": getattr(data, "fingerprints", {}),
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Tell what differs between two nested dicts, as far as results may depend on it.

    Args:
        old: What was.
        new: What is.

    Example:
        >>> differences({"model": {"width": 64}, "ckpt_path": None}, {"model": {"width": 32}, "ckpt_path": "x.ckpt"})
        ['model.width: 64 -> 32']
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in dict.fromkeys([*before, *after])
        if _shown(before, key) != _shown(after, key) and not key.startswith(_ELSEWHERE)
    ]


def _flat(nested: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(nested, dict) and nested:
        for key, value in nested.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix.replace(".init_args", "").replace(".class_path", ""), nested


def _shown(flat: dict[str, Any], key: str) -> str:
    value = flat.get(key)
    # a class may be told with its module or without
    return yaml.safe_dump(value.rpartition(".")[2] if isinstance(value, str) else value, default_flow_style=True).split(
        "\n"
    )[0]


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
