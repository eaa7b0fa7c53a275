"""Room: whether a spool may take new events, by its size limit and by what is left on the disk.

At the limit, new events are refused. On a full disk they wait in memory, as with any other trouble of a disk,
and what takes events out of the spool goes on, if need be in the room of the ballast.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from per_agent.errors import SpoolFull
from per_agent.event import Receipt
from per_agent.log import Log
from per_agent.spool.ballast import Ballast, free_bytes
from per_agent.spool.inflow import Inflow
from per_agent.spool.store import STORAGE_TROUBLE, Store
from per_agent.spool.work import Source

_SHRINK_EVERY: Final = (
    1.0  # seconds; cutting the write-ahead log costs fsyncs just when draining matters most
)
_LOOK_EVERY: Final = 0.25  # seconds between looks whether a full disk has room again, at first
_AMPLE: Final = 2**30  # bytes free on a disk that need not be looked at more closely
_OVERHEAD: Final = 128 * 2**10  # bytes that a commit takes beside the events in it
_LOOK_SELDOM: Final = 4.0  # seconds; where there was room at a look, and too little for what is to be stored


class Room:
    """How much a spool uses of its limit, and whether the disk has room for more.

    Attributes:
        full: whether the limit is reached.
        crowded: whether the disk is full, so that nothing new is stored.
    """

    def __init__(self, max_bytes: int, source: Source | None) -> None:
        self._max_bytes = max_bytes
        self._source = source
        self._shrink_at = 0.0  # monotonic
        self._look_at = 0.0  # monotonic
        self._look_every = _LOOK_EVERY
        self._ballast: Ballast | None = None
        self.full = False
        self.crowded = False
        self.used = 0

    @property
    def trouble(self) -> str | None:
        """Why nothing new is stored, in words, or None."""
        if self.crowded and self._ballast is not None:
            return self._ballast.words
        return "full" if self.full else None

    @property
    def closed(self) -> bool:
        """Whether nothing new is stored."""
        return self.full or self.crowded

    def settle_in(self, folder: Path, log: Log) -> None:
        """Begin with an opened spool: have a ballast in its *folder*. Without room for one, take nothing new."""
        self._ballast = Ballast(folder)
        self.crowded = False
        if not self._ballast.make():
            self._crowd(log)

    def admit(self, store: Store, inflow: Inflow, log: Log, *, beside: bool, stopping: bool) -> list[Receipt]:
        """Those of the new events that were taken which go with the next commit. *beside*: it has other changes, too.

        At a stop what was accepted is stored beyond the limit, and in the room of the ballast: else it would be
        lost. What takes events out of the spool goes first then, and alone.
        """
        if not self._look(store, log) and not stopping:
            return []
        if self.crowded:
            return [] if beside else inflow.carried
        if self._source is None or free_bytes(store.folder) >= _AMPLE:
            return inflow.carried
        found = inflow.fitting(self._may_add(store))
        if len(found) < len(inflow.carried):
            with suppress(*STORAGE_TROUBLE):
                store.shrink()
            found = inflow.fitting(self._may_add(store))
        if inflow.carried and not found:
            self._crowd(log)
        return found

    def _may_add(self, store: Store) -> int:
        """How many bytes of events the disk has room for.

        What a commit adds is written twice, to the log and from there into the database; and what is in the
        log already has to be moved as well, before the room that it takes there is room again.
        """
        free = free_bytes(store.folder) - store.log_bytes() - _OVERHEAD
        return free * 2 // 5  # and some of it is lost to whole pages

    def lacked(self, error: BaseException, store: Store, log: Log, *, adding: bool) -> bool:
        """Whether a commit failed, with *error*, for want of room, and may do better if it is tried again at once.

        *adding*: whether it had new events in it. They are left out from then on; where that was not it, the
        ballast is given up.
        """
        if self._ballast is None or not self._ballast.lacked(error):
            return False
        if adding and not self.crowded:
            self._crowd(log)
            return True
        self._crowd(log)
        gained = self._ballast.release()
        with suppress(*STORAGE_TROUBLE):
            store.shrink()  # the log may have grown, and what it takes is room, too
        return gained

    def _crowd(self, log: Log) -> None:
        if self._source is not None and not self.crowded:
            self.crowded = True
            self._look_at = time.monotonic() + self._look_every
            self._look_every = min(2 * self._look_every, _LOOK_SELDOM)
            log.error("the disk is full: new events wait in memory", trouble=self.trouble)

    def measure(self, store: Store | None) -> None:
        """See how many bytes are used."""
        if store is not None:
            with suppress(*STORAGE_TROUBLE):
                self.used = store.bytes_used()
        if not self.crowded:
            self._look_every = _LOOK_EVERY

    def _look(self, store: Store, log: Log) -> bool:
        """Whether new events may be stored. Without a source there are none, and so there is always room."""
        if self._source is None:
            return True
        if self.crowded and self._ballast is not None and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + self._look_every
            self.crowded = not self._ballast.make()
            if not self.crowded:
                log.info("the disk has room again")
        used = store.bytes_used()
        if used >= self._max_bytes and time.monotonic() >= self._shrink_at:
            # Most of it may be the write-ahead log, which does not shrink by itself.
            self._shrink_at = time.monotonic() + _SHRINK_EVERY
            with suppress(*STORAGE_TROUBLE):
                used = store.shrink()
        full = used >= self._max_bytes
        if full:
            self._source.refuse(SpoolFull(f"the spool holds {used} bytes, its limit is {self._max_bytes}"))
            if not self.full:
                log.error("the spool is full: new events are refused", bytes=used, limit=self._max_bytes)
        elif self.full:
            self._source.refuse(None)
            log.info("the spool has room again", bytes=used)
        self.full = full
        return not self.closed
