"""uvicorn's HTTP protocol, with bounds on what a sender may do to it.

uvicorn takes headers of any length, any number of requests ahead of their answers, and waits for a sender for
ever. Here the head of a request is bounded in bytes and in number, a request must arrive within a time, an answer
must be read within one, and connections are counted. A refusal is answered after all that came before it was,
and the connection then lingers for a moment: to close it on unread bytes would reset it, and the answer with it.

A client may offer another protocol, and every Java client does (`Upgrade: h2c`); it does without, which is what the
offer allows for. The parser, though, takes such a request for one without a body, and would read the body as the
next request (https://github.com/MagicStack/httptools/issues/124): a second parser, which is told of no offer, reads
on from there.

A stop is gentle: a connection that is idle, or so new that its request is still to come, is given a moment,
and its next request is answered with `Connection: close`; only then is it closed.
"""

import asyncio
from typing import Any, Final, Literal

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from per_agent.sidecar.bounds import MAX_URL, Bounds
from per_agent.sidecar.direct import Direct
from per_agent.sidecar.hot import Hot
from per_agent.sidecar.transport import Corked, Flow

MAX_HEAD: Final = 64 * 1024  # bytes of the request line and all headers
MAX_HEADERS: Final = 100
MAX_AHEAD: Final = 100  # requests that a client may send ahead of its answers
DRAIN: Final = 1.0
"""Seconds that an idle connection is given at a stop: a client that asks steadily asks once more, and is told."""
_LINGER: Final = 1.0  # seconds between a refusal and the end of its connection


class Protocol(Direct):
    """One connection. *state* goes to the application with each request as `scope["state"]`."""

    def __init__(
        self, config: Config, server_state: ServerState, state: dict[str, Any], bounds: Bounds, hot: Hot
    ) -> None:
        super().__init__(config, server_state, state, bounds, hot)
        self._stage: Literal["idle", "head", "body", "replay"] = "idle"  # of the request that is arriving
        self._skips_body = False  # the parser does, because another protocol is offered
        self._untold = 0  # bytes that the parser has taken and told nothing of: a head, a trailer
        self._fields = 0  # bytes of the header fields so far
        self._refusal: tuple[int, str] | None = None
        self._refused = False
        self._since: float | None = None  # when the request began that is arriving, on the loop's clock
        self._idle_since: float | None = None  # a request was answered at once
        self._paused_since: float | None = None  # when the client stopped reading
        self._closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.transport = Corked(transport, self.loop)
        self.flow = Flow(transport, self.pipeline)
        self._since = self.loop.time()
        self._bounds.opened[self.app_state["unix"]] += 1
        if self._bounds.opened[self.app_state["unix"]] > self._bounds.connections:
            self._refuse(503, "too many connections are open")
        if self._bounds.draining:  # it was accepted in the same breath as the stop
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing is not None:
            self._closing.cancel()
        self._bounds.opened[self.app_state["unix"]] -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return  # read and forgotten, so that the answer is not lost in a reset
        self._unset_keepalive_if_required()
        if self._stage == "idle":
            data = self.answer_known(data)
            if not data:
                self._since = None
                return
        self.answered = False
        self._idle_since = None
        if self._since is None:
            self._since = self.loop.time()
        # Looked at before the parser is fed: it gathers a header's value, however long, before it tells.
        if self._untold > MAX_HEAD:
            self._refuse(431, "the request's head is too large")
            return
        self._untold += len(data)
        while data or self._skips_body:
            try:
                if self._skips_body:
                    self._replay()
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offered:
                data = data[offered.args[0] :]
            except httptools.HttpParserError:
                self._refuse(*(self._refusal or (400, "this is not HTTP/1.1")))
                return
            else:
                self.take_long_way()
                return

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for it, uvicorn gives none
        """The client sends no more; whether it still gets an answer: it does where its request is whole."""
        if not self._answering or (self._stage != "idle" and not self._refused):
            return False
        self.cycle.keep_alive = False
        self.loop.call_soon(self._leave)  # after the application has begun
        return True

    def _leave(self) -> None:
        # Whether the client is gone or only silent does not show. An upstream is not kept busy for the former.
        if self.cycle.scope["state"].get("passed_on"):
            self.transport.close()

    # The parser's calls

    def on_message_begin(self) -> None:
        if self._stage == "replay":
            return
        super().on_message_begin()
        self._stage = "head"
        self._fields = 0
        if self._since is None:  # one that was pipelined
            self._since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        if self._stage == "replay":
            return
        super().on_url(url)
        if len(self.url) > MAX_URL:
            self._give_up(414, "the URL is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        # All of what uvicorn's does, too: it is called more often than anything else.
        self._fields += len(name) + len(value)
        headers = self.headers
        if len(headers) >= MAX_HEADERS or self._fields > MAX_HEAD:
            self._give_up(
                431, f"the headers are too many or too long: {MAX_HEADERS} of {MAX_HEAD} bytes are taken"
            )
        if self._stage == "head":  # a trailer is no header: what was let in must not change afterwards
            name = name.lower()
            headers.append((name, value))
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        if self._stage == "replay":
            self._stage = "body"
            return
        if len(self.pipeline) >= MAX_AHEAD:
            self._give_up(503, "too many requests were sent ahead of their answers")
        super().on_headers_complete()
        self._stage = "body"
        self._untold = 0
        self._skips_body = self.parser.should_upgrade() and bool(self._framing())
        # A client that asks before it sends a body may not send it after another answer: what follows is unclear.
        if self._bounds.draining or self.expect_100_continue:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._untold = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._skips_body:
            return
        self._stage = "idle"
        self._untold = 0
        self._since = None
        super().on_message_complete()

    def _framing(self) -> list[tuple[bytes, bytes]]:
        """The headers that say where the body ends; none where there is no body."""
        return [each for each in self.headers if each[0] in (b"content-length", b"transfer-encoding")]

    def _replay(self) -> None:
        """Let a new parser read the body that the old one skipped, and what follows."""
        self._skips_body = False
        self._stage = "replay"
        self.parser = httptools.HttpRequestParser(self)
        fields = b"".join(b"%s: %s\r\n" % each for each in self._framing())
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + fields + b"\r\n")

    def _give_up(self, status: int, words: str) -> None:
        self._refusal = (status, words)
        raise ValueError(words)  # the parser stops, and says so to `data_received`

    # Bounds

    def sweep(self, now: float) -> None:
        """Called every second or so with the loop's clock: refuse what takes too long to come, or to be read."""
        patience = self._bounds.request_timeout
        if self._since is not None and now - self._since > patience and not self._refused:
            if self._stage == "idle":
                self.transport.close()  # it was opened, and never said a word
            else:
                self._refuse(408, "the request took too long to arrive")
        if self.answered:
            self.answered = False
            self._idle_since = now
        if self._idle_since is not None and now - self._idle_since > self._bounds.idle_timeout:
            self.transport.close()
        if self.transport.is_closing() and self._paused_since is None:
            self._paused_since = now  # closed, and still here: its client has not read all
        if self._paused_since is not None and now - self._paused_since > patience:
            self.transport.abort()

    def pause_writing(self) -> None:
        self._paused_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._paused_since = None
        super().resume_writing()

    def _refuse(self, status: int, words: str) -> None:
        """Answer what is arriving before the application sees it, and close; after the answers that are owed."""
        self._refused = True
        self._refusal = status, words
        self._since = None
        self._bounds.refused += 1
        owed = self._answering
        if self._stage in ("body", "replay"):  # its head was good, so the application has it, or will have it
            cycle = self.cycle
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:  # it did not wait for the body
                self.transport.close()
                return
            owed = bool(self.pipeline)
            if owed:
                self.pipeline.popleft()
        if not owed:
            self._tell_refusal(status, words)

    def on_response_complete(self) -> None:
        was_last = not self.pipeline
        super().on_response_complete()
        if was_last and self._refused and self._refusal is not None:
            self._unset_keepalive_if_required()
            self._tell_refusal(*self._refusal)

    def _tell_refusal(self, status: int, words: str) -> None:
        if self.transport.is_closing():
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
