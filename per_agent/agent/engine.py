"""The running parts of one agent in one process: its spool, its courier, and the spools it has adopted.

Made when an agent starts, dropped when it is closed or when the process forks. Order of stopping: what can
be delivered in time is; the courier ends and hands over what it knows; the spooler commits the rest and
lets go of the folder.
"""

import _thread
import threading
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from per_agent.agent.inheritance import Inheritance
from per_agent.agent.month_end import arrivals
from per_agent.agent.pulse import Pulse
from per_agent.books import Books, total
from per_agent.courier import Courier
from per_agent.destinations import Destination
from per_agent.errors import SpoolError
from per_agent.event import Progress
from per_agent.intake import Intake
from per_agent.log import Log
from per_agent.settings import DeliverySettings, IntakeSettings, SpoolSettings
from per_agent.spool import Spool, Store, answer_requests, own

_TEND_EVERY: Final = 1.0  # seconds between looks at requests, and whether an adopted spool is drained
_START_AGAIN: Final = 1.0  # seconds between tries to start threads
_STORE_TIMEOUT: Final = 5.0  # seconds that storing may take beyond the time given for delivering


class Engine:
    """Spooler and courier at work. `start` returns at once; nothing here is used again after `stop`."""

    def __init__(
        self,
        data_dir: Path,
        destinations: Sequence[Destination],
        intake: Intake,
        progress: Progress,
        *,
        intake_settings: IntakeSettings,
        spool_settings: SpoolSettings,
        delivery_settings: DeliverySettings,
    ) -> None:
        names = [destination.name for destination in destinations]
        self._intake = intake
        self._progress = progress
        self._pulse = Pulse()
        self._stopping = threading.Event()
        self._starter: dict[
            str, bool
        ] = {}  # whether it may start threads; a dict, since `setdefault` needs no lock
        self.started = threading.Event()
        """Set when the threads run, or will never."""
        self._log = Log()
        self.spool = Spool(
            lambda unusable: own(data_dir, names, unusable),
            intake,
            progress,
            intake=intake_settings,
            settings=spool_settings,
        )
        self._inheritance = Inheritance(
            data_dir, names, self.spool, progress, intake=intake_settings, settings=spool_settings
        )
        self.courier = Courier(
            destinations, delivery_settings, progress.announce, chores=[(_TEND_EVERY, self._tend)]
        )

    def start(self) -> None:
        """Have the threads started. Returns at once, however busy the interpreter is.

        `Thread.start` waits until the new thread has run, which beside CPU-bound threads takes a hundred
        milliseconds for each; a caller's first event must not wait for that. So one bare thread starts the
        others. Raises `RuntimeError` where not even that can be started: then nothing was.
        """
        _thread.start_new_thread(self._start_threads, ())

    def abandon(self) -> bool:
        """After a `start` that raised: have it not start anything. False where that thread runs all the same."""
        if self._starter.setdefault("may", False):
            return False
        self.started.set()
        return True

    def _start_threads(self) -> None:
        if not self._starter.setdefault("may", True):
            return
        try:
            while not self._stopping.is_set():
                try:
                    self._start_missing()
                except RuntimeError as error:
                    if "shutdown" in str(error):
                        return  # the program has ended already, and this Python starts no threads then
                    self._log.error("the agent's threads cannot be started: events wait in memory")
                    self._stopping.wait(_START_AGAIN)
                else:
                    return
        finally:
            self.started.set()

    def _start_missing(self) -> None:
        self.courier.start()
        if not self.spool.alive:
            self.spool.start()
            self.courier.attach(self.spool)

    def stop(self, timeout: float | None) -> bool:
        """Deliver what can be delivered within *timeout* seconds, store all, end the threads.

        Does not wait for a destination that is in trouble. True when nothing is pending.
        """
        deadline = _deadline(timeout)
        delivered = False
        self.started.wait(_START_AGAIN)
        self._stopping.set()
        self._inheritance.ending.set()
        self.started.wait()
        if not self.spool.alive:
            self.spool.store_here(_STORE_TIMEOUT)
            return False
        try:
            delivered = self._wait_delivered(deadline)
            self.courier.stop(_left(deadline))
        finally:
            storing = None if timeout is None else (_left(deadline) or 0.0) + _STORE_TIMEOUT
            for spool in (*self._inheritance.spools, self.spool):
                spool.stop(storing)
        return delivered

    def flush(self, timeout: float | None) -> bool:
        """Wait until nothing that was accepted before the call is pending. False when time ran out first."""
        deadline = _deadline(timeout)
        try:
            if not self._wait_stored(deadline):
                return False
            while self.courier.run(partial(self._inheritance.adopt, self.courier), _left(deadline)):
                pass  # what earlier processes left is pending, too
            seq = self.spool.look(lambda store: store.seq, _left(deadline))
            while True:
                seen = self.commits
                if self._delivered_through(seq, deadline):
                    return True
                if not self._progress.wait(partial(self._changed_since, seen), _left(deadline)):
                    return False
        except TimeoutError:
            return False

    def status(self) -> dict[str, Any]:
        """How the spool and each destination are doing, as JSON values."""
        retries, no_answer, parked = self.courier.retries, self.courier.no_answer, self.courier.parked()
        concurrency = self.courier.concurrency
        on_arrival, books = self.courier.on_arrival, total(spool.books for spool in self.spools)
        return {
            "spool": {"id": self.spool.id, "trouble": self.spool.trouble},
            "destinations": {
                name: {
                    **condition.as_dict(),
                    "retries": retries[name],
                    "no_answer": no_answer[name],
                    "concurrency": concurrency[name],
                    "parked_for": parked[name],
                    **arrivals(books.get(name, Books()), counted=name in on_arrival),
                }
                for name, condition in self.courier.conditions.items()
            },
        }

    @property
    def spools(self) -> tuple[Spool, ...]:
        """Its own spool, and those it has adopted."""
        return (self.spool, *self._inheritance.spools)

    def pulse(self) -> list[str]:
        """Ask all threads for a sign of life. Returns those that have not given one since the last call."""
        return self._pulse((*self.spools, self.courier))

    @property
    def unready(self) -> str | None:
        """Why events are not stored, in words, or None. That they are not taken in the intake knows."""
        if self.spool.disk_fails:
            return f"the spool cannot be written: {self.spool.trouble}"
        if self.spool.crowded:
            return self.spool.trouble
        return None if self.spool.id else "the spool is not open yet"

    @property
    def complete(self) -> bool:
        """Whether what earlier processes left was looked for, and looked into."""
        return self._inheritance.complete and all(spool.tried for spool in self.spools)

    @property
    def settled(self) -> bool:
        """Whether nothing that is pending could be delivered before some pause is over."""
        if self.spool.disk_fails:
            return True  # not even what is delivered can be settled
        if self._intake.waiting() or self.spool.newest_in_memory() is not None:
            return self.spool.trouble is not None
        pending = self._pending()
        return not pending or self.courier.stuck(pending)

    def tune(
        self,
        intake_settings: IntakeSettings,
        delivery_settings: DeliverySettings,
        mended: Collection[str],
    ) -> None:
        """Go on with other tunables, and try the destinations named *mended* at once."""
        self._inheritance.intake = intake_settings
        for spool in self.spools:
            spool.tune(intake_settings)
        self.courier.tune(delivery_settings, mended)

    # Waiting

    def _wait_stored(self, deadline: float | None) -> bool:
        """Wait until all that was accepted before the call is committed."""
        newest = self._intake.newest()
        if newest is not None and not newest.stored(_left(deadline)):
            return False
        # What the spooler had already taken is committed with this, unless the spool is full.
        self.spool.run(lambda _: None, _left(deadline))
        newest = self.spool.newest_in_memory()
        return newest is None or newest.stored(_left(deadline))

    def _delivered_through(self, seq: int, deadline: float | None) -> bool:
        for spool in self._inheritance.spools:
            if not spool.id or any(counts.pending for counts in spool.books.values()):
                return False

        def pending(store: Store) -> bool:
            return store.pending_through(seq)

        return not self.spool.look(pending, _left(deadline))

    @property
    def commits(self) -> int:
        """A number that changes when something was committed, or an adopted spool was opened."""
        return sum(spool.commits + bool(spool.id) for spool in self.spools)

    def _changed_since(self, commits: int) -> bool:
        return self.commits != commits

    def _pending(self) -> dict[str, int]:
        books = total(spool.books for spool in self.spools)
        return {lane: counts.pending for lane, counts in books.items() if counts.pending}

    def _wait_delivered(self, deadline: float | None) -> bool:
        try:
            # The disk's trouble is not waited for here: storing has its own time.
            if self.spool.trouble is not None or not self._wait_stored(deadline):
                return False
        except (TimeoutError, SpoolError):
            return False
        self._progress.wait(
            lambda: not (left := self._pending()) or self.courier.stuck(left), _left(deadline)
        )
        return not self._pending()

    # Other spools, in the courier's thread

    def _tend(self) -> None:
        """Answer requests about dead letters, absorb adopted spools that are drained, look for new ones."""
        for spool in self.spools:
            if spool.folder is not None:
                answer_requests(spool.folder, spool.post)
        self._inheritance.tend(self.courier)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
