"""Identifiers of events: unique over processes, hosts, forks and restarts, in the order of time, and cheap.

Each is a UUID of version 7 (RFC 9562): the time in milliseconds, a counter of this process, and a node of
48 random bits that is drawn anew in each process and after each fork. None costs a system call.
"""

import itertools
import os
import time
from collections.abc import Callable


class Identifiers:
    """Makes identifiers. Threads may share one; `renew` gives a forked child its own."""

    __slots__ = ("_clock_ns", "_count", "_node")

    def __init__(
        self, clock_ns: Callable[[], int] = time.time_ns, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._clock_ns = clock_ns
        self.renew(entropy)

    def renew(self, entropy: Callable[[int], bytes] = os.urandom) -> None:
        """Draw a new node, so that no identifier of this process can be one of its parent's."""
        self._node = entropy(6).hex()
        self._count = itertools.count(int.from_bytes(entropy(3), "big"))

    def __call__(self) -> str:
        # 48 bits of milliseconds, version 7, 24 bits of counter around the variant, 48 bits of node. The
        # counter runs on over the millisecond: 16 million events in one would be needed to repeat.
        stamp = f"{self._clock_ns() // 1_000_000:012x}"
        count = f"{next(self._count) & 0xFFFFFF:06x}"
        return f"{stamp[:8]}-{stamp[8:]}-7{count[:3]}-8{count[3:]}-{self._node}"
