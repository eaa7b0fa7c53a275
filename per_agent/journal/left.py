"""What dead processes left: their journals found, taken, and read, each event as it was written or reported."""

import fcntl
import mmap
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from per_agent import failpoint
from per_agent.errors import SpoolCorrupt
from per_agent.journal import layout
from per_agent.journal.journal import FOLDER, SUFFIX
from per_agent.journal.layout import HEAD, PART, PART_HEAD, SLOT, Slot

_SET_ASIDE: Final = ".set-aside"
_TAKEN: Final = re.compile(rb"[^\0]")


class Event(NamedTuple):
    """One event of a journal. *numbers* are those of its slots."""

    numbers: tuple[int, ...]
    lanes: tuple[str, ...]
    encoded: bytes


class Left(NamedTuple):
    """What was found in a journal.

    Attributes:
        id: the journal's.
        events: in the order in which they were accepted.
        cut: events that a process died over, before their call returned: they were never accepted.
        damaged: for each slot that is not what was written, its offset and its bytes.
        missing: slots that are not there any more, as the file was cut short; what they held is not known.
    """

    id: str
    events: list[Event]
    cut: int
    damaged: list[tuple[int, bytes]]
    missing: int = 0


def in_folder(folder: Path) -> list[Path]:
    """The journals that lie in *folder*, oldest first, those that were set aside included."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith((SUFFIX, SUFFIX + _SET_ASIDE)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def files(folder: Path) -> list[Path]:
    """The journals in *folder* that can be recovered, oldest first."""
    return [path for path in in_folder(folder) if path.suffix == SUFFIX]


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    """The bytes of a file of ours; none where there is no file, or something else in its place."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield memoryview(b"")
        return
    try:
        size = os.fstat(fd).st_size
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
    """What is in the journal at *path*. Raises `SpoolCorrupt` where a later version wrote it."""
    with _mapped(path) as buffer:
        name = path.name.removesuffix(SUFFIX)
        head = layout.read_head(buffer)
        if head is None:
            return Left(name, [], 0, [])
        if head.format != layout.FORMAT:
            raise SpoolCorrupt(f"{path}: has format {head.format}, and this version knows {layout.FORMAT}")
        routes = layout.routes(buffer)
        slots: list[Slot] = []
        damaged: list[tuple[int, bytes]] = []
        for at in _taken(buffer):
            try:
                slot = layout.read_slot(buffer, at)
            except SpoolCorrupt:
                slot = None
            if slot is not None and slot.route < len(routes) and routes[slot.route] is not None:
                slots.append(slot)
            else:
                damaged.append((at, bytes(buffer[at : at + SLOT])))
        missing = max(0, head.slots - (len(buffer) - HEAD) // SLOT) if head.sound else 0
    slots.sort(key=lambda slot: slot.number)
    events = [
        Event((slot.number,), routes[slot.route] or (), slot.payload) for slot in slots if slot.state != PART
    ]
    joined, cut = _join([slot for slot in slots if slot.state == PART], routes)
    if joined:
        events = sorted(events + joined)
    return Left(name, events, cut, damaged, missing)


def _join(parts: list[Slot], routes: list[tuple[str, ...] | None]) -> tuple[list[Event], int]:
    """The events whose parts are all there, and how many are not whole."""
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
    return events, len(pieces) - len(whole)


def pending(path: Path) -> dict[str, int]:
    """For each lane, about how many events the journal at *path* holds: parts count each, stored ones too."""
    counts: Counter[str] = Counter()
    with _mapped(path) as buffer:
        if layout.read_head(buffer) is not None:
            routes = layout.routes(buffer)
            taken = Counter(buffer[at + layout.STAMP_AT] % layout.ROUTES for at in _taken(buffer))
            for route, count in taken.items():
                lanes = routes[route] if route < len(routes) else None
                counts.update(dict.fromkeys(lanes or (), count))
    return dict(counts)


def abandoned(data_dir: Path) -> list[Path]:
    """The journals under *data_dir* that never came into a spool, and whose process is dead."""
    return [path for path in files(data_dir / FOLDER) if _is_abandoned(path)]


def _is_abandoned(path: Path) -> bool:
    try:
        with _locked(path):
            return True
    except OSError:
        return False


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


def set_aside(path: Path) -> Path:
    """Keep a journal that cannot be read out of the way."""
    return path.rename(path.with_name(path.name + _SET_ASIDE))


def remove(path: Path) -> None:
    """Delete a journal whose events are all stored."""
    path.unlink(missing_ok=True)
    failpoint.reach("journal removed")
