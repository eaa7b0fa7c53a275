"""`Local`: Per's reports and Payment Kit's reading and meter calls, answered from the embedded ledger.

The calls, their parameters and their JSON are those of the upstreams. Where an upstream leaves open what becomes of
a parameter that it does not know, or that is no number where one belongs, a precise 400 is given here: a
filter that is misspelt would otherwise show everything, and nobody would know.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from per_agent.destinations.local import Ledger
from per_agent.errors import UpstreamError
from per_agent.event import RECORDS
from per_agent.sidecar import body
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.query import parameters

Kind = Callable[[str], Any]
"""Makes a parameter's value of its text. Raises `ValueError` with what is wrong."""

_LIMIT: Final = 1024 * 1024  # bytes of a body: a meter has a few names, and metadata of 64 KiB
_LONGEST: Final = 40  # characters of a wrong value that are shown
_RETRY_AFTER: Final = "1"  # seconds: another writer is done by then; a full disk takes longer to heal


def _text(given: str) -> str:
    return given


def _whole(given: str) -> int:
    if not (given.isascii() and given.isdigit() and len(given) <= 16):
        raise ValueError("must be a whole number")
    return int(given)


def _switch(given: str) -> bool:
    if given not in ("true", "false"):
        raise ValueError("must be true or false")
    return given == "true"


class _Call(msgspec.Struct, frozen=True):
    """One of Payment Kit's calls.

    Attributes:
        answers: what answers it. Called with the id in the path if there is one, *takes* and *fields*.
        takes: the parameters of the query.
        fields: those of the body; None where it has none, or none that is read.
    """

    answers: Callable[[Ledger], Callable[..., Any]]
    takes: Mapping[str, Kind]
    fields: frozenset[str] | None = None


_MODE: Final[Mapping[str, Kind]] = {"livemode": _switch}
_PAGES: Final[Mapping[str, Kind]] = {**_MODE, "page": _whole, "pageSize": _whole, "q": _text}
_SPAN: Final[Mapping[str, Kind]] = {"start": _whole, "end": _whole, "customer_id": _text}
_NEW: Final = frozenset(
    {"name", "event_name", "unit", "aggregation_method", "currency_id", "description", "metadata"}
)
_CHANGED: Final = frozenset({"name", "description", "unit", "status", "metadata"})

_ID: Final = "{id}"
_CALLS: Final[Mapping[tuple[str, ...], Mapping[str, _Call]]] = {
    ("meters",): {
        "GET": _Call(lambda ledger: ledger.meters.list, {**_PAGES, "event_name": _text}),
        "POST": _Call(lambda ledger: ledger.meters.create, _MODE, _NEW),
    },
    ("meters", _ID): {
        "GET": _Call(lambda ledger: ledger.meters.retrieve, _MODE),
        "PUT": _Call(lambda ledger: ledger.meters.update, _MODE, _CHANGED),
    },
    ("meters", _ID, "activate"): {"PUT": _Call(lambda ledger: ledger.meters.activate, _MODE)},
    ("meters", _ID, "deactivate"): {"PUT": _Call(lambda ledger: ledger.meters.deactivate, _MODE)},
    ("meter-events",): {
        "GET": _Call(
            lambda ledger: ledger.meter_events.list,
            {**_PAGES, **_SPAN, "event_name": _text, "meter_id": _text},
        )
    },
    ("meter-events", "stats"): {
        "GET": _Call(
            lambda ledger: ledger.meter_events.stats,
            {**_MODE, **_SPAN, "meter_id": _text, "granularity": _text},
        )
    },
    ("meter-events", "pending-amount"): {
        "GET": _Call(
            lambda ledger: ledger.meter_events.pending_amount,
            {**_MODE, "subscription_id": _text, "customer_id": _text, "currency_id": _text},
        )
    },
    ("meter-events", _ID): {"GET": _Call(lambda ledger: ledger.meter_events.retrieve, _MODE)},
}


class Local:
    """Answers from *ledger*: `reports` and `api` are ASGI applications. Both raise `Problem`, and `Disconnected`.

    `livemode` is live where the query does not name it, except for what is asked for by its own id, which tells
    the mode by itself.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def reports(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /reports.get?start=&end=`, as Per documents it: both may be left out, or `end` alone."""
        if scope["method"] not in ("GET", "HEAD"):
            raise _not_allowed(["GET"])
        window = _arguments(scope["query_string"], {"start": _text, "end": _text})
        content = await run_in_threadpool(_asked, lambda: self._ledger.get_report(**window))
        await _answered(content)(scope, receive, send)

    async def api(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Meters and meter events under `/api/`, and a 404 for the rest of Payment Kit."""
        call, ids = _found(scope["raw_path"], scope["method"])
        given = _arguments(scope["query_string"], call.takes)
        if call.fields is not None:
            content = await body.read(receive, dict(scope["headers"]), _LIMIT)
            given |= _fields(content, call.fields, given.get("livemode", True))
        answers = call.answers(self._ledger)
        content = await run_in_threadpool(_asked, lambda: answers(*ids, **given))
        await _answered(content)(scope, receive, send)


def _found(raw_path: bytes, method: str) -> tuple[_Call, list[str]]:
    """The call that a path and a method name, and the ids in the path. Raises `Problem` 404 and 405."""
    # Taken apart before it is unescaped: a slash in an event_name is no step in the path.
    segments = [_unescaped(each) for each in raw_path.split(b"/")[2:]]
    if segments and not segments[-1]:
        segments.pop()  # Payment Kit's router does not mind a slash at the end either
    shape, ids = tuple(segments), []
    if shape not in _CALLS and len(segments) > 1 and segments[1]:
        shape, ids = (segments[0], _ID, *segments[2:]), [segments[1]]
    methods = _CALLS.get(shape)
    if methods is None:
        raise Problem(
            404,
            "the embedded ledger answers here: it has /api/meters and /api/meter-events, and no customers,"
            " credits, subscriptions or payments; for those, a Payment Kit must be configured",
        )
    call = methods.get("GET" if method == "HEAD" else method)
    if call is None:
        # A meter event is taken in by the sidecar itself, and so never comes here.
        raise _not_allowed([*methods, *(["POST"] if shape == ("meter-events",) else [])])
    return call, ids


def _unescaped(segment: bytes) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise Problem(400, "the path is not UTF-8") from None


def _not_allowed(methods: list[str]) -> Problem:
    return Problem(405, f"only {' and '.join(methods)} is known here", headers={"allow": ", ".join(methods)})


def _arguments(query: bytes, takes: Mapping[str, Kind]) -> dict[str, Any]:
    """The parameters of *query* as the ledger takes them. Raises `Problem` 400 with all that is wrong."""
    arguments: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, given in parameters(query).items():
        if name not in takes:
            problems[name] = f"is not a parameter of this call, which takes {', '.join(sorted(takes))}"
            continue
        try:
            arguments[name] = takes[name](given)
        except ValueError as error:
            problems[name] = f"{error}, not {given[:_LONGEST]!r}"
    if problems:
        raise Problem(400, "a parameter is wrong", errors=problems)
    return arguments


def _fields(content: bytes, known: frozenset[str], livemode: bool) -> dict[str, Any]:
    """The fields of a body. Raises `Problem` 400 with all that is wrong."""
    try:
        fields = RECORDS.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Problem(400, "the body must be a JSON object")
    # Payment Kit does not read the mode here. One that says the same does no harm; another would be overlooked.
    problems = {}
    if fields.pop("livemode", livemode) is not livemode:
        problems["livemode"] = "belongs into the query: in the body it is not read"
    problems |= dict.fromkeys(fields.keys() - known, "is not a field that can be given here")
    if problems:
        raise Problem(400, "a field is wrong", errors=problems)
    return fields


def _asked(ask: Callable[[], Any]) -> bytes:
    """What the ledger answers, as JSON. Raises `Problem` for its no, with its status and its words. Blocks."""
    try:
        return msgspec.json.encode(ask())
    except UpstreamError as error:
        status = error.status or 503
        headers = {"retry-after": _RETRY_AFTER} if status == 503 else {}
        raise Problem(status, error.words, headers=headers) from error


def _answered(content: bytes) -> Response:
    return Response(content, media_type="application/json")
