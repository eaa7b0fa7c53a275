"""Our own wire form: `POST /v1/events` with one event, an array of them, or one a line (NDJSON).

The good events of a request are accepted, and the bad ones are listed by their position. When there is no
more room in the middle of a request, the answer says which events were accepted until then.
"""

import gc
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final, TypeVar

from starlette.concurrency import run_in_threadpool

from per_agent.errors import AgentClosed, InvalidEvent
from per_agent.event import RECORDS, event_from_record
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
from per_agent.sidecar.batch import Batch, Checked, Part
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.query import parameters
from per_agent.sidecar.records import UNREADABLE
from per_agent.sidecar.service import Service

T = TypeVar("T")

_MOST: Final = 100_000  # events in a request: what is said of each bad one is longer than `1,`
_FIELDS: Final = 64  # of one event; what is said of each unknown one is longer than `"a":1,`
_PIECE: Final = 32 * 1024  # bytes of lines that are read at once
_LONG: Final = 64 * 1024  # bytes that would take too long a moment from all others
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
    parts, single = await _parts(service, content, asked.kind)
    batch = Batch(service, parts)
    try:
        await batch.accept()
    except (*FULL, AgentClosed) as error:
        raise no_room(error, **batch.document()) from None
    if not batch.taken:
        raise batch.refusal(single=single)
    if stored:
        await until_stored(service, batch.waiting, **batch.document())
    return Answer(207 if batch.rejected else 202, as_json({**batch.document(), "stored": stored}))


def _wants_stored(service: Service, query: bytes) -> bool:
    if not query:
        return service.settings.sidecar.answer_when == "stored"
    return wants_stored(parameters(query).get("wait"), service)


# What the body holds


async def _parts(service: Service, content: bytes, kind: bytes) -> tuple[AsyncIterator[Part], bool]:
    """The records of a request's body, and whether they are a single one.

    Raises `Problem` where it is none of the three forms.
    """
    if kind in _LINES:
        return _by_line(service, content), False
    if kind != b"application/json" and kind not in _ANY:
        raise Problem(415, "events come as application/json, or as application/x-ndjson, one a line")
    try:
        part, single = await _aside(service, len(content), partial(_whole, service, content))
    except UNREADABLE as error:
        if kind in _ANY and content.lstrip()[:1] == b"{" and b"\n" in content.strip():
            return _by_line(service, content), False
        raise Problem(400, f"the body is not JSON: {_words(error)}") from None
    return _only(part), single


async def _aside(service: Service, size: int, read: Callable[[], T]) -> T:
    """What *read* makes of so many bytes: in a thread, where that takes long.

    One at a time: several would only take the interpreter from each other, and each may take thirty times the
    memory of its body.
    """
    if size <= _LONG:
        return read()
    async with service.unpacking:
        return await run_in_threadpool(_unhindered, read)


def _unhindered(read: Callable[[], T]) -> T:
    """What *read* gives. The collector stands still meanwhile: what is new is no garbage.

    It looks at all that was made each time that there is a quarter more, and holds everybody up while it does;
    millions of lists fit into a request.
    """
    gc.disable()
    try:
        return read()
    finally:
        gc.enable()


async def _only(part: Part) -> AsyncIterator[Part]:
    yield part


def _whole(service: Service, content: bytes) -> tuple[Part, bool]:
    """The records of a body that is one JSON value, and whether they are a single one."""
    plain = records.read_list(content) if content[:1] == b"[" else None
    if plain and len(plain) <= _MOST:
        return Part(plain, plain=True), False
    decoded = RECORDS.decode(content)
    if not isinstance(decoded, list):
        return Part([_checked(service, decoded)]), True
    _check_number(len(decoded))
    return Part([_checked(service, each) for each in decoded]), False


def _checked(service: Service, record: Any) -> Checked:
    """The event that a JSON value describes, or what is wrong with it."""
    if isinstance(record, dict) and len(record) > _FIELDS:
        return {"event": f"has {len(record)} fields, at most {_FIELDS} are taken"}
    now = time.time()
    try:
        event = event_from_record(record, id=service.new_id(now), now=now, livemode=service.agent.livemode)
    except InvalidEvent as error:
        return error.problems
    brought = record.get("id") is not None or record.get("identifier") is not None
    return event, event.id if brought else None


def _check_number(found: int) -> None:
    if found > _MOST:
        raise Problem(
            413,
            f"there are {found} events in the request: at most {_MOST} are taken; send several smaller ones",
        )


def _by_line(service: Service, content: bytes) -> AsyncIterator[Part]:
    """The records of the lines of *content*, a piece at a time."""
    if len(content) > _MOST:
        _check_number(content.count(b"\n"))  # blank lines count, too: each of them is looked at
    return _pieces(service, content)


async def _pieces(service: Service, content: bytes) -> AsyncIterator[Part]:
    at, number = 0, 1
    while at < len(content):
        end = content.find(b"\n", at + _PIECE) + 1 or len(content)
        piece = content[at:end]
        part = await _aside(service, len(piece), partial(_piece, service, piece, number))
        yield part._replace(count_rest=partial(_count, content, end))
        at = end
        number += piece.count(b"\n") if at < len(content) else 0


def _count(content: bytes, at: int) -> int:
    """How many records the lines from *at* on hold: each that is not blank is one, whatever it says."""
    return sum(map(bool, map(bytes.strip, content[at:].split(b"\n"))))


def _piece(service: Service, piece: bytes, number: int) -> Part:
    """The records of a piece whose first line has this *number*."""
    plain = records.read_lines(piece)
    # A blank line, or two events on one, and a line's number would not follow from its event's position.
    if plain is not None:
        all_lines = piece.count(b"\n") + (not piece.endswith(b"\n"))
        if len(plain) == all_lines == piece.count(b"\n{") + piece.startswith(b"{"):
            return Part(plain, plain=True, lines=range(number, number + len(plain)))
    numbered = [(at, line) for at, line in enumerate(piece.split(b"\n"), number) if line.strip()]
    lines = [at for at, _ in numbered]
    try:
        decoded = RECORDS.decode_lines(piece)
    except UNREADABLE:
        decoded = []
    if len(decoded) == len(numbered):
        return Part([_checked(service, each) for each in decoded], lines=lines)
    # One of them is no JSON: find out which.
    return Part([_line(service, line) for _, line in numbered], lines=lines)


def _line(service: Service, line: bytes) -> Checked:
    try:
        decoded = RECORDS.decode(line)
    except UNREADABLE as error:
        return {"event": f"is not JSON: {_words(error)}"}
    return _checked(service, decoded)


def _words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (
        "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error) or "a number is too large"
    )
