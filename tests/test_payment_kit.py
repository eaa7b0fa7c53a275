"""`PaymentKit`: stored once under one identifier, in the mode that is meant, and never lost to a misread answer."""

import logging

import msgspec
import pytest

from per_agent import errors
from per_agent.destinations import Delivered, Halt, Parked, Refused, Retry
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.event import Activity, MeterEvent

KEY = "blocklet-z1abcdef"
GATEWAY_404 = {"status": 404, "body": {"code": 404, "error": "Not Found"}}
POST = {"method": "POST", "path": "*/api/meter-events"}


def meter_event(id="id-1", name="api.calls.v1", customer="cus_9", value="3", **more):
    return MeterEvent(id, name, customer, value, 1_700_000_000.9, **more)


@pytest.fixture
def kit(upstream):
    destination = PaymentKit(upstream.url, KEY, timeout=5.0)
    yield destination
    destination.close()


def outcome(kit, **event):
    (one,) = kit.send([meter_event(**event)])
    return one


def asked(upstream):
    return [(one["method"], one["path"]) for one in upstream.score().last]


# What is sent


def test_an_event_is_one_post_with_its_mode_in_the_query_and_its_own_time(kit, upstream):
    assert (
        outcome(kit, subscription_id="sub_1", metadata='{"a":{"b":[1.50,null]}}', source_data='[{"key":"k"}]')
        == Delivered()
    )
    (request,) = upstream.score().last
    assert (request["method"], request["target"]) == ("POST", "/api/meter-events?livemode=true")
    assert request["headers"]["authorization"] == f"Bearer {KEY}"
    assert request["headers"]["content-type"] == "application/json"
    assert msgspec.json.decode(request["body"]) == {
        "event_name": "api.calls.v1",
        "identifier": "id-1",
        "timestamp": 1_700_000_000,
        "payload": {"customer_id": "cus_9", "value": "3", "subscription_id": "sub_1"},
        "metadata": {"a": {"b": [1.5, None]}},
        "source_data": [{"key": "k"}],
    }
    assert '"metadata":{"a":{"b":[1.50,null]}}' in request["body"]


def test_what_an_event_does_not_have_is_left_out(kit, upstream):
    outcome(kit)
    body = msgspec.json.decode(upstream.score().last[0]["body"])
    assert body.keys() == {"event_name", "identifier", "timestamp", "payload"}
    assert body["payload"] == {"customer_id": "cus_9", "value": "3"}


@pytest.mark.parametrize(
    ("destination", "event", "sent"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
def test_the_event_s_mode_wins_over_the_destination_s(upstream, destination, event, sent):
    kit = PaymentKit(upstream.url, KEY, destination)
    outcome(kit, livemode=event)
    kit.close()
    assert upstream.score().meter_events[0]["livemode"] is sent


def test_a_mount_path_is_kept(upstream):
    kit = PaymentKit(upstream.url + "/app/", KEY)
    assert outcome(kit) == Delivered()
    kit.close()
    assert upstream.score().last[0]["path"] == "/app/api/meter-events"


def test_values_are_sent_as_the_text_they_are(kit, upstream):
    for number, value in enumerate(["0.00000087", "10", "-1.50", "0"]):
        outcome(kit, id=str(number), value=value)
    assert [one["payload"]["value"] for one in upstream.score().meter_events] == [
        "0.00000087",
        "10",
        "-1.50",
        "0",
    ]


# What is believed


@pytest.mark.parametrize(
    "rule",
    [
        {"html": True},
        {"status": 200, "body": ""},
        {"status": 200, "body": {"ok": True}},
        {"status": 201, "body": {"id": ""}},
        {"status": 200, "body": [{"id": "mevt_1"}]},
        {"status": 200, "body": {"id": "mevt_1", "identifier": "another"}},
        {"status": 204, "body": ""},
        {"redirect": "/login"},
        {"status": 401},
        {"status": 403, "body": {"error": "Not authorized"}},
        {"status": 403, "body": "Customer not found"},
        {"status": 400, "body": "Access token found in multiple locations"},
        {"status": 409, "body": {"error": "the identifier exists", "identifier": "another"}},
    ],
)
def test_what_concerns_all_events_halts(kit, upstream, rule):
    upstream.rule(**rule)
    assert isinstance(outcome(kit), Halt)
    assert upstream.score().requests == 1


@pytest.mark.parametrize(
    "body", [{"id": "mevt_1"}, {"id": 7, "identifier": "id-1"}, {"id": "m", "identifier": None}]
)
def test_a_stored_event_is_one_with_an_id_and_no_other_identifier(kit, upstream, body):
    upstream.rule(status=200, body=body)
    assert outcome(kit) == Delivered()


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_time_heals_is_tried_again_when_the_upstream_says(kit, upstream, status):
    upstream.rule(
        status=status, headers={"Retry-After": "2"}, body={"error": "identifier exists; meter not found"}
    )
    answer = outcome(kit)
    assert isinstance(answer, Retry)
    assert answer.after == 2.0
    assert upstream.score().requests == 1


def test_an_event_whose_answer_was_lost_is_counted_once_however_often_it_is_sent(kit, upstream):
    upstream.rule(cut="after", count=1)
    assert isinstance(outcome(kit), Retry)
    assert outcome(kit) == Delivered()
    assert outcome(kit) == Delivered()
    score = upstream.score()
    assert score.identifiers == ["id-1"]
    assert score.duplicates == 2


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (409, ""),
        (409, {"error": "Conflict"}),
        (400, {"error": "Meter event with this identifier already exists"}),
        (400, {"message": "Duplicate identifier"}),
        (422, {"error": "ValidationError", "message": "identifier must be unique"}),
        (400, {"error": {"message": 'The "identifier" id-1 has ALREADY been used'}}),
        (400, "IDENTIFIER_EXISTS"),
        (400, {"error": "identifier must not already exist"}),
        (404, {"error": "identifier already exists"}),
    ],
)
def test_a_duplicate_is_a_success_in_whatever_words(kit, upstream, status, body):
    upstream.settings(duplicate={"status": status, "body": body})
    assert outcome(kit) == Delivered()
    assert outcome(kit) == Delivered()
    assert upstream.score().identifiers == ["id-1"]


@pytest.mark.parametrize(
    "text",
    [
        "customer identifier does not exist",
        "No such identifier exists",
        'event with identifier "id-1": nothing known',
        "already been taken care of",
    ],
)
def test_words_that_only_look_like_a_duplicate_deliver_nothing(kit, upstream, text):
    upstream.rule(status=400, body={"error": text}, **POST)
    assert outcome(kit) != Delivered()


@pytest.mark.parametrize(
    "text",
    ["", "Conflict", "conflict: the database is locked, try again", "the application is being upgraded"],
)
def test_a_409_for_an_event_that_is_not_stored_delivers_nothing(kit, upstream, text):
    upstream.rule(status=409, body={"error": text}, **POST)
    answer = outcome(kit)
    assert isinstance(answer, Refused)
    assert not answer.certain
    assert upstream.score().identifiers == []


def test_words_that_nobody_knows_are_checked_against_the_stored_events(kit, upstream):
    upstream.settings(duplicate={"status": 400, "body": {"error": "E1042"}})
    upstream.rule(cut="after", count=1)
    outcome(kit)
    assert outcome(kit) == Delivered()
    assert asked(upstream)[-1] == ("GET", "/api/meter-events")
    upstream.rule(status=400, body={"error": "E1042"}, **POST)
    assert outcome(kit, id="id-2") == Refused("HTTP 400: E1042", certain=False)


def test_the_stored_events_are_looked_through_page_by_page(kit, upstream):
    kit.send([meter_event(id=f"id-{number}") for number in range(250)])
    upstream.settings(duplicate={"status": 400, "body": {"error": "E1042"}})
    assert outcome(kit, id="id-249") == Delivered()
    upstream.settings(duplicate={"status": 400, "body": {"error": "E1042"}})
    upstream.rule(status=400, body={"error": "E1042"}, **POST)
    assert outcome(kit, id="id-999") == Refused("HTTP 400: E1042", certain=False)


def test_what_cannot_be_checked_yet_is_tried_again(kit, upstream):
    upstream.rule(status=400, body={"error": "E1042"}, **POST)
    upstream.rule(status=503, method="GET", headers={"Retry-After": "3"})
    answer = outcome(kit)
    assert isinstance(answer, Retry)
    assert answer.after == 3.0


# Whose fault


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, '"payload.value" must be a string'),
        (400, '"payload.customer_id" is not allowed to be empty'),
        (422, "ValidationError: timestamp must be a number"),
        (400, '"identifier" length must be less than or equal to 255 characters long'),
        (413, "request entity too large"),
    ],
)
def test_a_field_that_is_wrong_is_refused_for_good(kit, upstream, status, text):
    upstream.rule(status=status, body={"error": text})
    answer = outcome(kit)
    assert isinstance(answer, Refused)
    assert answer.certain
    assert text in answer.reason
    assert upstream.score().requests == 1


@pytest.mark.parametrize("status", [405, 410, 415, 418])
def test_other_4xx_are_undocumented_and_so_uncertain(kit, upstream, status):
    upstream.rule(status=status, body={"error": "who knows"})
    assert outcome(kit) == Refused(f"HTTP {status}: who knows", certain=False)


@pytest.mark.parametrize("status", [400, 404, 409, 422])
@pytest.mark.parametrize("state", ["inactive", "unknown"])
def test_a_meter_that_is_not_there_or_not_active_parks_its_events_alone(kit, upstream, status, state):
    upstream.settings(meters={"off": state}, meter_status=status)
    answer = outcome(kit, name="off")
    assert isinstance(answer, Parked)
    assert answer.key == "meter:live:off"
    assert not kit.probe(answer.key)
    assert outcome(kit, id="id-2") == Delivered()
    upstream.settings(meters={"off": "active"})
    assert kit.probe(answer.key)
    assert outcome(kit, name="off") == Delivered()


def test_an_event_in_test_mode_waits_for_the_test_mode_s_meter(kit, upstream):
    upstream.settings(unknown_meters=True)
    assert outcome(kit, name="m:x", livemode=False).key == "meter:test:m:x"
    assert not kit.probe("meter:test:m:x")
    assert upstream.score().last[-1]["target"] == "/api/meters/m%3Ax?livemode=false"


@pytest.mark.parametrize(
    "text",
    [
        "Meter is not active",
        "No such meter",
        "Unknown event_name",
        "Invalid meter",
        "event name not found",
        "meter doesn't exist",
    ],
)
def test_many_words_for_a_missing_meter_are_understood(kit, upstream, text):
    upstream.rule(status=400, body={"error": text})
    assert outcome(kit).key == "meter:live:api.calls.v1"


@pytest.mark.parametrize(
    "name", ["customer.created", "identifier.exists", "meter-readings", "a.b", "x", "meter", "already"]
)
def test_the_event_s_own_texts_are_not_mistaken_for_the_upstream_s_words(kit, upstream, name):
    upstream.rule(status=400, body={"error": f'"{name}": Meter {name} is inactive'}, events=[name])
    assert outcome(kit, name=name).key == f"meter:live:{name}"
    upstream.clear_rules()
    upstream.rule(status=400, body={"error": f"{name}: customer cus_9 was not found"}, **POST)
    if name != "meter":
        assert outcome(kit, name=name).key == "customer:live:cus_9"


def test_a_page_s_words_mean_nothing(kit, upstream):
    page = "<html><title>identifier already exists, meter not found</title></html>"
    upstream.rule(status=400, body=page, headers={"Content-Type": "text/html"}, **POST)
    assert isinstance(outcome(kit), Refused)


@pytest.mark.parametrize("status", [400, 404, 422])
def test_an_unknown_customer_is_made_once_and_the_event_sent_again(kit, upstream, status):
    upstream.settings(customers={"did:x/1": "unknown"}, customer_status=status)
    assert outcome(kit, customer="did:x/1") == Delivered()
    assert asked(upstream) == [
        ("POST", "/api/meter-events"),
        ("GET", "/api/customers/did%3Ax%2F1"),
        ("POST", "/api/meter-events"),
    ]
    assert upstream.score().last[1]["query"] == {"create": "true", "livemode": "true"}


def test_a_customer_that_cannot_be_made_parks_its_events_until_it_can(kit, upstream):
    upstream.settings(customers={"bad": "uncreatable"})
    answer = outcome(kit, customer="bad")
    assert isinstance(answer, Parked)
    assert answer.key == "customer:live:bad"
    assert not kit.probe(answer.key)
    assert outcome(kit, id="id-2") == Delivered()
    upstream.settings(customers={"bad": "unknown"})
    assert kit.probe(answer.key)
    assert outcome(kit, customer="bad") == Delivered()


def test_a_customer_that_was_made_and_is_refused_still_is_not_made_for_ever(kit, upstream):
    upstream.rule(status=400, body={"error": "Subscription not found"}, **POST)
    for _ in range(3):
        assert outcome(kit, subscription_id="sub_1").key == "customer:live:cus_9"
    assert [method for method, _ in asked(upstream)].count("GET") == 1


@pytest.mark.parametrize(("status", "kind"), [(500, Parked), (503, Retry), (429, Retry)])
def test_one_customer_that_breaks_the_upstream_stops_no_others(kit, upstream, status, kind):
    upstream.settings(customers={"bad": "unknown"})
    upstream.rule(status=status, path="*/customers/bad", headers={"Retry-After": "4"})
    answer = outcome(kit, customer="bad")
    assert isinstance(answer, kind)
    if kind is Retry:
        assert answer.after == 4.0


def test_a_customer_that_must_pay_first_waits(kit, upstream):
    upstream.rule(status=402, body={"error": "Payment required"})
    assert outcome(kit) == Parked("customer:live:cus_9", "HTTP 402: Payment required")


# 404, which may hide anything


def test_a_gateway_s_404_halts_because_the_access_key_may_have_lapsed(upstream):
    upstream.settings(access_key="the good one")
    kit = PaymentKit(upstream.url, KEY)
    assert isinstance(outcome(kit), Halt)
    kit.close()
    assert asked(upstream) == [("POST", "/api/meter-events"), ("GET", "/api/meters/api.calls.v1")]


@pytest.mark.parametrize(
    "post", [GATEWAY_404, {"status": 404, "html": True}, {"status": 404, "body": {"error": "gone"}}]
)
@pytest.mark.parametrize(
    ("meter", "expected"),
    [
        ({"status": 200, "body": {"id": "mtr_1", "status": "active"}}, Refused),
        ({"status": 200, "body": {"id": "mtr_1", "status": "inactive"}}, Parked),
        ({"status": 404, "body": {"error": "Meter not found"}}, Parked),
        ({"status": 500}, Parked),
        (GATEWAY_404, Halt),
        ({"status": 404, "html": True}, Halt),
        ({"status": 200, "html": True}, Halt),
        ({"redirect": "/login"}, Halt),
        ({"status": 401}, Halt),
        ({"status": 403}, Halt),
        ({"status": 503}, Retry),
    ],
)
def test_a_404_is_the_event_s_fault_only_where_its_meter_can_be_read(kit, upstream, post, meter, expected):
    upstream.rule(**POST, **post)
    upstream.rule(method="GET", **meter)
    answer = outcome(kit)
    assert isinstance(answer, expected)
    if expected is Refused:
        assert not answer.certain


# Probes, logs, secrets


@pytest.mark.parametrize("key", ["meter:live:a", "customer:live:c"])
@pytest.mark.parametrize(
    "rule", [{"html": True}, {"redirect": "/"}, GATEWAY_404, {"status": 503}, {"cut": "before"}]
)
def test_a_probe_believes_only_what_it_asked_for(kit, upstream, key, rule):
    upstream.rule(**rule)
    assert kit.probe(key) is False


def test_a_key_that_this_version_does_not_write_may_go_on(kit):
    assert kit.probe("moon:full") is True
    assert kit.probe("") is True
    assert kit.probe("meter:live:") is True


def test_an_event_stored_in_another_mode_is_delivered_and_told_once_without_ids(kit, upstream, caplog):
    upstream.settings(echo={"livemode": False})
    with caplog.at_level(logging.WARNING, "per_agent"):
        assert outcome(kit) == Delivered()
        assert outcome(kit, id="id-2") == Delivered()
    (record,) = caplog.records
    assert "mode" in record.getMessage()
    assert "id-1" not in record.getMessage()
    assert "cus_9" not in record.getMessage()


def test_the_first_words_for_a_duplicate_are_logged_without_ids(kit, upstream, caplog):
    upstream.settings(
        duplicate={"status": 400, "body": {"error": f"identifier id-1 of cus_9 exists, says {KEY}"}}
    )
    with caplog.at_level(logging.WARNING, "per_agent"):
        for _ in range(3):
            outcome(kit)
    (record,) = caplog.records
    text = record.getMessage()
    assert "exists" in text
    for hidden in ("id-1", "cus_9", KEY):
        assert hidden not in text


def test_the_access_key_is_quoted_nowhere(upstream):
    kit = PaymentKit(upstream.url, KEY)
    upstream.rule(status=400, body={"error": f"odd: {KEY}"}, **POST)
    answer = outcome(kit)
    kit.close()
    assert KEY not in repr(kit) + repr(answer) + str(vars(kit))
    with pytest.raises(errors.ConfigError) as caught:
        PaymentKit(upstream.url, KEY + "\n")
    assert KEY not in str(caught.value)


def test_a_customer_id_that_makes_no_address_is_refused_for_good(kit, upstream):
    long = "x" * 66_000
    upstream.settings(customers={long: "unknown"})
    answer = outcome(kit, customer=long)
    assert isinstance(answer, Refused)
    assert answer.certain
    assert kit.probe(f"customer:live:{long}") is False


def test_events_of_another_kind_are_a_mistake_of_ours(kit):
    with pytest.raises(TypeError):
        kit.send([Activity("i", "b", "u", "t", 0.0)])
