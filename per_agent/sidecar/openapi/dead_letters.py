"""`/v1/dead-letters` and what is below it."""

from typing import Any, Final

from per_agent.sidecar.openapi.refusals import TO_ALL, TO_BODIES, TO_STRANGERS, refused

_TEXT: Final[dict[str, Any]] = {"type": "string"}
_COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 0}
_ID: Final[dict[str, Any]] = {**_TEXT, "description": "The identifier of an event."}
_AGE: Final[dict[str, Any]] = {"type": "number", "minimum": 0, "maximum": 1e10}
_FILTERS: Final[dict[str, dict[str, Any]]] = {
    "destination": {**_TEXT, "minLength": 1, "description": "The destination that refused."},
    "reason": {
        **_TEXT,
        "minLength": 1,
        "description": "Part of the reason or of the upstream's words, in any case of letters.",
    },
    "meter": {**_TEXT, "minLength": 1, "description": "The event name of meter events."},
    "older_than": {**_AGE, "description": "Letters that are older than so many seconds."},
    "newer_than": {**_AGE, "description": "Letters that are not older than so many seconds."},
}
_WAYS: Final[dict[str, dict[str, Any]]] = {
    "ids": {"type": "array", "items": _ID, "minItems": 1},
    **_FILTERS,
}

SCHEMAS: Final[dict[str, Any]] = {
    "DeadLetter": {
        "type": "object",
        "description": "An event that its destination refused for good.",
        "required": [
            "id", "destination", "reason", "words", "attempts", "at", "spool", "number", "event",
        ],
        "properties": {
            "id": {**_ID, "type": ["string", "null"]},
            "destination": _TEXT,
            "reason": {**_TEXT, "description": "Why, in one word or few."},
            "words": {**_TEXT, "description": "What the upstream said."},
            "attempts": {**_COUNT, "description": "How often it was offered."},
            "at": {"type": "string", "format": "date-time"},
            "spool": _TEXT,
            "number": _COUNT,
            "event": {
                "description": "The event; null where this version cannot read it.",
                "anyOf": [{"$ref": "#/components/schemas/Event"}, {"type": "null"}],
            },
        },
        "additionalProperties": False,
    },
    "DeadLetterPage": {
        "type": "object",
        "required": ["total", "dead_letters", "next"],
        "properties": {
            "total": {**_COUNT, "description": "Letters that are meant, when the first page was asked for."},
            "dead_letters": {"type": "array", "items": {"$ref": "#/components/schemas/DeadLetter"}},
            "next": {
                "type": ["string", "null"],
                "description": "Goes into `after` for the next page; null on the last.",
            },
        },
        "additionalProperties": False,
    },
    "DeadLettersOfEvent": {
        "type": "object",
        "description": "One for each destination that refused the event for good.",
        "required": ["dead_letters"],
        "properties": {
            "dead_letters": {
                "type": "array",
                "minItems": 1,
                "items": {"$ref": "#/components/schemas/DeadLetter"},
            }
        },
        "additionalProperties": False,
    },
    "DeadLetterChoice": {
        "description": "Which dead letters: those that all that is given fits, or `all` of them.",
        "anyOf": [
            {
                "type": "object",
                "properties": {**_WAYS, "all": {"type": "boolean", "const": False}},
                "anyOf": [{"required": [way]} for way in _WAYS],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "required": ["all"],
                "properties": {"all": {"type": "boolean", "const": True}},
                "additionalProperties": False,
            },
        ],
        "examples": [{"ids": ["order-4711-line-2"]}, {"destination": "per", "older_than": 86400}, {"all": True}],
    },
}  # fmt: skip


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


_CHOSEN: Final[list[dict[str, Any]]] = [
    {**_parameter("id", {"type": "array", "items": _ID}), "style": "form", "explode": True},
    *(_parameter(name, schema) for name, schema in _FILTERS.items()),
]


def _answer(schema: dict[str, Any], words: str) -> dict[str, Any]:
    return {
        "200": {"description": words, "content": {"application/json": {"schema": schema}}},
        **refused("Problem", *TO_ALL, *TO_STRANGERS, 405),
    }


def _export() -> dict[str, Any]:
    lines = {
        "schema": {"type": "string", "description": "One event a line, as `/v1/events` takes them."},
    }
    responses = _answer({}, "The events.")
    responses["200"] = {"description": "The events.", "content": {"application/x-ndjson": lines}}
    return {
        "get": {
            "operationId": "exportDeadLetters",
            "tags": ["dead letters"],
            "summary": "The events of dead letters, all of them, to be recorded again under the same identifiers.",
            "description": "The letters stay where they are. What this version cannot read is left out.",
            "parameters": _CHOSEN,
            "responses": responses,
        }
    }


def _change(verb: str, done: str, summary: str) -> dict[str, Any]:
    counted = {
        "type": "object",
        "required": [done],
        "properties": {done: {**_COUNT, "description": "Letters that were still there."}},
        "additionalProperties": False,
    }
    return {
        "post": {
            "operationId": f"{verb}DeadLetters",
            "tags": ["dead letters"],
            "summary": summary,
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/DeadLetterChoice"}}
                },
            },
            "responses": {**_answer(counted, "Done."), **refused("Problem", *TO_BODIES)},
        }
    }


PATHS: Final[dict[str, Any]] = {
    "/v1/dead-letters": {
        "get": {
            "operationId": "listDeadLetters",
            "tags": ["dead letters"],
            "summary": "The dead letters, a page at a time, oldest first.",
            "parameters": [
                *_CHOSEN,
                _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
                _parameter("after", {**_TEXT, "description": "The `next` of the page before."}),
            ],
            "responses": _answer({"$ref": "#/components/schemas/DeadLetterPage"}, "A page."),
        }
    },
    "/v1/dead-letters.ndjson": _export(),
    "/v1/dead-letters/{id}": {
        "get": {
            "operationId": "getDeadLetters",
            "tags": ["dead letters"],
            "summary": "The dead letters of one event.",
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {**_ID, "minLength": 1}}],
            "responses": {
                **_answer({"$ref": "#/components/schemas/DeadLettersOfEvent"}, "The letters."),
                **refused("Problem", 404),
            },
        }
    },
    "/v1/dead-letters/requeue": _change("requeue", "requeued", "Send dead letters again."),
    "/v1/dead-letters/purge": _change("purge", "purged", "Delete dead letters; the books count them."),
}
