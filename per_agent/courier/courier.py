"""The courier: one thread that takes blocks from the lanes and has them delivered, destinations side by side.

It never waits for a disk or a network: it asks the spool and the senders, and their answers come back as
calls in its inbox. So no destination can hold up another, and stopping is prompt.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, TypeVar

from per_agent.courier.attempts import Delivery
from per_agent.courier.health import Condition
from per_agent.courier.route import Route
from per_agent.destinations import Destination
from per_agent.log import Log
from per_agent.settings import DeliverySettings
from per_agent.spool import Spool

T = TypeVar("T")

_AFTER_DEFECT: Final = 1.0  # seconds
_HAND_OVER: Final = (
    2.0  # seconds, far more than handing what is known to the spool takes: it waits for nothing
)


class Courier:
    """Delivers what the attached spools hold. Methods are for any thread.

    Attributes:
        name: what it is, for people.

    Args:
        destinations: each gets the lane of its name.
        settings: pauses, probes and how much is read ahead.
        changed: called when the condition of a destination may have changed; must not block.
        chores: what else is to be done from time to time in this thread, with the seconds in between.
    """

    name: Final = "courier"

    def __init__(
        self,
        destinations: Sequence[Destination],
        settings: DeliverySettings,
        changed: Callable[[], None],
        *,
        chores: Sequence[tuple[float, Callable[[], None]]] = (),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._changed = changed
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._routes = [
            Route(destination, settings, self._later, clock=clock, wall=wall) for destination in destinations
        ]
        self._chores = [_Chore(every, chore, clock()) for every, chore in chores]
        self._stop = threading.Event()
        self._log = Log()
        self._thread = threading.Thread(target=self._run, name="per_agent courier", daemon=True)

    def start(self) -> None:
        """Start the thread and all senders: at interpreter exit no thread could be started any more.

        Raises `RuntimeError` where one cannot be started; to be called again then.
        """
        for route in self._routes:
            route.senders.start()
        if self._thread.ident is None:
            self._thread.start()

    def attach(self, spool: Spool) -> None:
        """Deliver what *spool* holds, too."""
        for route in self._routes:
            self._later(partial(route.attach, spool))

    def detach(self, spool: Spool) -> None:
        """Forget *spool*, which must be drained."""
        for route in self._routes:
            self._later(partial(route.detach, spool))

    def stop(self, timeout: float | None) -> bool:
        """Send nothing more, wait for what is in flight, end the threads. False when time ran out first.

        What was answered in time is handed to the spool; what was not stays in it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout

        def seconds_left() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        for route in self._routes:
            route.senders.stop()
        if self._thread.ident is None:
            return True
        ended = [route.senders.join(seconds_left) for route in self._routes]
        self._stop.set()
        self._inbox.put(None)
        self._thread.join(_HAND_OVER)
        for route in self._routes:
            route.destination.close()
        return all(ended) and not self._thread.is_alive()

    def run(self, call: Callable[[], T], timeout: float | None) -> T:
        """What *call* gives in the courier's thread. Raises what it raised, or `TimeoutError`."""
        done: Future[T] = Future()

        def task() -> None:
            try:
                done.set_result(call())
            except Exception as error:  # noqa: BLE001  (told to the one who asked)
                done.set_exception(error)

        self._later(task)
        return done.result(timeout)

    def call(self, answer: Callable[[], None]) -> None:
        """Have the thread call *answer*, which must not block, when it comes to it."""
        self._later(answer)

    def stuck(self, lanes: Mapping[str, int]) -> bool:
        """Whether none of the *lanes* with pending events can get on before some pause is over."""
        routes = {route.name: route for route in self._routes}
        return all(
            lane not in routes or routes[lane].stuck or (routes[lane].idle and bool(routes[lane].parked))
            for lane, pending in lanes.items()
            if pending
        )

    @property
    def conditions(self) -> dict[str, Condition]:
        """How each destination is doing."""
        return {route.name: route.health.condition for route in self._routes}

    @property
    def retries(self) -> dict[str, int]:
        """Attempts that met trouble of the destination, for each."""
        return {route.name: route.attempts.retries for route in self._routes}

    @property
    def on_arrival(self) -> frozenset[str]:
        """The destinations that count events when they arrive."""
        return frozenset(route.name for route in self._routes if route.destination.counts_on_arrival)

    @property
    def no_answer(self) -> dict[str, int]:
        """Of these, for each, the events that were sent and not answered: nobody knows whether they were taken."""
        return {route.name: route.attempts.no_answer for route in self._routes}

    @property
    def concurrency(self) -> dict[str, int]:
        """How many requests may be under way to each destination now."""
        return {route.name: route.limit.now for route in self._routes}

    def deliveries(self) -> dict[str, Delivery]:
        """How delivering to each destination goes. Waits for nothing."""
        return {route.name: route.delivery() for route in self._routes}

    def tune(self, settings: DeliverySettings, mended: Collection[str]) -> None:
        """Go on by *settings*, and try the destinations named *mended* at once."""
        for route in self._routes:
            self._later(partial(route.tune, settings))
            if route.name in mended:
                self._later(route.hurry)

    def parked(self) -> dict[str, list[str]]:
        """What the parked events of each destination wait for."""
        return {route.name: route.parked for route in self._routes}

    def step(self) -> float | None:
        """Do all that can be done now. Returns the seconds until there is more to do, None: when something comes."""
        while True:
            try:
                call = self._inbox.get_nowait()
            except queue.Empty:
                break
            if call is not None:
                call()
        waits = [wait for route in self._routes if (wait := route.advance()) is not None]
        waits += (chore.do_if_due(self._clock()) for chore in self._chores)
        self._changed()  # those who wait may want to know that nothing more can be done for now
        return min(waits, default=None)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._guarded(lambda: self._wait(self.step()))
        self._guarded(self.step)
        for route in self._routes:
            self._guarded(route.settle_all)

    def _guarded(self, step: Callable[[], object]) -> None:
        """A defect must not end the thread and strand the lanes."""
        try:
            step()
        except Exception:  # noqa: BLE001  (outermost)
            self._log.bug("the courier met a defect and goes on")
            self._stop.wait(_AFTER_DEFECT)

    def _wait(self, seconds: float | None) -> None:
        try:
            call = self._inbox.get(timeout=seconds)
        except queue.Empty:
            return
        # Back into the inbox it would lose its place: what was asked first is answered first.
        if call is not None:
            call()

    def _later(self, call: Callable[[], None]) -> None:
        self._inbox.put(call)


class _Chore:
    """Something to be done every so many seconds."""

    __slots__ = ("_do", "_due", "_every")

    def __init__(self, every: float, do: Callable[[], None], now: float) -> None:
        self._every = every
        self._do = do
        self._due = now + every

    def do_if_due(self, now: float) -> float:
        """Do it if it is time. Returns the seconds until the next time."""
        if now >= self._due:
            self._due = now + self._every
            try:
                self._do()
            except Exception:  # noqa: BLE001  (a chore that fails must not keep events from being delivered)
                Log().bug("a chore of the courier met a defect")
        return max(0.0, self._due - now)
