"""The statements that write to diskcache's table and read from it many rows at once, as diskcache would row by row."""

from typing import Final

_COLUMNS: Final = "store_time, access_time, key, raw, access_count, size, mode, value"
_REPLACE: Final = (
    "ON CONFLICT (key, raw) DO UPDATE SET store_time = ?1, expire_time = NULL, access_time = ?1,"
    " access_count = 0, tag = NULL, size = excluded.size, mode = 1, filename = NULL, value = excluded.value"
)
KEYS: Final = "SELECT key FROM Cache WHERE key > ? AND key < ? AND raw = 1 ORDER BY key LIMIT ?"
ROWS: Final = (
    "SELECT key, iif(mode = 1 AND typeof(value) = 'blob' AND filename IS NULL, value, NULL)"
    " FROM Cache WHERE key > ? AND key < ? AND raw = 1 ORDER BY key LIMIT ?"
)
RENAME: Final = "UPDATE OR REPLACE Cache SET key = ? WHERE key = ? AND raw = 1"
NAMED: Final = (
    "SELECT max(number), coalesce(sum(named), 0), count(*) FROM (SELECT t.rowid AS number, EXISTS ("
    "SELECT 1 FROM Cache i INDEXED BY Cache_key_raw WHERE i.key = t.key AND i.raw = t.raw AND i.rowid = t.rowid"
    ") AS named FROM Cache t NOT INDEXED WHERE t.rowid > ? ORDER BY t.rowid LIMIT ?)"
)


def put(count: int) -> str:
    """Puts *count* rows: the time, and then for each row its key, the length of its value, and the value."""
    rows = ", ".join(["(?1, ?1, ?, 1, 0, ?, 1, ?)"] * count)
    return f"INSERT INTO Cache ({_COLUMNS}) VALUES {rows} {_REPLACE}"  # noqa: S608  (constants)


def delete(count: int) -> str:
    """Deletes the rows of *count* keys."""
    return f"DELETE FROM Cache WHERE raw = 1 AND key IN ({', '.join('?' * count)})"  # noqa: S608  (question marks)
