"""Activities: counted once by identifier, and the report of unique users in any window."""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final

from per_agent.event import Activity, iso
from per_agent.ledger.connection import Connection
from per_agent.ledger.database import Database
from per_agent.ledger.identifier import Packed, already, pack_all
from per_agent.ledger.rows import insert_new
from per_agent.ledger.schema import BLOCK

_DAY: Final = 86_400_000  # milliseconds
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_FIRST: Final = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // _MILLISECOND
_LAST: Final = (datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC) - _EPOCH) // _MILLISECOND
_FOR_EVER: Final = 2**53  # milliseconds: beyond any time that an event can carry
_REMEMBERED: Final = 65_536  # members per connection, some 250 bytes each
_AT_ONCE: Final = 500  # users looked up by one statement
_CALL: Final = "GET /reports.get"
_IDENTIFIERS: Final = "activity_identifier"

User = tuple[str, str, str]
"""Activity type, billing ID and user ID: what is counted once."""
Member = tuple[int, int]
"""The same in numbers: the audience's id, and the user's number in it."""


def insert(connection: Connection, activities: Sequence[Activity]) -> None:
    """Count those of *activities* whose identifiers are new, within the transaction under way."""
    packed = pack_all([activity.id for activity in activities])
    fresh: dict[Packed, Activity] = {}
    for identifier, activity in zip(packed, activities, strict=True):
        fresh.setdefault(identifier, activity)
    _take_identifiers(connection, fresh)
    users = [(each.activity_type_id, each.billing_id, each.user_id) for each in fresh.values()]
    members = _members(connection, users)
    moments: list[int] = []
    days: dict[tuple[int, int], set[int]] = defaultdict(set)
    for activity, user in zip(fresh.values(), users, strict=True):
        audience, number = members[user]
        at = milliseconds(activity.at)
        moments += (at, audience, number)
        days[at // _DAY, audience].add(number)
    insert_new(connection, "activity", 3, moments)
    connection.executemany(
        "INSERT INTO active_day VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET bits = union_bits(bits, excluded.bits)",
        (
            (day, audience, block, bits.to_bytes((bits.bit_length() + 7) // 8, "little"))
            for (day, audience), numbers in sorted(days.items())
            for block, bits in _bitmaps(numbers)
        ),
    )


def _take_identifiers(connection: sqlite3.Connection, fresh: dict[Packed, Activity]) -> None:
    """Store the identifiers of *fresh*, and leave only those in it that were not stored before.

    That some were is rare: so they are not asked for, but stored and counted; and taken back where some were.
    """
    connection.execute("SAVEPOINT identifiers")
    if insert_new(connection, _IDENTIFIERS, 1, list(fresh)) < len(fresh):
        connection.execute("ROLLBACK TO identifiers")
        for identifier in already(connection, _IDENTIFIERS, fresh):
            del fresh[identifier]
        insert_new(connection, _IDENTIFIERS, 1, list(fresh))
    connection.execute("RELEASE identifiers")


def _bitmaps(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The bitmap of the members *numbers*, by blocks, in their order."""
    blocks: dict[int, int] = defaultdict(int)
    for number in numbers:
        blocks[number // BLOCK] |= 1 << number % BLOCK
    return sorted(blocks.items())


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


def _members(connection: Connection, users: Iterable[User]) -> dict[User, Member]:
    """The number of each of *users*; new ones are given theirs."""
    found: dict[User, Member] = {}
    unknown: dict[tuple[str, str], list[User]] = defaultdict(list)  # by their audience
    for user in dict.fromkeys(users):
        member = connection.members.get(user)
        if member is None:
            unknown[user[:2]].append(user)
        else:
            found[user] = member
    audiences: dict[tuple[str, str], Member] = {}  # each with the number of its next member
    for name, some in unknown.items():
        read = "SELECT id, members FROM audience WHERE activity_type = ? AND billing_id = ?"
        audience = connection.execute(read, name).fetchone()
        if audience is not None:
            audiences[name] = audience
            found.update(_stored(connection, audience[0], some))
    # Remembered is what was read, never what is new: that is not committed yet, and may never be.
    if len(connection.members) + len(found) > _REMEMBERED:
        # Those that were read first go: of users that come by chance the younger half is worth as much as any.
        for user in list(islice(connection.members, max(len(found), _REMEMBERED // 2))):
            del connection.members[user]
    connection.members.update(found)
    strangers = [user for some in unknown.values() for user in some if user not in found]
    return found | _number(connection, strangers, audiences)


def _stored(connection: Connection, audience: int, users: Sequence[User]) -> Iterator[tuple[User, Member]]:
    """Those of *users*, all of *audience*, that have a number, with it."""
    for at in range(0, len(users), _AT_ONCE):
        some = {user[2]: user for user in users[at : at + _AT_ONCE]}
        marks = ", ".join("?" * len(some))
        read = f"SELECT user_id, number FROM member WHERE audience = ? AND user_id IN ({marks})"  # noqa: S608  (marks)
        for name, number in connection.execute(read, (audience, *some)):
            yield some[name], (audience, number)


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
