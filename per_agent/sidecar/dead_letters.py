"""Dead letters for operators: listed a page at a time, exported, sent again, deleted.

A cursor is the place of the page's last letter, and not a count of letters: what is added or taken away
between two pages neither repeats nor hides another letter. It also carries how many letters there were when
the first page was asked for, because counting reads all of them.
"""

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from per_agent.agent.letters import Choice, Letter, Place
from per_agent.errors import SpoolError
from per_agent.sidecar import body
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.recent import Key
from per_agent.sidecar.service import Service
from per_agent.spool import DeadLetters, FiledLetter

_PAGE: Final = 100  # letters, unless asked for more or fewer
_MOST: Final = 1000
_LONGEST: Final = 1e10  # seconds, which is some centuries
_PAGE_BYTES: Final = 8 * 2**20  # of events in one answer: each may be 64 KiB long, and memory is bounded
_WORDS: Final = ("destination", "reason", "meter")
_AGES: Final = ("older_than", "newer_than")
_FILTERS: Final = (*_WORDS, *_AGES)
_CHOICES: Final = '"ids", "destination", "reason", "meter", "older_than", "newer_than", or "all": true'
_CHUNK: Final = 200  # events read at once for an export, which is as long as there are letters
_T = TypeVar("_T")

_encode = msgspec.json.Encoder(decimal_format="number").encode


class _Cursor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    spool: str
    lane: str
    number: Annotated[int, msgspec.Meta(ge=0)]
    total: Annotated[int, msgspec.Meta(ge=0)]

    @property
    def place(self) -> Place:
        return self.spool, self.lane, self.number


_read_cursor = msgspec.json.Decoder(_Cursor).decode


def routes(service: Service) -> list[BaseRoute]:
    """`/v1/dead-letters` and what is below it."""
    desk = _Desk(service)
    return [
        Route("/v1/dead-letters", desk.index),
        Route("/v1/dead-letters.ndjson", desk.export),
        Route("/v1/dead-letters/requeue", desk.change("requeue"), methods=["POST"]),
        Route("/v1/dead-letters/purge", desk.change("purge"), methods=["POST"]),
        Route("/v1/dead-letters/{id:path}", desk.show),  # an identifier may hold any character
    ]


class _Desk:
    """The answers; what they take from the disk is read in a thread of its own."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._data_dir = service.agent.data_dir

    async def index(self, request: Request) -> Response:
        """A page of the letters that are meant. It ends early where the events in it are many bytes long."""
        given = _parameters(request)
        problems: dict[str, str] = {}
        choice = _choice(_from_query(given, problems), problems)
        limit = _limit(given, problems)
        cursor = _cursor(given, problems)
        _raise_all(problems, "a parameter is wrong")
        async with self._service.reading:
            page, letters = await _in_thread(self._page, choice, limit, cursor)
        self._told(letters)
        return _as_json(page)

    async def export(self, request: Request) -> Response:
        """The events of the letters that are meant, one a line, as `POST /v1/events` and `per-agent add -` take them.

        The letters stay where they are. One that this version cannot read is left out. Where a spool cannot be
        read any more after the answer has begun, the connection is broken off.
        """
        given = _parameters(request, paged=())
        problems: dict[str, str] = {}
        choice = _choice(_from_query(given, problems), problems)
        _raise_all(problems, "a parameter is wrong")
        first = await self._lines(choice, None)

        async def lines() -> AsyncIterator[bytes]:
            content, place = first
            yield content
            while place is not None:
                content, place = await self._lines(choice, place)
                yield content

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def _lines(self, choice: Choice, after: Place | None) -> tuple[bytes, Place | None]:
        """Some lines of an export, and the place of the last letter; None where that was the last of all."""
        async with self._service.reading:  # not for as long as a client takes to read it all
            letters, more = await _in_thread(self._some, choice, after)
        self._told(letters)
        events = (each.event.as_record() for each in letters if each.event is not None)
        return b"".join(_encode(event) + b"\n" for event in events), letters[-1].place if more else None

    def _some(self, choice: Choice, after: Place | None) -> tuple[list[Letter], bool]:
        found = choice.of(self._data_dir, after)
        letters = list(_bounded(found, _CHUNK))
        return letters, next(found, None) is not None

    async def show(self, request: Request) -> Response:
        """All letters of one event: each destination that refused it for good has its own. 404 without any."""
        identifier = request.path_params["id"]
        async with self._service.reading:
            page, letters = await _in_thread(self._page, Choice(ids=frozenset({identifier})), _MOST, None)
        self._told(letters)
        if not page["dead_letters"]:
            raise Problem(404, "no dead letter has this identifier")
        return _as_json({"dead_letters": page["dead_letters"]})

    def change(self, what: Literal["requeue", "purge"]) -> Callable[[Request], Awaitable[Response]]:
        """The handler that sends the letters again which the body names, or deletes them."""

        async def handler(request: Request) -> Response:
            limit = self._service.settings.sidecar.max_body
            content = await body.read(request.receive, dict(request.scope["headers"]), limit)
            choice = _named(content)
            changed, letters = await _in_thread(self._change, what, choice)
            self._service.recent.forget(letters)
            return _as_json({"requeued" if what == "requeue" else "purged": changed})

        return handler

    def _change(self, what: Literal["requeue", "purge"], choice: Choice) -> tuple[int, list[Key]]:
        letters = DeadLetters(self._data_dir)
        act = letters.requeue if what == "requeue" else letters.purge
        keys: list[Key] = []

        def meant() -> Iterator[FiledLetter]:
            for letter in choice.of(self._data_dir):
                keys.extend(_keys([letter]))
                yield letter.filed

        return act(meant()), keys

    def _page(
        self, choice: Choice, limit: int, cursor: _Cursor | None
    ) -> tuple[dict[str, Any], list[Letter]]:
        found = choice.of(self._data_dir, None if cursor is None else cursor.place)
        letters = list(_bounded(found, limit))
        following = next(found, None)
        seen = len(letters) + (following is not None)
        total = seen + sum(1 for _ in found) if cursor is None else cursor.total
        page = {
            "total": total,
            "dead_letters": [letter.as_dict() for letter in letters],
            "next": None if following is None else _written(_Cursor(*letters[-1].place, total)),
        }
        return page, letters

    def _told(self, letters: Iterable[Letter]) -> None:
        """Somebody reads *letters*, and may record their events again."""
        self._service.recent.forget(_keys(letters))


def _keys(letters: Iterable[Letter]) -> list[Key]:
    return [(type(each.event), each.event.id) for each in letters if each.event is not None]


async def _in_thread(work: Callable[..., _T], *arguments: object) -> _T:
    """What *work* gives. Raises `Problem` where a spool cannot be read, or its holder does not answer."""
    try:
        return await run_in_threadpool(work, *arguments)
    except SpoolError as error:
        raise Problem(503, str(error), headers={"retry-after": "5"}) from None


def _bounded(letters: Iterator[Letter], limit: int) -> Iterator[Letter]:
    """The next *limit* letters at most, and fewer where they are long; at least one where there is one."""
    size = 0
    for letter in letters:
        yield letter
        limit -= 1
        size += len(letter.filed.letter.event)
        if limit == 0 or size >= _PAGE_BYTES:
            return


# What the caller says


def _parameters(request: Request, *, paged: Collection[str] = ("limit", "after")) -> dict[str, list[str]]:
    """The query's values by name. Raises `Problem` for unknown names, and for what may stand there once only."""
    given: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        given.setdefault(name, []).append(value)
    known = {*_FILTERS, "id", *paged}
    problems = dict.fromkeys(given.keys() - known, "is not a parameter of this list")
    problems |= {name: "is given twice" for name, values in given.items() if name != "id" and len(values) > 1}
    _raise_all(problems, "a parameter is wrong")
    return given


def _from_query(given: dict[str, list[str]], problems: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {name: given[name][0] for name in _WORDS if name in given}
    if "id" in given:
        fields["ids"] = given["id"]
    for name in _AGES:
        if name in given:
            try:
                fields[name] = float(given[name][0])
            except ValueError:
                problems[name] = "must be a number of seconds"
    return fields


def _limit(given: dict[str, list[str]], problems: dict[str, str]) -> int:
    words = given.get("limit", [str(_PAGE)])[0]
    if words.isascii() and words.isdigit() and len(words) < 5 and 1 <= int(words) <= _MOST:
        return int(words)
    problems["limit"] = f"must be a whole number from 1 to {_MOST}"
    return _PAGE


def _cursor(given: dict[str, list[str]], problems: dict[str, str]) -> _Cursor | None:
    if "after" not in given:
        return None
    try:
        return _read_cursor(urlsafe_b64decode(given["after"][0].encode()))
    except (ValueError, msgspec.MsgspecError):
        problems["after"] = 'must be the "next" of a page of this list'
        return None


def _written(cursor: _Cursor) -> str:
    return urlsafe_b64encode(msgspec.json.encode(cursor)).decode()


def _named(content: bytes) -> Choice:
    """The letters that a request's body names. Raises `Problem` 400: an empty body must not mean all."""
    try:
        fields = msgspec.json.decode(content or b"{}")
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise Problem(400, f"the body must be a JSON object with {_CHOICES}") from None
    if not isinstance(fields, dict):
        raise Problem(400, f"the body must be a JSON object with {_CHOICES}")
    problems = dict.fromkeys(fields.keys() - {*_FILTERS, "ids", "all"}, "is not a way to choose")
    everything = fields.pop("all", False)
    if not isinstance(everything, bool):
        problems["all"] = "must be true or false"
    choice = _choice({name: fields[name] for name in fields.keys() - problems.keys()}, problems)
    _raise_all(problems, "the choice of dead letters is wrong")
    if choice.empty and not everything:
        raise Problem(400, f"say which dead letters: {_CHOICES}")
    if everything and not choice.empty:
        raise Problem(400, '"all" is all of them: give it, or say which')
    return choice


def _choice(fields: dict[str, Any], problems: dict[str, str]) -> Choice:
    """The choice that *fields* make; what is wrong with them goes to *problems*."""
    ids: Sequence[str] = fields.get("ids", ())
    if "ids" in fields and not (isinstance(ids, list) and ids and all(isinstance(each, str) for each in ids)):
        problems["ids"] = "must be a list of identifiers, at least one"
        ids = ()
    for name in _WORDS:
        if name in fields and not (isinstance(fields[name], str) and fields[name]):
            problems[name] = "must be text, and not empty"  # an empty reason would fit all letters
    moments: dict[str, float | None] = dict.fromkeys(_AGES)
    for name in _AGES:
        if name in fields and not _is_age(fields[name]):
            problems[name] = "must be a number of seconds"
        elif name in fields:
            moments[name] = time.time() - fields[name]
    return Choice(
        ids=frozenset(ids),
        destination=fields.get("destination"),
        reason=fields.get("reason"),
        meter=fields.get("meter"),
        before=moments["older_than"],
        since=moments["newer_than"],
    )


def _is_age(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LONGEST


def _raise_all(problems: dict[str, str], words: str) -> None:
    if problems:
        raise Problem(400, words, errors=problems)


def _as_json(document: Any) -> Response:
    return Response(_encode(document), media_type="application/json")
