"""`Month`: a calendar month in UTC, which is the period that an upstream bills by.

Months are half open: midnight belongs to the month that begins with it.
"""

import math
from datetime import UTC, datetime
from typing import Final, NamedTuple

_LATEST: Final = (
    253_370_764_799.0  # epoch seconds: 9998-12-31T23:59:59Z, so that every month has one after it
)


class Month(NamedTuple):
    """Months compare by time. `number` is 1 for January."""

    year: int
    number: int

    @classmethod
    def of(cls, seconds: float) -> "Month":
        """The month in which *seconds* since 1970 lie. What is beyond the calendar lies in its nearest month."""
        # Whole seconds: datetime rounds to microseconds, and so the last moments of a month into the next.
        moment = datetime.fromtimestamp(math.floor(min(max(seconds, 0.0), _LATEST)), UTC)
        return cls(moment.year, moment.month)

    @property
    def begin(self) -> float:
        """Its first moment, in epoch seconds."""
        return datetime(self.year, self.number, 1, tzinfo=UTC).timestamp()

    @property
    def end(self) -> float:
        """The first moment of the month after it, in epoch seconds."""
        return Month(self.year + self.number // 12, self.number % 12 + 1).begin

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.number:02d}"


class ByMonth:
    """Counts by month, for many moments that mostly lie in one month: it is looked up when it changes."""

    def __init__(self) -> None:
        self._begin = self._end = 0.0
        self._month = Month(1970, 1)
        self.counts: dict[Month, int] = {}

    def add(self, seconds: float, count: int) -> None:
        """Count *count* more in the month of *seconds* since 1970."""
        if not count:
            return
        if not self._begin <= seconds < self._end:
            self._month = Month.of(seconds)
            self._begin, self._end = self._month.begin, self._month.end
        self.counts[self._month] = self.counts.get(self._month, 0) + count
