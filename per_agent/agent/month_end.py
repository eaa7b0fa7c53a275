"""What is told of a destination that counts by arrival: what arrived late, and what may still miss its month.

Decision. Which pending events belong to which month is told by the heads of their blocks, which say when they were
made: with millions pending, reading the events would take minutes and memory. So it is exact for events that
happened when they were recorded. One that was given an earlier time, or a dead letter that was sent again, counts
in the month in which it was recorded, or sent again: `missed` is then too low, never too high.
"""

from collections.abc import Mapping
from typing import Any

from per_agent.books import Books
from per_agent.event import iso
from per_agent.month import Month


def arrivals(books: Books, *, counted: bool) -> dict[str, int | None]:
    """The counts of what arrived late, for JSON; None where the destination uses the events' own times."""
    return {
        "late_total": books.late if counted else None,
        "period_crossed_total": books.crossed if counted else None,
    }


def month_end(pending: Mapping[Month, int], in_memory: int, now: float) -> dict[str, Any]:
    """How many pending events have missed their month's end *now*, and how long the others have, for JSON.

    *pending* counts what is on the disk by the month in which it was recorded; what is *in_memory* was recorded just
    now. What a clock that ran ahead has put into a month to come counts as of this month.
    """
    month = Month.of(now)
    missed = sum(count for each, count in pending.items() if each < month)
    return {
        "month": str(month),
        "ends_at": iso(month.end),
        "seconds_left": round(month.end - now, 3),
        "pending": sum(pending.values()) - missed + in_memory,
        "missed": missed,
    }
