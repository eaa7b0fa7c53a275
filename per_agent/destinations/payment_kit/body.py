"""A meter event as Payment Kit reads it: the body of `POST /api/meter-events`."""

import msgspec

from per_agent.event import MeterEvent


class _Payload(msgspec.Struct, frozen=True, omit_defaults=True):
    customer_id: str
    value: str
    subscription_id: str | None = None


class _Body(msgspec.Struct, frozen=True, omit_defaults=True):
    event_name: str
    identifier: str
    timestamp: int
    payload: _Payload
    metadata: msgspec.Raw | None = None
    source_data: msgspec.Raw | None = None


_encode = msgspec.json.Encoder().encode


def body_of(event: MeterEvent) -> bytes:
    """The JSON of *event*."""
    return _encode(
        _Body(
            event.event_name,
            event.id,
            int(event.timestamp),  # Payment Kit's column is whole seconds
            _Payload(event.customer_id, event.value, event.subscription_id),
            None if event.metadata is None else msgspec.Raw(event.metadata.encode()),
            None if event.source_data is None else msgspec.Raw(event.source_data.encode()),
        )
    )
