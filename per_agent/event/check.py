"""The border: what callers and files bring becomes an event, or an `InvalidEvent` with every problem named."""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from per_agent.errors import InvalidEvent
from per_agent.event.kinds import Activity, Event, MeterEvent

_MAX_SECONDS: Final = (
    1e11  # the year 5138 in seconds, but 1973 in milliseconds: what lies above is no epoch second
)
_MAX_VALUE_CHARS: Final = 128  # in plain notation; keeps Decimal("1E+999999") from becoming a megabyte
_MAX_NAME: Final = 64  # Payment Kit's limit for a meter's event_name
_MAX_IDENTIFIER: Final = 255  # Payment Kit's limit for identifier
_MAX_DEPTH: Final = 32  # of metadata; far below the recursion limit
_PLAIN_DECIMAL: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def _plain_kind(value: object) -> object:
    """The plain form of what passed as JSON and is more than that: other mappings, subclasses of str and int."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"{_kind(value)} is not JSON")


_encode_json = msgspec.json.Encoder(decimal_format="number", enc_hook=_plain_kind).encode


def new_activity(
    billing_id: str,
    user_id: str,
    activity_type_id: str,
    at: object,
    id: str,
    now: float,
) -> Activity:
    """An activity, checked. *at* None means *now*. Raises `InvalidEvent` with every problem named."""
    check = _Check()
    event = Activity(
        check.text("id", id, _MAX_IDENTIFIER),
        check.text("billing_id", billing_id),
        check.text("user_id", user_id),
        check.text("activity_type_id", activity_type_id),
        now if at is None else check.moment("at", at),
    )
    check.raise_problems()
    return event


def new_meter_event(  # noqa: PLR0913  (the event's own fields, as the public surface names them)
    event_name: str,
    customer_id: str,
    value: object,
    *,
    identifier: str,
    now: float,
    subscription_id: str | None = None,
    timestamp: object = None,
    metadata: Mapping[str, Any] | None = None,
    source_data: Any = None,
    livemode: Any = None,
) -> MeterEvent:
    """A meter event, checked. *timestamp* None means *now*. Raises `InvalidEvent` with every problem named."""
    check = _Check()
    event = MeterEvent(
        check.text("identifier", identifier, _MAX_IDENTIFIER),
        check.text("event_name", event_name, _MAX_NAME),
        check.text("customer_id", customer_id),
        check.decimal("value", value),
        now if timestamp is None else check.moment("timestamp", timestamp),
        None if subscription_id is None else check.text("subscription_id", subscription_id),
        None if metadata is None else check.json("metadata", metadata, dict),
        None if source_data is None else check.json("source_data", source_data, (dict, list)),
        livemode,
    )
    if livemode is not None and type(livemode) is not bool:
        check.problems["livemode"] = f"must be true or false, not {_kind(livemode)}"
    check.raise_problems()
    return event


_RECORD_FIELDS: Final = {
    "activity": frozenset({"id", "billing_id", "user_id", "activity_type_id", "at"}),
    "meter": frozenset(
        {
            "identifier", "event_name", "customer_id", "value", "timestamp",
            "subscription_id", "metadata", "source_data", "livemode",
        }
    ),
}  # fmt: skip


def event_from_record(
    record: object,
    *,
    id: str,
    now: float,
    livemode: bool | None = None,
) -> Event:
    """The event that a JSON object describes, as `Event.as_record` writes it.

    `type` may be left out: an object with `event_name` is a meter event. *id*, *now* and *livemode* serve where
    the record brings none. Numbers should have been read as `Decimal` (`RECORDS` does), so that they stay exact.
    Raises `InvalidEvent` with every problem named, unknown fields included.
    """
    if not isinstance(record, dict):
        raise InvalidEvent({"event": f"must be a JSON object, not {_kind(record)}"})
    fields = dict(record)
    kind = fields.pop("type", "meter" if "event_name" in fields else "activity")
    known = _RECORD_FIELDS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise InvalidEvent({"type": f'must be "activity" or "meter", not {kind!r}'})
    problems = {
        str(field): f"is not a field of {'an activity' if kind == 'activity' else 'a meter event'}"
        for field in fields.keys() - known
    }
    given = {field: fields.get(field) for field in known}
    try:
        event: Event
        if kind == "activity":
            given["id"] = id if given["id"] is None else given["id"]
            event = new_activity(**given, now=now)  # type: ignore[arg-type]  # unchecked input: that is what it checks
        else:
            given["identifier"] = id if given["identifier"] is None else given["identifier"]
            given["livemode"] = livemode if given["livemode"] is None else given["livemode"]
            event = new_meter_event(**given, now=now)  # type: ignore[arg-type]  # as above
    except InvalidEvent as error:
        problems |= error.problems
    if problems:
        raise InvalidEvent(problems)
    return event


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond 10**18; no ValueError, so msgspec would let it through
        raise ValueError(f"a number of this size cannot be read: {text[:40]}") from None


RECORDS: Final = msgspec.json.Decoder(float_hook=_number)
"""Reads JSON without a float on the way: `{"value": 0.1}` is exactly one tenth."""


class _Check:
    """Collects what is wrong with an event; each method gives the value in its kept form."""

    __slots__ = ("problems",)

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def raise_problems(self) -> None:
        if self.problems:
            raise InvalidEvent(self.problems)

    def text(self, field: str, value: object, longest: int | None = None) -> str:
        if not isinstance(value, str):
            self.problems[field] = "is missing" if value is None else f"must be a string, not {_kind(value)}"
            return ""
        if not value:
            self.problems[field] = "must not be empty"
        elif longest is not None and len(value) > longest:
            self.problems[field] = f"is {len(value)} characters long, at most {longest} are taken"
        return str.__str__(
            value
        )  # not str(value): of a `class Plan(str, Enum)` that is "Plan.PRO", not "pro"

    def decimal(self, field: str, value: object) -> str:
        problem = None
        plain = ""
        if value is None:
            problem = "is missing"
        elif isinstance(value, bool):
            problem = "must be a number, not a bool"
        elif isinstance(value, float):
            problem = (
                f'is a float, which is not exact: give an int, a Decimal, or a string such as "{value!r}"'
            )
        elif isinstance(value, int | Decimal):
            plain, problem = _plain(value)
        elif isinstance(value, str):
            plain = str.__str__(value)
            if len(value) > _MAX_VALUE_CHARS:
                problem = f"is {len(value)} characters long, at most {_MAX_VALUE_CHARS} are taken"
            elif _PLAIN_DECIMAL.fullmatch(value) is None:
                problem = f'must be a plain decimal such as "0.001", not {value!r}'
        else:
            problem = f"must be an int, a Decimal or a decimal string, not {_kind(value)}"
        if problem is not None:
            self.problems[field] = problem
        return plain

    def moment(self, field: str, value: object) -> float:
        if isinstance(value, datetime):
            if value.utcoffset() is None:
                self.problems[field] = "is a datetime without a zone: give it one, such as datetime.now(UTC)"
                return 0.0
            value = value.timestamp()
        if isinstance(value, str):
            try:
                parsed = datetime.fromisoformat(value)
            except ValueError:
                self.problems[field] = f"must be ISO 8601 with a zone, or epoch seconds, not {value!r}"
                return 0.0
            return self.moment(field, parsed)
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            self.problems[field] = f"must be a datetime with a zone or epoch seconds, not {_kind(value)}"
            return 0.0
        try:
            seconds = float(value)
        except (OverflowError, ValueError):  # an int beyond all floats; a signalling NaN
            seconds = math.nan
        if not math.isfinite(seconds) or seconds < 0:
            self.problems[field] = f"must be seconds since 1970, not {seconds}"
            return 0.0
        if seconds >= _MAX_SECONDS:
            self.problems[field] = f"must be in seconds, and {seconds:.0f} looks like milliseconds or finer"
            return 0.0
        return seconds

    def json(self, field: str, value: object, outer: type | tuple[type, ...]) -> str | None:
        if not isinstance(value, outer) and not (outer is dict and isinstance(value, Mapping)):
            self.problems[field] = (
                f"must be a JSON {'object' if outer is dict else 'object or list'}, not {_kind(value)}"
            )
            return None
        problem = _json_problem(value, field, _MAX_DEPTH)
        if problem is None:
            try:
                return _encode_json(value).decode()
            except (UnicodeEncodeError, TypeError, ValueError, OverflowError) as error:
                problem = f"cannot be written as JSON: {error}"
        self.problems[field] = problem
        return None


def _plain(value: int | Decimal) -> tuple[str, str | None]:
    """*value* in plain notation, never by way of float, and what is wrong with it."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            return "", f"must be a finite number, not {value}"
        _, digits, exponent = value.as_tuple()
        assert isinstance(exponent, int)
        # Looked at first, so that the text below is never a megabyte.
        huge = max(len(digits), abs(exponent)) > _MAX_VALUE_CHARS
        plain = "" if huge else format(value, "f")
    else:
        huge = value.bit_length() > _MAX_VALUE_CHARS * 4  # more than 3.33 bits for each digit
        plain = "" if huge else str(int(value))
    if huge or len(plain) > _MAX_VALUE_CHARS:
        return "", f"is longer than {_MAX_VALUE_CHARS} characters in plain notation"
    return plain, None


def _json_problem(value: object, path: str, depth: int) -> str | None:
    """What keeps *value* from being JSON, with the path to it; None where nothing does."""
    problem: str | None = None
    if depth == 0:
        problem = f"{path} is nested deeper than {_MAX_DEPTH} levels"
    elif value is None or isinstance(value, bool | int | str):
        problem = None
    elif isinstance(value, float | Decimal):
        # A Decimal beyond all floats is refused too: many a JSON reader cannot read it.
        finite = (not isinstance(value, Decimal) or value.is_finite()) and math.isfinite(value)
        problem = None if finite else f"{path} is {value}, which JSON does not have"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                problem = f"{path} has the key {key!r}, and JSON keys are strings"
            else:
                problem = _json_problem(item, f"{path}.{key}", depth - 1)
            if problem is not None:
                break
    elif isinstance(value, list | tuple):
        problems = (_json_problem(item, f"{path}[{at}]", depth - 1) for at, item in enumerate(value))
        problem = next((found for found in problems if found is not None), None)
    else:
        problem = f"{path} is {_kind(value)}, which JSON does not have"
    return problem


def _kind(value: object) -> str:
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"
