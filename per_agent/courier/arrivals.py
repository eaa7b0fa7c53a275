"""Whether events reach a destination when they happened, where that decides what they are counted in.

Decision. Two counts. *Crossed* is what moves a bill: the event arrived in another UTC month than it happened,
and by however little. *Late* is what an operator looks at before that: more than an hour, since no pause of a
healthy destination is that long and no `Retry-After` is followed for longer, so it speaks of an outage, of a
halted destination, or of events that were recorded long after they happened. Another UTC day would not do: at
midnight the healthiest agent has such events, and at noon an outage of ten hours has none. So an event that
crossed and is not late is the unavoidable one that happened a moment before midnight.

Both are counted in the spool's books, in the transaction that takes the events out of their lane: they go on
over restarts and are exact after a crash.
"""

from collections.abc import Callable
from typing import Final

from per_agent.courier.window import Item
from per_agent.event import Activity
from per_agent.log import Log
from per_agent.month import Month

LATE: Final = 3600.0
"""Seconds after it happened from which on the arrival of an event is late."""
_GATHER: Final = 10.0  # seconds from an event to the line that tells of it, so that a line tells of many
_EVERY: Final = 600.0  # seconds from line to line, however long it goes on


class Arrivals:
    """The arrivals at one destination that counts by them. For the courier's thread.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._untold = 0
        self._tell_at = 0.0
        self._told_at = float("-inf")

    def note(self, item: Item, answered_at: float) -> None:
        """*item* was taken; the answer came at *answered_at* (epoch seconds), so it arrived there a moment before.

        By the last attempt: whether one before, without an answer, was counted, nobody knows.
        """
        event = item.event
        happened_at = event.at if isinstance(event, Activity) else event.timestamp
        if answered_at - happened_at > LATE:
            item.loaded.late(item.at)
        # Also where it is to happen yet: a clock was wrong, and it is counted in the wrong month all the same.
        if Month.of(happened_at) != Month.of(answered_at):
            item.loaded.crossed(item.at)
            if not self._untold:
                self._tell_at = max(self._clock() + _GATHER, self._told_at + _EVERY)
            self._untold += 1

    def tell_if_due(self) -> float | None:
        """Say what is to be said when it is time. Returns the seconds until then, None: nothing is to be said."""
        if not self._untold:
            return None
        left = self._tell_at - self._clock()
        if left > 0:
            return left
        self.tell()
        return None

    def tell(self) -> None:
        """Say what was not said yet, if anything."""
        if self._untold:
            self._log.warning(
                "events reached the destination in another month than they happened, and it counts them by"
                " their arrival",
                events=self._untold,
            )
            self._untold = 0
            self._told_at = self._clock()
