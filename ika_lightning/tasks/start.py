"""What a training starts from that does not start from nothing: the weights of a model that has learned other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ika_lightning.checkpoints import Damaged, read_checkpoint
from ika_lightning.data.tokenizer import Tokenizer

__all__ = ["Start", "carry_rows", "read_checkpoint_file", "read_words"]


@dataclass(frozen=True)
class Start:
    """A trained network, and what it knows of the data that it has learned.

    Args:
        source: What messages call it.
        weights: The state dict of its network.
        hparams: The hyper-parameters of its task, sizes of its data included.
        encoding: What its data module had learned on training rows; empty if that is not known.
    """

    source: str
    weights: Mapping[str, Tensor]
    hparams: Mapping[str, Any]
    encoding: Mapping[str, Any]


def read_checkpoint_file(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as data: tensors, numbers and text. Nothing that it names is looked up.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or no checkpoint of Lightning's.
        Untrusted: If it needs code of its own to load.
    """
    try:
        checkpoint = read_checkpoint(Path(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"init_from: {error}") from error
    except Damaged as error:
        raise ValueError(f"init_from: {error}; give another file") from error
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"init_from: {path} is not a Lightning checkpoint: it holds no 'state_dict' of tensors")
    return checkpoint


def carry_rows(old: Tensor, old_names: Sequence[str], new: Tensor, new_names: Sequence[str]) -> tuple[Tensor, int]:
    """Fill the rows of a table with those of another table that have the same names; the others stay.

    Args:
        old: The table to take rows from.
        old_names: What each of its rows stands for.
        new: The table to fill; a copy of it is returned.
        new_names: What each of its rows stands for.

    Shapes:
        old (r, d), with r names; new (s, d), with s names; the result (s, d).

    Returns:
        The table, and how many rows it has from the other.

    Raises:
        ValueError: If the names are not as many as rows, or rows differ in width.

    Example:
        >>> old, new = torch.tensor([[1.0], [2.0]]), torch.zeros(3, 1)
        >>> table, shared = carry_rows(old, ["a", "b"], new, ["b", "c", "a"])
        >>> table.tolist(), shared
        ([[2.0], [0.0], [1.0]], 2)
    """
    if (old.size(0), old.size(1), new.size(0)) != (len(old_names), new.size(1), len(new_names)):
        raise ValueError(
            f"rows to carry over must have names and one width, got {tuple(old.shape)} with {len(old_names)} names and "
            f"{tuple(new.shape)} with {len(new_names)}"
        )
    known = {name: row for row, name in enumerate(old_names)}
    pairs = [(row, known[name]) for row, name in enumerate(new_names) if name in known]
    table = new.detach().clone()
    if pairs:
        into, out_of = torch.tensor(pairs).unbind(1)
        table[into.to(table.device)] = old[out_of.to(old.device)].to(table)
    return table, len(pairs)


def read_words(start: Start, *names: str) -> list[str]:
    """Return the vocabulary that a trained network knows.

    Args:
        start: The network.
        names: Under which the encoding of its data may have the tokenizer; the first that is there counts.

    Raises:
        ValueError: If it does not say it.
    """
    state = next((start.encoding[name] for name in names if start.encoding.get(name) is not None), None)
    try:
        return Tokenizer(state).words  # type: ignore[arg-type]
    # the library raises plain exceptions for what is no tokenizer
    except Exception as error:
        raise ValueError(
            f"{start.source} does not say which vocabulary it was trained with, so its words mean nothing here; give a "
            "checkpoint that has its data module"
        ) from error
