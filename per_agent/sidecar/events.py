"""Our own wire form: `POST /v1/events` with one event, an array of them, or one a line (NDJSON).

The good events of a request are accepted, and the bad ones are listed by their position. When there is no
more room in the middle of a request, the answer says which events were accepted until then.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from per_agent.errors import AgentClosed, InvalidEvent
from per_agent.event import RECORDS, Receipt, event_from_record
from per_agent.sidecar import body
from per_agent.sidecar.answers import FULL, Answer, json_answer, no_room, until_stored, wants_stored
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.query import parameters
from per_agent.sidecar.service import Service

_SLICE: Final = 0.002  # seconds between two looks at other requests; one event may take as long as 250 others
_FIELDS: Final = 64  # of one event; what is said of each unknown one is longer than `"a":1,`
_MOST: Final = 100_000  # events in a request: what is said of each bad one is longer than `1,`
_LINES: Final = (
    b"application/x-ndjson",
    b"application/ndjson",
    b"application/jsonl",
    b"application/jsonlines",
)
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError)
# curl sends what it is given as a form, and knows no better: what it is, shows.
_ANY: Final = (b"", b"text/plain", b"application/x-www-form-urlencoded", b"application/octet-stream")


async def add(
    service: Service, scope: Mapping[str, Any], given: Mapping[bytes, bytes], receive: body.Receive
) -> Answer:
    """Take events in. Raises `Problem` where none was accepted, or not all for want of room."""
    stored = wants_stored(parameters(scope["query_string"]).get("wait"), service)
    content = await body.read(receive, given, service.settings.sidecar.max_body)
    batch = _Batch(service, _records(content, given))
    try:
        await batch.accept()
    except (*FULL, AgentClosed) as error:
        raise no_room(error, **batch.document()) from None
    if not batch.taken:
        raise batch.refusal()
    if stored:
        await until_stored(service, batch.waiting, **batch.document())
    return json_answer(207 if batch.rejected else 202, {**batch.document(), "stored": stored})


class _Record:
    """One record of a request: what it holds, or what is wrong with it."""

    __slots__ = ("content", "line", "problem")

    def __init__(self, content: Any, line: int | None = None, problem: str | None = None) -> None:
        self.content = content
        self.line = line
        self.problem = problem


class _Batch:
    """The events of one request, and what became of each."""

    def __init__(self, service: Service, records: "list[_Record] | _Record") -> None:
        self._service = service
        self._single = isinstance(records, _Record)
        self._records = [records] if isinstance(records, _Record) else records
        self._ids: list[str | None] = [None] * len(self._records)
        self.waiting: list[Receipt] = []
        self.rejected: list[dict[str, Any]] = []
        self.accepted = 0
        self.repeats = 0  # of identifiers that were accepted before

    async def accept(self) -> None:
        """Hand the events over one by one. Raises `BufferFull`, `SpoolFull` or `AgentClosed` where it must end."""
        began = time.perf_counter()
        for position, record in enumerate(self._records):
            if time.perf_counter() > began + _SLICE:
                await asyncio.sleep(0)
                began = time.perf_counter()
            try:
                self._ids[position] = self._accept(record)
            except InvalidEvent as error:
                where = {} if record.line is None else {"line": record.line}
                self.rejected.append({"position": position, **where, "errors": error.problems})

    def _accept(self, record: _Record) -> str:
        if record.problem is not None:
            raise InvalidEvent({"event": record.problem})
        service, content = self._service, record.content
        if isinstance(content, dict) and len(content) > _FIELDS:
            raise InvalidEvent({"event": f"has {len(content)} fields, at most {_FIELDS} are taken"})
        now = time.time()
        event = event_from_record(content, id=service.new_id(now), now=now, livemode=service.agent.livemode)
        named = "id" in content or "identifier" in content
        if named and event in service.recent:
            self.repeats += 1
            earlier = service.recent.receipt(event)
            if earlier is not None:
                self.waiting.append(earlier)
            return event.id
        receipt = service.agent.add_event(event)
        self.accepted += 1
        self.waiting.append(receipt)
        if named:
            service.recent.add(event, receipt)
        return event.id

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


def _records(content: bytes, given: Mapping[bytes, bytes]) -> "list[_Record] | _Record":
    """The records of a request's body. Raises `Problem` where it is none of the three forms."""
    kind = given.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind in _LINES:
        return _by_line(content)
    if kind != b"application/json" and kind not in _ANY:
        raise Problem(415, "events come as application/json, or as application/x-ndjson, one a line")
    try:
        decoded = _decoded(RECORDS.decode, content)
    except _UNREADABLE as error:
        if kind in _ANY and content.lstrip()[:1] == b"{" and b"\n" in content.strip():
            return _by_line(content)
        raise Problem(400, f"the body is not JSON: {_words(error)}") from None
    if not isinstance(decoded, list):
        return _Record(decoded)
    _check_number(len(decoded))
    return [_Record(each) for each in decoded]


def _decoded(decode: Callable[[bytes], Any], content: bytes) -> Any:
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


def _by_line(content: bytes) -> list[_Record]:
    _check_number(content.count(b"\n"))  # blank lines count, too: each of them is looked at
    numbered = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    try:
        decoded = _decoded(RECORDS.decode_lines, content)
    except _UNREADABLE:
        decoded = []
    if len(decoded) == len(numbered):
        return [_Record(each, number) for (number, _), each in zip(numbered, decoded, strict=True)]
    return [_line(number, line) for number, line in numbered]  # one of them is no JSON: find out which


def _line(number: int, line: bytes) -> _Record:
    try:
        return _Record(RECORDS.decode(line), number)
    except _UNREADABLE as error:
        return _Record(None, number, f"is not JSON: {_words(error)}")


def _words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (
        "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error) or "a number is too large"
    )
