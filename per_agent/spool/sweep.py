"""A look, a little at each commit, at whether all rows of a large database can be found.

Decision. A database is read through before it is used, as long as that is a matter of some hundredths of a second;
a start must not wait for more. Of a larger one most damage is met when what lies there is needed: a page that is
none, an entry of the index that leads nowhere, a block whose checksum is wrong. A row that the index does not
name is never met: its events would lie there for ever. So it is this that is looked for, in the table, behind the
start, in portions that hold up nobody for longer than some milliseconds. What is given up: a page in use twice
or not at all is found when a block turns out to be wrong, and not before.
"""

import sqlite3
from collections.abc import Callable
from typing import Final

from per_agent.spool.transaction import Transaction
from per_agent.spool.work import Work, nothing

_PORTION: Final = 256  # rows, of blocks mostly: a page of some eight is read of them


class Sweep:
    """One look at a database, from its first row to what was its last when it was opened. For the spooler's thread.

    Args:
        last: the number of that last row.
        again: has a work done later; it does nothing when the spooler is to stop.
    """

    def __init__(self, last: int, again: Callable[[Work], None]) -> None:
        self._last = last
        self._again = again
        self._at = 0

    @property
    def work(self) -> Work:
        """The next portion; it has the one after it done."""
        return Work(self._look, self._go_on, nothing)

    def _look(self, changes: Transaction) -> bool:
        """Look at a portion. Whether there is more. Raises `sqlite3.DatabaseError` for a row that cannot be found."""
        at, lost = changes.unnamed(self._at, _PORTION)
        if lost:
            error = sqlite3.DatabaseError(f"{lost} rows are missing from the index")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        self._at = self._last if at is None else at
        return self._at < self._last

    def _go_on(self, more: bool) -> None:
        if more:
            self._again(self.work)
