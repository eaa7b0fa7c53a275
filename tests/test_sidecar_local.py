"""The upstreams' calls as the embedded ledger answers them: their JSON, their parameters, and a precise no."""

import json
import sqlite3

import pytest
from serving import Served, received

from per_agent.destinations.local import Ledger
from per_agent.event import Activity, MeterEvent
from per_agent.sidecar.local import Local

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z
DAY = "2023-11-14T00:00:00.000Z"


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(clock=lambda: NOW)
    ledger.open(tmp_path)
    yield ledger
    ledger.close()


@pytest.fixture
def reports(ledger):
    with Served(Local(ledger).reports) as served:
        yield served


@pytest.fixture
def api(ledger):
    with Served(Local(ledger).api) as served:
        yield served


def told(answer, status=200):
    document = json.loads(answer.body)
    assert (answer.status, answer.all(b"content-type")) == (status, [b"application/json"]), document
    return document


def refused(answer, status=400):
    """The words of an answer in Payment Kit's form of a no."""
    document = told(answer, status)
    assert document.keys() == {"error"}
    return document["error"]


def call(served, method, target, document=None, status=200):
    body = b"" if document is None else json.dumps(document).encode()
    return told(served.get(target, "Content-Type: application/json", method=method, body=body), status)


def meter(api, event_name="calls", mode="true"):
    made = {"name": f"All {event_name}", "event_name": event_name, "unit": "call"}
    return call(api, "POST", f"/api/meters?livemode={mode}", made)


def event(identifier, value="1", event_name="calls", customer_id="cus_1", at=NOW, **more):
    return MeterEvent(identifier, event_name, customer_id, value, at, **more)


# Reports


def test_a_report_is_pers(ledger, reports):
    ledger.send([Activity(str(n), "acme", f"u-{n % 2}", "seats", NOW) for n in range(4)])
    window = "start=2023-11-01T00:00:00Z&end=2023-11-30T23:59:59.999Z"
    assert told(reports.get(f"/reports.get?{window}")) == {
        "ok": True,
        "result": {
            "start": "2023-11-01T00:00:00.000Z",
            "end": "2023-11-30T23:59:59.999Z",
            "activityTypes": {"seats": {"billingIds": {"acme": {"unique": 2}}}},
        },
    }


def test_a_report_without_a_window_is_of_the_month_before(reports):
    result = told(reports.get("/reports.get"))["result"]
    assert (result["start"], result["end"]) == ("2023-10-01T00:00:00.000Z", "2023-10-31T23:59:59.999Z")


def test_a_report_without_an_end_is_open(reports):
    result = told(reports.get("/reports.get?start=2023-11-14T22%3A00%3A00%2B02%3A00"))["result"]
    assert (result["start"], result["end"]) == ("2023-11-14T20:00:00.000Z", "2023-11-14T22:13:20.000Z")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("end=2023-11-14T22:00:00Z", "start is required with end"),
        ("start=yesterday", "start must be ISO 8601, not 'yesterday'"),
        ("start=", "start must be ISO 8601, not ''"),
        ("start=2023-11-14", "start has no time zone"),
        ("start=2023-11-14T00:00:00Z&end=2023-11-13T00:00:00Z", "start must not be after end"),
        ("start=0001-01-01T00:00:00%2B23:59", "start is before the year 1"),
        ("start=2023-01-01T00:00:00Z&end=9999-12-31T23:59:59-23:59", "after the year 9999"),
        ("since=2023-11-14T00:00:00Z", "since: is not a parameter of this call, which takes end, start"),
        ("start=2023-11-14T00:00:00Z&start=x", "start: is given twice"),
        ("start=%ff", "the parameters are not UTF-8"),
    ],
)
def test_a_report_that_cannot_be_is_refused_in_pers_form(reports, query, words):
    document = told(reports.get(f"/reports.get?{query}"), 400)
    assert document.keys() == {"ok", "error"}
    assert document["ok"] is False
    assert words in document["error"]


def test_the_first_and_the_last_moment_that_there_are_make_a_report(reports):
    window = "start=0001-01-01T00:00:00Z&end=9999-12-31T23:59:59.999Z"
    assert told(reports.get(f"/reports.get?{window}"))["ok"] is True


def test_a_report_is_only_read(reports):
    answer = reports.get("/reports.get", method="POST", body=b"start=x")
    assert told(answer, 405) == {"ok": False, "error": "only GET is known here"}
    assert answer.all(b"allow") == [b"GET"]


# Meters


def test_a_meter_is_made_found_changed_and_switched(api):
    made = meter(api)
    assert made["object"] == "meter"
    assert made["livemode"] is True
    assert call(api, "GET", f"/api/meters/{made['id']}") == made
    assert call(api, "GET", "/api/meters/calls?livemode=true") == made
    changed = call(api, "PUT", f"/api/meters/{made['id']}", {"name": "Calls", "metadata": {"a": 1.5}})
    assert (changed["name"], changed["metadata"]) == ("Calls", {"a": 1.5})
    assert call(api, "PUT", f"/api/meters/{made['id']}/deactivate")["status"] == "inactive"
    assert call(api, "PUT", "/api/meters/calls/activate", {})["status"] == "active"


def test_meters_are_listed_by_page_and_filter(api):
    for name in ("a", "b", "c"):
        meter(api, name)
    meter(api, "test", mode="false")
    page = call(api, "GET", "/api/meters?page=2&pageSize=2")
    assert (page["count"], [each["event_name"] for each in page["list"]]) == (3, ["a"])
    assert page["paging"] == {"page": 2, "pageSize": 2}
    assert call(api, "GET", "/api/meters?event_name=b")["count"] == 1
    assert call(api, "GET", "/api/meters?q=all%20C")["count"] == 1
    assert call(api, "GET", "/api/meters?livemode=false")["list"][0]["event_name"] == "test"


def test_an_event_name_may_hold_what_paths_are_made_of(api):
    for name in ("a/b", "..", "stats", "é ü", "a%2Fb"):
        meter(api, name)
    for escaped, name in (("a%2Fb", "a/b"), ("%2E%2E", ".."), ("stats", "stats"), ("%C3%A9%20%c3%bc", "é ü")):
        assert call(api, "GET", f"/api/meters/{escaped}")["event_name"] == name
        assert call(api, "PUT", f"/api/meters/{escaped}/deactivate")["status"] == "inactive"
    assert call(api, "GET", "/api/meters/a%252Fb")["event_name"] == "a%2Fb"


def test_the_mode_is_live_where_nobody_says_otherwise(api):
    meter(api, mode="false")
    assert refused(api.get("/api/meters/calls"), 404) == "no meter 'calls'"
    assert call(api, "GET", "/api/meters/calls?livemode=false")["livemode"] is False
    assert (
        call(api, "POST", "/api/meters", {"name": "n", "event_name": "calls", "unit": "u"})["livemode"]
        is True
    )


def test_a_mode_in_the_body_is_not_overlooked(api):
    document = {"name": "n", "event_name": "calls", "unit": "u", "livemode": False}
    body = json.dumps(document).encode()
    words = "livemode: belongs into the query: in the body it is not read"
    assert refused(api.get("/api/meters", method="POST", body=body)) == words
    assert call(api, "POST", "/api/meters?livemode=false", document)["livemode"] is False


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[]", "the body must be a JSON object"),
        (b"{}", "name: is required; event_name: is required; unit: is required"),
        (b'{"nme": 1, "self": 2}', "is not a field that can be given here"),
        (b'{"name": "n", "event_name": 7, "unit": "u"}', "event_name: must be a string, not 7"),
        (b'{"name": "n", "event_name": "e", "unit": "u", "aggregation_method": "max"}', "aggregation_method: must be"),
        (b'{"name": "n", "event_name": "e", "unit": "u", "metadata": 1e999999999999}', ""),
        (b'{"name": "n", "event_name": "e", "unit": "u", "metadata": [1]}', "metadata: "),
        (b"[" * 5000, "the body is not JSON"),
    ],
)  # fmt: skip
def test_a_meter_that_cannot_be_is_refused_with_what_is_wrong(api, body, words):
    assert words in refused(api.get("/api/meters", method="POST", body=body))


def test_a_meter_that_is_there_already_is_a_conflict(api):
    meter(api)
    body = b'{"name": "n", "event_name": "calls", "unit": "u"}'
    assert "already exists in live mode" in refused(api.get("/api/meters", method="POST", body=body), 409)


def test_what_a_meter_means_cannot_be_changed(api):
    made = meter(api)
    answer = api.get(f"/api/meters/{made['id']}", method="PUT", body=b'{"event_name": "x", "id": "y"}')
    words = refused(answer)
    assert "event_name: is not a field" in words
    assert "id: is not a field" in words


def test_a_body_that_is_longer_than_any_meter_is_refused(api):
    with api.connect() as client:
        client.sendall(
            b"POST /api/meters HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (1024 * 1024 + 1)
        )
        assert received(client, b"}").startswith(b"HTTP/1.1 413 ")


# Meter events


def test_meter_events_are_listed_with_every_filter(ledger, api):
    made = meter(api)
    ledger.send([event(str(n), customer_id=f"cus_{n % 2}", at=NOW + n) for n in range(10)])
    at = int(NOW)
    page = call(api, "GET", "/api/meter-events?page=2&pageSize=4")
    assert (page["count"], [each["identifier"] for each in page["list"]]) == (10, ["5", "4", "3", "2"])
    for query, count in (
        (f"start={at + 2}&end={at + 4}", 3),
        ("customer_id=cus_1", 5),
        ("event_name=calls", 10),
        ("event_name=other", 0),
        (f"meter_id={made['id']}", 10),
        ("q=7", 1),
        ("livemode=false", 0),
    ):
        assert call(api, "GET", f"/api/meter-events?{query}")["count"] == count, query


def test_a_meter_event_is_found_by_its_id(ledger, api):
    meter(api)
    ledger.send([event("one", "2.50")])
    (listed,) = call(api, "GET", "/api/meter-events")["list"]
    assert call(api, "GET", f"/api/meter-events/{listed['id']}") == listed
    assert listed["payload"]["value"] == "2.50"
    assert refused(api.get("/api/meter-events/one"), 404) == "no meter event 'one'"


def test_statistics_and_what_is_pending_are_exact(ledger, api):
    made = meter(api)
    ledger.send([event(str(n), "0.1") for n in range(3)])
    stats = call(
        api, "GET", f"/api/meter-events/stats?meter_id={made['id']}&start=0&end=1800000000&granularity=day"
    )
    assert stats["list"] == [{"date": DAY, "timestamp": 1699920000, "event_count": 3, "total_value": "0.3"}]
    assert call(api, "GET", "/api/meter-events/pending-amount?customer_id=cus_1") == {
        made["currency_id"]: "0.3"
    }
    assert call(api, "GET", "/api/meter-events/pending-amount?customer_id=cus_2") == {}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("meters?pagesize=5", "pagesize: is not a parameter of this call, which takes event_name, livemode, page, "),
        ("meters?page=two", "page: must be a whole number, not 'two'"),
        ("meters?page=0", "page: must be a whole number from 1, not 0"),
        ("meters?page=" + "9" * 5000, "page: must be a whole number, not '9999"),
        ("meters?page=%C2%B2", "page: must be a whole number"),
        ("meters?pageSize=101", "pageSize: must be from 1 to 100, not 101"),
        ("meters?livemode=1&page=x", "livemode: must be true or false, not '1'; page: must be a whole number"),
        ("meters?livemode=true&livemode=false", "livemode: is given twice"),
        ("meters/x?livemode=maybe", "livemode: must be true or false, not 'maybe'"),
        ("meters/%ff", "the path is not UTF-8"),
        ("meter-events?identifier=x", "identifier: is not a parameter of this call"),
        ("meter-events?start=-1", "start: must be a whole number, not '-1'"),
        ("meter-events?start=1.5", "start: must be a whole number, not '1.5'"),
        ("meter-events?q=", "q: must not be empty"),
        ("meter-events/stats", "meter_id: is required; start: is required; end: is required"),
        ("meter-events/stats?meter_id=m&start=1&end=2&granularity=week", "granularity: must be minute, hour or day"),
        ("meter-events/pending-amount?customer=x", "customer: is not a parameter"),
        ("meter-events?" + "&".join(f"p{n}=1" for n in range(65)), "at most 64 parameters"),
    ],
)  # fmt: skip
def test_a_parameter_that_is_wrong_is_named(api, target, words):
    assert words in refused(api.get(f"/api/{target}"))


# What there is, and what there is not


@pytest.mark.parametrize(
    "target",
    [
        "customers/cus_1",
        "credit-grants",
        "meters/a/b",
        "meters//activate",
        "/meters",
        "",
        "meter-events/a/b",
        "Meters",
    ],
)
def test_what_a_ledger_has_not_is_not_found_and_says_who_has_it(api, target):
    words = refused(api.get(f"/api/{target}"), 404)
    assert words.startswith(
        "the embedded ledger answers here: it has /api/meters and /api/meter-events, and no"
    )


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("DELETE", "meters/x", b"GET, PUT"),
        ("PATCH", "meters", b"GET, POST"),
        ("GET", "meters/x/activate", b"PUT"),
        ("PUT", "meter-events/stats", b"GET"),
    ],
)
def test_a_method_that_a_path_does_not_know_is_told_those_that_it_does(api, method, target, allowed):
    answer = api.get(f"/api/{target}", method=method)
    refused(answer, 405)
    assert answer.all(b"allow") == [allowed]


def test_head_is_answered_as_get_without_the_body(api):
    meter(api)
    length = len(api.get("/api/meters/calls").body)
    answer = api.get("/api/meters/calls", method="HEAD")
    assert (answer.status, answer.body, answer.all(b"content-length")) == (200, b"", [b"%d" % length])


def test_a_slash_at_the_end_changes_nothing(api):
    assert call(api, "GET", "/api/meters/")["count"] == 0
    meter(api)
    assert call(api, "GET", "/api/meters/calls/")["event_name"] == "calls"


def test_a_ledger_that_others_write_to_is_to_be_asked_again(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.totals()  # makes the file
    ledger._database._busy_seconds = 0.1
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with Served(Local(ledger).api) as served:
            body = b'{"name": "n", "event_name": "calls", "unit": "u"}'
            answer = served.get("/api/meters", method="POST", body=body)
            assert "locked" in refused(answer, 503)
            assert answer.all(b"retry-after") == [b"1"]
            assert served.get("/api/meters").status == 200  # reading waits for nobody
    finally:
        other.close()
        ledger.close()


def test_a_ledger_that_a_person_must_mend_is_not_to_be_asked_again(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"not a ledger" * 1000)
    ledger = Ledger(tmp_path / "ledger.db")
    with Served(Local(ledger).reports) as served:
        answer = served.get("/reports.get")
        assert told(answer, 500)["ok"] is False
        assert answer.all(b"retry-after") == []
    ledger.close()
