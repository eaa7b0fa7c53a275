"""What went wrong with a request, in the shape that the clients of each wire form read."""

import http
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from per_agent.errors import InvalidEvent
from per_agent.sidecar.answer import JSON, Answer

PROBLEM_JSON: Final = b"application/problem+json"

_encode = msgspec.json.encode


class Problem(Exception):
    """A request that is answered with an error.

    Attributes:
        status: the HTTP status.
        detail: one sentence for the person who reads the client's log.
        errors: for each field what is wrong with it.
        headers: further headers of the answer, such as `retry-after`.
        extra: further members of a problem document.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = dict(errors or {})
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    @property
    def words(self) -> str:
        """All of it in one line: fields and what is wrong with them, else the detail."""
        return "; ".join(f"{field}: {problem}" for field, problem in self.errors.items()) or self.detail


def invalid(error: InvalidEvent, names: Mapping[str, str] | None = None) -> Problem:
    """An event that is not one: 400, its fields under the *names* that the wire form gives them."""
    called = names or {}
    errors = {called.get(field, field): problem for field, problem in error.problems.items()}
    return Problem(400, "the event is not valid", errors=errors)


def answer(problem: Problem, path: str, request_id: bytes = b"") -> Answer:
    """*problem* as the clients of the wire form of *path* read it."""
    if path in ("/activities.add", "/reports.get"):
        document, media_type = _per(problem), JSON
    elif path.startswith("/api/"):
        document, media_type = {"error": problem.words}, JSON
    else:
        document, media_type = _native(problem), PROBLEM_JSON
    headers = [(name.encode(), value.encode("latin-1")) for name, value in problem.headers.items()]
    if request_id:
        headers.append((b"x-request-id", request_id))
    return Answer(problem.status, _encode(document), media_type, tuple(headers))


def _per(problem: Problem) -> dict[str, Any]:
    # Per's documentation v1 answers a bad token with `message`, all else with `error`; clients read either.
    if problem.status == 401:
        return {"ok": False, "error": "invalid_auth_token", "message": "invalid_auth_token"}
    return {"ok": False, "error": problem.words}


def _native(problem: Problem) -> dict[str, Any]:
    """RFC 9457, with the fields as `errors`."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": http.HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.errors:
        document["errors"] = problem.errors
    return document | problem.extra
