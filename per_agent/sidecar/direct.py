"""The short way through uvicorn's HTTP protocol: a request is answered in the callback in which it arrived whole.

No task is made for it, no ASGI message is sent, and where its head is one that came before, it is not even parsed:
a client sends the same head with each request, but for the query, so what the parser made of it once is known.
The parser stands between two messages meanwhile, and sees nothing of such a request. All others go uvicorn's way.

However many requests come in one piece, a few are answered at once; the rest queues up as uvicorn has it, so that
other connections get their turn, and who sends too far ahead is told so.
"""

import asyncio
import re
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from per_agent.sidecar.asked import Asked
from per_agent.sidecar.bounds import MAX_URL, Bounds
from per_agent.sidecar.hot import Hot
from per_agent.sidecar.transport import Corked

_AT_ONCE: Final = 16  # requests of one connection
_END: Final = b"\r\n\r\n"
_VERSION: Final = b" HTTP/1.1\r\n"
# Plain to see: no escape in the path, no fragment, nothing that is not ASCII.
_QUERY: Final = re.compile(rb"[!\"$-~]*")
_TARGET: Final = re.compile(rb"(/[a-z0-9./-]+)(?:\?(%b))?" % _QUERY.pattern)


class Direct(HttpToolsProtocol):
    """A connection whose requests are answered at once where *hot* can."""

    transport: Corked  # type: ignore[assignment]  # it delegates all else

    def __init__(
        self, config: Config, server_state: ServerState, state: dict[str, Any], bounds: Bounds, hot: Hot
    ) -> None:
        super().__init__(config, server_state, state)
        self._bounds = bounds
        self._hot = hot
        self._known = hot.known
        self.answered = False  # a request at once, since somebody looked
        self._left = 0  # requests that may still be answered at once
        self._way = b""  # that it came by: who may do what depends on it
        self._unknown = b""  # the head of the next request that the parser sees
        self._asked: Asked | None = None  # by the request that arrives, while it may go the short way
        self._query = self._content = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._way = b"unix " if self.app_state["unix"] else b"%b " % (self.server or ("",))[0].encode()

    @property
    def _answering(self) -> bool:
        """Whether a request is with the application, and its answer is not whole."""
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's annotation leaves the None out
        return cycle is not None and not cycle.response_complete

    def answer_known(self, data: bytes) -> bytes:
        """Answer the whole requests that *data* begins with and whose heads are known. Gives what is left of it.

        To be called with what came after a whole request, before the parser sees it.
        """
        self._left = _AT_ONCE
        self._unknown = b""
        if not self._may_answer():
            return data
        way, known, at = self._way, self._known, 0
        while self._left:
            end = data.find(_END, at)
            stop = data.find(_VERSION, at, end)
            if end < 0 or stop < 0 or stop - at > MAX_URL:
                break
            mark = data.find(b"?", at, stop)
            query = data[mark + 1 : stop] if mark >= 0 else b""
            head = b"%b%b%b" % (way, data[at : mark if mark >= 0 else stop], data[stop:end])
            found = known.get(head)
            if found is None:
                self._unknown = head
                break
            asked, length = found
            body = end + len(_END)
            rest = body + length
            if len(data) < rest or (query and _QUERY.fullmatch(query) is None):
                break
            if not self._answer(asked, query, data[body:rest]):
                break
            at = rest
            if at == len(data):
                return b""
        return data[at:]

    # The parser's calls

    def on_headers_complete(self) -> None:
        unknown, self._unknown = self._unknown, b""
        self._asked = asked = self._plain()
        if asked is None:
            super().on_headers_complete()
        # Where it saw as many lines as there are, the head is what it has read, no less and no more.
        elif unknown.count(b"\n") == len(self.headers):
            self._hot.learn(unknown, asked)

    def on_body(self, body: bytes) -> None:
        if self._asked is None:
            super().on_body(body)
        else:
            self._content += body

    def on_message_complete(self) -> None:
        asked = self._asked
        if asked is not None:
            if self._answer(asked, self._query, self._content):
                self._asked = None
                return
            self.take_long_way()
        super().on_message_complete()

    def take_long_way(self) -> None:
        """Hand the request to the application, if it was kept from it until now."""
        if self._asked is not None:
            self._asked = None
            super().on_headers_complete()
            if self._content:
                super().on_body(self._content)

    def _plain(self) -> Asked | None:
        """What is asked for, if it may go the short way."""
        parser = self.parser
        target = _TARGET.fullmatch(self.url)
        if (
            target is None
            or self.expect_100_continue
            or parser.get_http_version() != "1.1"
            or parser.should_upgrade()
            or not parser.should_keep_alive()
            or not self._may_answer()
        ):
            return None
        self._query, self._content = target[2] or b"", b""
        method, path = parser.get_method().decode(), target[1].decode()
        unix = self.app_state["unix"]
        return self._hot.asked(method, path, self.headers, self.server[0] if self.server else None, unix=unix)

    # Answering

    def _may_answer(self) -> bool:
        return not (
            self._left == 0
            or self._bounds.draining
            or self._answering
            or self.flow.write_paused
            or self.transport.is_closing()
        )

    def _answer(self, asked: Asked, query: bytes, content: bytes) -> bool:
        """Answer a whole request. False: it takes the long way."""
        answer = self._hot.answer(asked, query, content)
        if answer is None:
            self._left = 0  # what is behind it waits for it
            return False
        self._left -= 1
        self.answered = True
        self.transport.write_at_once(answer.rendered(self._bounds.begin))
        return True
