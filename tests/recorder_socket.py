"""A bare socket that takes requests, keeps their very bytes, and answers what it is told to."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

Answer = Callable[[socket.socket, bytes], object]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class RecorderSocket:
    """Loopback, or a Unix socket at *path*; a thread for each connection, which lives until its client closes it.

    *answer* is bytes to send once a request is whole, or a function of the connection and of the bytes that came,
    which reads the rest of a body by itself if *reads* is "heads".
    """

    def __init__(self, answer: bytes | Answer = OK, path: str | None = None, reads: str = "requests") -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.connections = 0
        self.left = threading.Event()
        """A client closed its connection."""
        self._reads = reads
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
            self.port: int = self._listener.getsockname()[1]
        else:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(path)
            self._listener.listen()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="recorder")]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def heads(self) -> list[list[bytes]]:
        """Of each request the lines of its head."""
        return [request.partition(b"\r\n\r\n")[0].split(b"\r\n") for request in self.requests]

    @property
    def bodies(self) -> list[bytes]:
        return [request.partition(b"\r\n\r\n")[2] for request in self.requests]

    def values(self, name: bytes) -> list[bytes]:
        """What the last request said under *name*."""
        lines = (line.partition(b": ") for line in self.heads[-1][1:])
        return [value for each, _, value in lines if each.lower() == name]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(10)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), name="recorder connection")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while True:
                request = self._request(connection)
                if not request:
                    self.left.set()
                    return
                self.requests.append(request)
                if isinstance(self.answer, bytes):
                    connection.sendall(self.answer)
                else:
                    self.answer(connection, request)

    def _request(self, connection: socket.socket) -> bytes:
        came = bytearray()
        while not self._is_whole(came):
            piece = connection.recv(65536)
            if not piece:
                return b""
            came += piece
        return bytes(came)

    def _is_whole(self, came: bytearray) -> bool:
        head, found, body = bytes(came).partition(b"\r\n\r\n")
        if not found or self._reads == "heads":
            return bool(found)
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return len(body) >= int(line[15:])
            if line == b"transfer-encoding: chunked":
                return body.endswith(b"0\r\n\r\n")
        return True
