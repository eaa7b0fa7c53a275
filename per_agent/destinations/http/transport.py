"""httpx's transport seam, filled for many threads that send small requests: `KeepAliveTransport`.

Context. httpx's own transport keeps its pool under one lock, looks through all connections for each request, and
polls their sockets while it holds the lock. With 64 threads at an upstream that answers after 1 ms it makes 400
requests in a second where this one makes 5,000, and of its CPU time of a request (450 us with 8 threads, 2.5 ms
with 64) most goes there and into layers that have nothing to do here.

Choice. A connection is lent to one thread for one exchange; the one that was used last is lent first. Nothing
that the lock guards lets go of the GIL, so nobody queues for it. What a request and an answer look like on the
wire is h11's matter, as in httpx's own transport.
"""

import threading
import time
from collections import deque
from typing import Final

import httpx

from per_agent.destinations.http.connection import Connection, Deadline, connect

# Node's HTTP server closes an idle connection after 5 s, nginx after 60 s or more. A request on a connection
# that is just being closed fails in a way that leaves open whether it was received.
_KEEPALIVE: Final = 4.0


class KeepAliveTransport(httpx.BaseTransport):
    """At most *most* connections to one *origin*, or to the Unix socket at *path*. Threads may share it.

    A request's extensions say its `target`, as httpx has it, its `deadline`, a `Deadline`, and the `limit` of
    its answer's body: so many bytes are read, and what comes along with them. Asks once; raises httpx's errors.
    """

    def __init__(self, origin: httpx.URL, most: int, path: str | None) -> None:
        self._origin = origin
        self._path = path
        self._context = httpx.create_ssl_context(trust_env=False)
        self._context.set_alpn_protocols(["http/1.1"])
        self._free = threading.Semaphore(most)
        self._lock = threading.Lock()
        self._idle: deque[Connection] = deque()  # the one that was used last at the end

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        deadline = request.extensions["deadline"]
        if not self._free.acquire(timeout=deadline.left(httpx.PoolTimeout)):
            raise httpx.PoolTimeout("no connection was free in time")
        connection = None
        try:
            connection = self._reused() or self._made(deadline)
            return connection.exchange(request)
        finally:
            if connection is not None and connection.reusable:
                with self._lock:
                    self._idle.append(connection)
            elif connection is not None:
                connection.close()
            self._free.release()

    def close(self) -> None:
        """Close the connections that are idle. Not to be used any more."""
        while self._idle:
            self._idle.pop().close()

    def _made(self, deadline: Deadline) -> Connection:
        return Connection(connect(self._origin, self._path, self._context, deadline))

    def _reused(self) -> Connection | None:
        """The connection that was used last, where it is still good. The oldest is closed when nobody needs it."""
        while True:
            expired = time.monotonic() - _KEEPALIVE
            with self._lock:
                last = self._idle.pop() if self._idle else None
                oldest = self._idle.popleft() if self._idle and self._idle[0].used_at < expired else None
            if oldest is not None:
                oldest.close()
            if last is None or (last.used_at > expired and not last.spoken):
                return last
            last.close()
