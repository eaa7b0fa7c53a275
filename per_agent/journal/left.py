"""What dead processes left: their journals found, taken, and read, each event as it was written or reported."""

import errno
import fcntl
import mmap
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from per_agent import failpoint
from per_agent.errors import SpoolCorrupt
from per_agent.event import Identifiers
from per_agent.journal import layout
from per_agent.journal.file import SUFFIX
from per_agent.journal.layout import HEAD, PART, PART_HEAD, SLOT, Slot

_TAKEN: Final = re.compile(rb"[^\0]")
_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})
_NAME: Final = re.compile("[0-9a-f]+-([0-9a-f]{10})")


class Event(NamedTuple):
    """One event of a journal. *numbers* are those of its slots, the event's own first."""

    numbers: tuple[int, ...]
    lanes: tuple[str, ...]
    encoded: bytes


class Left(NamedTuple):
    """What was found in a journal.

    Attributes:
        id: the journal's.
        events: in the order in which they were accepted.
        cut: the parts of events that are not whole. A process died over them, before their call returned, so they
            were never accepted; or, where something is damaged or missing, they may be what is left of one.
        damaged: for each slot that is not what was written, its offset and its bytes.
        missing: slots that are not there any more, as the file was cut short; what they held is not known.
    """

    id: str
    events: list[Event]
    cut: list[Slot]
    damaged: list[tuple[int, bytes]]
    missing: int = 0

    @property
    def identifiers(self) -> Identifiers:
        """Those of the process that wrote it, by the name of its file; others where somebody renamed that."""
        name = _NAME.fullmatch(self.id)
        return Identifiers(name and name[1])


def files(folder: Path) -> list[Path]:
    """The journals that lie in *folder*, oldest first."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    """The bytes of a file of ours; none where there is no file.

    Raises `SpoolCorrupt` where it cannot be read, and `OSError` where it may be a moment later.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield memoryview(b"")
        return
    except OSError as error:
        if error.errno in _PASSING:
            raise
        # Another user's, say: there may be events in it all the same.
        raise SpoolCorrupt(f"{path}: cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(fd)
        size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            raise SpoolCorrupt(f"{path}: is not a file")
        if size == 0:
            yield memoryview(b"")
        else:
            with (
                closing(mmap.mmap(fd, size, access=mmap.ACCESS_READ)) as mapped,
                memoryview(mapped) as buffer,
            ):
                yield buffer
    finally:
        os.close(fd)


def _taken(buffer: memoryview) -> list[int]:
    """The offsets of the slots that are not free."""
    states = bytes(buffer[HEAD + layout.STATE_AT :: SLOT])
    return [HEAD + match.start() * SLOT for match in _TAKEN.finditer(states)]


def read(path: Path) -> Left:
    """What is in the journal at *path*.

    Raises `SpoolCorrupt` where it cannot be read or a later version wrote it, and `OSError` where no descriptor
    or no memory is free.
    """
    with _mapped(path) as buffer:
        name = path.name.removesuffix(SUFFIX)
        head = layout.read_head(buffer)
        taken = _taken(buffer)
        if head is None and not taken:
            return Left(name, [], [], [])
        if head is not None and head.format != layout.FORMAT:
            raise SpoolCorrupt(f"{path}: has format {head.format}, and this version knows {layout.FORMAT}")
        routes = layout.routes(buffer)
        slots: list[Slot] = []
        damaged: list[tuple[int, bytes]] = []
        for at in taken:
            try:
                slot = layout.read_slot(buffer, at)
            except SpoolCorrupt:
                slot = None
            if slot is not None and slot.route < len(routes) and routes[slot.route] is not None:
                slots.append(slot)
            else:
                damaged.append((at, bytes(buffer[at : at + SLOT])))
        whole = head.slots if head is not None and head.sound else 0
        missing = max(0, whole - max(0, len(buffer) - HEAD) // SLOT)
    slots.sort(key=lambda slot: slot.number)
    events = [
        Event((slot.number,), routes[slot.route] or (), slot.payload) for slot in slots if slot.state != PART
    ]
    joined, cut = _join([slot for slot in slots if slot.state == PART], routes)
    if joined:
        events = sorted(events + joined)
    return Left(name, events, cut, damaged, missing)


def _join(parts: list[Slot], routes: list[tuple[str, ...] | None]) -> tuple[list[Event], list[Slot]]:
    """The events whose parts are all there, and the parts of the others."""
    pieces: dict[int, dict[int, Slot]] = {}
    totals: dict[int, int] = {}
    for slot in parts:
        event, at, totals[event] = PART_HEAD.unpack_from(slot.payload)
        pieces.setdefault(event, {})[at] = slot
    whole = [found for event, found in pieces.items() if len(found) == totals[event]]
    events = [
        Event(
            tuple(found[at].number for at in range(len(found))),
            routes[found[0].route] or (),
            b"".join(found[at].payload[PART_HEAD.size :] for at in range(len(found))),
        )
        for found in whole
    ]
    cut = [slot for event, found in pieces.items() if len(found) != totals[event] for slot in found.values()]
    return events, cut


def pending(path: Path) -> dict[str, int]:
    """For each lane, about how many events the journal at *path* holds: parts count each, stored ones too."""
    counts: Counter[str] = Counter()
    with suppress(SpoolCorrupt, OSError), _mapped(path) as buffer:
        head = layout.read_head(buffer)
        if head is not None and head.format == layout.FORMAT:
            routes = layout.routes(buffer)
            taken = Counter(buffer[at + layout.STAMP_AT] % layout.ROUTES for at in _taken(buffer))
            for route, count in taken.items():
                lanes = routes[route] if route < len(routes) else None
                counts.update(dict.fromkeys(lanes or (), count))
    return dict(counts)


def abandoned(folder: Path) -> list[Path]:
    """The journals in *folder* whose process is dead."""
    return [path for path in files(folder) if is_abandoned(path)]


def is_abandoned(path: Path) -> bool:
    """Whether it is known that no process writes to the journal at *path*, however it got there."""
    try:
        with _locked(path):
            return True
    except OSError as error:
        if error.errno in _PASSING:
            return False  # EAGAIN: it is locked; of the others it cannot be told now
        return path.exists()  # not ours to write to, or no file: not anybody's who could


def take(path: Path, folder: Path) -> Path | None:
    """Move an abandoned journal into *folder*, a spool's. Returns where it lies now, None: somebody has it."""
    try:
        with _locked(path):
            taken = path.rename(folder / path.name)
            failpoint.reach("journal taken")
            return taken
    except OSError:
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the journal's lock. Raises `OSError` where another does, or the file is gone."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino != os.fstat(fd).st_ino:
            raise FileNotFoundError(path)
        yield
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Delete a journal whose events are all stored."""
    path.unlink(missing_ok=True)
    failpoint.reach("journal removed")
