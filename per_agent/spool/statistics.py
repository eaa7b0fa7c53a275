"""`SpoolStatistics`: how one spool is doing at one moment, as its process knows it without reading."""

import msgspec

from per_agent.books import Books


class SpoolStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One spool.

    Attributes:
        bytes_used: bytes on the disk, after the last commit.
        trouble: what keeps it from committing, or None.
        crowded: whether the disk is full: nothing new is stored until there is room, but at a stop.
        commits: how often something was changed on the disk since it was opened.
        idle_seconds: since something was last changed on the disk, or since the spool was taken.
        books: the committed books of each lane.
        in_memory: for each lane, the events that were taken from the intake and are not yet committed.
        oldest_in_memory: since when an event of this or of the intake has been in memory, in epoch seconds.
        parked: for each lane, the events that are parked.
        damaged: for each lane, the events known to be lost with damaged blocks.
    """

    bytes_used: int
    trouble: str | None
    crowded: bool
    commits: int
    idle_seconds: float
    books: dict[str, Books]
    in_memory: dict[str, int]
    oldest_in_memory: float | None
    parked: dict[str, int]
    damaged: dict[str, int]
