"""What SQLite's errors mean: pass at once, heal with time, need a person, or are our own bug."""

import errno
import sqlite3
from typing import Final

_PASSING: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT}
)
_HEALING: Final = _PASSING | {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CANTOPEN,
}  # fmt: skip
_BROKEN: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
    }
)  # fmt: skip
_HEALING_ERRNOS: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
)


class NotALedger(sqlite3.DatabaseError):
    """The file is something else, or from a newer version, or where no ledger can be kept."""


def passes(error: sqlite3.Error | OSError) -> bool:
    """Whether to try again at once: another writer, a fork, or a file that was moved away."""
    if isinstance(error, OSError):
        return False
    return _code(error) & 0xFF in _PASSING or _code(error) == sqlite3.SQLITE_READONLY_DBMOVED


def status(error: sqlite3.Error | OSError) -> int | None:
    """503 where time heals it, 500 where a person must, None where neither can: then it is a bug of ours."""
    if isinstance(error, OSError):
        return 503 if error.errno in _HEALING_ERRNOS else 500
    code = _code(error) & 0xFF
    if code in _HEALING:
        return 503
    return 500 if code in _BROKEN or isinstance(error, NotALedger) else None


def words(error: sqlite3.Error | OSError) -> str:
    """What happened, in the words of SQLite or of the system."""
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", None) or 0  # absent where the module raised it, not SQLite
