"""What became of the events of one call, and the receipts that tell it, a bounded number followed at once."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any, Final

import msgspec

from per_agent.errors import Refused
from per_agent.event import Receipt

_FOLLOWED: Final = 10_000  # receipts in memory, and so the events that may be ahead of the disk
_TOLD: Final = 1000  # refusals kept with their words


class Wait(StrEnum):
    """What to wait for."""

    STORED = "stored"
    DELIVERED = "delivered"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the events of one call.

    Attributes:
        delivered: how many every destination has, at least; None where nobody looked.
        refused: how many a destination refused for good.
        refusals: identifier and words of the first of them.
        seen: the document of `status` afterwards; None where it could not be had.
        trouble: why the disk did not take all, or None.
        keeper: who goes on with what is not delivered.
    """

    accepted: int
    stored: int
    delivered: int | None
    refused: int
    refusals: list[tuple[str, str]]
    seen: dict[str, Any] | None
    trouble: str | None
    keeper: str


class Tally:
    """Counts accepted events by what became of them.

    Args:
        wait: how an event is waited for: `Receipt.stored`, or `Receipt.delivered`.
        timeout: seconds that waiting may take where nothing moves; None: no limit. After it ran out once,
            nothing more is waited for.
    """

    def __init__(self, wait: Callable[[Receipt, float | None], bool], timeout: float | None) -> None:
        self._wait = wait
        self._timeout = timeout
        self._gave_up = False
        self._receipts: deque[Receipt] = deque()
        self.accepted = 0
        self.stored = 0
        self.delivered = 0
        self.refused = 0
        self.refusals: list[tuple[str, str]] = []
        """Identifier and words of the first refused events."""

    def add(self, receipt: Receipt) -> None:
        """Follow *receipt*. Where too many are followed, wait for the oldest, at least until it is stored."""
        self.accepted += 1
        self._receipts.append(receipt)
        if len(self._receipts) > _FOLLOWED:
            oldest = self._receipts.popleft()
            self._await(oldest, self._timeout)
            oldest.stored(None)
            self._count(oldest)

    def settle(self) -> bool:
        """Wait for all that is followed. False when time ran out first."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        for receipt in self._receipts:
            self._await(receipt, None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not self._gave_up

    def close(self) -> None:
        """Count what is still followed. To be called after the agent was closed: nothing changes any more."""
        while self._receipts:
            self._count(self._receipts.popleft())

    def _await(self, receipt: Receipt, timeout: float | None) -> None:
        if self._gave_up:
            return
        with suppress(Refused):  # then it is decided, and counted with its words later
            self._gave_up = not self._wait(receipt, timeout)

    def _count(self, receipt: Receipt) -> None:
        self.stored += receipt.stored(0)
        try:
            self.delivered += receipt.delivered(0)
        except Refused as error:
            self.refused += 1
            if len(self.refusals) < _TOLD:
                self.refusals.append((receipt.id, f"{error.destination}: {error.words}"))
