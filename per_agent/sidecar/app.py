"""From a request to a response, without sockets: what takes events in is `hot`'s, the rest is Starlette's.

A request is admitted first (`Host`, credential, once for all handlers), then answered; whatever goes wrong is
told in the shape of the path's wire form.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import Router
from starlette.types import ASGIApp

from per_agent.sidecar import body, dead_letters, metrics, openapi, operations, problems
from per_agent.sidecar.access import request_id
from per_agent.sidecar.answer import Answer
from per_agent.sidecar.answers import until_stored
from per_agent.sidecar.asked import Asked
from per_agent.sidecar.hot import FORMS, Form, Hot, endpoint, labelled
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.service import Service
from per_agent.sidecar.upstreams import Upstreams

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class App:
    """The ASGI application of one sidecar. `scope["state"]["unix"]` says that a request came by the Unix socket.

    Attributes:
        hot: the short way, for whoever has a request whole.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._upstreams = Upstreams(service)
        self.hot = Hot(service)
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
            asked = self._admit(scope, path)
            form = _form(path, asked.method)
            if form is not None:
                answer = await self._take(form, asked, scope["query_string"], receive)
                await reply.whole(labelled(answer, asked.request_id))
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
            await reply.whole(self.hot.defect(path, self._id(scope)))
        finally:
            self._service.times.observe(endpoint(path), reply.status, time.perf_counter() - began)

    async def close(self) -> None:
        """Give back the connections to the upstreams."""
        await self._upstreams.close()

    def _admit(self, scope: Scope, path: str) -> Asked:
        """The request, if it may go on. Raises `Problem`."""
        state, server = scope["state"], scope["server"]
        asked = self._service.access.admit(
            scope["method"],
            path,
            scope["headers"],
            server[0] if server else None,
            unix=bool(state.get("unix")),
        )
        state["authorized_by"] = asked.proof
        return asked

    async def _take(self, form: Form, asked: Asked, query: bytes, receive: body.Receive) -> Answer:
        """The answer of a hot path. Raises `Problem`."""
        service = self._service
        content = await body.read(receive, asked.given, self.hot.limit(form))
        taken = form.take(service, asked, query, content)
        if taken is None:
            assert form.take_all is not None
            return await form.take_all(service, asked, query, content)
        answer, waiting = taken
        if waiting:
            await until_stored(service, waiting)
        return answer

    def _cold(self, path: str) -> ASGIApp:
        if path == "/reports.get":
            return self._upstreams.reports
        return self._upstreams.api if path.startswith("/api/") else self._others

    def _bounded(self, receive: body.Receive) -> body.Receive:
        return body.bounded(receive, self._service.settings.sidecar.max_body)

    async def _tell(self, problem: Problem, scope: Scope, reply: "_Reply") -> None:
        if reply.status:
            raise problem
        await reply.whole(problems.answer(problem, scope["path"], self._id(scope)))

    def _id(self, scope: Scope) -> bytes:
        """The request's id: its client's, else one made here."""
        return request_id(dict(scope["headers"])) or self.hot.new_id()


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

    async def whole(self, answer: Answer) -> None:
        for message in answer.messages():
            await self.send(message)


def _form(path: str, method: str) -> Form | None:
    """The hot path that a request is for. Raises `Problem` where its method is none of the path's."""
    form = FORMS.get(path)
    if form is None or method in form.methods:
        return form
    if path.startswith("/api/"):
        return None  # its other methods are for the upstream
    allowed = form.methods
    raise Problem(405, f"{path} takes {' and '.join(allowed)}", headers={"allow": ", ".join(allowed)})


def _unrouted(error: HTTPException) -> Problem:
    """The router found no handler for a request."""
    if error.status_code == 404:
        return Problem(404, "there is nothing at this path; /openapi.json tells what there is")
    return Problem(error.status_code, error.detail, headers=error.headers)
