"""The ledger's file as threads, processes and forks share it: transactions on a pool of connections.

Decision: a pool instead of a connection for each thread. Threads come and go and would leave their
connections behind; a pool has as many as were ever used at once, and keeps few. Under WAL readers wait for
nobody; writers wait for each other in `BEGIN IMMEDIATE`, in this process as between processes.

Decision: all connections are closed *before* a fork. SQLite remembers per process, and so inherits, which
locks it holds on a file. A child that inherits an open connection and opens another takes locks for held that
only its parent holds: its write-ahead log can be deleted under it, and if a transaction was under way at
the fork, it finds the database locked for ever. Closing in the child is worse, since a rollback there
writes to memory that it shares with the parent. So, before the fork, running statements are interrupted
(their transactions start again afterwards), everything is closed, and both sides open anew. Where that takes
longer than `fork_seconds` the fork goes on, and the child refuses to touch the file.
"""

import contextlib
import errno
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from per_agent import failpoint
from per_agent.errors import Refused, Unavailable
from per_agent.ledger import trouble
from per_agent.ledger.connection import Connection, connect, identity

_KEPT_OPEN: Final = 4  # idle connections, three file descriptors each

_Result = TypeVar("_Result")


class Database:
    """One ledger file.

    `read` and `write` raise `Unavailable` for what the disk or other processes did: with status 503 where
    time heals it (locked, disk full, I/O error), with status 500 where a person must (damaged, foreign,
    from a newer version, not writable).

    Args:
        path: the file, made by the first call that needs it; it may be set later.
        name: what the errors call it.
        busy_seconds: how long one call waits for other writers before it says that the database is locked.
        fork_seconds: how long a fork waits for the calls that are under way in other threads.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        name: str = "ledger",
        busy_seconds: float = 5.0,
        fork_seconds: float = 5.0,
    ) -> None:
        self.path = path
        self.name = name
        self._busy_seconds = busy_seconds
        self._fork_seconds = fork_seconds
        self._changed = threading.Condition()
        self._idle: list[Connection] = []
        self._running: set[Connection] = set()
        self._lent = 0
        self._closings = 0
        self._forking = 0  # threads may fork at once
        self._inherited: list[Connection] | None = None
        _tell_of_forks(self)

    def read(self, call: str, work: Callable[[Connection], _Result]) -> _Result:
        """What *work* gives on one unchanging view of the file. It may run more than once."""
        return self._run(call, "BEGIN", work)

    def write(self, call: str, work: Callable[[Connection], _Result]) -> _Result:
        """What *work* gives, once its changes are on the disk. It may run more than once; one run stays."""
        return self._run(call, "BEGIN IMMEDIATE", work)

    def refusal(self, call: str, problems: str | Sequence[str], status: int = 400) -> Refused:
        """What to raise where the ledger says no, with all the *problems* in its words."""
        words = problems if isinstance(problems, str) else "; ".join(problems)
        return Refused(self.name, call, words, status=status)

    def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is given back. Later calls open anew."""
        with self._changed:
            self._closings += 1
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _run(self, call: str, begin: str, work: Callable[[Connection], _Result]) -> _Result:
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                with self._borrowed() as connection:
                    connection.execute(begin)
                    result = work(connection)
                    failpoint.reach("ledger written")
                    connection.execute("COMMIT")
                    failpoint.reach("ledger committed")
                    return result
            except (sqlite3.Error, OSError) as error:
                if trouble.passes(error) and time.monotonic() < deadline:
                    continue
                status = trouble.status(error)
                if status is None:
                    raise
                where = f" ({self.path})" if status == 500 else ""
                raise Unavailable(self.name, call, trouble.words(error) + where, status=status) from error

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        """A connection for one transaction; what is not committed is rolled back."""
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            closings = self._closings
            connection = self._idle.pop() if self._idle else None
            self._lent += 1
        healthy = False
        try:
            path = self._usable_path()
            if connection is not None and connection.file != identity(path):
                connection.close()
                connection = None
            if connection is None:
                connection = connect(path)
            with self._changed:
                self._running.add(connection)
            try:
                yield connection
            finally:
                # One that cannot be rolled back would answer "locked" for ever: it is closed, not kept.
                if connection.in_transaction:
                    connection.rollback()
            healthy = True
        except Refused:
            healthy = True
            raise
        finally:
            self._take_back(connection, keep=healthy and closings == self._closings)

    def _take_back(self, connection: Connection | None, *, keep: bool) -> None:
        with self._changed:
            if connection is not None:
                self._running.discard(connection)
                if keep and not self._forking and len(self._idle) < _KEPT_OPEN:
                    self._idle.append(connection)
                    connection = None
        if connection is not None:
            connection.close()
        with self._changed:  # only now: a fork waits until it is closed
            self._lent -= 1
            self._changed.notify_all()

    def _usable_path(self) -> Path:
        if self.path is None:
            raise FileNotFoundError(errno.ENOENT, "no path was given, and open() was not called")
        if self._inherited is not None:
            raise PermissionError(errno.EPERM, "was in use by another thread when this process was forked")
        return self.path

    def _before_fork(self) -> None:
        deadline = time.monotonic() + self._fork_seconds
        with self._changed:
            self._forking += 1
            while self._lent and time.monotonic() < deadline:
                for connection in self._running:
                    connection.interrupt()  # has no effect between two statements: hence again and again
                self._changed.wait(0.01)
            if not self._lent:
                while self._idle:
                    self._idle.pop().close()

    def _after_fork_in_parent(self) -> None:
        with self._changed:
            # Not below nothing: one that was made while a fork was under way has not counted it.
            self._forking = max(0, self._forking - 1)
            self._changed.notify_all()

    def _after_fork_in_child(self) -> None:
        if self._lent:
            # Kept for ever: the end of its last reference would close what could not be closed in time.
            self._inherited = [*(self._inherited or ()), *self._idle, *self._running]
        self._idle = []
        self._running = set()
        self._lent = 0
        self._forking = 0
        self._changed = threading.Condition()  # the old one may be held by a thread that does not exist here


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_registered = False


def _tell_of_forks(database: Database) -> None:
    """Have *database* told of forks. The hooks cannot be taken back, and are set with the first one."""
    global _registered  # noqa: PLW0603  (os.register_at_fork is itself per process and for ever)
    _databases.add(database)
    if not _registered:
        # No lock, which a fork could inherit locked: to set the hooks twice does no harm.
        _registered = True
        os.register_at_fork(
            before=lambda: _each(Database._before_fork),  # noqa: SLF001  (this module's own class)
            after_in_parent=lambda: _each(Database._after_fork_in_parent),  # noqa: SLF001  (as above)
            after_in_child=lambda: _each(Database._after_fork_in_child),  # noqa: SLF001  (as above)
        )


def _each(hook: Callable[[Database], None]) -> None:
    for database in list(_databases):
        hook(database)
