"""What a checkpoint file says about itself, read without running any code that it may carry or name."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from ika_lightning import checkpoints
from ika_lightning.cli.explain import UsageError, read_sections


class DamagedCheckpoint(UsageError):
    """A file that was a checkpoint, or is to be one, and is not whole."""


KEYWORDS = ("best", "last", "hpc", "registry")  # what Lightning takes for ``ckpt_path`` besides a file


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a Lightning checkpoint of plain tensors, or say in one line why that cannot be.

    Args:
        path: The file.

    Raises:
        DamagedCheckpoint: If the file is damaged.
        UsageError: If the file is missing, or of another framework.
        Untrusted: If it needs code of its own to load.
    """
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}{known_checkpoints()}")
    try:
        checkpoint = checkpoints.read_checkpoint(path)
    except checkpoints.Damaged as error:
        raise DamagedCheckpoint(f"{error}{_others(path)}") from error
    for key, kind in (("state_dict", dict), ("pytorch-lightning_version", str), ("epoch", int), ("global_step", int)):
        if not isinstance(checkpoint.get(key), kind):
            raise UsageError(f"{path} is not a Lightning checkpoint: it holds no {key!r}")
    return checkpoint


def restore(model: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Give a model what it has learned, for evaluation, without a trainer and its data.

    Args:
        model: The model.
        checkpoint: What :func:`read_checkpoint` has read.
    """
    model.trainer = None
    model.configure_model()
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    model.eval()


def _others(path: Path) -> str:
    """An ending for an error about a damaged checkpoint: the newest whole one beside it, or nothing."""
    beside = sorted(path.parent.glob("*.ckpt"), key=lambda file: file.stat().st_mtime, reverse=True)
    return next((f"; the one before is {file}" for file in beside if file != path and checkpoints.is_whole(file)), "")


def read_config(checkpoint: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The configuration that a checkpoint was trained with: its own copy, else the file that ``fit`` put beside it.

    Raises:
        UsageError: If it is no YAML.
    """
    text = checkpoint.get("config")
    if isinstance(text, str):
        return read_sections(text.encode(), f"the configuration inside {path}")
    beside = (path.parent / "config.yaml", path.parent.parent / "config.yaml")
    return next((read_sections(file.read_bytes(), file) for file in beside if file.is_file()), None)


def known_checkpoints(root: str = "runs") -> str:
    """An ending for an error about a checkpoint: the newest ones here, or nothing."""
    files = sorted(Path(root).rglob("last.ckpt"), key=lambda file: file.stat().st_mtime, reverse=True)
    return f"; the newest here: {', '.join(map(str, files[:3]))}" if files else ""
