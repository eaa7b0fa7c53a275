"""`Bounds`: what all connections of one sidecar share."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

MAX_URL: Final = 32 * 1024  # bytes; ids of an activity may stand there


class Bounds:
    """Limits, and whether the sidecar is stopping.

    Attributes:
        connections: the most that may be open by each way in: strangers on TCP take no place from those who may
            open the Unix socket.
        request_timeout: seconds that a request may take to arrive, and its client to read the answer.
        idle_timeout: seconds that a connection may wait for its next request.
        draining: connections are closed after their next answer.
        refused: how many requests were refused before the application saw them.
        date: what answers tell as the time.
    """

    def __init__(self, connections: int, request_timeout: float, idle_timeout: float) -> None:
        self.connections = connections
        self.opened = {True: 0, False: 0}  # by Unix socket, by TCP
        self.request_timeout = request_timeout
        self.idle_timeout = idle_timeout
        self.draining = False
        self.refused = 0
        self.date = b""
        self._beginnings: dict[int, bytes] = {}

    def renew(self, date: bytes) -> None:
        """Every second: from now on, answers tell this *date*."""
        self.date = date
        self._beginnings = {}

    def begin(self, status: int) -> bytes:
        """The lines that an answer of this *status* begins with."""
        beginning = self._beginnings.get(status)
        if beginning is None:
            beginning = self._beginnings[status] = b"%bdate: %b\r\n" % (STATUS_LINE[status], self.date)
        return beginning
