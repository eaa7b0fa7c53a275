"""An ASGI application on a real socket for tests: uvicorn in a thread, and raw bytes from and to it."""

import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Self

import uvicorn
from waiting import until

from per_agent.sidecar import problems
from per_agent.sidecar.body import Disconnected
from per_agent.sidecar.problems import Problem

App = Callable[[Any, Any, Any], Awaitable[None]]


class Served:
    """*app* on loopback, and *close* at the end, in the loop that served.

    *authorized_by* is what the application is told of each request; `Problem` and `Disconnected` become what the
    sidecar makes of them.
    """

    def __init__(
        self, app: App, close: Callable[[], Awaitable[None]] | None = None, authorized_by: str = "socket"
    ) -> None:
        self._app = app
        self._close = close
        self.authorized_by = authorized_by
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        config = uvicorn.Config(
            self._answer,
            http="httptools",
            loop="uvloop",
            ws="none",
            lifespan="on",
            interface="asgi3",
            proxy_headers=False,
            timeout_graceful_shutdown=1,
            log_config=None,
            access_log=False,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="served")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self._server.started or not self._thread.is_alive())
        assert self._server.started
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._listener.close()

    def connect(self, timeout: float = 20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def ask(self, request: bytes) -> bytes:
        """All that comes back for *request*, until the connection is closed; it must ask for that."""
        with self.connect() as connection:
            connection.sendall(request)
            return drained(connection)

    def get(self, target: str, *headers: str, method: str = "GET", body: bytes = b"") -> "Answered":
        """The answer to one request with these *headers*, and those that it needs."""
        length = [f"Content-Length: {len(body)}"] if body else []
        lines = [
            f"{method} {target} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            *headers,
            *length,
            "Connection: close",
        ]
        return Answered(self.ask("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body))

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            if self._close is not None:
                await self._close()
            await send({"type": "lifespan.shutdown.complete"})
            return
        scope["state"]["authorized_by"] = self.authorized_by
        try:
            await self._app(scope, receive, send)
        except Disconnected:
            return
        except Problem as problem:
            for message in problems.answer(problem, scope["path"]).messages():
                await send(message)


class Answered:
    """An answer taken apart. `body` is as it stood on the wire, less the chunks' framing."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        head, _, rest = raw.partition(b"\r\n\r\n")
        status_line, *lines = head.split(b"\r\n")
        self.status = int(status_line.split(b" ")[1])
        self.headers = [
            (name.lower(), value.strip()) for name, _, value in (e.partition(b":") for e in lines)
        ]
        self.is_chunked = self.all(b"transfer-encoding") == [b"chunked"]
        self.body, self.is_whole = _unchunked(rest) if self.is_chunked else (rest, self._has_length(rest))

    def all(self, name: bytes) -> list[bytes]:
        """The values of the headers of this name, in their order."""
        return [value for each, value in self.headers if each == name]

    def _has_length(self, rest: bytes) -> bool:
        lengths = self.all(b"content-length")
        return not lengths or len(rest) == int(lengths[0])


def drained(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    came = bytearray()
    while piece := connection.recv(65536):
        came += piece
    return bytes(came)


def received(connection: socket.socket, mark: bytes) -> bytes:
    """What comes until it contains *mark*, and a little more, maybe."""
    came = bytearray()
    while mark not in came:
        piece = connection.recv(65536)
        assert piece, f"closed before {mark!r}; until then: {bytes(came)!r}"
        came += piece
    return bytes(came)


def _unchunked(rest: bytes) -> tuple[bytes, bool]:
    """The body in *rest*, and whether its end came."""
    body = bytearray()
    while True:
        line, found, rest = rest.partition(b"\r\n")
        if not found:
            return bytes(body), False
        size = int(line, 16)
        if size == 0:
            return bytes(body), rest == b"\r\n"
        body += rest[:size]
        if len(rest) < size + 2:
            return bytes(body), False
        rest = rest[size + 2 :]
