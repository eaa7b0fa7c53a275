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

_NUMBERS: Final = 0xFFFFFFFF


class Identifiers:
    """Makes identifiers. Threads may share one; a forked child has to have its own.

    Attributes:
        node: 10 hexadecimal digits.
        number: `() -> int`: the number of another event. Never the same again in this process.
        of: `(number, at) -> str`: the identifier of that number at that time, in epoch seconds.
    """

    __slots__ = ("node", "number", "of")

    def __init__(self, node: str | None = None) -> None:
        self.node = os.urandom(5).hex() if node is None else node
        self.number: Callable[[], int] = itertools.count(STEP, STEP).__next__
        self.of = _maker(self.node)

    def new(self, now: float) -> str:
        """One for an event that is accepted *now*, in epoch seconds."""
        return self.of(self.number(), now)


def _maker(node: str) -> Callable[[int, float], str]:
    # What belongs together is in one tuple, taken and put as a whole, whatever threads and clocks do.
    state = (0.0, 0.0, "")  # since and until when, and how identifiers of that millisecond begin
    rest = f"-7{node[:3]}-8{node[3:6]}-{node[6:]}"

    def of(number: int, at: float) -> str:
        nonlocal state
        since, until, head = state
        if not since <= at < until:
            stamp = int(at * 1000)
            text = f"{stamp & 0xFFFFFFFFFFFF:012x}"
            head = f"{text[:8]}-{text[8:]}{rest}"
            state = (stamp / 1000, (stamp + 1) / 1000, head)
        return f"{head}{number // STEP & _NUMBERS:08x}"

    return of
