"""Many rows put into a table by one statement: half of what a statement for each costs.

SQLite's own work on a row is less than what it takes to bind its values and to let go of the interpreter's lock
and take it back for it.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

_VARIABLES: Final = 500  # of one statement; the oldest SQLite in use takes 999


def insert_new(connection: sqlite3.Connection, table: str, columns: int, values: Sequence[object]) -> int:
    """Insert rows of *columns* values each, that follow each other in *values*. Those that are there stay as they are.

    Returns how many were new.
    """
    new = 0
    size = _VARIABLES // columns * columns
    row = f"({', '.join('?' * columns)})"
    for at in range(0, len(values), size):
        some = values[at : at + size]
        rows = ", ".join([row] * (len(some) // columns))
        new += connection.execute(f"INSERT OR IGNORE INTO {table} VALUES {rows}", some).rowcount  # noqa: S608  (a literal and marks)
    return new
