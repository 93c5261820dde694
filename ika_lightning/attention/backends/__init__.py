"""Ways to compute one operation, all of them exact; :func:`choose` takes the cheapest that serves a call.

To add one, write an object with the methods of :class:`~ika_lightning.attention.backends.call.Backend` in a file of its
own, and name it in :data:`BACKENDS`: ``backend="auto"``, tests and benchmarks find it there.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from ika_lightning.attention.backends.call import Backend, Call
from ika_lightning.attention.backends.chunked import Chunked
from ika_lightning.attention.backends.dense import Dense
from ika_lightning.attention.backends.fused import Fused
from ika_lightning.attention.backends.linear import Linear
from ika_lightning.attention.backends.prices import prices as prices_of
from ika_lightning.attention.backends.reference import Reference
from ika_lightning.attention.backends.sdpa import Sdpa

__all__ = ["BACKENDS", "Backend", "Call", "check_backend", "choose"]

#: All backends by name. Where two cost the same, the first is taken.
BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (Sdpa(), Dense(), Chunked(), Fused(), Linear(), Reference())
}


def choose(call: Call, name: str = "auto") -> Backend:
    """Return the backend of a name or, with ``"auto"``, the cheapest one that serves the call on its device.

    Where sizes are not known, as in ``torch.export``, or a derivative is taken in forward mode, ``"auto"`` is the dense
    backend, or PyTorch's own where it serves.

    Raises:
        ValueError: If there is no backend of that name, or it refuses the call.

    Example:
        >>> from ika_lightning.attention.mask import Mask
        >>> x = torch.zeros(2, 5, 3)
        >>> choose(Call(x, x, None, None, x, None, Mask(), dropout_p=0.0, floor=1e-5, need_weights=False)).name
        'sdpa'
    """
    if check_backend(name) != "auto":
        reason = BACKENDS[name].refuses(call)
        if reason is not None:
            raise ValueError(f"backend {name!r} {reason}; take 'auto' or 'dense' for this call")
        return BACKENDS[name]
    if torch.compiler.is_exporting() or forward_ad._current_level >= 0:
        return BACKENDS["dense"] if BACKENDS["sdpa"].refuses(call) else BACKENDS["sdpa"]
    best, least, price = BACKENDS["reference"], float("inf"), prices_of(call.device)
    # spelt out, as the compiler knows no min(..., key=...)
    for backend in BACKENDS.values():
        if backend.refuses(call) is None and (cost := backend.cost(call, price)) < least:
            best, least = backend, cost
    return best


def check_backend(name: str) -> str:
    """Return the name of a backend if there is one of that name.

    Raises:
        ValueError: If there is none.

    Example:
        >>> check_backend("auto")
        'auto'
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, ('auto', *BACKENDS)))}, got {name!r}")
    return name
