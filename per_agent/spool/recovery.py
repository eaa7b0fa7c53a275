"""What a journal of a dead process holds comes into the spool: each event once, under its identifier.

The events, the note of which numbers are stored, and the books change in one transaction; then the file goes.
A process that dies in between leaves a file in which nothing is new.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import msgspec

from per_agent import failpoint, journal
from per_agent.errors import SpoolCorrupt
from per_agent.journal import Left, Stamps
from per_agent.log import Log
from per_agent.spool.transaction import Transaction, stored_of


class Recovered(NamedTuple):
    """What became of one journal: how many of its events are new here, and what was found."""

    events: int
    left: Left


class Recovery:
    """One journal in a spool's folder: `apply` is the change, `done` is for after its commit."""

    def __init__(self, path: Path, block_events: int, log: Log) -> None:
        self._path = path
        self._block_events = block_events
        self._log = log

    def apply(self, changes: Transaction) -> Recovered:
        """Store what is not stored. Raises `SpoolCorrupt` where a later version wrote the journal."""
        left = journal.read(self._path)
        stored = changes.journaled(left.id)
        fresh = [event for event in left.events if not all(number in stored for number in event.numbers)]
        # When they were accepted the journal does not say; not later than this.
        made_at = self._path.stat().st_mtime if fresh else 0.0
        for lanes, events in groupby(fresh, attrgetter("lanes")):
            encoded = [event.encoded for event in events]
            for at in range(0, len(encoded), self._block_events):
                changes.append(lanes, encoded[at : at + self._block_events], made_at)
        for number, found in left.damaged:
            changes.keep_unreadable(left.id, number, found)
        if fresh:
            numbers = (number for event in fresh for number in event.numbers)
            changes.note_journaled(left.id, stored.plus(numbers))
        return Recovered(len(fresh), left)

    def done(self, recovered: Recovered) -> None:
        """It is committed: the file has nothing more to give."""
        failpoint.reach("journal recovered")
        left = recovered.left
        if recovered.events:
            self._log.info("events of a process that died were recovered", events=recovered.events)
        if left.damaged or left.missing:
            self._log.error(
                "a part of a journal is not what was written: its events are lost, and what is there is kept",
                slots_damaged=len(left.damaged),
                slots_missing=left.missing,
                journal=left.id,
            )
        journal.remove(self._path)

    def failed(self, error: BaseException) -> None:
        """It could not be read: it stays where it is, for a version that can."""
        self._log.error("a journal cannot be recovered and is left alone", problem=str(error))


def loose(data_dir: Path) -> dict[str, int]:
    """For each lane, the events of processes that died before they had a spool: they are in journals only."""
    counts: Counter[str] = Counter()
    for path in journal.abandoned(data_dir):
        with suppress(SpoolCorrupt):
            for event in journal.read(path).events:
                counts.update(event.lanes)
    return dict(counts)


def in_journals(folder: Path, note_of: Callable[[str], bytes | None]) -> dict[str, int]:
    """For each lane, the events in the journals of the spool's *folder* that are not stored in it.

    *note_of* reads what lies under a key of the spool.
    """
    counts: Counter[str] = Counter()
    for path in journal.files(folder):
        with suppress(SpoolCorrupt, msgspec.MsgspecError):
            left = journal.read(path)
            stored = Stamps.decode(note_of(stored_of(left.id)))
            for event in left.events:
                if not all(number in stored for number in event.numbers):
                    counts.update(event.lanes)
    return dict(counts)
