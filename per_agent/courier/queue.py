"""The events in memory that are next for one destination: the oldest first, or each waiting by itself.

Decision. Several spools may be at hand: the agent's own, and those that dead processes left. What has waited
longest goes first, whichever spool it lies in: where a destination counts by arrival, an event that is passed
over may miss its month. Fresh events wait for a backlog that was adopted as they do for one of their own; it
has an end, since nothing is added to it. So the order is that of blocks, by when they were made, and within a
block that of its events. It costs a search among some dozen blocks for each block, and nothing for an event.
"""

import heapq
import itertools
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

from per_agent.courier.window import Item, Rank, Window


class _Run:
    """Events of one spool, mostly of one block, that are sent one after the other."""

    __slots__ = ("items", "rank", "window")

    def __init__(self, items: Sequence[Item]) -> None:
        self.window: Window = items[0].loaded.window
        self.rank: Rank = items[0].loaded.rank
        self.items = deque(items)


_rank = attrgetter("rank")


class Queue:
    """For the courier's thread. Times are monotonic."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []  # by their ranks; none is empty
        self._delayed: list[tuple[float, int, Item]] = []
        self._ticks = itertools.count()  # orders what is due at the same time

    @property
    def ready(self) -> bool:
        """Whether an event may be sent now."""
        return bool(self._runs)

    @property
    def empty(self) -> bool:
        return not (self._runs or self._delayed)

    def load(self, items: Sequence[Item]) -> None:
        """Add *items* of one block, in their order: before what is younger."""
        if items:
            run = _Run(items)
            self._runs.insert(bisect_right(self._runs, run.rank, key=_rank), run)

    def put_back(self, item: Item) -> None:
        """Add *item*, which was taken, at the place where it was."""
        rank = item.loaded.rank
        at = bisect_left(self._runs, rank, key=_rank)
        if at == len(self._runs) or self._runs[at].rank != rank:
            self._runs.insert(at, _Run([item]))
            return
        items = self._runs[at].items
        mine = (rank, item.at)
        place = next((n for n, each in enumerate(items) if (each.loaded.rank, each.at) > mine), len(items))
        items.insert(place, item)

    def delay(self, item: Item, due: float) -> None:
        """Let *item* wait by itself until *due*, and then until what is in memory of its spool had its turn."""
        heapq.heappush(self._delayed, (due, next(self._ticks), item))

    def due_in(self, now: float) -> float | None:
        """Add those whose delay is over. Returns the seconds until that of the next is, or None."""
        while self._delayed and self._delayed[0][0] <= now:
            self._add_last(heapq.heappop(self._delayed)[2])
        return self._delayed[0][0] - now if self._delayed else None

    def _add_last(self, item: Item) -> None:
        """Add *item* behind all that is in memory of its spool, but not behind younger spools' backlogs."""
        for run in reversed(self._runs):
            if run.window is item.loaded.window:
                run.items.append(item)
                return
        self.load([item])

    def take(self, limit: int) -> list[Item]:
        """Up to *limit* events, in their order."""
        taken: list[Item] = []
        while self._runs and len(taken) < limit:
            items = self._runs[0].items
            if len(items) > limit - len(taken):
                taken += [items.popleft() for _ in range(limit - len(taken))]
            else:
                taken += items
                del self._runs[0]
        return taken

    def take_to_find_out(self) -> Item:
        """While the destination is in trouble one event is enough to find out: the one that failed least often.

        Of these the oldest that did not fail before, where there is one.
        """
        fresh = next((each for each in self._all() if each[1].seen_successes < 0), None)
        run, found = fresh or min(self._all(), key=lambda each: each[1].attempts)
        run.items.remove(found)
        if not run.items:
            self._runs.remove(run)
        return found

    def withdraw(self, fits: Callable[[Item], bool]) -> list[Item]:
        """Take those that *fits* says, in their order; those that are delayed stay."""
        found: list[Item] = []
        for run in self._runs:
            left: deque[Item] = deque()
            for item in run.items:
                (found if fits(item) else left).append(item)
            run.items = left
        self._runs = [run for run in self._runs if run.items]
        return found

    def _all(self) -> Iterator[tuple[_Run, Item]]:
        return ((run, item) for run in self._runs for item in run.items)
