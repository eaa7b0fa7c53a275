"""Who answers reports and Payment Kit's calls: the upstream, a sidecar, the ledger, or nobody who could."""

import json

import pytest
from recorder_socket import RecorderSocket
from serving import Served

from per_agent import Agent, Ledger, PaymentKit, Per, Sidecar
from per_agent.destinations.memory import MemoryDestination
from per_agent.settings import Settings
from per_agent.sidecar.access import Access
from per_agent.sidecar.service import Service
from per_agent.sidecar.upstreams import Upstreams

REPORT = "/reports.get?start=2023-11-01T00%3A00:00Z"
METERS = "/api/meters?livemode=true"


@pytest.fixture
def serving(tmp_path):
    """A function from destinations to a served application of both families."""
    agents = []

    def serving(*destinations):
        agent = Agent(tmp_path / "data", destinations)
        agents.append(agent)
        upstreams = Upstreams(Service(agent, Settings(), Access("sidecar-token", Settings())))

        async def app(scope, receive, send):
            answers = upstreams.api if scope["path"].startswith("/api/") else upstreams.reports
            await answers(scope, receive, send)

        return Served(app, upstreams.close)

    yield serving
    for agent in agents:
        agent.close()


@pytest.fixture
def recorder():
    with RecorderSocket() as recorder:
        yield recorder


def test_reports_come_from_per_with_the_reporting_token(serving, recorder):
    with serving(Ledger(), Per("activity-1", "reporting-1", recorder.url + "/v1")) as served:
        assert served.get(REPORT).body == b"ok"
    assert recorder.heads[0][0] == b"GET /v1" + REPORT.encode() + b" HTTP/1.1"
    assert recorder.values(b"authorization") == [b"Bearer reporting-1"]


def test_calls_go_to_payment_kit_with_the_access_key(serving, recorder):
    with serving(Ledger(), PaymentKit(recorder.url + "/app", "blocklet-1")) as served:
        assert served.get("/api/customers/x?create=true").body == b"ok"
    assert recorder.heads[0][0] == b"GET /app/api/customers/x?create=true HTTP/1.1"
    assert recorder.values(b"authorization") == [b"Bearer blocklet-1"]


def test_tokens_and_times_are_those_that_the_destinations_have_now(serving, recorder):
    per, kit = Per("activity-1", "reporting-1", recorder.url), PaymentKit(recorder.url, "blocklet-1")
    with serving(per, kit) as served:
        per.authorize("activity-2", "reporting-2", timeout=10.0)
        served.get(REPORT)
        assert recorder.values(b"authorization") == [b"Bearer reporting-2"]
        kit.authorize("blocklet-2", timeout=0.25)
        served.get(METERS)
        assert recorder.values(b"authorization") == [b"Bearer blocklet-2"]
        recorder.answer = b""
        told = json.loads(served.get(METERS).body)["error"]
        assert told.startswith("payment_kit did not answer within 0.25 s")


def test_a_report_may_take_six_timeouts_of_per(serving, recorder):
    recorder.answer = b""
    with serving(Per("activity-1", "reporting-1", recorder.url, timeout=0.1)) as served:
        answer = served.get(REPORT)
    assert (answer.status, json.loads(answer.body)["ok"]) == (504, False)
    assert "within 0.6 s" in json.loads(answer.body)["error"]


def test_a_reporting_token_that_comes_later_is_used_from_then_on(serving, recorder):
    per = Per("activity-1", None, recorder.url)
    with serving(per) as served:
        assert served.get(REPORT).status == 404
        per.authorize("activity-1", "reporting-1", timeout=10.0)
        assert served.get(REPORT).status == 200
    assert recorder.values(b"authorization") == [b"Bearer reporting-1"]


def test_without_a_reporting_token_per_answers_those_who_bring_one(serving, recorder):
    with serving(Per("activity-1", None, recorder.url), Ledger()) as served:
        assert json.loads(served.get(REPORT).body)["ok"] is True  # the ledger's
        assert served.get(REPORT, "Authorization: Bearer mine").body == b"ok"
        assert recorder.values(b"authorization") == [b"Bearer mine"]
        served.authorized_by = "header"
        assert json.loads(served.get(REPORT, "Authorization: Bearer sidecar-token").body)["ok"] is True
    assert len(recorder.requests) == 1


def test_both_families_go_on_to_a_sidecar_that_is_a_destination(serving, tmp_path):
    path = str(tmp_path / "s")
    with (
        RecorderSocket(path=path) as recorder,
        serving(Ledger(), Sidecar(f"unix:{path}", "token-2")) as served,
    ):
        served.authorized_by = "header"
        for target in (REPORT, METERS):
            assert served.get(target, "Authorization: Bearer sidecar-token").body == b"ok"
            assert recorder.heads[-1][0] == f"GET {target} HTTP/1.1".encode()
            assert recorder.values(b"proxy-authorization") == [b"Bearer token-2"]
            assert recorder.values(b"authorization") == []


def test_a_sidecar_on_its_socket_needs_no_token(serving, tmp_path):
    path = str(tmp_path / "s")
    with RecorderSocket(path=path) as recorder, serving(Sidecar(f"unix:{path}")) as served:
        assert served.get(METERS).body == b"ok"
        assert recorder.values(b"proxy-authorization") == []


def test_per_and_payment_kit_come_before_a_sidecar(serving, recorder, tmp_path):
    destinations = (
        Sidecar(f"unix:{tmp_path}/nobody"),
        Per("activity-1", "reporting-1", recorder.url),
        PaymentKit(recorder.url, "blocklet-1"),
    )
    with serving(*destinations) as served:
        assert served.get(REPORT).body == served.get(METERS).body == b"ok"


def test_each_family_has_an_answerer_of_its_own(serving, recorder):
    with serving(Per("activity-1", "reporting-1", recorder.url), Ledger()) as served:
        assert served.get(REPORT).body == b"ok"
        assert json.loads(served.get(METERS).body)["count"] == 0
        assert len(recorder.requests) == 1


def test_the_ledger_answers_both(serving):
    with serving(Ledger()) as served:
        assert json.loads(served.get(REPORT).body)["result"]["activityTypes"] == {}
        assert json.loads(served.get(METERS).body)["list"] == []


def test_where_nobody_could_answer_it_is_said_what_to_configure(serving):
    with serving(MemoryDestination()) as served:
        report, meters = served.get(REPORT), served.get(METERS)
    assert (report.status, json.loads(report.body)["ok"]) == (404, False)
    assert "PER_REPORTING_TOKEN" in json.loads(report.body)["error"]
    assert meters.status == 404
    assert "PAYMENT_KIT_ACCESS_KEY" in json.loads(meters.body)["error"]


def test_what_comes_back_is_what_the_upstream_said(serving, upstream):
    upstream.settings(reporting_token="reporting-1", access_key="blocklet-1")
    kit = PaymentKit(upstream.url + "/app", "blocklet-1")
    with serving(Per("activity-1", "reporting-1", upstream.url), kit) as served:
        assert json.loads(served.get("/reports.get?end=x").body)["result"]["end"] == "x"
        assert json.loads(served.get("/api/meters/calls?livemode=false").body)["event_name"] == "calls"
        upstream.settings(reporting_token="other", gateway=302, access_key="other")
        report = served.get(REPORT)
        assert (report.status, json.loads(report.body)) == (
            401,
            {"ok": False, "message": "invalid_auth_token"},
        )
        assert served.get(METERS).all(b"location") == [b"/login"]
