"""How a request is refused: the answers that operations share, in each wire form's shape."""

from typing import Any, Final

HEADERS: Final[dict[str, Any]] = {
    "RetryAfter": {
        "description": "Seconds after which there may be room.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "Allow": {
        "description": "The methods that the path takes.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Challenge": {
        "description": "The scheme of the credential that is wanted.",
        "required": True,
        "schema": {"type": "string"},
    },
}

_FIELD_ERRORS: Final[dict[str, Any]] = {
    "type": "object",
    "description": "For each field what is wrong with it.",
    "additionalProperties": {"type": "string"},
    "examples": [{"user_id": "is missing"}],
}

SCHEMAS: Final[dict[str, Any]] = {
    "FieldErrors": _FIELD_ERRORS,
    "Problem": {
        "type": "object",
        "description": "What went wrong (RFC 9457).",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "const": "about:blank"},
            "title": {"type": "string", "description": "The status in words."},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string", "description": "One sentence for whoever reads the client's log."},
            "errors": {"$ref": "#/components/schemas/FieldErrors"},
        },
        "examples": [
            {
                "type": "about:blank",
                "title": "Bad Request",
                "status": 400,
                "detail": "the event is not valid",
                "errors": {"user_id": "is missing"},
            }
        ],
    },
    "PerError": {
        "type": "object",
        "description": "What went wrong, as Per's clients read it.",
        "required": ["ok", "error"],
        "properties": {
            "ok": {"type": "boolean", "const": False},
            "error": {"type": "string", "description": "Field and problem, or a sentence."},
            "message": {"type": "string", "description": "With 401 only, where Per has its word."},
        },
        "additionalProperties": False,
        "examples": [{"ok": False, "error": "userId: is missing"}],
    },
    "PaymentKitError": {
        "type": "object",
        "description": "What went wrong, as Payment Kit's clients read it.",
        "required": ["error"],
        "properties": {"error": {"type": "string", "description": "Fields and problems, or a sentence."}},
        "additionalProperties": False,
        "examples": [{"error": "payload.value: is missing"}],
    },
}

_WORDS: Final[dict[int, str]] = {
    400: "Something in the request is wrong; the answer says what.",
    401: "The credential is missing or wrong. Nothing was accepted.",
    404: "There is nothing by this name.",
    405: "The path does not take this method.",
    408: "The request took longer than `request_timeout` to arrive. Nothing was accepted.",
    413: "The body is too large, as it came or unpacked. Nothing was accepted.",
    414: "The URL is longer than 32 KiB.",
    415: "The content type or the content encoding is not understood. Nothing was accepted.",
    421: "The `Host` is not a name of the sidecar's.",
    431: "The headers are longer than 64 KiB, or more than 100.",
    503: "There is no room, the sidecar is stopping, or too many connections are open. Nothing more was accepted.",
    504: "Accepted, but not stored within `stored_timeout`; it is stored when the disk answers.",
}
_BY_FORM: Final[dict[str, tuple[str, str]]] = {
    "Problem": ("application/problem+json", "Problem"),
    "Per": ("application/json", "PerError"),
    "PaymentKit": ("application/json", "PaymentKitError"),
}
_WITH: Final[dict[int, tuple[str, str]]] = {
    401: ("WWW-Authenticate", "Challenge"),
    405: ("Allow", "Allow"),
    503: ("Retry-After", "RetryAfter"),
}
# The form of HTTP itself is at fault, or there is no connection to spare: no handler has seen the request.
_IN_PLAIN_TEXT: Final = frozenset({400, 503})
_ONLY_PLAIN_TEXT: Final = frozenset({408, 414, 431})
_PLAIN_TEXT: Final[dict[str, Any]] = {"text/plain": {"schema": {"type": "string"}}}

TO_ALL: Final = (400, 408, 414, 431, 503)
"""What may happen to any request."""
TO_STRANGERS: Final = (401, 421)
"""What may happen where a credential is asked for."""
TO_BODIES: Final = (413, 415)
"""What may happen to a request with a body."""


def _response(status: int, form: str) -> dict[str, Any]:
    kind, schema = _BY_FORM[form]
    content = {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    if status in _ONLY_PLAIN_TEXT:
        content = _PLAIN_TEXT
    elif status in _IN_PLAIN_TEXT:
        content = content | _PLAIN_TEXT
    response: dict[str, Any] = {"description": _WORDS[status], "content": content}
    if status in _WITH:
        name, header = _WITH[status]
        response["headers"] = {name: {"$ref": f"#/components/headers/{header}"}}
    return response


RESPONSES: Final[dict[str, Any]] = {
    f"{form}{status}": _response(status, form) for form in _BY_FORM for status in _WORDS
}


def refused(form: str, *statuses: int) -> dict[str, Any]:
    """The responses of an operation in *form* (`Problem`, `Per` or `PaymentKit`) that is refused so."""
    return {str(status): {"$ref": f"#/components/responses/{form}{status}"} for status in sorted(statuses)}
