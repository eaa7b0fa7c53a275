"""uvicorn's HTTP protocol, with bounds on what a sender may do to it.

uvicorn takes headers of any length and waits for a sender for ever. Here the head of a request is bounded in
bytes and in number, a request must arrive within a time, an answer must be read within one, and connections
are counted. A refusal is answered, and the connection then lingers for a moment: to close it on unread bytes
would reset it, and the answer with it.

A stop is gentle: a connection that is idle, or so new that its request is still to come, is given a moment,
and its next request is answered with `Connection: close`; only then is it closed.
"""

import asyncio
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

MAX_HEAD: Final = 64 * 1024  # bytes of the request line and all headers; ids of an activity may stand there
MAX_URL: Final = 32 * 1024
MAX_HEADERS: Final = 100
DRAIN: Final = 1.0
"""Seconds that an idle connection is given at a stop: a client that asks steadily asks once more, and is told."""
_LINGER: Final = 1.0  # seconds between a refusal and the end of its connection


class Bounds:
    """What all connections of one sidecar share: limits, and whether it is stopping.

    Attributes:
        connections: the most that may be open.
        request_timeout: seconds that a request may take to arrive, and its client to read the answer.
        draining: connections are closed after their next answer.
        refused: how many requests were refused before the application saw them.
    """

    def __init__(self, connections: int, request_timeout: float) -> None:
        self.connections = connections
        self.request_timeout = request_timeout
        self.draining = False
        self.refused = 0


class _Corked:
    """A transport that sends an answer's head with what follows in the same breath: one system call, not two."""

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held:
            self._transport.write(self._held + data)
            self._held = b""
        else:
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def _flush(self) -> None:
        if self._held:
            self._transport.write(self._held)
            self._held = b""


class Protocol(HttpToolsProtocol):
    """One connection. *state* goes to the application with each request as `scope["state"]`."""

    def __init__(
        self, config: Config, server_state: ServerState, state: dict[str, Any], bounds: Bounds
    ) -> None:
        super().__init__(config, server_state, state)
        self._bounds = bounds
        self._head = 0  # bytes that came of a head that is not whole; -1 in a body
        self._fields = 0  # bytes of the header fields so far
        self._refusal: tuple[int, str] | None = None
        self._refused = False
        self._since: float | None = None  # when the request began that is arriving, on the loop's clock
        self._paused_since: float | None = None  # when the client stopped reading
        self._closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.transport = _Corked(transport, self.loop)  # type: ignore[assignment]  # it delegates all else
        self._since = self.loop.time()
        if len(self.connections) > self._bounds.connections:
            self._refuse(503, "too many connections are open")
        if self._bounds.draining:  # it was accepted in the same breath as the stop
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing is not None:
            self._closing.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return  # read and forgotten, so that the answer is not lost in a reset
        self._unset_keepalive_if_required()
        if self._since is None:
            self._since = self.loop.time()
        if self._head >= 0:
            # Looked at before the parser is fed: it gathers a header's value, however long, before it tells.
            if self._head > MAX_HEAD:
                self._refuse(431, "the request's head is too large")
                return
            self._head += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "no upgrade is known here")
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or (400, "this is not HTTP/1.1")))

    # The parser's calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._fields = 0
        if self._since is None:  # one that was pipelined
            self._since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL:
            self._give_up(414, "the URL is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += len(name) + len(value)
        if len(self.headers) >= MAX_HEADERS or self._fields > MAX_HEAD:
            self._give_up(
                431, f"the headers are too many or too long: {MAX_HEADERS} of {MAX_HEAD} bytes are taken"
            )
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head = -1
        super().on_headers_complete()
        if self._bounds.draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._head = 0
        self._since = None
        super().on_message_complete()

    def _give_up(self, status: int, words: str) -> None:
        self._refusal = (status, words)
        raise ValueError(words)  # the parser stops, and says so to `data_received`

    # Bounds

    def sweep(self, now: float) -> None:
        """Called every second or so with the loop's clock: refuse what takes too long to come, or to be read."""
        patience = self._bounds.request_timeout
        if self._since is not None and now - self._since > patience and not self._refused:
            if self._head == 0:
                self.transport.close()  # it was opened, and never said a word
            else:
                self._refuse(408, "the request took too long to arrive")
        if self._paused_since is not None and now - self._paused_since > patience:
            self.transport.abort()

    def pause_writing(self) -> None:
        self._paused_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._paused_since = None
        super().resume_writing()

    def _refuse(self, status: int, words: str) -> None:
        """Answer before the application sees anything, and close."""
        self._refused = True
        self._since = None
        self._bounds.refused += 1
        if self.transport.is_closing():
            return
        if self._answering:
            # The application learns that its client is gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n" % len(words)
            + retry
            + b"connection: close\r\n\r\n"
            + words.encode()
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._closing = self.loop.call_later(_LINGER, self.transport.close)

    # Stopping

    def shutdown(self) -> None:
        """Close this connection when it is idle for a moment, else after its answer."""
        if self._answering:
            self.cycle.keep_alive = False
        self._closing = self.loop.call_later(DRAIN, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self._answering:
            self.transport.close()

    @property
    def _answering(self) -> bool:
        """Whether a request is with the application, and its answer is not whole."""
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's annotation leaves the None out
        return cycle is not None and not cycle.response_complete
