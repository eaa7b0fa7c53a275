"""`Histogram`: how often values fell where, cheap enough to be told of every request."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import msgspec


class Distribution(msgspec.Struct, frozen=True):
    """What a histogram held at one moment.

    Attributes:
        bounds: the upper bounds, which belong to what is below them, in ascending order.
        counts: how many values fell under each bound and above the one before; one more for the rest.
        total: the sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> tuple[int, ...]:
        """How many values were at most each bound, and at last how many there were."""
        return tuple(accumulate(self.counts))


class Histogram:
    """Counts values between *bounds*, which ascend.

    Threads: one may `observe`, any may `look`. No lock: what is looked at may lack the value that is being
    counted just then.
    """

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def look(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._total)
