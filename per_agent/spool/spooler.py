"""The spooler: the one thread that touches one spool's database.

It takes new events from the intake's buffer and settlements from the courier, and commits them together:
one fsync for all. When nothing was going on, an event is committed at once; under load the spooler lingers,
so that some hundreds share a commit. Nobody ever waits for it: events are left in a buffer, work and
questions in an inbox, and answers come as calls from this thread, which must not block.

Order of promises: a receipt is *stored* only after the commit, a block's events are settled only after
theirs, and a commit that fails (full disk, lock, I/O error) has changed nothing and is tried again with all
that it contained.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from per_agent import failpoint
from per_agent.errors import SpoolCorrupt, SpoolError
from per_agent.event import Progress
from per_agent.settings import IntakeSettings, SpoolSettings
from per_agent.spool.folder import Claim
from per_agent.spool.home import Home
from per_agent.spool.inflow import Fresh, Inflow
from per_agent.spool.readers import Readers
from per_agent.spool.room import Room
from per_agent.spool.store import STORAGE_TROUBLE
from per_agent.spool.tickets import Tickets
from per_agent.spool.transaction import Transaction
from per_agent.spool.trouble import Trouble
from per_agent.spool.work import Head, Sign, Source, Work

_FULL_RECHECK: Final = 0.25  # seconds between looks whether a full spool has room again
_LINGER: Final = 0.05  # seconds at most that what is asked for waits for company, however long new events may


class Spooler:
    """The thread's side of a `Spool`: `run` is the thread. The inbox is for any thread.

    *claim* gives a spool's folder, other than those named: which could not be opened.
    """

    def __init__(
        self,
        claim: Callable[[frozenset[str]], Claim],
        source: Source | None,
        progress: Progress,
        *,
        intake: IntakeSettings,
        settings: SpoolSettings,
        clock: Callable[[], float],
        committed: Callable[[], None],
    ) -> None:
        self._source = source
        self._progress = progress
        self._tell_all = committed
        self._works: list[Work] = []
        self._committed_at = float("-inf")
        self.disk = Trouble()
        self._readers = Readers(self._works, self.disk)
        self.linger = intake.linger
        self.inflow = Inflow(source, intake.block_events, clock)
        self.room = Room(settings.max_bytes, source)
        self.home = Home(claim, self.disk, self._works, self._later, settled=source is None)
        self.tickets = Tickets()
        self.inbox: queue.SimpleQueue[Work | Head | Sign | None] = queue.SimpleQueue()
        self.woken = False  # whether a wake lies in the inbox, so that another would add nothing
        self.stop = threading.Event()
        self.deadline: float | None = None
        self.ended = False
        self.keeps_claim = False
        self.commits = 0
        self.changed_at = time.monotonic()  # when something was last changed on the disk

    @property
    def trouble(self) -> str | None:
        """What keeps the spool from committing, or None."""
        return self.disk.words or self.room.trouble

    def _later(self, work: Work) -> None:
        if not self.stop.is_set():
            self.inbox.put(work)

    def run(self) -> None:
        """Open the spool, and commit until it is stopped and all is stored."""
        try:
            while not (opened := self._guarded(self._opened)):
                if opened is not None or self.stop.is_set():
                    return
            while self._guarded(self.step) is not False:
                pass
        finally:
            self._leave()

    def _guarded(self, step: Callable[[], bool]) -> bool | None:
        """What *step* gives, or None: a defect must not end the thread and lose events."""
        try:
            return step()
        except Exception:  # noqa: BLE001  (outermost)
            self.home.log.bug("the spooler met a defect and goes on")
            self.stop.wait(1.0)
            return None

    # Opening

    def _opened(self) -> bool:
        """Open the spool, however long that takes; when it is stopped, try once more at once. False: in vain."""
        while not self._open():
            if not self._wait_for_disk():
                return self._open()
        return True

    def _open(self) -> bool:
        if not (self.home.is_open or self.home.open()) or not self.home.settle_in(self.inflow):
            return False
        assert self.home.held is not None
        self.room.measure(self.home.store)
        self.room.settle_in(self.home.held.folder, self.home.log)
        self._works += self.home.recoveries(self.inflow)
        self.home.ready()
        self._readers.begin_anew()
        self._readers.feed([], self.home.store, stirred=True)
        return True

    def _wait_for_disk(self) -> bool:
        """Wait until it is time to try again, and keep what is asked meanwhile. False: it was stopped."""
        while (left := self.disk.seconds_left()) > 0 and not self.stop.is_set():
            try:
                self._receive(self.inbox.get(timeout=left))
            except queue.Empty:
                break
        return not self.stop.is_set()

    def _at_home(self) -> bool:
        """Go on with another spool where somebody deleted this one: what is still in memory is not gone.

        False when there is no spool to go on with: it was stopped before, or it was another's.
        """
        if self.disk.damage is not None:
            self.home.give_up()
            return self._opened()
        if self.home.is_open and not self.home.is_gone():
            return self.home.settle_in(self.inflow)
        if self._source is None:
            self.stop.set()
            self._works.clear()
            return False
        return self._opened()

    # Committing

    def step(self) -> bool:
        """Wait for something to do, then commit it. False when the spool was stopped and all is stored."""
        self._gather()
        stopping = self.stop.is_set()
        if stopping:
            self.inflow.seal()
        self._commit()
        if not stopping:
            return True
        if not self._has_something():
            return False
        return self.deadline is None or time.monotonic() < self.deadline

    def _gather(self) -> None:
        """Collect work until it is time to commit. Questions are answered meanwhile."""
        while True:
            wait = self._seconds_to_commit()
            look = wait and self.inflow.next_look(wait)
            try:
                self._receive(self.inbox.get(block=wait is None or wait > 0, timeout=look))
            except queue.Empty:
                if look == wait:
                    break
        self.inflow.wake_at(None)

    def _receive(self, asked: Work | Head | Sign | None) -> None:
        match asked:
            case Head():
                self._readers.answer(asked, self.home.store)
            case Work():
                self._works.append(asked)
            case Sign():
                asked.give()
            case None:
                self.woken = False  # before looking at what it was about

    def _seconds_to_commit(self) -> float | None:
        """How long to wait for more before committing; None: until something comes."""
        if self.disk.failures:
            return self.disk.seconds_left()
        if self.stop.is_set():
            return 0.0
        if (self.inflow.carried or self.room.closed) and not (self._works or self.inflow.dropped):
            # Nobody else would look again.
            return max(0.0, self._committed_at + _FULL_RECHECK - time.monotonic())
        # First say when to be woken, then look: what comes in between is seen by one or the other.
        self.inflow.wake_at(self.inflow.storm if self._has_something() else 1)
        if not self._has_something():
            return None
        full = self.inflow.waiting() >= self.inflow.block_events
        if full or self._progress.awaited or any(work.hurried for work in self._works):
            return 0.0
        linger = min(self.linger, _LINGER) if self._works else self.linger
        return max(0.0, self._committed_at + linger - time.monotonic())

    def _has_something(self) -> bool:
        return bool(self._works) or self.inflow.something

    def _commit(self) -> None:
        """Commit all that was gathered. When the disk refuses, keep it for the next try."""
        if not self._at_home():
            return
        store = self.home.store
        assert store is not None
        self.inflow.take()
        self._committed_at = time.monotonic()
        beside, stopping = bool(self._works), self.stop.is_set()
        receipts = self.room.admit(store, self.inflow, self.home.log, beside=beside, stopping=stopping)
        if not (self._works or receipts or self.inflow.dropped):
            self.disk.forget()
            return
        works = self._works[:]
        self._works.clear()
        try:
            with store.transaction() as changes:
                results = [work.apply(changes) for work in works]
                fresh = self.inflow.write(changes, receipts)
                failpoint.reach("before commit")
            failpoint.reach("after commit")
        except SpoolCorrupt:  # what a work met on the disk; the disk itself is well
            self._one_by_one(works)
            return
        except STORAGE_TROUBLE as error:
            self._works[:0] = works
            if not self.room.lacked(error, store, self.home.log, adding=bool(receipts)):
                self.disk.met(error)
            return
        except Exception:  # noqa: BLE001  (one of the works is at fault: find out which, let the others through)
            if not works:
                self.home.log.bug("new events could not be stored and are tried again")
            self._one_by_one(works)
            return
        self.disk.over()
        self.inflow.written(receipts)
        self._committed(changes)
        self._after_commit(works, results, fresh)

    def _committed(self, changes: Transaction) -> None:
        if changes.changed:
            self.commits += 1
            self.changed_at = time.monotonic()
            self.home.note()
        self.room.measure(self.home.store)

    def _after_commit(self, works: list[Work], results: list[Any], fresh: Fresh) -> None:
        for blocks, receipts in fresh:
            self.tickets.stored(blocks, receipts)
        for work, result in zip(works, results, strict=True):
            work.tell(result, self.home.log)
        self._tell_all()
        new = [block for blocks, _ in fresh for block in blocks]
        self._readers.feed(new, self.home.store, stirred=any(work.stirs for work in works))

    def _one_by_one(self, works: list[Work]) -> None:
        store = self.home.store
        assert store is not None
        for at, work in enumerate(works):
            try:
                with store.transaction() as changes:
                    result = work.apply(changes)
                failpoint.reach("committed alone")
            except SpoolCorrupt as error:
                work.fail(error)
            except STORAGE_TROUBLE as error:
                self._works[:0] = works[at:]
                self.disk.met(error)
                return
            except Exception as error:  # noqa: BLE001  (told to the one who asked)
                work.fail(error)
            else:
                self._committed(changes)
                work.tell(result, self.home.log)
        self._tell_all()
        self._readers.feed([], store, stirred=True)

    def bug(self, error: BaseException) -> None:
        """A change that nobody waits for could not be made."""
        if not self.ended:
            self.home.log.error("the spool could not make a change", problem=repr(error))

    def _leave(self) -> None:
        left, lost = self.inflow.left, self.inflow.finish()
        if left:
            said = {"in_the_journal": left - lost, "events_lost": lost, "trouble": self.trouble}
            self.home.log.error("stopped with events that could not be stored", **said)
        self.home.leave(keep_claim=self.keeps_claim)
        self.ended = True
        closed = SpoolError("the spool is closed")
        for work in self._works:
            work.fail(closed)
        while not self.inbox.empty():
            asked = self.inbox.get_nowait()
            if isinstance(asked, Work):
                asked.fail(closed)
            elif isinstance(asked, Sign):
                asked.give()
        self._progress.close()
