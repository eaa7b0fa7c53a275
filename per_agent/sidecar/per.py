"""Per's own wire form: `activities.add`, by GET as Per documents it, and by POST for those who write by writing.

The forms are those of Per's documentation v1 (https://useper.com/documentation/v1/activity): the parameters
`billingId`, `userId`, `activityTypeId`, and `{"ok": true, "result": {"transactionId": …}}` as the answer. The
transaction id is the event's identifier here. An error is a 4xx, where Per answers 200 with `ok: false`: its
clients read `ok` in both, and all others see at once that nothing was taken.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from per_agent.errors import InvalidEvent
from per_agent.event import Activity, new_activity
from per_agent.sidecar.answer import Answer
from per_agent.sidecar.answers import NOTHING, Taken, taken, wants_stored
from per_agent.sidecar.asked import Asked
from per_agent.sidecar.problems import Problem, invalid
from per_agent.sidecar.query import parameters
from per_agent.sidecar.service import Service

_NAMES: Final = {"billing_id": "billingId", "user_id": "userId", "activity_type_id": "activityTypeId"}
LIMIT: Final = 256 * 1024  # bytes; an activity takes three names
_decode = msgspec.json.Decoder().decode


def take(service: Service, asked: Asked, query: bytes, content: bytes) -> Taken:
    """Take one activity in. Raises `Problem`."""
    fields: dict[str, Any] = parameters(query)
    stored = wants_stored(fields.pop("wait", None), service)
    if asked.method == "POST":
        fields |= _posted(content, asked)
    try:
        event = _activity(service, fields)
        receipt = taken(service, event)
    except InvalidEvent as error:
        raise invalid(error, _NAMES) from None
    # The identifier was made here: there is nothing in it that JSON would escape.
    content = b'{"ok":true,"result":{"transactionId":"%b"}}' % event.id.encode()
    return Answer(200, content), [receipt] if stored else NOTHING


def _activity(service: Service, fields: Mapping[str, Any]) -> Activity:
    now = time.time()
    billing, user, kind = fields.get("billingId"), fields.get("userId"), fields.get("activityTypeId")
    # Of nearly all there is nothing to be said.
    if type(billing) is str and type(user) is str and type(kind) is str and billing and user and kind:
        return Activity(service.new_id(now), billing, user, kind, now)
    return new_activity(billing, user, kind, None, service.new_id(now), now)  # type: ignore[arg-type]  # it says what is wrong


def _posted(content: bytes, asked: Asked) -> dict[str, Any]:
    """The fields of a form or of a JSON object; curl sends both as a form, so the content is looked at."""
    content = content.strip()
    if not content:
        return {}
    if asked.kind == b"application/json" or content[:1] == b"{":
        try:
            fields = _decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(400, f"the body is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise Problem(400, "the body must be a JSON object")
        return fields
    if asked.kind in (b"application/x-www-form-urlencoded", b""):
        return parameters(content)
    raise Problem(415, "the body must be a form (application/x-www-form-urlencoded) or application/json")
