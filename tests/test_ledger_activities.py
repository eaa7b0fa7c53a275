"""The ledger counts unique users in any window, by the activities' own times."""

import itertools
import tempfile
from collections import defaultdict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from per_agent import errors
from per_agent.destinations.local import Ledger
from per_agent.destinations.outcome import Delivered
from per_agent.event import Activity
from per_agent.ledger.activities import previous_month
from per_agent.ledger.identifier import pack, pack_all, unpack

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", clock=NOW.timestamp)
    yield ledger
    ledger.close()


_ids = itertools.count()


def activity(user, at, billing="acme", kind="active", identifier=None):
    if isinstance(at, str):
        at = datetime.fromisoformat(at).timestamp()
    return Activity(identifier or f"id-{next(_ids)}", billing, user, kind, at)


def unique(report):
    return {
        (kind, billing): found["unique"]
        for kind, types in report["result"]["activityTypes"].items()
        for billing, found in types["billingIds"].items()
    }


def refused(call, *args):
    with pytest.raises(errors.Refused) as caught:
        call(*args)
    assert caught.value.destination == "ledger"
    assert caught.value.call == "GET /reports.get"
    assert caught.value.status == 400
    return caught.value.words


def test_a_report_has_the_shape_of_pers(ledger):
    ledger.send([activity("u1", "2026-02-03T10:00:00Z"), activity("u2", "2026-02-03T10:00:00Z")])
    assert ledger.get_report() == {
        "ok": True,
        "result": {
            "start": "2026-02-01T00:00:00.000Z",
            "end": "2026-02-28T23:59:59.999Z",
            "activityTypes": {"active": {"billingIds": {"acme": {"unique": 2}}}},
        },
    }


def test_an_empty_ledger_reports_nothing(ledger):
    assert ledger.get_report()["result"]["activityTypes"] == {}


def test_a_user_counts_once_per_billing_id_and_activity_type(ledger):
    at = "2026-02-03T10:00:00Z"
    ledger.send([activity("u", at), activity("u", at), activity("u", "2026-02-09T10:00:00Z")])
    ledger.send([activity("u", at, billing="other"), activity("u", at, kind="exports")])
    assert unique(ledger.get_report()) == {
        ("active", "acme"): 1,
        ("active", "other"): 1,
        ("exports", "acme"): 1,
    }


def test_the_default_window_is_the_previous_month_to_its_last_millisecond(ledger):
    ledger.send([activity("before", "2026-01-31T23:59:59.999Z"), activity("first", "2026-02-01T00:00:00Z")])
    ledger.send([activity("last", "2026-02-28T23:59:59.999Z"), activity("after", "2026-03-01T00:00:00Z")])
    assert unique(ledger.get_report()) == {("active", "acme"): 2}


def test_the_month_before_january_is_december():
    assert previous_month(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) == (
        int(datetime(2025, 12, 1, tzinfo=UTC).timestamp()) * 1000,
        int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1000 - 1,
    )


def test_time_below_a_millisecond_is_cut_and_never_moves_an_activity_into_the_next_month(ledger):
    ledger.send([activity("u", datetime(2026, 3, 1, tzinfo=UTC).timestamp() - 0.0004)])
    assert unique(ledger.get_report()) == {("active", "acme"): 1}


def test_without_an_end_the_window_is_open_and_echoes_now(ledger):
    ledger.send([activity("u", "2026-03-05T00:00:00Z"), activity("ahead", "2026-03-10T12:00:05Z")])
    report = ledger.get_report("2026-03-01T00:00:00Z")
    assert unique(report) == {("active", "acme"): 2}
    assert report["result"]["end"] == "2026-03-10T12:00:00.000Z"


def test_start_and_end_may_be_datetimes_or_iso_texts_with_any_offset(ledger):
    ledger.send([activity("u", "2026-03-05T00:30:00Z")])
    berlin = timezone(timedelta(hours=1))
    assert unique(
        ledger.get_report(datetime(2026, 3, 5, 1, 30, tzinfo=berlin), "2026-03-05T01:30:00+01:00")
    ) == {("active", "acme"): 1}
    assert unique(ledger.get_report("2026-03-05T00:30:00.001Z", "2026-03-06T00:00:00Z")) == {}


def test_a_report_names_all_that_is_wrong_with_its_window(ledger):
    assert refused(ledger.get_report, None, NOW) == "start is required with end"
    assert refused(ledger.get_report, NOW, NOW - timedelta(days=1)) == "start must not be after end"
    naive, nonsense = refused(ledger.get_report, "2026-03-01T00:00:00", "soon").split("; ")
    assert "time zone" in naive
    assert "soon" in nonsense
    assert "datetime" in refused(ledger.get_report, 1_700_000_000)


def test_an_identifier_counts_once_within_a_batch_and_over_batches(ledger):
    first = activity("u1", "2026-02-03T10:00:00Z", identifier="same")
    again = activity("u2", "2026-02-03T10:00:00Z", identifier="same")
    assert ledger.send([first, again]) == [Delivered(), Delivered()]
    assert ledger.send([again]) == [Delivered()]
    assert unique(ledger.get_report()) == {("active", "acme"): 1}


_UUID = "0192f0c4-1234-7abc-8def-0123456789ab"


@given(
    st.lists(
        st.uuids().map(str)
        | st.sampled_from(
            [_UUID, _UUID.upper(), _UUID[:-1], f"{_UUID}0", _UUID.replace("-", "+"), "", "é" * 36]
        )
        | st.text("0123456789abcdef-g", min_size=35, max_size=37),
        max_size=6,
    )
)
def test_many_identifiers_are_stored_as_each_by_itself(identifiers):
    assert pack_all(identifiers) == [pack(each) for each in identifiers]
    assert [unpack(each) for each in pack_all(identifiers)] == identifiers


def test_lengths_that_add_up_to_those_of_uuids_are_not_taken_for_them():
    two = [_UUID[:-1], _UUID[-1] + _UUID]
    assert pack_all(two) == two


@pytest.mark.parametrize("known", [0, 1, 999, 1999, 2000])
def test_what_is_new_of_a_batch_counts_however_much_of_it_was_counted_before(ledger, known):
    batch = [activity(f"u{n}", "2026-02-03T10:00:00Z") for n in range(2000)]
    others = [activity(f"other{n}", each.at, identifier=each.id) for n, each in enumerate(batch)]
    ledger.send(batch[2000 - known :])
    ledger.send(others)
    ledger.send(batch)
    assert unique(ledger.get_report()) == {("active", "acme"): 2000}
    assert ledger.totals()[0] == 2000


def test_identifiers_that_differ_in_spelling_only_are_different(ledger):
    at = "2026-02-03T10:00:00Z"
    spellings = [
        "0190c0de-0000-7000-8000-00000000000a",
        "0190C0DE-0000-7000-8000-00000000000A",
        "123",
        "123.0",
        "1e3",
    ]
    ledger.send([activity(f"u{number}", at, identifier=each) for number, each in enumerate(spellings)])
    assert unique(ledger.get_report()) == {("active", "acme"): len(spellings)}


def test_users_are_counted_beyond_one_bitmap(ledger):
    users = 3000
    for day in ("2026-02-03", "2026-02-04"):
        ledger.send([activity(f"user {number}", f"{day}T10:00:00Z") for number in range(users)])
    assert unique(ledger.get_report()) == {("active", "acme"): users}
    assert unique(ledger.get_report("2026-02-03T05:00:00Z", "2026-02-04T11:00:00Z")) == {
        ("active", "acme"): users
    }


def test_ids_are_opaque_text(ledger):
    at = "2026-02-03T10:00:00Z"
    texts = ["1", "01", "1.0", "ä", "a\u0308", " ", "a\x00b", "a", "A", "null"]
    ledger.send([activity(text, at, billing=text, kind=text) for text in texts])
    assert unique(ledger.get_report()) == {(text, text): 1 for text in texts}


_DAY = 86_400_000
_BASE = int(datetime(2026, 2, 1, tzinfo=UTC).timestamp()) * 1000
_moments = st.one_of(
    st.integers(0, 4 * _DAY),
    st.builds(lambda day, off: day * _DAY + off, st.integers(0, 4), st.integers(-2, 2)),  # at midnights
).map(lambda at: _BASE + max(0, at))
_activities = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.sampled_from(["active", "exports"]),
        st.sampled_from(["acme", "other"]),
        st.sampled_from("abcde"),
        _moments,
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(
    _activities,
    st.lists(st.tuples(_moments, _moments).map(sorted), min_size=1, max_size=6),
    st.integers(1, 20),
)
def test_a_report_equals_counting_by_hand(rows, windows, batch):
    by_id = {}
    for row in rows:
        by_id.setdefault(row[0], row[1:])
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.db")
        events = [
            Activity(f"id-{key}", billing, user, kind, at / 1000) for key, kind, billing, user, at in rows
        ]
        for begin in range(0, len(events), batch):
            ledger.send(events[begin : begin + batch])
        for first, last in windows:
            model = defaultdict(set)
            for kind, billing, user, at in by_id.values():
                if first <= at <= last:
                    model[kind, billing].add(user)
            start, end = (
                datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=edge) for edge in (first, last)
            )
            assert unique(ledger.get_report(start, end)) == {key: len(users) for key, users in model.items()}
        ledger.close()
