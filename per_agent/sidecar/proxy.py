"""`Proxy`: what is not ours to answer goes to an upstream as it came, and its answer comes back as it is.

Context: clients sign their requests over method, path, query and body, and read the answers of a service that
we know in parts only. Choice: nothing is parsed that need not be. The target goes up in the very bytes that
came, past httpx's own URL, which would escape them anew; bodies are handed on piece by piece, as fast as the
slower side takes them. It is httpx's transport that asks, without its client: a client keeps cookies, parses
redirects (and fails at those that it cannot parse), and has no deadline over a whole exchange either.

Given up: trailers, interim answers (`100 Continue` is the server's own), and upgrades; and an answer that comes
early is seen only when the body is through, or the upstream takes no more of it. Nothing is asked twice.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final, Literal

import httpx
from starlette.types import Receive, Scope, Send

from per_agent.destinations.http import clip
from per_agent.settings.address import socket_of
from per_agent.sidecar.body import Disconnected
from per_agent.sidecar.problems import Problem

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authentication-info",
        b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
_NEVER_UP: Final = _HOP_BY_HOP | {b"host", b"content-length"}  # these are written anew
# The server that we stand behind writes a `Date` into every answer, and two would be none.
_NEVER_DOWN: Final = _HOP_BY_HOP | {b"date"}
_UNTOUCHABLE: Final = frozenset({"CONNECT", "TRACE"})
_DOTS: Final = re.compile(r"(?:^|[/\\])\.{1,2}(?:$|[/\\;])")  # in a path that is unescaped
_CONNECTIONS: Final = 64
_KEPT_OPEN: Final = 8
# As in `destinations.http`: Node's servers close an idle connection after 5 s.
_KEEPALIVE: Final = 4.0
_LONGEST_QUEUE: Final = 2.0  # seconds that a request waits for one of the connections


class Proxy:
    """Passes requests on to the upstream at *address*: a base URL, or `unix:/path` of a sidecar.

    An ASGI application. `scope["state"]["authorized_by"]` must say what a request was let in for; where that is
    `"header"`, its `Authorization` is ours and stays here. Raises `Problem` while nothing was answered yet: 502
    where the upstream cannot be reached or is no HTTP server, 504 where it takes too long, 503 where too many
    requests are under way, 400 and 501 for what cannot be passed on; and `Disconnected` where the client left
    before its request was whole. Once an answer has begun it is either passed on whole, or left without an end:
    then the server breaks the client's connection off, too, and nobody takes what came for the whole.

    Args:
        name: what the problems call the upstream.
        address: where it is.
        credential: the token that is presented for callers without one of their own; asked for each request.
        timeout: seconds until the answer's headers are there, and between two pieces of its body. The time in
            which a client sends its own body is not counted.
        presented: the header for the credential. A sidecar is told by `proxy-authorization` who passes a
            request on to it, whatever the caller's own `Authorization` is.
    """

    def __init__(
        self,
        name: str,
        address: str,
        credential: Callable[[], str | None],
        *,
        timeout: Callable[[], float],
        presented: Literal["authorization", "proxy-authorization"] = "authorization",
    ) -> None:
        socket = socket_of(address)
        self._name = name
        self._url = httpx.URL(address if socket is None else "http://localhost")
        self._base = self._url.raw_path.rstrip(b"/")
        self._credential = credential
        self._timeout = timeout
        self._presented = presented.encode()
        self._transport = httpx.AsyncHTTPTransport(
            verify=httpx.create_ssl_context(trust_env=False),
            trust_env=False,
            limits=httpx.Limits(
                max_connections=_CONNECTIONS,
                max_keepalive_connections=_KEPT_OPEN,
                keepalive_expiry=_KEEPALIVE,
            ),
            uds=None if socket is None else str(socket),
        )

    def __repr__(self) -> str:
        return f"Proxy({self._name!r}, {str(self._url)!r})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        upload = _Upload(receive)
        exchange = asyncio.create_task(self._exchange(scope, upload, send))
        leaving = asyncio.create_task(upload.client_left())
        try:
            await asyncio.wait((exchange, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            exchange.cancel()
            leaving.cancel()
            await asyncio.wait((exchange, leaving))
        if not exchange.cancelled():
            exchange.result()

    async def close(self) -> None:
        """Give back the connections. Requests under way are broken off."""
        await self._transport.aclose()

    async def _exchange(self, scope: Scope, upload: "_Upload", send: Send) -> None:
        seconds = self._timeout()
        request = self._request(scope, upload, seconds)
        try:
            async with asyncio.timeout(seconds) as upload.deadline:
                response = await self._transport.handle_async_request(request)
        except (httpx.TransportError, TimeoutError) as error:
            raise self._problem(error, seconds, begun=upload.begun) from error
        # Also where the upstream answered before it had the whole body: what is left of it is of no use.
        upload.is_over.set()
        try:
            is_whole = await self._hand_down(response, send)
        finally:
            await response.aclose()
        # Last of all: with this the client has its answer, and the watch over it ends this task.
        if is_whole:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _request(self, scope: Scope, upload: "_Upload", seconds: float) -> httpx.Request:
        method, query = scope["method"], scope["query_string"]
        if method in _UNTOUCHABLE:
            # The answer to TRACE shows the request, and so our credential.
            raise Problem(501, f"{method} is not passed on")
        if _DOTS.search(scope["path"]):
            # Some server on the way may walk up by it, out of the base path, and take our credential along.
            raise Problem(400, "a path with . or .. as a step is not passed on")
        target = self._base + scope["raw_path"] + (b"?" + query if query else b"")
        headers = [(b"host", self._url.netloc), *_upward(scope["headers"]), *upload.framing(scope["headers"])]
        if scope["state"]["authorized_by"] == "header":
            headers = [each for each in headers if each[0] != b"authorization"]
        token = self._credential()
        if token is not None and (self._presented != b"authorization" or not _brings_own(headers, query)):
            headers.append((self._presented, b"Bearer " + token.encode()))
        waits = {"connect": seconds, "read": seconds, "write": seconds, "pool": min(seconds, _LONGEST_QUEUE)}
        return httpx.Request(
            method,
            self._url,
            headers=headers,
            stream=upload,
            extensions={"target": target, "timeout": waits},
        )

    async def _hand_down(self, response: httpx.Response, send: Send) -> bool:
        """Hand on all but the end of the answer. Gives whether the upstream came to that end."""
        status = response.status_code
        if not 200 <= status <= 599:
            raise Problem(502, f"{self._name} answered with the status {status}, which cannot be passed on")
        headers = _downward(response.headers.raw, status)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        try:
            assert isinstance(response.stream, httpx.AsyncByteStream)
            async for piece in response.stream:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except httpx.TransportError:
            return False
        return True

    def _problem(self, error: Exception, seconds: float, *, begun: bool) -> Problem:
        """What *error* is for the client; *begun*: the upstream got the request's headers."""
        fate = "it may have received the request" if begun else "the request was not sent"
        said = f"{type(error).__name__}: {clip(' '.join(str(error).split())) or 'no more is known'}"
        match error:
            case httpx.PoolTimeout():
                return Problem(
                    503,
                    f"too many requests to {self._name} are under way; {fate}",
                    headers={"retry-after": "1"},
                )
            case httpx.LocalProtocolError():
                # Its words may quote a header.
                return Problem(
                    400, "the request holds a header that HTTP does not allow, and was not passed on"
                )
            case httpx.TimeoutException() | TimeoutError():
                return Problem(504, f"{self._name} did not answer within {seconds:g} s; {fate}")
            case httpx.ConnectError():
                return Problem(502, f"{self._name} cannot be reached ({said}); {fate}")
        return Problem(502, f"{self._name} gave no answer ({said}); {fate}")


class _Upload(httpx.AsyncByteStream):
    """A request's body on its way up, and word of its client after that.

    Attributes:
        deadline: for the upstream; it stands still while the client is waited for.
        begun: the upstream got the headers, so it may have taken the request for whole.
        is_over: nothing of the body is asked for any more.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_expected = False
        self.deadline: asyncio.Timeout | None = None
        self.begun = False
        self.is_over = asyncio.Event()

    def framing(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """The headers that say how long the body is, as the client said it. Raises `Problem` 501."""
        given = dict(headers)
        coding, length = given.get(b"transfer-encoding"), given.get(b"content-length")
        self._is_expected = coding is not None or length is not None
        if coding is not None:
            # The server has undone the chunks, and only them.
            if coding.strip().lower() != b"chunked":
                raise Problem(501, "of transfer encodings, chunked is understood")
            return [(b"transfer-encoding", b"chunked")]
        return [] if length is None else [(b"content-length", length)]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun = True
        is_more = self._is_expected
        while is_more:
            message = await self._next()
            if message["type"] == "http.disconnect":
                raise Disconnected
            is_more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]
        self.is_over.set()

    async def client_left(self) -> None:
        """Return when the client is gone, or has its answer."""
        try:
            await self.is_over.wait()
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except Problem:
            return  # it goes on sending more than is taken, after the answer to it has begun

    async def _next(self) -> Mapping[str, Any]:
        clock, deadline = asyncio.get_running_loop().time, self.deadline
        assert deadline is not None
        due = deadline.when()
        assert due is not None
        left = due - clock()
        deadline.reschedule(None)
        message = await self._receive()
        deadline.reschedule(clock() + left)
        return message


def _upward(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """What of a request's *headers* goes on to the upstream; how long the body is, is not among it."""
    headers = list(headers)
    dropped = _NEVER_UP | _named(headers)
    return [
        (name, value)
        for name, value in headers
        # Payment Kit believes `x-user-*`, which only its own gateway may say; some servers read _ as -.
        if name not in dropped
        and not name.replace(b"_", b"-").startswith(b"x-user-")
        # The server says "100 Continue" itself when the body is asked for.
        and not (name == b"expect" and value.lower() == b"100-continue")
    ]


def _downward(headers: Iterable[tuple[bytes, bytes]], status: int) -> Headers:
    """What of an answer's *headers* goes on to the client."""
    lowered = [(name.lower(), value) for name, value in headers]
    dropped = _NEVER_DOWN | _named(lowered)
    # A length beside chunks does not count, and the server takes one without a body for a promise of a body.
    if status in (204, 304) or any(name == b"transfer-encoding" for name, _ in lowered):
        dropped |= {b"content-length"}
    return [(name, value) for name, value in lowered if name not in dropped]


def _named(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The headers that `Connection` names, and so are for the neighbour only."""
    listed = (value.lower().split(b",") for name, value in headers if name == b"connection")
    return frozenset(token.strip() for tokens in listed for token in tokens)


def _brings_own(headers: Headers, query: bytes) -> bool:
    """Whether the caller shows Payment Kit who it is. A token in two places is refused there."""
    if any(pair.partition(b"=")[0] == b"access_token" for pair in query.split(b"&")):
        return True
    for name, value in headers:
        if name in (b"authorization", b"x-component-sig"):
            return True
        if name == b"cookie" and any(
            each.partition(b"=")[0].strip() == b"login_token" for each in value.split(b";")
        ):
            return True
    return False
