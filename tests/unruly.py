"""A proxy that misbehaves on purpose, byte by byte, in front of an upstream that behaves and keeps score.

::

    with UnrulyProxy(upstream.port) as proxy:
        Per("token", url=proxy.url)
        proxy.fault = cut_after_it_was_counted   # what is asked next, on open connections, too
        proxy.met                                # how often the fault was met
        proxy.fault = None                       # all is passed on again

A fault is a function of an `Exchange`: it reads of the request what it likes, passes it on or not, and says what
it likes. The connection goes on when it returns True. One that is marked `eagerly` is met by every new
connection, before anything was sent on it.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

from serving import received


class Exchange:
    """One request on one connection. `number` counts those before it on the same connection."""

    def __init__(self, client: socket.socket, number: int, upstream: int) -> None:
        self.client = client
        self.number = number
        self._upstream = upstream
        self._came = b""

    def head(self) -> bytes:
        """Read the head of the request, and what of the body comes along."""
        if not self._came:
            self._came = received(self.client, b"\r\n\r\n")
        return self._came

    def request(self) -> bytes:
        """Read all of the request."""
        whole = _length(self.head())
        while len(self._came) < whole:
            piece = self.client.recv(65536)
            if not piece:
                raise ConnectionError("the client left")
            self._came += piece
        return self._came

    def answer(self) -> bytes:
        """Pass the request on: what the upstream answers."""
        with socket.create_connection(("127.0.0.1", self._upstream), timeout=30) as upstream:
            upstream.sendall(self.request())
            came = received(upstream, b"\r\n\r\n")
            while len(came) < _length(came):
                piece = upstream.recv(65536)
                assert piece, "the upstream that behaves was cut off"
                came += piece
            return came

    def say(self, *pieces: bytes) -> bool:
        """Send *pieces*, each in a packet of its own where the network likes. True: the connection goes on."""
        for piece in pieces:
            self.client.sendall(piece)
        return True

    def reset(self) -> bool:
        """End the connection by RST."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def hold(self) -> bool:
        """Say nothing more, until the client leaves."""
        while self.client.recv(65536):
            pass
        return False


Fault = Callable[[Exchange], bool]
_EAGER: set[Fault] = set()


def eagerly(fault: Fault) -> Fault:
    """Mark *fault* as met by a connection as soon as it is made."""
    _EAGER.add(fault)
    return fault


class UnrulyProxy:
    """Before the upstream on *port* of loopback."""

    def __init__(self, port: int) -> None:
        self.fault: Fault | None = None
        self.met = 0
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._counting = threading.Lock()
        self._clients: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        with self._counting:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(30)
            assert not thread.is_alive()
        self._listener.close()

    def _begin(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name="unruly", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with self._counting:
                if self._closed:
                    client.close()
                    return
                client.settimeout(60)
                self._clients.add(client)
            self._begin(lambda client=client: self._serve(client))  # type: ignore[misc]

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, AssertionError, ConnectionError):
            self._talk(client)
        with self._counting:
            self._clients.discard(client)
            client.close()

    def _talk(self, client: socket.socket) -> None:
        number = 0
        while (number == 0 and self.fault in _EAGER) or client.recv(1, socket.MSG_PEEK):
            exchange, fault = Exchange(client, number, self._upstream), self.fault
            if fault is None:
                exchange.say(exchange.answer())
            else:
                with self._counting:
                    self.met += 1
                if not fault(exchange):
                    return
            number += 1


def _length(message: bytes) -> int:
    """How long *message* is to be, by its head."""
    head, _, _ = message.partition(b"\r\n\r\n")
    lengths = [
        int(value)
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n"))
        if name.lower() == b"content-length"
    ]
    return len(head) + 4 + sum(lengths[:1])
