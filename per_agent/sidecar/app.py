"""From a request to a response, without sockets: the paths that take events in stand here, the rest is Starlette's.

A request is admitted first (`Host`, credential, once for all handlers), then answered; whatever goes wrong is
told in the shape of the path's wire form. A hot path is a function from a request to status, headers and
body: no request object, no middleware, no routing by patterns.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.routing import Router
from starlette.types import ASGIApp

from per_agent.log import Log
from per_agent.sidecar import (
    body,
    dead_letters,
    events,
    metrics,
    openapi,
    operations,
    payment_kit,
    per,
    problems,
)
from per_agent.sidecar.answers import Answer
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.service import Service
from per_agent.sidecar.upstreams import Upstreams

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Hot = Callable[[Service, Mapping[str, Any], Mapping[bytes, bytes], body.Receive], Awaitable[Answer]]

_HOT: Final[Mapping[str, tuple[tuple[str, ...], Hot]]] = {
    "/activities.add": (("GET", "POST"), per.add),
    "/v1/events": (("POST",), events.add),
}
_METER_EVENTS: Final = "/api/meter-events"
_ONCE: Final = frozenset(
    {b"host", b"authorization", b"proxy-authorization", b"content-type", b"content-encoding"}
)
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


class App:
    """The ASGI application of one sidecar. `scope["state"]["unix"]` says that a request came by the Unix socket."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._upstreams = Upstreams(service)
        self._log = Log()
        routes = [
            *operations.routes(service),
            *dead_letters.routes(service),
            *metrics.routes(service),
            *openapi.routes(),
        ]
        self._others = Router(
            routes, redirect_slashes=False
        )  # a whole Starlette would answer 500 by itself to what it does not know

    async def __call__(self, scope: Scope, receive: body.Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"{scope['type']} is not served here")
        began = time.perf_counter()
        path: str = scope["path"]
        reply = _Reply(send)
        try:
            given = self._admit(scope, path)
            hot = self._hot(path, scope["method"])
            if hot is not None:
                await reply.whole(await hot(self._service, scope, given, receive), given)
            else:
                scope["state"]["passed_on"] = path == "/reports.get" or path.startswith("/api/")
                scope["app"] = self  # so that the router raises what it would answer by itself
                await self._cold(path)(scope, self._bounded(receive), reply.send)
        except body.Disconnected:
            return
        except HTTPException as error:
            await self._tell(_unrouted(error), scope, reply)
        except Problem as problem:
            await self._tell(problem, scope, reply)
        except Exception:
            if reply.status:
                raise  # the answer has begun: the server breaks the connection off, so that it is not taken for whole
            self._log.bug(
                "the sidecar met a defect in a request", endpoint=_endpoint(path), request=self._id(scope)
            )
            await self._tell(Problem(500, "a defect in the sidecar; see its log"), scope, reply)
        finally:
            self._service.times.observe(_endpoint(path), reply.status, time.perf_counter() - began)

    async def close(self) -> None:
        """Give back the connections to the upstreams."""
        await self._upstreams.close()

    def _admit(self, scope: Scope, path: str) -> dict[bytes, bytes]:
        """The headers of a request that may go on, by name. Raises `Problem`."""
        headers = scope["headers"]
        given: dict[bytes, bytes] = dict(headers)
        if len(given) < len(headers):
            _refuse_repeats(headers)
        state = scope["state"]
        access = self._service.access
        if state.get("unix"):
            state["authorized_by"] = access.by_socket(path, given)
        else:
            server = scope["server"]
            access.check_host(given.get(b"host"), server[0] if server else None)
            state["authorized_by"] = access.by_token(path, given)
        return given

    def _hot(self, path: str, method: str) -> Hot | None:
        if path == _METER_EVENTS:  # its other methods are for the upstream
            return payment_kit.add if method == "POST" else None
        found = _HOT.get(path)
        if found is None:
            return None
        methods, hot = found
        if method not in methods:
            raise Problem(405, f"{path} takes {' and '.join(methods)}", headers={"allow": ", ".join(methods)})
        return hot

    def _cold(self, path: str) -> ASGIApp:
        if path == "/reports.get":
            return self._upstreams.reports
        return self._upstreams.api if path.startswith("/api/") else self._others

    def _bounded(self, receive: body.Receive) -> body.Receive:
        return body.bounded(receive, self._service.settings.sidecar.max_body)

    async def _tell(self, problem: Problem, scope: Scope, reply: "_Reply") -> None:
        if reply.status:
            raise problem
        response = problems.answer(problem, scope["path"])
        response.headers["x-request-id"] = self._id(scope)
        await response(scope, _nothing_more, reply.send)

    def _id(self, scope: Scope) -> str:
        """The request's id: its client's, else one made here, the same each time it is asked for."""
        state = scope["state"]
        if "id" not in state:
            brought = dict(scope["headers"]).get(b"x-request-id", b"")
            state["id"] = (
                brought.decode() if _REQUEST_ID.fullmatch(brought) else self._service.new_id(time.time())
            )
        return str(state["id"])


class _Reply:
    """The way back to the client; knows which status went out, 0 while none has."""

    __slots__ = ("_send", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def whole(self, answer: Answer, given: Mapping[bytes, bytes]) -> None:
        self.status, headers, content = answer
        brought = given.get(b"x-request-id")
        if brought is not None and _REQUEST_ID.fullmatch(brought):
            headers.append((b"x-request-id", brought))
        await self._send({"type": "http.response.start", "status": self.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": content})


def _refuse_repeats(headers: list[tuple[bytes, bytes]]) -> None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and name in _ONCE:
            raise Problem(400, f"the header {name.decode('latin-1')} is given twice")
        seen.add(name)


def _endpoint(path: str) -> str:
    """The label of *path* in metrics and logs: one of a few, and never an id that stands in it."""
    if path in ("/activities.add", "/v1/events", _METER_EVENTS, "/reports.get"):
        return path
    return "/api" if path.startswith("/api/") else "other"


def _unrouted(error: HTTPException) -> Problem:
    """The router found no handler for a request."""
    if error.status_code == 404:
        return Problem(404, "there is nothing at this path; /openapi.json tells what there is")
    return Problem(error.status_code, error.detail, headers=error.headers)


async def _nothing_more() -> MutableMapping[str, Any]:
    return {"type": "http.disconnect"}
