"""What schemathesis has to be told of: how NDJSON is written."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(_: Any, value: Any) -> bytes:
    """One JSON value a line; what is no list is one line."""
    values = value if isinstance(value, list) else [value]
    return b"\n".join(json.dumps(each, default=str).encode("utf-8", "replace") for each in values)
