"""The size limit: whether a spool may take new events, told to the source when that changes."""

import time
from contextlib import suppress
from typing import Final

from per_agent.errors import SpoolFull
from per_agent.log import Log
from per_agent.spool.store import STORAGE_TROUBLE, Store
from per_agent.spool.work import Source

_SHRINK_EVERY: Final = (
    1.0  # seconds; cutting the write-ahead log costs fsyncs just when draining matters most
)


class Room:
    """How much of its limit a spool uses."""

    def __init__(self, max_bytes: int, source: Source | None) -> None:
        self._max_bytes = max_bytes
        self._source = source
        self._shrink_at = 0.0  # monotonic
        self.full = False
        self.used = 0

    def measure(self, store: Store | None) -> None:
        """See how many bytes are used."""
        if store is not None:
            with suppress(*STORAGE_TROUBLE):
                self.used = store.bytes_used()

    def look(self, store: Store, log: Log) -> bool:
        """Whether new events may be stored. Without a source there are none, and so there is always room."""
        if self._source is None:
            return True
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
        return not full
