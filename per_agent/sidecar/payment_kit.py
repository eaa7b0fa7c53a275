"""Payment Kit's own wire form of a meter event, answered at once.

The forms are those of Payment Kit's API reference: `POST /api/meter-events`, the mode in the query, the amount
as `payload.value`. The answer is a meter event made of what is known here: pending, with no credits taken.
`identifier` is required, as Payment Kit requires it: without one, nobody could tell a repeat from a new event.
The same identifier again is answered alike, and not accepted twice.
"""

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from per_agent.errors import InvalidEvent
from per_agent.event import RECORDS, MeterEvent, Receipt, iso, new_meter_event
from per_agent.sidecar import records
from per_agent.sidecar.answer import Answer
from per_agent.sidecar.answers import NOTHING, Taken, as_json, taken, wants_stored
from per_agent.sidecar.asked import Asked
from per_agent.sidecar.problems import Problem, invalid
from per_agent.sidecar.query import parameters, switch
from per_agent.sidecar.records import UNREADABLE
from per_agent.sidecar.service import Service

LIMIT: Final = 1024 * 1024  # bytes; an event takes 64 KiB, escapes may make its JSON several times as long
# `livemode` may stand in the body, where Payment Kit does not read it either.
_FIELDS: Final = frozenset(
    {"event_name", "identifier", "timestamp", "payload", "metadata", "source_data", "livemode"}
)
_PAYLOAD: Final = frozenset({"customer_id", "value", "subscription_id"})
_NAMES: Final = {field: f"payload.{field}" for field in _PAYLOAD}


def take(service: Service, asked: Asked, query: bytes, content: bytes) -> Taken:  # noqa: ARG001  (as other forms')
    """Take one meter event in. Raises `Problem`."""
    livemode, wait = _chosen(query)
    stored = wants_stored(wait, service)
    if livemode is None:
        livemode = service.agent.livemode
    now = time.time()
    plain = records.read_payment_kit(content)
    event = _event(_object(content), livemode, now) if plain is None else plain.event(now, livemode)
    receipt = _once(service, event)
    waiting = NOTHING if receipt is None or not stored else [receipt]
    return Answer(200, as_json(_Answered.of(event, _iso(int(now * 1000))))), waiting


@lru_cache(maxsize=64)  # a client says the same each time
def _chosen(query: bytes) -> tuple[bool | None, str | None]:
    chosen = parameters(query)
    return switch("livemode", chosen), chosen.get("wait")


def _once(service: Service, event: MeterEvent) -> Receipt | None:
    """The receipt of *event*, which may have been taken in before; None where it is stored already."""
    recent = service.recent.of(MeterEvent)
    if event.id in recent:
        return recent.receipt(event.id)
    try:
        receipt = taken(service, event)
    except InvalidEvent as error:
        raise invalid(error) from None
    recent.add(event.id, receipt)
    return receipt


def _object(content: bytes) -> dict[str, Any]:
    try:
        fields = RECORDS.decode(content)
    except UNREADABLE as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Problem(400, "the body must be a JSON object")
    return fields


def _event(fields: Mapping[str, Any], livemode: bool | None, now: float) -> MeterEvent:
    payload = fields.get("payload")
    problems = dict.fromkeys(fields.keys() - _FIELDS, "is not a field of a meter event")
    if isinstance(payload, dict):
        problems |= {f"payload.{field}": "is not a field of a payload" for field in payload.keys() - _PAYLOAD}
    else:
        problems["payload"] = "is missing" if payload is None else "must be an object"
        payload = {}
    try:
        event = new_meter_event(
            fields.get("event_name"),  # type: ignore[arg-type]  # unchecked input: that is what it checks
            payload.get("customer_id"),  # type: ignore[arg-type]  # as above
            payload.get("value"),
            identifier=fields.get("identifier"),  # type: ignore[arg-type]  # as above
            now=now,
            subscription_id=payload.get("subscription_id"),
            timestamp=fields.get("timestamp"),
            metadata=fields.get("metadata"),
            source_data=fields.get("source_data"),
            livemode=livemode,
        )
    except InvalidEvent as error:
        whole = "payload" not in problems  # what is said of it says all of what it should hold
        problems |= {
            _NAMES.get(name, name): words
            for name, words in error.problems.items()
            if whole or name not in _PAYLOAD
        }
    if problems:
        raise Problem(400, "the meter event is not valid", errors=problems)
    return event


class _Shown(msgspec.Struct, gc=False):
    customer_id: str
    value: str
    subscription_id: str | None


class _Answered(msgspec.Struct, gc=False):
    """An event as Payment Kit would show it just after it was made."""

    id: str
    object: str
    event_name: str
    payload: _Shown
    identifier: str
    timestamp: int
    livemode: bool
    status: str
    credit_consumed: str
    credit_pending: str
    metadata: msgspec.Raw
    source_data: msgspec.Raw
    created_via: str
    created_at: str
    updated_at: str

    @classmethod
    def of(cls, event: MeterEvent, now: str) -> "_Answered":
        return cls(
            # Payment Kit gives an id of its own when it gets the event; clients must find some text here.
            event.id,
            "meter_event",
            event.event_name,
            _Shown(event.customer_id, event.value, event.subscription_id),
            event.id,
            int(event.timestamp),
            event.livemode is not False,
            "pending",
            "0",
            "0",
            _EMPTY if event.metadata is None else msgspec.Raw(event.metadata.encode()),
            _NULL if event.source_data is None else msgspec.Raw(event.source_data.encode()),
            "api",
            now,
            now,
        )


@lru_cache(maxsize=1)
def _iso(millisecond: int) -> str:
    return iso((millisecond + 0.5) / 1000)


_EMPTY: Final = msgspec.Raw(b"{}")
_NULL: Final = msgspec.Raw(b"null")
