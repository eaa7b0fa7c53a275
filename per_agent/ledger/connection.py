"""One connection to a ledger's file: the file made for its owner only, checked, and set up to be durable."""

import contextlib
import os
import sqlite3
import stat
from pathlib import Path
from typing import Final

from per_agent import failpoint
from per_agent.ledger import exact, schema
from per_agent.ledger.trouble import NotALedger

_WAIT_SECONDS: Final = 0.2  # for a lock, in one go: this wait of SQLite's is deaf to a fork, so it is short
_CACHE_KIB: Final = 16 * 1024
_CHECKPOINT_PAGES: Final = 4000  # 16 MiB of log: a page that many batches change is then copied back once
_LOG_BYTES: Final = 64 * 1024 * 1024  # what a log that a long reader kept growing is cut back to


class Connection(sqlite3.Connection):
    """A connection, and the numbers that it has read: they die with it, as their file may have."""

    file: tuple[int, int]
    members: dict[tuple[str, str, str], tuple[int, int]]
    accounts: dict[tuple[str, str], int]


def connect(path: Path) -> Connection:
    """Open the ledger at *path*, made if there is none. Raises `sqlite3.Error`, `OSError`; see `trouble`."""
    if not path.exists():
        _create(path)
    connection = sqlite3.connect(
        path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False, factory=Connection
    )
    try:
        _prepare(connection)
        connection.file = identity(path)
    except BaseException:
        connection.close()
        raise
    return connection


def identity(path: Path) -> tuple[int, int]:
    """Which file *path* names now: one that was deleted goes on taking writes, to nobody's use."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def union_bits(one: bytes, other: bytes) -> bytes:
    """The union of two bitmaps. SQLite calls it by this name."""
    both = int.from_bytes(one, "little") | int.from_bytes(other, "little")
    return both.to_bytes(max(len(one), len(other)), "little")


def _create(path: Path) -> None:
    """Make an empty file that is the owner's only; SQLite gives its log the same mode.

    By way of a link: to open and close *path* itself would drop the locks that another connection of
    this process may have taken on it meanwhile.
    """
    path.parent.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR))
    failpoint.reach("ledger file made")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
            failpoint.reach("ledger linked")
    finally:
        temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _prepare(connection: Connection) -> None:
    connection.members = {}
    connection.accounts = {}
    connection.execute("BEGIN")  # one view: another process may be making the tables just now
    fresh = _is_new(connection)
    connection.execute("COMMIT")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise NotALedger(f"cannot keep a write-ahead log here (journal mode {mode})")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    connection.create_function("add_exact", 2, exact.add_kept, deterministic=True)
    connection.create_function("union_bits", 2, union_bits, deterministic=True)
    if fresh:
        _build(connection)


def _is_new(connection: Connection) -> bool:
    """Whether the file has no tables yet. Raises `NotALedger` for what is none, or from a newer version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application == schema.APPLICATION_ID:
        if version > schema.VERSION:
            raise NotALedger(f"is of a newer version: schema {version}, this one knows {schema.VERSION}")
        return False
    if tables or application or version:
        raise NotALedger("is an SQLite file of something else")
    return True


def _build(connection: Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if _is_new(connection):  # another process may have been first
        for statement in schema.TABLES.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {schema.VERSION}")
    failpoint.reach("ledger tables written")
    connection.execute("COMMIT")
    failpoint.reach("ledger tables committed")
