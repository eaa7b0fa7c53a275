"""`Per`: what counts as delivered, and whose fault it is when it is not."""

import pytest

from per_agent import errors
from per_agent.destinations import Delivered, Halt, Refused, Retry
from per_agent.destinations.per import Per
from per_agent.event import Activity, MeterEvent

TOKEN = "activity-token-1"


def activity(user="u-17", billing="acme", kind="active-users"):
    return Activity("id-1", billing, user, kind, 1_700_000_000.0)


@pytest.fixture
def per(upstream):
    destination = Per(TOKEN, url=upstream.url, timeout=5.0)
    yield destination
    destination.close()


def outcome(per, **event):
    (one,) = per.send([activity(**event)])
    return one


def test_an_activity_is_one_get_that_no_cache_may_answer(per, upstream):
    assert outcome(per) == Delivered()
    (request,) = upstream.score().last
    assert (request["method"], request["path"]) == ("GET", "/activities.add")
    assert request["query"] == {"billingId": "acme", "userId": "u-17", "activityTypeId": "active-users"}
    assert request["headers"]["cache-control"] == "no-store"
    assert request["headers"]["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    "text",
    ["a b", "a+b", "a&userId=x", "a#b", "50%", "%41", "ü/é", "日本", "🙂", "a\nb", "?x", "a=b", "\x00"],
)
def test_ids_arrive_as_they_are(per, upstream, text):
    assert outcome(per, user=text, billing=text, kind=text) == Delivered()
    (counted,) = upstream.score().activities
    assert (counted["billingId"], counted["userId"], counted["activityTypeId"]) == (text, text, text)
    assert upstream.score().last[0]["target"].isascii()
    assert " " not in upstream.score().last[0]["target"]


@pytest.mark.parametrize(
    "body", [{"ok": True}, {"ok": True, "result": {"id": "1"}}, {"ok": True, "result": None}]
)
def test_ok_true_is_success_whatever_else_is_said(per, upstream, body):
    upstream.rule(status=200, body=body)
    assert outcome(per) == Delivered()


@pytest.mark.parametrize(
    "rule",
    [
        {"html": True},
        {"status": 200, "body": ""},
        {"status": 200, "body": "OK"},
        {"status": 200, "body": [True]},
        {"status": 200, "body": {"ok": "true"}},
        {"status": 200, "body": {"ok": 1}},
        {"status": 200, "body": {"result": {"transactionId": "1"}}},
        {"status": 200, "body": '{"ok":true,}'},
        {"status": 201, "body": {"ok": True}},
        {"status": 204, "body": ""},
        {"redirect": "/login"},
        {"status": 301, "redirect": "https://elsewhere.example/"},
        {"status": 401, "body": {"ok": False, "message": "invalid_auth_token"}},
        {"status": 401, "body": "no"},
        {"ok_false": "invalid_auth_token"},
        {"status": 200, "body": {"ok": False, "message": "invalid_auth_token"}},
        {"status": 400, "body": {"ok": False, "message": "invalid_auth_token"}},
        {"status": 403},
        {"status": 404, "html": True},
        {"status": 407},
    ],
)
def test_what_concerns_all_events_halts(per, upstream, rule):
    upstream.rule(**rule)
    assert isinstance(outcome(per), Halt)
    assert upstream.score().requests == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_what_time_heals_is_tried_again_when_the_upstream_says(per, upstream, status):
    upstream.rule(status=status, headers={"Retry-After": "2"})
    answer = outcome(per)
    assert isinstance(answer, Retry)
    assert answer.after == 2.0
    assert answer.reason.startswith(f"HTTP {status}: ")


@pytest.mark.parametrize("header", [None, "soon", "-1", "9" * 400])
def test_a_wait_that_makes_no_sense_is_none_or_bounded(per, upstream, header):
    upstream.rule(status=429, headers={} if header is None else {"Retry-After": header})
    assert outcome(per).after in (None, 300.0)


@pytest.mark.parametrize("trouble", [{"cut": "before"}, {"cut": "after"}, {"truncate": True}])
def test_a_lost_answer_is_tried_again_because_repeats_do_not_count(per, upstream, trouble):
    upstream.rule(count=1, **trouble)
    first = outcome(per)
    assert isinstance(first, Retry)
    assert first.after is None
    assert outcome(per) == Delivered()


def test_an_error_name_that_is_not_documented_is_uncertain_and_told_in_its_own_words(per, upstream):
    upstream.rule(ok_false="plan_limit", users=["bad"])
    assert outcome(per, user="bad") == Refused("HTTP 200: plan_limit", certain=False)
    assert outcome(per, user="good") == Delivered()


@pytest.mark.parametrize("status", [400, 402, 405, 410, 414, 422, 451])
def test_other_4xx_are_undocumented_and_so_uncertain(per, upstream, status):
    upstream.rule(status=status, body={"error": "who knows"})
    assert outcome(per) == Refused(f"HTTP {status}: who knows", certain=False)


def test_ids_that_make_no_address_are_refused_for_good_and_hold_up_nobody(per, upstream):
    too_long, well = per.send([activity(user="x" * 70_000), activity()])
    assert isinstance(too_long, Refused)
    assert too_long.certain
    assert well == Delivered()


def test_a_wrong_token_halts_and_is_quoted_nowhere(upstream):
    upstream.settings(activity_token="another")
    per = Per(TOKEN, "reporting-token-1", url=upstream.url)
    answer = outcome(per)
    per.close()
    assert isinstance(answer, Halt)
    for text in (repr(per), repr(answer), str(vars(per))):
        assert TOKEN not in text
        assert "reporting-token-1" not in text


@pytest.mark.parametrize("bad", [("", None), ("a b", None), ("a", ""), ("a", "b\n")])
def test_a_token_that_cannot_be_one_is_refused_at_once(bad):
    with pytest.raises(errors.ConfigError) as caught:
        Per(*bad)
    assert "token" in str(caught.value)


def test_events_of_another_kind_are_a_mistake_of_ours(per):
    with pytest.raises(TypeError):
        per.send([MeterEvent("i", "n", "c", "1", 0.0)])


def test_a_mount_path_in_the_address_is_kept(upstream):
    per = Per(TOKEN, url=upstream.url + "/proxy/per/")
    assert outcome(per) == Delivered()
    per.close()
    assert upstream.score().last[0]["path"] == "/proxy/per/activities.add"
