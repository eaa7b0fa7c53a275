"""What a journal of a dead process holds comes into the spool: each event once, under its identifier.

The events, the note of which numbers are stored, and the books change in one transaction; then the file goes.
A process that dies in between leaves a file in which nothing is new.
"""

from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from per_agent import failpoint, journal
from per_agent.event import STEP, identified
from per_agent.journal import Left, Stamps
from per_agent.log import Log
from per_agent.spool.transaction import Transaction


class Recovered(NamedTuple):
    """What became of one journal: how many of its events are new here, how many slots are lost, what was found."""

    events: int
    lost: int
    left: Left


class Recovery:
    """One journal in a spool's folder: `apply` is the change, `done` is for after its commit."""

    def __init__(self, path: Path, block_events: int, log: Log) -> None:
        self._path = path
        self._block_events = block_events
        self._log = log

    def apply(self, changes: Transaction) -> Recovered:
        """Store what is not stored. Raises as `journal.read`: `SpoolCorrupt` is for good, `OSError` may pass."""
        left = journal.read(self._path)
        stored = changes.journaled(left.id)
        fresh = [event for event in left.events if not all(number in stored for number in event.numbers)]
        # When they were accepted the journal does not say; not later than this.
        made_at = self._path.stat().st_mtime if fresh else 0.0
        identifiers = left.identifiers
        for lanes, events in groupby(fresh, attrgetter("lanes")):
            encoded = identified(((event.encoded, event.numbers[0] * STEP) for event in events), identifiers)
            for at in range(0, len(encoded), self._block_events):
                changes.append(lanes, encoded[at : at + self._block_events], made_at)
        lost = self._lost(left, stored)
        for at, found in lost:
            changes.keep_unreadable(left.id, at, found)
        changes.note_missing(left.id, left.missing)
        if fresh:
            numbers = (number for event in fresh for number in event.numbers)
            changes.note_journaled(left.id, stored.plus(numbers))
        return Recovered(len(fresh), len(lost), left)

    def _lost(self, left: Left, stored: Stamps) -> list[tuple[int, bytes]]:
        """The slots that are not what was written, and what is left of events that lost one of their parts."""
        if not (left.damaged or left.missing):
            return []
        return left.damaged + [(slot.at, slot.payload) for slot in left.cut if slot.number not in stored]

    def done(self, recovered: Recovered) -> None:
        """It is committed: the file has nothing more to give."""
        failpoint.reach("journal recovered")
        left = recovered.left
        if recovered.events:
            self._log.info("events of a process that died were recovered", events=recovered.events)
        if recovered.lost or left.missing:
            self._log.error(
                "a part of a journal is not what was written: its events are lost, and what is there is kept",
                slots_damaged=recovered.lost,
                slots_missing=left.missing,
                journal=left.id,
            )
        journal.remove(self._path)

    def failed(self, error: BaseException) -> None:
        """It could not be read: it stays where it is, for a version that can."""
        self._log.error("a journal cannot be recovered and is left alone", problem=str(error))
