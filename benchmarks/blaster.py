"""A load generator that costs next to nothing: ready-made requests over some kept connections, no client library.

Every request is *before* + 12 digits + *after*; the digits never repeat. Answers are read to their end and their
status is looked at, no more.
"""

import random
import select
import socket
import time
from typing import Any

from benchmarks.measure import Spent, quantiles

_WARM = 0.3  # seconds that are not counted
_PIECE = 16_384  # bytes: much more would cost a page fault for each


class _Connection:
    def __init__(self, address: str | int) -> None:
        if isinstance(address, int):
            self.socket = socket.create_connection(("127.0.0.1", address))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        self.came = b""
        self.since = 0

    def whole(self) -> bool:
        """Read. Whether the answer is there to its end."""
        more = self.socket.recv(_PIECE)
        if not more:
            raise ConnectionError("the server closed a connection")
        self.came += more
        end = self.came.find(b"\r\n\r\n")
        if end < 0:
            return False
        _, _, rest = self.came[:end].lower().partition(b"content-length:")
        return len(self.came) >= end + 4 + int(rest.partition(b"\r\n")[0])


def blast(
    *,
    address: str | int,
    before: str,
    after: str,
    seconds: float,
    connections: int = 32,
    rate: float | None = None,
) -> dict[str, Any]:
    """In the child: as fast as the server answers, or *rate* requests a second, on a port or a socket's path.

    At a rate, a request's time counts from when it was due, also where no connection was free for it then. `answers`
    counts those of a short time before the measured one, too. `own` is the generator's own share of its processor,
    in percent: well under 100, it is not what holds things up.
    """
    load = _Load(before, after, [_Connection(address) for _ in range(connections)], rate)
    load.run(_WARM)
    warmed = len(load.took)
    load.took.clear()
    load.refused = 0
    with Spent() as spent:
        load.run(seconds)
    refused = f"{load.refused} requests were refused, at last with {load.refusal!r}" if load.refused else ""
    if load.refused > len(load.took) // 100:
        raise RuntimeError(refused)
    return quantiles(load.took) | {
        "rate": len(load.took) / spent.seconds,
        "answers": warmed + len(load.took),
        "own": spent.processor / spent.seconds * 100,
    }


class _Load:
    def __init__(self, before: str, after: str, connections: list[_Connection], rate: float | None) -> None:
        self._before, self._after = before.encode(), after.encode()
        self._number = random.randrange(10**11)
        self._idle = connections
        self._busy: dict[int, _Connection] = {}
        self._rate = rate
        self._poll = select.epoll()
        for each in connections:
            self._poll.register(each.socket.fileno(), select.EPOLLIN)
        self.took: list[int] = []
        self.refused = 0
        self.refusal = b""

    def run(self, seconds: float) -> None:
        """Ask for *seconds*, and go on until all is answered."""
        began = time.perf_counter_ns()
        end = began + int(seconds * 1e9)
        step = int(1e9 / self._rate) if self._rate else 0
        due = began
        while (now := time.perf_counter_ns()) < end or self._busy:
            while self._idle and now < end and due <= now:
                self._send(due if step else now)
                due += step
            for descriptor, _ in self._poll.poll(
                _wait(due - now) if step and self._idle and now < end else 0.1
            ):
                self._receive(descriptor)

    def _send(self, since: int) -> None:
        connection = self._idle.pop()
        self._number += 1
        connection.since = since
        connection.came = b""
        connection.socket.sendall(b"%b%012d%b" % (self._before, self._number, self._after))
        self._busy[connection.socket.fileno()] = connection

    def _receive(self, descriptor: int) -> None:
        connection = self._busy[descriptor]
        if not connection.whole():
            return
        if connection.came[9:10] != b"2":
            self.refused += 1
            self.refusal = connection.came[:200]
        self.took.append(time.perf_counter_ns() - connection.since)
        del self._busy[descriptor]
        self._idle.append(connection)


def _wait(nanoseconds: int) -> float:
    """Seconds to wait for what comes meanwhile. `epoll` rounds up to milliseconds; what is less must not be late."""
    return max(0, nanoseconds // 1_000_000) / 1000
