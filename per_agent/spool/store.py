"""The spool's bytes at rest: lanes of blocks, dead letters, parkings and the books, in one database.

Synchronous, and for one thread. All changes go through `Store.transaction`, which writes the books in the
same transaction as the blocks that they count, and changes what the process remembers only after the
commit: a transaction that raises has changed nothing, on the disk or here.

Keys::

    m/layout                 by which version of this list it was written, one byte; without it, the first.
                             In the second, blocks may be compressed
    m/seq                    the last sequence number given out; never reused, so a block id is for ever
    a/<spool>                the books of that abandoned spool are in ours now
    j/<journal>              which numbers of that journal are stored here
    u/<journal>/<slot>       a slot of a journal that is not what was written, as it was found
    l/<lane>/n               the books
    l/<lane>/s               what the courier last said of the lane (JSON)
    l/<lane>/b/<block>       a block
    l/<lane>/d/<block>       which of its events are settled, a bit mask
    l/<lane>/p/<key>/<block> a parked block
    l/<lane>/k               how many events are parked
    l/<lane>/r/<key>         why it is parked
    l/<lane>/x/<number>      a dead letter
    l/<lane>/q/<block>       a damaged block, set aside as it was found, after the number of events lost with it
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import diskcache
import msgspec

from per_agent.books import Books
from per_agent.errors import SpoolCorrupt, SpoolError
from per_agent.spool import block as blocks
from per_agent.spool import forks
from per_agent.spool.block import Block, BlockId
from per_agent.spool.damage import certain
from per_agent.spool.disk import Disk
from per_agent.spool.known import Known
from per_agent.spool.records import Parking
from per_agent.spool.transaction import (
    END,
    KNOWN_LAYOUT,
    LAYOUT,
    SEQ,
    UNREADABLE,
    Transaction,
    events_in,
    parked_prefix,
)
from per_agent.spool.witness import Witness

_books_of = msgspec.msgpack.Decoder(Books).decode
_parking_of = msgspec.msgpack.Decoder(Parking).decode


NEWER: Final = "it was written by a newer version of per_agent, and is left alone"
STORAGE_TROUBLE: Final = (sqlite3.Error, diskcache.Timeout, OSError, SpoolError)
"""What the disk may answer: nothing has changed, and trying again may help."""


class Store:
    """One spool's database. Raises one of `STORAGE_TROUBLE` when it cannot be opened."""

    def __init__(self, folder: Path) -> None:
        with forks.section():
            self._disk = Disk(folder)
            self.folder = folder
            try:
                self._read()
            except msgspec.MsgspecError as error:
                self._disk.disconnect()
                raise SpoolCorrupt(f"{folder}: the books cannot be read: {error}") from error
            except BaseException:
                self._disk.disconnect()
                raise
        self.bytes_used = self._disk.bytes_used
        self.log_bytes = self._disk.log_bytes
        self.in_place = self._disk.in_place

    def _read(self) -> None:
        layout = self._disk.get(LAYOUT)
        if layout is not None and layout > KNOWN_LAYOUT:
            raise SpoolError(f"{self.folder}: {NEWER}")
        # A new store begins with the time in milliseconds, so that its block ids are not those of one that
        # lay in the same place before.
        seq = int.from_bytes(self._disk.get(SEQ) or b"", "big")
        self._fresh = not seq
        seq = seq or int(time.time() * 1000)
        lanes = tuple(self._lanes())
        self.known = Known(
            seq,
            {lane: self._read_books(lane) for lane in lanes},
            {lane: self._read_parked(lane) for lane in lanes},
            {lane: self._read_damaged(lane) for lane in lanes},
            unreadable=bool(self._disk.keys(UNREADABLE, f"{UNREADABLE}{END}", 1)),
        )
        self.known.laid_out = layout == KNOWN_LAYOUT
        self.marks = frozenset(key[2:] for key in self._disk.keys("a/", f"a/{END}", -1))
        self.journals = frozenset(key[2:] for key in self._disk.keys("j/", f"j/{END}", -1))

    def _lanes(self) -> Iterator[str]:
        low = "l/"
        while found := self._disk.keys(low, f"l/{END}", 1):
            lane = found[0].split("/")[1]
            yield lane
            low = f"l/{lane}/{END}"

    def _read_books(self, lane: str) -> Books:
        stored = self._disk.get(f"l/{lane}/n")
        return Books() if stored is None else _books_of(stored)

    def _read_parked(self, lane: str) -> int:
        with suppress(SpoolCorrupt):
            stored = self._disk.get(f"l/{lane}/k")
            if stored is not None:
                return int.from_bytes(stored, "big")
        # Of a version that did not keep the count, or damaged.
        low, high = f"l/{lane}/p/", f"l/{lane}/p/{END}"
        return sum(self._events_in(key) for key in self._disk.keys(low, high, -1))

    def _events_in(self, key: str) -> int:
        try:
            return events_in(self._disk.get(key))
        except SpoolCorrupt:
            return 0

    def _read_damaged(self, lane: str) -> int:
        low, high = f"l/{lane}/q/", f"l/{lane}/q/{END}"
        return sum(self._lost(key) for key in self._disk.keys(low, high, -1))

    def _lost(self, key: str) -> int:
        try:
            return int.from_bytes((self._disk.get(key) or b"")[:4], "big")
        except SpoolCorrupt:  # not bytes that per_agent wrote: it was set aside as it was found
            return 0

    @property
    def seq(self) -> int:
        """The last sequence number given out."""
        return self.known.seq

    @property
    def books(self) -> dict[str, Books]:
        """The books of each lane."""
        return self.known.books

    def damage(self, witness: Witness | None) -> str | None:
        """What is found to be damaged when all of it is looked through, in words, or None."""
        with forks.section():
            self._disk.connect()
            try:
                return self._disk.damage() or self._behind(witness)
            except sqlite3.DatabaseError as error:
                if certain(error):
                    return str(error)
                raise

    def unchecked(self) -> int | None:
        """The number of the last row, where there were too many to look them all through; else None."""
        with forks.section():
            self._disk.connect()
            return self._disk.last_row() if self._disk.is_large else None

    def _behind(self, witness: Witness | None) -> str | None:
        if witness is None or (self.seq >= witness.seq and not self._fresh):
            return None
        if self._fresh:
            return "commits are missing: it is empty"
        return f"commits are missing: it ends with number {self.seq}, and {witness.seq} was given out"

    def close(self) -> None:
        """Close the database."""
        with forks.section():
            self._disk.disconnect()

    def shrink(self) -> int:
        """Give back what the database can do without. Returns the bytes used then."""
        with forks.section():
            self._disk.connect()
            return self._disk.shrink()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Changes that become durable together, with the books that count them."""
        changes = Transaction(self.known, self._disk)
        with forks.section():
            self._disk.connect()
            with self._disk.transaction():
                yield changes
                changes.write_books()
        changes.committed()

    def head(self, lane: str, after: BlockId | None, limit: int) -> tuple[list[Block], list[BlockId | str]]:
        """Up to *limit* blocks of *lane* that follow *after*, oldest first, and the ids of damaged ones among them.

        What is no id of ours is given as it is written.
        """
        with forks.section():
            self._disk.connect()
            return self._head(lane, after, limit)

    def _head(self, lane: str, after: BlockId | None, limit: int) -> tuple[list[Block], list[BlockId | str]]:
        kept, marked, low = f"l/{lane}/b/", f"l/{lane}/d/", "" if after is None else str(after)
        found = self._disk.rows(kept + low, kept + END, limit)
        if not found:
            return [], []
        last = found[-1][0].removeprefix(kept)
        masks = dict(self._disk.rows(marked + low, f"{marked}{last} ", -1))
        sound: list[Block] = []
        damaged: list[BlockId | str] = []
        for key, packed in found:
            name: BlockId | str = key.removeprefix(kept)
            mask = masks.get(f"{marked}{name}", b"")
            try:
                name = block_id = BlockId.parse(key.removeprefix(kept))
                events, made_at = blocks.unpack(packed or b"")
                sound.append(Block(lane, block_id, events, made_at, blocks.mask_of(_sound(mask))))
            except (SpoolCorrupt, ValueError):
                damaged.append(name)
        return sound, damaged

    # For a look inside a transaction

    def pending_through(self, seq: int) -> bool:
        """Whether any event of a block up to sequence number *seq* is still pending, parked ones included."""
        last = f"{BlockId(seq + 1)}"
        return any(
            self._disk.keys(f"l/{lane}/b/", f"l/{lane}/b/{last}", 1)
            or any(
                self._disk.keys(prefix, prefix + last, 1)
                for prefix in (parked_prefix(lane, parking.key) for parking in self.parkings(lane))
            )
            for lane in self.books
        )

    def parkings(self, lane: str) -> list[Parking]:
        """What the parked events of *lane* wait for."""
        prefix = f"l/{lane}/r/"
        return [self._parking(key, prefix) for key in self._disk.keys(prefix, prefix + END, -1)]

    def _parking(self, key: str, prefix: str) -> Parking:
        try:
            return _parking_of(self._disk.get(key) or b"")
        except (SpoolCorrupt, msgspec.MsgspecError):
            # What the events wait for stands in the key: they must not wait for ever because of damaged words.
            return Parking(unquote(key[len(prefix) :]), "the reason cannot be read", time.time())


def _sound(mask: bytes | None) -> bytes:
    if mask is None:
        raise SpoolCorrupt("a mask is not bytes that per_agent wrote")
    return mask
