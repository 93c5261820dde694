"""A few moments of a training, so that one picture at its end shows where things came from."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["History"]

T = TypeVar("T")


class History(Generic[T]):
    """What layers were like at some moments of a training, evenly apart: the first, and fewer than ``most``.

    Args:
        most: When there are as many, every second one but the first is forgotten.

    Example:
        >>> history = History(most=6)
        >>> for step in range(0, 90, 10):
        ...     history.keep("encoder", step, "as it was")
        >>> [step for step, _ in history.before("encoder", 80)]
        [0, 20, 40, 60]
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.moments: dict[str, list[tuple[int, T]]] = {}

    def keep(self, name: str, step: int, value: T) -> None:
        """Keep what a layer is like, unless it is too early after the last time."""
        moments = self.moments.setdefault(name, [])
        if len(moments) > 1 and step - moments[-1][0] < moments[1][0] - moments[0][0]:
            return
        moments.append((step, value))
        # the first stays, and the others are twice as far apart
        if len(moments) == self.most:
            del moments[1::2]

    def before(self, name: str, step: int) -> list[tuple[int, T]]:
        """Return the steps before one, and what a layer was like then."""
        return [moment for moment in self.moments.get(name, ()) if moment[0] < step]
