"""Per's own wire form: `activities.add`, by GET as Per documents it, and by POST for those who write by writing.

The forms are those of Per's documentation v1 (https://useper.com/documentation/v1/activity): the parameters
`billingId`, `userId`, `activityTypeId`, and `{"ok": true, "result": {"transactionId": …}}` as the answer. The
transaction id is the event's identifier here. An error is a 4xx, where Per answers 200 with `ok: false`: its
clients read `ok` in both, and all others see at once that nothing was taken.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from per_agent.errors import InvalidEvent
from per_agent.sidecar import body
from per_agent.sidecar.answers import Answer, json_answer, taken, until_stored, wants_stored
from per_agent.sidecar.problems import Problem, invalid
from per_agent.sidecar.query import parameters
from per_agent.sidecar.service import Service

_NAMES: Final = {"billing_id": "billingId", "user_id": "userId", "activity_type_id": "activityTypeId"}
_LIMIT: Final = 256 * 1024  # bytes; an activity takes three names
_decode = msgspec.json.Decoder().decode


async def add(
    service: Service, scope: Mapping[str, Any], given: Mapping[bytes, bytes], receive: body.Receive
) -> Answer:
    """Take one activity in. Raises `Problem`."""
    fields: dict[str, Any] = dict(parameters(scope["query_string"]))
    stored = wants_stored(fields.pop("wait", None), service)
    if scope["method"] == "POST":
        fields |= _posted(await body.read(receive, given, _LIMIT), given)
    try:
        receipt = taken(
            service.agent.add_activity,
            fields.get("billingId"),
            fields.get("userId"),
            fields.get("activityTypeId"),
        )
    except InvalidEvent as error:
        raise invalid(error, _NAMES) from None
    if stored:
        await until_stored(service, [receipt])
    return json_answer(200, {"ok": True, "result": {"transactionId": receipt.id}})


def _posted(content: bytes, given: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The fields of a form or of a JSON object; curl sends both as a form, so the content is looked at."""
    content = content.strip()
    if not content:
        return {}
    kind = given.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind == b"application/json" or content[:1] == b"{":
        try:
            fields = _decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(400, f"the body is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise Problem(400, "the body must be a JSON object")
        return fields
    if kind in (b"application/x-www-form-urlencoded", b""):
        return parameters(content)
    raise Problem(415, "the body must be a form (application/x-www-form-urlencoded) or application/json")
