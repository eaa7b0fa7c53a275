"""A double of the sidecar for tests of what talks to one: real sockets, in a thread, and a score that is kept.

::

    with SidecarDouble(tmp_path) as double:
        Sidecar(double.address); Sidecar(double.url, "sidecar-token-1")
        double.rule(status=503, count=1)              # rules are those of the test upstream, see upstream.py
        double.limit(room=3)                          # how many events it still takes
        double.stop(); double.start()                 # same socket and same port again, the score is kept
        double.events                                 # what was counted, by identifier

It speaks `POST /v1/events?wait=stored` with NDJSON. What is Per's or Payment Kit's is answered as these answer,
with the credentials and the mode that a sidecar is configured with in place of the caller's.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
from upstream_books import Books
from upstream_wire import Connection, Reply, Request

from per_agent.errors import InvalidEvent
from per_agent.event import RECORDS, Event, event_from_record

_T = TypeVar("_T")


class SidecarDouble:
    """A sidecar on `address` (a Unix socket in *folder*) and on `url` (loopback, where *token* is asked for)."""

    def __init__(self, folder: Path, token: str = "sidecar-token-1") -> None:
        self.port = 0
        self._path = folder / "agent.sock"
        self._books = _Books(token)
        self._connections: set[Any] = set()
        self._listeners: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sidecar double", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"unix:{self._path}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Listen, where it does not already."""
        self._run(self._open())
        return self

    def stop(self) -> None:
        """Stop listening and close all connections: from here on they are refused."""
        self._run(self._close(lambda transport: transport.close()))

    def kill(self) -> None:
        """The same, but connections are reset and answers under way are lost."""
        self._run(self._close(lambda transport: transport.abort()))

    def rule(self, **rule: Any) -> None:
        """Add one rule; see upstream.py."""
        self._books.rule(rule)

    def clear_rules(self) -> None:
        self._books.rules = []

    @property
    def events(self) -> dict[str, Event]:
        """What was counted: each identifier once."""
        return self._books.events

    @property
    def offered(self) -> Counter[str]:
        """How often each identifier came."""
        return self._books.came

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The requests that came: method, path, query, headers, body, status."""
        return list(self._books.last)

    def limit(self, *, room: int | None = None, max_body: int | None = None, stalled: bool = False) -> None:
        """From now on: take *room* more events, bodies of *max_body* bytes; *stalled*: nothing gets to the disk."""
        self._books.room, self._books.max_body, self._books.stalled = room, max_body, stalled

    async def _open(self) -> None:
        if self._listeners:
            return

        def made() -> Connection:
            return _Tracked(self._books.answer, lambda: None, self._connections)

        unix = await self._loop.create_unix_server(made, self._path)
        tcp = await self._loop.create_server(made, "127.0.0.1", self.port)
        self.port = tcp.sockets[0].getsockname()[1]
        self._listeners = [unix, tcp]

    async def _close(self, end: Callable[[Any], None]) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        for transport in list(self._connections):
            end(transport)
        while self._connections:  # noqa: ASYNC110  (a turn or two of the loop, until they are told)
            await asyncio.sleep(0)

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Tracked(Connection):
    def __init__(self, answer: Any, opened: Any, connections: set[Any]) -> None:
        super().__init__(answer, opened)
        self._connections = connections
        self._on_tcp = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._connections.add(transport)
        self._on_tcp = isinstance(transport.get_extra_info("sockname"), tuple)
        answer = self._answer
        self._answer = lambda request: answer(_marked(request, on_tcp=self._on_tcp))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._transport)
        super().connection_lost(exc)


def _marked(request: Request, *, on_tcp: bool) -> Request:
    return replace(request, headers={**request.headers, "x-on-tcp": "1"}) if on_tcp else request


class _Books(Books):
    """The sidecar's answers, behind the rules of the test upstream."""

    def __init__(self, token: str) -> None:
        super().__init__(None)
        self._token = token
        self.events: dict[str, Event] = {}
        self.came: Counter[str] = Counter()
        self.room: int | None = None
        self.max_body: int | None = None
        self.stalled = False

    def rule(self, rule: dict[str, Any]) -> None:
        self._control({"rule": rule})

    def _served(self, request: Request) -> Reply:
        given = request.headers.get("authorization")
        if "x-on-tcp" in request.headers and given != f"Bearer {self._token}":
            return _problem(401, "the sidecar's token is missing or wrong")
        if request.path == "/v1/events":
            return self._take(request)
        headers = {**request.headers, "authorization": "Bearer configured"}
        return super()._served(replace(request, headers=headers, query={"livemode": "true", **request.query}))

    def _take(self, request: Request) -> Reply:
        if self.max_body is not None and len(request.body) > self.max_body:
            return _problem(413, f"the body is too large: at most {self.max_body} bytes are taken")
        if request.headers.get("content-type") != "application/x-ndjson":
            return _problem(415, "this double takes NDJSON")
        ids: list[str | None] = []
        rejected = []
        for position, line in enumerate(request.body.split(b"\n")):
            try:
                event = event_from_record(RECORDS.decode(line), id="made-here", now=1.0)
            except InvalidEvent as error:
                rejected.append({"position": position, "line": position + 1, "errors": error.problems})
                ids.append(None)
                continue
            if self.room == 0 and event.id not in self.events:
                break
            ids.append(event.id)
            self.came[event.id] += 1
            if event.id not in self.events:
                self.events[event.id] = event
                self.room = None if self.room is None else self.room - 1
        return self._told(ids, rejected, request)

    def _told(self, ids: list[str | None], rejected: list[Any], request: Request) -> Reply:
        lines = request.body.count(b"\n") + 1
        full = len(ids) < lines
        accepted = sum(one is not None for one in ids)
        document: dict[str, Any] = {"accepted": accepted, "ids": ids + [None] * (lines - len(ids))}
        if rejected:
            document["rejected"] = rejected
        if full:
            return _problem(503, "the spool is full", {"Retry-After": "7"}, **document)
        if not accepted:
            return _problem(400, "no event is valid", **document)
        if self.stalled:
            return _problem(504, "accepted, but not on the disk yet", **document)
        document["stored"] = request.query.get("wait") == "stored"
        return Reply(207 if rejected else 202, msgspec.json.encode(document))


def _problem(status: int, detail: str, headers: dict[str, str] | None = None, **extra: Any) -> Reply:
    document = {"type": "about:blank", "title": "Trouble", "status": status, "detail": detail, **extra}
    return Reply(
        status,
        msgspec.json.encode(document),
        {"Content-Type": "application/problem+json", **(headers or {})},
    )
