"""The spools of a folder as anybody may see them: read-only, beside their owners, never in their way.

`counted` is the evidence for the books: it is counted from the blocks and dead letters themselves, while
the books were written beside them, transaction by transaction.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from per_agent.errors import SpoolError
from per_agent.spool import forks, trust
from per_agent.spool.ballast import Ballast
from per_agent.spool.damage import certain
from per_agent.spool.disk import FILE, has_no_tables
from per_agent.spool.folder import held, spools
from per_agent.spool.journaled import journaled
from per_agent.spool.lanes import END, READ, Lane, books_of, lane_of, lanes_of, one, opened
from per_agent.spool.store import NEWER
from per_agent.spool.transaction import KNOWN_LAYOUT, LAYOUT, MISSING, UNREADABLE, stored_of

_DAMAGED: Final = "is damaged, and is set aside by the next agent that delivers what is in it"
_READINGS: Final = 10  # at most, while spools come and go


class Snapshot(msgspec.Struct, frozen=True):
    """One spool at one moment.

    Attributes:
        held: whether a process uses it.
        absorbed: spools counted in its books.
        journaled: for each lane, events that a dead holder accepted and did not store: they are in a journal,
            and in no books yet.
        unreadable: slots of journals that were not what was written, or not there any more.
        unknown: journals that lie there and cannot be read, as by a later version's.
        crowded: what a full disk means to it, in words; None where there is room.
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
    crowded: str | None


class Unread(SpoolError):
    """A spool that nobody can read as it is: damaged, or of a newer version."""


class Survey(msgspec.Struct, frozen=True):
    """All spools that can be read; of the others why not, a sentence each."""

    snapshots: list[Snapshot]
    unread: list[str]


def snapshots(data_dir: Path) -> list[Snapshot]:
    """All spools under *data_dir* whose books count: those counted in another's books are left out.

    So are those that nobody can read: see `survey`. Raises `SpoolError` when one cannot be read at this moment.
    """
    return survey(data_dir).snapshots


def survey(data_dir: Path) -> Survey:
    """As `snapshots`, and what could not be read."""
    # Each spool is read at a moment of its own. One that is absorbed by another and removed in between would
    # be counted twice, or not at all; then the folders have changed, and they are read again.
    folders = spools(data_dir)
    for _ in range(_READINGS):
        found, unread = [], []
        for folder in folders:
            try:
                snapshot = read(folder)
            except Unread as error:
                unread.append(str(error))
            else:
                found += [] if snapshot is None else [snapshot]
        before, folders = folders, spools(data_dir)
        if set(before) <= set(folders):
            break
    counted_elsewhere = {spool for snapshot in found for spool in snapshot.absorbed}
    return Survey([each for each in found if each.id not in counted_elsewhere], unread)


def read(folder: Path) -> Snapshot | None:
    """The spool in *folder*, or None when there is nothing in it yet, or any more."""
    file = folder / FILE
    try:
        used = sum(path.stat().st_size for path in folder.iterdir() if path.name.startswith(FILE))
        with forks.section(), closing(opened(file)) as database:
            database.execute("BEGIN")  # one moment for all that is read
            _check_layout(database, folder)
            lanes = {lane: lane_of(database, lane) for lane in lanes_of(database)}
            absorbed = tuple(key[2:] for key, _ in database.execute(READ, ("a/", f"a/{END}")))
            in_journals, unknown = journaled(folder, lambda name: one(database, stored_of(name)))
            unreadable = _unreadable(database)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise SpoolError(f"{folder}: cannot be read: {error.strerror}; it is another user's") from error
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise Unread(f"{file}: {_DAMAGED}: {error}") from error
    except sqlite3.Error as error:
        if certain(error):
            raise Unread(f"{file}: {_DAMAGED}: {error}") from error
        if not file.exists() or has_no_tables(error):
            return None  # it is being made, or was removed just now
        raise SpoolError(f"{file}: cannot be read: {error}") from error
    reserve = Ballast(folder)
    crowded = reserve.words if reserve.wanting else None
    return Snapshot(
        folder.name, folder, held(folder), used, lanes, absorbed, in_journals, unreadable, unknown, crowded
    )


def _check_layout(database: sqlite3.Connection, folder: Path) -> None:
    layout = one(database, LAYOUT)
    if layout is not None and layout > KNOWN_LAYOUT:
        raise Unread(f"{folder}: {NEWER}")


def damaged(folder: Path) -> bool:
    """Whether the spool in *folder*, which the caller holds, cannot be read, and will not be as it is."""
    try:
        read(folder)
    except Unread as error:
        return NEWER not in str(error)
    except SpoolError:
        return False
    return False


def pending(folder: Path) -> dict[str, int] | None:
    """The events that the books of the spool in *folder* call pending, for each lane that has some.

    None when it cannot be told.
    """
    try:
        with forks.section(), closing(opened(folder / FILE)) as database:
            _check_layout(database, folder)
            every = {lane: books_of(database, lane).pending for lane in lanes_of(database)}
    except FileNotFoundError:
        return {}  # claimed, and not yet made: its maker died in between
    except sqlite3.Error as error:
        return {} if has_no_tables(error) else None
    except (msgspec.MsgspecError, ValueError, TypeError, OSError, SpoolError):
        return None
    return {lane: count for lane, count in every.items() if count}


def drained(folder: Path) -> bool:
    """Whether it is known that the database of the spool in *folder* holds nothing but books."""
    try:
        found = read(folder)
    except (SpoolError, OSError):
        return False
    if found is None:
        return True
    every = [lane.books for lane in found.lanes.values()]
    return not found.unreadable and not any(books.pending or books.dead > books.purged for books in every)


def absorbed(data_dir: Path) -> set[str] | None:
    """The spools whose books are in another's, so that what is left of them counts no more.

    None when a spool cannot be asked at this moment. A damaged one is not waited for.
    """
    marks: set[str] = set()
    for folder in spools(data_dir):
        if trust.problem(folder) is not None:
            continue  # whoever made it must not have a say in which spools are done with
        try:
            with forks.section(), closing(opened(folder / FILE)) as database:
                marks |= {key[2:] for key, _ in database.execute(READ, ("a/", f"a/{END}"))}
        except sqlite3.OperationalError as error:
            if folder.exists() and not has_no_tables(error) and os.access(folder, os.W_OK):
                return None
        except (sqlite3.Error, OSError, SpoolError):
            continue
    return marks


def _unreadable(database: sqlite3.Connection) -> int:
    return sum(
        int.from_bytes(value, "big") if key.endswith(f"/{MISSING}") else 1
        for key, value in database.execute(READ, (UNREADABLE, f"{UNREADABLE}{END}"))
    )
