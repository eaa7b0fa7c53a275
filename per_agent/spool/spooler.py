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
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

import diskcache

from per_agent.backoff import Backoff
from per_agent.books import Books
from per_agent.errors import PerAgentError, SpoolCorrupt, SpoolError, SpoolFull
from per_agent.event import Progress, Receipt, Ticket
from per_agent.log import Log
from per_agent.settings import IntakeSettings, SpoolSettings
from per_agent.spool.block import Block, BlockId
from per_agent.spool.folder import Claim
from per_agent.spool.records import Settlement
from per_agent.spool.store import Store, Transaction

STORAGE_TROUBLE: Final = (sqlite3.Error, diskcache.Timeout, OSError, SpoolError)
_GROUP_BLOCKS: Final = 16  # blocks of new events in one commit, so that a settlement never waits long for its turn
_RETRY: Final = Backoff(initial=0.1, ceiling=5.0)  # while the disk refuses
_FULL_RECHECK: Final = 0.25  # seconds between looks whether a full spool has room again


def _nothing(_: object) -> None:
    """What is done where nothing is to be done."""


class Source(Protocol):
    """Where new events come from. Called from the spooler's thread only."""

    def take(self, limit: int) -> list[Receipt]:
        """Up to *limit* receipts in the order in which they were accepted; they are ours from then on."""
        ...

    def take_dropped(self) -> dict[str, int]:
        """For each lane, the events that were given up under the overflow policy since the last call."""
        ...

    def waiting(self) -> int: ...

    def wake_at(self, count: int | None) -> None:
        """Call `Spool.wake` when *count* receipts wait; None: not at all."""
        ...

    def refuse(self, reason: PerAgentError | None) -> None:
        """Take no more events in, for *reason*, by the overflow policy; None: go on."""
        ...

    def seal(self) -> None:
        """Take no more events in, ever."""
        ...


class Work:
    """One change of the spool, and whom to tell: `then` after the commit, `fail` when it cannot be made."""

    __slots__ = ("apply", "fail", "hurried", "stirs", "then")

    def __init__(
        self,
        apply: Callable[[Transaction], Any],
        then: Callable[[Any], None],
        fail: Callable[[BaseException], None],
        *,
        stirs: bool = False,
        hurried: bool = False,
    ) -> None:
        self.apply = apply
        self.then = then
        self.fail = fail
        self.stirs = stirs  # whether blocks may have appeared that are not new events
        self.hurried = hurried  # whether somebody waits, so that lingering would hold them up


class Head:
    """A courier's question for the blocks of a lane that follow `after`; answered when there are some."""

    __slots__ = ("after", "lane", "limit", "reply")

    def __init__(
        self, lane: str, after: BlockId | None, limit: int, reply: Callable[[list[Block]], None]
    ) -> None:
        self.lane = lane
        self.after = after
        self.limit = limit
        self.reply = reply


class Spool:
    """One spool in use: the folder's lock, the database and the thread that owns it.

    Threads: every method may be called from any thread; callbacks come from the spooler's own. Forks: a
    child must call `abandon` and make another.
    """

    def __init__(  # noqa: PLR0913  (its parts, all keyword-only where they are settings)
        self,
        claim: Callable[[], Claim],
        source: Source | None,
        progress: Progress,
        *,
        intake: IntakeSettings,
        settings: SpoolSettings,
        clock: Callable[[], float] = time.time,
        committed: Callable[[], None] | None = None,
    ) -> None:
        self._claim = claim
        self._source = source
        self._progress = progress
        self._linger = intake.linger
        self._block_events = intake.block_events
        self._max_bytes = settings.max_bytes
        self._clock = clock
        self._committed = committed or progress.announce
        self._inbox: queue.SimpleQueue[Work | Head | None] = queue.SimpleQueue()
        self._works: list[Work] = []
        self._carried: list[Receipt] = []  # taken from the source, not yet committed
        self._dropped: dict[str, int] = {}
        self._readers: dict[str, Head] = {}
        self._tickets: WeakValueDictionary[int, Ticket] = WeakValueDictionary()
        self._stop = threading.Event()
        self._deadline: float | None = None
        self._opened: Future[None] = Future()
        self._store: Store | None = None
        self._held: Claim | None = None
        self._committed_at = float("-inf")
        self._failures = 0
        self._retry_at = 0.0  # monotonic; counts while there are failures
        self._full = False
        self._ended = False
        self._keeps_claim = False
        self.commits = 0
        """How often something changed on the disk."""
        self._log = Log()
        self._thread = threading.Thread(target=self._run, name="per_agent spooler", daemon=True)
        self.id = ""
        self.trouble: str | None = None
        """What keeps the spool from committing, or None."""

    # For any thread

    def start(self) -> None:
        """Start the thread, which opens the spool. Returns at once."""
        self._thread.start()

    def wait_opened(self, timeout: float | None = None) -> None:
        """Wait until the spool is open. Raises `SpoolError` when the first try failed (it goes on trying)."""
        self._opened.result(timeout)

    def wake(self) -> None:
        """Look for something to do. Takes no lock and makes no system call that could wait."""
        self._inbox.put(None)

    def head(self, lane: str, after: BlockId | None, limit: int, reply: Callable[[list[Block]], None]) -> None:
        """Ask for up to *limit* blocks of *lane* that follow *after*, oldest first.

        *reply* is called with at least one block: at once, or when there is one. A later question for the
        same lane takes the place of one that is still open.
        """
        self._inbox.put(Head(lane, after, limit, reply))

    def settle(
        self, block: Block, what: Settlement, then: Callable[[], None], *, hurried: bool = False
    ) -> None:
        """Take events out of *block*, with the next commit; *then* is called after it. *hurried*: do not linger."""

        def settled(_: object) -> None:
            self._tell_ticket(block, what)
            then()

        self._inbox.put(Work(lambda changes: changes.settle(block, what), settled, self._bug, hurried=hurried))

    def post(
        self, change: Callable[[Transaction], Any], then: Callable[[Any], None] = _nothing
    ) -> None:
        """Make *change* with the next commit; *then* is called with its result after it."""
        self._inbox.put(Work(change, then, self._bug, stirs=True))

    def run(self, change: Callable[[Transaction], Any], timeout: float | None = None) -> Any:
        """Make *change* and return its result once it is committed. Raises what it raised, or `TimeoutError`."""
        done: Future[Any] = Future()
        self._inbox.put(Work(change, done.set_result, done.set_exception, stirs=True, hurried=True))
        if self._ended:
            raise SpoolError("the spool is closed")
        return done.result(timeout)

    def look(self, question: Callable[[Store], Any], timeout: float | None = None) -> Any:
        """What *question* finds in the store, asked in the spooler's thread between two commits."""

        def ask(_: Transaction) -> Any:
            assert self._store is not None
            return question(self._store)

        return self.run(ask, timeout)

    def post_look(self, question: Callable[[Store], Any], then: Callable[[Any], None]) -> None:
        """As `look`, without waiting: *then* is called with the answer."""

        def ask(_: Transaction) -> Any:
            assert self._store is not None
            return question(self._store)

        self._inbox.put(Work(ask, then, self._bug))

    @property
    def books(self) -> dict[str, Books]:
        """The committed books of each lane."""
        store = self._store
        return {} if store is None else dict(store.books)

    def stop(self, timeout: float | None) -> bool:
        """Store all that was accepted, release the spool and end the thread. False when time ran out first."""
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._stop.set()
        self.wake()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def folder(self) -> Path | None:
        """Where the spool lies; None until it is open."""
        return None if self._held is None else self._held.folder

    def in_memory(self) -> dict[str, int]:
        """For each lane, the events that were taken from the source and are not yet committed."""
        counts: Counter[str] = Counter()
        for receipt in tuple(self._carried):
            counts.update(receipt._lanes)  # noqa: SLF001  (the spooler's side of a receipt)
        return dict(counts)

    def retire(self) -> Claim:
        """End the thread, and hand over the claim: the folder stays held. For a spool that is drained."""
        self._keeps_claim = True
        self.stop(None)
        assert self._held is not None
        return self._held

    def abandon(self) -> None:
        """In a forked child: leave the parent's spool to the parent. Nothing of it is closed or written."""
        if self._held is not None:
            self._held.release()

    # The spooler's thread

    def _run(self) -> None:
        try:
            while not self._open():
                if self._stop.wait(max(0.0, self._retry_at - time.monotonic())):
                    return
            while True:
                try:
                    if not self.step():
                        return
                except Exception:  # noqa: BLE001  (outermost: a defect must not end the thread and lose events)
                    self._log.bug("the spooler met a defect and goes on")
                    self._stop.wait(1.0)
        finally:
            self._leave()

    def _open(self) -> bool:
        try:
            self._held = self._claim()
            self._store = Store(self._held.folder)
        except STORAGE_TROUBLE as error:
            if self._held is not None:
                self._held.release()
                self._held = None
            self._say_trouble(error)
            if not self._opened.done():
                self._opened.set_exception(
                    error if isinstance(error, SpoolError) else SpoolError(f"the spool cannot be opened: {error}")
                )
            return False
        self.id = self._held.id
        self._log = Log(spool=self.id)
        self._say_well()
        if not self._opened.done():
            self._opened.set_result(None)
        return True

    def step(self) -> bool:
        """Wait for something to do, then commit it. False when the spool was stopped and all is stored."""
        self._gather()
        stopping = self._stop.is_set()
        if stopping and self._source is not None:
            self._source.seal()
        self._commit()
        if not stopping:
            return True
        if not self._has_something():
            return False
        return self._deadline is None or time.monotonic() < self._deadline

    def _gather(self) -> None:
        """Collect work until it is time to commit. Questions are answered meanwhile."""
        while True:
            wait = self._seconds_to_commit()
            try:
                asked = self._inbox.get(block=wait is None or wait > 0, timeout=wait)
            except queue.Empty:
                break
            if isinstance(asked, Head):
                self._answer(asked)
            elif isinstance(asked, Work):
                self._works.append(asked)
        if self._source is not None:
            self._source.wake_at(None)

    def _seconds_to_commit(self) -> float | None:
        """How long to wait for more before committing; None: until something comes."""
        if self._failures:
            return max(0.0, self._retry_at - time.monotonic())
        if self._stop.is_set():
            return 0.0
        if (self._carried or self._full) and not (self._works or self._dropped):
            return max(0.0, self._committed_at + _FULL_RECHECK - time.monotonic())  # nobody else would look again
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
            self._works or self._carried or self._dropped or (self._source is not None and self._source.waiting())
        )

    def _commit(self) -> None:
        """Commit all that was gathered. When the disk refuses, keep it for the next try."""
        if not self._reopened_if_gone():
            return
        assert self._store is not None
        if self._source is not None:
            if not self._carried:
                self._carried = self._source.take(_GROUP_BLOCKS * self._block_events)
            for lane, count in self._source.take_dropped().items():
                self._dropped[lane] = self._dropped.get(lane, 0) + count
        self._committed_at = time.monotonic()
        # At a stop what was accepted is stored beyond the limit, too: else it would be lost.
        receipts = self._carried if self._room() or self._stop.is_set() else []
        if not (self._works or receipts or self._dropped):
            return
        works, self._works = self._works, []
        try:
            with self._store.transaction() as changes:
                results = [work.apply(changes) for work in works]
                fresh = self._append(changes, receipts)
                for lane, count in self._dropped.items():
                    changes.drop(lane, count)
        except SpoolCorrupt:  # what a work met on the disk; the disk itself is well
            self._one_by_one(works)
            return
        except STORAGE_TROUBLE as error:
            self._works = works + self._works
            self._say_trouble(error)
            return
        except Exception:  # noqa: BLE001  (one of the works is at fault: find out which, let the others through)
            self._one_by_one(works)
            return
        self.commits += changes.changed
        self._say_well()
        if receipts:
            self._carried = []
        self._dropped = {}
        self._after_commit(works, results, fresh)

    def _reopened_if_gone(self) -> bool:
        """Somebody deleted the folder: what was in it is gone, what is still in memory is not.

        False when the spool was stopped before a new one could be made.
        """
        assert self._store is not None
        if self._store.in_place():
            return True
        lost = {lane: books.pending for lane, books in self._store.books.items() if books.pending}
        self._log.error("the spool's folder was deleted under way; a new one is made", events_lost=lost)
        self._store.close()
        if self._held is not None:
            self._held.release()
            self._held = None
        while not self._open():
            if self._stop.wait(max(0.0, self._retry_at - time.monotonic())):
                return False
        return True

    def _append(
        self, changes: Transaction, receipts: Sequence[Receipt]
    ) -> list[tuple[list[Block], Sequence[Receipt]]]:
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

    def _after_commit(
        self, works: list[Work], results: list[Any], fresh: list[tuple[list[Block], Sequence[Receipt]]]
    ) -> None:
        for blocks, receipts in fresh:
            ticket = Ticket(blocks[0].events, [block.lane for block in blocks])
            self._tickets[blocks[0].id.seq] = ticket
            for at, receipt in enumerate(receipts):
                receipt._at = at  # noqa: SLF001
                receipt._ticket = ticket  # noqa: SLF001
        for work, result in zip(works, results, strict=True):
            work.then(result)
        self._committed()
        self._feed_readers(fresh, stirred=any(work.stirs for work in works))

    def _feed_readers(
        self, fresh: list[tuple[list[Block], Sequence[Receipt]]], *, stirred: bool
    ) -> None:
        if not self._readers:
            return
        if stirred:
            for reader in list(self._readers.values()):
                self._answer(reader)
        new: dict[str, list[Block]] = {}
        for blocks, _ in fresh:
            for block in blocks:
                new.setdefault(block.lane, []).append(block)
        for lane, some in new.items():
            waiting = self._readers.pop(lane, None)
            if waiting is not None:
                # It was caught up with the disk, so these are the next ones: no need to read them back.
                waiting.reply(some[: waiting.limit])

    def _answer(self, asked: Head) -> None:
        """Reply with what there is on the disk, or keep the question until there is something."""
        assert self._store is not None
        self._readers[asked.lane] = asked
        try:
            found, damaged = self._store.head(asked.lane, asked.after, asked.limit)
        except STORAGE_TROUBLE as error:
            self._say_trouble(error)
            self._works.append(Work(_nothing, _nothing, self._bug, stirs=True))  # asks again after a good commit
            return
        for block_id in damaged:
            self._set_aside(asked.lane, block_id)
        if found:
            del self._readers[asked.lane]
            asked.reply(found)

    def _set_aside(self, lane: str, block_id: BlockId) -> None:
        def tell(lost: int) -> None:
            self._log.error("a damaged block was set aside", lane=lane, block=str(block_id), events_lost=lost)

        self._works.append(
            Work(lambda changes: changes.set_aside(lane, block_id), tell, self._bug, stirs=True)
        )

    def _one_by_one(self, works: list[Work]) -> None:
        assert self._store is not None
        for at, work in enumerate(works):
            try:
                with self._store.transaction() as changes:
                    result = work.apply(changes)
            except SpoolCorrupt as error:
                work.fail(error)
            except STORAGE_TROUBLE as error:
                self._works = works[at:] + self._works
                self._say_trouble(error)
                return
            except Exception as error:  # noqa: BLE001  (told to the one who asked)
                work.fail(error)
            else:
                self.commits += changes.changed
                work.then(result)
        self._committed()
        self._feed_readers([], stirred=True)

    def _tell_ticket(self, block: Block, what: Settlement) -> None:
        ticket = self._tickets.get(block.id.seq)
        if ticket is None:
            return
        places: dict[bytes, list[int]] = {}
        if block.id.part:
            # Events that were parked lie in another block by now, at other places than in the ticket; an event
            # that was recorded twice, to the byte, has several places there.
            for at, event in enumerate(ticket.events):
                places.setdefault(event, []).append(at)
        for at in what.delivered:
            ticket.delivered(block.lane, places.get(block.events[at], (at,)))
        for at, letter in what.dead:
            for place in places.get(block.events[at], (at,)):
                ticket.refused(block.lane, place, letter.words)

    # State

    def _room(self) -> bool:
        """Whether new events may be stored; tells the source when that changes."""
        if self._source is None:
            return True
        assert self._store is not None
        used = self._store.bytes_used()
        if used >= self._max_bytes:
            # Most of it may be the write-ahead log, which does not shrink by itself.
            with suppress(*STORAGE_TROUBLE):
                used = self._store.shrink()
        full = used >= self._max_bytes
        if full:
            self._source.refuse(SpoolFull(f"the spool holds {used} bytes, its limit is {self._max_bytes}"))
            if not self._full:
                self._log.error("the spool is full: new events are refused", bytes=used, limit=self._max_bytes)
        elif self._full:
            self._source.refuse(None)
            self._log.info("the spool has room again", bytes=used)
        self._full = full
        if self.trouble in (None, "full"):
            self.trouble = "full" if full else None
        return not full

    def _say_trouble(self, error: BaseException) -> None:
        words = f"{type(error).__name__}: {error}".rstrip(": ")
        if self.trouble != words:
            self._log.error("the spool cannot be written: events wait in memory", trouble=words)
        self.trouble = words
        self._failures += 1
        self._retry_at = time.monotonic() + _RETRY.wait(self._failures)

    def _say_well(self) -> None:
        self._failures = 0
        if self.trouble not in (None, "full"):
            self._log.info("the spool can be written again")
            self.trouble = "full" if self._full else None

    def _bug(self, error: BaseException) -> None:
        self._log.error("the spool could not make a change", problem=repr(error))

    def _leave(self) -> None:
        left = len(self._carried) + (self._source.waiting() if self._source is not None else 0)
        if left:
            self._log.error("stopped with events that could not be stored", events_lost=left, trouble=self.trouble)
        if self._store is not None:
            self._store.close()
        if self._held is not None and not self._keeps_claim:
            self._held.release()
        self._ended = True
        closed = SpoolError("the spool is closed")
        for work in self._works:
            work.fail(closed)
        while True:
            try:
                asked = self._inbox.get_nowait()
            except queue.Empty:
                break
            if isinstance(asked, Work):
                asked.fail(closed)
        self._progress.close()


def _batched(several: list[Receipt], size: int) -> list[list[Receipt]]:
    return [several[at : at + size] for at in range(0, len(several), size)]
