"""Payment Kit's own wire form of a meter event, answered at once.

The forms are those of Payment Kit's API reference: `POST /api/meter-events`, the mode in the query, the amount
as `payload.value`. The answer is a meter event made of what is known here: pending, with no credits taken.
`identifier` is required, as Payment Kit requires it: without one, nobody could tell a repeat from a new event.
The same identifier again is answered alike, and not accepted twice.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from per_agent.errors import InvalidEvent
from per_agent.event import RECORDS, MeterEvent, Receipt, iso, new_meter_event
from per_agent.sidecar import body
from per_agent.sidecar.answers import Answer, json_answer, taken, until_stored, wants_stored
from per_agent.sidecar.problems import Problem, invalid
from per_agent.sidecar.query import parameters, switch
from per_agent.sidecar.service import Service

_LIMIT: Final = 1024 * 1024  # bytes; an event takes 64 KiB, escapes may make its JSON several times as long
# `livemode` may stand in the body, where Payment Kit does not read it either.
_FIELDS: Final = frozenset(
    {"event_name", "identifier", "timestamp", "payload", "metadata", "source_data", "livemode"}
)
_PAYLOAD: Final = frozenset({"customer_id", "value", "subscription_id"})
_NAMES: Final = {field: f"payload.{field}" for field in _PAYLOAD}


async def add(
    service: Service, scope: Mapping[str, Any], given: Mapping[bytes, bytes], receive: body.Receive
) -> Answer:
    """Take one meter event in. Raises `Problem`."""
    query = parameters(scope["query_string"])
    livemode, stored = switch("livemode", query), wants_stored(query.get("wait"), service)
    event = _event(
        _object(await body.read(receive, given, _LIMIT)),
        service.agent.livemode if livemode is None else livemode,
    )
    recent = service.recent
    receipts: list[Receipt] = []
    if event not in recent:
        try:
            receipt = taken(service.agent.add_event, event)
        except InvalidEvent as error:
            raise invalid(error) from None
        recent.add(event, receipt)
        receipts.append(receipt)
    elif (earlier := recent.receipt(event)) is not None:
        receipts.append(earlier)
    if stored:
        await until_stored(service, receipts)
    return json_answer(200, _as_answered(event))


def _object(content: bytes) -> dict[str, Any]:
    try:
        fields = RECORDS.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Problem(400, "the body must be a JSON object")
    return fields


def _event(fields: Mapping[str, Any], livemode: bool | None) -> MeterEvent:
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
            now=time.time(),
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


def _as_answered(event: MeterEvent) -> dict[str, Any]:
    """The event as Payment Kit would show it just after it was made."""
    now = iso(time.time())
    return {
        # Payment Kit gives an id of its own when it gets the event; clients must find some text here.
        "id": event.id,
        "object": "meter_event",
        "event_name": event.event_name,
        "payload": {
            "customer_id": event.customer_id,
            "value": event.value,
            "subscription_id": event.subscription_id,
        },
        "identifier": event.id,
        "timestamp": int(event.timestamp),
        "livemode": event.livemode is not False,
        "status": "pending",
        "credit_consumed": "0",
        "credit_pending": "0",
        "metadata": {} if event.metadata is None else msgspec.Raw(event.metadata.encode()),
        "source_data": None if event.source_data is None else msgspec.Raw(event.source_data.encode()),
        "created_via": "api",
        "created_at": now,
        "updated_at": now,
    }
