"""One connection to a ledger's file: the file made for its owner only, checked, and set up to be durable."""

import contextlib
import errno
import os
import sqlite3
from pathlib import Path
from typing import Final

from per_agent import failpoint, files
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
    _check(path)
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
    files.make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    os.close(files.create(temporary))
    failpoint.reach("ledger file made")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
            failpoint.reach("ledger linked")
    finally:
        temporary.unlink(missing_ok=True)  # another process may have taken it for one that was left behind
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check(path: Path) -> None:
    """Raise `OSError` where *path*, or a file that SQLite keeps beside it, is none that may be opened."""
    problem = files.strange_link(path) or _file_problem(path)
    if problem is not None:
        raise OSError(errno.EINVAL, problem, str(path))
    real = path.resolve()
    for beside in (real.with_name(f"{real.name}-{kind}") for kind in ("wal", "shm", "journal")):
        problem = files.not_ours(beside)
        if problem is not None:
            raise OSError(errno.EINVAL, f"{beside.name} {problem}", str(beside))


def _file_problem(path: Path) -> str | None:
    """What is wrong with the file itself, in words. SQLite would make a ledger of any empty one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None  # SQLite makes it, where a link of ours leads
    problem = files.not_a_file(found)
    if problem is not None or found.st_size or found.st_nlink == 1:
        return problem
    for left in path.parent.iterdir():  # by a process that died while it made the file
        with contextlib.suppress(FileNotFoundError):  # or by one that is about to remove it
            if left.name.startswith(f".{path.name}.") and left.samefile(path):
                left.unlink()
    again = path.stat()
    alone = again.st_nlink == 1 or again.st_size
    return None if alone else "is an empty file that has another name elsewhere (a hard link): remove it"


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
