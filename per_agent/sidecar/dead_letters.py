"""Dead letters for operators: listed a page at a time, sent again, deleted.

A cursor is the place of the page's last letter, and not a count of letters: what is added or taken away
between two pages neither repeats nor hides another letter. It also carries how many letters there were when
the first page was asked for, because counting reads all of them.
"""

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from per_agent.agent.letters import Choice, Letter, Place
from per_agent.errors import SpoolError
from per_agent.sidecar import body
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.service import Service
from per_agent.spool import DeadLetters

_PAGE: Final = 100  # letters, unless asked for more or fewer
_MOST: Final = 1000
_LONGEST: Final = 1e10  # seconds, which is some centuries
_PAGE_BYTES: Final = 8 * 2**20  # of events in one answer: each may be 64 KiB long, and memory is bounded
_WORDS: Final = ("destination", "reason", "meter")
_FILTERS: Final = (*_WORDS, "older_than")
_CHOICES: Final = '"ids", "destination", "reason", "meter", "older_than", or "all": true'
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
        Route("/v1/dead-letters", desk.list),
        Route("/v1/dead-letters/requeue", desk.change("requeue"), methods=["POST"]),
        Route("/v1/dead-letters/purge", desk.change("purge"), methods=["POST"]),
        Route("/v1/dead-letters/{id:path}", desk.show),  # an identifier may hold any character
    ]


class _Desk:
    """The answers; what they take from the disk is read in a thread of its own."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._data_dir = service.agent.data_dir

    async def list(self, request: Request) -> Response:
        """A page of the letters that are meant. It ends early where the events in it are many bytes long."""
        given = _parameters(request)
        problems: dict[str, str] = {}
        choice = _choice(_from_query(given, problems), problems)
        limit = _limit(given, problems)
        cursor = _cursor(given, problems)
        _raise_all(problems, "a parameter is wrong")
        async with self._service.reading:
            return _as_json(await _in_thread(self._page, choice, limit, cursor))

    async def show(self, request: Request) -> Response:
        """All letters of one event: each destination that refused it for good has its own. 404 without any."""
        identifier = request.path_params["id"]
        async with self._service.reading:
            page = await _in_thread(self._page, Choice(ids=frozenset({identifier})), _MOST, None)
        if not page["dead_letters"]:
            raise Problem(404, "no dead letter has this identifier")
        return _as_json({"dead_letters": page["dead_letters"]})

    def change(self, what: Literal["requeue", "purge"]) -> Callable[[Request], Awaitable[Response]]:
        """The handler that sends the letters again which the body names, or deletes them."""

        async def handler(request: Request) -> Response:
            limit = self._service.settings.sidecar.max_body
            content = await body.read(request.receive, dict(request.scope["headers"]), limit)
            choice = _named(content)
            changed = await _in_thread(self._change, what, choice)
            return _as_json({"requeued" if what == "requeue" else "purged": changed})

        return handler

    def _change(self, what: Literal["requeue", "purge"], choice: Choice) -> int:
        letters = DeadLetters(self._data_dir)
        act = letters.requeue if what == "requeue" else letters.purge
        return act(letter.filed for letter in choice.of(self._data_dir))

    def _page(self, choice: Choice, limit: int, cursor: _Cursor | None) -> dict[str, Any]:
        found = choice.of(self._data_dir, None if cursor is None else cursor.place)
        letters = list(_bounded(found, limit))
        following = next(found, None)
        seen = len(letters) + (following is not None)
        total = seen + sum(1 for _ in found) if cursor is None else cursor.total
        return {
            "total": total,
            "dead_letters": [letter.as_dict() for letter in letters],
            "next": None if following is None else _written(_Cursor(*letters[-1].place, total)),
        }


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


def _parameters(request: Request) -> dict[str, list[str]]:
    """The query's values by name. Raises `Problem` for unknown names, and for what may stand there once only."""
    given: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        given.setdefault(name, []).append(value)
    known = {*_FILTERS, "id", "limit", "after"}
    problems = dict.fromkeys(given.keys() - known, "is not a parameter of this list")
    problems |= {name: "is given twice" for name, values in given.items() if name != "id" and len(values) > 1}
    _raise_all(problems, "a parameter is wrong")
    return given


def _from_query(given: dict[str, list[str]], problems: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {name: given[name][0] for name in _WORDS if name in given}
    if "id" in given:
        fields["ids"] = given["id"]
    if "older_than" in given:
        try:
            fields["older_than"] = float(given["older_than"][0])
        except ValueError:
            problems["older_than"] = "must be a number of seconds"
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
    age = fields.get("older_than")
    if "older_than" in fields and not _is_age(age):
        problems["older_than"] = "must be a number of seconds"
        age = None
    return Choice(
        ids=frozenset(ids),
        destination=fields.get("destination"),
        reason=fields.get("reason"),
        meter=fields.get("meter"),
        before=None if age is None else time.time() - age,
    )


def _is_age(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LONGEST


def _raise_all(problems: dict[str, str], words: str) -> None:
    if problems:
        raise Problem(400, words, errors=problems)


def _as_json(document: Any) -> Response:
    return Response(_encode(document), media_type="application/json")
