"""The ledger sums metered usage exactly, each identifier once, and gives it back as Payment Kit does."""

import itertools
import tempfile
from collections import defaultdict
from decimal import Context, Decimal, localcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from per_agent import errors
from per_agent.destinations.local import Ledger
from per_agent.destinations.outcome import Delivered, Parked
from per_agent.event import Activity, MeterEvent

NOW = 1_700_000_000.25  # 2023-11-14T22:13:20.250Z
_ids = itertools.count()


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", clock=lambda: NOW)
    yield ledger
    ledger.close()


@pytest.fixture
def meter(ledger):
    return ledger.meters.create(name="API Calls", event_name="api.calls", unit="requests")


def used(value="1", customer="cus_1", at=NOW, name="api.calls", identifier=None, **more):
    return MeterEvent(identifier or f"id-{next(_ids)}", name, customer, value, at, **more)


def refused(status, call, /, *args, **fields):
    with pytest.raises(errors.Refused) as caught:
        call(*args, **fields)
    assert caught.value.status == status
    return caught.value.words


def total(ledger, meter, **filters):
    return ledger.meter_events.pending_amount(**filters).get(meter["currency_id"], "none")


def test_a_meter_event_has_all_the_fields_of_payment_kits(ledger, meter):
    event = used("0.10", subscription_id="sub_1", metadata='{"a":1}', source_data='[{"key":"k"}]')
    assert ledger.send([event]) == [Delivered()]
    (stored,) = ledger.meter_events.list()["list"]
    assert stored == {
        "id": "mevt_0000000000000001",
        "object": "meter_event",
        "event_name": "api.calls",
        "payload": {"customer_id": "cus_1", "value": "0.10", "subscription_id": "sub_1"},
        "identifier": event.id,
        "timestamp": 1_700_000_000,
        "livemode": True,
        "status": "pending",
        "credit_consumed": "0",
        "credit_pending": "0.10",
        "metadata": {"a": 1},
        "source_data": [{"key": "k"}],
        "created_via": "api",
        "created_at": "2023-11-14T22:13:20.250Z",
        "updated_at": "2023-11-14T22:13:20.250Z",
    }
    assert ledger.meter_events.retrieve(stored["id"]) == stored


def test_an_identifier_counts_once_over_batches_meters_and_modes(ledger, meter):
    ledger.meters.create(name="t", event_name="api.calls", unit="u", livemode=False)
    ledger.meters.create(name="o", event_name="other", unit="u")
    first = used("3", identifier="same")
    assert ledger.send([first, used("4", identifier="same")]) == [Delivered(), Delivered()]
    assert (
        ledger.send(
            [used("5", identifier="same", name="other"), used("6", identifier="same", livemode=False)]
        )
        == [Delivered()] * 2
    )
    assert ledger.meter_events.list(livemode=None)["count"] == 1
    assert total(ledger, meter, livemode=None) == "3"


def test_an_activity_may_have_the_identifier_of_a_meter_event(ledger, meter):
    ledger.send([used(identifier="same"), Activity("same", "acme", "u", "active", NOW)])
    assert ledger.meter_events.list()["count"] == 1
    assert ledger.get_report("2023-11-14T00:00:00Z")["result"]["activityTypes"] != {}


def test_events_without_a_meter_wait_for_it_and_do_not_disturb_the_others(ledger, meter):
    waiting = used(name="unknown", identifier="w")
    activity = Activity("a", "acme", "u", "active", NOW)
    outcomes = ledger.send([used(), waiting, activity, used()])
    assert outcomes[0] == outcomes[2] == outcomes[3] == Delivered()
    assert outcomes[1] == Parked("meter:live:unknown", "no meter 'unknown' in live mode")
    assert total(ledger, meter) == "2"
    assert not ledger.probe("meter:live:unknown")
    ledger.meters.create(name="n", event_name="unknown", unit="u")
    assert ledger.probe("meter:live:unknown")
    assert ledger.send([waiting]) == [Delivered()]


def test_events_of_an_inactive_meter_wait_until_it_is_activated(ledger, meter):
    ledger.meters.deactivate(meter["id"])
    assert ledger.send([used()]) == [Parked("meter:live:api.calls", "meter 'api.calls' is inactive")]
    assert not ledger.probe("meter:live:api.calls")
    ledger.meters.activate(meter["id"])
    assert ledger.probe("meter:live:api.calls")


def test_a_duplicate_is_delivered_even_when_its_meter_is_inactive_now(ledger, meter):
    event = used()
    ledger.send([event])
    ledger.meters.deactivate(meter["id"])
    assert ledger.send([event]) == [Delivered()]


def test_no_mode_means_live_and_modes_have_meters_of_their_own(ledger, meter):
    assert ledger.send([used(livemode=None), used(livemode=True)]) == [Delivered()] * 2
    assert ledger.send([used(livemode=False)]) == [
        Parked("meter:test:api.calls", "no meter 'api.calls' in test mode")
    ]
    assert not ledger.probe("meter:test:api.calls")


def test_a_probe_knows_event_names_with_colons_and_lets_foreign_keys_go_on(ledger):
    ledger.meters.create(name="n", event_name="a:b", unit="u", livemode=False)
    assert ledger.probe("meter:test:a:b")
    assert not ledger.probe("meter:live:a:b")
    assert ledger.probe("something else")


def test_create_is_idempotent_by_identifier(ledger, meter):
    body = {"event_name": "api.calls", "identifier": "i", "payload": {"customer_id": "c", "value": "0.001"}}
    stored = ledger.meter_events.create(**body)
    assert stored["timestamp"] == 1_700_000_000
    changed = body | {"payload": {"customer_id": "c", "value": "9"}}
    assert ledger.meter_events.create(**changed) == stored
    assert total(ledger, meter) == "0.001"


def test_create_names_all_problems(ledger, meter):
    words = refused(
        400, ledger.meter_events.create, event_name="x" * 65, payload={"value": 0.5, "x": 1}, colour=1
    )
    for field in ("event_name", "identifier", "customer_id", "value", "payload.x", "colour"):
        assert field in words
    assert "payload" in refused(400, ledger.meter_events.create, event_name="a", identifier="i")
    body = {"identifier": "i", "payload": {"customer_id": "c", "value": "1"}}
    assert "no meter" in refused(400, ledger.meter_events.create, event_name="unknown", **body)
    ledger.meters.deactivate(meter["id"])
    assert "inactive" in refused(400, ledger.meter_events.create, event_name="api.calls", **body)


def test_lists_are_newest_first_paged_and_filtered(ledger, meter):
    other = ledger.meters.create(name="o", event_name="other", unit="u", livemode=False)
    ledger.send(
        [used("1", f"cus_{number % 3}", NOW + number, identifier=f"e{number}") for number in range(9)]
    )
    ledger.send(
        [used("1", "cus_0", name="other", livemode=False, identifier="0190c0de-0000-7000-8000-00000000000a")]
    )

    def found(**filters):
        answer = ledger.meter_events.list(**filters)
        assert answer["count"] >= len(answer["list"])
        return [event["identifier"] for event in answer["list"]]

    assert found() == [f"e{number}" for number in range(8, -1, -1)]
    assert found(pageSize=4, page=3) == ["e0"]
    assert (
        found(livemode=False)
        == found(livemode=None, meter_id=other["id"])
        == ["0190c0de-0000-7000-8000-00000000000a"]
    )
    assert found(event_name="other") == []
    assert len(found(livemode=None)) == 10
    assert found(customer_id="cus_1") == ["e7", "e4", "e1"]
    assert found(start=1_700_000_002, end=1_700_000_004) == ["e4", "e3", "e2"]
    assert found(start=1_700_000_007) == ["e8", "e7"]
    assert found(q="e5") == ["e5"]
    assert found(q="us_2") == ["e8", "e5", "e2"]
    assert found(q="%") == []
    assert found(q="0190c0de-0000-7000-8000-00000000000a", livemode=None) == [
        "0190c0de-0000-7000-8000-00000000000a"
    ]
    words = refused(400, ledger.meter_events.list, page=0, start=1.5, end=-1, livemode="x", q="")
    for field in ("page", "start", "end", "livemode", "q"):
        assert field in words


def test_pages_are_the_same_among_many_events(ledger, meter):
    many = 52_000
    for begin in range(0, many, 2000):
        numbers = range(begin, begin + 2000)
        ledger.send([used(customer=f"cus_{number % 2}", identifier=f"e{number}") for number in numbers])
    for filters, step in (
        ({}, 1),
        ({"start": 0}, 1),
        ({"event_name": "api.calls", "customer_id": "cus_1"}, 2),
    ):
        page = ledger.meter_events.list(page=3, pageSize=2, **filters)
        assert page["count"] == many // step
        newest = [f"e{many - 1 - step * skipped}" for skipped in (4, 5)]
        assert [event["identifier"] for event in page["list"]] == newest


def test_an_unknown_event_is_not_found(ledger, meter):
    ledger.send([used()])
    for unknown in (
        "mevt_2",
        "mevt_1",
        "mevt_0000000000000002",
        "mevt_99999999999999999999",
        "mevt_²",
        "",
        None,
    ):
        refused(404, ledger.meter_events.retrieve, unknown)
    refused(404, lambda: ledger.meter_events.retrieve("mevt_0000000000000001", livemode=False))


def test_stats_sum_by_minute_hour_and_day(ledger, meter):
    midnight = 1_700_006_400  # 2023-11-15T00:00:00Z
    ledger.send(
        [used("0.1", at=midnight - 1), used("0.2", "cus_2", at=midnight), used("0.3", at=midnight + 59)]
    )
    ledger.send([used("1", at=midnight + 60), used("2", at=midnight + 3600)])

    def sums(granularity, start=midnight - 100, end=midnight + 5000, **more):
        answer = ledger.meter_events.stats(
            meter_id=meter["id"], start=start, end=end, granularity=granularity, **more
        )
        assert answer["count"] == len(answer["list"])
        return [
            (row["timestamp"] - midnight, row["event_count"], row["total_value"]) for row in answer["list"]
        ]

    assert sums("minute") == [(-60, 1, "0.1"), (0, 2, "0.5"), (60, 1, "1"), (3600, 1, "2")]
    assert sums("hour") == [(-3600, 1, "0.1"), (0, 3, "1.5"), (3600, 1, "2")]
    assert sums("day") == [(-86400, 1, "0.1"), (0, 4, "3.5")]
    assert sums("day", customer_id="cus_2") == [(0, 1, "0.2")]
    assert sums("hour", customer_id="cus_1") == [(-3600, 1, "0.1"), (0, 2, "1.3"), (3600, 1, "2")]
    assert sums("minute", customer_id="nobody") == []
    assert sums("minute", start=midnight + 1, end=midnight + 60) == [(0, 1, "0.3"), (60, 1, "1")]
    (first,) = ledger.meter_events.stats(meter_id=meter["id"], start=midnight - 9, end=midnight - 1)["list"]
    assert first["date"] == "2023-11-14T00:00:00.000Z"


def test_stats_name_what_is_missing(ledger, meter):
    words = refused(400, ledger.meter_events.stats, granularity="week")
    for field in ("meter_id", "start", "end", "granularity"):
        assert field in words
    refused(404, lambda: ledger.meter_events.stats(meter_id="mtr_nowhere", start=0, end=1))
    refused(404, lambda: ledger.meter_events.stats(meter_id=meter["id"], start=0, end=1, livemode=False))


def test_pending_amounts_filter_by_customer_subscription_currency_and_mode(ledger, meter):
    other = ledger.meters.create(name="o", event_name="other", unit="u", livemode=False)
    ledger.send([used("1"), used("2", subscription_id="sub_1"), used("4", "cus_2", subscription_id="sub_1")])
    ledger.send([used("8", name="other", livemode=False, at=5.0), used("16", at=5.0)])
    pending = ledger.meter_events.pending_amount
    mine, theirs = meter["currency_id"], other["currency_id"]
    assert pending() == {mine: "23"}
    assert pending(livemode=None) == {mine: "23", theirs: "8"}
    assert pending(livemode=None, currency_id=theirs) == {theirs: "8"}
    assert pending(customer_id="cus_1") == {mine: "19"}
    assert pending(subscription_id="sub_1") == {mine: "6"}
    assert pending(customer_id="cus_1", subscription_id="sub_1") == {mine: "2"}
    assert pending(customer_id="nobody") == {}
    assert "customer_id" in refused(400, lambda: pending(customer_id=7))


def test_meters_that_share_a_currency_are_summed_together(ledger, meter):
    ledger.meters.create(name="o", event_name="other", unit="u", currency_id=meter["currency_id"])
    ledger.send([used("1"), used("2.5", name="other")])
    assert total(ledger, meter) == "3.5"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["9" * 128, "1"], "1" + "0" * 128),
        (["9" * 128, "0." + "0" * 125 + "1"], "9" * 128 + "." + "0" * 125 + "1"),
        ([str(2**63 - 1), "1"], str(2**63)),
        ([str(2**63), "-1", "-1"], str(2**63 - 2)),
        (["-5", "5"], "0"),
        (["0.1"] * 10, "1"),
        (["1.50", "98.5"], "100"),
        (["-0"], "0"),
        (["-0.0"], "0"),
        (["007"], "7"),
    ],
)
def test_sums_are_exact_whatever_their_size(ledger, meter, values, expected):
    for value in values:
        ledger.send([used(value)])
    assert total(ledger, meter) == expected
    assert total(ledger, meter, customer_id="cus_1") == expected


_decimals = st.one_of(
    st.integers(-(10**30), 10**30).map(str),
    st.integers(2**63 - 3, 2**63 + 3).map(str),
    st.decimals(-(10**6), 10**6, places=4).map(lambda value: format(value, "f")),
    st.tuples(st.integers(0, 10**60), st.integers(0, 10**60)).map(lambda two: f"{two[0]}.{two[1]}"),
)
_BASE = 1_700_006_400
_seconds = st.one_of(
    st.integers(-90_000, 90_000),
    st.builds(lambda unit, count, off: unit * count + off, st.sampled_from([60, 3600, 86_400]), st.integers(-1, 1), st.integers(-1, 1)),
).map(lambda second: _BASE + second)  # fmt: skip
_usage = st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abc"), _decimals, _seconds), max_size=30)


@settings(max_examples=60, deadline=None)
@given(_usage, st.lists(st.tuples(_seconds, _seconds).map(sorted), min_size=1, max_size=3), st.integers(1, 9))
def test_sums_equal_decimal_sums_by_hand(rows, windows, batch):
    by_id = {}
    for key, customer, value, second in rows:
        by_id.setdefault(key, (customer, Decimal(value), second))
    with tempfile.TemporaryDirectory() as folder, localcontext(Context(prec=400)):
        ledger = Ledger(Path(folder) / "ledger.db")
        meter = ledger.meters.create(name="n", event_name="api.calls", unit="u")
        events = [
            used(value, customer, second, identifier=f"id-{key}") for key, customer, value, second in rows
        ]
        for begin in range(0, len(events), batch):
            ledger.send(events[begin : begin + batch])
        for customer in (None, "a"):
            chosen = [row for row in by_id.values() if customer in (None, row[0])]
            pending = ledger.meter_events.pending_amount(customer_id=customer)
            assert [Decimal(found) for found in pending.values()] == (
                [sum(row[1] for row in chosen)] if chosen else []
            )
            for (first, last), (granularity, step) in itertools.product(
                windows, [("minute", 60), ("hour", 3600), ("day", 86_400)]
            ):
                model = defaultdict(list)
                for _, value, second in chosen:
                    if first <= second <= last:
                        model[second - second % step].append(value)
                stats = ledger.meter_events.stats(
                    meter_id=meter["id"], start=first, end=last, granularity=granularity, customer_id=customer
                )
                assert [
                    (row["timestamp"], row["event_count"], Decimal(row["total_value"]))
                    for row in stats["list"]
                ] == [(begin, len(values), sum(values)) for begin, values in sorted(model.items())]
        ledger.close()
