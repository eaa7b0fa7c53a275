"""`Sidecar`: what crosses to the sidecar and how exactly, and what its answers mean for each event."""

import json
import re
import socket
import threading
import warnings
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import received
from sidecar_double import SidecarDouble
from waiting import until

from per_agent import Agent, Ledger, Per, Sidecar, errors
from per_agent.agent.build import destination_of, reports_of
from per_agent.destinations import Delivered, Halt, Refused, Retry
from per_agent.event import Activity, MeterEvent, new_activity, new_meter_event
from per_agent.settings import DeliverySettings, IntakeSettings, Secret, SidecarDestinationSettings

TOKEN = "sidecar-token-1"
SOON = DeliverySettings(backoff_initial=0.01, backoff_max=0.1)


@pytest.fixture
def double(tmp_path):
    with SidecarDouble(tmp_path, TOKEN) as one:
        yield one


@pytest.fixture
def sidecar(double):
    one = Sidecar(double.address)
    yield one
    one.close()


def activity(number, text="x"):
    return Activity(f"id-{number}", f"b-{text}", f"u-{number}", "seats", 1_700_000_000.0 + number)


def five():
    return [activity(number) for number in range(5)]


# What crosses


def test_a_batch_is_one_request_of_one_line_for_each_event(sidecar, double):
    events = [activity(number) for number in range(sidecar.batch)]
    assert sidecar.send(events) == [Delivered()] * 500
    (request,) = double.requests
    assert (request["method"], request["path"]) == ("POST", "/v1/events")
    assert request["query"] == {"wait": "stored"}
    assert request["headers"]["content-type"] == "application/x-ndjson"
    assert "authorization" not in request["headers"]
    assert [json.loads(line) for line in request["body"].split("\n")] == [one.as_record() for one in events]
    assert double.events == {one.id: one for one in events}


exact = st.decimals(allow_nan=False, allow_infinity=False)
labels = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), exact, st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)
meter_events = st.builds(
    new_meter_event,
    st.text(min_size=1, max_size=64),
    st.text(min_size=1),
    st.decimals(min_value=-(10**20), max_value=10**20, allow_nan=False, places=9),
    identifier=st.text(min_size=1, max_size=255),
    now=st.floats(0, 1e10),
    subscription_id=st.one_of(st.none(), st.text(min_size=1)),
    metadata=st.one_of(st.none(), st.dictionaries(st.text(), labels, max_size=3)),
    source_data=st.one_of(st.none(), st.lists(labels, max_size=3)),
    livemode=st.sampled_from([None, True, False]),
)
activities = st.builds(
    new_activity,
    *[st.text(min_size=1)] * 3,
    st.none(),
    id=st.text(min_size=1, max_size=255),
    now=st.floats(0, 1e10),
)


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    with SidecarDouble(tmp_path_factory.mktemp("sidecar")) as double:
        sidecar = Sidecar(double.address)
        yield sidecar, double
        sidecar.close()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(meter_events, activities), min_size=1, max_size=5, unique_by=lambda one: one.id))
def test_every_event_arrives_exactly_as_it_is(standing, events):
    sidecar, double = standing
    double.events.clear()
    assert sidecar.send(events) == [Delivered()] * len(events)
    assert list(double.events.values()) == events


def test_numbers_keep_every_digit_that_they_were_given(sidecar, double):
    metadata = {"price": Decimal("0.10"), "big": 10**40, "tiny": Decimal("1E-30"), "lines": "a\nb\u2028c"}
    event = new_meter_event(
        "e", "c", Decimal("0.100"), identifier="i", now=0.1, metadata=metadata, livemode=False
    )
    assert sidecar.send([event]) == [Delivered()]
    (arrived,) = double.events.values()
    assert isinstance(arrived, MeterEvent)
    assert (arrived.value, arrived.timestamp, arrived.livemode) == ("0.100", 0.1, False)
    assert arrived.metadata == '{"price":0.10,"big":%d,"tiny":1E-30,"lines":"a\\nb\u2028c"}'.replace(
        "%d", str(10**40)
    )


def test_the_mode_is_left_to_the_sidecar_where_an_event_names_none(sidecar, double):
    sidecar.send([new_meter_event("e", "c", 1, identifier="i", now=0.0)])
    assert "livemode" not in double.requests[0]["body"]


def test_a_batch_that_is_long_goes_in_several_requests_that_proxies_take(sidecar, double):
    events = [activity(number, "y" * 60_000) for number in range(50)]
    assert sidecar.send(events) == [Delivered()] * 50
    assert list(double.events) == [one.id for one in events]
    assert max(len(one["body"]) for one in double.requests) <= 1_000_000
    assert len(double.requests) == 4


# What the answers mean


def told(**document):
    return {"detail": "made up", **document}


def test_good_events_are_delivered_and_bad_ones_refused_by_their_position(sidecar, double):
    good = activity(1)
    bad = MeterEvent("id-2", "e", "c", "many", 0.0)
    assert sidecar.send([good, bad]) == [
        Delivered(),
        Refused("""HTTP 207: value: must be a plain decimal such as "0.001", not 'many'"""),
    ]
    assert list(double.events) == ["id-1"]


def test_where_none_is_good_it_may_be_the_sidecar_s_version_and_the_refusal_is_uncertain(sidecar):
    (outcome,) = sidecar.send([MeterEvent("id-2", "", "c", "1", 0.0)])
    assert outcome == Refused("HTTP 400: event_name: must not be empty", certain=False)


def test_events_that_a_400_does_not_list_are_sent_again(sidecar, double):
    double.rule(status=400, body=told(rejected=[{"position": 1, "line": 2, "errors": {"at": "is odd"}}]))
    assert sidecar.send(five()[:3]) == [
        Retry("HTTP 400: made up"),
        Refused("HTTP 400: at: is odd", certain=False),
        Retry("HTTP 400: made up"),
    ]


def test_what_a_full_sidecar_took_is_sent_again_with_the_rest_and_counted_once(sidecar, double):
    double.limit(room=3)
    assert sidecar.send(five()) == [Retry("HTTP 503: the spool is full", 7.0)] * 5
    assert len(double.events) == 3
    double.limit()
    assert sidecar.send(five()) == [Delivered()] * 5
    assert list(double.events) == [one.id for one in five()]
    assert double.offered["id-0"] == 2


def test_what_a_full_sidecar_says_is_stored_is_delivered(sidecar, double):
    ids = ["id-0", None, "id-2", None, None]
    rejected = [{"position": 1, "errors": {"x": "is odd"}}]
    double.rule(status=503, body=told(ids=ids, stored=True, rejected=rejected), headers={"Retry-After": "2"})
    later = Retry("HTTP 503: made up", 2.0)
    assert sidecar.send(five()) == [Delivered(), Refused("HTTP 503: x: is odd"), Delivered(), later, later]


def test_what_is_accepted_and_not_stored_in_time_is_sent_again_and_counted_once(sidecar, double):
    double.limit(stalled=True)
    assert sidecar.send(five()) == [Retry("HTTP 504: accepted, but not on the disk yet")] * 5
    double.limit()
    assert sidecar.send(five()) == [Delivered()] * 5
    assert len(double.events) == 5


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(
    "body", ["", "<html><title>Bad Gateway</title></html>", {"ids": ["other"]}, {"ids": 5}]
)
def test_what_time_heals_is_tried_again_when_the_sidecar_or_a_proxy_says(sidecar, double, status, body):
    double.rule(status=status, body=body, headers={"Retry-After": "3"})
    for outcome in sidecar.send(five()):
        assert isinstance(outcome, Retry)
        assert outcome.after == 3.0
        assert outcome.reason.startswith(f"HTTP {status}: ")


IDS = [f"id-{number}" for number in range(5)]


@pytest.mark.parametrize("status", [202, 207])
@pytest.mark.parametrize(
    "document",
    [
        {},
        {"stored": True},
        {"ids": IDS[:4], "stored": True},
        {"ids": [*IDS, "id-5"], "stored": True},
        {"ids": [*IDS[:4], "id-9"], "stored": True},
        {"ids": IDS[::-1], "stored": True},
        {"ids": [0, 1, 2, 3, 4], "stored": True},
        {"ids": "id-0", "stored": True},
        {"ids": IDS, "stored": "true"},
        {"ids": IDS, "stored": True, "rejected": [{"position": 5, "errors": {}}]},
        {"ids": IDS, "stored": True, "rejected": [{"position": -1, "errors": {}}]},
        {"ids": IDS, "stored": True, "rejected": [{"position": 0, "errors": {"x": "both taken and not"}}]},
        {"ids": IDS, "stored": True, "rejected": [{"position": "0"}]},
    ],
    ids=str,
)
def test_an_answer_that_is_not_about_these_events_is_not_believed(sidecar, double, status, document):
    double.rule(status=status, body=document)
    outcomes = sidecar.send(five())
    assert {type(one) for one in outcomes} == {Halt}
    assert "what answered is not a sidecar" in outcomes[0].reason


def test_an_answer_that_does_not_say_stored_is_not_taken_for_it(sidecar, double):
    double.rule(status=202, body=told(ids=IDS, stored=False))
    outcomes = sidecar.send(five())
    assert {type(one) for one in outcomes} == {Halt}
    assert "drops ?wait=stored" in outcomes[0].reason


@pytest.mark.parametrize(
    ("rule", "advice"),
    [
        ({"status": 401}, "it is `token` in its settings, else in its file sidecar.token"),
        ({"status": 403, "html": True}, "look at `url`, and at the proxy"),
        ({"status": 404, "html": True}, "nothing takes events at this address"),
        ({"status": 421, "body": told()}, "add the name to `hosts`"),
        ({"status": 302, "redirect": "/login"}, "`url` must be the sidecar's own address"),
        ({"status": 308, "redirect": "https://elsewhere.example/"}, "the sidecar's own address"),
        ({"status": 400, "body": told(errors={"wait": "odd"})}, "what answered is not a sidecar"),
        ({"status": 400, "body": told(rejected=[])}, "what answered is not a sidecar"),
        ({"status": 415, "body": told()}, "or one of another version"),
        ({"status": 200, "html": True}, "what answered is not a sidecar"),
        ({"status": 202, "body": "OK"}, "what answered is not a sidecar"),
        ({"status": 204, "body": ""}, "what answered is not a sidecar"),
        ({"status": 200, "body": told(ids=IDS, stored=True)}, "what answered is not a sidecar"),
    ],
)
def test_what_a_person_must_heal_halts_and_says_how(sidecar, double, rule, advice):
    double.rule(**rule)
    outcomes = sidecar.send(five())
    assert [type(one) for one in outcomes] == [Halt] * 5
    assert advice in outcomes[0].reason
    assert len(double.requests) == 1


def test_after_trouble_for_all_the_rest_is_not_offered(sidecar, double):
    double.rule(status=503)
    outcomes = sidecar.send([activity(number, "y" * 60_000) for number in range(50)])
    assert [type(one) for one in outcomes] == [Retry] * 50
    assert len(double.requests) == 1


def test_trouble_in_the_middle_of_a_long_batch_keeps_what_was_delivered_before(sidecar, double):
    double.limit(room=20)
    outcomes = sidecar.send([activity(number, "y" * 60_000) for number in range(50)])
    full = "HTTP 503: the spool is full"
    not_offered = Retry(f"not sent: events before it met trouble: {full}", 7.0)
    assert outcomes == [Delivered()] * 16 + [Retry(full, 7.0)] * 16 + [not_offered] * 18
    assert len(double.requests) == 2


@pytest.mark.parametrize("most", [300, 1000, 5000, 50_000])
def test_a_sidecar_that_takes_only_short_bodies_gets_short_ones(sidecar, double, most):
    double.limit(max_body=most)
    events = [activity(number) for number in range(200)]
    assert sidecar.send(events) == [Delivered()] * 200
    assert list(double.events) == [one.id for one in events]
    assert double.requests[-1]["status"] == 202


def test_who_refuses_long_bodies_without_reading_them_gets_short_ones(tmp_path):
    """As a proxy does: it says 413 by the head of a request, and leaves."""
    most, taken = 100_000, []

    def answer(connection: socket.socket) -> None:
        came = received(connection, b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", came.lower())[1])
        if length > most:
            connection.sendall(b"HTTP/1.1 413 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        body = came.partition(b"\r\n\r\n")[2]
        while len(body) < length:
            body += connection.recv(65536)
        ids = [json.loads(line)["id"] for line in body.split(b"\n")]
        taken.extend(ids)
        said = json.dumps({"ids": ids, "stored": True}).encode()
        head = b"HTTP/1.1 202 X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(said)
        connection.sendall(head + said)

    def serve() -> None:
        while len(taken) < len(events):
            connection, _ = listener.accept()
            with connection:
                answer(connection)

    # On a Unix socket, because it holds less than the first body: who writes it is held up until the proxy leaves.
    events = [activity(number, "y" * 2000) for number in range(400)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.settimeout(10)
        proxy = threading.Thread(target=serve)
        proxy.start()
        sidecar = Sidecar(f"unix:{tmp_path / 's'}")
        outcomes = sidecar.send(events)
        sidecar.close()
        proxy.join(30)
    assert outcomes == [Delivered()] * 400
    assert taken == [event.id for event in events]


def test_only_an_event_that_is_too_long_by_itself_is_refused(sidecar, double):
    double.limit(max_body=1000)
    outcomes = sidecar.send([activity(1), activity(2, "y" * 5000), activity(3)])
    assert [type(one) for one in outcomes] == [Delivered, Refused, Delivered]
    assert "see `max_body` in its settings" in outcomes[1].reason
    assert not outcomes[1].certain  # a proxy that takes nothing at all must not bury everything


def test_a_sidecar_that_is_away_is_an_outcome_that_names_its_socket_and_leaves_nothing_open(double):
    sidecar = Sidecar(double.address)
    double.stop()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        (outcome,) = sidecar.send([activity(1)])
    sidecar.close()
    assert isinstance(outcome, Retry)
    assert outcome.reason.startswith("not sent: ConnectError: ")
    assert "agent.sock" in outcome.reason


# Where it is, and who may


def test_over_tcp_the_token_is_shown_to_the_sidecar_and_to_nobody_else(double):
    for token, kind in ((TOKEN, Delivered), ("another-token", Halt), (None, Halt)):
        sidecar = Sidecar(double.url, token)
        (outcome,) = sidecar.send([activity(1)])
        sidecar.close()
        assert type(outcome) is kind
        for shown in (repr(sidecar), str(vars(sidecar)), repr(outcome)):
            assert token is None or token not in shown
        sent = double.requests[-1]["headers"].get("authorization")
        assert sent == (None if token is None else f"Bearer {token}")


def test_a_new_token_is_used_from_the_next_request_on(double):
    sidecar = Sidecar(double.url, "old-token")
    assert [type(one) for one in sidecar.send([activity(1)])] == [Halt]
    sidecar.authorize(TOKEN, timeout=5.0)
    assert sidecar.send([activity(1)]) == [Delivered()]
    with pytest.raises(errors.ConfigError):
        sidecar.authorize("a b", timeout=5.0)
    assert sidecar.send([activity(2)]) == [Delivered()]
    sidecar.close()


@pytest.mark.parametrize("address", ["unix:{}", "unix://{}"])
def test_a_socket_s_address_may_be_written_as_other_programs_write_it(double, address):
    sidecar = Sidecar(address.format(double.address.removeprefix("unix:")))
    assert sidecar.send([activity(1)]) == [Delivered()]
    sidecar.close()
    assert "agent.sock" in repr(sidecar)


def test_a_sidecar_may_be_on_another_machine_or_behind_a_path():
    for address in ("http://10.0.0.1:4737", "https://sidecar.example", "https://proxy.example/per-agent"):
        assert Sidecar(address, TOKEN).address == address


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("",), "sidecar: address: expected"),
        (("/run/agent.sock",), "no http:// or https:// in front"),
        (("unix:agent.sock",), "no absolute path after unix:"),
        (("unix:/" + "s" * 200,), "a Unix socket's path is at most 107"),
        (("tcp://host:1",), "no http:// or https:// in front"),
        (("http://me:hunter2@host",), "credentials inside"),
        (("http://host?a=b",), "a query or a fragment"),
        ((5,), "must be text, not int"),
        (("unix:/s", ""), "token is missing"),
        (("unix:/s", "hunter2 x"), "token holds white space"),
    ],
)
def test_what_cannot_be_a_sidecar_is_named_and_nothing_secret_quoted(arguments, words):
    with pytest.raises(errors.ConfigError) as caught:
        Sidecar(*arguments)
    assert len(caught.value.problems) == 1
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(errors.ConfigError) as caught:
        Sidecar("nowhere", "a b", timeout=0, concurrency=0)
    assert len(caught.value.problems) == 4


def test_settings_describe_one():
    made = destination_of("s", SidecarDestinationSettings())
    assert repr(made) == "Sidecar('unix:/run/per-agent/agent.sock', name='s')"
    assert (made.name, made.concurrency) == ("s", 2)
    table = SidecarDestinationSettings(url="http://127.0.0.1:1", token=Secret(TOKEN), concurrency=5)
    made = destination_of("t", table)
    assert repr(made) == "Sidecar('http://127.0.0.1:1', name='t')"
    assert made.concurrency == 5


# Behind an agent


def test_an_agent_s_spool_keeps_events_while_the_sidecar_is_away_and_none_counts_twice(tmp_path, double):
    sidecar = Sidecar(double.address)
    with Agent(tmp_path / "data", [sidecar], delivery=SOON, intake=IntakeSettings(linger=0.0)) as agent:
        first = agent.add_activity("acme", "u-1", "seats")
        assert first.delivered(30)
        double.kill()
        receipts = [agent.add_meter_event("calls", customer_id=f"c-{n}", value="0.1") for n in range(50)]
        assert all(receipt.stored(30) for receipt in receipts)
        assert agent.books()["sidecar"].pending == 50
        double.rule(cut="after", count=1)  # taken, and the answer lost
        double.start()
        assert all(receipt.delivered(30) for receipt in receipts)
        until(lambda: agent.books()["sidecar"].delivered == 51)
        assert agent.books()["sidecar"].balanced
    assert max(double.offered.values()) == 2
    assert sorted(double.events) == sorted([first.id, *(receipt.id for receipt in receipts)])


def test_a_report_comes_through_the_sidecar_as_per_gives_it(tmp_path, double):
    with Agent(tmp_path / "data", [Sidecar(double.url, TOKEN)]) as agent:
        report = agent.get_report("2024-01-01T00:00:00Z")
        assert report == {
            "ok": True,
            "result": {"start": "2024-01-01T00:00:00Z", "end": None, "activityTypes": {}},
        }
        double.rule(path="/reports.get", ok_false="bad_dates")
        with pytest.raises(errors.Refused, match="bad_dates"):
            agent.get_report("soon")
    request = double.requests[0]
    assert (request["path"], request["headers"]["authorization"]) == ("/reports.get", f"Bearer {TOKEN}")


def test_meters_and_their_events_are_managed_through_the_sidecar(tmp_path, double):
    with Agent(tmp_path / "data", [Sidecar(double.address)]) as agent:
        made = agent.meters.create(name="API calls", event_name="api.calls", unit="calls")
        assert agent.meters.retrieve("api.calls") == made
        assert agent.meters.deactivate(made["id"])["status"] == "inactive"
        assert agent.meters.list(q="api")["count"] == 1
        assert agent.meter_events.list(customer_id="c")["count"] == 0
        assert all("livemode" not in request["query"] for request in double.requests)
        agent.meters.list(livemode=False)
        agent.meters.update(made["id"], name="Calls", livemode=False)
        assert [request["query"]["livemode"] for request in double.requests[-2:]] == ["false", "false"]
        double.stop()
        with pytest.raises(errors.Unavailable, match="not sent"):
            agent.meters.list()


def test_an_upstream_of_the_agent_s_own_is_asked_before_a_sidecar_and_a_ledger_after_it(double, upstream):
    per, sidecar, ledger = Per("a", "r", url=upstream.url), Sidecar(double.address), Ledger()
    reports_of([ledger, sidecar, per]).get_report()
    assert (upstream.score().requests, len(double.requests)) == (1, 0)
    reports_of([ledger, sidecar]).get_report()
    assert (upstream.score().requests, len(double.requests)) == (1, 1)
    for one in (per, sidecar, ledger):
        one.close()
