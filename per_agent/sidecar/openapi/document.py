"""The document put together, and the route that serves it."""

from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from per_agent.sidecar.openapi import events, intake, operations, refusals, wire_forms
from per_agent.version import version

_PACKAGE: Final = "per-agent"

_DESCRIPTION: Final = """\
The agent as a daemon: it takes billable events in, keeps them on disk, and delivers them to their destinations \
with retries. An answer means that the events are in its hands; `?wait=stored` answers after they survive power \
loss.

**Who may use it.** On the Unix socket, whoever can open its file; no token is asked for. On TCP a bearer token, \
and a `Host` that is the sidecar's.

**Retries.** Give events identifiers of your own, and send them again as they were after a connection that broke, \
a 503 or a 504: the same identifier is counted once. A 503 says in `Retry-After` when there may be room.

**Bounds.** A request line and headers of 64 KiB, 100 headers, a URL of 32 KiB, a body of `max_body` (8 MiB by \
default) before and after unpacking, 64 KiB for one event. A request that is refused for its form, before it is \
understood, is answered in `text/plain`, and the connection is closed.

**Tracing.** An `X-Request-Id` of up to 64 letters, digits and `._:-` comes back with the answer.
"""


def document(release: str) -> dict[str, Any]:
    """The whole document, for the package's version, *release*."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "per-agent sidecar",
            "version": release,
            "summary": "Takes billable usage events over HTTP; never in the way, nothing lost, nothing doubled.",
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The sidecar that served this document."}],
        "security": [{"token": []}, {"proxyToken": []}],
        "tags": [
            {"name": "events", "description": "Events in our own form."},
            {
                "name": "wire forms",
                "description": "For clients of the upstreams, which need another base URL.",
            },
            {"name": "operations", "description": "For operators: health, state, books, metrics."},
            {"name": "dead letters", "description": "Events that their destination refused for good."},
        ],
        "paths": {**intake.PATHS, **wire_forms.PATHS, **operations.PATHS},
        "components": {
            "schemas": {
                **events.SCHEMAS,
                **intake.SCHEMAS,
                **wire_forms.SCHEMAS,
                **operations.SCHEMAS,
                **refusals.SCHEMAS,
            },
            "responses": refusals.RESPONSES,
            "headers": refusals.HEADERS,
            "securitySchemes": _SECURITY,
        },
    }


def routes() -> list[BaseRoute]:
    """`/openapi.json`."""
    content = msgspec.json.encode(document(version()))

    async def show(_: Request) -> Response:
        return Response(content, media_type="application/json")

    return [Route("/openapi.json", show)]


_SECURITY: Final[dict[str, Any]] = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "The sidecar's token: the configured one, else that of `sidecar.token` in the data folder.",
    },
    "proxyToken": {
        "type": "apiKey",
        "in": "header",
        "name": "Proxy-Authorization",
        "description": "`Bearer TOKEN`, for callers whose `Authorization` is meant for an upstream.",
    },
    "activityToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "The Per token with the scope `activity` that is configured.",
    },
    "accessKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "The Payment Kit access key that is configured.",
    },
}
