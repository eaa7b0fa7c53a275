"""What lies in the data folder, destination by destination: the spools' snapshots put together.

`Overview.as_dict` and `Overview.books_as_dict` are what an operator is shown, whoever looked: the command, or
a sidecar that the command asks.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from per_agent.agent.month_end import arrivals, month_end
from per_agent.books import Books, total
from per_agent.courier import Condition, Note
from per_agent.event import iso
from per_agent.month import Month
from per_agent.spool import Lane, Parking, Snapshot, loose, reports, survey

_WORST_FIRST: Final = ("halted", "retrying", "open")


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One destination, over all spools.

    Attributes:
        configured: whether the configuration at hand has it; None where there is none at hand.
        stranded: pending events in spools and journals that no process holds.
        oldest: since when something has been pending, in epoch seconds.
        oldest_waiting: the same of what is not parked, and so goes on by itself.
        live: whether a running process delivers to it.
        condition: how it is doing, the worst that a running process says; else what was last said of it.
        counts_on_arrival: whether it counts events when they arrive, as an agent that delivered to it has said.
        months: pending events on the disk by the month in which they were recorded.
        in_memory: those that are not on the disk yet.
        no_answer: how often running processes sent an event and had no answer, so that nobody knows whether it
            was taken; each since it started. None where nothing is said.
        problems: what does not add up, with the spool that it was found in.
    """

    name: str
    configured: bool | None
    books: Books
    waiting: int
    parked: int
    letters: int
    damaged: int
    stranded: int
    oldest: float | None
    oldest_waiting: float | None
    parkings: tuple[Parking, ...]
    live: bool
    condition: Condition | None
    counts_on_arrival: bool
    months: dict[Month, int]
    in_memory: int
    no_answer: int | None
    problems: tuple[str, ...]

    def as_dict(self, now: float) -> dict[str, Any]:
        """For JSON."""
        condition = self.condition
        return {
            "configured": self.configured,
            "live": self.live,
            "state": None if condition is None else condition.state,
            "reason": None if condition is None else condition.reason,
            "since": None if condition is None or not condition.since else iso(condition.since),
            "failures": None if condition is None else condition.failures,
            "no_answer": self.no_answer,
            "books": {**self.books.as_dict(), "balanced": not self.problems},
            "waiting": self.waiting,
            "parked": self.parked,
            "parkings": [
                {"key": each.key, "reason": each.reason, "since": iso(each.since)} for each in self.parkings
            ],
            "dead_letters": self.letters,
            "damaged": self.damaged,
            "oldest_pending_seconds": _age(self.oldest, now),
            "oldest_waiting_seconds": _age(self.oldest_waiting, now),
            **arrivals(self.books, counted=self.counts_on_arrival),
            "month_end": month_end(self.months, self.in_memory, now) if self.counts_on_arrival else None,
        }


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """A data folder at one moment.

    Attributes:
        unread: why spools could not be read, so that they are in none of the numbers.
        set_aside: what became of damaged spools.
    """

    data_dir: Path
    spools: tuple[Snapshot, ...]
    standings: tuple[Standing, ...]
    unread: tuple[str, ...]
    set_aside: tuple[str, ...]

    @property
    def bytes_used(self) -> int:
        return sum(spool.bytes_used for spool in self.spools)

    @property
    def problems(self) -> list[str]:
        """What does not add up, a sentence each."""
        return [*self.unread, *(problem for each in self.standings for problem in each.problems)]

    @property
    def warnings(self) -> list[str]:
        """What will not go on by itself, a sentence each."""
        crowded = dict.fromkeys(spool.crowded for spool in self.spools if spool.held and spool.crowded)
        return [
            *crowded,
            *self.set_aside,
            *self._stranded(),
        ]

    def _stranded(self) -> list[str]:
        return (
            [
                f"spool {spool.id}: in a journal, slots are not what was written: up to {spool.unreadable:,} events"
                " are lost; what was found there is kept"
                for spool in self.spools
                if spool.unreadable
            ]
            + [
                f"spool {spool.id}: {spool.unknown:,} journal{' is' if spool.unknown == 1 else 's are'} left alone, as"
                " this version cannot read what is there: events in it wait for one that can"
                for spool in self.spools
                if spool.unknown
            ]
            + [
                f"{standing.stranded:,} event{' waits' if standing.stranded == 1 else 's wait'} for destination"
                f" {standing.name!r}, which is not configured: no agent with this configuration delivers them"
                for standing in self.standings
                if standing.configured is False and standing.stranded
            ]
        )

    def pending(self) -> dict[str, int]:
        """For each destination that events wait for, how many."""
        return {each.name: each.books.pending for each in self.standings if each.books.pending}

    def as_dict(self, now: float) -> dict[str, Any]:
        """All of it, for JSON. Ages are counted up to *now*, in epoch seconds."""
        return {
            "data_dir": str(self.data_dir),
            "bytes_used": self.bytes_used,
            "destinations": {each.name: each.as_dict(now) for each in self.standings},
            "spools": [
                {
                    "id": each.id,
                    "folder": str(each.folder),
                    "held": each.held,
                    "bytes_used": each.bytes_used,
                    "pending": sum(lane.books.pending for lane in each.lanes.values())
                    + sum(each.journaled.values()),
                    "dead_letters": sum(lane.letters for lane in each.lanes.values()),
                }
                for each in self.spools
            ],
            "warnings": self.warnings,
            "problems": self.problems,
        }

    def books_as_dict(self) -> dict[str, Any]:
        """The books alone, and whether they balance, for JSON."""
        return {
            "balanced": not self.problems,
            "destinations": {
                each.name: {**each.books.as_dict(), "balanced": not each.problems} for each in self.standings
            },
            "problems": self.problems,
            "set_aside": list(self.set_aside),
            "spools": len(self.spools),
        }


def overview(
    data_dir: Path, configured: Sequence[str] | None, in_memory: Mapping[str, int] | None = None
) -> Overview:
    """Look into *data_dir*, beside its owners. Raises `SpoolError` when a spool cannot be read.

    *in_memory*: for each destination, events of the process that asks which are not on the disk yet; the
    books count them as accepted and pending.
    """
    seen = survey(data_dir)
    spools = tuple(seen.snapshots)
    left = sum((Counter(each.journaled) for each in spools if not each.held), Counter(loose(data_dir)))
    unstored = sum((Counter(each.journaled) for each in spools if each.held), left)
    unstored.update(in_memory or {})
    lanes = {lane for each in spools for lane in each.lanes} | unstored.keys()
    names = list(dict.fromkeys([*(configured or ()), *sorted(lanes)]))
    standings = tuple(
        _standing(
            name,
            None if configured is None else name in configured,
            spools,
            unstored[name],
            left[name],
        )
        for name in names
    )
    return Overview(
        data_dir=data_dir,
        spools=spools,
        standings=standings,
        unread=tuple(seen.unread),
        set_aside=tuple(each.words for each in reports(data_dir)),
    )


def _standing(
    name: str, configured: bool | None, spools: Iterable[Snapshot], unstored: int, left: int
) -> Standing:
    """*left*: events among the *unstored* that lie in journals which no process looks after."""
    found = [(spool, spool.lanes[name]) for spool in spools if name in spool.lanes]
    lanes = [lane for _, lane in found]
    parkings = sorted((each for lane in lanes for each in lane.parkings), key=lambda each: each.since)
    waiting = [lane.oldest for lane in lanes if lane.oldest]
    notes = _notes([lane for spool, lane in found if spool.held] or lanes)
    return Standing(
        name=name,
        configured=configured,
        books=total([{name: Books(unstored, pending=unstored)}, *({name: lane.books} for lane in lanes)])[
            name
        ],
        waiting=sum((lane.waiting for lane in lanes), unstored),
        parked=sum(lane.parked for lane in lanes),
        letters=sum(lane.letters for lane in lanes),
        damaged=sum(lane.damaged for lane in lanes),
        stranded=sum((lane.books.pending for spool, lane in found if not spool.held), left),
        oldest=min((*waiting, *(each.since for each in parkings if each.since)), default=None),
        oldest_waiting=min(waiting, default=None),
        parkings=tuple({each.key: each for each in reversed(parkings)}.values()),
        live=any(spool.held for spool, _ in found),
        condition=min(notes, key=lambda each: (_WORST_FIRST.index(each.state), -each.since), default=None),
        counts_on_arrival=any(note.counts_on_arrival for note in notes),
        months=_months(lanes),
        in_memory=unstored,
        no_answer=sum({each.teller: each.no_answer for each in notes}.values()) if notes else None,
        problems=tuple(
            f"{name}, spool {spool.id}: {problem}" for spool, lane in found for problem in lane.problems
        ),
    )


def _notes(lanes: Iterable[Lane]) -> list[Note]:
    return [note for lane in lanes if (note := _read(lane.note)) is not None]


def _months(lanes: Iterable[Lane]) -> dict[Month, int]:
    months: Counter[Month] = Counter()
    for lane in lanes:
        months.update(lane.months)
    return dict(months)


def _read(note: bytes | None) -> Note | None:
    try:
        return None if note is None else msgspec.json.decode(note, type=Note)
    except msgspec.MsgspecError:
        return None  # of another version: not worth an error in an overview


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else round(max(0.0, now - since), 3)
