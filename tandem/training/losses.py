"""The losses of the last steps, and what is far above them: a spike."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

WINDOW = 100  # steps
FEWEST = 20  # before which nothing is far above anything
# A loss is a spike this many times the distance of the quartiles above the upper one, and this share above the median:
# of a normal law the first is 7.4 standard deviations. Losses that hardly move have a distance of hardly anything.
FAR, SHARE = 5.0, 0.1


class Losses:
    """The losses of the last `WINDOW` steps, oldest first; `stored` are those that an earlier process has left."""

    def __init__(self, stored: Sequence[float] = ()) -> None:
        self._last = deque(stored)
        self._sorted = sorted(stored)

    @property
    def stored(self) -> list[float]:
        """What a checkpoint keeps of them."""
        return list(self._last)

    @property
    def median(self) -> float:
        return self._sorted[len(self._sorted) // 2]

    def is_spike(self, loss: float) -> bool:
        """Whether `loss`, of the step after them, is far above them."""
        count = len(self._sorted)
        if count < FEWEST:
            return False
        lower, upper = self._sorted[count // 4], self._sorted[3 * count // 4]
        return loss > max(upper + FAR * (upper - lower), self.median + SHARE * abs(self.median))

    def add(self, loss: float) -> None:
        self._last.append(loss)
        insort(self._sorted, loss)
        if len(self._last) > WINDOW:
            del self._sorted[bisect_left(self._sorted, self._last.popleft())]
