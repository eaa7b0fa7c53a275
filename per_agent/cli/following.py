"""What becomes of events that a running sidecar has: followed from outside, by its status.

Nobody outside holds their receipts. But what waits says since when: once all that waits is younger than the
moment at which the events were there, each of them is delivered, refused or parked.
"""

import time
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec

from per_agent.cli.exits import ExitCode, Stop
from per_agent.cli.sidecar import Sidecar

_FIRST: Final = 0.05  # seconds until the second look; each further one waits longer, because a look costs
_LONGEST: Final = 1.0
_SLACK: Final = 0.002  # seconds: ages are rounded


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """What is not delivered of the events that are followed: at most so many, since others' may be among them."""

    waiting: int
    parked: int
    dead: int


class Following:
    """Follows what *sidecar* took between *before*, a document of its status, and the making of this.

    *lanes* names the destinations that count; None: those that took events meanwhile.
    """

    def __init__(
        self, sidecar: Sidecar, before: dict[str, Any], lanes: Collection[str] | None = None
    ) -> None:
        self._sidecar = sidecar
        self._before: dict[str, Any] = before["destinations"]
        self._lanes = lanes
        self._since = time.monotonic()
        self.seen = before
        """The newest status."""

    def wait(self, enough: Callable[[Left], bool], timeout: float) -> Left:
        """Look until there is *enough*, for up to *timeout* seconds. Gives what was seen last.

        A sidecar that is being restarted meanwhile is waited for. Raises `Stop` where it is away at the end.
        """
        deadline = time.monotonic() + timeout
        pause = _FIRST
        while True:
            left: Left | Stop
            try:
                left = self._look()
            except Stop as stop:
                if stop.code != ExitCode.UNREACHABLE:
                    raise
                left = stop
            remaining = deadline - time.monotonic()
            if isinstance(left, Left) and (enough(left) or remaining <= 0):
                return left
            if isinstance(left, Stop) and remaining <= 0:
                raise left
            time.sleep(min(pause, max(remaining, 0.0)))
            pause = min(pause * 2, _LONGEST)

    def _look(self) -> Left:
        elapsed = time.monotonic() - self._since
        self.seen = self._sidecar.status()
        waiting = parked = dead = 0
        for name, now in self.seen["destinations"].items():
            was = self._before.get(name, _NOTHING)
            if not self._counts(name, was["books"]["accepted"] < now["books"]["accepted"]):
                continue
            age = now["oldest_waiting_seconds"]
            if age is not None and age >= elapsed - _SLACK:
                waiting += now["waiting"]
            parked += max(0, now["parked"] - was["parked"])
            dead += max(0, now["books"]["dead"] - was["books"]["dead"])
        return Left(waiting=waiting, parked=parked, dead=dead)

    def _counts(self, lane: str, took: bool) -> bool:
        return took if self._lanes is None else lane in self._lanes


_NOTHING: Final[dict[str, Any]] = {"books": {"accepted": 0, "dead": 0}, "parked": 0}
