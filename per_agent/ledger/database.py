"""The ledger's file: its connections and transactions, and what trouble with it means.

Decision: a pool of connections instead of one for each thread. Threads come and go and would leave their
connections behind; a pool has as many as were ever used at once, and keeps few. Under WAL readers wait for
nobody; writers wait for each other in `BEGIN IMMEDIATE`, in this process as between processes.

Decision: all connections are closed *before* a fork. SQLite remembers per process, and so inherits, which locks
it holds on a file. A child that inherits an open connection and opens another one takes locks for held
that only its parent holds: its write-ahead log can be deleted under it, and if a transaction was
under way at the fork it finds the database locked for ever. Closing in the child is worse, since a rollback
there writes to memory shared with the parent. So before the fork running statements are interrupted (they start
again afterwards), all is closed, and both sides open anew. Where that takes longer than `FORK_SECONDS`
the fork goes on, and the child refuses to touch the file.
"""

import contextlib
import errno
import os
import sqlite3
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from per_agent.errors import Refused, Unavailable
from per_agent.ledger import exact, schema

BUSY_SECONDS: Final = 5.0
"""How long one call waits for other writers before it says that the database is locked."""
FORK_SECONDS: Final = 5.0
"""How long a fork waits for the calls that are under way in other threads."""
KEPT_OPEN: Final = 4
"""Idle connections that are kept; three file descriptors each."""

_WAIT_SECONDS: Final = 0.2  # in one go, within BUSY_SECONDS: SQLite's own wait cannot be interrupted by a fork
_CACHE_KIB: Final = 16 * 1024
_CHECKPOINT_PAGES: Final = 4000  # 16 MiB of log: a page that many batches change is then copied back once
_LOG_BYTES: Final = 64 * 1024 * 1024  # what a log that a long reader kept growing is cut back to

_Result = TypeVar("_Result")


class Connection(sqlite3.Connection):
    """A connection, and the numbers that it has seen committed. They die with it, as its file may."""

    file: tuple[int, int]
    members: dict[tuple[str, str, str], tuple[int, int]]
    accounts: dict[tuple[str, str], int]


class Database:
    """One ledger file, shared with other threads and other processes.

    `read` and `write` raise `Unavailable` for what the disk or other processes did: with status 503 where
    time heals it (locked, disk full, I/O error), with status 500 where a person must (damaged, foreign,
    from a newer version, not writable).
    """

    def __init__(self, path: Path | None = None, *, name: str = "ledger") -> None:
        self.path = path
        self.name = name
        self._inherited: list[Connection] = []
        self._renew()
        _register(self)

    def read(self, call: str, work: Callable[[Connection], _Result]) -> _Result:
        """What *work* gives on one unchanging view of the file. *work* may run more than once."""
        return self._run(call, "BEGIN", work)

    def write(self, call: str, work: Callable[[Connection], _Result]) -> _Result:
        """What *work* gives, once all its changes are on the disk. *work* may run more than once; one run stays."""
        return self._run(call, "BEGIN IMMEDIATE", work)

    def refusal(self, call: str, problems: str | Sequence[str], status: int = 400) -> Refused:
        """What to raise where the ledger says no, with all the *problems* in its words."""
        words = problems if isinstance(problems, str) else "; ".join(problems)
        return Refused(self.name, call, words, status=status)

    def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is given back. Later calls open anew."""
        with self._changed:
            self._generation += 1
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _run(self, call: str, begin: str, work: Callable[[Connection], _Result]) -> _Result:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                with self._lent() as connection:
                    connection.execute(begin)
                    result = work(connection)
                    connection.execute("COMMIT")
                    return result
            except (sqlite3.Error, OSError) as error:
                if not _passes(error) or time.monotonic() > deadline:
                    raise self._trouble(call, error) from error

    @contextlib.contextmanager
    def _lent(self) -> Iterator[Connection]:
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            generation = self._generation
            connection = self._idle.pop() if self._idle else None
            self._out += 1
        healthy = False
        try:
            if connection is not None and connection.file != _identity(self._file()):
                connection.close()
                connection = None
            if connection is None:
                connection = self._open()
            with self._changed:
                self._running.add(connection)
            try:
                yield connection
            finally:
                # A rollback that fails leaves a connection that answers "locked" for ever: closed, not kept.
                if connection.in_transaction:
                    connection.rollback()
            healthy = True
        except Refused:
            healthy = True
            raise
        finally:
            self._take_back(connection, generation if healthy else -1)

    def _take_back(self, connection: Connection | None, generation: int) -> None:
        with self._changed:
            if connection is not None:
                self._running.discard(connection)
                if generation == self._generation and not self._forking and len(self._idle) < KEPT_OPEN:
                    self._idle.append(connection)
                    connection = None
        # Closed before the fork is let go on, and outside of the lock.
        if connection is not None:
            connection.close()
        with self._changed:
            self._out -= 1
            self._changed.notify_all()

    def _file(self) -> Path:
        if self.path is None:
            raise FileNotFoundError(errno.ENOENT, "no path was given, and open() was not called")
        if self._inherited:
            raise PermissionError(errno.EPERM, "in use by another thread when this process was forked; restart it")
        return self.path

    def _open(self) -> Connection:
        path = self._file()
        if not path.exists():
            _create(path)
        connection = sqlite3.connect(
            path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False, factory=Connection
        )
        try:
            _prepare(connection)
            connection.file = _identity(path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _trouble(self, call: str, error: sqlite3.Error | OSError) -> Exception:
        """`Unavailable` for what the disk or others did; *error* itself where it is our bug."""
        if isinstance(error, OSError):
            status = 503 if error.errno in _HEALING_ERRNOS else 500
            return Unavailable(self.name, call, error.strerror or str(error), status=status)
        code = _code(error) & 0xFF
        if code in _HEALING:
            return Unavailable(self.name, call, str(error), status=503)
        if code in _BROKEN or isinstance(error, _NotALedger):
            return Unavailable(self.name, call, f"{str(error) or 'unusable'} ({self.path})", status=500)
        return error

    # -- forks ---------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[Connection] = []
        self._running: set[Connection] = set()
        self._out = 0
        self._generation = 0
        self._forking = False

    def _before_fork(self) -> None:
        deadline = time.monotonic() + FORK_SECONDS
        with self._changed:
            self._forking = True
            while self._out and time.monotonic() < deadline:
                for connection in self._running:
                    connection.interrupt()  # no effect between two statements: hence again and again
                self._changed.wait(0.02)
            if not self._out:
                while self._idle:
                    self._idle.pop().close()

    def _after_fork_in_parent(self) -> None:
        with self._changed:
            self._forking = False
            self._changed.notify_all()

    def _after_fork_in_child(self) -> None:
        # Those that could not be closed in time are kept: the end of their last reference would close them.
        if self._out:
            self._inherited = [*self._inherited, *self._idle, *self._running]
        self._renew()


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_registration = threading.Lock()
_registered = False


def _register(database: Database) -> None:
    """Have *database* told of forks. The hooks, which cannot be taken back, are set with the first one."""
    global _registered  # noqa: PLW0603  (os.register_at_fork is itself per process and for ever)
    with _registration:
        _databases.add(database)
        if not _registered:
            os.register_at_fork(
                before=lambda: [each._before_fork() for each in list(_databases)],  # noqa: SLF001  (own class)
                after_in_parent=lambda: [each._after_fork_in_parent() for each in list(_databases)],  # noqa: SLF001  (own class)
                after_in_child=lambda: [each._after_fork_in_child() for each in list(_databases)],  # noqa: SLF001  (own class)
            )
            _registered = True


class _NotALedger(sqlite3.DatabaseError):
    """The file is something else, or not yet known to this version."""


_HEALING: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CANTOPEN,
    }
)  # fmt: skip
_BROKEN: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
    }
)  # fmt: skip
_PASSING: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT}
)
_HEALING_ERRNOS: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", None) or 0  # absent where the module raised it, not SQLite


def _passes(error: sqlite3.Error | OSError) -> bool:
    """Whether to try again at once: another writer, a fork, or a file that was moved away."""
    if isinstance(error, OSError):
        return False
    return _code(error) & 0xFF in _PASSING or _code(error) == sqlite3.SQLITE_READONLY_DBMOVED


def _identity(path: Path) -> tuple[int, int]:
    """Which file *path* names now: a deleted one goes on taking writes, to nobody's use."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _create(path: Path) -> None:
    """Make an empty file for the owner only.

    By way of a link: to open and close *path* itself would drop the locks that another connection of
    this process may have taken on it meanwhile.
    """
    path.parent.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    made, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(made)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _prepare(connection: Connection) -> None:
    connection.members = {}
    connection.accounts = {}
    fresh = _is_new(connection)
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise _NotALedger(f"cannot keep a write-ahead log here (journal mode {mode})")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    connection.create_function("add_exact", 2, exact.add_kept, deterministic=True)
    connection.create_function("union_bits", 2, union_bits, deterministic=True)
    if fresh:
        _build(connection)


def _is_new(connection: Connection) -> bool:
    """Whether the file has no tables yet. Raises for one that is not a ledger or is from a newer version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application == schema.APPLICATION_ID and version > schema.VERSION:
        raise _NotALedger(f"was written by a newer version (schema {version}, this one knows {schema.VERSION})")
    if application != schema.APPLICATION_ID and (tables or application or version):
        raise _NotALedger("is an SQLite file of something else")
    return application != schema.APPLICATION_ID


def _build(connection: Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if _is_new(connection):  # another process may have been first
        for statement in schema.TABLES.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {schema.VERSION}")
    connection.execute("COMMIT")


def union_bits(one: bytes, other: bytes) -> bytes:
    """The union of two bitmaps. SQLite calls it by this name."""
    both = int.from_bytes(one, "little") | int.from_bytes(other, "little")
    return both.to_bytes(max(len(one), len(other)), "little")
