"""The words that everyone uses: the two kinds of event, their identifiers, and the receipt for one."""

from per_agent.event.check import RECORDS, event_from_record, new_activity, new_meter_event
from per_agent.event.identifiers import STEP, Identifiers
from per_agent.event.kinds import (
    MAX_EVENT_BYTES,
    Activity,
    Event,
    MeterEvent,
    check_length,
    decode,
    encode,
    encode_fields,
    identified,
    iso,
)
from per_agent.event.receipt import Progress, Receipt, Ticket

__all__ = [
    "MAX_EVENT_BYTES",
    "RECORDS",
    "STEP",
    "Activity",
    "Event",
    "Identifiers",
    "MeterEvent",
    "Progress",
    "Receipt",
    "Ticket",
    "check_length",
    "decode",
    "encode",
    "encode_fields",
    "event_from_record",
    "identified",
    "iso",
    "new_activity",
    "new_meter_event",
]
