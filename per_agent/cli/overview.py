"""What lies in the data folder, destination by destination: the spools' snapshots put together."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from per_agent.books import Books, total
from per_agent.cli.console import count
from per_agent.courier import Condition
from per_agent.event import iso
from per_agent.spool import Lane, Parking, Snapshot, snapshots

_WORST_FIRST: Final = ("halted", "retrying", "open")


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One destination, over all spools.

    Attributes:
        configured: whether the configuration at hand has it; None where there is none at hand.
        stranded: pending events in spools that no process holds, where no configured destination takes them.
        live: whether a running process delivers to it.
        condition: how it is doing, the worst that a running process says; else what was last said of it.
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
    parkings: tuple[Parking, ...]
    live: bool
    condition: Condition | None
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
            "books": {**self.books.as_dict(), "balanced": not self.problems},
            "waiting": self.waiting,
            "parked": self.parked,
            "parkings": [
                {"key": each.key, "reason": each.reason, "since": iso(each.since)} for each in self.parkings
            ],
            "dead_letters": self.letters,
            "damaged": self.damaged,
            "oldest_pending_seconds": None if self.oldest is None else round(max(0.0, now - self.oldest), 3),
        }

    @property
    def trouble(self) -> str:
        """Why something may be waiting, in words; empty where nothing is known to be wrong."""
        if self.condition is not None and self.condition.state != "open":
            return f"{self.condition.state}: {self.condition.reason}"
        if self.parked:
            return f"parked: {'; '.join(each.reason for each in self.parkings)}"
        return ""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """A data folder at one moment."""

    data_dir: Path
    spools: tuple[Snapshot, ...]
    standings: tuple[Standing, ...]

    @property
    def bytes_used(self) -> int:
        return sum(spool.bytes_used for spool in self.spools)

    @property
    def problems(self) -> list[str]:
        """What does not add up, a sentence each."""
        return [problem for standing in self.standings for problem in standing.problems]

    @property
    def warnings(self) -> list[str]:
        """What will not go on by itself, a sentence each."""
        return [
            f"{count(standing.stranded, 'event')} wait{'s' if standing.stranded == 1 else ''} for destination"
            f" {standing.name!r}, which is not configured: no agent with this configuration delivers them"
            for standing in self.standings
            if standing.configured is False and standing.stranded
        ]

    def pending(self) -> dict[str, int]:
        """For each destination that events wait for, how many."""
        return {each.name: each.books.pending for each in self.standings if each.books.pending}

    def pending_words(self) -> str:
        """What waits and why, in words; empty where nothing does."""
        return "; ".join(
            f"{count(each.books.pending, 'event')} for {each.name}"
            + (f" ({each.trouble})" if each.trouble else "")
            for each in self.standings
            if each.books.pending
        )


def overview(data_dir: Path, configured: Sequence[str] | None) -> Overview:
    """Look into *data_dir*, beside its owners. Raises `SpoolError` when a spool cannot be read."""
    spools = tuple(snapshots(data_dir))
    names = list(
        dict.fromkeys([*(configured or ()), *sorted({lane for each in spools for lane in each.lanes})])
    )
    standings = tuple(
        _standing(name, None if configured is None else name in configured, spools) for name in names
    )
    return Overview(data_dir=data_dir, spools=spools, standings=standings)


def _standing(name: str, configured: bool | None, spools: Iterable[Snapshot]) -> Standing:
    found = [(spool, spool.lanes[name]) for spool in spools if name in spool.lanes]
    lanes = [lane for _, lane in found]
    parkings = sorted((each for lane in lanes for each in lane.parkings), key=lambda each: each.since)
    oldest = [
        moment
        for lane in lanes
        for moment in (lane.oldest, *(each.since for each in lane.parkings))
        if moment
    ]
    return Standing(
        name=name,
        configured=configured,
        books=total([{name: lane.books} for lane in lanes]).get(name, Books()),
        waiting=sum(lane.waiting for lane in lanes),
        parked=sum(lane.parked for lane in lanes),
        letters=sum(lane.letters for lane in lanes),
        damaged=sum(lane.damaged for lane in lanes),
        stranded=sum(lane.books.pending for spool, lane in found if not spool.held),
        oldest=min(oldest, default=None),
        parkings=tuple({each.key: each for each in reversed(parkings)}.values()),
        live=any(spool.held for spool, _ in found),
        condition=_condition([lane for spool, lane in found if spool.held] or lanes),
        problems=tuple(
            f"{name}, spool {spool.id}: {problem}" for spool, lane in found for problem in lane.problems
        ),
    )


def _condition(lanes: Iterable[Lane]) -> Condition | None:
    said = [each for lane in lanes if lane.note is not None and (each := _read(lane.note)) is not None]
    return min(said, key=lambda each: (_WORST_FIRST.index(each.state), -each.since), default=None)


def _read(note: bytes) -> Condition | None:
    try:
        return msgspec.json.decode(note, type=Condition)
    except msgspec.MsgspecError:
        return None  # of another version: not worth an error in an overview
