"""`Activity` and `MeterEvent`: checked once at the border, trusted inside, encoded once to the bytes of their life."""

import struct
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from per_agent.errors import InvalidEvent
from per_agent.event.identifiers import RUN, STEP, TAILS, Identifiers

MAX_EVENT_BYTES: Final = 64 * 1024
"""The longest encoded event: metadata is for labels, and a bounded event is what bounds the buffer."""


class Activity(msgspec.Struct, frozen=True, array_like=True, tag="a", gc=False):
    """One user of one billed customer was active. `at` is in epoch seconds."""

    id: str
    billing_id: str
    user_id: str
    activity_type_id: str
    at: float

    def as_record(self) -> dict[str, Any]:
        """The event in the form that `event_from_record` reads."""
        return {
            "type": "activity",
            "id": self.id,
            "billing_id": self.billing_id,
            "user_id": self.user_id,
            "activity_type_id": self.activity_type_id,
            "at": self.at,
        }


class MeterEvent(msgspec.Struct, frozen=True, array_like=True, tag="m", gc=False):
    """A customer used something that is metered.

    `value` is an exact decimal in plain notation, `timestamp` in epoch seconds; `metadata` and `source_data`
    are JSON text or None. `livemode` None means the mode of the destination.
    """

    id: str
    event_name: str
    customer_id: str
    value: str
    timestamp: float
    subscription_id: str | None = None
    metadata: str | None = None
    source_data: str | None = None
    livemode: bool | None = None

    def as_record(self) -> dict[str, Any]:
        """The event in the form that `event_from_record` reads."""
        record = {
            "type": "meter",
            "identifier": self.id,
            "event_name": self.event_name,
            "customer_id": self.customer_id,
            "value": self.value,
            "timestamp": self.timestamp,
            "subscription_id": self.subscription_id,
            "metadata": None if self.metadata is None else _decode_json(self.metadata),
            "source_data": None if self.source_data is None else _decode_json(self.source_data),
            "livemode": self.livemode,
        }
        return {field: value for field, value in record.items() if value is not None}


Event = Activity | MeterEvent

encode_fields: Final = msgspec.msgpack.Encoder().encode
"""`(fields) -> bytes`: as `encode` does it, of an event's fields that are a tuple, the tag first. At any length.

The identifier of an activity may be None; `identified` puts it in. Raises `UnicodeEncodeError` where text has no
UTF-8 form.
"""

decode: Final[Callable[[bytes], Event]] = msgspec.msgpack.Decoder(Event).decode
"""`(encoded) -> Event`: the event that *encoded* holds. Raises `msgspec.DecodeError` where it holds none."""

# As MessagePack writes an activity: an array of six, the tag, the identifier, and at last the time.
_TO_ID: Final = b"\x96\xa1a\xd9\x24"
_ID_AT: Final = 3
_ID_BYTES: Final = 37
_NIL: Final = b"\xc0"
_TAILS: Final = len(TAILS)
_unpack_float = struct.Struct(">d").unpack_from

_decode_json = msgspec.json.Decoder(float_hook=Decimal).decode


def encode(event: Event) -> bytes:
    """The event's bytes, as they lie in the spool.

    Raises `InvalidEvent` where text has no UTF-8 form or the event is longer than `MAX_EVENT_BYTES`.
    """
    try:
        encoded = encode_fields(event)
    except UnicodeEncodeError as error:
        raise InvalidEvent({"event": f"holds text that has no UTF-8 form ({error.reason})"}) from None
    if len(encoded) > MAX_EVENT_BYTES:
        check_length(encoded)
    return encoded


def check_length(encoded: bytes) -> None:
    """Raises `InvalidEvent` where the event is longer than `MAX_EVENT_BYTES`, its identifier included."""
    length = len(encoded) + (_ID_BYTES if encoded[_ID_AT : _ID_AT + 1] == _NIL else 0)
    if length > MAX_EVENT_BYTES:
        raise InvalidEvent({"event": f"is {length} bytes long, at most {MAX_EVENT_BYTES} are taken"})


def identified(events: Iterable[tuple[bytes, int]], identifiers: Identifiers) -> list[bytes]:
    """Encoded events, each given with its number, with identifiers in them.

    Where an activity has none, it gets that of its number and its time; nothing else is changed.
    """
    stamp, run, head = -1, -1, b""
    whole: list[bytes] = []
    for encoded, number in events:
        if encoded[_ID_AT : _ID_AT + 1] != _NIL:
            whole.append(encoded)
            continue
        (at,) = _unpack_float(encoded, len(encoded) - 8)
        if int(at * 1000) != stamp or number // RUN != run:
            stamp, run, head = identifiers.head(number, at)
            head = _TO_ID + head
        whole.append(head + TAILS[number // STEP % _TAILS] + encoded[_ID_AT + 1 :])
    return whole


def iso(seconds: float) -> str:
    """Epoch *seconds* as ISO 8601 in UTC with milliseconds, as Per writes its times."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
