"""Dead letters chosen by what they say, for the command and for the sidecar."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from per_agent.event import Event, MeterEvent, decode, iso
from per_agent.spool import DeadLetters, FiledLetter

Place = tuple[str, str, int]
"""Where a letter lies: spool, lane and number; which is also its place in the order of all."""


class Letter(msgspec.Struct, frozen=True):
    """A dead letter and the event in it; None where this version cannot read it."""

    filed: FiledLetter
    event: Event | None

    @property
    def id(self) -> str | None:
        return None if self.event is None else self.event.id

    @property
    def place(self) -> Place:
        return self.filed.spool, self.filed.lane, self.filed.number

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
        since: epoch seconds; letters that are not older.
    """

    ids: frozenset[str] = frozenset()
    destination: str | None = None
    reason: str | None = None
    meter: str | None = None
    before: float | None = None
    since: float | None = None

    @property
    def empty(self) -> bool:
        return not self.ids and all(
            each is None for each in (self.destination, self.reason, self.meter, self.before, self.since)
        )

    def of(self, data_dir: Path, after: Place | None = None) -> Iterator[Letter]:
        """The letters under *data_dir* that are meant, from the place *after* on.

        Raises `SpoolError` when a spool cannot be read.
        """
        every = DeadLetters(data_dir)
        return filter(self._fits, map(_opened, every if after is None else every.after(*after)))

    def _fits(self, each: Letter) -> bool:
        letter, event = each.filed.letter, each.event
        said = f"{letter.reason}\n{letter.words}".casefold()
        return (
            (not self.ids or each.id in self.ids)
            and self.destination in (None, each.filed.lane)
            and (self.reason is None or self.reason.casefold() in said)
            and (self.meter is None or (isinstance(event, MeterEvent) and event.event_name == self.meter))
            and (self.before is None or letter.at < self.before)
            and (self.since is None or letter.at >= self.since)
        )


def _opened(filed: FiledLetter) -> Letter:
    try:
        return Letter(filed, decode(filed.letter.event))
    except msgspec.MsgspecError:
        return Letter(filed, None)
