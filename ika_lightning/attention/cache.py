"""What causal attention remembers while a sequence is read or written a few positions at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeyCache:
    """All that later positions need to know of earlier ones: a row for each key, and the kernel if it is drawn.

    A cache is a value: extending or reordering it makes another one, so a beam may go on from any earlier cache.

    Args:
        rows: What attention needs of each key, in the words of the core that filled the cache.
        frequencies: Those of a spectral core, which hold for all of the sequence.

    Shapes:
        each of the rows (b, h, m, ...); each of the frequencies (h, M, d).

    Example:
        >>> cache = KeyCache((torch.zeros(2, 3, 5, 7),)).extend(torch.ones(2, 3, 1, 7))
        >>> cache.length, cache.reorder(torch.tensor([1, 1, 0])).rows[0].shape
        (6, torch.Size([3, 3, 6, 7]))
    """

    rows: tuple[Tensor, ...]
    frequencies: tuple[Tensor, ...] = ()

    @property
    def length(self) -> int:
        """The number of keys, m."""
        return self.rows[0].size(2)

    def extend(self, *rows: Tensor) -> KeyCache:
        """Return the cache with the rows of later keys behind its own.

        Raises:
            ValueError: If the rows are of another number of sequences.
        """
        if rows[0].size(0) != self.rows[0].size(0):
            raise ValueError(
                f"a cache of {self.rows[0].size(0)} sequences cannot go on with {rows[0].size(0)}; "
                "cache.reorder(index) selects sequences"
            )
        joined = (torch.cat([old, new], dim=2) for old, new in zip(self.rows, rows, strict=True))
        return replace(self, rows=tuple(joined))

    def reorder(self, index: Tensor) -> KeyCache:
        """Return the cache of the sequences ``index``, as beam search needs it; repeats and omissions are fine."""
        return replace(self, rows=tuple(row.index_select(0, index.to(row.device)) for row in self.rows))
