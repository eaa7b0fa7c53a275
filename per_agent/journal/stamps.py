"""`Stamps`: which of a journal's numbers were stored, as a few ranges."""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

import msgspec

_MOST: Final = 4096
"""Ranges that are kept. A gap is a call that is between two of its lines, or that an exception cut off there;
the oldest gaps are closed beyond this number, so that exceptions cannot make the note grow for ever."""


class Stamps(msgspec.Struct, frozen=True, array_like=True):
    """A set of numbers that were given out one by one. `ranges` holds first and last of each run, in order."""

    ranges: tuple[tuple[int, int], ...] = ()

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self.ranges, (number, 2**63))
        return at > 0 and number <= self.ranges[at - 1][1]

    def plus(self, numbers: Iterable[int]) -> "Stamps":
        """These and *numbers*."""
        runs = list(self.ranges)
        ordered = sorted(numbers)
        if not ordered:
            return self
        if ordered[-1] - ordered[0] == len(ordered) - 1:
            runs.append((ordered[0], ordered[-1]))  # nearly always: they were given out in a row
        else:
            runs += ((number, number) for number in ordered)
        runs.sort()
        merged = [runs[0]]
        for first, last in runs[1:]:
            if first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        if len(merged) > _MOST:
            closed = len(merged) - _MOST
            merged[: closed + 1] = [(merged[0][0], merged[closed][1])]
        return Stamps(tuple(merged))

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, stored: bytes | None) -> "Stamps":
        """What `encode` gave; nothing for None. Raises `msgspec.MsgspecError` where it is something else."""
        return cls() if stored is None else msgspec.msgpack.decode(stored, type=cls)
