"""Our own wire form: `POST /v1/events` with one event, an array of them, or one a line (NDJSON).

The good events of a request are accepted, and the bad ones are listed by their position. When there is no
more room in the middle of a request, the answer says which events were accepted until then.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeVar

from per_agent.errors import AgentClosed, InvalidEvent
from per_agent.event import RECORDS, Event, Receipt, event_from_record
from per_agent.sidecar import records
from per_agent.sidecar.answer import Answer
from per_agent.sidecar.answers import (
    FULL,
    NOTHING,
    Taken,
    as_json,
    no_room,
    until_stored,
    wants_stored,
)
from per_agent.sidecar.asked import Asked
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.query import parameters
from per_agent.sidecar.records import UNREADABLE
from per_agent.sidecar.service import Service

T = TypeVar("T")

_SLICE: Final = 0.002  # seconds between two looks at other requests; one event may take as long as 250 others
_LOOK: Final = 32  # plain records, which are quick, between two looks at the clock
_FIELDS: Final = 64  # of one event; what is said of each unknown one is longer than `"a":1,`
_MOST: Final = 100_000  # events in a request: what is said of each bad one is longer than `1,`
_LINES: Final = (
    b"application/x-ndjson",
    b"application/ndjson",
    b"application/jsonl",
    b"application/jsonlines",
)
# curl sends what it is given as a form, and knows no better: what it is, shows.
_ANY: Final = (b"", b"text/plain", b"application/x-www-form-urlencoded", b"application/octet-stream")


def take(service: Service, asked: Asked, query: bytes, content: bytes) -> Taken | None:
    """Take one event in that is plain and waits for no disk. None: there is more to it, see `take_all`.

    Raises `Problem` where there is no room for it.
    """
    if _wants_stored(service, query) or not (asked.kind == b"application/json" or asked.kind in _ANY):
        return None
    record = records.read(content)
    if record is None:
        return None
    now = time.time()
    named = record.id
    event = record.event(service.new_id(now) if named is None else named, now, service.agent.livemode)
    recent = service.recent.of(type(event))
    if named is None or named not in recent:
        try:
            receipt = service.agent.add_event(event)
        except InvalidEvent:
            return None
        except (*FULL, AgentClosed) as error:
            raise no_room(error, accepted=0, ids=[None]) from None
        if named is not None:
            recent.add(named, receipt)
    return Answer(202, b'{"accepted":1,"ids":[%b],"stored":false}' % as_json(event.id)), NOTHING


async def take_all(service: Service, asked: Asked, query: bytes, content: bytes) -> Answer:
    """Take events in. Raises `Problem` where none was accepted, or not all for want of room."""
    stored = _wants_stored(service, query)
    batch = _batch(service, content, asked.kind)
    try:
        await batch.accept()
    except (*FULL, AgentClosed) as error:
        raise no_room(error, **batch.document()) from None
    if not batch.taken:
        raise batch.refusal()
    if stored:
        await until_stored(service, batch.waiting, **batch.document())
    return Answer(207 if batch.rejected else 202, as_json({**batch.document(), "stored": stored}))


def _wants_stored(service: Service, query: bytes) -> bool:
    if not query:
        return service.settings.sidecar.answer_when == "stored"
    return wants_stored(parameters(query).get("wait"), service)


class _Unreadable:
    """A line that is no JSON, and why."""

    __slots__ = ("words",)

    def __init__(self, words: str) -> None:
        self.words = words


class _Batch:
    """The events of one request, and what became of each.

    Args:
        records: JSON values, or `_Unreadable`s; or, where *plain*, records that were read straight.
        line_of: for NDJSON, the number of the line on which the record of a position stands.
        form: whether it is one event, or several, and are they all plain.
    """

    def __init__(
        self,
        service: Service,
        records: Sequence[Any],
        form: Literal["single", "several", "plain"],
        line_of: Callable[[int], int] | None = None,
    ) -> None:
        self._service = service
        self._records = records
        self._single = form == "single"
        self._plain = form == "plain"
        self._line_of = line_of
        self._ids: list[str | None] = [None] * len(records)
        self.waiting: list[Receipt] = []
        self.rejected: list[dict[str, Any]] = []
        self.accepted = 0
        self.repeats = 0  # of identifiers that were accepted before

    async def accept(self) -> None:
        """Hand the events over one by one. Raises `BufferFull`, `SpoolFull` or `AgentClosed` where it must end."""
        until = time.perf_counter() + _SLICE
        step = _LOOK if self._plain else 1
        for first in range(0, len(self._records), step):
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + _SLICE
            self._accept(range(first, min(first + step, len(self._records))))

    def _accept(self, positions: range) -> None:
        service, records, plain = self._service, self._records, self._plain
        new_id, livemode, now = service.new_id, service.agent.livemode, time.time()
        for position in positions:
            record = records[position]
            try:
                if plain:
                    named = record.id
                    event = record.event(named or new_id(now), now, livemode)
                else:
                    event, named = _event(record, new_id(now), now, livemode)
                self._ids[position] = event.id
                self._take(event, named)
            except InvalidEvent as error:
                self._ids[position] = None
                where = {} if self._line_of is None else {"line": self._line_of(position)}
                self.rejected.append({"position": position, **where, "errors": error.problems})
            except (*FULL, AgentClosed):
                self._ids[position] = None
                raise

    def _take(self, event: Event, named: str | None) -> None:
        if named is not None:
            recent = self._service.recent.of(type(event))
            if named in recent:
                self.repeats += 1
                earlier = recent.receipt(named)
                if earlier is not None:
                    self.waiting.append(earlier)
                return
        receipt = self._service.agent.add_event(event)
        self.accepted += 1
        self.waiting.append(receipt)
        if named is not None:
            recent.add(named, receipt)

    @property
    def taken(self) -> int:
        """How many events are in the agent's hands; those that were there before are."""
        return self.accepted + self.repeats

    def document(self) -> dict[str, Any]:
        """What became of the events, as JSON."""
        document: dict[str, Any] = {"accepted": self.taken, "ids": self._ids}
        if self.rejected:
            document["rejected"] = self.rejected
        return document

    def refusal(self) -> Problem:
        """What to answer when no event was good."""
        if self._single:
            return Problem(400, "the event is not valid", errors=self.rejected[0]["errors"])
        words = "no event is valid" if self.rejected else "there is no event in the request"
        return Problem(400, words, extra=self.document())


def _event(content: Any, new_id: str, now: float, livemode: bool | None) -> tuple[Event, str | None]:
    """The event that *content* describes, and its identifier where it brought one. Raises `InvalidEvent`."""
    if isinstance(content, _Unreadable):
        raise InvalidEvent({"event": content.words})
    if isinstance(content, dict) and len(content) > _FIELDS:
        raise InvalidEvent({"event": f"has {len(content)} fields, at most {_FIELDS} are taken"})
    event = event_from_record(content, id=new_id, now=now, livemode=livemode)
    brought = content.get("id") is not None or content.get("identifier") is not None
    return event, event.id if brought else None


# What the body holds


def _batch(service: Service, content: bytes, kind: bytes) -> _Batch:
    """The records of a request's body. Raises `Problem` where it is none of the three forms."""
    if kind in _LINES:
        return _by_line(service, content)
    if kind != b"application/json" and kind not in _ANY:
        raise Problem(415, "events come as application/json, or as application/x-ndjson, one a line")
    plain = _unhindered(records.read_list, content) if content[:1] == b"[" else None
    if plain and len(plain) <= _MOST:
        return _Batch(service, plain, "plain")
    try:
        decoded = _unhindered(RECORDS.decode, content)
    except UNREADABLE as error:
        if kind in _ANY and content.lstrip()[:1] == b"{" and b"\n" in content.strip():
            return _by_line(service, content)
        raise Problem(400, f"the body is not JSON: {_words(error)}") from None
    if not isinstance(decoded, list):
        return _Batch(service, [decoded], "single")
    _check_number(len(decoded))
    return _Batch(service, decoded, "several")


def _unhindered(decode: Callable[[bytes], T], content: bytes) -> T:
    """What *decode* makes of *content*. The collector stands still meanwhile: what is new is no garbage.

    It looks at all that was made each time that there is a quarter more, and millions of lists fit into a
    request: that was most of the time in which nobody else was answered.
    """
    gc.disable()
    try:
        return decode(content)
    finally:
        gc.enable()


def _check_number(found: int) -> None:
    if found > _MOST:
        raise Problem(
            413,
            f"there are {found} events in the request: at most {_MOST} are taken; send several smaller ones",
        )


def _by_line(service: Service, content: bytes) -> _Batch:
    _check_number(content.count(b"\n"))  # blank lines count, too: each of them is looked at
    plain = _unhindered(records.read_lines, content)
    # A blank line, or two events on one, and a line's number would not follow from its event's position.
    if plain is not None and len(plain) == content.rstrip().count(b"\n") + 1 == content.count(b"\n{") + 1:
        return _Batch(service, plain, "plain", lambda position: position + 1)
    numbered = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    try:
        decoded = _unhindered(RECORDS.decode_lines, content)
    except UNREADABLE:
        decoded = []
    if len(decoded) != len(numbered):  # one of them is no JSON: find out which
        decoded = [_line(line) for _, line in numbered]
    return _Batch(service, decoded, "several", lambda position: numbered[position][0])


def _line(line: bytes) -> Any:
    try:
        return RECORDS.decode(line)
    except UNREADABLE as error:
        return _Unreadable(f"is not JSON: {_words(error)}")


def _words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (
        "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error) or "a number is too large"
    )
