"""The rows of a spool's database read from its pages themselves, however damaged the rest of it is.

A row is found in its own page, without the schema, the tree above it or the index: damage costs what lies in
the damaged place and nothing else. Pages that are not in use have no rows: the database keeps none, because
it shrinks at each commit.
"""

import mmap
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from per_agent.spool.wal import PAGE, Log

_ROWS: Final = 0x0D  # the first byte of a page that holds rows of a table
_KEYS: Final = (0x0A, 0x02)  # of an index: at its bottom, and above
_COLUMNS: Final = 12  # of diskcache's table: rowid, key, raw, five more, size, mode, filename, value
_KEY, _VALUE = 1, 11
_WHOLE: Final = PAGE - 35  # bytes of a row that has no further pages
_LEAST: Final = (PAGE - 12) * 32 // 255 - 23
_LONGEST: Final = 2**30  # bytes of a row; SQLite's own limit
_INTS: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class Row(NamedTuple):
    """A row as it was found: `keys` are what the table and the index call it, which is the same unless damaged."""

    keys: tuple[str, ...]
    value: bytes


class _Broken(Exception):
    """Bytes that cannot be a row."""


class Image:
    """A database's pages: those of the *file*, and over them those of its log."""

    def __init__(self, file: bytes | mmap.mmap, log: Log) -> None:
        self._file = file
        self._log = log
        self.size = len(file) // PAGE if log.size is None else log.size

    def page(self, number: int) -> bytes | None:
        """The content of a page, or None where there is none."""
        at = self._log.pages.get(number)
        if at is not None:
            return self._log.content[at : at + PAGE]
        found = self._file[(number - 1) * PAGE : number * PAGE]
        return found if len(found) == PAGE else None

    def rows(self) -> Iterator[Row]:
        """All rows that are whole."""
        names = dict(self._names())
        for number in range(2, self.size + 1):
            page = self.page(number)
            if page is None or page[0] != _ROWS:
                continue
            for at in _cells(page, 8):
                try:
                    rowid, columns = self._row(page, at)
                except (_Broken, struct.error, IndexError, UnicodeDecodeError):
                    continue
                if len(columns) == _COLUMNS and isinstance(columns[_VALUE], bytes):
                    said = (columns[_KEY], names.get(rowid))
                    yield Row(tuple(key for key in said if isinstance(key, str)), columns[_VALUE])

    def _names(self) -> Iterator[tuple[int, str]]:
        """The rows' numbers and keys, as the index has them."""
        for number in range(2, self.size + 1):
            page = self.page(number)
            if page is None or page[0] not in _KEYS:
                continue
            inner = page[0] == _KEYS[1]
            for at in _cells(page, 12 if inner else 8):
                try:
                    length, start = _varint(page, at + 4 * inner)
                    key, raw, rowid = _columns(page[start : start + length])
                except (_Broken, struct.error, IndexError, UnicodeDecodeError, ValueError):
                    continue
                if isinstance(key, str) and isinstance(rowid, int) and raw == 1:
                    yield rowid, key

    def _row(self, page: bytes, at: int) -> tuple[int, list[Any]]:
        length, at = _varint(page, at)
        rowid, at = _varint(page, at)
        if length > _LONGEST:
            raise _Broken
        if length <= _WHOLE:
            return rowid, _columns(page[at : at + length])
        here = _LEAST + (length - _LEAST) % (PAGE - 4)
        here = here if here <= _WHOLE else _LEAST
        found = bytearray(page[at : at + here])
        number = int.from_bytes(page[at + here : at + here + 4], "big")
        while len(found) < length:
            more = self.page(number) if 1 < number <= self.size else None
            if more is None:
                raise _Broken
            number = int.from_bytes(more[:4], "big")
            found += more[4 : 4 + length - len(found)]
        return rowid, _columns(bytes(found))


def _cells(page: bytes, head: int) -> list[int]:
    """Where the cells of a page begin."""
    count = int.from_bytes(page[3:5], "big")
    if head + 2 * count > PAGE:
        return []
    return [at for (at,) in struct.iter_unpack(">H", page[head : head + 2 * count]) if at < PAGE]


def _columns(record: bytes) -> list[Any]:
    """The values of a record; None for what cannot be in a spool."""
    end, at = _varint(record, 0)
    kinds = []
    while at < end:
        kind, at = _varint(record, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        length = _INTS.get(kind, 8 if kind == 7 else max(0, (kind - 12) // 2))
        content = record[at : at + length]
        if len(content) < length:
            raise _Broken
        at += length
        values.append(_value(kind, content))
    if at != len(record):
        raise _Broken
    return values


def _value(kind: int, content: bytes) -> Any:
    if kind >= 12:
        return content.decode() if kind % 2 else content
    if kind in (8, 9):
        return kind - 8
    return int.from_bytes(content, "big", signed=True) if kind in _INTS else None


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of SQLite's variable length at *at*, and where the next thing begins."""
    number = 0
    for n in range(9):
        byte = content[at + n]
        if n == 8:
            return number << 8 | byte, at + 9
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, at + n + 1
    raise _Broken
