"""Meter events coming in: each summed once by its identifier, where its meter is active."""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from per_agent.event import MeterEvent
from per_agent.ledger import usage
from per_agent.ledger.connection import Connection
from per_agent.ledger.exact import amount, exactly
from per_agent.ledger.identifier import Packed, already, pack

_REMEMBERED: Final = 65_536  # accounts per connection, some 200 bytes each


def insert(connection: Connection, events: Sequence[MeterEvent], now: int) -> list[str | None]:
    """Count those of *events* whose identifiers are new and whose meters are active, within the transaction.

    For each event, in order: None where it is counted, now or before, else why its meter does not take it.
    Like Payment Kit, asks first whether the identifier is known, then for the meter. *now* in milliseconds.
    """
    identifiers = [pack(event.id) for event in events]
    known = already(connection, "meter_event", set(identifiers))
    meters: dict[tuple[bool, str], tuple[int, str] | None] = {}
    answers: list[str | None] = []
    counted: list[tuple[Packed, int, MeterEvent]] = []
    for identifier, event in zip(identifiers, events, strict=True):
        refused = None
        if identifier not in known:
            name = (event.livemode is not False, event.event_name)
            if name not in meters:
                meters[name] = _meter(connection, name)
            match meters[name]:
                case (number, "active"):
                    known.add(identifier)
                    counted.append((identifier, number, event))
                case None:
                    refused = f"no meter {event.event_name!r} in {'live' if name[0] else 'test'} mode"
                case _:
                    refused = f"meter {event.event_name!r} is inactive"
        answers.append(refused)
    if counted:
        _insert_counted(connection, counted, now)
    return answers


def _meter(connection: sqlite3.Connection, name: tuple[bool, str]) -> tuple[int, str] | None:
    row: tuple[int, str] | None = connection.execute(
        "SELECT number, status FROM meter WHERE livemode = ? AND event_name = ?", name
    ).fetchone()
    return row


def _insert_counted(
    connection: Connection, counted: Sequence[tuple[Packed, int, MeterEvent]], now: int
) -> None:
    accounts = _accounts(connection, [event for _, _, event in counted])
    tally = usage.Tally()
    rows = []
    with exactly():
        for identifier, meter, event in counted:
            account = accounts[event.customer_id, event.subscription_id or ""]
            second = int(event.timestamp)
            rows.append(
                (identifier, meter, account, event.value, second, now, event.metadata, event.source_data)
            )
            tally.add(meter, account, second, amount(event.value))
    connection.executemany(
        "INSERT INTO meter_event"
        " (identifier, meter, account, value, timestamp, created, metadata, source_data)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    tally.store(connection)


def _accounts(connection: Connection, events: Iterable[MeterEvent]) -> dict[tuple[str, str], int]:
    """The number of each (customer, subscription) in *events*; new ones are given theirs."""
    found: dict[tuple[str, str], int] = {}
    strangers: dict[tuple[str, str], None] = {}
    for event in events:
        account = (event.customer_id, event.subscription_id or "")
        if account in found or account in strangers:
            continue
        number = connection.accounts.get(account)
        if number is None:
            read = "SELECT id FROM account WHERE customer_id = ? AND subscription_id = ?"
            row = connection.execute(read, account).fetchone()
            if row is None:
                strangers[account] = None
                continue
            number = row[0]
        found[account] = number
    # Remembered is what was read, never what is new: that is not committed yet, and may never be.
    if len(connection.accounts) + len(found) > _REMEMBERED:
        connection.accounts.clear()
    connection.accounts.update(found)
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM account").fetchone()
    made = {account: number for number, account in enumerate(strangers, last + 1)}
    connection.executemany("INSERT INTO account VALUES (?, ?, ?)", ((made[each], *each) for each in made))
    return found | made
