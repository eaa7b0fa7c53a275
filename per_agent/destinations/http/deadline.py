"""A deadline over a whole HTTP exchange, which httpx does not have.

Context: httpx's read timeout begins anew with every chunk, and with every piece of a header, so an upstream
that drips one byte at a time holds a sender for ever. Choice: the sockets themselves are given what is left
of the exchange's time, by way of httpcore's public network backend. A check between the body's chunks would
not see the headers. Given up: the lookup of a host name takes no timeout, and a host with several addresses
may take the connect timeout once for each.

The sockets also tell whether an answer came after its question (`heard`).
"""

import math
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import httpcore
import httpx

# A write may send many times, each with the whole timeout: one that is short mostly sends once.
_PIECE: Final = 64 * 1024


class _Exchange(threading.local):
    """The exchange of this thread, which a sync exchange never leaves.

    Attributes:
        until: when it must be over, on the monotonic clock.
        heard: whether anything came since something was last sent.
    """

    until: float = math.inf
    heard: bool = False


_exchange = _Exchange()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let all that this thread does on a `DeadlineTransport` be over *seconds* from now."""
    _exchange.until = time.monotonic() + seconds
    try:
        yield
    finally:
        _exchange.until = math.inf


def heard() -> bool:
    """Whether what this thread just read of an answer came after its question.

    It did not where the upstream sent more than one answer to the question before: httpcore keeps the surplus,
    and would take it for the answer to whatever is asked next.
    """
    return _exchange.heard


def _left(timeout: float | None, expired: type[httpcore.TimeoutException]) -> float:
    left = _exchange.until - time.monotonic()
    if left <= 0:
        raise expired("the time for the whole exchange is over")
    return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        came = self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))
        _exchange.heard = True
        return came

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        _exchange.heard = False
        for at in range(0, len(buffer), _PIECE):
            self._inner.write(buffer[at : at + _PIECE], _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


class _UnixStream(httpcore.NetworkStream):
    """A Unix socket. httpcore has one too, but leaves the socket open where the connection fails."""

    def __init__(self, path: str, timeout: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _told_as(httpcore.ConnectTimeout, httpcore.ConnectError, path):
                self._socket.settimeout(timeout)
                self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _told_as(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(timeout)
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _told_as(httpcore.WriteTimeout, httpcore.WriteError):
            self._socket.settimeout(timeout)
            self._socket.sendall(buffer)

    def close(self) -> None:
        self._socket.close()

    def get_extra_info(self, info: str) -> object:
        """What httpcore asks for: whether an idle connection was closed by the other side."""
        if info != "is_readable":
            return None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))


@contextmanager
def _told_as(expired: type[Exception], failed: type[Exception], what: str = "") -> Iterator[None]:
    """Raise *expired* or *failed* in the place of what the socket raises."""
    try:
        yield
    except TimeoutError as error:
        raise expired(f"{what} {error}".strip()) from error
    except OSError as error:
        raise failed(f"{what} {error}".strip()) from error


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, left, local_address, socket_options))

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002  (none are for Unix sockets)
    ) -> httpcore.NetworkStream:
        return _Stream(_UnixStream(path, _left(timeout, httpcore.ConnectTimeout)))


class DeadlineTransport(httpx.HTTPTransport):
    """httpx's own transport, on sockets that know the deadline."""

    def __init__(self, limits: httpx.Limits, socket_path: str | None) -> None:
        context = httpx.create_ssl_context(trust_env=False)
        super().__init__(verify=context, trust_env=False)
        # httpx has no parameter for the backend. The pool that it made has opened nothing and is replaced.
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            uds=socket_path,
            network_backend=_Backend(),
        )
