"""`Receipt`: a handle to wait for one event to be stored or delivered, and what makes the waiting cheap.

Nobody waits for most events, so a receipt has no future, no lock and no event object of its own: it is also
the entry that lies in the intake's buffer. Those who do wait share one `Progress`, which is told after each
commit; a `Ticket`, shared by the receipts of one block and dropped with the last of them, keeps what became
of its events.
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from per_agent.errors import Refused
from per_agent.event.identifiers import Identifiers
from per_agent.event.kinds import decode, identified

if TYPE_CHECKING:
    import asyncio


class Progress:
    """Tells waiting threads and coroutines that something was committed or settled."""

    def __init__(self, on_wait: Callable[[], None]) -> None:
        self._on_wait = on_wait
        self._changed = threading.Condition()
        self._waiting = 0
        self._futures: list[tuple[Callable[[], bool], asyncio.AbstractEventLoop, asyncio.Future[bool]]] = []
        self._closed = False

    @property
    def awaited(self) -> bool:
        """Whether somebody waits, so that lingering would hold them up."""
        return self._waiting > 0 or bool(self._futures)

    def wait(self, reached: Callable[[], bool], timeout: float | None) -> bool:
        """Block until *reached*, at most *timeout* seconds. False on timeout, or when the agent closes first."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._waiting += 1
        try:
            while not reached():
                left = None if deadline is None else deadline - time.monotonic()
                if self._closed or (left is not None and left <= 0):
                    return False
                # Not under the lock: it may have to start the agent, and whoever closes that waits here too.
                self._on_wait()
                with self._changed:
                    if not (reached() or self._closed):
                        self._changed.wait(left)
            return True
        finally:
            with self._changed:
                self._waiting -= 1

    async def wait_async(self, reached: Callable[[], bool]) -> bool:
        """As `wait`, for a coroutine: the event loop goes on."""
        import asyncio  # noqa: PLC0415  (heavy, and loaded already where a loop runs)

        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        with self._changed:
            # First say that somebody waits, then look: `announce` looks at the former without the lock.
            self._futures.append((reached, loop, future))
            if reached() or self._closed:
                self._futures.pop()
                return reached()
        self._on_wait()
        return await future

    def announce(self) -> None:
        """Something changed: let those whose condition holds go on. Costs nothing when nobody waits."""
        if not self.awaited:
            return
        with self._changed:
            self._changed.notify_all()
            self._futures = [entry for entry in self._futures if not self._resolve(*entry)]

    def close(self) -> None:
        """Nothing will change any more: nobody waits for ever."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for entry in self._futures:
                self._resolve(*entry)
            self._futures = []

    def orphan(self) -> None:
        """In a forked child: what the parent waits for does not come about here, so nobody waits for it."""
        self._changed = threading.Condition()  # the old one may be held by a thread that does not exist here
        self._futures = []
        self._closed = True

    def _resolve(
        self, reached: Callable[[], bool], loop: "asyncio.AbstractEventLoop", future: "asyncio.Future[bool]"
    ) -> bool:
        result = reached()
        if not (result or self._closed or future.cancelled()):
            return False
        with suppress(RuntimeError):  # the loop was closed: nobody waits there any more
            loop.call_soon_threadsafe(_settle, future, result)
        return True


def _settle(future: "asyncio.Future[bool]", result: bool) -> None:
    if not future.done():
        future.set_result(result)


class Ticket:
    """What became of the events of one stored block, in every lane that it went to."""

    __slots__ = ("__weakref__", "_delivered", "_refused", "events")

    def __init__(self, events: Sequence[bytes], lanes: Sequence[str]) -> None:
        self.events = events
        self._delivered = dict.fromkeys(lanes, 0)
        self._refused: dict[int, tuple[str, str]] = {}

    def delivered(self, lane: str, mask: int) -> None:
        self._delivered[lane] |= mask

    def refused(self, lane: str, at: int, words: str) -> None:
        self._refused[at] = (lane, words)

    def outcome(self, at: int) -> bool:
        """Whether every destination has event *at*. Raises `Refused` when one refused it for good."""
        if at in self._refused:
            lane, words = self._refused[at]
            raise Refused(lane, "delivery of an event", words)
        return all(mask >> at & 1 for mask in self._delivered.values())


class Receipt(msgspec.Struct, gc=False, eq=False):
    """The handle of one accepted event.

    Attributes:
        dropped: True when the overflow policy `drop_newest` gave the event up at the door.
    """

    _encoded: bytes
    _lanes: tuple[str, ...]
    _number: int
    _progress: Progress
    _identifiers: Identifiers
    _place: int | tuple[int, ...] | None = None
    _ticket: Ticket | None = None
    _at: int = 0
    dropped: bool = False

    @property
    def id(self) -> str:
        """The event's identifier, the same on every attempt and for its whole life."""
        (encoded,) = identified([(self._encoded, self._number)], self._identifiers)
        return decode(encoded).id

    @property
    def is_stored(self) -> bool:
        """Whether the event survives power loss by now. Never waits."""
        return self._ticket is not None

    def stored(self, timeout: float | None = None) -> bool:
        """Block until the event survives power loss, at most *timeout* seconds (None: no limit).

        True: it was committed and fsynced. False: not yet, or the event was dropped. Never raises.
        """
        return self._is_stored() or (not self.dropped and self._progress.wait(self._is_stored, timeout))

    def delivered(self, timeout: float | None = None) -> bool:
        """Block until every destination of the event has it, at most *timeout* seconds (None: no limit).

        True: delivered. False: not yet. Raises `per_agent.Refused` with the upstream's words when a
        destination refused it for good; the event then lies in the dead letters. Only what happens while
        this process runs is seen: after a restart the books and the upstream tell.
        """
        return not self.dropped and self._progress.wait(self._is_delivered, timeout)

    async def stored_async(self) -> bool:
        """As `stored`, without blocking the event loop. `await receipt` is the same."""
        return self._is_stored() or (not self.dropped and await self._progress.wait_async(self._is_stored))

    async def delivered_async(self) -> bool:
        """As `delivered`, without blocking the event loop."""
        if self.dropped:
            return False
        await self._progress.wait_async(self._is_decided)
        return self._is_delivered()

    def __await__(self) -> Generator[Any, None, bool]:
        return self.stored_async().__await__()

    def __repr__(self) -> str:
        return f"Receipt(id={self.id!r}, is_stored={self.is_stored}, dropped={self.dropped})"

    def _is_stored(self) -> bool:
        return self._ticket is not None

    def _is_delivered(self) -> bool:
        return self._ticket is not None and self._ticket.outcome(self._at)

    def _is_decided(self) -> bool:
        try:
            return self._is_delivered()
        except Refused:
            return True
