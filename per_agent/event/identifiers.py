"""Identifiers of events: unique over processes, hosts, forks and restarts, in the order of time, and cheap.

Each is a UUID of version 7 (RFC 9562): the time in milliseconds, a node of 40 random bits that each process, and
each child of a fork, draws anew, and a number that is counted. It follows from these three alone; so an event
that brings its time needs no more than its number until somebody asks for the identifier, and it is the same
whoever asks, be it another process that recovers what this one left.
"""

import itertools
import os
from collections.abc import Callable
from typing import Final

STEP: Final = 8
"""Numbers are multiples of it: whoever keeps one has room for three bits of its own."""

RUN: Final = STEP << 12
"""Identifiers of one millisecond and of numbers up to the next multiple of this differ in their tails alone."""

TAILS: Final = tuple(f"{number:03x}".encode() for number in range(1 << 12))
"""How an identifier ends, by its number `// STEP % len(TAILS)`."""


class Identifiers:
    """Makes identifiers. Threads may share one; a forked child has to have its own.

    Attributes:
        node: 10 hexadecimal digits.
        number: `() -> int`: the number of another event. Never the same again in this process.
    """

    __slots__ = ("_rest", "_state", "node", "number")

    def __init__(self, node: str | None = None) -> None:
        self.node = os.urandom(5).hex() if node is None else node
        self.number: Callable[[], int] = itertools.count(STEP, STEP).__next__
        self._rest = f"-7{self.node[:3]}-8{self.node[3:6]}-{self.node[6:]}".encode()
        # Of the last head: for which millisecond and which run it is good, and itself. One tuple, taken and put as
        # a whole, whatever threads and clocks do.
        self._state = (-1, -1, b"")

    def new(self, now: float) -> str:
        """One for an event that is accepted *now*, in epoch seconds."""
        return self.of(self.number(), now)

    def of(self, number: int, at: float) -> str:
        """The identifier of that number at that time, in epoch seconds."""
        stamp, run, head = self._state
        if int(at * 1000) != stamp or number // RUN != run:
            self._state = stamp, run, head = self.head(number, at)
        return (head + TAILS[number // STEP % len(TAILS)]).decode()

    def head(self, number: int, at: float) -> tuple[int, int, bytes]:
        """How that identifier begins, as do all of the same `int(at * 1000)` and `number // RUN`; those come first."""
        stamp, run = int(at * 1000), number // RUN
        time = b"%012x" % (stamp & 0xFFFFFFFFFFFF)
        return stamp, run, time[:8] + b"-" + time[8:] + self._rest + b"%05x" % (run & 0xFFFFF)
