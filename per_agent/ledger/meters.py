"""Meters: what usage is counted against, with the fields and the rules of Payment Kit's meters page."""

import os
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from per_agent.errors import InvalidEvent
from per_agent.event import iso, new_meter_event
from per_agent.ledger.activities import milliseconds
from per_agent.ledger.arguments import check_mode, check_text, wanted_page
from per_agent.ledger.connection import Connection
from per_agent.ledger.database import Database

_LONGEST: Final = {"name": 64, "event_name": 64, "unit": 32, "description": 255}
_UPDATABLE: Final = ("name", "description", "unit", "status", "metadata")
_STATUSES: Final = ("active", "inactive")
_SELECT: Final = """
SELECT m.number, m.id, m.name, m.event_name, m.aggregation_method, m.unit, m.currency_id, m.status,
       m.livemode, m.description, m.metadata, m.created, m.updated, c.name, c.symbol, c.decimal
FROM meter m JOIN currency c ON c.id = m.currency_id
"""


class Meters:
    """Create, retrieve, update, list, activate and deactivate meters, with Payment Kit's own JSON.

    Wherever an *id* is asked for, the meter's `event_name` serves too; *livemode* then says in which mode,
    and matters for nothing else. All calls raise `Refused` (status 400 with all problems named, 404, 409) and
    `Unavailable` (trouble with the ledger's file).
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._database = database
        self._clock = clock
        self._entropy = entropy

    def create(  # noqa: PLR0913  (the meters page's own parameters)
        self,
        name: object = None,
        event_name: object = None,
        unit: object = None,
        *,
        aggregation_method: object = "sum",
        currency_id: object = None,
        description: object = None,
        metadata: object = None,
        livemode: object = True,
        **unknown: object,
    ) -> dict[str, Any]:
        """Make a meter, active at once, and a currency of its own where *currency_id* names none.

        *name*, *event_name* and *unit* are required; `event_name` is unique in its mode (else status 409).
        """
        call = "POST /api/meters"
        problems = [f"{field}: is not a field of a meter" for field in unknown]
        given = {"name": name, "event_name": event_name, "unit": unit}
        if description is not None:
            given["description"] = description
        for field, value in given.items():
            check_text(field, value, problems, _LONGEST[field])
        if aggregation_method != "sum":
            problems.append(f'aggregation_method: must be "sum", not {aggregation_method!r}')
        if currency_id is not None:
            check_text("currency_id", currency_id, problems)
        if not isinstance(livemode, bool):
            problems.append(f"livemode: must be true or false, not {livemode!r}")
        labels = _metadata({} if metadata is None else metadata, problems)
        if problems:
            raise self._database.refusal(call, problems)
        now = milliseconds(self._clock())

        def work(connection: Connection) -> dict[str, Any]:
            if _stored(connection, event_name, livemode) is not None:
                mode = "live" if livemode else "test"
                raise self._database.refusal(call, f"event_name: already exists in {mode} mode", status=409)
            currency = self._currency(connection, call, currency_id, (name, unit))
            made = connection.execute(
                "INSERT INTO meter (id, name, event_name, aggregation_method, unit, currency_id, status,"
                " livemode, description, metadata, created, updated)"
                " VALUES (?, ?, ?, 'sum', ?, ?, 'active', ?, ?, ?, ?, ?)",
                (self._id("mtr"), name, event_name, unit, currency, livemode, description, labels, now, now),
            )
            return meter_numbered(connection, made.lastrowid or 0)

        return self._database.write(call, work)

    def retrieve(self, id: object, *, livemode: object = True) -> dict[str, Any]:
        """The meter with this id or `event_name`; status 404 where there is none."""
        call = "GET /api/meters/{id}"
        return self._database.read(call, lambda connection: self._found(connection, call, id, livemode)[1])

    def update(self, id: object, *, livemode: object = True, **fields: object) -> dict[str, Any]:
        """Set `name`, `description` (None clears it), `unit`, `status`; `metadata` is replaced whole.

        No other field can be changed: `event_name`, the currency and the mode say what past events mean.
        """
        call = "PUT /api/meters/{id}"
        problems = [f"{field}: cannot be updated" for field in fields if field not in _UPDATABLE]
        for field, value in fields.items():
            if field in ("name", "unit") or (field == "description" and value is not None):
                check_text(field, value, problems, _LONGEST[field])
        if "status" in fields and fields["status"] not in _STATUSES:
            problems.append(f'status: must be "active" or "inactive", not {fields["status"]!r}')
        if "metadata" in fields:
            fields["metadata"] = _metadata(fields["metadata"], problems)
        if problems:
            raise self._database.refusal(call, problems)
        return self._changed(call, id, livemode, fields)

    def list(
        self,
        *,
        page: object = 1,
        pageSize: object = 20,  # noqa: N803  (upstream's name)
        event_name: object = None,
        livemode: object = True,
        q: object = None,
    ) -> dict[str, Any]:
        """A page of meters, the newest first, as `{"count", "list", "paging": {"page", "pageSize"}}`.

        *pageSize* is from 1 to 100. *q* is looked for in name and description, in any case of letters;
        *livemode* None lists both modes.
        """
        call = "GET /api/meters"
        problems: list[str] = []
        wanted = wanted_page(page, pageSize, problems)
        check_mode(livemode, problems)
        for field, text in (("event_name", event_name), ("q", q)):
            if text is not None and not isinstance(text, str):
                problems.append(f"{field}: must be a string, not {text!r}")
        if problems:
            raise self._database.refusal(call, problems)
        part = "" if q is None else str(q).casefold()
        # There are few meters, so they are filtered here: SQLite folds the case of ASCII letters only.
        meters = [
            meter
            for meter in self._database.read(call, _all)
            if event_name in (None, meter["event_name"])
            and livemode in (None, meter["livemode"])
            and part in f"{meter['name']}\n{meter['description'] or ''}".casefold()
        ]
        return wanted.answer(len(meters), meters[wanted.offset : wanted.offset + wanted.size])

    def activate(self, id: object, *, livemode: object = True) -> dict[str, Any]:
        """Let the meter take events again; parked ones go on by themselves. Gives the meter."""
        return self._changed("PUT /api/meters/{id}/activate", id, livemode, {"status": "active"})

    def deactivate(self, id: object, *, livemode: object = True) -> dict[str, Any]:
        """Have the meter refuse events, which are then parked. Gives the meter."""
        return self._changed("PUT /api/meters/{id}/deactivate", id, livemode, {"status": "inactive"})

    def is_active(self, event_name: str, *, livemode: bool) -> bool:
        """Whether events of this name are taken in this mode."""
        meter = self._database.read("GET /api/meters/{id}", lambda each: _stored(each, event_name, livemode))
        return meter is not None and meter[1]["status"] == "active"

    def _changed(self, call: str, id: object, livemode: object, fields: dict[str, object]) -> dict[str, Any]:
        now = milliseconds(self._clock())

        def work(connection: Connection) -> dict[str, Any]:
            number, _ = self._found(connection, call, id, livemode)
            for field, value in fields.items():
                connection.execute(f"UPDATE meter SET {field} = ? WHERE number = ?", (value, number))  # noqa: S608  (one of _UPDATABLE)
            connection.execute("UPDATE meter SET updated = max(?, created) WHERE number = ?", (now, number))
            return meter_numbered(connection, number)

        return self._database.write(call, work)

    def _found(
        self,
        connection: sqlite3.Connection,
        call: str,
        id: object,
        livemode: object,
    ) -> tuple[int, dict[str, Any]]:
        problems: list[str] = []
        check_text("id", id, problems)
        if not isinstance(livemode, bool):
            problems.append(f"livemode: must be true or false, not {livemode!r}")
        if problems:
            raise self._database.refusal(call, problems)
        meter = meter_with_id(connection, id) or _stored(connection, id, livemode)
        if meter is None:
            raise self._database.refusal(call, f"no meter {id!r}", status=404)
        return meter

    def _currency(
        self, connection: Connection, call: str, currency_id: object, name_and_symbol: tuple[object, object]
    ) -> object:
        if currency_id is None:
            currency_id = self._id("pcur")
            connection.execute("INSERT INTO currency VALUES (?, ?, ?, 0)", (currency_id, *name_and_symbol))
        elif connection.execute("SELECT 1 FROM currency WHERE id = ?", (currency_id,)).fetchone() is None:
            raise self._database.refusal(call, f"currency_id: no currency {currency_id!r}")
        return currency_id

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._entropy(12).hex()}"


def _metadata(given: object, problems: list[str]) -> str:
    """*given* as JSON text, under the rules for an event's metadata."""
    try:
        text = new_meter_event("_", "_", 0, identifier="_", now=0.0, metadata=given).metadata  # type: ignore[arg-type]  # unchecked input: that is what it checks
    except InvalidEvent as error:
        problems.append(f"metadata: {error.problems['metadata']}")
        return "{}"
    if text is None:
        problems.append("metadata: must be a JSON object, not None")
    return text or "{}"


def meter_with_id(connection: sqlite3.Connection, id: object) -> tuple[int, dict[str, Any]] | None:
    """The number of the meter and the meter with this `mtr_…` id, or None."""
    row = connection.execute(f"{_SELECT} WHERE m.id = ?", (id,)).fetchone()
    return None if row is None else (row[0], _meter(row))


def meter_numbered(connection: sqlite3.Connection, number: int) -> dict[str, Any]:
    """The meter with this number, which must exist."""
    return _meter(connection.execute(f"{_SELECT} WHERE m.number = ?", (number,)).fetchone())


def _stored(
    connection: sqlite3.Connection, event_name: object, livemode: object
) -> tuple[int, dict[str, Any]] | None:
    row = connection.execute(
        f"{_SELECT} WHERE m.livemode = ? AND m.event_name = ?", (livemode, event_name)
    ).fetchone()
    return None if row is None else (row[0], _meter(row))


def _all(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    return [_meter(row) for row in connection.execute(f"{_SELECT} ORDER BY m.number DESC")]


def _meter(row: tuple[Any, ...]) -> dict[str, Any]:
    (_, id_, name, event_name, method, unit, currency_id, status, livemode,
     description, metadata, created, updated, currency_name, symbol, decimal) = row  # fmt: skip
    return {
        "id": id_,
        "object": "meter",
        "name": name,
        "event_name": event_name,
        "aggregation_method": method,
        "unit": unit,
        "currency_id": currency_id,
        "status": status,
        "livemode": bool(livemode),
        "description": description,
        "metadata": msgspec.json.decode(metadata),
        "created_at": iso(created / 1000),
        "updated_at": iso(updated / 1000),
        "paymentCurrency": {
            "id": currency_id,
            "name": currency_name,
            "symbol": symbol,
            "decimal": decimal,
            "type": "meter",
        },
    }
