"""Checkpoint files as data: nothing that they carry is run, and nothing that they name is looked up."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ika_lightning.trust import plain_tensors, refused_code

__all__ = ["Damaged", "is_whole", "read_checkpoint"]


class Damaged(ValueError):
    """A file that was a checkpoint, or is to be one, and is not whole."""


def is_whole(path: Path) -> bool:
    """Whether a file was written to its end, where the directory of an archive is.

    Args:
        path: The file, which is there.
    """
    with path.open("rb") as file:
        return zipfile.is_zipfile(file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of plain tensors.

    Args:
        path: The file.

    Returns:
        What it holds by name; nothing, if it is a file of something else.

    Raises:
        FileNotFoundError: If there is none.
        Damaged: If it is not whole.
        Untrusted: If it needs code of its own to load.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; check the spelling and the folder")
    if not is_whole(path):
        raise Damaged(f"{path} is not a checkpoint, or was cut short")
    try:
        with plain_tensors():
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refused_code(path, error) from error
    # a damaged pickle raises anything
    except Exception as error:
        raise Damaged(f"{path} is not a checkpoint, or is damaged: {error}") from error
    # what else there may be has none of what a checkpoint has
    return checkpoint if isinstance(checkpoint, dict) else {}
