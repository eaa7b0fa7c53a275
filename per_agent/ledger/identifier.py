"""Event identifiers as the ledger stores them: a UUID in 16 bytes, any other text as it is.

The two cannot meet: to SQLite a blob is never equal to a text. Halves the file, since our own
identifiers are UUIDs, and those of version 7 also keep its index growing at one end only.
"""

import re
import sqlite3
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Final, Literal

Packed = bytes | str

# Only the form that `unpack` writes; another spelling of the same UUID is another identifier and stays text.
_is_uuid = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_AT_ONCE: Final = 500  # under the 999 variables that the oldest SQLite in use takes


def pack(identifier: str) -> Packed:
    """*identifier* in its stored form."""
    if len(identifier) == 36 and _is_uuid(identifier) is not None:
        return bytes.fromhex(identifier.replace("-", ""))
    return identifier


def pack_all(identifiers: Sequence[str]) -> list[Packed]:
    """As `pack` of each: where all are UUIDs, as nearly always, at a tenth of the cost."""
    count, text = len(identifiers), "".join(identifiers)
    digits = text.replace("-", "")
    if (
        set(map(len, identifiers)) == {36}
        and len(digits) == 32 * count
        and all(text[at::36] == "-" * count for at in (8, 13, 18, 23))
    ):
        try:
            packed = bytes.fromhex(digits)
        except ValueError:
            pass
        else:
            if packed.hex() == digits:
                return [packed[at : at + 16] for at in range(0, len(packed), 16)]
    return [pack(identifier) for identifier in identifiers]


def unpack(packed: Packed) -> str:
    """The identifier that `pack` was given."""
    if isinstance(packed, str):
        return packed
    digits = packed.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def already(
    connection: sqlite3.Connection,
    table: Literal["activity_identifier", "meter_event"],
    packed: Collection[Packed],
) -> set[Packed]:
    """Those of *packed* that *table* holds."""
    found: set[Packed] = set()
    rest = iter(packed)
    while some := list(islice(rest, _AT_ONCE)):
        found.update(key for (key,) in connection.execute(_lookup(table, some), some))
    return found


def _lookup(table: str, some: Sequence[Packed]) -> str:
    marks = ",".join("?" * len(some))
    return f"SELECT identifier FROM {table} WHERE identifier IN ({marks})"  # noqa: S608  (two literals and marks)
