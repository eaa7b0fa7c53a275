"""New events on their way from the source into a commit: taken in groups, kept until they are stored.

With each commit the database notes which of the journal's numbers it holds, and their slots are free after it.
"""

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Final

from per_agent import failpoint
from per_agent.courtesy import give_way
from per_agent.event import STEP, Receipt, identified
from per_agent.journal import Journal, Place, Stamps
from per_agent.spool.block import Block
from per_agent.spool.transaction import Transaction
from per_agent.spool.work import Source

_GROUP_BLOCKS: Final = (
    16  # blocks of new events in one commit, so that a settlement never waits long for its turn
)

_LOOK_EVERY: Final = 0.01  # seconds
_STORM_BLOCKS: Final = 8
_RUSH: Final = 8192  # events that wait; their slots are some megabytes
_TRY_EVERY: Final = 5.0  # seconds between tries to have a journal where one could not be made

Fresh = list[tuple[list[Block], Sequence[Receipt]]]
"""The blocks of one commit's new events, one for each lane, and the receipts of their events."""


def by_lane(receipts: Iterable[Receipt]) -> dict[str, int]:
    """For each lane, how many of *receipts* go to it."""
    counts: Counter[str] = Counter()
    # Events of one kind share one tuple of lanes, so nearly all the work is done inside the counter.
    for lanes, count in Counter(map(attrgetter("_lanes"), receipts)).items():
        counts.update(dict.fromkeys(lanes, count))
    return dict(counts)


class Inflow:
    """What was taken from *source* (None: there is none) and is not yet committed. For the spooler's thread."""

    def __init__(self, source: Source | None, block_events: int, clock: Callable[[], float]) -> None:
        self._source = source
        self._clock = clock
        self.dropped: dict[str, int] = {}
        self._taken_at = 0.0  # epoch seconds
        self.block_events = block_events
        self.carried: list[Receipt] = []
        self._stored = Stamps()  # of the journal: what the spool at hand has
        self._storing = Stamps()  # the same, when the commit under way is done
        self._try_at = 0.0  # monotonic
        self.moves = 0
        """Odd while events move: what is taken may be nowhere to be seen, what is committed in memory as well."""
        self._rushed = False  # whether many slots were in use since their memory was given back

    def wake_at(self, count: int | None) -> None:
        """Have the source wake the spooler when *count* events wait."""
        if self._source is not None:
            self._source.wake_at(count)

    @property
    def storm(self) -> int:
        """How many events are not waited for until the next look."""
        return _STORM_BLOCKS * self.block_events

    def next_look(self, wait: float) -> float:
        """Seconds until it is to be looked whether a block is full, of *wait* seconds.

        Looking costs this thread little; to be woken for each block would cost a caller a system call.
        """
        return min(wait, _LOOK_EVERY) if self.waiting() else wait

    def seal(self) -> None:
        """Let nothing come any more."""
        if self._source is not None:
            self._source.seal()

    def waiting(self) -> int:
        """How many events wait at the source."""
        return 0 if self._source is None else self._source.waiting()

    @property
    def left(self) -> int:
        """How many events are not committed."""
        return len(self.carried) + self.waiting()

    @property
    def something(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.carried or self.dropped or self.waiting())

    def settle_in(self, folder: Path) -> None:
        """The spool is in *folder*: the journal comes to lie there, where the next holder looks for it.

        Raises `OSError`; nothing may be committed then, since nobody could tell what was.
        """
        if self._source is None:
            return
        if self._source.journal is None and time.monotonic() >= self._try_at:
            self._try_at = time.monotonic() + _TRY_EVERY
            self._source.open_journal()
        journal = self._source.journal
        if journal is None or (journal.path.parent == folder and journal.in_place()):
            return
        if journal.path.parent != folder:
            self._stored = Stamps()
        journal.move(folder)

    @property
    def journal(self) -> Journal | None:
        """The journal of this process, if any."""
        return None if self._source is None else self._source.journal

    def take(self) -> None:
        """Take from the source what one commit can hold."""
        if self._source is None:
            return
        self._rushed |= self.waiting() > _RUSH
        self.moves |= 1
        if not self.carried:
            self._taken_at = self._clock()
            self.carried = self._source.take(_GROUP_BLOCKS * self.block_events)
        for lane, count in self._source.take_dropped().items():
            self.dropped[lane] = self.dropped.get(lane, 0) + count
        self.moves += 1
        self._give_way()

    def write(self, changes: Transaction, receipts: Sequence[Receipt]) -> Fresh:
        """Add the receipts' events as blocks: those that go to the same lanes together, in their order."""
        self.moves |= 1
        routes: dict[tuple[str, ...], list[Receipt]] = {}
        for receipt in receipts:
            routes.setdefault(receipt._lanes, []).append(receipt)  # noqa: SLF001  (the spooler's side of a receipt)
        now = self._clock()
        fresh: Fresh = []
        for lanes, all_of_them in routes.items():
            for some in _batched(all_of_them, self.block_events):
                encoded = _identified(some)
                self._give_way()
                fresh.append((changes.append(lanes, encoded, now), some))
        self._give_way()
        for lane, count in self.dropped.items():
            changes.drop(lane, count)
        journal = self.journal
        if journal is not None and receipts:
            self._storing = self._stored.plus(_stamps(journal, receipts))
            changes.note_journaled(journal.id, self._storing)
        return fresh

    def fitting(self, free: int) -> list[Receipt]:
        """The first of those that were taken: as many as *free* bytes have room for."""
        sizes = (
            len(encoded) * len(each._lanes)  # noqa: SLF001
            for encoded, each in zip(_identified(self.carried), self.carried, strict=True)
        )
        return self.carried[: bisect_right(list(accumulate(sizes)), free)]

    def written(self, receipts: Sequence[Receipt]) -> None:
        """*receipts*, and what was dropped, are committed."""
        self._give_way()
        self.carried = self.carried[len(receipts) :]
        self.dropped = {}
        self.moves += 1
        journal = self.journal
        if journal is not None and receipts:
            self._stored = self._storing
            journal.release(_places(receipts))
            failpoint.reach("slots released")
            if self._rushed and self.waiting() < _RUSH // 8:
                self._rushed = False
                journal.shrink()

    def finish(self) -> int:
        """Nothing comes any more: give the journal up. Returns how many events are neither stored nor in it."""
        if self._source is None:
            return 0
        self._source.seal()  # also where no spool could ever be opened: who comes now is told that nobody is here
        self.carried += self._source.take(self._source.waiting())
        journal = self._source.journal
        if journal is not None:
            if self.carried:
                journal.let_go()
            else:
                journal.remove()
        return sum(place is None for place in _places(self.carried))

    def _give_way(self) -> None:
        """Between two steps, let the callers go on; but not in a rush, when they are ahead as it is."""
        if self.waiting() < _RUSH:
            give_way()

    # For any thread

    def in_memory(self) -> dict[str, int]:
        """For each lane, the events that were taken from the source and are not yet committed."""
        return by_lane(tuple(self.carried))

    def oldest(self) -> float | None:
        """Since when an event has been in memory, in epoch seconds; about, as the intake keeps no times."""
        if self.carried:
            return self._taken_at
        if self._source is None or not self._source.waiting():
            return None
        return max(self._taken_at, self._source.since)


def _identified(receipts: Sequence[Receipt]) -> list[bytes]:
    """Their events as they are stored."""
    if not receipts:
        return []
    return identified(map(attrgetter("_encoded", "_number"), receipts), receipts[0]._identifiers)  # noqa: SLF001  (of one source)


def _places(receipts: Iterable[Receipt]) -> Iterable[Place]:
    return map(attrgetter("_place"), receipts)


def _stamps(journal: Journal, receipts: Sequence[Receipt]) -> list[int]:
    """The numbers of all slots in which their events lie."""
    if set(map(type, _places(receipts))) == {int}:  # each in one, which has the event's own number
        return [number // STEP for number in map(attrgetter("_number"), receipts)]
    return journal.stamps(_places(receipts))


def _batched(several: list[Receipt], size: int) -> list[list[Receipt]]:
    return [several[at : at + size] for at in range(0, len(several), size)]
