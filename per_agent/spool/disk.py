"""diskcache, made safe to keep money in: no pickle, no eviction, no value files, an fsync at each commit.

Decision. diskcache is a cache: by its defaults it evicts the oldest rows, keeps large values in files that
it never fsyncs, pickles, and syncs at checkpoints only. Each of that loses events or runs planted code. The
settings below turn all of it off, they are read back after opening, and the spool refuses to run where
they differ. What is given up: values above 1 GB, and sharing the folder with other openers.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import diskcache

from per_agent import failpoint, files
from per_agent.errors import SpoolCorrupt, SpoolError
from per_agent.spool import forks
from per_agent.spool.ballast import size_on

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
    "sqlite_cache_size": 2**11,  # pages of 4 KiB
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
_TO_CHECK: Final = 256 * 2**20  # bytes; a larger database is not read through when it is opened
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


class RawDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Keys are text, values are bytes, both as they are. Nothing is ever pickled or unpickled."""

    def put(self, key: object) -> tuple[str, bool]:
        if type(key) is not str:
            raise SpoolCorrupt(f"a key of the spool must be text, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: object) -> str:
        if raw != 1 or type(key) is not str:
            raise SpoolCorrupt("the spool holds a key that per_agent did not write")
        return key

    def store(self, value: object, read: object, key: object = None) -> tuple[int, int, None, bytes]:
        if read or type(value) is not bytes:
            raise SpoolCorrupt(
                f"a value of the spool must be bytes, not {type(value).__name__} (key {key!r})"
            )
        return len(value), diskcache.core.MODE_RAW, None, value

    def fetch(self, mode: object, filename: object, value: object, read: object) -> bytes:
        if mode != diskcache.core.MODE_RAW or filename is not None or read or type(value) is not bytes:
            raise SpoolCorrupt("the spool holds a value that per_agent did not write")
        return value

    def filename(self, key: object = None, value: object = None) -> tuple[str, str]:  # noqa: ARG002  (diskcache's)
        raise SpoolCorrupt("the spool keeps no value files")

    def remove(self, file_path: object) -> None:
        """Nothing to remove: the spool keeps no value files."""


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
        self.get = self._cache.get
        self.set = self._cache.set
        self.delete = self._cache.delete
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

    def keys(self, low: str, high: str, limit: int) -> list[str]:
        """Up to *limit* keys strictly between *low* and *high*, in order."""
        rows = self._sql(
            "SELECT key FROM Cache WHERE key > ? AND key < ? AND raw = 1 ORDER BY key LIMIT ?",
            low,
            high,
            limit,
        )
        return [key for (key,) in rows]

    def rename(self, key: str, new: str) -> None:
        """Give the entry under *key* another key, whatever it holds; one that was there goes."""
        self._sql("UPDATE OR REPLACE Cache SET key = ? WHERE key = ? AND raw = 1", new, key)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done inside becomes durable together when the block ends, or nothing of it does."""
        try:
            with self._cache.transact():
                yield
        except diskcache.Timeout:
            # diskcache turns every error of BEGIN into a Timeout without words: ask SQLite for its own.
            self._sql("BEGIN IMMEDIATE")
            self._sql("ROLLBACK")
            raise
        except BaseException:
            # An error at COMMIT that SQLite did not roll back by itself would leave the connection inside
            # the transaction for good. Closing it rolls back.
            if self._connection is not None and self._connection.in_transaction:
                with suppress(Exception):
                    self.disconnect()
                    self.connect()
            raise

    def __contains__(self, key: str) -> bool:
        return key in self._cache

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
        if self.bytes_used() > _TO_CHECK:
            return None
        ((said,),) = self._sql("PRAGMA integrity_check(1)")
        return None if said == "ok" else str(said)

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
