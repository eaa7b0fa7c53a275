"""The intake over HTTP: three wire forms, one agent behind them, and an answer that means what it says."""

import gzip
import json
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sidecar_process import SidecarProcess
from waiting import until

ACTIVITY = {"billing_id": "acme", "user_id": "u-17", "activity_type_id": "active-users"}


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory):
    with SidecarProcess(tmp_path_factory.mktemp("sidecar")) as running:
        with running.client() as client:
            for mode in ("true", "false"):  # without their meters, meter events would wait
                meter = {"name": "T", "event_name": "tokens", "unit": "t"}
                client.post(f"/api/meters?livemode={mode}", json=meter).raise_for_status()
        yield running


@pytest.fixture
def client(sidecar):
    with sidecar.client() as client:
        yield client


def usage(name, **more):
    return {
        "event_name": "tokens",
        "identifier": name,
        "payload": {"customer_id": "c", "value": "0.10"},
        **more,
    }


def activity(name, **more):
    return {**ACTIVITY, "id": name, **more}


def commits(sidecar):
    with sidecar.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("per_agent_spool_commits_total")).split()[1])


# Our own form


def test_one_event_is_answered_with_its_id(client):
    answer = client.post("/v1/events", json=activity("one"))
    assert answer.status_code == 202
    assert answer.json() == {"accepted": 1, "ids": ["one"], "stored": False}


def test_an_answer_waits_for_the_disk_when_it_is_asked_to(client):
    assert client.post("/v1/events?wait=stored", json=ACTIVITY).json()["stored"] is True


def test_an_array_accepts_the_good_and_names_the_bad_by_position(client):
    answer = client.post("/v1/events", json=[activity("a0"), {**ACTIVITY, "user_id": ""}, 7, activity("a3")])
    assert answer.status_code == 207
    said = answer.json()
    assert (said["accepted"], said["ids"]) == (2, ["a0", None, None, "a3"])
    assert said["rejected"] == [
        {"position": 1, "errors": {"user_id": "must not be empty"}},
        {"position": 2, "errors": {"event": "must be a JSON object, not an int"}},
    ]


def test_ndjson_names_the_line_too(client):
    lines = [json.dumps(activity("l0")), "", "{oops", json.dumps(activity("l2", at="yesterday"))]
    answer = client.post(
        "/v1/events", content="\n".join(lines), headers={"content-type": "application/x-ndjson"}
    )
    assert answer.status_code == 207
    said = answer.json()
    assert said["ids"] == ["l0", None, None]
    assert [(bad["position"], bad["line"]) for bad in said["rejected"]] == [(1, 3), (2, 4)]
    assert "JSON" in said["rejected"][0]["errors"]["event"]
    assert "ISO 8601" in said["rejected"][1]["errors"]["at"]


def test_one_bad_event_is_a_problem_document_that_names_field_and_problem(client):
    answer = client.post("/v1/events", json={**ACTIVITY, "user_id": 7, "usr": "x"})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    said = answer.json()
    assert said["status"] == 400
    assert said["errors"] == {
        "user_id": "must be a string, not an int",
        "usr": "is not a field of an activity",
    }
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("wait", ["yes", "delivered", ""])
def test_a_wrong_wait_is_told_before_anything_is_accepted(sidecar, client, wait):
    before = sidecar.books()["accepted"]
    answer = client.post(f"/v1/events?wait={wait}", json=ACTIVITY)
    assert answer.status_code == 400
    assert "wait" in answer.json()["errors"]
    assert sidecar.books()["accepted"] == before


@pytest.mark.parametrize("content", [b"", b"[]", b"  \n", b"null", b'"text"'])
def test_a_request_without_an_event_is_told_so(client, content):
    answer = client.post("/v1/events", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_numbers_stay_exact_on_the_way(sidecar, client):
    client.post("/api/meters", json={"name": "E", "event_name": "exact", "unit": "x"}).raise_for_status()
    event = '{"event_name":"exact","identifier":"e1","customer_id":"c","value":0.1}'
    client.post("/v1/events", content=event).raise_for_status()
    sidecar.drained()
    listed = client.get("/api/meter-events?event_name=exact").json()["list"]
    assert [each["payload"]["value"] for each in listed] == ["0.1"]


def test_gzip_and_chunked_bodies_are_read(client):
    packed = gzip.compress(json.dumps(activity("zipped")).encode())
    assert client.post("/v1/events", content=packed, headers={"content-encoding": "gzip"}).json()["ids"] == [
        "zipped"
    ]

    def pieces():
        for piece in json.dumps(activity("chunked")).encode().split(b","):
            yield piece + b","

    content = b"".join(pieces())[:-1]
    assert client.post("/v1/events", content=iter([content[:10], content[10:]])).json()["ids"] == ["chunked"]


def test_the_same_identifier_again_is_accepted_once(sidecar, client):
    before = sidecar.books()["accepted"]
    for _ in range(3):
        answer = client.post("/v1/events?wait=stored", json=activity("again"))
        assert answer.json() == {"accepted": 1, "ids": ["again"], "stored": True}
    assert sidecar.books()["accepted"] == before + 1


def test_an_activity_and_a_meter_event_of_one_name_are_two(sidecar, client):
    before = sidecar.books()["accepted"]
    client.post("/v1/events?wait=stored", json=activity("namesake")).raise_for_status()
    client.post("/api/meter-events?wait=stored", json=usage("namesake")).raise_for_status()
    assert sidecar.books()["accepted"] == before + 2


def test_many_who_wait_share_few_commits(sidecar):
    ready = threading.Barrier(50)

    def one(number):
        with sidecar.client() as client:
            client.get("/healthz")
            ready.wait(30)
            return [
                client.post("/v1/events?wait=stored", json=activity(f"w{number}-{n}")).json()["stored"]
                for n in range(4)
            ]

    before = commits(sidecar)
    with ThreadPoolExecutor(50) as pool:
        assert all(stored for each in pool.map(one, range(50)) for stored in each)
    # 200 events were waited for; deliveries are commits as well.
    assert commits(sidecar) - before < 150


# Per's form


def test_per_clients_get_the_answer_that_they_know(client):
    answer = client.get("/activities.add?billingId=acme&userId=u%2B1%20%C3%A9&activityTypeId=active-users")
    assert answer.status_code == 200
    said = answer.json()
    assert said["ok"] is True
    assert said["result"]["transactionId"]


@pytest.mark.parametrize(
    "how",
    [
        {"data": {"billingId": "acme", "userId": "u", "activityTypeId": "t"}},
        {"json": {"billingId": "acme", "userId": "u", "activityTypeId": "t"}},
        {"params": {"billingId": "acme", "userId": "u", "activityTypeId": "t"}},
    ],
    ids=["form", "json", "query"],
)
def test_per_is_posted_to_as_well(client, how):
    answer = client.post("/activities.add", **how)
    assert (answer.status_code, answer.json()["ok"]) == (200, True)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("billingId=a&activityTypeId=t", "userId: is missing"),
        ("billingId=&userId=u&activityTypeId=t", "billingId: must not be empty"),
        ("billingId=a&billingId=b&userId=u&activityTypeId=t", "billingId: is given twice"),
        ("billingId=%ff&userId=u&activityTypeId=t", "UTF-8"),
    ],
)
def test_per_clients_are_told_what_is_wrong_in_their_shape(client, query, words):
    answer = client.get(f"/activities.add?{query}")
    assert answer.status_code == 400
    assert answer.json()["ok"] is False
    assert words in answer.json()["error"]


def test_the_report_is_answered_from_the_ledger(sidecar, client):
    client.get(
        "/activities.add?wait=stored&billingId=reported&userId=u&activityTypeId=seen"
    ).raise_for_status()
    sidecar.drained()
    said = client.get("/reports.get?start=2026-01-01T00:00:00Z").json()
    assert said["ok"] is True
    assert said["result"]["activityTypes"]["seen"]["billingIds"] == {"reported": {"unique": 1}}


# Payment Kit's form


def test_payment_kit_clients_get_a_meter_event(client):
    event = usage("pk-1", timestamp=1_700_000_000, metadata={"n": 1.50})
    answer = client.post("/api/meter-events?livemode=false", json=event)
    assert answer.status_code == 200
    said = answer.json()
    assert {
        key: said[key] for key in ("id", "object", "event_name", "identifier", "timestamp", "livemode")
    } == {
        "id": "pk-1",
        "object": "meter_event",
        "event_name": "tokens",
        "identifier": "pk-1",
        "timestamp": 1_700_000_000,
        "livemode": False,
    }
    assert (said["status"], said["credit_consumed"], said["credit_pending"]) == ("pending", "0", "0")
    assert said["payload"] == {"customer_id": "c", "value": "0.10", "subscription_id": None}


def test_payment_kits_identifier_is_accepted_once(sidecar, client):
    before = sidecar.books()["accepted"]
    for _ in range(3):
        assert client.post("/api/meter-events?wait=stored", json=usage("pk-twice")).status_code == 200
    assert sidecar.books()["accepted"] == before + 1


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event_name": "t", "payload": {"customer_id": "c", "value": "1"}}, "identifier: is missing"),
        (usage("x", payload={"customer_id": "c"}), "payload.value: is missing"),
        (usage("x", payload={"customer_id": "c", "value": "1e3"}), "payload.value: must be a plain decimal"),
        (usage("x", payload=7), "payload: must be an object"),
        (usage("x", extra=1), "extra: is not a field"),
        ([1], "must be a JSON object"),
    ],
)
def test_payment_kit_clients_are_told_what_is_wrong_in_their_shape(client, event, words):
    answer = client.post("/api/meter-events", json=event)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_the_mode_stands_in_the_query_and_nowhere_else(client):
    said = client.post("/api/meter-events?livemode=true", json=usage("mode", livemode=False)).json()
    assert said["livemode"] is True
    assert client.post("/api/meter-events?livemode=perhaps", json=usage("mode2")).status_code == 400


# Who may


def test_the_tcp_port_wants_a_token_in_each_forms_shape(sidecar):
    with sidecar.tcp(None) as client:
        for path, shape in (
            ("/activities.add?billingId=a", {"ok", "error", "message"}),
            ("/api/meters", {"error"}),
            ("/v1/status", {"type", "title", "status", "detail"}),
        ):
            answer = client.get(path)
            assert answer.status_code == 401
            assert set(answer.json()) == shape
            assert "Bearer" in answer.headers["www-authenticate"]
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
    with sidecar.tcp() as client:
        assert client.get("/v1/status").status_code == 200


# Starting and stopping


def test_a_full_spool_answers_503_and_loses_nothing(tmp_path):
    config = (
        '[spool]\nmax_bytes = "128 KiB"\n[delivery]\nbackoff_max = 0.5\n[destinations.up]\n'
        f'type = "sidecar"\nurl = "unix:{tmp_path}/nobody"\n'
    )
    with SidecarProcess(tmp_path / "s", config) as full, full.client() as client:
        accepted = 0
        answer = None
        for _ in range(10_000):
            batch = [{**ACTIVITY, "user_id": "u" * 500} for _ in range(100)]
            answer = client.post("/v1/events", json=batch)
            accepted += answer.json()["accepted"]
            if answer.status_code != 202:
                break
        assert answer is not None
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("/readyz").status_code == 503
        books = until(lambda: (b := full.books("up"))["accepted"] == accepted and b)
        assert (books["pending"], books["dropped"], books["balanced"]) == (accepted, 0, True)


def test_sigterm_stores_everything_and_a_successor_delivers_it(tmp_path):
    sidecar = SidecarProcess(tmp_path, "[intake]\nlinger = 60\n")
    with sidecar:
        with sidecar.client() as client:
            client.post("/v1/events?wait=stored", json=activity("first"))
            for number in range(50):
                client.post("/v1/events", json=activity(f"t{number}")).raise_for_status()
        assert sidecar.stop() == 0
        assert not sidecar.socket.exists()
        sidecar.start()
        assert sidecar.drained()["delivered"] == 51


def test_a_second_sigterm_does_not_wait_for_deliveries(tmp_path, upstream):
    upstream.rule(delay=2.0)
    config = f'[destinations.per]\ntype = "per"\nurl = "{upstream.url}"\nactivity_token = "t-activity"\nconcurrency = 1\n'
    with SidecarProcess(tmp_path, config, {"shutdown_timeout": "60.0"}) as sidecar:
        with sidecar.client() as client:
            client.post("/v1/events?wait=stored", json=[activity(f"s{n}") for n in range(100)])
        sidecar.signal()
        until(lambda: "stopping" in sidecar.said())
        sidecar.signal(signal.SIGINT)
        assert sidecar.wait(20) == 0
        assert any(line.get("kept_on_the_disk", 0) > 0 for line in sidecar.lines())


def test_sighup_takes_a_new_token_over_and_keeps_the_old_one_when_the_file_is_bad(tmp_path):
    with SidecarProcess(tmp_path) as sidecar:
        sidecar.settings["token"] = '"another-token-for-tests"'
        sidecar.write()
        sidecar.signal(signal.SIGHUP)
        until(lambda: "was read again" in sidecar.said())
        with sidecar.tcp("another-token-for-tests") as new, sidecar.tcp() as old:
            assert new.get("/v1/status").status_code == 200
            assert old.get("/v1/status").status_code == 401
            sidecar.config.write_text("[sidecar]\ntoken = 7\nlisten = 'nowhere'\n")
            sidecar.signal(signal.SIGHUP)
            until(lambda: "the old one stays" in sidecar.said())
            assert new.get("/v1/status").status_code == 200
        assert "another-token" not in sidecar.said()


def test_without_a_token_one_is_made_and_kept_for_its_owner(tmp_path):
    sidecar = SidecarProcess(tmp_path)
    del sidecar.settings["token"]
    sidecar.write()
    with sidecar:
        file = sidecar.data_dir / "sidecar.token"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        first = file.read_text().strip()
        lines = [line for line in sidecar.said().splitlines() if line.strip().startswith("curl ")]
        assert len(lines) == 2
        for line in lines:
            done = subprocess.run(
                ["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True
            )
            assert json.loads(done.stdout)["accepted"] == 1
        assert first not in sidecar.said()
        sidecar.stop()
        sidecar.start()
        assert file.read_text().strip() == first


def run(config: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "per_agent.cli", "run", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_second_sidecar_on_one_socket_says_so_and_disturbs_nobody(sidecar, client):
    done = run(sidecar.config)
    assert done.returncode == 2
    assert "another sidecar listens" in done.stderr
    assert client.get("/readyz").status_code == 200


def test_a_port_in_use_is_told(sidecar, tmp_path):
    other = SidecarProcess(tmp_path, sidecar={"listen": f'"127.0.0.1:{sidecar.port}"'})
    done = run(other.config)
    assert done.returncode == 2
    assert str(sidecar.port) in done.stderr
    assert "another process" in done.stderr
    assert not other.socket.exists()


def test_the_socket_file_of_a_process_that_was_killed_is_replaced(tmp_path):
    with SidecarProcess(tmp_path) as sidecar:
        sidecar.kill()
        assert sidecar.socket.exists()
        sidecar.start()
        assert stat.S_IMODE(sidecar.socket.stat().st_mode) == 0o660


@pytest.mark.parametrize("address", ["unix:{socket}", "http://127.0.0.1:{port}", "http://localhost:{port}/"])
def test_a_sidecar_whose_destination_is_itself_is_refused(tmp_path, address):
    sidecar = SidecarProcess(tmp_path)
    url = address.format(socket=sidecar.socket, port=sidecar.port)
    sidecar.write(f'[destinations.loop]\ntype = "sidecar"\nurl = "{url}"\n')
    done = run(sidecar.config)
    assert done.returncode == 2
    assert "destinations.loop.url" in done.stderr
