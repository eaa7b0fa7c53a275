"""Meter events read back, their statistics and what is pending, with Payment Kit's own JSON."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from per_agent.errors import InvalidEvent
from per_agent.event import iso, new_meter_event
from per_agent.ledger import usage
from per_agent.ledger.activities import milliseconds
from per_agent.ledger.arguments import check_mode, check_text, wanted_page
from per_agent.ledger.connection import Connection
from per_agent.ledger.counting import insert
from per_agent.ledger.database import Database
from per_agent.ledger.exact import plain
from per_agent.ledger.identifier import pack, unpack
from per_agent.ledger.meters import meter_with_id

_PREFIX: Final = "mevt_"
_MANY: Final = 50_000  # events: as many are sorted in some 20 ms
_LAST: Final = 2**53  # seconds: beyond any timestamp
_PAYLOAD: Final = frozenset({"customer_id", "value", "subscription_id"})
_ROWS: Final = """
SELECT e.number, m.event_name, a.customer_id, e.value, a.subscription_id, e.identifier, e.timestamp,
       m.livemode, e.metadata, e.source_data, e.created
FROM meter_event e JOIN meter m ON m.number = e.meter JOIN account a ON a.id = e.account
"""


class MeterEvents:
    """Create, retrieve and list meter events, their statistics, and what is pending.

    All calls raise `Refused` (status 400 with all problems named, 404) and `Unavailable` (trouble with the
    ledger's file). Amounts are plain decimal texts in the meter's unit, exact to the last digit: a ledger's
    currency has `decimal` 0 by name, and its amounts have fractions all the same, and are never scaled.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def create(
        self,
        *,
        event_name: Any = None,
        identifier: Any = None,
        payload: Any = None,
        timestamp: Any = None,
        metadata: Any = None,
        source_data: Any = None,
        livemode: Any = True,
        **unknown: object,
    ) -> dict[str, Any]:
        """Count one event and give it; where its identifier is known already, give the event that has it.

        *payload* has `customer_id`, `value` and, if need be, `subscription_id`. *timestamp* None means now.
        """
        call = "POST /api/meter-events"
        problems = dict.fromkeys(unknown, "is not a field of a meter event")
        body = dict(payload) if isinstance(payload, Mapping) else {}
        if not isinstance(payload, Mapping):
            problems["payload"] = "must be an object with customer_id and value"
        problems |= {f"payload.{field}": "is not a field of a payload" for field in body.keys() - _PAYLOAD}
        now = self._clock()
        try:
            event = new_meter_event(
                event_name, body.get("customer_id"), body.get("value"), identifier=identifier, now=now,  # type: ignore[arg-type]  # unchecked input: that is what it checks
                subscription_id=body.get("subscription_id"), timestamp=timestamp, metadata=metadata,
                source_data=source_data, livemode=livemode,
            )  # fmt: skip
        except InvalidEvent as error:
            problems |= error.problems
        if problems:
            raise self._database.refusal(call, [f"{field}: {problem}" for field, problem in problems.items()])

        def work(connection: Connection) -> dict[str, Any]:
            (refused,) = insert(connection, [event], milliseconds(now))
            if refused is not None:
                raise self._database.refusal(call, f"event_name: {refused}")
            where = f"{_ROWS} WHERE e.identifier = ?"
            return _event(connection.execute(where, (pack(event.id),)).fetchone())

        return self._database.write(call, work)

    def retrieve(self, id: object, *, livemode: object = None) -> dict[str, Any]:
        """The event with this `mevt_…` id; status 404 where there is none, or none in the mode asked for."""
        call = "GET /api/meter-events/{id}"
        problems: list[str] = []
        check_mode(livemode, problems)
        if problems:
            raise self._database.refusal(call, problems)
        number, row = _number(id), None
        if number is not None:
            rows = f"{_ROWS} WHERE e.number = ?"
            row = self._database.read(call, lambda connection: connection.execute(rows, (number,)).fetchone())
        event = None if row is None else _event(row)
        if event is None or livemode not in (None, event["livemode"]):
            raise self._database.refusal(call, f"no meter event {id!r}", status=404)
        return event

    def list(  # noqa: PLR0913  (upstream's own parameters)
        self,
        *,
        page: object = 1,
        pageSize: object = 20,  # noqa: N803  (upstream's name)
        event_name: object = None,
        meter_id: object = None,
        customer_id: object = None,
        start: object = None,
        end: object = None,
        livemode: object = True,
        q: object = None,
    ) -> dict[str, Any]:
        """A page of events, the last accepted first, as `{"count", "list", "paging": {"page", "pageSize"}}`.

        *start* and *end* are in seconds, both inclusive. *q* is an identifier, or part of a customer's,
        a subscription's or a meter's name. *livemode* None lists both modes. *pageSize* is from 1 to 100.
        """
        call = "GET /api/meter-events"
        problems: list[str] = []
        wanted = wanted_page(page, pageSize, problems)
        check_mode(livemode, problems)
        named = {"event_name": event_name, "meter_id": meter_id, "customer_id": customer_id, "q": q}
        for field, text in named.items():
            if text is not None:
                check_text(field, text, problems)
        bounds = [_second("start", start, problems), _second("end", end, problems)]
        if problems:
            raise self._database.refusal(call, problems)
        chosen, values = _filter(named, bounds, livemode)
        narrow = customer_id is not None or q is not None or bounds != [None, None]
        count_all = "SELECT coalesce(sum(e.events), 0) FROM meter_minute e WHERE "
        count_some = "SELECT count(*) FROM meter_event e WHERE "
        counting = (count_some if narrow else count_all) + chosen

        def work(connection: Connection) -> tuple[int, list[Any]]:
            (count,) = connection.execute(counting, values).fetchone()
            # Few are found by index and sorted; many are met soon by walking back from the newest.
            way = "NOT INDEXED" if count > _MANY else ""
            numbers = f"SELECT e.number FROM meter_event e {way} WHERE {chosen}"  # noqa: S608  (made of constants)
            newest = f"{numbers} ORDER BY e.number DESC LIMIT :size OFFSET :offset"
            rows = f"{_ROWS} WHERE e.number IN ({newest}) ORDER BY e.number DESC"
            slots = {**values, "size": wanted.size, "offset": wanted.offset}
            return count, connection.execute(rows, slots).fetchall()

        count, found = self._database.read(call, work)
        return wanted.answer(count, [_event(row) for row in found])

    def stats(
        self,
        *,
        meter_id: object = None,
        start: object = None,
        end: object = None,
        customer_id: object = None,
        granularity: object = "day",
        livemode: object = None,
    ) -> dict[str, Any]:
        """Events and their sum for each minute, hour or day (UTC) that had any, the earliest first.

        *meter_id*, *start* and *end* are required; the latter are in seconds, both inclusive. Each of `list`
        is `{"date", "timestamp", "event_count", "total_value"}`, the first two being the beginning of
        its minute, hour or day. All come on one page.
        """
        call = "GET /api/meter-events/stats"
        problems: list[str] = []
        check_text("meter_id", meter_id, problems)
        check_mode(livemode, problems)
        if customer_id is not None:
            check_text("customer_id", customer_id, problems)
        for field, given in (("start", start), ("end", end)):
            if given is None:
                problems.append(f"{field}: is required")
        first, last = _second("start", start, problems), _second("end", end, problems)
        step = usage.GRANULARITIES.get(granularity) if isinstance(granularity, str) else None
        if step is None:
            problems.append(f"granularity: must be minute, hour or day, not {granularity!r}")
        if problems or step is None or first is None or last is None:
            raise self._database.refusal(call, problems)

        def work(connection: Connection) -> list[usage.Bucket]:
            meter = meter_with_id(connection, meter_id)
            if meter is None or livemode not in (None, meter[1]["livemode"]):
                raise self._database.refusal(call, f"no meter {meter_id!r}", status=404)
            window = usage.Window(first, last + 1, step)
            if customer_id is None:
                return usage.of_meter(connection, meter[0], window)
            return usage.of_customer(connection, meter[0], str(customer_id), window)

        buckets = [
            {"date": iso(begin), "timestamp": begin, "event_count": events, "total_value": plain(total)}
            for begin, events, total in self._database.read(call, work)
        ]
        return {"count": len(buckets), "list": buckets, "paging": {"page": 1, "pageSize": len(buckets)}}

    def pending_amount(
        self,
        *,
        subscription_id: object = None,
        customer_id: object = None,
        currency_id: object = None,
        livemode: object = True,
    ) -> dict[str, str]:
        """The sum of all pending events for each currency that has any, `{currency_id: amount}`.

        All events of a ledger are pending: it counts usage, and holds no credits to take it from. The amounts
        are in the meter's unit, not scaled by the currency's `decimal`. *livemode* None sums both modes.
        """
        call = "GET /api/meter-events/pending-amount"
        problems: list[str] = []
        check_mode(livemode, problems)
        named = {"subscription_id": subscription_id, "customer_id": customer_id, "currency_id": currency_id}
        for field, text in named.items():
            if text is not None:
                check_text(field, text, problems)
        if problems:
            raise self._database.refusal(call, problems)
        filters = {**named, "livemode": livemode}
        sums = self._database.read(call, lambda connection: usage.pending(connection, filters))
        return {currency: plain(total) for currency, total in sums.items()}


def _filter(
    named: Mapping[str, object], bounds: Sequence[int | None], livemode: object
) -> tuple[str, dict[str, object]]:
    """The condition that a list's filters make, of constants only, and the values for its slots."""
    values: dict[str, object] = {**named, "livemode": livemode}
    meters = [f"{field} = :{slot}" for field, slot in _METER_FILTERS if values[slot] is not None]
    chosen = [f"e.meter IN (SELECT number FROM meter WHERE {' AND '.join(meters)})"] if meters else ["true"]  # noqa: S608  (made of constants)
    if named["customer_id"] is not None:
        chosen.append("e.account IN (SELECT id FROM account WHERE customer_id = :customer_id)")
    if named["q"] is not None:
        part = str(named["q"]).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        values |= {"part": f"%{part}%", "identifier": pack(str(named["q"]))}
        chosen.append(_SEARCH)
    if bounds != [None, None]:
        first, last = bounds
        values |= {"first": 0 if first is None else first, "last": _LAST if last is None else last}
        chosen.append("e.timestamp BETWEEN :first AND :last")
    return " AND ".join(chosen), values


_METER_FILTERS: Final = (("livemode", "livemode"), ("event_name", "event_name"), ("id", "meter_id"))
_SEARCH: Final = """(
    e.identifier = :identifier
    OR e.account IN (
        SELECT id FROM account
        WHERE customer_id LIKE :part ESCAPE '\\' OR subscription_id LIKE :part ESCAPE '\\')
    OR e.meter IN (SELECT number FROM meter WHERE event_name LIKE :part ESCAPE '\\')
)"""


def _second(field: str, given: object, problems: list[str]) -> int | None:
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= _LAST:
        problems.append(f"{field}: must be whole seconds since 1970, not {given!r}")
        return None
    return given


def _number(id: object) -> int | None:
    if not isinstance(id, str) or not id.startswith(_PREFIX) or not id[len(_PREFIX) :].isdecimal():
        return None
    number = int(id[len(_PREFIX) :][:20])
    return number if f"{_PREFIX}{number:016d}" == id and number < 2**63 else None


def _event(row: tuple[Any, ...]) -> dict[str, Any]:
    (number, event_name, customer_id, value, subscription_id, identifier, timestamp, livemode,
     metadata, source_data, created) = row  # fmt: skip
    return {
        "id": f"{_PREFIX}{number:016d}",
        "object": "meter_event",
        "event_name": event_name,
        "payload": {"customer_id": customer_id, "value": value, "subscription_id": subscription_id or None},
        "identifier": unpack(identifier),
        "timestamp": timestamp,
        "livemode": bool(livemode),
        "status": "pending",
        "credit_consumed": "0",
        "credit_pending": value,
        "metadata": {} if metadata is None else msgspec.json.decode(metadata),
        "source_data": None if source_data is None else msgspec.json.decode(source_data),
        "created_via": "api",
        "created_at": iso(created / 1000),
        "updated_at": iso(created / 1000),
    }
