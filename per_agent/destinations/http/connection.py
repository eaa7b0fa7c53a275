"""One keep-alive connection: a blocking socket, and a deadline over each whole exchange.

httpx has no such deadline. A read timeout begins anew with every chunk, and with every piece of a header, so an
upstream that drips one byte at a time would hold a sender for ever: each wait here takes at most what is left of
the exchange's time. Given up: the lookup of a host name takes no timeout, and a host with several
addresses may take the connect timeout once for each.

An answer is read by h11, as in httpx's own transport, unless it is as nearly all are (`plain`).
"""

import math
import re
import select
import socket
import ssl
import time
from typing import Final

import h11
import httpx

from per_agent import failpoint
from per_agent.destinations.http.plain import plain

_PIECE: Final = 64 * 1024  # of a body, after which the time is looked at
_LINE: Final = re.compile(rb"[\t\x20-\x7e]+")
_MAX_HEAD: Final = 100 * 1024
_OF_CONTENT: Final = frozenset({400, 402, 409, 422})  # statuses that speak of what stands in a body
# Setting a socket's timeout is a system call that lets go of the GIL, with a wait to get it back: one that is
# longer than it should be by this share stays as it is.
_SLACK: Final = 0.02


class Deadline:
    """When an exchange must be over, and how long each step of it may take. *step* and *whole* are in seconds."""

    __slots__ = ("_step", "_until")

    def __init__(self, step: float, whole: float) -> None:
        self._step = step
        self._until = time.monotonic() + whole

    def left(self, expired: type[httpx.TimeoutException]) -> float:
        """Seconds that the next step may take. Raises *expired* when there are none."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise expired("the time for the whole exchange is over")
        return min(left, self._step)


def connect(url: httpx.URL, path: str | None, context: ssl.SSLContext, deadline: Deadline) -> socket.socket:
    """A socket to where *url* leads, or to the Unix socket at *path*. Nothing was sent on it but a TLS handshake.

    Raises httpx's errors.
    """
    try:
        if path is not None:
            return _connect_unix(path, deadline)
        port = url.port or (443 if url.scheme == "https" else 80)
        made = socket.create_connection((url.host, port), deadline.left(httpx.ConnectTimeout))
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if url.scheme != "https":
                return made
            made.settimeout(deadline.left(httpx.ConnectTimeout))
            return context.wrap_socket(made, server_hostname=url.host)
        except BaseException:
            made.close()
            raise
    except OSError as error:
        raise _told(error, httpx.ConnectTimeout, httpx.ConnectError, path or "") from error


def _connect_unix(path: str, deadline: Deadline) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(deadline.left(httpx.ConnectTimeout))
        made.connect(path)
    except BaseException:
        made.close()
        raise
    return made


def _told(
    error: OSError, expired: type[httpx.TimeoutException], failed: type[httpx.NetworkError], what: str = ""
) -> httpx.TransportError:
    """*expired* or *failed*, to be raised in the place of what a socket raised."""
    kind = expired if isinstance(error, TimeoutError) else failed
    return kind(f"{what} {error}".strip())


class Connection:
    """For one thread at a time.

    Attributes:
        reusable: whether the last exchange left it so that another may follow.
        used_at: when that was over, on the monotonic clock.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._readable = select.poll()
        self._readable.register(connected, select.POLLIN)
        self._timeout = math.inf  # as the socket has it
        self.used_at = 0.0
        self.reusable = True

    @property
    def spoken(self) -> bool:
        """Whether the other side closed the connection, or said something that nobody asked for."""
        return bool(self._readable.poll(0))

    def exchange(self, request: httpx.Request) -> httpx.Response:
        """Ask, and read the answer: of its body *limit* bytes and what comes along with them.

        Whoever left before the whole request was taken may have said why (by its head alone: it is too long, or
        shows a wrong token): a refusal that came as a whole is the answer, anything else is none. Raises httpx's
        errors. The connection is to be closed unless it is `reusable` afterwards.
        """
        deadline, limit = request.extensions["deadline"], request.extensions["limit"]
        self.reusable = False
        try:
            self._write(_said(request), deadline)
        except httpx.WriteError:
            refusal = self._refusal(request, deadline, limit)
            if refusal is None:
                raise
            return refusal
        return self._answer(request, deadline, limit)

    def close(self) -> None:
        self._socket.close()

    def _refusal(self, request: httpx.Request, deadline: Deadline, limit: int) -> httpx.Response | None:
        """The refusal of a request that could not be sent as a whole; None where anything else came, or nothing."""
        try:
            response = self._answer(request, deadline, limit)
        except httpx.TransportError:
            return None
        finally:
            self.reusable = False
        assert isinstance(response.stream, httpx.ByteStream)
        whole = len(b"".join(response.stream)) <= limit
        return response if whole and _is_refusal(response.status_code) else None

    def _answer(self, request: httpx.Request, deadline: Deadline, limit: int) -> httpx.Response:
        came = self._read(deadline)
        response = plain(came)
        if response is None:
            response = self._by_h11(request, came, deadline, limit)
        else:
            failpoint.reach("request sent")  # and received, since there is an answer
            self.reusable = True
        failpoint.reach("answer read")
        self.used_at = time.monotonic()
        return response

    def _by_h11(self, request: httpx.Request, came: bytes, deadline: Deadline, limit: int) -> httpx.Response:
        wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        # It must know that something was asked, and by which method; what else it was is of no matter to it.
        wire.send(h11.Request(method=request.method, target="/", headers=[("host", "")]))
        wire.send(h11.EndOfMessage())
        head, body = None, bytearray()
        try:
            wire.receive_data(came)
            while len(body) <= limit and not isinstance(event := wire.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    came = self._read(deadline)
                    if not came and head is None:
                        raise httpx.RemoteProtocolError("the connection was closed without an answer")
                    wire.receive_data(came)
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.Response):
                    head = event
                    failpoint.reach("request sent")  # and received, since an answer has begun
        except h11.ProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error
        assert head is not None
        # What came after the answer, if only an empty line, would be taken for the answer to the next request.
        self.reusable = wire.our_state is wire.their_state is h11.DONE and not wire.trailing_data[0]
        stream = httpx.ByteStream(bytes(body))
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=stream)

    def _read(self, deadline: Deadline) -> bytes:
        try:
            self._allow(deadline.left(httpx.ReadTimeout))
            return self._socket.recv(_PIECE)
        except OSError as error:
            raise _told(error, httpx.ReadTimeout, httpx.ReadError) from error

    def _write(self, said: bytes, deadline: Deadline) -> None:
        for at in range(0, len(said), _PIECE):
            try:
                self._allow(deadline.left(httpx.WriteTimeout))
                self._socket.sendall(said[at : at + _PIECE])
            except OSError as error:
                raise _told(error, httpx.WriteTimeout, httpx.WriteError) from error

    def _allow(self, seconds: float) -> None:
        if not seconds <= self._timeout <= seconds * (1 + _SLACK):
            self._socket.settimeout(seconds)
            self._timeout = seconds


def _is_refusal(status: int) -> bool:
    """Whether *status* refuses a request whose body was not read to its end.

    One that takes it is not believed then, and neither is one that speaks of what stands in the body: that an
    event is wrong, or known already and so as good as delivered.
    """
    return status >= 400 and status not in _OF_CONTENT


def _said(request: httpx.Request) -> bytes:
    """*request* as it goes over the wire. Raises `LocalProtocolError` where it would be another one there."""
    assert isinstance(request.stream, httpx.SyncByteStream)
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.extensions["target"])]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    if not all(_LINE.fullmatch(line) for line in lines):
        raise httpx.LocalProtocolError("holds what no header takes")
    return b"\r\n".join([*lines, b"", b"".join(request.stream)])
