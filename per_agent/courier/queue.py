"""The events in memory that are next for one destination: in their order, or each waiting by itself."""

import heapq
import itertools
from collections import deque
from collections.abc import Callable

from per_agent.courier.window import Item


class Queue:
    """For the courier's thread. Times are monotonic."""

    def __init__(self) -> None:
        self._ready: deque[Item] = deque()
        self._delayed: list[tuple[float, int, Item]] = []
        self._ticks = itertools.count()  # orders what is due at the same time

    @property
    def ready(self) -> bool:
        """Whether an event may be sent now."""
        return bool(self._ready)

    @property
    def empty(self) -> bool:
        return not (self._ready or self._delayed)

    def append(self, item: Item) -> None:
        self._ready.append(item)

    def prepend(self, item: Item) -> None:
        self._ready.appendleft(item)

    def delay(self, item: Item, due: float) -> None:
        """Let *item* wait by itself until *due*."""
        heapq.heappush(self._delayed, (due, next(self._ticks), item))

    def due_in(self, now: float) -> float | None:
        """Append those whose delay is over. Returns the seconds until that of the next is, or None."""
        while self._delayed and self._delayed[0][0] <= now:
            self._ready.append(heapq.heappop(self._delayed)[2])
        return self._delayed[0][0] - now if self._delayed else None

    def take(self, limit: int) -> list[Item]:
        """Up to *limit* events, in their order."""
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    def take_to_find_out(self) -> Item:
        """While the destination is in trouble one event is enough to find out: one that did not fail before."""
        fresh = next((item for item in self._ready if item.seen_successes < 0), self._ready[0])
        self._ready.remove(fresh)
        return fresh

    def withdraw(self, fits: Callable[[Item], bool]) -> list[Item]:
        """Take those that *fits* says, in their order; those that are delayed stay."""
        found = [item for item in self._ready if fits(item)]
        for item in found:
            self._ready.remove(item)
        return found
