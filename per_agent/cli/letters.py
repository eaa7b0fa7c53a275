"""Dead letters chosen by what they say, and what becomes of those that are sent again."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from per_agent.cli.call import running
from per_agent.event import Event, MeterEvent, decode, iso
from per_agent.settings import Settings
from per_agent.spool import DeadLetters, FiledLetter, Lane, snapshots

_LOOK_EVERY: Final = 0.1  # seconds
_ADOPT_EVERY: Final = 0.5  # seconds: this agent is here to take abandoned spools over


class Letter(msgspec.Struct, frozen=True):
    """A dead letter and the event in it; None where this version cannot read it."""

    filed: FiledLetter
    event: Event | None

    @property
    def id(self) -> str | None:
        return None if self.event is None else self.event.id

    @property
    def what(self) -> str:
        """The event in a few words."""
        if self.event is None:
            return "not readable by this version"
        if isinstance(self.event, MeterEvent):
            return f"{self.event.value} of {self.event.event_name} by {self.event.customer_id}"
        return f"{self.event.activity_type_id}: {self.event.user_id} of {self.event.billing_id}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        filed, letter = self.filed, self.filed.letter
        return {
            "id": self.id,
            "destination": filed.lane,
            "reason": letter.reason,
            "words": letter.words,
            "attempts": letter.attempts,
            "at": iso(letter.at),
            "spool": filed.spool,
            "number": filed.number,
            "event": None if self.event is None else self.event.as_record(),
        }


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters are meant: those that all that is given fits. Nothing given fits all of them.

    Attributes:
        ids: identifiers of events.
        destination: the destination that refused.
        reason: part of the reason or of the upstream's words, in any case of letters.
        meter: the event name of meter events.
        before: epoch seconds; letters that are older.
    """

    ids: frozenset[str] = frozenset()
    destination: str | None = None
    reason: str | None = None
    meter: str | None = None
    before: float | None = None

    @property
    def empty(self) -> bool:
        return not self.ids and all(
            each is None for each in (self.destination, self.reason, self.meter, self.before)
        )

    def of(self, data_dir: Path) -> Iterator[Letter]:
        """The letters under *data_dir* that are meant. Raises `SpoolError` when a spool cannot be read."""
        return filter(self._fits, map(_opened, DeadLetters(data_dir)))

    def _fits(self, each: Letter) -> bool:
        letter, event = each.filed.letter, each.event
        said = f"{letter.reason}\n{letter.words}".casefold()
        return (
            (not self.ids or each.id in self.ids)
            and self.destination in (None, each.filed.lane)
            and (self.reason is None or self.reason.casefold() in said)
            and (self.meter is None or (isinstance(event, MeterEvent) and event.event_name == self.meter))
            and (self.before is None or letter.at < self.before)
        )


def _opened(filed: FiledLetter) -> Letter:
    try:
        return Letter(filed, decode(filed.letter.event))
    except msgspec.MsgspecError:
        return Letter(filed, None)


class Resent(msgspec.Struct, frozen=True, kw_only=True):
    """What became of letters that were sent again: each is delivered, dead again or still waiting."""

    requeued: int
    delivered: int
    dead_again: int
    waiting: int
    with_running_agents: int
    """Those in spools that a running process holds."""


def resend(data_dir: Path, letters: Sequence[Letter], settings: Settings | None, timeout: float) -> Resent:
    """Requeue *letters*, and watch for up to *timeout* seconds what becomes of them.

    Where nobody holds their spools, an agent of *settings* delivers them meanwhile; without *settings* none
    does, and nothing is waited for. Raises `SpoolError` when a process holds a spool and does not answer.
    """
    before = _lanes(data_dir)
    spools = {each.filed.spool for each in letters}
    held = {each.id for each in snapshots(data_dir) if each.held and each.id in spools}
    requeued = DeadLetters(data_dir).requeue(each.filed for each in letters)
    at = time.time()
    watched = {(each.filed.spool, each.filed.lane) for each in letters}
    with ExitStack() as stack:
        if settings is not None and spools - held and timeout > 0:
            spool = msgspec.structs.replace(settings.spool, adopt_interval=_ADOPT_EVERY)
            stack.enter_context(running(msgspec.structs.replace(settings, spool=spool)))
        waiting = _watch(data_dir, watched, before, at, timeout if settings is not None else 0.0)
    sent = {_key(each.filed) for each in letters}
    dead_again = min(requeued, sum(_key(filed) in sent for filed in DeadLetters(data_dir)))
    waiting = min(waiting, requeued - dead_again)
    return Resent(
        requeued=requeued,
        delivered=requeued - dead_again - waiting,
        dead_again=dead_again,
        waiting=waiting,
        with_running_agents=sum(each.filed.spool in held for each in letters),
    )


_Watched = set[tuple[str, str]]
_Lanes = dict[tuple[str, str], Lane]


def _watch(data_dir: Path, watched: _Watched, before: _Lanes, at: float, timeout: float) -> int:
    """Wait until what was requeued up to *at* has been decided. Returns how many events have not."""
    deadline = time.monotonic() + timeout
    while True:
        lanes = _lanes(data_dir)
        undecided = [(lanes[each], before.get(each)) for each in watched if each in lanes]
        waiting = sum(lane.waiting for lane, _ in undecided if lane.oldest is not None and lane.oldest <= at)
        if not waiting or time.monotonic() >= deadline:
            parked = sum(lane.parked - (was.parked if was else 0) for lane, was in undecided)
            return waiting + max(0, parked)
        time.sleep(_LOOK_EVERY)


def _lanes(data_dir: Path) -> _Lanes:
    return {(spool.id, name): lane for spool in snapshots(data_dir) for name, lane in spool.lanes.items()}


def _key(filed: FiledLetter) -> bytes:
    return blake2b(filed.letter.event, digest_size=16, person=filed.lane.encode()[:16]).digest()
