"""The schemas of events: what is checked at the border, as far as JSON Schema can say it."""

from typing import Any, Final

_TIME: Final[dict[str, Any]] = {
    "description": "When it happened: epoch seconds, or ISO 8601 with a zone. Left out, it is now.",
    "anyOf": [
        {"type": "number", "minimum": 0, "exclusiveMaximum": 1e11},
        {"type": "string", "format": "date-time"},
        {"type": "null"},
    ],
}
_VALUE: Final[dict[str, Any]] = {
    "description": (
        "How much was used: an exact decimal. Text keeps every digit in every language; a number is read by its"
        " digits, too, and never as a float. At most 128 characters in plain notation."
    ),
    "anyOf": [
        {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$", "maxLength": 128},
        {"type": "number"},
    ],
}
_LABELS: Final[dict[str, Any]] = {
    "type": ["object", "null"],
    "description": "Labels of yours; at most 32 levels deep.",
}
_SOURCE: Final[dict[str, Any]] = {
    "type": ["object", "array", "null"],
    "description": "Where it comes from, for people: text by name, or a list of entries.",
}
_NAME: Final[dict[str, Any]] = {"type": "string", "minLength": 1}
_OPTIONAL_NAME: Final[dict[str, Any]] = {"type": ["string", "null"], "minLength": 1}
_IDENTIFIER: Final[dict[str, Any]] = {
    "type": ["string", "null"],
    "minLength": 1,
    "maxLength": 255,
    "description": (
        "Yours, unique over all events for ever, so that a repeat is counted once; left out, one is made."
    ),
}

FIELDS: Final[dict[str, dict[str, Any]]] = {
    "time": _TIME,
    "value": _VALUE,
    "labels": _LABELS,
    "source": _SOURCE,
    "name": _NAME,
    "optional_name": _OPTIONAL_NAME,
    "event_name": {
        **_NAME,
        "maxLength": 64,
        "description": "The event name of a meter.",
    },
    "identifier": _IDENTIFIER,
}
"""What fields of events are, for the forms in which they come."""

_ACTIVITY: Final[dict[str, Any]] = {
    "type": "object",
    "title": "Activity",
    "description": "One user of one billed customer was active.",
    "required": ["billing_id", "user_id", "activity_type_id"],
    "properties": {
        "type": {"type": "string", "const": "activity"},
        "id": _IDENTIFIER,
        "billing_id": {**_NAME, "description": "The customer who is billed."},
        "user_id": {**_NAME, "description": "The user, within that customer."},
        "activity_type_id": {**_NAME, "description": "What kind of activity is counted."},
        "at": _TIME,
    },
    "additionalProperties": False,
    "examples": [{"billing_id": "acme", "user_id": "u-17", "activity_type_id": "active-users"}],
}
_METER_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "title": "Meter event",
    "description": "A customer used something that is metered.",
    "required": ["event_name", "customer_id", "value"],
    "properties": {
        "type": {"type": "string", "const": "meter"},
        "identifier": _IDENTIFIER,
        "event_name": FIELDS["event_name"],
        "customer_id": {**_NAME, "description": "The customer, by the upstream's id or DID."},
        "value": _VALUE,
        "timestamp": _TIME,
        "subscription_id": _OPTIONAL_NAME,
        "metadata": _LABELS,
        "source_data": _SOURCE,
        "livemode": {
            "type": ["boolean", "null"],
            "description": "Live or test mode; left out, that of the destination.",
        },
    },
    "additionalProperties": False,
    "examples": [
        {
            "identifier": "order-4711-line-2",
            "event_name": "api.calls.v1",
            "customer_id": "cus_9",
            "value": "3",
            "timestamp": 1700000000,
            "metadata": {"region": "eu"},
        }
    ],
}

SCHEMAS: Final[dict[str, Any]] = {
    "Activity": _ACTIVITY,
    "MeterEvent": _METER_EVENT,
    "Event": {
        "description": "One event; at most 64 KiB as it is kept.",
        "anyOf": [{"$ref": "#/components/schemas/Activity"}, {"$ref": "#/components/schemas/MeterEvent"}],
    },
}
