"""What an operation costs on a device: all that ``backend="auto"`` knows of processors."""

from __future__ import annotations

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
# they cost on the host: some 20 us for each launch. Reckoned from data sheets; no accelerator has been measured yet.
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
    "fused entry": 400,
    "fused call": 5e9,
    "linear call": 1e11,
}


def prices(device: torch.device) -> dict[str, float]:
    """Return the prices of a device, in multiply-adds of a large matrix product there.

    Example:
        >>> prices(torch.device("cpu"))["product"]
        100
    """
    return _CPU if device.type == "cpu" else _ACCELERATOR
