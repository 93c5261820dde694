"""A short name for data that is the same only for the same data."""

import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from ika_lightning.lazy import pandas as pd

__all__ = ["fingerprint"]


def fingerprint(*parts: Any) -> str:
    """Return the SHA-256 of data, in hexadecimal: of texts, numbers, arrays, tensors, tables, and lists of them.

    Args:
        *parts: The data.

    Raises:
        TypeError: If it is of another type.

    Example:
        >>> fingerprint(["a", "b"]) == fingerprint(["ab"]), fingerprint(["a", "b"]) == fingerprint(("a", "b"))
        (False, True)
    """
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()


def _feed(digest: Any, part: Any) -> None:
    match part:
        case list() | tuple():
            digest.update(b"[%d" % len(part))
            for item in part:
                _feed(digest, item)
        case str() | int() | float() | None:
            content = repr(part).encode()
            digest.update(b"%d:" % len(content) + content)
        case Tensor():
            _feed(digest, part.numpy())
        case np.ndarray():
            _feed(digest, [str(part.dtype), *part.shape])
            digest.update(np.ascontiguousarray(part).tobytes())
        case pd.DataFrame():
            _feed(digest, [str(column) for column in part.columns])
            _feed(digest, pd.util.hash_pandas_object(part, index=False).to_numpy())
        case _:
            raise TypeError(f"there is no fingerprint of a {type(part).__name__}")
