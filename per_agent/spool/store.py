"""The spool's bytes at rest: lanes of blocks, dead letters, parkings and the books, in one database.

Synchronous, and for one thread. All changes go through `Store.transaction`, which writes the books in the
same transaction as the blocks that they count, and changes what the process remembers only after the
commit: a transaction that raises has changed nothing, on the disk or here.

Keys::

    m/seq                    the last sequence number given out; never reused, so a block id is for ever
    a/<spool>                the books of that abandoned spool are in ours now
    l/<lane>/n               the books
    l/<lane>/s               what the courier last said of the lane (JSON)
    l/<lane>/b/<block>       a block
    l/<lane>/d/<block>       which of its events are settled, a bit mask
    l/<lane>/p/<key>/<block> a parked block
    l/<lane>/r/<key>         why it is parked
    l/<lane>/x/<number>      a dead letter
    l/<lane>/q/<block>       a damaged block, set aside as it was found, after the number of events lost with it
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import diskcache
import msgspec

from per_agent.books import Books
from per_agent.errors import SpoolCorrupt, SpoolError
from per_agent.spool import block as blocks
from per_agent.spool import forks
from per_agent.spool.block import Block, BlockId
from per_agent.spool.disk import Disk
from per_agent.spool.records import DeadLetter, Parking, Settlement

_END: Final = "\x7f"  # sorts after every character of a key
_SEQ: Final = "m/seq"
_UNPARK_BLOCKS: Final = 64  # blocks moved in one transaction, so that the commit stays short

_pack = msgspec.msgpack.Encoder().encode
_books_of = msgspec.msgpack.Decoder(Books).decode
_letter_of = msgspec.msgpack.Decoder(DeadLetter).decode
_parking_of = msgspec.msgpack.Decoder(Parking).decode


STORAGE_TROUBLE: Final = (sqlite3.Error, diskcache.Timeout, OSError, SpoolError)
"""What the disk may answer: nothing has changed, and trying again may help."""


class Store:
    """One spool's database. Raises one of `STORAGE_TROUBLE` when it cannot be opened."""

    def __init__(self, folder: Path) -> None:
        with forks.section():
            self._disk = Disk(folder)
            try:
                self._read()
            except msgspec.MsgspecError as error:
                self._disk.disconnect()
                raise SpoolCorrupt(f"{folder}: the books cannot be read: {error}") from error
        self.bytes_used = self._disk.bytes_used
        self.in_place = self._disk.in_place

    def _read(self) -> None:
        # A new store begins with the time in milliseconds, so that its block ids are not those of one that
        # lay in the same place before.
        self.seq = int.from_bytes(self._disk.get(_SEQ) or b"", "big") or int(time.time() * 1000)
        self.books: dict[str, Books] = {lane: self._read_books(lane) for lane in self._lanes()}
        self.marks = frozenset(key[2:] for key in self._disk.keys("a/", f"a/{_END}", -1))

    def _lanes(self) -> Iterator[str]:
        low = "l/"
        while found := self._disk.keys(low, f"l/{_END}", 1):
            lane = found[0].split("/")[1]
            yield lane
            low = f"l/{lane}/{_END}"

    def _read_books(self, lane: str) -> Books:
        stored = self._disk.get(f"l/{lane}/n")
        return Books() if stored is None else _books_of(stored)

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
    def transaction(self) -> Iterator["Transaction"]:
        """Changes that become durable together, with the books that count them."""
        changes = Transaction(self, self._disk)
        with forks.section():
            self._disk.connect()
            with self._disk.transaction():
                yield changes
                changes.write_books()
        changes.committed()

    def head(self, lane: str, after: BlockId | None, limit: int) -> tuple[list[Block], list[BlockId]]:
        """Up to *limit* blocks of *lane* that follow *after*, oldest first, and the ids of damaged ones among them."""
        with forks.section():
            self._disk.connect()
            return self._head(lane, after, limit)

    def _head(self, lane: str, after: BlockId | None, limit: int) -> tuple[list[Block], list[BlockId]]:
        low = f"l/{lane}/b/{'' if after is None else after}"
        sound: list[Block] = []
        damaged: list[BlockId] = []
        for key in self._disk.keys(low, f"l/{lane}/b/{_END}", limit):
            block_id = BlockId.parse(key.rpartition("/")[2])
            try:
                events, made_at = blocks.unpack(self._disk.get(key) or b"")
                settled = blocks.mask_of(self._disk.get(f"l/{lane}/d/{block_id}") or b"")
                sound.append(Block(lane, block_id, events, made_at, settled))
            except (SpoolCorrupt, msgspec.DecodeError):
                damaged.append(block_id)
        return sound, damaged

    # For a look inside a transaction

    def pending_through(self, seq: int) -> bool:
        """Whether any event of a block up to sequence number *seq* is still pending, parked ones included."""
        last = f"{BlockId(seq + 1)}"
        return any(
            self._disk.keys(f"l/{lane}/b/", f"l/{lane}/b/{last}", 1)
            or any(
                self._disk.keys(prefix, prefix + last, 1)
                for prefix in (_parked_prefix(lane, parking.key) for parking in self.parkings(lane))
            )
            for lane in self.books
        )

    def parkings(self, lane: str) -> list[Parking]:
        """What the parked events of *lane* wait for."""
        prefix = f"l/{lane}/r/"
        return [_parking_of(self._disk.get(key)) for key in self._disk.keys(prefix, prefix + _END, -1)]


class Transaction:
    """The changes of one commit. Not to be used after the `with` block that gave it."""

    def __init__(self, store: Store, disk: Disk) -> None:
        self._store = store
        self._disk = disk
        self._seq = store.seq
        self._books: dict[str, Books] = {}
        self._settled: dict[tuple[str, BlockId], tuple[Block, int]] = {}
        self._moved = False

    # What comes in

    def append(self, lanes: Sequence[str], events: Sequence[bytes], made_at: float) -> list[Block]:
        """Add a block of *events* to each of *lanes*, under one sequence number."""
        packed = blocks.pack(events, made_at)
        block_id = BlockId(self._next())
        for lane in lanes:
            self._disk.set(f"l/{lane}/b/{block_id}", packed)
            self._count(lane, accepted=len(events), pending=len(events))
        return [Block(lane, block_id, events, made_at) for lane in lanes]

    def drop(self, lane: str, count: int) -> None:
        """Enter in the books that *count* events were given up under the chosen overflow policy."""
        self._count(lane, accepted=count, dropped=count)

    # What goes out

    def settle(self, block: Block, what: Settlement) -> None:
        """Take events out of a block: delivered ones go, dead and parked ones move. Nothing twice."""
        key = f"l/{block.lane}/b/{block.id}"
        if key not in self._disk:
            return  # of a database that was deleted under way: what it counted is gone with it
        before = self._settled.get((block.lane, block.id), (block, block.settled))[1]
        after = before
        delivered = 0
        for at in what.delivered:
            if not after >> at & 1:
                after |= 1 << at
                delivered += 1
        dead = 0
        for at, letter in what.dead:
            if not after >> at & 1:
                after |= 1 << at
                dead += 1
                self._disk.set(f"l/{block.lane}/x/{self._next():012x}", _pack(letter))
        for parking, positions in what.parked:
            after = self._park(block, parking, positions, after)
        if after == (1 << block.count) - 1:
            self._disk.delete(key)
            self._disk.delete(f"l/{block.lane}/d/{block.id}")
        else:
            self._disk.set(f"l/{block.lane}/d/{block.id}", blocks.mask_bytes(after))
        self._settled[block.lane, block.id] = (block, after)
        self._count(block.lane, delivered=delivered, dead=dead, pending=-delivered - dead)

    def _park(self, block: Block, parking: Parking, positions: Sequence[int], settled: int) -> int:
        fresh = [at for at in positions if not settled >> at & 1]
        if fresh:
            # The sequence number stays, so that "all that was accepted before" can still be told.
            part = BlockId(block.id.seq, self._next())
            packed = blocks.pack([block.events[at] for at in fresh], block.made_at)
            self._disk.set(_parked_prefix(block.lane, parking.key) + str(part), packed)
            if self._disk.get(_parking_key(block.lane, parking.key)) is None:
                self._disk.set(_parking_key(block.lane, parking.key), _pack(parking))
        for at in fresh:
            settled |= 1 << at
        return settled

    def unpark(self, lane: str, key: str) -> bool:
        """Let events that were parked under *key* go on, a bounded number of blocks. True when all did."""
        prefix = _parked_prefix(lane, key)
        found = self._disk.keys(prefix, prefix + _END, _UNPARK_BLOCKS)
        for parked in found:
            self._moved = True
            self._disk.set(f"l/{lane}/b/{parked[len(prefix) :]}", self._disk.get(parked))
            self._disk.delete(parked)
        if len(found) < _UNPARK_BLOCKS:
            self._disk.delete(_parking_key(lane, key))
            return True
        return False

    def set_aside(self, lane: str, block_id: BlockId) -> int:
        """Move a damaged block out of the way. Returns how many pending events are lost with it, as far as known."""
        key = f"l/{lane}/b/{block_id}"
        try:
            packed = self._disk.get(key)
            settled = blocks.mask_of(self._disk.get(f"l/{lane}/d/{block_id}") or b"")
        except SpoolCorrupt:
            # Not bytes that per_agent wrote: what it was cannot be told, so it is kept as it is, off the lane.
            self._disk.rename(key, f"l/{lane}/q/{block_id}")
            return 0
        if packed is None:
            return 0
        try:
            lost = blocks.head(packed)[0]
        except SpoolCorrupt:
            lost = 0
        lost = max(0, lost - settled.bit_count())
        self._disk.set(f"l/{lane}/q/{block_id}", lost.to_bytes(4, "big") + packed)
        self._disk.delete(key)
        self._disk.delete(f"l/{lane}/d/{block_id}")
        self._count(lane, dead=lost, pending=-lost)
        return lost

    # Dead letters as work

    def requeue(self, lane: str, numbers: Sequence[int]) -> list[Block]:
        """Send dead letters again, each under its identifier: they go to the end of the lane as one block."""
        events = []
        for number in numbers:
            key = f"l/{lane}/x/{number:012x}"
            stored = self._disk.get(key)
            if stored is not None:
                events.append(_letter_of(stored).event)
                self._disk.delete(key)
        if not events:
            return []
        block_id = BlockId(self._next())
        made_at = time.time()
        self._disk.set(f"l/{lane}/b/{block_id}", blocks.pack(events, made_at))
        self._count(lane, dead=-len(events), pending=len(events))
        return [Block(lane, block_id, events, made_at)]

    def purge(self, lane: str, numbers: Sequence[int]) -> int:
        """Delete dead letters for good. They stay counted as dead, and are counted as purged."""
        purged = sum(1 for number in numbers if self._disk.delete(f"l/{lane}/x/{number:012x}"))
        self._count(lane, purged=purged)
        return purged

    # Notes and inheritance

    def note(self, lane: str, said: bytes) -> None:
        """Keep what the courier says of *lane*, for those who look at the folder from outside."""
        self._disk.set(f"l/{lane}/s", said)

    def absorb(self, spool: str, books: dict[str, Books]) -> None:
        """Add the books of an abandoned and drained *spool* to ours, once however often it is asked."""
        if self._disk.get(f"a/{spool}") is None:
            self._disk.set(f"a/{spool}", b"")
            for lane, inherited in books.items():
                self._books[lane] = self._books.get(lane, self._store.books.get(lane, Books())) + inherited

    def forget(self, spool: str) -> None:
        """The folder of an absorbed *spool* is gone: its mark is needed no longer."""
        self._disk.delete(f"a/{spool}")

    # Bookkeeping

    @property
    def changed(self) -> bool:
        """Whether blocks, letters or books were changed; notes do not count."""
        return bool(self._books) or self._seq != self._store.seq or self._moved

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _count(self, lane: str, **changes: int) -> None:
        books = self._books.get(lane, self._store.books.get(lane, Books()))
        self._books[lane] = books + Books(**changes)

    def write_books(self) -> None:
        for lane, books in self._books.items():
            self._disk.set(f"l/{lane}/n", _pack(books))
        if self._seq != self._store.seq:
            self._disk.set(_SEQ, self._seq.to_bytes(8, "big"))

    def committed(self) -> None:
        self._store.books.update(self._books)
        self._store.seq = self._seq
        for block, settled in self._settled.values():
            block.settled = settled


def _parked_prefix(lane: str, key: str) -> str:
    return f"l/{lane}/p/{quote(key, safe='')}/"


def _parking_key(lane: str, key: str) -> str:
    return f"l/{lane}/r/{quote(key, safe='')}"
