"""The intake: the bounded hand-over from the caller's thread to the spool.

The way in takes no lock and makes no system call. `deque.append` and `len` are single operations of the
interpreter, so a caller that is interrupted anywhere (by a thread switch, a signal handler that records an
event itself, an exception) leaves nothing half-done and holds nothing that others need. Two marks tell the
caller what else there is to do: at `_room` events the buffer takes no more, at `_mark` somebody wants to
know; the spooler sets both before it looks, so nothing falls between its looking and its sleeping.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from per_agent.errors import AgentClosed, BufferFull, PerAgentError
from per_agent.event import Event, Progress, Receipt, encode
from per_agent.log import Log
from per_agent.settings import IntakeSettings
from per_agent.spool import by_lane

_NEVER: Final = 2**62
_LOG_EVERY: Final = 30.0  # seconds between two lines that say that events are being refused


class Intake:
    """Takes events in. `accept` is for any thread; the rest is the spooler's side of the buffer.

    Args:
        settings: how much may wait, and what happens when no more may.
        progress: told by the spooler when something was stored.
        wake: starts the spooler or wakes it; must not block.
    """

    def __init__(self, settings: IntakeSettings, progress: Progress, wake: Callable[[], None]) -> None:
        self._capacity = settings.buffer_events
        self._policy = settings.overflow
        self._progress = progress
        self._wake = wake
        self._waiting: deque[Receipt] = deque()
        self._room = self._capacity
        self._mark = 1
        self.since = time.time()
        """When it was last seen that an event waits, in epoch seconds."""
        self._closed = False
        self._sealed = False
        self._refusal: PerAgentError | None = None
        self._counting = threading.RLock()  # on the overflow path only, where a signal handler may come again
        self._dropped: Counter[str] = Counter()
        self._overflows: Counter[str] = Counter()
        self._logged_at = float("-inf")
        self._log = Log()

    def accept(self, event: Event, lanes: tuple[str, ...]) -> Receipt:
        """Take *event* in for *lanes*. Never waits for a disk or a network, but by the policy `block`.

        Raises `InvalidEvent` when the event cannot be encoded, `AgentClosed` after `close`, and by the policy
        `raise` `BufferFull`, or `SpoolFull` when the disk limit is reached; the event is then not accepted.
        """
        receipt = Receipt(event.id, encode(event), lanes, self._progress)
        waiting = self._waiting
        while len(waiting) >= self._room:
            if not self._overflow(receipt):
                return receipt
        try:
            waiting.append(receipt)
            # Once sealed, the mark counts no more: an earlier caller may be resetting it just now.
            if len(waiting) >= self._mark or self._sealed:
                self._attend(receipt)
        except AgentClosed:
            raise
        except BaseException:  # out of a signal handler: the event may be in, and nobody told
            self._mark = 1
            self._wake()
            raise
        return receipt

    def close(self) -> None:
        """Take no more events in. What was accepted stays for the spooler."""
        self._closed = True
        self._room = 0

    def newest(self) -> Receipt | None:
        """The receipt of the last event that waits in the buffer."""
        try:
            return self._waiting[-1]
        except IndexError:
            return None

    def in_memory(self) -> dict[str, int]:
        """For each lane, the events that wait in the buffer."""
        return by_lane(tuple(self._waiting))

    @property
    def refusing(self) -> str | None:
        """Why no event is taken in, in words, or None."""
        if self._closed:
            return "the agent is closed"
        if self._refusal is not None:
            return str(self._refusal)
        full = len(self._waiting) >= self._capacity
        return f"{self._capacity} events wait for the disk" if full else None

    @property
    def overflows(self) -> dict[str, int]:
        """How often the overflow policy was applied, by what it did: `raised`, `blocked`, `dropped`."""
        return {what: self._overflows[what] for what in ("raised", "blocked", "dropped")}

    def _overflow(self, receipt: Receipt) -> bool:
        """Apply the policy. True: try again, there may be room. False: the event was dropped."""
        if self._closed:
            raise AgentClosed("the agent was closed: the event was not accepted")
        reason = self._refusal or BufferFull(
            f"{self._capacity} events wait for the disk: the event was not accepted"
        )
        self._tell_overflow(reason)
        if self._policy == "raise":
            raise type(reason)(*reason.args)  # a fresh one: a shared one would collect the tracebacks of all
        if self._policy == "block":
            self._progress.wait(lambda: self._closed or len(self._waiting) < self._room, None)
            return True
        with self._counting:
            self._dropped.update(receipt._lanes)  # noqa: SLF001  (the intake makes receipts)
        receipt.dropped = True
        self._wake()
        return False

    def _tell_overflow(self, reason: PerAgentError) -> None:
        """Count, and say so once in a while: a line for each event would cost more than the event."""
        done = {"raise": "raised", "block": "blocked", "drop_newest": "dropped"}[self._policy]
        with self._counting:
            self._overflows[done] += 1
            count = self._overflows[done]
            now = time.monotonic()
            if now < self._logged_at + _LOG_EVERY:
                return
            self._logged_at = now
        self._log.error("events do not fit", reason=str(reason), policy=self._policy, so_far=count)

    def _attend(self, receipt: Receipt) -> None:
        if self._sealed:
            # The spooler looked for the last time before or after this event came: only it knows.
            try:
                self._waiting.remove(receipt)
            except ValueError:
                return
            raise AgentClosed("the agent was closed: the event was not accepted")
        self._mark = _NEVER
        self.since = time.time()
        self._wake()

    # The spooler's side (`per_agent.spool.Source`)

    def take(self, limit: int) -> list[Receipt]:
        taken: list[Receipt] = []
        try:
            for _ in range(min(limit, len(self._waiting))):
                taken.append(self._waiting.popleft())  # noqa: PERF401  (what was taken must survive the exception)
        except IndexError:
            pass  # a caller that came after the seal took its own out again
        return taken

    def take_dropped(self) -> dict[str, int]:
        if not self._dropped:
            return {}
        with self._counting:
            dropped, self._dropped = self._dropped, Counter()
        return dict(dropped)

    def waiting(self) -> int:
        return len(self._waiting)

    def wake_at(self, count: int | None) -> None:
        if not self._sealed:
            self._mark = _NEVER if count is None else count

    def refuse(self, reason: PerAgentError | None) -> None:
        self._refusal = reason
        if not self._closed:
            self._room = self._capacity if reason is None else 0
        if reason is None:
            self._progress.announce()  # those that wait for room: a commit may not come to tell them

    def seal(self) -> None:
        self.close()
        self._sealed = True
        self._mark = 0
