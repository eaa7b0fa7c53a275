"""What is damage of a spool, and not trouble of its disk that passes."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import diskcache

from per_agent.errors import SpoolCorrupt, SpoolError
from per_agent.spool import forks, wal
from per_agent.spool.disk import FILE
from per_agent.spool.lanes import one, opened
from per_agent.spool.transaction import SEQ
from per_agent.spool.witness import Witness

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSING: Final = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY,
)  # fmt: skip
_VERSIONS: Final = b"\x02\x02"  # of the file format, at byte 18: a write-ahead log


def certain(error: BaseException) -> bool:
    """Whether *error*, met in use, says that the database is damaged."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    return code in _DAMAGED


def at_opening(error: BaseException, folder: Path) -> str | None:
    """Why the database in *folder*, which could not be opened, is damaged; None where that may pass."""
    if isinstance(error, OSError | diskcache.Timeout):
        return None
    if isinstance(error, SpoolError) and not isinstance(error, SpoolCorrupt):
        return None
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in _PASSING:
        # By a flipped version number SQLite takes it for one that it can only read.
        return (
            str(error) if code & 0xFF == sqlite3.SQLITE_READONLY and _versions(folder) != _VERSIONS else None
        )
    return f"{type(error).__name__}: {error}"


def _versions(folder: Path) -> bytes:
    with (folder / FILE).open("rb") as file:
        return file.read(20)[18:]


def before_opening(folder: Path, witness: Witness | None) -> str | None:
    """What SQLite would not tell when it opens the database in *folder*, and would then do away with.

    Raises `STORAGE_TROUBLE` where that cannot be told now.
    """
    file, log = folder / FILE, folder / f"{FILE}-wal"
    content = log.read_bytes() if log.exists() else b""
    if not file.exists() or not file.stat().st_size:
        if witness is not None or content:
            return "its database is gone" if not file.exists() else "its database is empty"
        return None
    found = wal.read(content).damage if content else None
    # A transaction that a death cut off may look so, too. It is damage only where SQLite would not read all that
    # was ever noted as committed; which it is asked without the right to write: else it does away with the log.
    if found is None or witness is None or _sequence(file) >= witness.seq:
        return None
    return found


def _sequence(file: Path) -> int:
    """The last sequence number that SQLite reads from *file* and its log. What may pass, it raises."""
    try:
        with forks.section(), closing(opened(file)) as database:
            return int.from_bytes(one(database, SEQ) or b"", "big")
    except sqlite3.DatabaseError as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in _PASSING and code != sqlite3.SQLITE_READONLY:  # see `at_opening`
            raise
        return 0
