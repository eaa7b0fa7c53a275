"""Operators' endpoints: health, state, books and metrics; `dead_letters` has the rest."""

from typing import Any, Final

from per_agent.sidecar.openapi import dead_letters
from per_agent.sidecar.openapi.refusals import TO_ALL, TO_STRANGERS, refused

_COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 0}
_COUNT_OR_NONE: Final[dict[str, Any]] = {"type": ["integer", "null"], "minimum": 0}
_TEXT: Final[dict[str, Any]] = {"type": "string"}
_TEXT_OR_NONE: Final[dict[str, Any]] = {"type": ["string", "null"]}
_AGE: Final[dict[str, Any]] = {"type": ["number", "null"], "minimum": 0, "description": "Seconds."}
_MOMENT: Final[dict[str, Any]] = {"type": "string", "format": "date-time"}
_SENTENCES: Final[dict[str, Any]] = {"type": "array", "items": _TEXT}

_BOOKS_WORDS: Final[dict[str, str]] = {
    "accepted": "Events taken in for this destination.",
    "delivered": "Events that the destination took, or already had.",
    "dead": "Events that the destination refused for good, less those requeued; purged ones stay counted.",
    "dropped": "Events given up under an overflow policy that the operator chose.",
    "pending": "Events still to be delivered, parked ones included.",
    "purged": "Those of `dead` whose dead letter was deleted.",
}


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An object with exactly these members."""
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
        **more,
    }


_MONTH_END: Final = _object(
    {
        "month": {
            "type": "string",
            "pattern": "^[0-9]{4}-[0-9]{2}$",
            "description": "The present one, in UTC.",
        },
        "ends_at": _MOMENT,
        "seconds_left": {"type": "number", "minimum": 0},
        "pending": {
            **_COUNT,
            "description": "Pending events that were recorded in this month, and must arrive before its end.",
        },
        "missed": {**_COUNT, "description": "Pending events that were recorded in a month that has ended."},
    }
)
_DESTINATION: Final = _object(
    {
        "configured": {
            "type": ["boolean", "null"],
            "description": "Whether the configuration in force has it.",
        },
        "live": {"type": "boolean", "description": "Whether a running process delivers to it."},
        "state": {"type": ["string", "null"], "enum": ["open", "retrying", "halted", None]},
        "reason": _TEXT_OR_NONE,
        "since": {**_MOMENT, "type": ["string", "null"]},
        "failures": _COUNT_OR_NONE,
        "no_answer": {
            **_COUNT_OR_NONE,
            "description": "How often an event was sent and not answered, so that nobody knows whether it was taken.",
        },
        "books": {"$ref": "#/components/schemas/Books"},
        "waiting": _COUNT,
        "parked": _COUNT,
        "parkings": {
            "type": "array",
            "description": "What events wait for that is not time, such as a meter that is not active.",
            "items": _object({"key": _TEXT, "reason": _TEXT, "since": _MOMENT}),
        },
        "dead_letters": _COUNT,
        "damaged": _COUNT,
        "oldest_pending_seconds": _AGE,
        "oldest_waiting_seconds": _AGE,
        "late_total": {
            **_COUNT_OR_NONE,
            "description": "Events that were delivered more than an hour after they happened; null for a"
            " destination that does not count them when they arrive.",
        },
        "period_crossed_total": {
            **_COUNT_OR_NONE,
            "description": "Events that were delivered in another UTC month than they happened, and are counted"
            " there; null as above.",
        },
        "month_end": {"anyOf": [_MONTH_END, {"type": "null"}], "description": "Null as above."},
    }
)

SCHEMAS: Final[dict[str, Any]] = {
    "Books": _object(
        {
            **{name: {**_COUNT, "description": words} for name, words in _BOOKS_WORDS.items()},
            "balanced": {"type": "boolean", "description": "accepted = delivered + dead + dropped + pending"},
        }
    ),
    "AllBooks": _object(
        {
            "balanced": {"type": "boolean"},
            "destinations": {
                "type": "object",
                "additionalProperties": {"$ref": "#/components/schemas/Books"},
            },
            "problems": {**_SENTENCES, "description": "What does not add up."},
            "set_aside": {**_SENTENCES, "description": "What became of damaged spools."},
            "spools": _COUNT,
        }
    ),
    "Destination": _DESTINATION,
    "Status": _object(
        {
            "data_dir": _TEXT,
            "bytes_used": _COUNT,
            "destinations": {
                "type": "object",
                "additionalProperties": {"$ref": "#/components/schemas/Destination"},
            },
            "spools": {
                "type": "array",
                "items": _object(
                    {
                        "id": _TEXT,
                        "folder": _TEXT,
                        "held": {"type": "boolean"},
                        "bytes_used": _COUNT,
                        "pending": _COUNT,
                        "dead_letters": _COUNT,
                    }
                ),
            },
            "warnings": {**_SENTENCES, "description": "What will not go on by itself."},
            "problems": {**_SENTENCES, "description": "What does not add up."},
            "sidecar": _object(
                {
                    "version": _TEXT_OR_NONE,
                    "pid": {"type": "integer", "minimum": 1},
                    "started_at": _MOMENT,
                    "listeners": {"type": "array", "items": _TEXT},
                    "ready": {"type": "boolean"},
                    "trouble": _TEXT_OR_NONE,
                    "journal_trouble": {
                        **_TEXT_OR_NONE,
                        "description": "Why an accepted event is in memory only until it is stored.",
                    },
                }
            ),
        }
    ),
    "Health": _object({"status": {"type": "string", "const": "ok"}}),
    "Ready": _object({"status": {"type": "string", "const": "ready"}}),
    "Unready": _object(
        {"status": {"type": "string", "const": "unready"}, "reasons": {**_SENTENCES, "minItems": 1}}
    ),
    **dead_letters.SCHEMAS,
}


def _get(id: str, summary: str, schema: dict[str, Any], words: str, **more: Any) -> dict[str, Any]:
    return {
        "get": {
            "operationId": id,
            "tags": ["operations"],
            "summary": summary,
            "responses": {
                "200": {"description": words, "content": {"application/json": {"schema": schema}}},
                **refused("Problem", *TO_ALL, *TO_STRANGERS, 405),
            },
            **more,
        }
    }


def _named(schema: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _for_probes(path: dict[str, Any], **responses: Any) -> dict[str, Any]:
    """*path* without a credential, since probes bring none."""
    told = {status: each for status, each in path["get"]["responses"].items() if status != "401"}
    return {"get": {**path["get"], "security": [], "responses": {**told, **responses}}}


_UNREADY: Final[dict[str, Any]] = {
    "description": "It does not accept or not store; or too many connections are open.",
    "content": {
        "application/json": {"schema": _named("Unready")},
        "text/plain": {"schema": _TEXT},
    },
}
_METRICS: Final[dict[str, Any]] = _get("getMetrics", "Metrics for Prometheus.", {}, "The metrics.")
_METRICS["get"]["responses"]["200"]["content"] = {
    "text/plain": {"schema": _TEXT},
    "application/openmetrics-text": {"schema": _TEXT},
}

PATHS: Final[dict[str, Any]] = {
    "/v1/status": _get(
        "getStatus", "How it is doing, destination by destination.", _named("Status"), "The state."
    ),
    "/v1/books": _get(
        "getBooks",
        "The books: the counts that prove that nothing was lost.",
        _named("AllBooks"),
        "The books; `balanced` says whether they add up.",
    ),
    **dead_letters.PATHS,
    "/healthz": _for_probes(
        _get("getHealth", "Whether it is alive.", _named("Health"), "It answers; no more is said by that.")
    ),
    "/readyz": _for_probes(
        _get("getReadiness", "Whether it accepts and stores.", _named("Ready"), "It does."),
        **{"503": _UNREADY},
    ),
    "/metrics": _METRICS,
    "/openapi.json": _get(
        "getOpenapi",
        "This document.",
        {"type": "object", "required": ["openapi", "info", "paths"]},
        "The document.",
    ),
}
