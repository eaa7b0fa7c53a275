"""The sidecar's own protocol and application in this process, on real sockets, with a look at which way requests go."""

import asyncio
import re
import socket
import threading
from pathlib import Path
from typing import Any, Self

import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from per_agent import Agent, MemoryDestination
from per_agent.settings import Secret, Settings, SidecarSettings
from per_agent.sidecar.access import Access
from per_agent.sidecar.app import App
from per_agent.sidecar.bounds import Bounds
from per_agent.sidecar.protocol import Protocol
from per_agent.sidecar.service import Service

TOKEN = "token-of-tests"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Fronted:
    """A sidecar without a process, on loopback and on a Unix socket.

    Attributes:
        service, hot: its own, to be looked at, and changed as a reload does it.
        tasks: how many requests took the long way, and so a task each.
        gate: closed, it keeps such requests from the application.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._path = str(folder / "s")
        chosen = Settings(sidecar=SidecarSettings(token=Secret(TOKEN), **settings))
        self.agent = Agent(folder / "data", [MemoryDestination()])
        self.service = Service(self.agent, chosen, Access(TOKEN, chosen))
        self._app = App(self.service)
        self.hot = self._app.hot
        self.tasks = 0
        self.gate = threading.Event()
        self.gate.set()
        self.bounds = Bounds(100, 30.0, 75.0)
        self.bounds.renew(b"today")
        self._listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
        self._listeners[1].bind(self._path)
        self.port: int = self._listeners[0].getsockname()[1]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fronted")

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async def counted(scope: Any, receive: Any, send: Any) -> None:
            self.tasks += 1
            while not self.gate.is_set():  # noqa: ASYNC110  (it belongs to another thread)
                await asyncio.sleep(0.005)
            await self._app(scope, receive, send)

        config = Config(
            counted,
            ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False, proxy_headers=False,
            server_header=False,
        )  # fmt: skip
        config.load()
        state = ServerState()
        state.default_headers = [(b"date", b"today")]
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        servers = [
            await self._loop.create_server(
                lambda unix=each.family == socket.AF_UNIX: Protocol(
                    config, state, {"unix": unix}, self.bounds, self.hot
                ),
                sock=each,
            )
            for each in self._listeners
        ]
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await self._app.close()

    def __enter__(self) -> Self:
        self.agent.start(wait=True)
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        self.agent.close()
        for each in self._listeners:
            each.close()

    def accepted(self) -> int:
        """As the books say once all is delivered: what is being stored while they are read is in them twice."""
        assert self.agent.flush(30)
        return self.agent.books()["memory"].accepted

    def connect(self, *, unix: bool = False) -> "Connection":
        made = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        made.settimeout(20)
        made.connect(self._path if unix else ("127.0.0.1", self.port))
        return Connection(made)


class Connection:
    """One connection of a client."""

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        self._came = b""

    def ask(self, *pieces: bytes) -> bytes:
        """The next answer, once *pieces* are sent: each by itself, where the server reads as fast as they come."""
        for piece in pieces:
            self.socket.sendall(piece)
        return self.answer()

    def answer(self) -> bytes:
        """The next answer, b"" where the other side closed before it was whole."""
        while b"\r\n\r\n" not in self._came:
            if not self._more():
                return b""
        end = self._came.index(b"\r\n\r\n") + 4
        length = _LENGTH.search(self._came, 0, end)
        whole = end + int(length[1] if length else 0)
        while len(self._came) < whole:
            if not self._more():
                return b""
        answer, self._came = self._came[:whole], self._came[whole:]
        return answer

    def _more(self) -> bool:
        try:
            piece = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        self._came += piece
        return bool(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def head(line: bytes, *fields: bytes, token: str | None = TOKEN) -> bytes:
    """A request's head."""
    proof = [] if token is None else [b"Authorization: Bearer " + token.encode()]
    return b"\r\n".join([line + b" HTTP/1.1", b"Host: localhost", *proof, *fields, b"", b""])


def request(line: bytes, body: bytes, *fields: bytes, kind: bytes = b"application/json") -> bytes:
    """A request with a body of this kind."""
    length = b"Content-Length: %d" % len(body)
    return head(line, b"Content-Type: " + kind, length, *fields) + body
