"""Batches of data that is in memory already: which samples, in which order, and how to go on after a break."""

from collections.abc import Callable, Iterator, Sized
from typing import Any, Generic, Protocol, TypedDict, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

__all__ = ["LengthSampler", "Loader", "RowSampler", "Shares", "pad", "processes", "shares", "update_shares"]

Batch = TypeVar("Batch")

# Batches among which sequences are sorted by length. More of them waste less padding, fewer leave more to chance.
_POOL = 32


class BatchSampler(Sized, Protocol):
    """What a loader asks of its sampler: indices of samples (b,), one after another."""

    def __iter__(self) -> Iterator[Tensor]:
        """Go through the batches of an epoch."""


class Loader(Generic[Batch]):
    """Serves whole batches of samples that are in memory already, and can go on in the middle of an epoch.

    A torch ``DataLoader`` would collate sample by sample, and its workers, for which Lightning asks, would only copy.

    Args:
        sampler: The batches, each an index (b,) into the samples. Lightning calls its ``set_epoch``, if it has one.
        take: Makes a batch of such an index.

    Example:
        >>> squares = torch.arange(3).square()
        >>> [batch.tolist() for batch in Loader(torch.arange(3).split(2), lambda index: squares[index])]
        [[0, 1], [4]]
    """

    def __init__(self, sampler: BatchSampler | tuple[Tensor, ...], take: Callable[[Tensor], Batch]) -> None:
        self.sampler = sampler
        self.take = take
        self.batch_sampler = None  # Lightning asks both for their order
        self._served = 0  # batches of the current epoch
        self._skip = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        skip, self._skip = self._skip, 0
        for number, index in enumerate(self.sampler):
            if number >= skip:
                self._served = number + 1
                yield self.take(index)

    def state_dict(self) -> dict[str, int]:
        """Where in the epoch this is: Lightning keeps it in the checkpoint.

        Returns:
            How many batches were served, 0 at the end of an epoch.
        """
        return {"served": self._served % len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where another loader stopped.

        Args:
            state_dict: What :meth:`state_dict` gave.
        """
        self._skip = state_dict["served"]


def processes(data: LightningDataModule) -> tuple[int, int]:
    """Return which process this is, from 0, and how many there are, as the trainer of a data module says.

    Args:
        data: The data module; without a trainer it is alone.

    Example:
        >>> processes(LightningDataModule())
        (0, 1)
    """
    return (data.trainer.global_rank, data.trainer.world_size) if data.trainer else (0, 1)


class Shares(TypedDict):
    """Arguments of a sampler: which of the processes this is, how many there are, and batches of each in an update."""

    rank: int
    world: int
    accumulate: int


def update_shares(data: LightningDataModule, training: bool = True) -> Shares:
    """Return what a sampler has to know to deal out the samples of an update.

    An update of w processes that accumulate a batches each is made of w a batches, and it is the same update whichever
    w and a these are: process r has the batches r, w + r, 2 w + r, ...

    Args:
        data: The data module; without a trainer it is alone, and an update is a batch.
        training: Whether there are updates at all; evaluation has none.

    Example:
        >>> update_shares(LightningDataModule())
        {'rank': 0, 'world': 1, 'accumulate': 1}
    """
    rank, world = processes(data)
    accumulate = data.trainer.accumulate_grad_batches if training and data.trainer else 1
    return {"rank": rank, "world": world, "accumulate": accumulate}


def shares(joint: list[np.ndarray], rank: int, world: int, accumulate: int = 1) -> list[np.ndarray]:
    """Cut the batches of all processes together into those of one: nothing twice, nothing left out.

    Each process gets as many batches as the others, or they would wait for one another for ever. So a last batch that
    is too small to be shared out is put to the one before. A share is empty only if there are fewer samples than
    shares.

    Args:
        joint: The joint batches, indices of samples each.
        rank: Which of the processes this is.
        world: How many processes there are.
        accumulate: How many shares of a joint batch each process gets.

    Example:
        >>> joint = [np.array([4, 1, 3, 7]), np.array([2])]
        >>> [[share.tolist() for share in shares(joint, rank, 2)] for rank in (0, 1)]
        [[[4, 3, 2]], [[1, 7]]]
    """
    count = world * accumulate
    if len(joint) > 1 and len(joint[-1]) < count:
        joint = [*joint[:-2], np.concatenate(joint[-2:])]
    return [batch[share::count] for batch in joint for share in range(rank, count, world)]


class _EpochSampler:
    """Draws by seed and epoch alone, so that a run which was interrupted goes on as if it had not been."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Turn to another epoch; Lightning calls it.

        Args:
            epoch: The epoch, from 0.
        """
        self.epoch = epoch


class LengthSampler(_EpochSampler):
    """Draws batches of sequences of similar length, anew each epoch, so that little padding is needed.

    The draw is a function of seed and epoch alone, so an interrupted run goes on as if it had not been. With several
    processes, or batches that are accumulated, each takes its share of the samples of an update: updates of
    ``world * accumulate`` batches of b hold what one batch of ``world * accumulate * b`` would. There are as many
    updates in every epoch.

    Args:
        lengths: Tokens of each sequence, (n,), or of each of its sides, (n, k), of which the longest counts.
        batch_size: Sequences in a batch, at most, and for each process.
        max_tokens: Instead of ``batch_size``: tokens in a batch, at most, with padding and for each process. A longer
            sequence is a batch of its own.
        shuffle: Draw at random; False goes from short to long, the same in each epoch, and leaves nothing out: see
            :func:`shares`.
        seed: Seed of the draws.
        rank: Which of the processes this is.
        world: How many processes there are.
        accumulate: How many batches of each process make an update. With ``shuffle``, the last update is left out if it
            has fewer sequences than batches.

    Raises:
        ValueError: If not exactly one of batch_size and max_tokens is given, or it is not positive.

    Example:
        >>> batches = LengthSampler(np.array([5, 1, 4, 2]), batch_size=2, shuffle=False)
        >>> [index.tolist() for index in batches]
        [[1, 3], [2, 0]]
        >>> batches = LengthSampler(np.array([5, 1, 4, 2]), max_tokens=6, shuffle=False)
        >>> [index.tolist() for index in batches]
        [[1, 3], [2], [0]]
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        if (batch_size is None) == (max_tokens is None):
            raise ValueError(f"give either batch_size or max_tokens, got {batch_size} and {max_tokens}")
        for argument, number in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            if number is not None and number < 1:
                raise ValueError(f"{argument} must be at least 1, got {number}")
        self.lengths = lengths if lengths.ndim == 1 else lengths.max(1)
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world, self.accumulate = rank, world, accumulate
        # of an update
        self.count = world * accumulate

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[Tensor]:
        yield from map(torch.from_numpy, self._batches())

    def _batches(self) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.lengths)) if self.shuffle else np.arange(len(self.lengths))
        joint = [batch for pool in self._pools(order) for batch in self._cut(pool)]
        if self.shuffle:
            joint = [joint[i] for i in rng.permutation(len(joint)) if len(joint[i]) >= self.count]
        return shares(joint, self.rank, self.world, self.accumulate)

    def _pools(self, order: np.ndarray) -> list[np.ndarray]:
        """Cut an order into stretches, and sort each by length; equal lengths stay in order."""
        pools = [order]
        # A budget of tokens cuts as many batches in each epoch only if all sequences are sorted together.
        if self.shuffle and self.batch_size is not None:
            size = _POOL * self.batch_size * self.count
            pools = [order[start : start + size] for start in range(0, len(order), size)]
        return [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]

    def _cut(self, pool: np.ndarray) -> list[np.ndarray]:
        """Cut a pool, sorted by length, into the samples of updates."""
        if self.batch_size is not None:
            size = self.batch_size * self.count
            return [pool[start : start + size] for start in range(0, len(pool), size)]
        assert self.max_tokens is not None
        batches, start = [], 0
        for stop in range(1, len(pool) + 1):
            # a batch has to fit its share, rounded up, padded to the longest, which comes last
            full = stop < len(pool) and (
                -(-(stop + 1 - start) // self.count) * max(1, self.lengths[pool[stop]]) > self.max_tokens
            )
            if full or stop == len(pool):
                batches.append(pool[start:stop])
                start = stop
        return batches


class RowSampler(_EpochSampler):
    """Draws disjoint random sets of rows, anew each epoch.

    The draw is a function of seed and epoch alone, so an interrupted run goes on as if it had not been. With several
    processes, or batches that are accumulated, the rows of an update are drawn together, and each set is a share of
    them. There are as many updates in every epoch.

    Args:
        count: How many rows there are.
        batch_size: Rows in a set. What is left over for the last update is one if there are half as many rows.
        seed: Seed of the draws.
        rank: Which of the processes this is.
        world: How many processes there are.
        accumulate: How many sets of each process make an update. If all rows are fewer than half of what an update
            takes, each of its sets is of all rows in an order of its own, ``batch_size`` at most.

    Example:
        >>> [len(rows) for rows in RowSampler(7, batch_size=3)]
        [3, 3]
        >>> [len(rows) for rows in RowSampler(11, batch_size=3, accumulate=2)]
        [3, 3, 3, 2]
    """

    def __init__(
        self, count: int, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, accumulate: int = 1
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def __len__(self) -> int:
        return len(self._sets())

    def __iter__(self) -> Iterator[Tensor]:
        yield from map(torch.from_numpy, self._sets())

    def _sets(self) -> list[np.ndarray]:
        size = self.batch_size * self.world * self.accumulate
        if self.count < size / 2 and size > self.batch_size:
            return [
                self._order(set_)[: self.batch_size] for set_ in range(self.rank, size // self.batch_size, self.world)
            ]
        order = self._order()
        joint = [order[start : start + size] for start in range(0, self.count, size)]
        # A few left-over rows would make a step as long as the others from a far poorer context.
        if len(joint) > 1 and len(joint[-1]) < size / 2:
            joint.pop()
        return shares(joint, self.rank, self.world, self.accumulate)

    def _order(self, *number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch, *number]).permutation(self.count)


def pad(sequences: list[Any], padding: int = 0) -> Tensor:
    """Put sequences of different length into one tensor, padded at their ends to the longest.

    Args:
        sequences: Whole numbers, each sequence as long as it is.
        padding: What to fill up with.

    Returns:
        (b, n) int64, n the length of the longest sequence.

    Example:
        >>> pad([[5, 6, 7], [8]])
        tensor([[5, 6, 7],
                [8, 0, 0]])
    """
    padded = torch.full((len(sequences), max(map(len, sequences), default=0)), padding)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = torch.as_tensor(sequence)
    return padded
