"""Activities: counted once by identifier, and the report of unique users in any window."""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from per_agent.event import Activity, iso
from per_agent.ledger.connection import Connection
from per_agent.ledger.database import Database
from per_agent.ledger.identifier import Packed, already, pack
from per_agent.ledger.schema import BLOCK

_DAY: Final = 86_400_000  # milliseconds
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_FIRST: Final = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // _MILLISECOND
_LAST: Final = (datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC) - _EPOCH) // _MILLISECOND
_FOR_EVER: Final = 2**53  # milliseconds: beyond any time that an event can carry
_REMEMBERED: Final = 65_536  # members per connection, some 250 bytes each
_CALL: Final = "GET /reports.get"

User = tuple[str, str, str]
"""Activity type, billing ID and user ID: what is counted once."""
Member = tuple[int, int]
"""The same in numbers: the audience's id, and the user's number in it."""


def insert(connection: Connection, activities: Iterable[Activity]) -> None:
    """Count those of *activities* whose identifiers are new, within the transaction under way."""
    fresh: dict[Packed, Activity] = {}
    for activity in activities:
        fresh.setdefault(pack(activity.id), activity)
    for identifier in already(connection, "activity_identifier", fresh):
        del fresh[identifier]
    members = _members(connection, fresh.values())
    moments: list[tuple[int, int, int]] = []
    seen: dict[tuple[int, int, int], int] = defaultdict(int)
    for activity in fresh.values():
        audience, number = members[activity.activity_type_id, activity.billing_id, activity.user_id]
        at = milliseconds(activity.at)
        moments.append((at, audience, number))
        seen[at // _DAY, audience, number // BLOCK] |= 1 << number % BLOCK
    connection.executemany("INSERT INTO activity_identifier VALUES (?)", ((key,) for key in fresh))
    connection.executemany("INSERT OR IGNORE INTO activity VALUES (?, ?, ?)", moments)
    connection.executemany(
        "INSERT INTO active_day VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET bits = union_bits(bits, excluded.bits)",
        ((*key, bits.to_bytes((bits.bit_length() + 7) // 8, "little")) for key, bits in sorted(seen.items())),
    )


class Activities:
    """The reading side of activities, with Per's semantics and its JSON."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def get_report(self, start: object = None, end: object = None) -> dict[str, Any]:
        """Unique users for each activity type and billing ID, by the activities' own times.

        *start* and *end* are datetimes with a zone or ISO 8601 texts with one; both are inclusive, to the
        millisecond. Without either the window is the previous calendar month in UTC; without *end* it is
        open, and the answer's `end` is now.

        Raises:
            Refused: *end* without *start*, *start* after *end*, or no moment in time; status 400.
            Unavailable: trouble with the ledger's file.
        """
        first, last = self._window(start, end)
        now = milliseconds(self._clock())
        counts = self._database.read(
            _CALL, lambda connection: _unique(connection, first, _FOR_EVER if last is None else last)
        )
        types: dict[str, Any] = {}
        for activity_type, billing_id, unique in counts:
            types.setdefault(activity_type, {"billingIds": {}})["billingIds"][billing_id] = {"unique": unique}
        echoed = max(now, first) if last is None else last
        result = {"start": iso(first / 1000), "end": iso(echoed / 1000), "activityTypes": types}
        return {"ok": True, "result": result}

    def _window(self, start: object, end: object) -> tuple[int, int | None]:
        problems: list[str] = []
        first = self._moment("start", start, problems)
        last = self._moment("end", end, problems)
        if start is None and end is not None:
            problems.append("start is required with end")
        if first is not None and last is not None and first > last:
            problems.append("start must not be after end")
        if problems:
            raise self._database.refusal(_CALL, problems)
        return previous_month(self._clock()) if first is None else (first, last)

    def _moment(self, field: str, given: object, problems: list[str]) -> int | None:
        if given is None:
            return None
        moment = given
        if isinstance(given, str):
            try:
                moment = datetime.fromisoformat(given)
            except ValueError:
                problems.append(f"{field} must be ISO 8601, not {given!r}")
                return None
        if not isinstance(moment, datetime):
            problems.append(f"{field} must be a datetime or ISO 8601, not {given!r}")
        elif moment.utcoffset() is None:
            problems.append(f"{field} has no time zone: end it with Z, or use datetime.now(UTC)")
        else:
            at = (moment - _EPOCH) // _MILLISECOND
            if _FIRST <= at <= _LAST:
                return at
            problems.append(f"{field} is before the year 1 or after the year 9999 in UTC")
        return None


def milliseconds(seconds: float) -> int:
    """Whole milliseconds of epoch *seconds*, cut and not rounded: .9996 must not move into the next month.

    By way of the nearest microsecond, because the float of .123 may lie just below it.
    """
    return round(seconds * 1e6) // 1000


def previous_month(now: float) -> tuple[int, int]:
    """The first and the last millisecond of the UTC calendar month before that of *now*."""
    this_month = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    month_before = (this_month - timedelta(days=1)).replace(day=1)
    return (month_before - _EPOCH) // _MILLISECOND, (this_month - _EPOCH) // _MILLISECOND - 1


def _unique(connection: sqlite3.Connection, first: int, last: int) -> list[tuple[str, str, int]]:
    """(activity type, billing ID, unique users) in the window from *first* to *last*, both inclusive."""
    first_day, end_day = -(-first // _DAY), (last + 1) // _DAY
    if first_day < end_day:
        edges = [(first, first_day * _DAY), (end_day * _DAY, last + 1)]
    else:
        first_day, end_day, edges = 0, 0, [(first, last + 1)]
    seen: dict[tuple[int, int], int] = defaultdict(int)
    days = "SELECT audience, block, bits FROM active_day WHERE day >= ? AND day < ?"
    for audience, block, bits in connection.execute(days, (first_day, end_day)):
        seen[audience, block] |= int.from_bytes(bits, "little")
    single = "SELECT audience, number FROM activity WHERE at >= ? AND at < ?"
    for edge in edges:
        for audience, number in set(connection.execute(single, edge)):
            seen[audience, number // BLOCK] |= 1 << number % BLOCK
    unique: dict[int, int] = defaultdict(int)
    for (audience, _), members in seen.items():
        unique[audience] += members.bit_count()
    names = "SELECT id, activity_type, billing_id FROM audience ORDER BY activity_type, billing_id"
    return [(*name, unique[audience]) for audience, *name in connection.execute(names) if audience in unique]


def _members(connection: Connection, activities: Iterable[Activity]) -> dict[User, Member]:
    """The number of each user in *activities*; new ones are given theirs."""
    found: dict[User, Member] = {}
    strangers: dict[User, None] = {}
    audiences: dict[tuple[str, str], Member] = {}  # each with the number of its next member
    for activity in activities:
        user = (activity.activity_type_id, activity.billing_id, activity.user_id)
        if user not in found and user not in strangers:
            member = connection.members.get(user) or _stored(connection, user, audiences)
            if member is None:
                strangers[user] = None
            else:
                found[user] = member
    # Remembered is what was read, never what is new: that is not committed yet, and may never be.
    if len(connection.members) + len(found) > _REMEMBERED:
        connection.members.clear()
    connection.members.update(found)
    return found | _number(connection, strangers, audiences)


def _stored(connection: Connection, user: User, audiences: dict[tuple[str, str], Member]) -> Member | None:
    audience = audiences.get(user[:2])
    if audience is None:
        read = "SELECT id, members FROM audience WHERE activity_type = ? AND billing_id = ?"
        audience = connection.execute(read, user[:2]).fetchone()
        if audience is None:
            return None
        audiences[user[:2]] = audience
    read = "SELECT number FROM member WHERE audience = ? AND user_id = ?"
    stored = connection.execute(read, (audience[0], user[2])).fetchone()
    return None if stored is None else (audience[0], stored[0])


def _number(
    connection: Connection, strangers: Iterable[User], audiences: dict[tuple[str, str], Member]
) -> dict[User, Member]:
    """Number the *strangers*, each audience's on from where it stands."""
    numbered: dict[User, Member] = {}
    for user in strangers:
        member = audiences.get(user[:2])
        if member is None:
            make = "INSERT INTO audience (activity_type, billing_id) VALUES (?, ?)"
            member = (connection.execute(make, user[:2]).lastrowid or 0, 0)
        numbered[user] = member
        audiences[user[:2]] = (member[0], member[1] + 1)
    connection.executemany(
        "INSERT INTO member VALUES (?, ?, ?)",
        ((audience, user[2], number) for user, (audience, number) in numbered.items()),
    )
    grown = {audience: number + 1 for audience, number in numbered.values()}
    connection.executemany(
        "UPDATE audience SET members = ? WHERE id = ?",
        ((members, audience) for audience, members in grown.items()),
    )
    return numbered
