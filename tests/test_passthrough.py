"""Passthrough: straight to the upstream, its JSON straight back, its no as an error of ours."""

import asyncio
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from per_agent import errors
from per_agent.destinations.local import Ledger
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.destinations.per import Per
from per_agent.event import Activity
from per_agent.passthrough import (
    MeterEvents,
    Meters,
    PaymentKitMeterEvents,
    PaymentKitMeters,
    PerReports,
    Reports,
)

KEY = "blocklet-z1abcdef"


@pytest.fixture
def per(upstream):
    destination = Per("activity-1", "reporting-1", url=upstream.url, timeout=5.0)
    yield destination
    destination.close()


@pytest.fixture
def reports(per):
    return Reports(PerReports(per))


@pytest.fixture
def kit(upstream):
    destination = PaymentKit(upstream.url + "/app", KEY, livemode=False, timeout=5.0)
    yield destination
    destination.close()


@pytest.fixture
def meters(kit):
    return Meters(PaymentKitMeters(kit))


@pytest.fixture
def meter_events(kit):
    return MeterEvents(PaymentKitMeterEvents(kit))


def last(upstream):
    return upstream.score().last[-1]


# Reports


def test_a_report_is_per_s_own_answer(per, reports, upstream):
    per.send([Activity(str(n), "acme", f"u-{n % 2}", "seats", 0.0) for n in range(4)])
    report = reports.get_report("2018-12-01T00:00:00Z", "2018-12-31T23:59:59.999Z")
    assert report == {
        "ok": True,
        "result": {
            "start": "2018-12-01T00:00:00Z",
            "end": "2018-12-31T23:59:59.999Z",
            "activityTypes": {"seats": {"billingIds": {"acme": {"unique": 2}}}},
        },
    }
    assert last(upstream)["headers"]["authorization"] == "Bearer reporting-1"


def test_datetimes_are_told_in_utc_and_nothing_is_sent_for_what_is_not_given(reports, upstream):
    start = datetime(2024, 2, 29, 23, 30, 0, 123_999, timezone(timedelta(hours=-2)))
    reports.get_report(start)
    assert last(upstream)["query"] == {"start": "2024-03-01T01:30:00.123Z"}
    reports.get_report()
    assert last(upstream)["query"] == {}


@pytest.mark.parametrize(
    "window",
    [
        (None, "2024-01-01T00:00:00Z"),
        (datetime.fromisoformat("2024-01-01"), None),
        (date(2024, 1, 1), None),
        (5, None),
    ],
)
def test_a_window_that_makes_no_sense_is_refused_before_anything_is_sent(reports, upstream, window):
    with pytest.raises(ValueError):
        reports.get_report(*window)
    assert upstream.score().requests == 0


def test_reports_without_a_reporting_token_say_what_to_set(upstream):
    with pytest.raises(errors.ConfigError, match="reporting_token"):
        Reports(PerReports(Per("activity-1", url=upstream.url))).get_report()


def test_a_report_may_be_long(reports, upstream):
    body = {"ok": True, "result": {"pad": "x" * 5_000_000}}
    upstream.rule(body=body)
    assert reports.get_report() == body


# Errors


@pytest.mark.parametrize(
    ("rule", "kind", "status"),
    [
        ({"status": 401, "body": {"ok": False, "message": "invalid_auth_token"}}, errors.Unauthorized, 401),
        ({"ok_false": "invalid_auth_token"}, errors.Unauthorized, 200),
        ({"status": 403}, errors.Unauthorized, 403),
        ({"ok_false": "bad_dates"}, errors.Refused, 200),
        ({"status": 400, "body": {"error": "bad"}}, errors.Refused, 400),
        ({"status": 404, "body": {"error": "bad"}}, errors.Refused, 404),
        ({"status": 429, "headers": {"Retry-After": "9"}}, errors.RateLimited, 429),
        ({"status": 503, "headers": {"Retry-After": "9"}}, errors.Unavailable, 503),
        ({"redirect": "/login"}, errors.Unavailable, 302),
        ({"html": True}, errors.Unavailable, 200),
        ({"body": {"result": {}}}, errors.Unavailable, 200),
        ({"body": [1]}, errors.Unavailable, 200),
        ({"cut": "before"}, errors.Unavailable, None),
    ],
)
def test_a_report_s_failures_are_errors_with_the_upstream_s_words(reports, upstream, rule, kind, status):
    upstream.rule(**rule)
    with pytest.raises(errors.UpstreamError) as caught:
        reports.get_report("2024-01-01T00:00:00Z")
    error = caught.value
    assert type(error) is kind
    assert error.status == status
    assert (error.destination, error.call) == ("per", "GET /reports.get")
    assert "2024" not in str(error)
    assert "reporting-1" not in str(error)
    assert error.retry_after == (9.0 if "headers" in rule else None)
    if "ok_false" in rule:
        assert rule["ok_false"] in error.words


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ({"status": 404, "body": {"code": 404, "error": "Not Found"}}, errors.Unauthorized),
        ({"status": 404, "body": {"error": "Meter not found"}}, errors.Refused),
        ({"status": 401}, errors.Unauthorized),
        ({"status": 403, "body": {"error": "Not authorized"}}, errors.Unauthorized),
        ({"status": 400, "body": "Access token found in multiple locations"}, errors.Unauthorized),
        ({"status": 400, "body": {"error": '"unit" is required'}}, errors.Refused),
        ({"status": 429}, errors.RateLimited),
        ({"status": 502, "html": True}, errors.Unavailable),
        ({"status": 302, "redirect": "/login"}, errors.Unavailable),
        ({"html": True}, errors.Unavailable),
        ({"cut": "after"}, errors.Unavailable),
    ],
)
def test_a_meter_call_s_failures_are_errors_too(meters, upstream, rule, kind):
    upstream.rule(**rule)
    with pytest.raises(errors.UpstreamError) as caught:
        meters.retrieve("mtr_1")
    assert type(caught.value) is kind
    assert KEY not in str(caught.value)
    if rule.get("body") == {"code": 404, "error": "Not Found"}:
        assert "access key" in caught.value.words


# Meters and meter events


def test_a_meter_lives_its_life(meters, upstream):
    made = meters.create(name="API Calls", event_name="api.calls.v1", unit="requests", metadata={"a": 1})
    assert made["livemode"] is False
    assert meters.retrieve("api.calls.v1") == made
    assert meters.update(made["id"], name="Calls", metadata={})["metadata"] == {}
    assert meters.deactivate(made["id"])["status"] == "inactive"
    assert meters.activate(made["id"])["status"] == "active"
    listed = meters.list(page=1, pageSize=5, event_name="api.calls.v1", q="calls")
    assert [one["id"] for one in listed["list"]] == [made["id"]]
    assert listed["paging"] == {"page": 1, "pageSize": 5}
    request = last(upstream)
    assert request["path"] == "/app/api/meters"
    assert request["query"] == {
        "livemode": "false",
        "page": "1",
        "pageSize": "5",
        "event_name": "api.calls.v1",
        "q": "calls",
    }


def test_the_mode_stands_in_every_query_and_in_no_body(meters, meter_events, upstream):
    meters.create(name="n", event_name="e", unit="u", livemode=True)
    meters.update("mtr_1", name="x", livemode=True)
    meters.list(livemode=True)
    meters.activate("mtr_1", livemode=True)
    meter_events.create(
        event_name="e", identifier="i", payload={"customer_id": "c", "value": "1"}, timestamp=5, livemode=True
    )
    meter_events.pending_amount(customer_id="c", livemode=True)
    requests = upstream.score().last
    assert {one["query"]["livemode"] for one in requests} == {"true"}
    assert not any("livemode" in one["body"] for one in requests)


def test_only_what_is_given_is_sent(meters, upstream):
    meters.create(name="n", event_name="e", unit="u")
    assert last(upstream)["body"] == '{"name":"n","event_name":"e","unit":"u"}'
    meters.update("e", description=None)
    assert last(upstream)["body"] == '{"description":null}'


def test_ids_stand_in_the_path_as_text(meters, meter_events, upstream):
    meters.retrieve("a/b ?#%é")
    assert last(upstream)["path"] == "/app/api/meters/a%2Fb%20%3F%23%25%C3%A9"
    with pytest.raises(ValueError):
        meters.retrieve("")
    with pytest.raises(errors.Refused, match="Meter event not found"):
        meter_events.retrieve("..")
    assert last(upstream)["path"] == "/app/api/meter-events/%2E%2E"


def test_stored_events_can_be_looked_at(meter_events, upstream):
    made = meter_events.create(
        event_name="e", identifier="i", payload={"customer_id": "c", "value": "2"}, timestamp=5
    )
    assert meter_events.retrieve(made["id"])["identifier"] == "i"
    assert meter_events.list(event_name="e", customer_id="c", start=5, end=5)["count"] == 1
    stats = meter_events.stats(meter_id="mtr_1", start=0, end=9, granularity="hour")
    assert stats["list"][0]["total_value"] == "2"
    assert last(upstream)["query"] == {
        "livemode": "false",
        "meter_id": "mtr_1",
        "start": "0",
        "end": "9",
        "granularity": "hour",
    }
    assert meter_events.pending_amount() == {"pcur_test": "0"}


@pytest.mark.parametrize("text", ['{"a":123456789012345678901234567890}', "[]", '{"a":1.5,"b":null}', '"x"'])
def test_json_comes_back_as_it_is(meters, upstream, text):
    upstream.rule(body=text)
    null = None
    assert meters.list() == eval(text, {"null": null})


def test_what_is_no_parameter_is_a_mistake_at_once(meters, meter_events, upstream):
    with pytest.raises(TypeError):
        meters.list(page_size=5)
    with pytest.raises(ValueError, match="start"):
        meter_events.list(start=datetime.now(UTC))
    assert upstream.score().requests == 0


# The embedded ledger, behind the same doors


def test_a_ledger_answers_as_the_upstreams_do(tmp_path):
    ledger = Ledger()
    ledger.open(tmp_path)
    reports, meters, meter_events = Reports(ledger), Meters(ledger.meters), MeterEvents(ledger.meter_events)
    made = meters.create(name="API calls", event_name="api.calls", unit="calls", description="d")
    assert meters.retrieve("api.calls") == made
    assert meters.update(made["id"], description=None)["description"] is None
    assert meters.deactivate(made["id"])["status"] == "inactive"
    assert meters.activate("api.calls")["status"] == "active"
    assert meters.list(q="api", pageSize=1)["count"] == 1
    payload = {"customer_id": "c", "value": "2"}
    event = meter_events.create(event_name="api.calls", identifier="i", payload=payload, timestamp=60)
    assert meter_events.retrieve(event["id"])["identifier"] == "i"
    assert meter_events.list(customer_id="c")["count"] == 1
    assert meter_events.stats(meter_id=made["id"], start=0, end=90)["list"][0]["total_value"] == "2"
    assert meter_events.pending_amount(customer_id="c") == {made["currency_id"]: "2"}
    ledger.send([Activity("a", "acme", "u", "seats", datetime(2024, 1, 5, tzinfo=UTC).timestamp())])
    report = reports.get_report(datetime(2024, 1, 1, tzinfo=UTC), "2024-01-31T23:59:59.999Z")
    assert report["result"]["activityTypes"] == {"seats": {"billingIds": {"acme": {"unique": 1}}}}
    assert asyncio.run(meters.list_async())["count"] == 1
    with pytest.raises(errors.Refused):
        meters.retrieve("nothing")
    ledger.close()


# Async twins


def test_every_call_has_an_async_twin_that_leaves_the_loop_free(reports, meters, meter_events, upstream):
    upstream.rule(delay=0.3)

    async def use():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        made = await meters.create_async(name="n", event_name="e", unit="u")
        answers = await asyncio.gather(
            reports.get_report_async("2024-01-01T00:00:00Z"),
            meters.retrieve_async("e"),
            meters.list_async(pageSize=1),
            meters.update_async(made["id"], name="m"),
            meters.deactivate_async(made["id"]),
            meter_events.list_async(),
            meter_events.stats_async(meter_id=made["id"], start=0, end=1),
            meter_events.pending_amount_async(),
        )
        assert (await meters.activate_async(made["id"]))["status"] == "active"
        event = await meter_events.create_async(
            event_name="e", identifier="i", payload={"customer_id": "c", "value": "1"}, timestamp=1
        )
        assert (await meter_events.retrieve_async(event["id"]))["identifier"] == "i"
        ticking.cancel()
        assert len(answers) == 8
        assert ticks >= 3

    asyncio.run(use())


@pytest.mark.parametrize("door", [Reports, Meters, MeterEvents])
def test_no_call_is_without_its_twin(door):
    calls = {name for name in vars(door) if not name.startswith("_")}
    plain = {name for name in calls if not name.endswith("_async")}
    assert calls == plain | {f"{name}_async" for name in plain}
