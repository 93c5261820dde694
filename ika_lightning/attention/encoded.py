"""Keys that are encoded: all that attention needs to know of them, whatever the query."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ika_lightning.attention.backends.linear_state import LinearState
from ika_lightning.attention.features import FeatureMap
from ika_lightning.attention.mask import Mask


@dataclass(frozen=True, eq=False)
class EncodedKeys:
    """Keys and values, with all that does not depend on queries made once.

    A value: appending to it or reordering it makes another one, so a beam may go on from any earlier one. Without
    gradients, those that grow from one another share memory, with room for keys to come, so that a new key costs no
    copy of those before it.

    Args:
        value: Values.
        key: Keys, as far as the kernel needs them themselves.
        features: Features of the keys, if the kernel has a sampled part.
        log_magnitude: Logarithm of the magnitude of each key; None if it is zero.
        mask: What of the mask concerns keys alone.
        feature_map: The map that made the features, for those of queries and of keys to come.

    Shapes:
        value (b, h, m, e); key (b, h, m, d); features (b, h, m, R); log_magnitude (b, h, m).

    Example:
        >>> keys = EncodedKeys(torch.zeros(2, 3, 5, 7)).append(EncodedKeys(torch.ones(2, 3, 1, 7)))
        >>> keys.length, keys.select(torch.tensor([1, 1, 0])).value.shape
        (6, torch.Size([3, 3, 6, 7]))
    """

    value: Tensor
    key: Tensor | None = None
    features: Tensor | None = None
    log_magnitude: Tensor | None = None
    mask: Mask = field(default_factory=Mask)
    feature_map: FeatureMap | None = None
    _room: _Room | None = None

    @property
    def length(self) -> int:
        """The number of keys, m."""
        return self.value.size(2)

    @property
    def num_sequences(self) -> int:
        """The number of sequences, b."""
        return self.value.size(0)

    def append(self, later: EncodedKeys) -> EncodedKeys:
        """Return the keys with later ones behind them.

        Raises:
            ValueError: If the later keys are of another number of sequences or another kind of layer, or some of either
                are masked.
        """
        _check_sequences(self.value, later.value)
        masks = (self.mask, later.mask)
        if any(part is not None for mask in masks for part in (mask.keys, mask.key_bias)):
            raise ValueError("keys with a key_padding_mask cannot grow; encode them all at once")
        rows, new = self._rows(), later._rows()
        if rows.keys() != new.keys():
            raise ValueError(
                f"keys of which there are {', '.join(rows)} cannot go on with {', '.join(new)}: these are of another "
                "kind of layer; go on with the layer that the cache is of"
            )
        room = self._room
        wider = {name: torch.promote_types(row.dtype, new[name].dtype) for name, row in rows.items()}
        if any(row.dtype != wider[name] for name, row in rows.items()):
            # as where a sequence was begun under autocast, and goes on without
            rows, room = {name: row.to(wider[name]) for name, row in rows.items()}, None
        if torch.is_grad_enabled():
            return self._with({name: torch.cat([rows[name], new[name]], dim=2) for name in rows}, None)
        start, stop = self.length, self.length + later.length
        if room is None or room.taken != start or room.capacity < stop:
            room = _Room.around(rows, 2 * stop)
        for name, buffer in room.buffers.items():
            buffer[:, :, start:stop] = new[name]
        room.taken = stop
        return self._with(room.front(stop), room)

    def select(self, index: Tensor) -> EncodedKeys:
        """Return the keys of the sequences ``index``, as beam search needs it; repeats and omissions are fine."""
        index = index.to(self.value.device)
        rows = {name: row.index_select(0, index) for name, row in self._rows().items()}
        feature_map = None if self.feature_map is None else self.feature_map.select(index)
        return replace(self._with(rows, None), mask=self.mask.select(index), feature_map=feature_map)

    def select_(self, index: Tensor) -> EncodedKeys:
        """Do as :meth:`select`, but in place where that is cheaper: only sequences that move are copied.

        These keys, and those that they have grown from, must not be used any more.
        """
        if torch.is_grad_enabled() or self._room is None or len(index) > self.num_sequences:
            return self.select(index)
        moved = {name: move_rows(x, index, self.length) for name, x in self._room.buffers.items()}
        room = _Room(moved, self.length)
        feature_map = None if self.feature_map is None else self.feature_map.select(index.to(self.value.device))
        return replace(self._with(room.front(self.length), room), feature_map=feature_map)

    def _rows(self) -> dict[str, Tensor]:
        """What there is of each key."""
        parts = {"value": self.value, "key": self.key, "features": self.features, "log_magnitude": self.log_magnitude}
        return {name: part for name, part in parts.items() if part is not None}

    def _with(self, rows: dict[str, Tensor], room: _Room | None) -> EncodedKeys:
        return replace(
            self,
            value=rows["value"],
            key=rows.get("key"),
            features=rows.get("features"),
            log_magnitude=rows.get("log_magnitude"),
            _room=room,
        )


@dataclass
class _Room:
    """Memory for more keys than there are yet.

    It may be shared by keys and those that they have grown from: all but the longest see its front part. Only the
    longest, whose keys are all that is taken, may write into it.
    """

    # (b, h, capacity, ...), by name
    buffers: dict[str, Tensor]
    taken: int

    @classmethod
    def around(cls, rows: dict[str, Tensor], capacity: int) -> _Room:
        """Make room for more, with a copy of the rows in it."""
        length = rows["value"].size(2)
        buffers = {name: row.new_empty(*row.shape[:2], capacity, *row.shape[3:]) for name, row in rows.items()}
        for name, buffer in buffers.items():
            buffer[:, :, :length] = rows[name]
        return cls(buffers, length)

    @property
    def capacity(self) -> int:
        return self.buffers["value"].size(2)

    def front(self, length: int) -> dict[str, Tensor]:
        return {name: buffer[:, :, :length] for name, buffer in self.buffers.items()}


@dataclass(frozen=True, eq=False)
class SummedKeys:
    """Sums over all keys so far, in a size that does not grow with them.

    What layers with ``backend="linear"`` keep instead of :class:`EncodedKeys`. It is a value as well, and passes no
    gradients on.

    Args:
        state: The sums.
        feature_map: The map of the sequence.
        length: The number of keys so far.

    Shapes:
        the state has leading axes (b, h).

    Example:
        >>> one = torch.ones(2, 3, 1, 4)
        >>> later = EncodedKeys(value=one, features=one, log_magnitude=torch.zeros(2, 3, 1))
        >>> keys = SummedKeys(LinearState.empty(one, one)).append(later)
        >>> keys.length, keys.select(torch.tensor([1])).state.total.shape
        (1, torch.Size([1, 3, 5]))
    """

    state: LinearState
    feature_map: FeatureMap | None = None
    length: int = 0

    def append(self, later: EncodedKeys) -> SummedKeys:
        """Return the sums with later keys added.

        Raises:
            ValueError: If the keys are of another number of sequences.
        """
        _check_sequences(self.state.total, later.value)
        assert later.features is not None and later.log_magnitude is not None
        state = self.state.update(later.features, later.value, later.log_magnitude)
        return replace(self, state=state, length=self.length + later.length)

    def select(self, index: Tensor) -> SummedKeys:
        """Return the sums of the sequences ``index``, as beam search needs it; repeats and omissions are fine."""
        return replace(self, state=LinearState(*(x.index_select(0, index.to(x.device)) for x in self.state)))

    def select_(self, index: Tensor) -> SummedKeys:
        """Do as :meth:`select`, but in place: only sequences that move are copied. These must not be used any more."""
        if len(index) > len(self.state.total):
            return self.select(index)
        return replace(self, state=LinearState(*(move_rows(x, index) for x in self.state)))


#: What :meth:`ika_lightning.attention.MultiheadAttention.decode` returns and takes.
Cache = EncodedKeys | SummedKeys


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


def _check_sequences(held: Tensor, new: Tensor) -> None:
    if held.size(0) != new.size(0):
        raise ValueError(
            f"keys of {held.size(0)} sequences cannot go on with {new.size(0)}; keys.select(index) selects sequences"
        )
