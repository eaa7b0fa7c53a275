"""The OpenAPI document of the sidecar's own endpoints, served at `/openapi.json`.

It is written by hand and not derived from handlers: it is what clients of other languages are generated from,
and so a promise, and tests hold the running sidecar to it. What passes through to the upstreams
(`/reports.get`, all of `/api/` but the meter events) is documented by them.
"""

from per_agent.sidecar.openapi.document import document, routes

__all__ = ["document", "routes"]
