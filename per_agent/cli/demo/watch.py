"""`Watch`: looks at both sides again and again until something has come about, shows it, and remembers the most."""

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from per_agent.cli.demo.recorder import Notes
from per_agent.cli.demo.stage import Stage
from per_agent.cli.exits import ExitCode, Stop
from per_agent.errors import SpoolError

_EVERY: Final = 0.1  # seconds


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """What waits on one side's disk for one destination. *oldest*: the age of the oldest of it, in seconds."""

    name: str
    state: str | None
    reason: str
    pending: int
    oldest: float | None
    delivered: int


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """Both sides at one moment. *recorded*: events that were reported as stored by then."""

    recorded: int
    application: tuple[Queue, ...]
    sidecar: tuple[Queue, ...]

    @property
    def waiting(self) -> int:
        """Events that the application has not got rid of."""
        return sum(queue.pending for queue in self.application)

    @property
    def oldest(self) -> float:
        """The age of the oldest of them, in seconds."""
        return max((queue.oldest for queue in self.application if queue.oldest is not None), default=0.0)

    @property
    def in_trouble(self) -> bool:
        """Whether the application knows that it cannot deliver."""
        return any(queue.state not in (None, "open") for queue in self.application)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits on either side."""
        return not any(queue.pending for queue in (*self.application, *self.sidecar))


class Watch:
    """Looks at *stage* and has *shown* show it. `until` raises `Stop` once *deadline* (monotonic) is over."""

    def __init__(
        self, stage: Stage, notes: Notes, deadline: float, shown: Callable[[Look, list[int]], None]
    ) -> None:
        self._stage = stage
        self._notes = notes
        self._deadline = deadline
        self._shown = shown
        self._last = Look(recorded=0, application=(), sidecar=())
        self._waited: list[int] = []

    @property
    def most_waiting(self) -> int:
        """The most that ever waited at once in the application."""
        return max(self._waited, default=0)

    @property
    def waited(self) -> list[int]:
        """How much waited in the application, look by look."""
        return self._waited

    def until(self, reached: Callable[[Look], bool], what: str) -> Look:
        """The first look at which *reached* holds. *what* is told where that does not come about."""
        while True:
            look = self._look()
            self._shown(look, self._waited)
            if reached(look):
                return look
            if time.monotonic() > self._deadline:
                raise Stop(ExitCode.NO, f"the demo gave up: {what} took too long")
            time.sleep(_EVERY)

    def _look(self) -> Look:
        try:
            seen = [each.as_dict(time.time()) for each in self._stage.overviews()]
        except SpoolError:
            return self._last  # whoever is right in the middle of it is seen at the next look
        application, sidecar = (
            tuple(_queue(name, each) for name, each in side["destinations"].items()) for side in seen
        )
        self._last = Look(recorded=self._notes.count(), application=application, sidecar=sidecar)
        self._waited.append(self._last.waiting)
        return self._last


def _queue(name: str, seen: dict[str, Any]) -> Queue:
    return Queue(
        name=name,
        state=seen["state"],
        reason=seen["reason"] or "",
        pending=seen["books"]["pending"],
        oldest=seen["oldest_pending_seconds"],
        delivered=seen["books"]["delivered"],
    )
