"""diskcache, made safe to keep money in: no pickle, no eviction, no value files, an fsync at each commit.

Decision. diskcache is a cache: by its defaults it evicts the oldest rows, keeps large values in files that
it never fsyncs, pickles, and syncs at checkpoints only. Each of that loses events or runs planted code. The
settings below turn all of it off, they are read back after opening, and the spool refuses to run where
they differ. What is given up: values above 1 GB, and sharing the folder with other openers.

Decision. What a transaction changes is gathered and written at its end, in a few statements for all of it, where
diskcache takes two for each row, and as much of Python for each. A statement also lets go of the interpreter's
lock, and beside a thread that computes it may take 5 ms to have it back. Written is what diskcache would write, so
its counts and its readers agree. What is given up: nothing of a transaction is on its way to the disk before its end.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeVar

import diskcache

from per_agent import failpoint, files
from per_agent.errors import SpoolError
from per_agent.spool import forks, statements
from per_agent.spool.ballast import size_on
from per_agent.spool.raw import RawDisk, content, text

T = TypeVar("T")

_IN_ROW: Final = 2**40  # bytes; above SQLite's own row limit, so that no value ever becomes a file
_SETTINGS: Final[dict[str, Any]] = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "size_limit": 2**62,
    "statistics": 0,
    "tag_index": 0,
    "sqlite_journal_mode": "wal",
    "sqlite_synchronous": 2,  # FULL: an fsync at each commit, the meaning of *stored*
    "sqlite_mmap_size": 0,  # a file that is cut short under a mapping is a SIGBUS
    "sqlite_auto_vacuum": 1,  # FULL: the file shrinks as it drains
    "sqlite_cache_size": 2**10,  # pages of 4 KiB
    "sqlite_journal_size_limit": 8 * 2**20,  # bytes that the write-ahead log may keep after a checkpoint
    "disk_min_file_size": _IN_ROW,
}
_KNOWN: Final = (
    *diskcache.DEFAULT_SETTINGS,
    *diskcache.core.METADATA,
    "disk_min_file_size",
    "disk_pickle_protocol",
)
_BUSY_TIMEOUT: Final = 5.0  # seconds; a reader's checkpoint may hold the lock for a moment
_PAGE: Final = 4096  # bytes; SQLite's default
_CHECKPOINT_PAGES: Final = 1000  # of the log; SQLite's default
_TO_CHECK: Final = 32 * 2**20  # bytes; a larger database is not read through when it is opened: see `sweep`
_AT_ONCE: Final = 64  # rows in one statement
FILE: Final = "cache.db"


def check_files(database: Path) -> None:
    """Raise `SpoolError` where *database*, or what SQLite keeps beside it, is a link, a pipe or the like."""
    for file in (database, *(database.with_name(f"{FILE}-{kind}") for kind in ("wal", "shm", "journal"))):
        problem = files.not_ours(file)
        if problem is not None:
            raise SpoolError(f"{file}: {problem}")


def has_no_tables(error: sqlite3.Error) -> bool:
    """Whether *error*, met while reading, says that the database is still being made, or that its maker died over it.

    It is set to use a write-ahead log before it has tables. Who dies over that leaves a rollback journal, which
    a reader may not play back.
    """
    code = getattr(error, "sqlite_errorcode", None)
    return "no such table" in str(error) or code == sqlite3.SQLITE_READONLY_ROLLBACK


class Disk:
    """One diskcache folder, for one thread at a time: bytes by key, key ranges, transactions.

    To be used in `forks.section`, after `connect`. Raises `SpoolError` when the folder cannot be opened, and
    lets `sqlite3.Error` and `diskcache.Timeout` of single calls through: a transaction that raised has
    changed nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            # SQLite gives its -wal and -shm files the mode of the database, and an empty file is a new database.
            os.close(files.create(self.file))
            failpoint.reach("database made")
        check_files(self.file)
        self._forget_strange_settings()
        self._cache = diskcache.Cache(str(folder), timeout=_BUSY_TIMEOUT, disk=RawDisk, **_SETTINGS)
        failpoint.reach("database opened")
        self._connection: sqlite3.Connection | None = None
        self.disconnect()
        self.connect()
        self._changes: dict[str, bytes | None] = {}  # that are not written yet; None: to be deleted
        self._in_transaction = False
        self._inode = self.file.stat().st_ino
        forks.watch(self)

    def _forget_strange_settings(self) -> None:
        """Delete what somebody planted among the settings: diskcache makes each of them an attribute of its own."""
        with closing(sqlite3.connect(self.file, timeout=_BUSY_TIMEOUT, isolation_level=None)) as database:
            database.execute("PRAGMA trusted_schema = 0")
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'Settings'").fetchone() is not None:
                database.execute(
                    f"DELETE FROM Settings WHERE key NOT IN ({', '.join('?' * len(_KNOWN))})",  # noqa: S608  (constants)
                    _KNOWN,
                )

    def connect(self) -> None:
        """Open the connection, where it is not. diskcache would keep one for each thread, closable by it alone."""
        if self._connection is not None:
            return
        connection = sqlite3.connect(
            f"{self.file.absolute().as_uri()}?mode=rw",  # never made anew, in a folder that was deleted
            uri=True,
            timeout=_BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )
        self._cache._local = SimpleNamespace(pid=os.getpid(), con=connection)  # noqa: SLF001  (pinned)
        try:
            for setting, value in _SETTINGS.items():
                if setting.startswith("sqlite_"):
                    self._cache.reset(setting, value, update=False)
            self._read_back()
            # What has not been moved from the log into the database is to fit into the ballast.
            pages = min(_CHECKPOINT_PAGES, size_on(self.file.parent) // 2 // _PAGE)
            self._sql(f"PRAGMA wal_autocheckpoint = {pages}")
        except BaseException:
            self.disconnect()
            raise
        self._connection = connection

    def disconnect(self) -> None:
        """Close the connection; `connect` opens another."""
        self._cache.close()
        self._connection = None

    def _sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        # diskcache has no public range query; the release is pinned and a test holds this ground.
        rows: list[tuple[Any, ...]] = self._cache._sql(statement, values).fetchall()  # noqa: SLF001
        return rows

    def _read_back(self) -> None:
        """Refuse to run where the database is not as durable as *stored* promises."""
        found = {
            "synchronous": self._sql("PRAGMA synchronous")[0][0],
            "journal_mode": self._sql("PRAGMA journal_mode")[0][0],
            "eviction_policy": self._cache.eviction_policy,
            "cull_limit": self._cache.cull_limit,
            "disk_min_file_size": self._cache.disk_min_file_size,
        }
        wanted = {
            "synchronous": 2,
            "journal_mode": "wal",
            "eviction_policy": "none",
            "cull_limit": 0,
            "disk_min_file_size": _IN_ROW,
        }
        if found != wanted:
            raise SpoolError(
                f"{self.file}: the database is not set up to be durable: {found}, wanted {wanted}"
            )

    def get(self, key: str) -> bytes | None:
        """The value under *key*. Raises `SpoolCorrupt` where it is not what per_agent writes."""
        if key in self._changes:
            return self._changes[key]
        value: bytes | None = self._cache.get(key)
        return value

    def set(self, key: str, value: bytes) -> None:
        """Put *value* under *key*, in the place of what may be there."""
        self._changes[text(key)] = content(value)
        if not self._in_transaction:
            self._write()

    def delete(self, key: str) -> None:
        """Delete what is under *key*, if anything."""
        self._changes[text(key)] = None
        if not self._in_transaction:
            self._write()

    def _write(self) -> None:
        """Write what was gathered."""
        changes, self._changes = self._changes, {}
        puts = [(key, value) for key, value in changes.items() if value is not None]
        for some in _in_portions(puts):
            columns = [column for key, value in some for column in (key, len(value), value)]
            self._sql(statements.put(len(some)), time.time(), *columns)
        for gone in _in_portions([key for key, value in changes.items() if value is None]):
            self._sql(statements.delete(len(gone)), *gone)

    def keys(self, low: str, high: str, limit: int) -> list[str]:
        """Up to *limit* keys strictly between *low* and *high*, in order."""
        self._write()
        return [key for (key,) in self._sql(statements.KEYS, low, high, limit)]

    def rows(self, low: str, high: str, limit: int) -> list[tuple[str, bytes | None]]:
        """As `keys`, with the values; None for one that per_agent did not write."""
        self._write()
        return [(key, value) for key, value in self._sql(statements.ROWS, low, high, limit)]

    def rename(self, key: str, new: str) -> None:
        """Give the entry under *key* another key, whatever it holds; one that was there goes."""
        self._write()
        self._sql(statements.RENAME, new, key)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done inside becomes durable together when the block ends, or nothing of it does."""
        try:
            with self._cache.transact():
                self._in_transaction = True
                try:
                    yield
                    self._write()
                finally:
                    self._in_transaction, self._changes = False, {}
        except diskcache.Timeout:
            # diskcache turns every error of BEGIN into a Timeout without words: ask SQLite for its own.
            self._sql("BEGIN IMMEDIATE")
            self._sql("ROLLBACK")
            raise
        except BaseException as error:
            hidden = _hidden(error)
            if hidden is not None:
                raise hidden from None
            # An error at COMMIT that SQLite did not roll back by itself would leave the connection inside
            # the transaction for good. Closing it rolls back.
            if self._connection is not None and self._connection.in_transaction:
                with suppress(Exception):
                    self.disconnect()
                    self.connect()
            raise

    def __contains__(self, key: str) -> bool:
        return self._changes[key] is not None if key in self._changes else key in self._cache

    def bytes_used(self) -> int:
        """Bytes on the disk, write-ahead log included."""
        return self.file.stat().st_size + self.log_bytes()

    def log_bytes(self) -> int:
        """Bytes of the write-ahead log."""
        try:
            return self.file.with_name(f"{FILE}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def damage(self) -> str | None:
        """What SQLite finds to be wrong, in words; None also where the database is too large to be read through."""
        if self.is_large:
            return None
        ((said,),) = self._sql("PRAGMA integrity_check(1)")
        return None if said == "ok" else str(said)

    @property
    def is_large(self) -> bool:
        """Whether reading all of it through would hold up a start."""
        return self.bytes_used() > _TO_CHECK

    def last_row(self) -> int:
        """The number of the last row."""
        ((last,),) = self._sql("SELECT coalesce(max(rowid), 0) FROM Cache")
        return int(last)

    def unnamed(self, after: int, limit: int) -> tuple[int | None, int]:
        """Of up to *limit* rows after the one numbered *after*: the last one's number, and how many no index names."""
        ((last, named, count),) = self._sql(statements.NAMED, after, limit)
        return last, count - named

    def shrink(self) -> int:
        """Move the write-ahead log into the database and cut it. Returns the bytes used then."""
        self._sql("PRAGMA wal_checkpoint(TRUNCATE)")
        failpoint.reach("checkpoint")
        return self.bytes_used()

    def in_place(self) -> bool:
        """Whether the open database is still the file at its path: writes to an unlinked one are lost."""
        try:
            return self.file.stat().st_ino == self._inode
        except (FileNotFoundError, NotADirectoryError):
            return False


def _hidden(error: BaseException) -> sqlite3.Error | None:
    """The error that *error* hides: SQLite rolled back by itself, and so diskcache's own ROLLBACK failed."""
    before = error.__context__
    if isinstance(error, sqlite3.OperationalError) and isinstance(before, sqlite3.Error):
        return before if "no transaction is active" in str(error) else None
    return None


def _in_portions(several: Sequence[T]) -> Iterator[Sequence[T]]:
    return (several[at : at + _AT_ONCE] for at in range(0, len(several), _AT_ONCE))
