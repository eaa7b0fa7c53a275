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
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final

from per_agent.errors import SpoolCorrupt, SpoolError
from per_agent.event import Progress, Receipt
from per_agent.log import Log
from per_agent.settings import IntakeSettings, SpoolSettings
from per_agent.spool.block import Block
from per_agent.spool.folder import Claim
from per_agent.spool.readers import Readers
from per_agent.spool.room import Room
from per_agent.spool.store import STORAGE_TROUBLE, Store, Transaction
from per_agent.spool.tickets import Tickets
from per_agent.spool.trouble import Trouble
from per_agent.spool.work import Head, Source, Work

_GROUP_BLOCKS: Final = (
    16  # blocks of new events in one commit, so that a settlement never waits long for its turn
)
_FULL_RECHECK: Final = 0.25  # seconds between looks whether a full spool has room again
_OPEN_TRIES: Final = 3  # of a spool that was there before, until another is taken instead

Fresh = list[tuple[list[Block], Sequence[Receipt]]]
"""The blocks of one commit's new events, one for each lane, and the receipts of their events."""


def nothing(_: object) -> None:
    """What is done where nothing is to be done."""


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
        self._claim = claim
        self._source = source
        self._progress = progress
        self._linger = intake.linger
        self._block_events = intake.block_events
        self._clock = clock
        self._committed = committed
        self._room = Room(settings.max_bytes, source)
        self._works: list[Work] = []
        self._dropped: dict[str, int] = {}
        self.tickets = Tickets()
        self._committed_at = float("-inf")
        self._disk = Trouble()
        self._readers = Readers(self._works, self._disk)
        self._unusable: set[str] = set()
        self._log = Log()
        self.inbox: queue.SimpleQueue[Work | Head | None] = queue.SimpleQueue()
        self.woken = False  # whether a wake lies in the inbox, so that another would add nothing
        self.stop = threading.Event()
        self.deadline: float | None = None
        self.opened: Future[None] = Future()
        self.ended = False
        self.keeps_claim = False
        self.store: Store | None = None
        self.held: Claim | None = None
        self.carried: list[Receipt] = []  # taken from the source, not yet committed
        self.commits = 0

    @property
    def trouble(self) -> str | None:
        """What keeps the spool from committing, or None."""
        return self._disk.words or ("full" if self._room.full else None)

    def run(self) -> None:
        """Open the spool, and commit until it is stopped and all is stored."""
        try:
            while not self._guarded(self._open):
                if self.stop.wait(self._disk.seconds_left()):
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
            self._log.bug("the spooler met a defect and goes on")
            self.stop.wait(1.0)
            return None

    # Opening

    def _open(self) -> bool:
        try:
            if self.held is None:
                self.held = self._claim(frozenset(self._unusable))
            self.store = Store(self.held.folder)
        except STORAGE_TROUBLE as error:
            self._could_not_open(error)
            return False
        self._log = self._disk.log = Log(spool=self.held.id)
        self._disk.over()
        if not self.opened.done():
            self.opened.set_result(None)
        return True

    def _could_not_open(self, error: BaseException) -> None:
        """Keep the claim and try again: a spool that is opened without its lock would be opened twice."""
        self._disk.met(error)
        if (
            self.held is not None
            and not self.held.fresh
            and self._disk.failures >= _OPEN_TRIES
            and self._source is not None
        ):
            # It was there before, so another will do; a new one that cannot be opened would only be the next.
            self._log.error("a spool cannot be opened and is left alone", spool=self.held.id)
            self._unusable.add(self.held.id)
            self.held.release()
            self.held = None
        if not self.opened.done():
            words = (
                error if isinstance(error, SpoolError) else SpoolError(f"the spool cannot be opened: {error}")
            )
            self.opened.set_exception(words)

    def _reopened_if_gone(self) -> bool:
        """Somebody deleted the folder: what was in it is gone, what is still in memory is not.

        False when there is no spool to go on with: it was stopped before, or it was another's.
        """
        assert self.store is not None
        if self.store.in_place():
            return True
        lost = {lane: books.pending for lane, books in self.store.books.items() if books.pending}
        self._log.error("the spool's folder was deleted under way", events_lost=lost)
        self.store.close()
        if self.held is not None:
            self.held.release()
            self.held = None
        if self._source is None:
            self.stop.set()
            self._works.clear()
            return False
        while not self._open():
            if self.stop.wait(self._disk.seconds_left()):
                return False
        return True

    # Committing

    def step(self) -> bool:
        """Wait for something to do, then commit it. False when the spool was stopped and all is stored."""
        self._gather()
        stopping = self.stop.is_set()
        if stopping and self._source is not None:
            self._source.seal()
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
            try:
                asked = self.inbox.get(block=wait is None or wait > 0, timeout=wait)
            except queue.Empty:
                break
            match asked:
                case Head():
                    assert self.store is not None
                    self._readers.answer(asked, self.store)
                case Work():
                    self._works.append(asked)
                case None:
                    self.woken = False  # before looking at what it was about
        if self._source is not None:
            self._source.wake_at(None)

    def _seconds_to_commit(self) -> float | None:
        """How long to wait for more before committing; None: until something comes."""
        if self._disk.failures:
            return self._disk.seconds_left()
        if self.stop.is_set():
            return 0.0
        if (self.carried or self._room.full) and not (self._works or self._dropped):
            return max(
                0.0, self._committed_at + _FULL_RECHECK - time.monotonic()
            )  # nobody else would look again
        if self._source is not None:
            # First say when to be woken, then look: what comes in between is seen by one or the other.
            self._source.wake_at(self._block_events if self._has_something() else 1)
        if not self._has_something():
            return None
        full = self._source is not None and self._source.waiting() >= self._block_events
        if full or self._progress.awaited or any(work.hurried for work in self._works):
            return 0.0
        return max(0.0, self._committed_at + self._linger - time.monotonic())

    def _has_something(self) -> bool:
        return bool(
            self._works
            or self.carried
            or self._dropped
            or (self._source is not None and self._source.waiting())
        )

    def _commit(self) -> None:
        """Commit all that was gathered. When the disk refuses, keep it for the next try."""
        if not self._reopened_if_gone():
            return
        assert self.store is not None
        if self._source is not None:
            if not self.carried:
                self.carried = self._source.take(_GROUP_BLOCKS * self._block_events)
            for lane, count in self._source.take_dropped().items():
                self._dropped[lane] = self._dropped.get(lane, 0) + count
        self._committed_at = time.monotonic()
        # At a stop what was accepted is stored beyond the limit, too: else it would be lost.
        receipts = self.carried if self._room.look(self.store, self._log) or self.stop.is_set() else []
        if not (self._works or receipts or self._dropped):
            return
        works = self._works[:]
        self._works.clear()
        try:
            with self.store.transaction() as changes:
                results = [work.apply(changes) for work in works]
                fresh = self._append(changes, receipts)
                for lane, count in self._dropped.items():
                    changes.drop(lane, count)
        except SpoolCorrupt:  # what a work met on the disk; the disk itself is well
            self._one_by_one(works)
            return
        except STORAGE_TROUBLE as error:
            self._works[:0] = works
            self._disk.met(error)
            return
        except Exception:  # noqa: BLE001  (one of the works is at fault: find out which, let the others through)
            if not works:
                self._log.bug("new events could not be stored and are tried again")
            self._one_by_one(works)
            return
        self.commits += changes.changed
        self._disk.over()
        if receipts:
            self.carried = []
        self._dropped = {}
        self._after_commit(works, results, fresh)

    def _append(self, changes: Transaction, receipts: Sequence[Receipt]) -> Fresh:
        """Add the receipts' events as blocks: those that go to the same lanes together, in their order."""
        routes: dict[tuple[str, ...], list[Receipt]] = {}
        for receipt in receipts:
            routes.setdefault(receipt._lanes, []).append(receipt)  # noqa: SLF001  (the spooler's side of a receipt)
        now = self._clock()
        return [
            (changes.append(lanes, [receipt._encoded for receipt in some], now), some)  # noqa: SLF001
            for lanes, all_of_them in routes.items()
            for some in _batched(all_of_them, self._block_events)
        ]

    def _after_commit(self, works: list[Work], results: list[Any], fresh: Fresh) -> None:
        for blocks, receipts in fresh:
            self.tickets.stored(blocks, receipts)
        for work, result in zip(works, results, strict=True):
            self._tell(work, result)
        self._committed()
        assert self.store is not None
        new = [block for blocks, _ in fresh for block in blocks]
        self._readers.feed(new, self.store, stirred=any(work.stirs for work in works))

    def _one_by_one(self, works: list[Work]) -> None:
        assert self.store is not None
        for at, work in enumerate(works):
            try:
                with self.store.transaction() as changes:
                    result = work.apply(changes)
            except SpoolCorrupt as error:
                work.fail(error)
            except STORAGE_TROUBLE as error:
                self._works[:0] = works[at:]
                self._disk.met(error)
                return
            except Exception as error:  # noqa: BLE001  (told to the one who asked)
                work.fail(error)
            else:
                self.commits += changes.changed
                self._tell(work, result)
        self._committed()
        self._readers.feed([], self.store, stirred=True)

    def _tell(self, work: Work, result: Any) -> None:
        """Tell whoever asked for *work*. What goes wrong there must not keep others from being told."""
        try:
            work.then(result)
        except Exception:  # noqa: BLE001  (a defect of theirs)
            self._log.bug("a change was made, and telling of it failed")

    # State

    def bug(self, error: BaseException) -> None:
        """A change that nobody waits for could not be made."""
        if not self.ended:
            self._log.error("the spool could not make a change", problem=repr(error))

    def _leave(self) -> None:
        left = len(self.carried) + (self._source.waiting() if self._source is not None else 0)
        if left:
            self._log.error(
                "stopped with events that could not be stored", events_lost=left, trouble=self.trouble
            )
        if self.store is not None:
            self.store.close()
        if self.held is not None and not self.keeps_claim:
            self.held.release()
        self.ended = True
        closed = SpoolError("the spool is closed")
        for work in self._works:
            work.fail(closed)
        while True:
            try:
                asked = self.inbox.get_nowait()
            except queue.Empty:
                break
            if isinstance(asked, Work):
                asked.fail(closed)
        self._progress.close()


def _batched(several: list[Receipt], size: int) -> list[list[Receipt]]:
    return [several[at : at + size] for at in range(0, len(several), size)]
