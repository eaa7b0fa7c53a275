"""Records that are read straight into their fields come to the same event as the long way makes of them."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from per_agent.errors import InvalidEvent
from per_agent.event import RECORDS, Activity, MeterEvent, event_from_record
from per_agent.sidecar import payment_kit, records
from per_agent.sidecar.problems import Problem

NOW = 1_700_000_000.5
texts = st.text(max_size=5) | st.sampled_from(
    ["", "x" * 64, "é" * 65, "x" * 255, "ä" * 256, "\0", '"', "1", "-0"]
)
numbers = (
    st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, -0.0, 1e11, 99999999999.9, 1e400, -1, 2**63, 2**63 - 1])
)
plain = st.none() | st.booleans() | numbers | texts
amounts = plain | st.sampled_from(["0.10", "1e3", "1.", "٣", "1\n", "+1", "9" * 128, "9" * 129, "-1.50"])
kinds = st.sampled_from(["activity", "meter", "Activity", "", None, 1])
labels = plain | st.dictionaries(texts, plain | st.lists(plain, max_size=1), max_size=3)


def documents(names, others=("usr",)):
    """Objects of most of the fields that *names* gives values for, and now and then another."""
    return st.fixed_dictionaries({}, optional={**names, **dict.fromkeys(others, plain), "type": kinds})


activities = documents(
    {"billing_id": texts, "user_id": texts | plain, "activity_type_id": texts, "id": plain, "at": plain}
)
metered = documents(
    {
        "event_name": texts, "customer_id": texts, "value": amounts, "identifier": plain, "timestamp": plain,
        "subscription_id": plain, "metadata": labels, "source_data": labels, "livemode": plain,
    }
)  # fmt: skip
GOOD_ACTIVITY = {"billing_id": "b", "user_id": "u", "activity_type_id": "t"}
GOOD_METERED = {"event_name": "n", "customer_id": "c", "value": "1"}


def long_way(content):
    try:
        return event_from_record(RECORDS.decode(content), id="made", now=NOW, livemode=True)
    except (InvalidEvent, *records.UNREADABLE):
        return None


@given(
    st.builds(lambda good, more: {**good, **more}, st.just(GOOD_ACTIVITY), activities)
    | st.builds(lambda good, more: {**good, **more}, st.just(GOOD_METERED), metered)
    | activities
    | metered
)
def test_what_is_plain_comes_to_the_event_of_the_long_way(document):
    content = json.dumps(document).encode()
    record = records.read(content)
    if record is None:
        return
    event = record.event(record.id or "made", NOW, True)
    assert event == long_way(content)
    assert records.read_lines(content + b"\n" + content) == [record, record]
    assert records.read_list(b"[" + content + b"]") == [record]


@given(
    st.builds(lambda more: {**GOOD_METERED, **more}, metered).map(
        lambda fields: {
            **{name: fields[name] for name in ("event_name", "timestamp", "metadata", "source_data", "livemode", "identifier", "usr") if name in fields},
            "payload": {name: fields[name] for name in ("customer_id", "value", "subscription_id") if name in fields},
        }
    )
)  # fmt: skip
def test_what_is_plain_in_payment_kits_form_comes_to_the_event_of_the_long_way(document):
    content = json.dumps(document).encode()
    record = records.read_payment_kit(content)
    try:
        expected = payment_kit._event(payment_kit._object(content), False, NOW)
    except Problem:
        expected = None
    if record is not None:
        assert record.event(NOW, False) == expected


EDGES = [
    (GOOD_ACTIVITY, "at", 99999999999.9, True),
    (GOOD_ACTIVITY, "at", 1e11, False),
    (GOOD_ACTIVITY, "at", 0, True),
    (GOOD_ACTIVITY, "at", -0.1, False),
    (GOOD_ACTIVITY, "id", "é" * 255, True),
    (GOOD_ACTIVITY, "id", "x" * 256, False),
    (GOOD_ACTIVITY, "user_id", "", False),
    (GOOD_METERED, "event_name", "é" * 64, True),
    (GOOD_METERED, "event_name", "x" * 65, False),
    (GOOD_METERED, "value", "9" * 128, True),
    (GOOD_METERED, "value", "9" * 129, False),
    (GOOD_METERED, "value", "1\n", False),
    (GOOD_METERED, "value", "\u0663", False),
    (GOOD_METERED, "value", 2**63 - 1, True),
    (GOOD_METERED, "value", True, False),
    (GOOD_METERED, "timestamp", 1e11, False),
    (GOOD_METERED, "metadata", [], False),
    (GOOD_METERED, "livemode", "true", False),
    (GOOD_ACTIVITY, "type", "activity", True),
    (GOOD_ACTIVITY, "type", "meter", False),
    (GOOD_ACTIVITY, "type", None, False),
    (GOOD_METERED, "type", "meter", True),
    (GOOD_METERED, "type", "activity", False),
    (GOOD_METERED, "type", None, False),
]


@pytest.mark.parametrize(("document", "field", "value", "is_good"), EDGES)
def test_both_ways_draw_the_same_lines(document, field, value, is_good):
    content = json.dumps({**document, field: value}).encode()
    record = records.read(content)
    assert (record is not None) == (long_way(content) is not None) == is_good


@pytest.mark.parametrize(
    ("content", "event"),
    [
        (
            b'{"billing_id":"b","user_id":"u","activity_type_id":"t"}',
            Activity("made", "b", "u", "t", NOW),
        ),
        (
            b'{"billing_id":"b","user_id":"u","activity_type_id":"t","id":"i","at":1.25}',
            Activity("i", "b", "u", "t", 1.25),
        ),
        (
            b'{"event_name":"n","customer_id":"c","value":3,"metadata":{"a":"b"},"livemode":false}',
            MeterEvent("made", "n", "c", "3", NOW, None, '{"a":"b"}', None, False),
        ),
        (
            b'{"type":"activity","id":"i","billing_id":"b","user_id":"u","activity_type_id":"t","at":1.25}',
            Activity("i", "b", "u", "t", 1.25),
        ),
        (
            b'{"type":"meter","identifier":"i","event_name":"n","customer_id":"c","value":"1.50","timestamp":2.5}',
            MeterEvent("i", "n", "c", "1.50", 2.5, None, None, None, True),
        ),
    ],
)
def test_what_nearly_all_send_is_plain(content, event):
    record = records.read(content)
    assert record is not None
    assert record.event(record.id or "made", NOW, True) == event == long_way(content)


def test_what_is_plain_in_payment_kits_form():
    content = (
        b'{"event_name":"n","identifier":"i","payload":{"customer_id":"c","value":"0.10"},"metadata":{"a":1}}'
    )
    record = records.read_payment_kit(content)
    assert record is not None
    assert msgspec.structs.asdict(record.event(NOW, None))["value"] == "0.10"
