"""The border: exact values or a refusal that names every problem, and identifiers that nobody else has."""

import enum
import json
import math
import subprocess
import sys
import threading
import types
import uuid
from collections import UserDict
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from per_agent.errors import InvalidEvent, PerAgentError
from per_agent.event import (
    MAX_EVENT_BYTES,
    RECORDS,
    Activity,
    Identifiers,
    MeterEvent,
    check_length,
    decode,
    encode,
    encode_fields,
    event_from_record,
    identified,
    iso,
    new_activity,
    new_meter_event,
)

NOW = 1_700_000_000.25
LONGEST_VALUE = 128  # characters


def activity(billing_id="acme", user_id="u-1", activity_type_id="active", at=None):
    return new_activity(billing_id, user_id, activity_type_id, at, id="id-1", now=NOW)


def meter_event(event_name="api.calls", customer_id="cus-1", value: object = 1, **fields):
    return new_meter_event(
        event_name, customer_id, value, identifier=fields.pop("identifier", "id-1"), now=NOW, **fields
    )


def problems_of(make, *args, **kwargs) -> dict[str, str]:
    with pytest.raises(InvalidEvent) as caught:
        make(*args, **kwargs)
    assert caught.value.problems
    for field, problem in caught.value.problems.items():
        assert f"{field}: {problem}" in str(caught.value)
    return caught.value.problems


# Every problem named, all at once


def test_a_valid_activity_is_taken_as_it_is():
    assert activity() == Activity("id-1", "acme", "u-1", "active", NOW)


def test_a_valid_meter_event_is_taken_as_it_is():
    event = meter_event(
        value="0.50",
        subscription_id="sub-1",
        timestamp=12,
        metadata={"a": 1},
        source_data=[1],
        livemode=False,
    )
    assert event == MeterEvent("id-1", "api.calls", "cus-1", "0.50", 12.0, "sub-1", '{"a":1}', "[1]", False)


def test_an_invalid_event_is_ours_and_a_value_error():
    assert issubclass(InvalidEvent, PerAgentError)
    assert issubclass(InvalidEvent, ValueError)


def test_all_problems_of_an_activity_are_named_at_once():
    problems = problems_of(new_activity, "", None, 7, "yesterday", id="", now=NOW)
    assert problems == {
        "id": "must not be empty",
        "billing_id": "must not be empty",
        "user_id": "is missing",
        "activity_type_id": "must be a string, not an int",
        "at": "must be ISO 8601 with a zone, or epoch seconds, not 'yesterday'",
    }


def test_all_problems_of_a_meter_event_are_named_at_once():
    problems = problems_of(
        new_meter_event, "x" * 65, b"cus", 0.5,
        identifier="i" * 256, now=NOW, subscription_id="", timestamp=True, metadata=[], source_data="s", livemode=1,
    )  # fmt: skip
    assert problems.keys() == {
        "identifier", "event_name", "customer_id", "value", "subscription_id", "timestamp", "metadata",
        "source_data", "livemode",
    }  # fmt: skip
    assert problems["event_name"] == "is 65 characters long, at most 64 are taken"
    assert problems["identifier"] == "is 256 characters long, at most 255 are taken"
    assert problems["customer_id"] == "must be a string, not a bytes"
    assert problems["timestamp"] == "must be a datetime with a zone or epoch seconds, not a bool"
    assert problems["metadata"] == "must be a JSON object, not a list"
    assert problems["source_data"] == "must be a JSON object or list, not a str"
    assert problems["livemode"] == "must be true or false, not an int"


def test_the_longest_names_are_taken():
    event = meter_event(event_name="x" * 64, identifier="i" * 255)
    assert (len(event.event_name), len(event.id)) == (64, 255)


class Plan(str, enum.Enum):  # noqa: UP042  (not StrEnum: of this one, str() is the name of the member)
    PRO = "pro"


def test_a_text_enum_counts_as_its_value_and_not_as_its_name():
    assert activity(billing_id=Plan.PRO) == Activity("id-1", "pro", "u-1", "active", NOW)
    event = meter_event(customer_id=Plan.PRO, metadata={"plan": Plan.PRO})
    assert (event.customer_id, event.metadata) == ("pro", '{"plan":"pro"}')
    assert type(activity(billing_id=Plan.PRO, at=1).billing_id) is str


# Values


def exact(value: object) -> Decimal:
    event = meter_event(value=value)
    assert "e" not in event.value.lower()
    return Decimal(event.value)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**60), max_value=10**60, places=40))
@example(Decimal("1E+100"))
@example(Decimal("1E-100"))
@example(Decimal("0E-60"))
@example(Decimal("0." + "3" * 126))
@example(Decimal("7" * LONGEST_VALUE))
@example(Decimal("0.1") + Decimal("0.2"))
def test_a_decimal_is_kept_exactly_and_never_with_an_exponent(value):
    with localcontext(prec=3):  # the caller's context has no say in it
        kept = meter_event(value=value)
    assert exact(value) == value
    assert Decimal(kept.value) == value
    assert Decimal(decode(encode(kept)).value) == value


@given(st.integers(min_value=-(10**127) + 1, max_value=10**128 - 1))
def test_an_int_is_kept_exactly(value):
    assert meter_event(value=value).value == str(value)


@given(st.from_regex(r"-?[0-9]{1,60}(\.[0-9]{1,60})?", fullmatch=True))
def test_a_plain_decimal_string_is_kept_letter_by_letter(value):
    assert meter_event(value=value).value == value


@given(st.floats())
def test_a_float_is_refused_and_told_why_and_what_to_give(value):
    (problem,) = problems_of(meter_event, value=value).values()
    assert (
        problem == f'is a float, which is not exact: give an int, a Decimal, or a string such as "{value!r}"'
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "is missing"),
        (True, "must be a number, not a bool"),
        (Decimal("NaN"), "must be a finite number, not NaN"),
        (Decimal("sNaN"), "must be a finite number, not sNaN"),
        (Decimal("Infinity"), "must be a finite number, not Infinity"),
        (Decimal("-Infinity"), "must be a finite number, not -Infinity"),
        (Decimal("1E+999999"), "is longer than 128 characters in plain notation"),
        (Decimal("1E-999999"), "is longer than 128 characters in plain notation"),
        (Decimal("1" * 129), "is longer than 128 characters in plain notation"),
        (10**128, "is longer than 128 characters in plain notation"),
        pytest.param(10**100_000, "is longer than 128 characters in plain notation", id="10**100_000"),
        ("1" * 129, "is 129 characters long, at most 128 are taken"),
        ("1e3", "must be a plain decimal such as \"0.001\", not '1e3'"),
        ("NaN", "must be a plain decimal such as \"0.001\", not 'NaN'"),
        ("Infinity", "must be a plain decimal such as \"0.001\", not 'Infinity'"),
        ("", "must be a plain decimal such as \"0.001\", not ''"),
        (" 1", "must be a plain decimal such as \"0.001\", not ' 1'"),
        ("1\n", "must be a plain decimal such as \"0.001\", not '1\\n'"),
        ("1_000", "must be a plain decimal such as \"0.001\", not '1_000'"),
        ("+1", "must be a plain decimal such as \"0.001\", not '+1'"),
        (".5", "must be a plain decimal such as \"0.001\", not '.5'"),
        ("٣", "must be a plain decimal such as \"0.001\", not '٣'"),
        (b"1", "must be an int, a Decimal or a decimal string, not a bytes"),
        (1j, "must be an int, a Decimal or a decimal string, not a complex"),
    ],
)
def test_a_value_that_is_no_plain_number_is_refused(value, words):
    assert problems_of(meter_event, value=value) == {"value": words}


# Moments


@pytest.mark.parametrize(
    "at",
    [
        1_700_000_000,
        1_700_000_000.0,
        Decimal(1700000000),
        datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        datetime(2023, 11, 15, 3, 43, 20, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        "2023-11-14T22:13:20Z",
        "2023-11-15T03:43:20+05:30",
        "20231114T221320Z",
    ],
)
def test_a_moment_may_be_given_in_seconds_as_datetime_or_as_iso_8601(at):
    assert activity(at=at).at == 1_700_000_000.0
    assert meter_event(timestamp=at).timestamp == 1_700_000_000.0


def test_a_moment_that_is_not_given_is_now():
    assert activity().at == NOW
    assert meter_event().timestamp == NOW


def test_the_epoch_itself_is_a_moment():
    assert activity(at=0).at == 0.0


@pytest.mark.parametrize("at", [datetime(2023, 11, 14), "2023-11-14", "2023-11-14T22:13:20", datetime.now()])  # noqa: DTZ001, DTZ005  (naive ones are what is refused)
def test_a_time_without_a_zone_is_refused_as_nobody_knows_when_it_is(at):
    (problem,) = problems_of(activity, at=at).values()
    assert problem == "is a datetime without a zone: give it one, such as datetime.now(UTC)"


@pytest.mark.parametrize("at", [1_700_000_000_000, 1_700_000_000_000_000, 1e11, Decimal(10**12)])
def test_milliseconds_are_refused_and_not_taken_for_a_year_far_away(at):
    (problem,) = problems_of(activity, at=at).values()
    assert "milliseconds" in problem


@pytest.mark.parametrize(
    "at",
    [
        -1,
        float("nan"),
        float("inf"),
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal(-1),
        10**400,
        -(10**400),
        "1969-12-31T23:59:59Z",
    ],
)
def test_a_number_that_is_no_time_is_refused(at):
    (problem,) = problems_of(activity, at=at).values()
    assert problem.startswith("must be seconds since 1970")


@pytest.mark.parametrize("at", [True, b"2023", [], object()])
def test_something_that_is_no_time_is_refused(at):
    (problem,) = problems_of(activity, at=at).values()
    assert problem.startswith("must be a datetime with a zone or epoch seconds, not a")


def test_iso_writes_milliseconds_in_utc():
    assert iso(1_700_000_000.25) == "2023-11-14T22:13:20.250Z"


# Metadata


class Thing:
    pass


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"a": {"b": [1, float("nan")]}}, "metadata.a.b[1] is nan, which JSON does not have"),
        ({"a": float("inf")}, "metadata.a is inf, which JSON does not have"),
        ({"a": Decimal("NaN")}, "metadata.a is NaN, which JSON does not have"),
        ({"a": Decimal("sNaN")}, "metadata.a is sNaN, which JSON does not have"),
        ({"a": [{"b": Thing()}]}, "metadata.a[0].b is a Thing, which JSON does not have"),
        ({"a": b"bytes"}, "metadata.a is a bytes, which JSON does not have"),
        ({"a": {1, 2}}, "metadata.a is a set, which JSON does not have"),
        ({"a": {7: "x"}}, "metadata.a has the key 7, and JSON keys are strings"),
        ({None: 1}, "metadata has the key None, and JSON keys are strings"),
    ],
)
def test_what_is_wrong_with_metadata_is_named_with_its_path(metadata, words):
    assert problems_of(meter_event, metadata=metadata) == {"metadata": words}


def test_metadata_that_contains_itself_is_refused_and_does_not_run_away():
    metadata: dict[str, object] = {}
    metadata["self"] = metadata
    (problem,) = problems_of(meter_event, metadata=metadata).values()
    assert "nested deeper than 32 levels" in problem


def test_source_data_may_be_a_list_and_metadata_may_not():
    assert meter_event(source_data=[{"a": 1}]).source_data == '[{"a":1}]'
    problems_of(meter_event, metadata=[{"a": 1}])


@pytest.mark.parametrize("mapping", [types.MappingProxyType({"a": 1}), UserDict(a=1)])
def test_any_mapping_of_labels_is_taken_at_any_depth(mapping):
    event = meter_event(metadata=mapping, source_data=[mapping])
    assert (event.metadata, event.source_data) == ('{"a":1}', '[{"a":1}]')


def test_decimals_in_metadata_stay_exact_numbers():
    event = meter_event(metadata={"price": Decimal("0.10000000000000000000000000001"), "big": 2**70})
    assert event.metadata == '{"price":0.10000000000000000000000000001,"big":1180591620717411303424}'


def test_what_the_caller_does_to_its_dict_after_the_call_changes_nothing():
    metadata = {"a": {"b": [1, 2]}}
    source = [{"x": 1}]
    event = meter_event(metadata=metadata, source_data=source)
    metadata["a"]["b"].append(3)
    metadata.clear()
    source[0]["x"] = 2
    assert (event.metadata, event.source_data) == ('{"a":{"b":[1,2]}}', '[{"x":1}]')


# Encoding

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
seconds = st.floats(min_value=0, max_value=99_999_999_999, allow_nan=False)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
flat_values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(texts, scalars, max_size=3)
json_values = (
    flat_values | st.lists(flat_values, max_size=3) | st.dictionaries(texts, flat_values, max_size=3)
)
activities = st.builds(
    lambda *given: new_activity(*given, id="id-1", now=NOW), texts, texts, texts, st.none() | seconds
)
meter_events = st.builds(
    meter_event,
    event_name=texts,
    customer_id=texts,
    value=st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**30), max_value=10**30),
    identifier=texts,
    timestamp=st.none() | seconds,
    subscription_id=st.none() | texts,
    metadata=st.none() | st.dictionaries(texts, json_values, max_size=4),
    source_data=st.none() | st.lists(json_values, max_size=4),
    livemode=st.none() | st.booleans(),
)


@given(activities | meter_events)
def test_an_event_comes_back_from_its_bytes_as_it_was(event):
    assert decode(encode(event)) == event


@given(activities | meter_events)
def test_an_event_comes_back_from_its_record_as_it_was(event):
    again = event_from_record(event.as_record(), id="another", now=0.0)
    assert without_json(again) == without_json(event)
    assert json_of(again) == json_of(event)


@given(activities | meter_events)
def test_an_event_comes_back_from_its_record_written_as_json_text(event):
    text = msgspec.json.Encoder(decimal_format="number").encode(event.as_record())
    again = event_from_record(RECORDS.decode(text), id="another", now=0.0)
    assert without_json(again) == without_json(event)
    assert json_of(again) == json_of(event)


def without_json(event):
    return (
        event
        if isinstance(event, Activity)
        else msgspec.structs.replace(event, metadata=None, source_data=None)
    )


def json_of(event):
    """What the JSON texts of an event say: `1E+2` and `100.0` are one number, and no digit is lost."""
    if isinstance(event, Activity):
        return None
    return [
        None if text is None else json.loads(text, parse_float=Decimal)
        for text in (event.metadata, event.source_data)
    ]


def test_a_record_keeps_the_digits_of_metadata_that_a_float_would_lose():
    price = Decimal("0.10000000000000000000000000001")
    again = event_from_record(meter_event(metadata={"price": price}).as_record(), id="another", now=0.0)
    assert again.metadata == f'{{"price":{price}}}'


@pytest.mark.parametrize(
    "event",
    [
        activity(user_id="\ud800"),
        activity(user_id="\ud800", at=1),
        meter_event(customer_id="a\udfffb"),
        meter_event(value=1, subscription_id="\udc80"),
    ],
)
def test_text_without_a_utf8_form_is_refused(event):
    (problem,) = problems_of(encode, event).values()
    assert "UTF-8" in problem


def test_metadata_without_a_utf8_form_is_refused():
    assert "metadata" in problems_of(meter_event, metadata={"a": "\ud800"})


def test_an_event_that_is_too_long_is_refused_and_one_of_just_the_size_is_not():
    room = MAX_EVENT_BYTES - len(encode(activity(user_id="x" * 60_000))) + 60_000
    assert len(encode(activity(user_id="x" * room))) == MAX_EVENT_BYTES
    (problem,) = problems_of(encode, activity(user_id="x" * (room + 1))).values()
    assert problem == f"is {MAX_EVENT_BYTES + 1} bytes long, at most {MAX_EVENT_BYTES} are taken"


@pytest.mark.parametrize("encoded", [b"", b"\xff", b"\x91\xa1z", encode(activity())[:-1]])
def test_bytes_that_are_no_event_are_refused(encoded):
    with pytest.raises(msgspec.DecodeError):
        decode(encoded)


# Records


def test_a_record_is_told_apart_by_its_type_or_else_by_its_event_name():
    a = {"billing_id": "acme", "user_id": "u-1", "activity_type_id": "active"}
    m = {"event_name": "api.calls", "customer_id": "cus-1", "value": 1}
    for record, kind in (
        (a, Activity),
        (a | {"type": "activity"}, Activity),
        (m, MeterEvent),
        (m | {"type": "meter"}, MeterEvent),
    ):
        event = event_from_record(record, id="given", now=NOW)
        assert (type(event), event.id) == (kind, "given")


def test_a_record_brings_its_own_identifier_time_and_mode():
    record = {
        "event_name": "n",
        "customer_id": "c",
        "value": 1,
        "identifier": "own",
        "timestamp": 5,
        "livemode": False,
    }
    event = event_from_record(record, id="given", now=NOW, livemode=True)
    assert (event.id, event.timestamp, event.livemode) == ("own", 5.0, False)
    del record["identifier"], record["timestamp"], record["livemode"]
    event = event_from_record(record, id="given", now=NOW, livemode=True)
    assert (event.id, event.timestamp, event.livemode) == ("given", NOW, True)


def test_unknown_fields_of_a_record_are_named_beside_its_other_problems():
    assert problems_of(
        event_from_record,
        {"type": "activity", "billing_id": "b", "usr_id": "u", "activity_type_id": "t"},
        id="i",
        now=NOW,
    ) == {
        "usr_id": "is not a field of an activity",
        "user_id": "is missing",
    }
    assert problems_of(
        event_from_record, {"event_name": "n", "customer_id": "c", "valeu": 1}, id="i", now=NOW
    ) == {
        "valeu": "is not a field of a meter event",
        "value": "is missing",
    }


@pytest.mark.parametrize("record", [None, [], "text", 3])
def test_a_record_that_is_no_object_is_refused(record):
    assert "event" in problems_of(event_from_record, record, id="i", now=NOW)


@pytest.mark.parametrize("kind", ["Activity", "", None, 3, [], {}])
def test_a_record_of_an_unknown_type_is_refused(kind):
    assert "type" in problems_of(event_from_record, {"type": kind}, id="i", now=NOW)


def test_numbers_of_records_are_read_without_a_float_on_the_way():
    record = RECORDS.decode(
        b'{"event_name": "n", "customer_id": "c", "value": 0.10000000000000000000000000001}'
    )
    assert event_from_record(record, id="i", now=NOW).value == "0.10000000000000000000000000001"


@pytest.mark.parametrize("number", ["1e999999", "1e9999999999999999999999", "-1e-99999999999999999999"])
def test_an_enormous_number_in_a_record_is_refused_and_breaks_nothing(number):
    with pytest.raises((InvalidEvent, msgspec.DecodeError)):
        event_from_record(
            RECORDS.decode(f'{{"event_name": "n", "customer_id": "c", "value": {number}}}'), id="i", now=NOW
        )


@pytest.mark.parametrize("user", ["u", "Zoë", "x" * 300, "x" * 60_000])
def test_an_activity_that_is_encoded_without_an_identifier_gets_it_later_and_nothing_else_changes(user):
    fields = ("acme", user, "active-users", 1_700_000_000.25)
    ids = Identifiers()
    number = ids.number()
    encoded = encode_fields(("a", None, *fields))
    (given,) = identified([(encoded, number)], ids)
    assert given == encode(Activity(ids.of(number, fields[-1]), *fields))
    assert identified([(given, ids.number())], ids) == [given], "once for its whole life"


def test_many_activities_get_the_identifiers_that_each_would_get_alone_whatever_was_before():
    ids = Identifiers()
    # Every moment that a clock could tell at the ends of some milliseconds, and over the ends of runs of numbers.
    ends = [1_764_043_063 + n / 1000 for n in range(1000)]
    several = [
        (ids.number(), math.nextafter(end, end + way)) for end in ends for way in (-1, 0, 1) for _ in "12"
    ]
    encoded = [(encode_fields(("a", None, "acme", "u", "t", at)), number) for number, at in several]
    given = identified(encoded, ids)
    assert given == [identified([each], ids)[0] for each in encoded]
    assert [decode(each).id for each in given] == [
        Identifiers(ids.node).of(number, at) for number, at in several
    ]
    assert len(set(given)) == len(given)


def test_an_event_that_has_an_identifier_keeps_it():
    for event in (Activity("id", "acme", "u", "t", 1.0), MeterEvent("", "name", "cus", "1", 1.0)):
        assert identified([(encode(event), 8)], Identifiers()) == [encode(event)]


def test_an_event_is_as_long_as_it_will_be_with_its_identifier():
    bare = len(encode_fields(("a", None, "acme", "x" * 40_000, "t", 1.0))) - 40_000
    longest = encode_fields(("a", None, "acme", "x" * (MAX_EVENT_BYTES - 37 - bare), "t", 1.0))
    check_length(longest)
    assert [len(each) for each in identified([(longest, 8)], Identifiers())] == [MAX_EVENT_BYTES]
    with pytest.raises(InvalidEvent, match="65537 bytes"):
        check_length(encode_fields(("a", None, "acme", "x" * (MAX_EVENT_BYTES - 36 - bare), "t", 1.0)))


# Identifiers


def test_identifiers_are_uuids_of_version_7_with_the_time_in_front():
    identifier = uuid.UUID(Identifiers().new(1_700_000_000.123_456))
    assert (identifier.version, identifier.variant) == (7, uuid.RFC_4122)
    assert identifier.int >> 80 == 1_700_000_000_123


@pytest.mark.parametrize("node", ["0000000000", "ffffffffff", "0123456789"])
def test_every_identifier_is_a_valid_uuid_whatever_the_node_and_the_number_say(node):
    ids = Identifiers(node)
    numbers = [8 << bit for bit in range(70)] + [(8 << bit) - 8 for bit in range(1, 70)]
    several = [uuid.UUID(ids.of(number, 1e9)) for number in numbers]
    assert {(one.version, one.variant) for one in several} == {(7, uuid.RFC_4122)}


def test_an_identifier_follows_from_the_node_the_number_and_the_time_whoever_asks():
    ids, others = Identifiers(), [(number * 8, 1e9 + number / 7) for number in range(1, 1000)]
    first = [ids.of(*each) for each in others]
    assert [Identifiers(ids.node).of(*each) for each in reversed(others)] == first[::-1]
    assert len(set(first)) == len(first)


def test_identifiers_sort_by_time():
    ids = Identifiers()
    several = [ids.new(tick / 1000) for tick in range(1_700_000_000_000, 1_700_000_010_000, 7)]
    assert several == sorted(several)


def test_identifiers_of_one_moment_are_unique():
    ids = Identifiers()
    assert len({ids.new(0.0) for _ in range(100_000)}) == 100_000


def test_a_clock_that_goes_back_and_forth_makes_no_identifier_twice():
    ids = Identifiers()
    assert len({ids.new(1e9 + n % 7 / 1000) for n in range(100_000)}) == 100_000


def test_threads_never_get_the_same_identifier():
    ids = Identifiers()
    made: list[list[str]] = [[] for _ in range(8)]
    begin = threading.Barrier(8)

    def make(mine: list[str]) -> None:
        begin.wait()
        mine.extend(ids.new(n % 50 / 1000) for n in range(50_000))

    threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({identifier for mine in made for identifier in mine}) == 400_000


FORKING = """
import os, sys
from per_agent import Agent, MemoryDestination
agent = Agent(sys.argv[1], [MemoryDestination()])
def some():
    return " ".join(agent.add_activity("acme", f"u-{i}", "active").id for i in range(200))
before = some()
read, write = os.pipe()
for child in range(3):
    if os.fork() == 0:
        os.write(write, (some() + " ").encode())
        os._exit(0)
    os.wait()
print(before, some(), os.read(read, 1 << 20).decode())
agent.close()
"""


def test_parent_and_children_of_a_fork_never_make_the_same_identifier(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    identifiers = done.stdout.split()
    assert len(identifiers) == 5 * 200
    assert len(set(identifiers)) == len(identifiers)


def test_each_draws_a_node_of_its_own():
    assert Identifiers().of(8, 1e9) != Identifiers().of(8, 1e9)
