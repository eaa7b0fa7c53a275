"""`Slots`: the mapped file that a journal writes to at present, and which of its slots are free.

A slot is taken from a stack of free ones and comes back to it, so the same few are used again and again, and
few pages are touched however large the file is. Taking one is a single operation of the interpreter: no lock, and
nothing is half-done where a signal handler records an event too.
"""

import mmap
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from per_agent.journal.layout import FREE, HEAD, SLOT, STATE_AT

_CHUNK: Final = 256 * SLOT  # bytes of slots that are put on the stack at once


class JournalFull(Exception):
    """No slot is free."""


class Slots:
    """Those of one journal, by their offsets. For any thread.

    Attributes:
        file: where they are; another mapping of the same size takes its place when the file is replaced or let go.
        take: `() -> int`: a free slot. Raises `IndexError`; then `more` may have one.
        usual: the lanes whose events have the route 0, once there are such: an event that fits into one slot and
            goes there is written in one step, with its number as its stamp.
    """

    __slots__ = ("_chunks", "_free", "_size", "file", "take", "usual")

    def __init__(self, file: mmap.mmap) -> None:
        self.file = file
        self.usual: tuple[str, ...] | None = None
        self._size = len(file)
        self._free: deque[int] = deque()
        self._chunks = deque(range(HEAD, self._size, _CHUNK))  # no slot in these was ever used
        self.take: Callable[[], int] = self._free.pop

    def more(self) -> int:
        """A slot from beyond those that were ever used. Raises `JournalFull`."""
        try:
            first = self._chunks.popleft()
        except IndexError:
            try:
                return self._free.pop()  # some came back meanwhile
            except IndexError:
                raise JournalFull from None
        end = min(first + _CHUNK, self._size)
        # Downwards, so that the first is the next to be taken.
        self._free.extend(range(end - SLOT, first, -SLOT))
        return first

    def several(self, count: int) -> list[int]:
        """So many free slots. Raises `JournalFull`, and then none is taken."""
        slots: list[int] = []
        try:
            for _ in range(count):
                try:
                    slots.append(self.take())
                except IndexError:
                    slots.append(self.more())
        except JournalFull:
            self._free.extend(reversed(slots))
            raise
        return slots

    def release(self, slots: Iterable[int]) -> None:
        """Free *slots*, whatever is in them; the first are used first."""
        freed = list(slots)
        for slot in freed:
            self.file[slot + STATE_AT] = FREE
        freed.reverse()
        self._free.extend(freed)

    @property
    def free(self) -> int:
        """How many are free."""
        return len(self._free) + (self._size - self.used) // SLOT

    @property
    def used(self) -> int:
        """Where the slots begin that were never used."""
        try:
            return self._chunks[0]
        except IndexError:
            return self._size


def no_slots() -> Slots:
    """Those of no journal: none is free, and no lanes are usual."""
    return Slots(mmap.mmap(-1, 1))
