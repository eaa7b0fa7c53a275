"""The threads that talk to one destination: as many as it may have requests in flight.

Threads and a blocking client, rather than an event loop: at interpreter exit an event loop can no longer open
connections by name. A thread can no longer be started then, either: the first are started with the courier, and
where more cannot be, these do.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from per_agent.destinations import Destination, Outcome, Retry
from per_agent.event import Event
from per_agent.log import Log

Task = Callable[[], None]


class Senders:
    """Runs `send` and `probe` of one destination beside the courier's thread."""

    def __init__(self, destination: Destination, first: int) -> None:
        self._destination = destination
        self._first = first
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._log = Log(destination=destination.name)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the first threads. Raises `RuntimeError` where one cannot be started; to be called again then."""
        while len(self._threads) < self._first:
            self._start_one()

    def grow(self, count: int) -> None:
        """Have *count* threads, or as many as there can be."""
        with suppress(RuntimeError):
            while len(self._threads) < count:
                self._start_one()

    def _start_one(self) -> None:
        name = f"per_agent sender {self._destination.name} {len(self._threads)}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def send(self, events: Sequence[Event], then: Callable[[Sequence[Outcome], float], None]) -> None:
        """Offer *events*; *then* is called with their outcomes and the seconds it took, from one of the threads."""

        def task() -> None:
            began = time.monotonic()
            try:
                outcomes = self._destination.send(events)
                if len(outcomes) != len(events):
                    raise AssertionError(f"{len(outcomes)} outcomes for {len(events)} events")  # noqa: TRY301
            except Exception as error:  # noqa: BLE001  (a defect of a destination must not lose its events)
                self._log.bug("a destination met a defect; its events are kept")
                outcomes = [Retry(f"a defect in per_agent: {error!r}")] * len(events)
            then(outcomes, time.monotonic() - began)

        self._tasks.put(task)

    def probe(self, key: str, then: Callable[[bool], None]) -> None:
        """Ask whether what was parked under *key* may go on."""

        def task() -> None:
            try:
                may_go_on = self._destination.probe(key)
            except Exception:  # noqa: BLE001  (as above)
                self._log.bug("a destination met a defect; its events stay parked")
                may_go_on = False
            then(may_go_on)

        self._tasks.put(task)

    def stop(self) -> None:
        """Let the threads end when they have done what they are doing."""
        self._tasks.put(None)

    def join(self, seconds_left: Callable[[], float | None]) -> bool:
        for thread in self._threads:  # also those that are started meanwhile
            thread.join(seconds_left())
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
        self._tasks.put(None)  # for the next thread
