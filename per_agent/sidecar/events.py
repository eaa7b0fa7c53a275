"""Our own wire form: `POST /v1/events` with one event, an array of them, or one a line (NDJSON).

The good events of a request are accepted, and the bad ones are listed by their position. When there is no
more room in the middle of a request, the answer says which events were accepted until then.
"""

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from per_agent.errors import AgentClosed, InvalidEvent
from per_agent.event import RECORDS
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
from per_agent.sidecar.batch import Batch, Part, Unreadable
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.query import parameters
from per_agent.sidecar.records import UNREADABLE
from per_agent.sidecar.service import Service

T = TypeVar("T")

_MOST: Final = 100_000  # events in a request: what is said of each bad one is longer than `1,`
_PIECE: Final = 32 * 1024  # bytes of lines that are read at once
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
    parts, single = _parts(content, asked.kind)
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


def _parts(content: bytes, kind: bytes) -> tuple[Iterator[Part], bool]:
    """The records of a request's body, and whether they are a single one.

    Raises `Problem` where it is none of the three forms.
    """
    if kind in _LINES:
        return _by_line(content), False
    if kind != b"application/json" and kind not in _ANY:
        raise Problem(415, "events come as application/json, or as application/x-ndjson, one a line")
    plain = _unhindered(records.read_list, content) if content[:1] == b"[" else None
    if plain and len(plain) <= _MOST:
        return iter([Part(plain, plain=True)]), False
    try:
        decoded = _unhindered(RECORDS.decode, content)
    except UNREADABLE as error:
        if kind in _ANY and content.lstrip()[:1] == b"{" and b"\n" in content.strip():
            return _by_line(content), False
        raise Problem(400, f"the body is not JSON: {_words(error)}") from None
    if not isinstance(decoded, list):
        return iter([Part([decoded])]), True
    _check_number(len(decoded))
    return iter([Part(decoded)]), False


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


def _by_line(content: bytes) -> Iterator[Part]:
    """The records of the lines of *content*, a piece at a time."""
    if len(content) > _MOST:
        _check_number(content.count(b"\n"))  # blank lines count, too: each of them is looked at
    return _pieces(content)


def _pieces(content: bytes) -> Iterator[Part]:
    at, number = 0, 1
    while at < len(content):
        end = content.find(b"\n", at + _PIECE) + 1 or len(content)
        piece = content[at:end]
        yield _part(piece, number)
        at = end
        number += piece.count(b"\n") if at < len(content) else 0


def _part(piece: bytes, number: int) -> Part:
    """The records of a piece whose first line has this *number*."""
    plain = _unhindered(records.read_lines, piece)
    # A blank line, or two events on one, and a line's number would not follow from its event's position.
    if plain is not None:
        breaks = piece.count(b"\n") - piece.endswith(b"\n")
        if len(plain) == breaks + 1 and breaks == piece.count(b"\n{"):
            return Part(plain, plain=True, lines=range(number, number + len(plain)))
    numbered = [(at, line) for at, line in enumerate(piece.split(b"\n"), number) if line.strip()]
    lines = [at for at, _ in numbered]
    try:
        decoded = _unhindered(RECORDS.decode_lines, piece)
    except UNREADABLE:
        decoded = []
    if len(decoded) != len(numbered):  # one of them is no JSON: find out which
        decoded = [_line(line) for _, line in numbered]
    return Part(decoded, lines=lines)


def _line(line: bytes) -> Any:
    try:
        return RECORDS.decode(line)
    except UNREADABLE as error:
        return Unreadable(f"is not JSON: {_words(error)}")


def _words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (
        "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error) or "a number is too large"
    )
