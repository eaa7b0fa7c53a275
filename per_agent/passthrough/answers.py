"""An upstream's answer to a caller: its JSON as it came, or the `UpstreamError` that it means."""

from collections.abc import Mapping
from typing import Any

import msgspec

from per_agent.destinations.http import REPORT_LIMIT, Answer, Upstream
from per_agent.destinations.payment_kit import is_gateway_404
from per_agent.destinations.per import is_bad_token
from per_agent.errors import RateLimited, Refused, Unauthorized, Unavailable, UpstreamError


def value_of(answer: Answer, upstream: Upstream, call: str) -> Any:
    """The JSON value of a 2xx *answer*. Raises the `UpstreamError` that any other one means."""
    if not 200 <= answer.status < 300:
        raise _failure(answer, upstream, call)
    try:
        return answer.json()
    except ValueError:
        words = "the answer is longer than is read" if answer.overrun else upstream.words(answer)
        words = f"what answered is not {upstream.name}: {words}"
        raise Unavailable(upstream.name, call, words, status=answer.status) from None


def _failure(answer: Answer, upstream: Upstream, call: str) -> UpstreamError:
    words = upstream.words(answer)
    kind: type[UpstreamError] = Refused
    if answer.status == 429:
        kind = RateLimited
    elif answer.is_passing:
        kind = Unavailable
    elif answer.status < 400:
        kind, words = Unavailable, "redirected: the address is wrong, or the access key lapsed"
    elif is_gateway_404(answer):
        kind, words = Unauthorized, "a gateway's 404, which hides a lapsed access key or a missing role"
    elif answer.status in (401, 403, 407) or is_bad_token(answer) or "access token found" in words.lower():
        kind = Unauthorized
    return kind(upstream.name, call, words, status=answer.status, retry_after=answer.retry_after)


class PaymentKitCalls:
    """Calls to one Payment Kit. `livemode` stands in each query: in a body it is not read.

    *livemode* is for calls that name no mode themselves; None leaves it to who answers.
    """

    def __init__(self, upstream: Upstream, livemode: bool | None) -> None:
        self._upstream = upstream
        self._livemode = livemode

    def get(self, path: str, filters: Mapping[str, Any], *, call: str | None = None) -> Any:
        """The answer to a GET. *call* names it in errors where *path* holds an id."""
        asked = {**given(livemode=self._livemode), **filters}
        query = [(name, _text(name, value)) for name, value in asked.items()]
        answer = self._upstream.ask("GET", path, query, limit=REPORT_LIMIT)
        return value_of(answer, self._upstream, call or f"GET {path}")

    def put(self, path: str, fields: Mapping[str, Any], *, call: str) -> Any:
        return self._write("PUT", path, fields, call)

    def post(self, path: str, fields: Mapping[str, Any]) -> Any:
        return self._write("POST", path, fields, f"POST {path}")

    def _write(self, method: str, path: str, fields: Mapping[str, Any], call: str) -> Any:
        livemode = fields.get("livemode", self._livemode)
        body = msgspec.json.encode({name: value for name, value in fields.items() if name != "livemode"})
        query = () if livemode is None else (("livemode", _text("livemode", livemode)),)
        answer = self._upstream.ask(method, path, query, body, limit=REPORT_LIMIT)
        return value_of(answer, self._upstream, call)


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"{name} must be text, a number or a bool, not {type(value).__name__}")


def given(**fields: Any) -> dict[str, Any]:
    """The *fields* that the caller gave: those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
