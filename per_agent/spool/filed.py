"""The dead letters that lie in a spool, read from outside in pages."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from per_agent.errors import SpoolError
from per_agent.spool import forks
from per_agent.spool.disk import FILE
from per_agent.spool.lanes import END, lanes_of, opened
from per_agent.spool.records import DeadLetter, FiledLetter

_LETTERS: Final = (  # in keys as we write them; what holds no bytes of ours is listed, too, as damaged
    "SELECT key, iif(mode = 1 AND typeof(value) = 'blob', value, x'') FROM Cache"  # noqa: S608  (a constant)
    f" WHERE key > ? AND key < ? AND raw = 1 AND key GLOB 'l/*/x/{'[0-9a-f]' * 12}' ORDER BY key LIMIT ?"
)
_PAGE: Final = 1000  # dead letters read at once

_letter_of = msgspec.msgpack.Decoder(DeadLetter).decode


def letters(folder: Path, lane: str = "", number: int = 0) -> Iterator[FiledLetter]:
    """The dead letters of the spool in *folder* that follow the place *lane*, *number*; without one, all.

    Lane by lane, oldest first. Read in pages, not at one moment.
    """
    after = f"l/{lane}/x/{number:012x}" if lane else "l/"
    while page := _letters(folder, after):
        yield from page
        after = f"l/{page[-1].lane}/x/{page[-1].number:012x}"


def _letters(folder: Path, after: str) -> list[FiledLetter]:
    """Up to a page of dead letters whose keys follow *after*."""
    found: list[FiledLetter] = []
    try:
        with forks.section(), closing(opened(folder / FILE)) as database:
            database.execute("BEGIN")
            for lane in lanes_of(database):
                prefix = f"l/{lane}/x/"
                rows = database.execute(_LETTERS, (max(after, prefix), prefix + END, _PAGE - len(found)))
                found += (
                    FiledLetter(folder.name, lane, int(key[len(prefix) :], 16), _letter(value))
                    for key, value in rows
                )
    except FileNotFoundError:
        return []
    except sqlite3.Error as error:
        raise SpoolError(f"{folder}: cannot be read: {error}") from error
    return found


def _letter(packed: bytes) -> DeadLetter:
    try:
        return _letter_of(packed)
    except msgspec.MsgspecError:
        # It must not hide the others, and somebody has to see it who can purge it.
        return DeadLetter(
            b"", "damaged", "what lies there is no dead letter as per_agent writes them", 0, 0.0
        )
