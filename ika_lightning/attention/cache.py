"""What attention remembers while a sequence is read or written a few positions at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ika_lightning.attention.linear import LinearState


@dataclass(frozen=True)
class KeyCache:
    """All that later positions need to know of earlier ones: a row for each key, and the kernel if it is drawn.

    A cache is a value: extending or reordering it makes another one, so a beam may go on from any earlier cache.
    Without gradients, caches that grow from one another share memory, with room for keys to come, so that a new key
    costs no copy of those before it.

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
    _room: _Room | None = None

    @property
    def length(self) -> int:
        """The number of keys, m."""
        return self.rows[0].size(2)

    def extend(self, *rows: Tensor) -> KeyCache:
        """Return the cache with the rows of later keys behind its own.

        Raises:
            ValueError: If the rows are of another number of sequences.
        """
        _check_sequences(self.rows[0], rows[0])
        if torch.is_grad_enabled():
            joined = (torch.cat([old, new], dim=2) for old, new in zip(self.rows, rows, strict=True))
            return KeyCache(tuple(joined), self.frequencies)
        start, stop = self.length, self.length + rows[0].size(2)
        room = self._room
        if room is None or room.taken != start or room.capacity < stop:
            room = _Room.around(self.rows, 2 * stop)
        for buffer, new in zip(room.buffers, rows, strict=True):
            buffer[:, :, start:stop] = new
        room.taken = stop
        return KeyCache(room.front(stop), self.frequencies, room)

    def reorder(self, index: Tensor) -> KeyCache:
        """Return the cache of the sequences ``index``, as beam search needs it; repeats and omissions are fine."""
        rows = tuple(row.index_select(0, index.to(row.device)) for row in self.rows)
        return KeyCache(rows, self.frequencies)

    def reorder_(self, index: Tensor) -> KeyCache:
        """Do as :meth:`reorder`, but in place where that is cheaper: only sequences that move are copied.

        This cache, and those that it has grown from, must not be used any more.
        """
        if torch.is_grad_enabled() or self._room is None or len(index) > len(self.rows[0]):
            return self.reorder(index)
        room = _Room(tuple(move_rows(buffer, index, self.length) for buffer in self._room.buffers), self.length)
        return KeyCache(room.front(self.length), self.frequencies, room)


@dataclass
class _Room:
    """Memory for more keys than there are yet.

    It may be shared by a cache and those that it has grown from: all but the longest see its front part. Only the
    longest, whose keys are all that is taken, may write into it.
    """

    buffers: tuple[Tensor, ...]  # (b, h, capacity, ...)
    taken: int

    @classmethod
    def around(cls, rows: tuple[Tensor, ...], capacity: int) -> _Room:
        """Make room for more, with a copy of the rows in it."""
        length = rows[0].size(2)
        buffers = tuple(row.new_empty(*row.shape[:2], capacity, *row.shape[3:]) for row in rows)
        for buffer, row in zip(buffers, rows, strict=True):
            buffer[:, :, :length] = row
        return cls(buffers, length)

    @property
    def capacity(self) -> int:
        return self.buffers[0].size(2)

    def front(self, length: int) -> tuple[Tensor, ...]:
        return tuple(buffer[:, :, :length] for buffer in self.buffers)


def move_rows(x: Tensor, index: Tensor, length: int | None = None) -> Tensor:
    """Return ``x[index]``, of which the result is a part: in place, and copying only what moves.

    Args:
        x: What is overwritten.
        index: As many rows of x as it has, or fewer.
        length: How much of the third axis is worth copying; None means all.

    Example:
        >>> move_rows(torch.tensor([10, 11, 12, 13]), torch.tensor([0, 3, 1]))
        tensor([10, 13, 11])
    """
    index = index.to(x.device)
    moved = (index != torch.arange(len(index), device=x.device)).nonzero().squeeze(1)
    worth = x if length is None else x[:, :, :length]
    worth[moved] = worth[index[moved]]
    return x[: len(index)]


@dataclass(frozen=True)
class StateCache:
    """All that later queries need to know of earlier keys, in a size that does not grow with them.

    What layers with ``backend="linear"`` keep instead of a :class:`KeyCache`. It is a value as well, and passes no
    gradients on.

    Args:
        state: The sums over the keys so far.
        frequencies: Those of the sequence.
        length: The number of keys so far.

    Shapes:
        each of the frequencies (h, M, d); the state has leading axes (b, h).

    Example:
        >>> one = torch.ones(2, 3, 1, 4)
        >>> cache = StateCache(LinearState.empty(one, one)).extend(one, one, torch.zeros(2, 3, 1))
        >>> cache.length, cache.reorder(torch.tensor([1])).state.total.shape
        (1, torch.Size([1, 3, 5]))
    """

    state: LinearState
    frequencies: tuple[Tensor, ...] = ()
    length: int = 0

    def extend(self, key_features: Tensor, value: Tensor, log_magnitude: Tensor) -> StateCache:
        """Return the cache with later keys added.

        Raises:
            ValueError: If the keys are of another number of sequences.
        """
        _check_sequences(self.state.total, value)
        state = self.state.update(key_features, value, log_magnitude)
        return replace(self, state=state, length=self.length + value.size(-2))

    def reorder(self, index: Tensor) -> StateCache:
        """Return the cache of the sequences ``index``, as beam search needs it; repeats and omissions are fine."""
        return replace(self, state=LinearState(*(x.index_select(0, index.to(x.device)) for x in self.state)))

    def reorder_(self, index: Tensor) -> StateCache:
        """Do as :meth:`reorder`, but in place: only sequences that move are copied. This must not be used any more."""
        if len(index) > len(self.state.total):
            return self.reorder(index)
        return replace(self, state=LinearState(*(move_rows(x, index) for x in self.state)))


#: What :meth:`ika_lightning.attention.MultiheadAttention.decode` returns and takes.
Cache = KeyCache | StateCache


@dataclass(frozen=True)
class Memory:
    """All that queries need to know of keys which are complete, such as those of a sentence to be translated.

    Args:
        rows: What attention needs of each key, in the words of the core that made the memory.
        key_mask: Keys that may be attended to; None means all.
        key_bias: What is added to the log-weights of a key; None means nothing.
        frequencies: Those of a spectral core.

    Shapes:
        each of the rows (b, h, m, ...); key_mask and key_bias (b, 1, m); each of the frequencies (h, M, d), or
        (b, h, M, d) if they depend on the keys.

    Example:
        >>> memory = Memory((torch.zeros(2, 3, 5, 7),), key_mask=torch.ones(2, 1, 5).bool())
        >>> memory.select(torch.tensor([1])).rows[0].shape
        torch.Size([1, 3, 5, 7])
    """

    rows: tuple[Tensor, ...]
    key_mask: Tensor | None = None
    key_bias: Tensor | None = None
    frequencies: tuple[Tensor, ...] = ()

    def select(self, index: Tensor) -> Memory:
        """Return the memory of the sequences ``index``."""
        index = index.to(self.rows[0].device)
        return Memory(
            tuple(row.index_select(0, index) for row in self.rows),
            None if self.key_mask is None else self.key_mask.index_select(0, index),
            None if self.key_bias is None else self.key_bias.index_select(0, index),
            tuple(w.index_select(0, index) if w.dim() == 4 else w for w in self.frequencies),
        )


def _check_sequences(held: Tensor, new: Tensor) -> None:
    if held.size(0) != new.size(0):
        raise ValueError(
            f"a cache of {held.size(0)} sequences cannot go on with {new.size(0)}; "
            "cache.reorder(index) selects sequences"
        )
