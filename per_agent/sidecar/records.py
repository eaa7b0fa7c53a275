"""Events as nearly all come: their JSON read straight into its fields, with nothing to be said against them.

Whatever does not fit in here is read again the long way (`event_from_record`, `new_meter_event`), which knows what
else is good, and tells what is wrong with the rest. What fits comes to the very same event on either way.
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from per_agent.event import Activity, MeterEvent

_Text = Annotated[str, Meta(min_length=1)]
_Name = Annotated[str, Meta(min_length=1, max_length=64)]
_Identifier = Annotated[str, Meta(min_length=1, max_length=255)]
_Moment = Annotated[float, Meta(ge=0, lt=1e11)]
_Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Decimal = Annotated[str, Meta(pattern=r"^-?[0-9]+(\.[0-9]+)?\Z", max_length=128)] | _Int
_Labels = dict[str, str | _Int | bool | None]

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError)
"""What reading JSON may raise."""

_encode_json: Final = msgspec.json.encode


class ActivityRecord(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An activity in our own form."""

    billing_id: _Text
    user_id: _Text
    activity_type_id: _Text
    id: _Identifier | None = None
    at: _Moment | None = None
    type: Literal["activity"] = "activity"  # may be left out, but is no null

    def event(self, identifier: str, now: float, livemode: bool | None) -> Activity:  # noqa: ARG002  (as a meter event's)
        """The event, which is called *identifier*."""
        at = self.at
        return Activity(
            identifier, self.billing_id, self.user_id, self.activity_type_id, now if at is None else at
        )


class MeterRecord(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A meter event in our own form."""

    event_name: _Name
    customer_id: _Text
    value: _Decimal
    id: _Identifier | None = msgspec.field(default=None, name="identifier")
    timestamp: _Moment | None = None
    subscription_id: _Text | None = None
    metadata: _Labels | None = None
    livemode: bool | None = None
    type: Literal["meter"] = "meter"  # as an activity's

    def event(self, identifier: str, now: float, livemode: bool | None) -> MeterEvent:
        """The event, which is called *identifier*; *livemode* where it brings none."""
        return MeterEvent(
            identifier,
            self.event_name,
            self.customer_id,
            str(self.value),
            now if self.timestamp is None else self.timestamp,
            self.subscription_id,
            None if self.metadata is None else _encode_json(self.metadata).decode(),
            None,
            livemode if self.livemode is None else self.livemode,
        )


class _Payload(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    customer_id: _Text
    value: _Decimal
    subscription_id: _Text | None = None


class PaymentKitRecord(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A meter event in Payment Kit's form. `livemode` may stand there, and is not read."""

    event_name: _Name
    identifier: _Identifier
    payload: _Payload
    timestamp: _Moment | None = None
    metadata: _Labels | None = None
    livemode: bool | None = None

    def event(self, now: float, livemode: bool | None) -> MeterEvent:
        """The event in the mode *livemode*."""
        payload = self.payload
        return MeterEvent(
            self.identifier,
            self.event_name,
            payload.customer_id,
            str(payload.value),
            now if self.timestamp is None else self.timestamp,
            payload.subscription_id,
            None if self.metadata is None else _encode_json(self.metadata).decode(),
            None,
            livemode,
        )


Record = ActivityRecord | MeterRecord

Plain = Sequence[ActivityRecord] | Sequence[MeterRecord]

_ACTIVITIES: Final = msgspec.json.Decoder(ActivityRecord)
_METER_EVENTS: Final = msgspec.json.Decoder(MeterRecord)
_LISTED_ACTIVITIES: Final = msgspec.json.Decoder(list[ActivityRecord])
_LISTED_METER_EVENTS: Final = msgspec.json.Decoder(list[MeterRecord])
_PAYMENT_KIT: Final = msgspec.json.Decoder(PaymentKitRecord)


def read(content: bytes) -> Record | None:
    """The one event that *content* is, if it is that simple."""
    try:
        return (_METER_EVENTS if b'"event_name"' in content else _ACTIVITIES).decode(content)
    except UNREADABLE:
        return None


def read_lines(content: bytes) -> Plain | None:
    """The events of one kind that the lines of *content* are, if they all are that simple."""
    try:
        return (_METER_EVENTS if b'"event_name"' in content else _ACTIVITIES).decode_lines(content)
    except UNREADABLE:
        return None


def read_list(content: bytes) -> Plain | None:
    """The events of one kind that *content* lists, if they all are that simple."""
    try:
        return (_LISTED_METER_EVENTS if b'"event_name"' in content else _LISTED_ACTIVITIES).decode(content)
    except UNREADABLE:
        return None


def read_payment_kit(content: bytes) -> PaymentKitRecord | None:
    """The meter event in Payment Kit's form that *content* is, if it is that simple."""
    try:
        return _PAYMENT_KIT.decode(content)
    except UNREADABLE:
        return None
