"""The upstreams' own forms of an event, answered at once: `/activities.add` and `/api/meter-events`."""

from typing import Any, Final

from per_agent.sidecar.openapi.events import FIELDS
from per_agent.sidecar.openapi.intake import WAIT
from per_agent.sidecar.openapi.refusals import TO_ALL, TO_BODIES, TO_STRANGERS, refused

_ACTIVITY_FIELDS: Final[dict[str, str]] = {
    "billingId": "The customer who is billed.",
    "userId": "The user, within that customer.",
    "activityTypeId": "What kind of activity is counted.",
}
_ACTIVITY_EXAMPLE: Final = {"billingId": "acme", "userId": "u-17", "activityTypeId": "active-users"}
_METER_EVENT_EXAMPLE: Final = {
    "event_name": "api.calls.v1",
    "identifier": "order-4711-line-2",
    "timestamp": 1700000000,
    "payload": {"customer_id": "cus_9", "value": "3"},
}
_TEXT: Final[dict[str, Any]] = {"type": "string"}

_ACTIVITY: Final[dict[str, Any]] = {
    "type": "object",
    "description": "An activity as Per takes it.",
    "required": list(_ACTIVITY_FIELDS),
    "properties": {
        name: {**FIELDS["name"], "description": words} for name, words in _ACTIVITY_FIELDS.items()
    },
    "examples": [_ACTIVITY_EXAMPLE],
}

SCHEMAS: Final[dict[str, Any]] = {
    "PerActivity": _ACTIVITY,
    "PerActivityForm": {
        **_ACTIVITY,
        "description": "An activity as Per takes it, each field once.",
        "additionalProperties": _TEXT,
    },
    "PerAccepted": {
        "type": "object",
        "required": ["ok", "result"],
        "properties": {
            "ok": {"type": "boolean", "const": True},
            "result": {
                "type": "object",
                "required": ["transactionId"],
                "properties": {"transactionId": {**_TEXT, "description": "The event's identifier."}},
                "additionalProperties": False,
            },
        },
        "additionalProperties": False,
        "examples": [{"ok": True, "result": {"transactionId": "0190f6e2-5b3a-7000-8000-3d1c0b7f9a21"}}],
    },
    "PaymentKitMeterEvent": {
        "type": "object",
        "description": "A meter event as Payment Kit takes it.",
        "required": ["event_name", "identifier", "payload"],
        "properties": {
            "event_name": FIELDS["event_name"],
            "identifier": {**FIELDS["identifier"], "type": "string"},
            "timestamp": FIELDS["time"],
            "payload": {
                "type": "object",
                "required": ["customer_id", "value"],
                "properties": {
                    "customer_id": {**FIELDS["name"], "description": "The customer, by id or DID."},
                    "value": FIELDS["value"],
                    "subscription_id": FIELDS["optional_name"],
                },
                "additionalProperties": False,
            },
            "metadata": FIELDS["labels"],
            "source_data": FIELDS["source"],
            "livemode": {"description": "Not read, as Payment Kit does not read it: the query says it."},
        },
        "additionalProperties": False,
        "examples": [_METER_EVENT_EXAMPLE],
    },
    "PaymentKitAccepted": {
        "type": "object",
        "description": "The meter event as Payment Kit would show it just after it was made.",
        "required": [
            "id", "object", "event_name", "payload", "identifier", "timestamp", "livemode", "status",
            "credit_consumed", "credit_pending", "metadata", "source_data", "created_via", "created_at",
            "updated_at",
        ],
        "properties": {
            "id": {**_TEXT, "description": "The identifier: Payment Kit's own id comes later."},
            "object": {"type": "string", "const": "meter_event"},
            "event_name": _TEXT,
            "payload": {
                "type": "object",
                "required": ["customer_id", "value", "subscription_id"],
                "properties": {
                    "customer_id": _TEXT,
                    "value": _TEXT,
                    "subscription_id": {"type": ["string", "null"]},
                },
            },
            "identifier": _TEXT,
            "timestamp": {"type": "integer", "description": "Epoch seconds."},
            "livemode": {"type": "boolean"},
            "status": {"type": "string", "const": "pending"},
            "credit_consumed": {"type": "string", "const": "0"},
            "credit_pending": {"type": "string", "const": "0"},
            "metadata": {"type": "object"},
            "source_data": {"type": ["object", "array", "null"]},
            "created_via": {"type": "string", "const": "api"},
            "created_at": {"type": "string", "format": "date-time"},
            "updated_at": {"type": "string", "format": "date-time"},
        },
        "additionalProperties": False,
    },
}  # fmt: skip


def _accepted(schema: str, words: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"200": {"description": words, "content": content}}


_PER: Final[dict[str, Any]] = {
    "tags": ["wire forms"],
    "security": [{"token": []}, {"activityToken": []}, {"proxyToken": []}],
}
_PER_ANSWERS: Final[dict[str, Any]] = {
    **_accepted("PerAccepted", "Accepted."),
    **refused("Per", *TO_ALL, *TO_STRANGERS, 405, 504),
}
_POSTED: Final[dict[str, Any]] = {
    kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": _ACTIVITY_EXAMPLE}
    for kind, schema in (
        ("application/x-www-form-urlencoded", "PerActivityForm"),
        ("application/json", "PerActivity"),
    )
}

PATHS: Final[dict[str, Any]] = {
    "/activities.add": {
        "get": {
            **_PER,
            "operationId": "addActivityByQuery",
            "summary": "An activity in Per's form.",
            "description": "A writing GET, as Per has it: keep caches and prefetching away from it.",
            "parameters": [
                *(
                    {
                        "name": name,
                        "in": "query",
                        "required": True,
                        "description": words,
                        "schema": FIELDS["name"],
                        "example": _ACTIVITY_EXAMPLE[name],
                    }
                    for name, words in _ACTIVITY_FIELDS.items()
                ),
                WAIT,
            ],
            "responses": _PER_ANSWERS,
        },
        "post": {
            **_PER,
            "operationId": "addActivity",
            "summary": "An activity in Per's form, written by a method that writes.",
            "description": "The fields may stand in the query, too; those of the body win.",
            "parameters": [WAIT],
            "requestBody": {
                "required": True,
                "content": _POSTED,
            },
            "responses": {**_PER_ANSWERS, **refused("Per", *TO_BODIES)},
        },
    },
    "/api/meter-events": {
        "get": {
            "operationId": "listMeterEvents",
            "tags": ["wire forms"],
            "security": [{"token": []}, {"accessKey": []}, {"proxyToken": []}],
            "summary": "Stored meter events: Payment Kit's answer, or the ledger's where none is configured.",
            "description": "As Payment Kit documents it, its parameters included.",
            "responses": {
                "200": {
                    "description": "A page of events.",
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                **refused("PaymentKit", *TO_ALL, *TO_STRANGERS),
            },
        },
        "post": {
            "operationId": "addMeterEvent",
            "tags": ["wire forms"],
            "security": [{"token": []}, {"accessKey": []}, {"proxyToken": []}],
            "summary": "A meter event in Payment Kit's form.",
            "description": "The same identifier again is answered alike, and accepted once.",
            "parameters": [
                {
                    "name": "livemode",
                    "in": "query",
                    "description": "Live or test mode; left out, that of the destination.",
                    "schema": {"type": "boolean"},
                },
                WAIT,
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"$ref": "#/components/schemas/PaymentKitMeterEvent"},
                        "example": _METER_EVENT_EXAMPLE,
                    }
                },
            },
            "responses": {
                **_accepted("PaymentKitAccepted", "Accepted; it is delivered later."),
                **refused("PaymentKit", *TO_ALL, *TO_STRANGERS, *TO_BODIES, 504),
            },
        },
    },
}
