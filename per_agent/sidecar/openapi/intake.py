"""`/v1/events`: our own form."""

from typing import Any, Final

from per_agent.sidecar.openapi.refusals import TO_ALL, TO_BODIES, TO_STRANGERS, refused

WAIT: Final[dict[str, Any]] = {
    "name": "wait",
    "in": "query",
    "description": "`stored`: answer once the events are on the disk and survive power loss. Left out, it is what"
    " `[sidecar] answer_when` says, `accepted` by default.",
    "schema": {"type": "string", "enum": ["accepted", "stored"]},
}

_EVENT: Final = {"$ref": "#/components/schemas/Event"}
_ACTIVITY: Final = {"billing_id": "acme", "user_id": "u-17", "activity_type_id": "active-users"}
_METER_EVENT: Final = {
    "identifier": "order-4711-line-2",
    "event_name": "api.calls.v1",
    "customer_id": "cus_9",
    "value": "3",
}
_IDS: Final[dict[str, Any]] = {
    "type": "array",
    "description": "The identifiers, in the order of the request; null for an event that was not accepted.",
    "items": {"type": ["string", "null"]},
}
_ACCEPTED: Final[dict[str, Any]] = {
    "type": "integer",
    "minimum": 0,
    "description": "Events in the agent's hands, those that it had before under their identifiers included.",
}
_REJECTED: Final[dict[str, Any]] = {
    "type": "array",
    "minItems": 1,
    "items": {"$ref": "#/components/schemas/Rejection"},
}

SCHEMAS: Final[dict[str, Any]] = {
    "Accepted": {
        "type": "object",
        "required": ["accepted", "ids", "stored"],
        "properties": {
            "accepted": {**_ACCEPTED, "minimum": 1},
            "ids": {**_IDS, "items": {"type": "string"}, "minItems": 1},
            "stored": {"type": "boolean", "description": "Whether the answer waited for the disk."},
        },
        "additionalProperties": False,
        "examples": [{"accepted": 1, "ids": ["order-4711-line-2"], "stored": False}],
    },
    "PartlyAccepted": {
        "type": "object",
        "required": ["accepted", "ids", "rejected", "stored"],
        "properties": {
            "accepted": {**_ACCEPTED, "minimum": 1},
            "ids": _IDS,
            "rejected": _REJECTED,
            "stored": {"type": "boolean", "description": "Whether the answer waited for the disk."},
        },
        "additionalProperties": False,
        "examples": [
            {
                "accepted": 1,
                "ids": ["order-4711-line-2", None],
                "rejected": [{"position": 1, "errors": {"user_id": "is missing"}}],
                "stored": False,
            }
        ],
    },
    "Rejection": {
        "type": "object",
        "description": "An event that was not accepted.",
        "required": ["position", "errors"],
        "properties": {
            "position": {
                "type": "integer",
                "minimum": 0,
                "description": "In the array, or among the lines that are not blank; from 0.",
            },
            "line": {"type": "integer", "minimum": 1, "description": "With NDJSON only; from 1."},
            "errors": {"$ref": "#/components/schemas/FieldErrors"},
        },
        "additionalProperties": False,
    },
    "EventsProblem": {
        "description": "A problem, and what became of the events; `errors` for a single one.",
        "allOf": [
            {"$ref": "#/components/schemas/Problem"},
            {
                "type": "object",
                "properties": {"accepted": _ACCEPTED, "ids": _IDS, "rejected": _REJECTED},
            },
        ],
    },
}


def _problem(status: int, words: str, **more: Any) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/EventsProblem"}}}
    if status != 504:  # all others may also come from below the application
        content["text/plain"] = {"schema": {"type": "string"}}
    return {str(status): {"description": words, "content": content, **more}}


PATHS: Final[dict[str, Any]] = {
    "/v1/events": {
        "post": {
            "operationId": "addEvents",
            "tags": ["events"],
            "summary": "Hand events over: one, an array of them, or one a line.",
            "description": (
                "The good events of a request are accepted, and the bad ones are listed by their position."
                " The body may be gzip (`Content-Encoding: gzip`) and may come in chunks."
            ),
            "parameters": [WAIT],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"anyOf": [_EVENT, {"type": "array", "items": _EVENT, "minItems": 1}]},
                        "examples": {
                            "activity": {"value": _ACTIVITY},
                            "meter event": {"value": _METER_EVENT},
                            "several": {"value": [_ACTIVITY, _METER_EVENT]},
                        },
                    },
                    "application/x-ndjson": {
                        "schema": {
                            "type": "string",
                            "description": "One event a line, each as JSON; blank lines do not count.",
                        },
                        "examples": {
                            "two": {
                                "value": (
                                    '{"billing_id":"acme","user_id":"u-17","activity_type_id":"active-users"}\n'
                                    '{"event_name":"api.calls.v1","customer_id":"cus_9","value":"3"}\n'
                                )
                            }
                        },
                    },
                },
            },
            "responses": {
                "202": {
                    "description": "All events are accepted.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}},
                },
                "207": {
                    "description": "Some events are accepted; the others are listed.",
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/PartlyAccepted"}}
                    },
                },
                **refused("Problem", *TO_ALL, *TO_STRANGERS, *TO_BODIES, 405),
                **_problem(400, "No event is valid, or the request is not; nothing was accepted."),
                **_problem(
                    503,
                    "There is no room, or the sidecar is stopping. What `ids` names was accepted until then;"
                    " send the rest again after `Retry-After` seconds.",
                    headers={"Retry-After": {"$ref": "#/components/headers/RetryAfter"}},
                ),
                **_problem(504, "Accepted, but not stored within `stored_timeout`."),
            },
        }
    }
}
