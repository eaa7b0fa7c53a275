"""`Journal`: the one that this process writes to. `write` is for any thread; the rest says for whom it is.

It takes no lock. An event's number, a slot, and the place of a new route are each had in a single operation of the
interpreter, and nothing is half-done where a signal handler records an event too.
"""

import errno
import mmap
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from per_agent import failpoint, files
from per_agent.event import Identifiers, check_length
from per_agent.journal import layout
from per_agent.journal.file import FOLDER, SUFFIX, create
from per_agent.journal.layout import (
    HEAD,
    PART,
    PART_HEAD,
    PART_ROOM,
    RECORD,
    ROOM,
    ROUTES,
    SLOT,
    WHOLE,
)
from per_agent.journal.slots import JournalFull, Slots

_LONGEST: Final = 512  # slots; the longest event takes 395
_TRIES: Final = 8  # names: somebody may take a new file for an abandoned one before it is locked
Place = int | tuple[int, ...] | None
"""Where an event lies: the offset of its slot in the file, or those of its parts' slots, or nowhere."""

Write = Callable[[bytes, tuple[str, ...], int], Place]


class Journal:
    """A journal's file, locked and mapped. Made by `make`.

    Attributes:
        write: `(encoded, lanes, number) -> Place`: keep an encoded event that goes to *lanes* and has that number
            of `Identifiers`, whatever becomes of the process from then on. No system call, no lock. Raises
            `JournalFull`, and `InvalidEvent` where it is longer than `MAX_EVENT_BYTES`.
        slots: what `write` does with the events of `slots.usual`, `Intake.add` does itself: a call is much to it.
        id: its name, for ever its own.
        path: where it lies at present.
    """

    def __init__(self, path: Path, mapped: mmap.mmap, inode: int, number: Callable[[], int]) -> None:
        self.path = path
        self.id = path.name.removesuffix(SUFFIX)
        self.slots = Slots(mapped)
        self._inode = inode
        self._size = len(mapped)
        self._nothing = _nothing(self._size)  # now: who lets go may have no room for it
        self._number = number
        self._order: dict[tuple[str, ...], None] = {}  # the routes, by their numbers
        self._routes = _Routes(self._add_route)
        self.write = self._writer()

    def _writer(self) -> Write:
        # A closure, since its names cost the caller a third of what an object's attributes do.
        slots, routes, pack, checksum = self.slots, self._routes, RECORD.pack_into, zlib.adler32
        usual = not failpoint.armed("slot written")  # that is on this way alone

        def write(encoded: bytes, lanes: tuple[str, ...], number: int) -> Place:
            if len(encoded) > ROOM:
                return self._write_parts(encoded, lanes, number)
            route = routes[lanes]
            if route == 0 and usual:
                slots.usual = lanes
            stamp = number | route
            try:
                at = slots.take()
            except IndexError:
                at = slots.more()
            said = checksum(encoded, stamp)
            try:
                # No call among the arguments: during one another thread may put another file in this one's place,
                # or a signal handler fork, and what is packed would go into the old file.
                pack(slots.file, at, said, stamp, encoded, WHOLE)
            except BaseException:  # out of a signal handler: whose call raises, that has recorded nothing
                slots.release((at,))
                raise
            return at

        return write if usual else _dying(write)

    def _write_parts(self, encoded: bytes, lanes: tuple[str, ...], number: int) -> Place:
        """Keep an event in as many slots as it takes. It is there when the last of them is."""
        check_length(encoded)
        pieces = [encoded[at : at + PART_ROOM] for at in range(0, len(encoded), PART_ROOM)]
        route = self._routes[lanes]
        slots = self.slots.several(len(pieces))
        try:
            self._pack_parts(route, slots, pieces, number)
        except BaseException:  # as above
            self.slots.release(slots)
            raise
        return tuple(slots)

    def _pack_parts(self, route: int, slots: list[int], pieces: list[bytes], number: int) -> None:
        """The first has the event's number, the others have their own."""
        event = number | route
        for at, (slot, piece) in enumerate(zip(slots, pieces, strict=True)):
            stamp = (self._number() | route) if at else event
            payload = PART_HEAD.pack(event, at, len(pieces)) + piece
            said = layout.checksum(payload, stamp, PART)
            RECORD.pack_into(self.slots.file, slot, said, stamp, payload, PART)  # no call, as in `write`
            failpoint.reach("part written")

    def _add_route(self, lanes: tuple[str, ...]) -> int:
        self._order.setdefault(lanes)  # a single operation: where it comes to stand is its number
        order = list(self._order)
        with memoryview(self.slots.file) as buffer:
            if not layout.write_routes(buffer, order):
                raise JournalFull
        return order.index(lanes)

    # What becomes of a slot

    def stamps(self, places: Iterable[Place]) -> list[int]:
        """The numbers that the slots at *places* have, each `// STEP`."""
        mapped, unpack, at = self.slots.file, layout.STAMP.unpack_from, layout.STAMP_AT
        return [unpack(mapped, slot + at)[0] // ROUTES for slot in _slots(places)]

    def release(self, places: Iterable[Place]) -> None:
        """Free the slots of events that are stored, or that were not accepted after all. For any thread."""
        self.slots.release(_slots(places))

    def shrink(self) -> None:
        """Give the memory back that the slots took in a rush. The file keeps what is in them, and they come back."""
        with suppress(OSError):  # of a program that keeps all its memory
            self.slots.file.madvise(mmap.MADV_DONTNEED)

    def fits(self, encoded: bytes) -> bool:
        """Whether there is room for *encoded* at present."""
        slots = 1 if len(encoded) <= ROOM else -(-len(encoded) // PART_ROOM)
        return self.slots.free >= slots

    # Where it lies: for the spooler's thread

    def in_place(self) -> bool:
        """Whether the file that is written to is the one at `path`: somebody may have deleted it."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def move(self, folder: Path) -> None:
        """Have the file lie in *folder*. Where somebody deleted it, one like it is made. Raises `OSError`."""
        path = folder / self.path.name
        if self.in_place():
            self.path.rename(path)
        else:
            self._replace(path)
        self.path = path
        failpoint.reach("journal moved")

    def _replace(self, path: Path) -> None:
        """Go on with a new file at *path*. No slot is freed meanwhile, since the thread that does it is here."""
        path.unlink(missing_ok=True)
        old = self.slots.file
        new, self._inode = create(path, self._size)
        copied = old[: self.slots.used]
        new[: len(copied)] = copied
        self.slots.file = new
        # What calls have written since the copy was made, they wrote to the old one.
        with memoryview(new) as buffer:
            layout.write_routes(buffer, list(self._order))
        for place in range(HEAD, self.slots.used, SLOT):
            now = old[place : place + SLOT]
            if now != copied[place : place + SLOT].ljust(SLOT, b"\0"):
                new[place : place + SLOT] = now
        failpoint.reach("journal replaced")

    # The end

    def remove(self) -> None:
        """Give the file up and delete it: all that was accepted is stored, and nothing may be accepted any more.

        What may still be in it is of calls that an exception cut off, or that are late and are told so. Such a
        one writes into nothing.
        """
        if self.in_place():
            with suppress(OSError):
                self.path.unlink()
                failpoint.reach("journal given up")
        self.let_go()

    def let_go(self) -> None:
        """Leave the file as it is, for who recovers it; in a forked child it is the parent's, lock and all."""
        file = self.slots.file
        self.slots.file = self._nothing
        with suppress(BufferError):  # a route is being added just now, and the file goes with that call
            # Not left to the last reference: in a child, what threads held that are not there is never let go
            # of, and the lock would outlive the parent.
            file.close()


class _Routes(dict[tuple[str, ...], int]):
    """The numbers of the routes; a new one is added to the head when it is first asked for."""

    def __init__(self, add: Callable[[tuple[str, ...]], int]) -> None:
        super().__init__()
        self._add = add

    def __missing__(self, lanes: tuple[str, ...]) -> int:
        self[lanes] = number = self._add(lanes)
        return number


def make(data_dir: Path, events: int, identifiers: Identifiers) -> Journal:
    """A new journal for *events* under *data_dir*, which is made if need be. Raises `OSError`.

    Its name ends in the node of the *identifiers*, so that who reads it can tell them from the numbers in it.
    Each has a slot, and a quarter more are for those that take several; one of the longest fits in any case.
    The disk's blocks are set aside at once: a mapping that a full disk cannot give one ends the process.
    """
    size = HEAD + (events + events // 4 + _LONGEST) * SLOT
    folder = data_dir / FOLDER
    files.make_folder(data_dir)
    files.make_folder(folder)
    for _ in range(_TRIES):
        path = folder / f"{time.time_ns() // 1000:014x}-{identifiers.node}{SUFFIX}"
        with suppress(BlockingIOError, FileExistsError, FileNotFoundError):
            mapped, inode = create(path, size)
            return Journal(path, mapped, inode, identifiers.number)
    raise OSError(errno.EAGAIN, f"{folder}: new files are taken away")


@cache
def _nothing(size: int) -> mmap.mmap:
    """What a late call may write to. One for all: a process that forks again and again makes no more."""
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _slots(places: Iterable[Place]) -> list[int]:
    slots: list[Any] = list(places)
    if set(map(type, slots)) == {int}:  # nearly always: no event is long
        return slots
    some = [(place,) if type(place) is int else place for place in slots if place is not None]
    return [slot for parts in some for slot in parts]


def _dying(write: Write) -> Write:
    """*write* with a failpoint, which the way of every event is too short for."""

    def write_and_die(encoded: bytes, lanes: tuple[str, ...], number: int) -> Place:
        place = write(encoded, lanes, number)
        failpoint.reach("slot written")
        return place

    return write_and_die
