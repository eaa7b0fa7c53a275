"""`Spool`: one spool in use, as intake, courier and agent see it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from per_agent.books import Books
from per_agent.errors import SpoolError
from per_agent.event import Progress, Receipt
from per_agent.settings import IntakeSettings, SpoolSettings
from per_agent.spool.block import Block, BlockId
from per_agent.spool.folder import Claim
from per_agent.spool.records import Settlement
from per_agent.spool.spooler import Spooler
from per_agent.spool.statistics import SpoolStatistics
from per_agent.spool.store import Store
from per_agent.spool.transaction import Transaction
from per_agent.spool.work import Head, Sign, Source, Work, nothing


class Spool:
    """One spool in use: the folder's lock, the database and the thread that owns it.

    Threads: every method may be called from any thread; callbacks come from the spooler's own, and must not
    block. Forks: a child must make another; it has neither the thread nor the lock.

    Args:
        claim: gives the folder, other than those named, which could not be opened.
        source: where new events come from; None for an adopted spool.
        progress: closed when the spool ends, and told of each commit where *committed* is not given.
    """

    def __init__(
        self,
        claim: Callable[[frozenset[str]], Claim],
        source: Source | None,
        progress: Progress,
        *,
        intake: IntakeSettings,
        settings: SpoolSettings,
        clock: Callable[[], float] = time.time,
        committed: Callable[[], None] | None = None,
    ) -> None:
        self._spooler = Spooler(
            claim,
            source,
            progress,
            intake=intake,
            settings=settings,
            clock=clock,
            committed=committed or progress.announce,
        )
        self._inbox = self._spooler.inbox
        self._adopted = source is None
        self._thread = threading.Thread(target=self._spooler.run, name="per_agent spooler", daemon=True)

    # Life

    def start(self) -> None:
        """Start the thread, which opens the spool. Returns at once."""
        self._thread.start()

    def wait_opened(self, timeout: float | None = None) -> None:
        """Wait until the spool is open. Raises `SpoolError` when the first try failed (it goes on trying)."""
        self._spooler.home.opened.result(timeout)

    def stop(self, timeout: float | None) -> bool:
        """Store all that was accepted, release the spool and end the thread. False when time ran out first."""
        self._ask_to_stop(timeout)
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def store_here(self, timeout: float) -> None:
        """Store all that was accepted in the calling thread: where no thread could be started."""
        self._ask_to_stop(timeout)
        self._spooler.run()

    def retire(self) -> Claim | None:
        """Ask a drained spool to end; once it has, the claim: its folder stays held. None until then."""
        self._spooler.keeps_claim = True
        self._ask_to_stop(None)
        return None if self._thread.is_alive() else self._spooler.home.held

    def _ask_to_stop(self, timeout: float | None) -> None:
        self._spooler.deadline = None if timeout is None else time.monotonic() + timeout
        self._spooler.stop.set()
        self._inbox.put(None)

    @property
    def alive(self) -> bool:
        """Whether the thread was started and has not ended."""
        return self._thread.is_alive()

    # Questions and changes

    def call(self, answer: Callable[[], None]) -> None:
        """Have the thread call *answer*, which must not block, when it comes to it; whatever its disk does.

        At once where it has ended.
        """
        self._inbox.put(Sign(answer))
        if self._spooler.ended:
            answer()

    def tune(self, intake: IntakeSettings) -> None:
        """Linger and fill blocks as *intake* says, from the next commit on."""
        self._spooler.linger = intake.linger
        self._spooler.inflow.block_events = intake.block_events

    def wake(self) -> None:
        """Look for something to do. Takes no lock and makes no system call that could wait."""
        if not self._spooler.woken:
            self._spooler.woken = True
            self._inbox.put(None)

    def head(
        self, lane: str, after: BlockId | None, limit: int, reply: Callable[[list[Block]], None]
    ) -> None:
        """Ask for up to *limit* blocks of *lane* that follow *after*, oldest first.

        *reply* is called with at least one block: at once, or when there is one. A later question for the
        same lane takes the place of one that is still open.
        """
        self._inbox.put(Head(lane, after, limit, reply))

    def settle(
        self, block: Block, what: Settlement, then: Callable[[], None], *, hurried: bool = False
    ) -> None:
        """Take events out of *block*, with the next commit; *then* is called after it. *hurried*: do not linger."""
        spooler = self._spooler

        def settled(_: object) -> None:
            spooler.tickets.settled(block, what)
            then()

        self._inbox.put(
            Work(lambda changes: changes.settle(block, what), settled, spooler.bug, hurried=hurried)
        )

    def hurry(self) -> None:
        """Do not linger with what was to be settled."""
        self._inbox.put(Work(nothing, nothing, nothing, hurried=True))

    def post(self, change: Callable[[Transaction], Any], then: Callable[[Any], None] = nothing) -> None:
        """Make *change* with the next commit; *then* is called with its result after it."""
        self._inbox.put(Work(change, then, self._spooler.bug, stirs=True))

    def run(self, change: Callable[[Transaction], Any], timeout: float | None = None) -> Any:
        """Make *change* and return its result once it is committed. Raises what it raised, or `TimeoutError`."""
        done: Future[Any] = Future()
        self._inbox.put(Work(change, done.set_result, done.set_exception, stirs=True, hurried=True))
        if self._spooler.ended:
            raise SpoolError("the spool is closed")
        return done.result(timeout)

    def recover(self, path: Path) -> None:
        """Store what a dead process left in the journal at *path*, which lies in this spool's folder."""
        self._inbox.put(self._spooler.home.recovery(path, self._spooler.inflow))

    def look_again(self) -> None:
        """Recover also those journals here whose process still lived when they were found."""
        home, inflow = self._spooler.home, self._spooler.inflow
        if home.living:
            self._inbox.put(Sign(lambda: home.look_again(inflow)))

    def look(self, question: Callable[[Store], Any], timeout: float | None = None) -> Any:
        """What *question* finds in the store, asked in the spooler's thread between two commits."""
        return self.run(self._asking(question), timeout)

    def post_look(self, question: Callable[[Store], Any], then: Callable[[Any], None]) -> None:
        """As `look`, without waiting: *then* is called with the answer."""
        self._inbox.put(Work(self._asking(question), then, self._spooler.bug))

    def _asking(self, question: Callable[[Store], Any]) -> Callable[[Transaction], Any]:
        def ask(_: Transaction) -> Any:
            assert self._spooler.home.store is not None
            return question(self._spooler.home.store)

        return ask

    # State

    @property
    def name(self) -> str:
        """Which spooler this is, for people."""
        return f"spooler of {self.id or 'an adopted spool'}" if self._adopted else "spooler"

    @property
    def id(self) -> str:
        """The spool's name; empty until it is open."""
        home = self._spooler.home
        return "" if home.held is None or home.store is None else home.held.id

    @property
    def folder(self) -> Path | None:
        """Where the spool lies; None until it is open."""
        home = self._spooler.home
        return None if home.held is None or home.store is None else home.held.folder

    @property
    def trouble(self) -> str | None:
        """What keeps the spool from committing, or None."""
        return self._spooler.trouble

    @property
    def disk_fails(self) -> bool:
        """Whether the disk refuses, so that not even what was delivered can be settled."""
        return self._spooler.disk.words is not None

    @property
    def crowded(self) -> bool:
        """Whether the disk is full: nothing new is stored, and what was delivered is settled."""
        return self._spooler.room.crowded

    @property
    def tried(self) -> bool:
        """Whether it was tried to open the spool, however that ended."""
        return self._spooler.home.opened.done()

    @property
    def commits(self) -> int:
        """How often something changed on the disk."""
        return self._spooler.commits

    @property
    def books(self) -> dict[str, Books]:
        """The committed books of each lane."""
        store = self._spooler.home.store
        return {} if store is None else dict(store.books)

    @property
    def unreadable(self) -> bool:
        """Whether something is kept here of journals that were not what was written."""
        store = self._spooler.home.store
        return store is not None and store.known.unreadable

    @property
    def marks(self) -> frozenset[str]:
        """The spools absorbed into this one whose folders were not known to be gone when it was opened."""
        store = self._spooler.home.store
        return frozenset() if store is None else store.marks

    def in_memory(self) -> dict[str, int]:
        """For each lane, the events that were taken from the source and are not yet committed."""
        return self._spooler.inflow.in_memory()

    @property
    def moves(self) -> int:
        """Another number after events went from the source to the disk; odd while they go, and may be seen twice."""
        return self._spooler.inflow.moves

    def statistics(self) -> SpoolStatistics:
        """How it is doing. Waits for nothing and reads nothing, so what is being committed may show twice."""
        spooler = self._spooler
        store = spooler.home.store
        return SpoolStatistics(
            bytes_used=spooler.room.used,
            trouble=spooler.trouble,
            crowded=spooler.room.crowded,
            commits=spooler.commits,
            idle_seconds=max(0.0, time.monotonic() - spooler.changed_at),
            books=self.books,
            in_memory=self.in_memory(),
            oldest_in_memory=spooler.inflow.oldest(),
            parked={} if store is None else dict(store.known.parked),
            damaged={} if store is None else dict(store.known.damaged),
        )

    def newest_in_memory(self) -> Receipt | None:
        """The receipt of the last event that was taken from the source and is not yet committed."""
        carried = self._spooler.inflow.carried
        return carried[-1] if carried else None
