"""One lane of one spool, read from outside and recounted from the blocks and letters themselves."""

import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from per_agent.books import Books
from per_agent.errors import SpoolCorrupt
from per_agent.month import ByMonth, Month
from per_agent.spool import block as blocks
from per_agent.spool.disk import FILE, check_files, has_no_tables
from per_agent.spool.records import Parking

READ: Final = "SELECT key, value FROM Cache WHERE key > ? AND key < ? AND raw = 1 AND mode = 1 ORDER BY key"
_HEADS: Final = (
    f"SELECT key, substr(value, 1, {blocks.HEAD_BYTES + 4}) FROM Cache"  # noqa: S608  (a constant)
    " WHERE key > ? AND key < ? AND raw = 1 AND mode = 1 ORDER BY key"
)
END: Final = "\x7f"
_BUSY_TIMEOUT: Final = 5.0  # seconds

_books_of = msgspec.msgpack.Decoder(Books).decode
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
        months: waiting and parked events by the month in which their blocks were made.
        note: what the owner's courier last said of it, JSON.
    """

    books: Books
    waiting: int
    parked: int
    letters: int
    damaged: int
    parkings: tuple[Parking, ...]
    oldest: float | None
    months: dict[Month, int]
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


def opened(file: Path) -> sqlite3.Connection:
    if not file.exists():
        raise FileNotFoundError(file)
    check_files(file)
    log = file.with_name(f"{FILE}-wal")
    if _has_content(log) and not _has_content(file):
        # SQLite takes such a log for one that was left behind, and deletes it even when it is only to read.
        error = sqlite3.DatabaseError("it is empty, and its log is not")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error
    # Not immutable: the owner may be writing, and the write-ahead log holds the newest of it.
    connection = _connect(file, "mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        # What its maker died over is in the file and was never committed.
        if has_no_tables(error) or _has_content(log):
            raise
        # To read beside a writer takes a file of 32 KiB, for which there is no room on a full disk, and which
        # cannot be made on one that is read-only. Without a log all is in the database.
        return _connect(file, "mode=ro&immutable=1")
    except BaseException:
        connection.close()
        raise
    return connection


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


def _connect(file: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?{how}", uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None
    )


def lanes_of(database: sqlite3.Connection) -> list[str]:
    lanes = []
    low = "l/"
    while row := database.execute(READ + " LIMIT 1", (low, f"l/{END}")).fetchone():
        lane = row[0].split("/")[1]
        lanes.append(lane)
        low = f"l/{lane}/{END}"
    return lanes


def one(database: sqlite3.Connection, key: str) -> bytes | None:
    row = database.execute(
        "SELECT value FROM Cache WHERE key = ? AND raw = 1 AND mode = 1", (key,)
    ).fetchone()
    return None if row is None else bytes(row[0])


def books_of(database: sqlite3.Connection, lane: str) -> Books:
    stored = one(database, f"l/{lane}/n")
    return Books() if stored is None else _books_of(stored)


def lane_of(database: sqlite3.Connection, lane: str) -> Lane:
    prefix = f"l/{lane}/"
    settled = {
        key[len(prefix) + 2 :]: blocks.mask_of(mask).bit_count()
        for key, mask in database.execute(READ, (f"{prefix}d/", f"{prefix}d/{END}"))
    }
    waiting = parked = 0
    oldest = None
    months = ByMonth()
    for key, head in database.execute(_HEADS, (f"{prefix}b/", f"{prefix}b/{END}")):
        count, made_at = _head(head)
        left = count - settled.get(key[len(prefix) + 2 :], 0)
        waiting += left
        months.add(made_at, left)
        oldest = made_at if oldest is None else oldest
    for _, head in database.execute(_HEADS, (f"{prefix}p/", f"{prefix}p/{END}")):
        count, made_at = _head(head)
        parked += count
        months.add(made_at, count)
    damaged = sum(
        int.from_bytes(head[:4], "big")
        for _, head in database.execute(_HEADS, (f"{prefix}q/", f"{prefix}q/{END}"))
    )
    (letters_there,) = database.execute(
        "SELECT count(*) FROM Cache WHERE key > ? AND key < ?", (f"{prefix}x/", f"{prefix}x/{END}")
    ).fetchone()
    parkings = tuple(
        parking
        for _, value in database.execute(READ, (f"{prefix}r/", f"{prefix}r/{END}"))
        for parking in _parkings(value)
    )
    return Lane(
        books_of(database, lane),
        waiting,
        parked,
        letters_there,
        damaged,
        parkings,
        oldest,
        months.counts,
        one(database, f"{prefix}s"),
    )


def _parkings(packed: bytes) -> tuple[Parking, ...]:
    try:
        return (_parking_of(packed),)
    except msgspec.MsgspecError:
        return ()


def _head(head: bytes) -> tuple[int, float]:
    try:
        return blocks.head(head)
    except SpoolCorrupt:
        return 0, 0.0  # shows up as a difference between the books and what was counted
