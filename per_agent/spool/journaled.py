"""What lies in the journals of dead processes and in no books yet, as anybody may see it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from per_agent import journal
from per_agent.errors import SpoolCorrupt


def loose(data_dir: Path) -> dict[str, int]:
    """For each lane, the events of processes that died before they had a spool: they are in journals only."""
    counts: Counter[str] = Counter()
    for path in journal.abandoned(data_dir / journal.FOLDER):
        try:
            left = journal.read(path)
        except (SpoolCorrupt, OSError):
            continue  # an agent that takes it says so, and keeps it
        for event in left.events:
            counts.update(event.lanes)
    return dict(counts)


def journaled(folder: Path, stored_of: Callable[[str], bytes | None]) -> tuple[dict[str, int], int]:
    """The same of the spool in *folder*, and how many journals there cannot be read.

    *stored_of* gives the note of what the spool has of a journal. The journal of a running process is not
    looked at: what is in it is in memory, too.
    """
    counts: Counter[str] = Counter()
    unknown = 0
    for path in journal.files(folder):
        try:
            left = journal.read(path) if journal.is_abandoned(path) else None
            stored = journal.Stamps.decode(None if left is None else stored_of(left.id))
        except (SpoolCorrupt, OSError, msgspec.MsgspecError):
            unknown += 1
            continue
        for event in () if left is None else left.events:
            if not all(number in stored for number in event.numbers):
                counts.update(event.lanes)
    return dict(counts), unknown
