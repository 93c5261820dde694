"""What an operation costs on a device: all that ``backend="auto"`` knows of processors.

Shipped are prices that were measured on a CPU, and a guess for accelerators.
``python -m ika_lightning calibrate`` measures those of this machine and writes them into a file of the user's, which
comes before what is shipped.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import platformdirs
import torch

# Prices in multiply-adds of a large matrix product (25 ps on a core), fitted to times forwards and backwards in float32
# on one core over some 300 shapes, dense and chunked anew on two; `benchmarks/attention.py --what auto` checks them.
_CPU = {
    # An entry of n x m, besides the matrix products. Dense passes over it some ten times, more with a causal mask, and
    # once its matrices outgrow the cache, in memory that is freshly mapped.
    "dense entry": 300,
    "dense causal entry": 200,
    "dense entry beyond a million": 1500,
    "chunked entry": 60,
    # An exponential for each pair, and the passes that go with it.
    "exponential": 150,
    # An exponential for each pair in tiles on the diagonal.
    "entry on the diagonal": 200,
    # Linear: a product of two features of a token.
    "product": 100,
    # Linear: a number of a state, which is made, scaled and added to.
    "state": 850,
    # The loops in Python.
    "dense call": 1.4e7,
    "chunked call": 8e7,
    "linear call": 7e7,
}

# An accelerator does some ten thousand multiply-adds in the time of one on a core, and passes over memory at some
# hundred numbers in it, so an entry costs as many products as a pass over it costs bytes. Loops in Python cost what
# they cost on the host: some 20 us for each launch. Reckoned from data sheets, not fitted to any card.
_ACCELERATOR = {
    "dense entry": 2500,
    "dense causal entry": 500,
    "dense entry beyond a million": 0,
    "chunked entry": 1500,
    "exponential": 500,
    "entry on the diagonal": 1500,
    "product": 500,
    "state": 1500,
    "dense call": 1e10,
    "chunked call": 1e11,
    # Products of tiles in half precision, at ten times the rate of float32.
    "fused product": 0.1,
    "fused entry": 20,
    "fused call": 5e9,
    "linear call": 1e11,
}


def shipped_prices(device: torch.device) -> dict[str, float]:
    """Return the prices that come with this package, in multiply-adds of a large matrix product on the device.

    Example:
        >>> shipped_prices(torch.device("cpu"))["product"]
        100
    """
    return _CPU if device.type == "cpu" else _ACCELERATOR


def prices(device: torch.device) -> dict[str, float]:
    """Return the prices of a device, in multiply-adds of a large matrix product there.

    They are those of the user's file, if it has the device, and else the shipped ones. The file is read once.

    Raises:
        ValueError: If the user's file is not one that ``calibrate`` writes.

    Example:
        >>> sorted(prices(torch.device("cpu"))) == sorted(shipped_prices(torch.device("cpu")))
        True
    """
    return _prices(device.type, device.index)


def _prices(kind: str, index: int | None) -> dict[str, float]:
    return _read_once(kind, index)


# The compiler takes what this returns for a constant, instead of following it into a file. This is all that
# torch.compiler.assume_constant_result does, and does not import the compiler, which takes as long as PyTorch itself.
_prices._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _read_once(kind: str, index: int | None) -> dict[str, float]:
    device, file = torch.device(kind if index is None else f"{kind}:{index}"), user_file()
    try:
        there = file.exists()
    except PermissionError:
        # the home of another user, as in containers: none of this one's files is in it
        there = False
    measured = read_prices(file) if there else {}
    return measured.get(device_name(device), shipped_prices(device))


def user_file() -> Path:
    """Return where the prices of this machine's devices are, once ``calibrate`` has written them."""
    return platformdirs.user_config_path("ika_lightning") / "prices.json"


def device_name(device: torch.device) -> str:
    """Return what a device is called in the user's file: the name of a card, else its type.

    Example:
        >>> device_name(torch.device("cpu"))
        'cpu'
    """
    is_card = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if is_card else device.type


def read_prices(file: Path) -> dict[str, dict[str, float]]:
    """Read the prices of devices by their names.

    Raises:
        ValueError: If it cannot be read or is not one that ``calibrate`` writes; the message says what is wrong.
    """

    def wrong(reason: str) -> ValueError:
        return ValueError(f"{file}: {reason}; delete it, and python -m ika_lightning calibrate writes it anew")

    try:
        tables = json.loads(file.read_bytes())
    except OSError as error:
        raise wrong(f"it cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise wrong(f"this is no JSON ({error})") from None
    if not isinstance(tables, dict):
        raise wrong("there must be an object with a device in each entry")
    for name, table in tables.items():
        known = shipped_prices(torch.device("cpu" if name == "cpu" else "cuda"))
        if not isinstance(table, dict) or table.keys() != known.keys():
            raise wrong(f"{name!r} must have a price for each of {', '.join(known)}")
        for price, number in table.items():
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or not math.isfinite(number) or number < 0:
                raise wrong(f"{name!r}: {price!r} must be a number of at least 0, got {number!r}")
    return tables
