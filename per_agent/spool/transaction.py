"""`Transaction`: the changes of one commit, with the books that count them, and what is known without reading."""

import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import quote

import msgspec

from per_agent import failpoint
from per_agent.books import Books
from per_agent.errors import SpoolCorrupt
from per_agent.journal import Stamps
from per_agent.spool import block as blocks
from per_agent.spool.block import Block, BlockId
from per_agent.spool.disk import Disk
from per_agent.spool.known import Known
from per_agent.spool.records import DeadLetter, Parking, Settlement

END: Final = "\x7f"
"""Sorts after every character of a key."""
SEQ: Final = "m/seq"
LAYOUT: Final = "m/layout"
KNOWN_LAYOUT: Final = b"\x02"
UNREADABLE: Final = "u/"
MISSING: Final = "missing"
_UNPARK_BLOCKS: Final = 64  # blocks moved in one transaction, so that the commit stays short

_pack = msgspec.msgpack.Encoder().encode
_letter_of = msgspec.msgpack.Decoder(DeadLetter).decode


class Transaction:
    """The changes of one commit. Not to be used after the `with` block that gave it."""

    def __init__(self, known: Known, disk: Disk) -> None:
        self._known = known
        self._disk = disk
        self._seq = known.seq
        self._books: dict[str, Books] = {}
        self._settled: dict[tuple[str, BlockId], tuple[Block, int]] = {}
        self._parked: Counter[str] = Counter()
        self._damaged: Counter[str] = Counter()
        self._moved = False
        self._unreadable = known.unreadable

    # What comes in

    def append(self, lanes: Sequence[str], events: Sequence[bytes], made_at: float) -> list[Block]:
        """Add a block of *events* to each of *lanes*, under one sequence number."""
        packed = blocks.pack(events, made_at)
        block_id = BlockId(self._next())
        for lane in lanes:
            self._disk.set(f"l/{lane}/b/{block_id}", packed)
            self._count(lane, accepted=len(events), pending=len(events))
        failpoint.reach("block written")
        return [Block(lane, block_id, events, made_at) for lane in lanes]

    def drop(self, lane: str, count: int) -> None:
        """Enter in the books that *count* events were given up under the chosen overflow policy."""
        self._count(lane, accepted=count, dropped=count)

    def journaled(self, journal: str) -> Stamps:
        """Which numbers of *journal* the spool has stored."""
        try:
            return Stamps.decode(self._disk.get(stored_of(journal)))
        except (msgspec.MsgspecError, SpoolCorrupt):
            # Taken for none: to deliver an event again, under its identifier, is the milder mistake.
            return Stamps()

    def note_journaled(self, journal: str, stored: Stamps) -> None:
        """Enter that the spool has *stored* these numbers of *journal*: with the events, so nothing is stored twice."""
        self._disk.set(stored_of(journal), stored.encode())

    def forget_journals(self, journals: Collection[str]) -> None:
        """Drop the notes of all journals but *journals*: the others' files are gone."""
        for key in self._disk.keys("j/", f"j/{END}", -1):
            if key[2:] not in journals:
                self._disk.delete(key)

    def keep_unreadable(self, journal: str, at: int, found: bytes) -> None:
        """Keep the bytes of the slot *at* that is not what was written, for a person to look at."""
        self._disk.set(f"{UNREADABLE}{journal}/{at:08x}", found)
        self._unreadable = True

    def note_missing(self, journal: str, slots: int) -> None:
        """Keep how many slots the file of *journal* was short of."""
        if slots:
            self._disk.set(f"{UNREADABLE}{journal}/{MISSING}", slots.to_bytes(8, "big"))
            self._unreadable = True

    # What goes out

    def settle(self, block: Block, what: Settlement) -> None:
        """Take events out of a block: delivered ones go, dead and parked ones move. Nothing twice."""
        key = f"l/{block.lane}/b/{block.id}"
        if key not in self._disk:
            return  # of a database that was deleted under way: what it counted is gone with it
        before = self._settled.get((block.lane, block.id), (block, block.settled))[1]
        taken = blocks.mask_at(what.delivered) & ~before  # what was counted as delivered before is so no more
        after = before | taken
        late, crossed = ((taken & blocks.mask_at(some)).bit_count() for some in (what.late, what.crossed))
        dead = 0
        for at, letter in what.dead:
            if not after >> at & 1:
                after |= 1 << at
                dead += 1
                self._disk.set(f"l/{block.lane}/x/{self._next():012x}", _pack(letter))
                failpoint.reach("dead letter written")
        for parking, positions in what.parked:
            after = self._park(block, parking, positions, after)
        if after == (1 << block.count) - 1:
            self._disk.delete(key)
            self._disk.delete(f"l/{block.lane}/d/{block.id}")
        else:
            self._disk.set(f"l/{block.lane}/d/{block.id}", blocks.mask_bytes(after))
        self._settled[block.lane, block.id] = (block, after)
        self._count(
            block.lane,
            delivered=taken.bit_count(),
            dead=dead,
            pending=-taken.bit_count() - dead,
            late=late,
            crossed=crossed,
        )

    def _park(self, block: Block, parking: Parking, positions: Sequence[int], settled: int) -> int:
        fresh = [at for at in positions if not settled >> at & 1]
        if fresh:
            # The sequence number stays, so that "all that was accepted before" can still be told.
            part = BlockId(block.id.seq, self._next())
            packed = blocks.pack([block.events[at] for at in fresh], block.made_at)
            self._disk.set(parked_prefix(block.lane, parking.key) + str(part), packed)
            if not self._knows(parking_key(block.lane, parking.key)):
                self._disk.set(parking_key(block.lane, parking.key), _pack(parking))
            failpoint.reach("event parked")
        self._parked[block.lane] += len(fresh)
        for at in fresh:
            settled |= 1 << at
        return settled

    def _knows(self, key: str) -> bool:
        try:
            return self._disk.get(key) is not None
        except SpoolCorrupt:
            return False  # not bytes that per_agent wrote: it is written anew

    def unpark(self, lane: str, key: str) -> bool:
        """Let events that were parked under *key* go on, a bounded number of blocks. True when all did."""
        prefix = parked_prefix(lane, key)
        found = self._disk.keys(prefix, prefix + END, _UNPARK_BLOCKS)
        for parked in found:
            self._moved = True
            try:
                packed = self._disk.get(parked) or b""
            except SpoolCorrupt:
                # Not bytes that per_agent wrote: as in `set_aside`.
                self._disk.rename(parked, f"l/{lane}/q/{parked[len(prefix) :]}")
                continue
            self._parked[lane] -= events_in(packed)
            self._disk.set(f"l/{lane}/b/{parked[len(prefix) :]}", packed)
            self._disk.delete(parked)
            failpoint.reach("events unparked")
        if len(found) < _UNPARK_BLOCKS:
            self._disk.delete(parking_key(lane, key))
            return True
        return False

    def set_aside(self, lane: str, block_id: BlockId | str) -> int:
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
        lost = max(0, events_in(packed) - settled.bit_count())
        self._damaged[lane] += lost
        self._disk.set(f"l/{lane}/q/{block_id}", lost.to_bytes(4, "big") + packed)
        self._disk.delete(key)
        self._disk.delete(f"l/{lane}/d/{block_id}")
        self._count(lane, dead=lost, pending=-lost)
        return lost

    # Dead letters as work

    def requeue(self, lane: str, numbers: Sequence[int]) -> list[Block]:
        """Send dead letters again, each under its identifier: they go to the end of the lane as one block.

        A damaged one stays where it is.
        """
        events = []
        for number in numbers:
            key = f"l/{lane}/x/{number:012x}"
            with suppress(SpoolCorrupt, msgspec.MsgspecError):
                stored = self._disk.get(key)
                if stored is not None:
                    events.append(_letter_of(stored).event)
                    self._disk.delete(key)
        if not events:
            return []
        block_id = BlockId(self._next())
        made_at = time.time()
        self._disk.set(f"l/{lane}/b/{block_id}", blocks.pack(events, made_at))
        failpoint.reach("letters requeued")
        self._count(lane, dead=-len(events), pending=len(events))
        return [Block(lane, block_id, events, made_at)]

    def purge(self, lane: str, numbers: Sequence[int]) -> int:
        """Delete dead letters for good. They stay counted as dead, and are counted as purged."""
        keys = [
            key for number in dict.fromkeys(numbers) if (key := f"l/{lane}/x/{number:012x}") in self._disk
        ]
        for key in keys:
            self._disk.delete(key)
        failpoint.reach("letters purged")
        self._count(lane, purged=len(keys))
        return len(keys)

    # Notes and inheritance

    def note(self, lane: str, said: bytes) -> None:
        """Keep what the courier says of *lane*, for those who look at the folder from outside."""
        self._disk.set(f"l/{lane}/s", said)

    def absorb(self, spool: str, books: dict[str, Books]) -> None:
        """Add the books of an abandoned and drained *spool* to ours, once however often it is asked."""
        if self._disk.get(f"a/{spool}") is None:
            self._disk.set(f"a/{spool}", b"")
            for lane, inherited in books.items():
                self._books[lane] = self._books.get(lane, self._known.books.get(lane, Books())) + inherited

    def forget(self, spool: str) -> None:
        """The folder of an absorbed *spool* is gone: its mark is needed no longer."""
        self._disk.delete(f"a/{spool}")

    # Bookkeeping

    def unnamed(self, after: int, limit: int) -> tuple[int | None, int]:
        """As `Disk.unnamed`."""
        return self._disk.unnamed(after, limit)

    @property
    def changed(self) -> bool:
        """Whether blocks, letters or books were changed; notes do not count."""
        return bool(self._books) or self._seq != self._known.seq or self._moved

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _count(self, lane: str, **changes: int) -> None:
        books = self._books.get(lane, self._known.books.get(lane, Books()))
        self._books[lane] = books + Books(**changes)

    def write_books(self) -> None:
        for lane, books in self._books.items():
            self._disk.set(f"l/{lane}/n", _pack(books))
        for lane, more in self._parked.items():
            parked = self._known.parked.get(lane, 0) + more
            self._disk.set(f"l/{lane}/k", parked.to_bytes(8, "big"))
        first = bool(self._books) and not self._known.laid_out
        if first or self._seq != self._known.seq:
            self._disk.set(SEQ, self._seq.to_bytes(8, "big"))
        if first:
            self._disk.set(LAYOUT, KNOWN_LAYOUT)

    def committed(self) -> None:
        self._known.laid_out = self._known.laid_out or bool(self._books)
        self._known.books.update(self._books)
        self._known.seq = self._seq
        self._known.unreadable = self._unreadable
        for lane, more in self._parked.items():
            self._known.parked[lane] = self._known.parked.get(lane, 0) + more
        for lane, more in self._damaged.items():
            self._known.damaged[lane] = self._known.damaged.get(lane, 0) + more
        for block, settled in self._settled.values():
            block.settled = settled


def stored_of(journal: str) -> str:
    return f"j/{journal}"


def parked_prefix(lane: str, key: str) -> str:
    return f"l/{lane}/p/{quote(key, safe='')}/"


def parking_key(lane: str, key: str) -> str:
    return f"l/{lane}/r/{quote(key, safe='')}"


def events_in(packed: bytes | None) -> int:
    """How many events a block says it holds; none where it does not begin like one."""
    try:
        return blocks.head(packed or b"")[0]
    except SpoolCorrupt:
        return 0
