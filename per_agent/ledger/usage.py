"""Usage in sums: kept for each meter and minute and each customer and day, read in any window."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from per_agent.ledger.exact import Amount, Kept, amount, exactly, kept

GRANULARITIES: Final[Mapping[str, int]] = {"minute": 60, "hour": 3600, "day": 86_400}
"""The names of the granularities, in seconds."""

_MINUTE: Final = 60
_DAY: Final = 86_400

Bucket = tuple[int, int, Amount]
"""The second in which a bucket begins, its number of events, and their sum."""


class Window(msgspec.Struct, frozen=True):
    """The seconds from *first* up to, not including, *end*; a step of *step* seconds begins at a multiple."""

    first: int
    end: int
    step: int

    def whole(self, unit: int) -> tuple[int, int]:
        """The range of whole *unit*s in the window, in units; empty as (n, n)."""
        first = -(-self.first // unit)
        return first, max(first, self.end // unit)


class Tally:
    """The sums of the events of one transaction. Add within `exactly`."""

    def __init__(self) -> None:
        self._minutes: dict[tuple[int, int], tuple[int, Amount]] = {}
        self._days: dict[tuple[int, int, int], tuple[int, Amount]] = {}

    def add(self, meter: int, account: int, second: int, value: Amount) -> None:
        minute, day = (meter, second // _MINUTE), (meter, second // _DAY, account)
        events, total = self._minutes.get(minute, (0, 0))
        self._minutes[minute] = (events + 1, total + value)
        events, total = self._days.get(day, (0, 0))
        self._days[day] = (events + 1, total + value)

    def store(self, connection: sqlite3.Connection) -> None:
        """Add these sums to those that are stored."""
        connection.executemany(
            "INSERT INTO meter_minute VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET events = events + excluded.events, total = add_exact(total, excluded.total)",
            ((*key, events, kept(total)) for key, (events, total) in self._minutes.items()),
        )
        # In the order of the table, so that each page is visited once.
        connection.executemany(
            "INSERT INTO customer_day VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET events = events + excluded.events, total = add_exact(total, excluded.total)",
            ((*key, events, kept(total)) for key, (events, total) in sorted(self._days.items())),
        )


class _Buckets:
    """Sums by the beginning of their step."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._sums: dict[int, tuple[int, Amount]] = {}

    def add(self, rows: Iterable[tuple[int, int, Kept]]) -> None:
        """Add *rows* of (second, events, total)."""
        step, sums = self._step, self._sums
        with exactly():
            for second, events, total in rows:
                begin = second - second % step
                before, sum_before = sums.get(begin, (0, 0))
                sums[begin] = (before + events, sum_before + amount(total))

    def sorted(self) -> list[Bucket]:
        return [(begin, *self._sums[begin]) for begin in sorted(self._sums)]


def of_meter(connection: sqlite3.Connection, meter: int, window: Window) -> list[Bucket]:
    """A meter's usage in *window*: whole minutes from their sums, the seconds at its ends from the events."""
    buckets = _Buckets(window.step)
    first, end = window.whole(_MINUTE)
    kept_sums = (
        "SELECT minute * 60, events, total FROM meter_minute WHERE meter = ? AND minute >= ? AND minute < ?"
    )
    buckets.add(connection.execute(kept_sums, (meter, first, end)))
    single = (
        "SELECT timestamp, 1, value FROM meter_event WHERE meter = ? AND timestamp >= ? AND timestamp < ?"
    )
    for edge in _edges(window, first * _MINUTE, end * _MINUTE):
        buckets.add(connection.execute(single, (meter, *edge)))
    return buckets.sorted()


def of_customer(connection: sqlite3.Connection, meter: int, customer_id: str, window: Window) -> list[Bucket]:
    """One customer's usage of a meter in *window*.

    Whole days come from their sums where *window* steps by days. For finer steps and at the ends its events
    are read, but only those of days on which the customer had any.
    """
    buckets = _Buckets(window.step)
    first, end = window.whole(_DAY) if window.step == _DAY else (0, 0)
    singly: set[int] = set()
    days = f"{_DAYS} AND d.day >= :first AND d.day <= :last"
    slots = {"meter": meter, "customer_id": customer_id, "subscription_id": None}
    slots |= {"first": window.first // _DAY, "last": (window.end - 1) // _DAY}
    for day, events, total in connection.execute(days, slots):
        if first <= day < end:
            buckets.add([(day * _DAY, events, total)])
        else:
            singly.add(day)
    single = (
        "SELECT timestamp, 1, value FROM meter_event WHERE meter = ? AND timestamp >= ? AND timestamp < ?"
        " AND account IN (SELECT id FROM account WHERE customer_id = ?)"
    )
    for day in singly:
        edge = (max(window.first, day * _DAY), min(window.end, (day + 1) * _DAY))
        buckets.add(connection.execute(single, (meter, *edge, customer_id)))
    return buckets.sorted()


def pending(connection: sqlite3.Connection, filters: Mapping[str, object]) -> dict[str, Amount]:
    """The sum of all events for each currency; *filters* name customer, subscription, currency, mode."""
    meters = connection.execute(
        "SELECT number, currency_id FROM meter WHERE (:livemode IS NULL OR livemode = :livemode)"
        " AND (:currency_id IS NULL OR currency_id = :currency_id)",
        {name: filters[name] for name in ("livemode", "currency_id")},
    ).fetchall()
    by_account = filters["customer_id"] is not None or filters["subscription_id"] is not None
    sums: dict[str, Amount] = defaultdict(int)
    with exactly():
        for meter, currency in meters:
            if by_account:
                rows = connection.execute(_DAYS, {**filters, "meter": meter})
            else:
                minutes = "SELECT minute, events, total FROM meter_minute WHERE meter = ?"
                rows = connection.execute(minutes, (meter,))
            for _, _, total in rows:
                sums[currency] += amount(total)
    return dict(sums)


# The days of the meter are walked one by one, each a step in the index, and in each the accounts are looked
# up: the other customers of a day are not read. CROSS JOIN keeps SQLite to this order.
_DAYS: Final = """
WITH RECURSIVE days (day) AS (
    SELECT min(day) FROM customer_day WHERE meter = :meter
    UNION ALL
    SELECT (SELECT min(c.day) FROM customer_day c WHERE c.meter = :meter AND c.day > days.day)
    FROM days WHERE days.day IS NOT NULL
)
SELECT d.day, d.events, d.total
FROM account a CROSS JOIN days CROSS JOIN customer_day d
WHERE (:customer_id IS NULL OR a.customer_id = :customer_id)
  AND (:subscription_id IS NULL OR a.subscription_id = :subscription_id)
  AND d.meter = :meter AND d.day = days.day AND d.account = a.id
"""


def _edges(window: Window, first: int, end: int) -> list[tuple[int, int]]:
    """What of *window* lies before *first* and from *end* on."""
    if first >= end:
        return [(window.first, window.end)]
    return [(window.first, first), (end, window.end)]
