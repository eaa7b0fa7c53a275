"""The spools of a folder as anybody may see them: read-only, beside their owners, never in their way.

`counted` is the evidence for the books: it is counted from the blocks and dead letters themselves, while
the books were written beside them, transaction by transaction.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from per_agent.books import Books
from per_agent.errors import SpoolCorrupt, SpoolError
from per_agent.spool import block as blocks
from per_agent.spool import forks
from per_agent.spool.disk import FILE
from per_agent.spool.folder import held, spools
from per_agent.spool.journaled import journaled
from per_agent.spool.records import DeadLetter, FiledLetter, Parking
from per_agent.spool.transaction import MISSING, UNREADABLE

_READ: Final = "SELECT key, value FROM Cache WHERE key > ? AND key < ? AND raw = 1 AND mode = 1 ORDER BY key"
_HEADS: Final = (
    f"SELECT key, substr(value, 1, {blocks.HEAD_BYTES + 4}) FROM Cache"  # noqa: S608  (a constant)
    " WHERE key > ? AND key < ? AND raw = 1 AND mode = 1 ORDER BY key"
)
_END: Final = "\x7f"
_BUSY_TIMEOUT: Final = 5.0  # seconds
_PAGE: Final = 1000  # dead letters read at once
_READINGS: Final = 10  # at most, while spools come and go

_books_of = msgspec.msgpack.Decoder(Books).decode
_letter_of = msgspec.msgpack.Decoder(DeadLetter).decode
_parking_of = msgspec.msgpack.Decoder(Parking).decode


class Lane(msgspec.Struct, frozen=True):
    """One lane of one spool.

    Attributes:
        books: as its owner wrote them.
        waiting: events counted in the blocks that wait to be delivered.
        parked: events counted in parked blocks.
        letters: dead letters that lie there.
        damaged: events known to be lost with damaged blocks.
        parkings: what parked events wait for.
        oldest: when the oldest waiting block was made, in epoch seconds.
        note: what the owner's courier last said of it, JSON.
    """

    books: Books
    waiting: int
    parked: int
    letters: int
    damaged: int
    parkings: tuple[Parking, ...]
    oldest: float | None
    note: bytes | None

    @property
    def problems(self) -> list[str]:
        """What does not add up, a sentence each."""
        found = []
        books = self.books
        if not books.balanced:
            found.append(
                f"accepted {books.accepted} is not delivered {books.delivered} + dead {books.dead}"
                f" + dropped {books.dropped} + pending {books.pending}"
            )
        if books.pending != self.waiting + self.parked:
            found.append(
                f"{books.pending} are pending by the books, {self.waiting + self.parked} lie in blocks"
            )
        if books.dead != self.letters + books.purged + self.damaged:
            found.append(
                f"{books.dead} are dead by the books, {self.letters} letters lie there,"
                f" {books.purged} were purged, {self.damaged} lost with damaged blocks"
            )
        return found


class Snapshot(msgspec.Struct, frozen=True):
    """One spool at one moment.

    Attributes:
        held: whether a process uses it.
        absorbed: spools counted in its books.
        journaled: for each lane, events that a dead holder accepted and did not store: they are in a journal,
            and in no books yet.
        unreadable: slots of journals that were not what was written, or not there any more.
        unknown: journals that lie there and cannot be read, as by a later version's.
    """

    id: str
    folder: Path
    held: bool
    bytes_used: int
    lanes: dict[str, Lane]
    absorbed: tuple[str, ...]
    journaled: dict[str, int]
    unreadable: int
    unknown: int


def snapshots(data_dir: Path) -> list[Snapshot]:
    """All spools under *data_dir* whose books count: those counted in another's books are left out.

    Raises `SpoolError` when one of them cannot be read.
    """
    # Each spool is read at a moment of its own. One that is absorbed by another and removed in between would
    # be counted twice, or not at all; then the folders have changed, and they are read again.
    folders = spools(data_dir)
    for _ in range(_READINGS):
        found = [snapshot for folder in folders if (snapshot := read(folder)) is not None]
        before, folders = folders, spools(data_dir)
        if set(before) <= set(folders):
            break
    counted_elsewhere = {spool for snapshot in found for spool in snapshot.absorbed}
    return [snapshot for snapshot in found if snapshot.id not in counted_elsewhere]


def read(folder: Path) -> Snapshot | None:
    """The spool in *folder*, or None when there is nothing in it yet, or any more."""
    file = folder / FILE
    try:
        used = sum(path.stat().st_size for path in folder.iterdir() if path.name.startswith(FILE))
        with forks.section(), closing(_open(file)) as database:
            database.execute("BEGIN")  # one moment for all that is read
            lanes = {lane: _lane(database, lane) for lane in _lanes(database)}
            absorbed = tuple(key[2:] for key, _ in database.execute(_READ, ("a/", f"a/{_END}")))
            in_journals, unknown = journaled(folder, lambda name: _one(database, f"j/{name}"))
            unreadable = _unreadable(database)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise SpoolError(f"{folder}: cannot be read: {error.strerror}; it is another user's") from error
    except msgspec.MsgspecError as error:
        raise SpoolError(f"{file}: cannot be read: {error}") from error
    except sqlite3.Error as error:
        if not file.exists() or "no such table" in str(error):
            return None  # it is being made, or was removed just now
        raise SpoolError(f"{file}: cannot be read: {error}") from error
    return Snapshot(
        folder.name, folder, held(folder), used, lanes, absorbed, in_journals, unreadable, unknown
    )


def pending(folder: Path) -> dict[str, int] | None:
    """The events that the books of the spool in *folder* call pending, for each lane that has some.

    None when it cannot be told.
    """
    try:
        with forks.section(), closing(_open(folder / FILE)) as database:
            every = {lane: _books(database, lane).pending for lane in _lanes(database)}
    except FileNotFoundError:
        return {}  # claimed, and not yet made: its maker died in between
    except sqlite3.Error as error:
        return {} if "no such table" in str(error) else None
    except (msgspec.MsgspecError, OSError):
        return None
    return {lane: count for lane, count in every.items() if count}


def absorbed(data_dir: Path) -> set[str] | None:
    """The spools whose books are in another's, so that what is left of them counts no more.

    None when a spool cannot be asked at this moment. A damaged one is not waited for.
    """
    marks: set[str] = set()
    for folder in spools(data_dir):
        try:
            with forks.section(), closing(_open(folder / FILE)) as database:
                marks |= {key[2:] for key, _ in database.execute(_READ, ("a/", f"a/{_END}"))}
        except sqlite3.OperationalError as error:
            if folder.exists() and "no such table" not in str(error) and os.access(folder, os.W_OK):
                return None
        except (sqlite3.Error, OSError):
            continue
    return marks


def letters(folder: Path, lane: str = "", number: int = 0) -> Iterator[FiledLetter]:
    """The dead letters of the spool in *folder* that follow the place *lane*, *number*; without one, all.

    Lane by lane, oldest first. Read in pages, not at one moment.
    """
    after = f"l/{lane}/x/{number:012x}" if lane else "l/"
    while page := _letters(folder, after):
        yield from page
        after = f"l/{page[-1].lane}/x/{page[-1].number:012x}"


def _letters(folder: Path, after: str) -> list[FiledLetter]:
    """Up to a page of dead letters whose keys follow *after*."""
    found: list[FiledLetter] = []
    try:
        with forks.section(), closing(_open(folder / FILE)) as database:
            database.execute("BEGIN")
            for lane in _lanes(database):
                prefix = f"l/{lane}/x/"
                rows = database.execute(
                    _READ + " LIMIT ?", (max(after, prefix), prefix + _END, _PAGE - len(found))
                )
                found += (
                    FiledLetter(folder.name, lane, int(key[len(prefix) :], 16), _letter_of(value))
                    for key, value in rows
                )
    except FileNotFoundError:
        return []
    except sqlite3.Error as error:
        raise SpoolError(f"{folder}: cannot be read: {error}") from error
    return found


def _open(file: Path) -> sqlite3.Connection:
    if not file.exists():
        raise FileNotFoundError(file)
    # Not immutable: the owner may be writing, and the write-ahead log holds the newest of it.
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None
    )


def _lanes(database: sqlite3.Connection) -> list[str]:
    lanes = []
    low = "l/"
    while row := database.execute(_READ + " LIMIT 1", (low, f"l/{_END}")).fetchone():
        lane = row[0].split("/")[1]
        lanes.append(lane)
        low = f"l/{lane}/{_END}"
    return lanes


def _one(database: sqlite3.Connection, key: str) -> bytes | None:
    row = database.execute(
        "SELECT value FROM Cache WHERE key = ? AND raw = 1 AND mode = 1", (key,)
    ).fetchone()
    return None if row is None else bytes(row[0])


def _unreadable(database: sqlite3.Connection) -> int:
    return sum(
        int.from_bytes(value, "big") if key.endswith(f"/{MISSING}") else 1
        for key, value in database.execute(_READ, (UNREADABLE, f"{UNREADABLE}{_END}"))
    )


def _books(database: sqlite3.Connection, lane: str) -> Books:
    stored = _one(database, f"l/{lane}/n")
    return Books() if stored is None else _books_of(stored)


def _lane(database: sqlite3.Connection, lane: str) -> Lane:
    prefix = f"l/{lane}/"
    settled = {
        key[len(prefix) + 2 :]: blocks.mask_of(mask).bit_count()
        for key, mask in database.execute(_READ, (f"{prefix}d/", f"{prefix}d/{_END}"))
    }
    waiting = 0
    oldest = None
    for key, head in database.execute(_HEADS, (f"{prefix}b/", f"{prefix}b/{_END}")):
        count, made_at = _head(head)
        waiting += count - settled.get(key[len(prefix) + 2 :], 0)
        oldest = made_at if oldest is None else oldest
    parked = sum(_head(head)[0] for _, head in database.execute(_HEADS, (f"{prefix}p/", f"{prefix}p/{_END}")))
    damaged = sum(
        int.from_bytes(head[:4], "big")
        for _, head in database.execute(_HEADS, (f"{prefix}q/", f"{prefix}q/{_END}"))
    )
    (letters_there,) = database.execute(
        "SELECT count(*) FROM Cache WHERE key > ? AND key < ?", (f"{prefix}x/", f"{prefix}x/{_END}")
    ).fetchone()
    parkings = tuple(
        _parking_of(value) for _, value in database.execute(_READ, (f"{prefix}r/", f"{prefix}r/{_END}"))
    )
    return Lane(
        _books(database, lane),
        waiting,
        parked,
        letters_there,
        damaged,
        parkings,
        oldest,
        _one(database, f"{prefix}s"),
    )


def _head(head: bytes) -> tuple[int, float]:
    try:
        return blocks.head(head)
    except SpoolCorrupt:
        return 0, 0.0  # shows up as a difference between the books and what was counted
