"""Prices of a device, from the times that the backends take on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from ika_lightning.attention.backends import BACKENDS
from ika_lightning.attention.backends.call import Backend, Call
from ika_lightning.attention.backends.prices import shipped_prices
from ika_lightning.attention.mask import Mask

#: Numbers of queries and keys, short ones for what a call costs and long ones for what an entry does.
LENGTHS = (32, 128, 512, 2048)

# Sequences and heads together: as many on all lengths, so that the longest is a second's work of a core.
_HEADS = 4


def calibrate(
    device: torch.device, lengths: Sequence[int] = LENGTHS, tell: Callable[[str], None] = lambda line: None
) -> dict[str, float]:
    """Measure the prices of a device: what fits the times of the backends best, in their ratios.

    A price that none of the calls tells of stays as it is shipped.

    Args:
        device: Where to measure.
        lengths: Numbers of queries and keys.
        tell: Called with a line for each call that was measured.

    Example:
        >>> found = calibrate(torch.device("cpu"), lengths=(3, 5))
        >>> found.keys() == shipped_prices(torch.device("cpu")).keys()
        True
    """
    names, rows, times = list(shipped_prices(device)), [], []
    unit = _seconds(_large_product(device), device) / _LARGE**3
    for call in _calls(device, lengths):
        for backend in BACKENDS.values():
            fixed, each = _terms(backend, call, names) if backend.refuses(call) is None else (0.0, [])
            if not any(each):
                continue
            spent = _seconds(lambda backend=backend, call=call: _both_ways(backend, call), device) / unit  # type: ignore[misc]
            tell(f"{backend.name:<8} n = {call.n:<6} R = {call.num_features:<4} causal = {call.mask.causal!s:<6}"
                 f"{1e3 * spent * unit:8.2f} ms")  # fmt: skip
            rows.append([x / spent for x in each])
            times.append(1.0 - fixed / spent)
    found = _least_squares(torch.tensor(rows, dtype=torch.float64), torch.tensor(times, dtype=torch.float64))
    told = torch.tensor(rows).any(0).tolist()
    return {
        name: price if tells else shipped_prices(device)[name]
        for name, price, tells in zip(names, found.tolist(), told, strict=True)
    }


_LARGE = 1024


def _large_product(device: torch.device) -> Callable[[], Tensor]:
    a, b = torch.randn(2, _LARGE, _LARGE, device=device)
    return lambda: a @ b


def _calls(device: torch.device, lengths: Sequence[int]) -> Iterator[Call]:
    """Calls whose values are in half precision where an accelerator trains in it, and all else in float32."""
    half = None if device.type == "cpu" else torch.bfloat16
    for n, features, causal, has_exponent in product(lengths, (16, 64), (False, True), (False, True)):
        a, b, q, k, value = (
            torch.randn(_HEADS, n, width, device=device).div_(width**0.5).requires_grad_()
            for width in (features, features, 64, 64, 64)
        )
        magnitude = torch.randn(_HEADS, n, device=device).requires_grad_()
        query, key = (q, k) if has_exponent else (None, None)
        yield Call(query, key, a, b, value, magnitude, Mask(causal=causal), 0.0, 1e-5, False, product_dtype=half)


def _terms(backend: Backend, call: Call, names: Sequence[str]) -> tuple[float, list[float]]:
    """Return what a call costs when all is free but the products, and by how much each price raises it."""
    free = dict.fromkeys(names, 0.0)
    fixed = backend.cost(call, free)
    if fixed == float("inf"):
        return fixed, []
    return fixed, [backend.cost(call, free | {name: 1.0}) - fixed for name in names]


def _both_ways(backend: Backend, call: Call) -> None:
    out, _ = backend(call)
    out.backward(torch.ones_like(out))


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    """Return the least time of a few, after one that does not count."""
    times = []
    for _ in range(4):
        _wait_for(device)
        began = time.perf_counter()
        step()
        _wait_for(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _least_squares(rows: Tensor, right: Tensor) -> Tensor:
    """Return the solution without negative numbers: what would be negative is taken for zero, one after another."""
    kept = list(range(rows.size(1)))
    while kept:
        found = torch.linalg.lstsq(rows[:, kept], right[:, None], driver="gelsd").solution[:, 0]
        if found.min() >= 0.0:
            return rows.new_zeros(rows.size(1)).index_copy(0, torch.tensor(kept), found)
        del kept[int(found.argmin())]
    return rows.new_zeros(rows.size(1))
