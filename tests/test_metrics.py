"""`/metrics`: read as Prometheus reads it, and at rest the same as the status, the books and the disk."""

import itertools
import json
import threading
from contextlib import contextmanager

import pytest
from programs import start
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from serving import Served
from sidecar_process import SidecarProcess
from starlette.applications import Starlette
from test_adoption import LEAVE_BEHIND
from test_courier import Gate, Picky
from upstream import UpstreamServer
from waiting import until

from per_agent import Agent, DeliverySettings, Ledger, MemoryDestination, SpoolSettings
from per_agent.destinations import Halt, Refused, Retry
from per_agent.event import Activity
from per_agent.settings import AgentSettings, Settings
from per_agent.sidecar import metrics, operations
from per_agent.sidecar.access import Access
from per_agent.sidecar.request_times import RequestTimes
from per_agent.sidecar.service import Service

QUICK = DeliverySettings(backoff_initial=0.01, backoff_max=0.05, probe_interval=0.02)
SOON = SpoolSettings(adopt_interval=0.2)
OPENMETRICS = "Accept: application/openmetrics-text; version=1.0.0"
COUNTERS = ("accepted", "delivered", "dropped")


class Scraped:
    """One scrape, taken apart."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.samples.get((f"per_agent_{name}", tuple(sorted(labels.items()))))


class Sidecar:
    """The operators' endpoints of an agent, on a socket."""

    def __init__(self, served: Served, service: Service) -> None:
        self._served = served
        self.service = service
        self.agent = service.agent

    def scrape(self) -> Scraped:
        answer = self._served.get("/metrics")
        assert answer.status == 200
        return Scraped(answer.body.decode())

    def document(self, path: str):
        answer = self._served.get(path)
        assert answer.status == 200
        return json.loads(answer.body)

    def raw(self, *headers: str):
        return self._served.get("/metrics", *headers)

    def agree(self) -> None:
        """What is measured is what the status and the books say."""
        until(lambda: self.agent.statistics().complete)
        status, books, seen = self.document("/v1/status"), self.document("/v1/books"), self.scrape()
        assert books["balanced"] is True
        assert set(status["destinations"]) == set(books["destinations"])
        for name, counts in books["destinations"].items():
            told = status["destinations"][name]
            assert told["books"] == counts
            for each in COUNTERS:
                assert seen(f"events_{each}_total", destination=name) == counts[each]
            assert seen("events_dead", destination=name) == counts["dead"]
            assert seen("events_pending", destination=name) == counts["pending"]
            assert seen("dead_letters", destination=name) == told["dead_letters"]
            assert told["dead_letters"] == counts["dead"] - counts["purged"]
            assert seen("events_parked", destination=name) == told["parked"]
            age, oldest = told["oldest_pending_seconds"], seen("oldest_pending_seconds", destination=name)
            assert (age is None) == (oldest == 0)
            if age is not None:
                assert oldest == pytest.approx(age, abs=5.0)
            assert (told["state"] == "open") == (seen("destination_up", destination=name) == 1)
            assert seen("destination_state", destination=name, state=told["state"]) == 1
        assert seen("adopted_spools") == len(status["spools"]) - 1


@contextmanager
def sidecar(agent: Agent):
    settings = Settings(agent=AgentSettings(data_dir=agent.data_dir), spool=SOON)
    service = Service(agent, settings, Access("token-of-tests", settings))
    app = Starlette(routes=[*operations.routes(service), *metrics.routes(service)])
    with agent, Served(app) as served:
        agent.start(wait=True)
        yield Sidecar(served, service)


# Agreement


def test_at_rest_metrics_status_and_books_agree_also_after_a_restart_dead_letters_and_purges(tmp_path):
    def agent(*script) -> Agent:
        refusing = MemoryDestination(script, takes=frozenset({Activity}))
        return Agent(tmp_path, [Ledger(), refusing], spool=SOON, delivery=QUICK)

    with sidecar(agent(*[Refused("no such user")] * 5)) as running:
        running.agree()
        for n in range(40):
            running.agent.add_activity("acme", f"u-{n}", "active")
        for n in range(3):
            running.agent.add_meter_event("nowhere", customer_id=f"c-{n}", value=1)
        until(lambda: running.scrape()("dead_letters", destination="memory") == 5)
        until(lambda: running.scrape()("events_parked", destination="ledger") == 3)
        running.agree()
        letters = list(running.agent.dead_letters)
        running.agent.dead_letters.purge(letters[:2])
        running.agree()
        running.agent.dead_letters.requeue(letters[2:3])
        until(lambda: running.scrape()("events_delivered_total", destination="memory") == 36)
        running.agree()
        before = running.scrape()
    with sidecar(agent()) as running:
        running.agree()
        after = running.scrape()
        for name, each in itertools.product(("ledger", "memory"), COUNTERS):
            sample = f"events_{each}_total"
            assert after(sample, destination=name) == before(sample, destination=name)
        assert after("events_dead", destination="memory") == 4
        running.agent.meters.create(name="N", event_name="nowhere", unit="calls")
        assert running.agent.flush(30)
        running.agree()
        seen = running.scrape()
        assert seen("events_accepted_total", destination="ledger") == 43
        assert seen("events_delivered_total", destination="ledger") == 43


def test_counters_never_fall_while_spools_are_adopted_and_absorbed(tmp_path):
    programs = [start(LEAVE_BEHIND, tmp_path, "4") for _ in range(6)]
    for program in programs:
        program.stdout.readline()
    for program in programs:
        program.communicate("die\n", timeout=30)
    destination = MemoryDestination(name="m", batch=1)
    with sidecar(Agent(tmp_path, [destination], spool=SOON)) as running:
        seen: list[tuple[float, ...]] = []

        def drained() -> bool:
            scraped = running.scrape()
            values = [scraped(f"events_{each}_total", destination="m") for each in COUNTERS]
            if None not in values:
                seen.append(tuple(values))
            return scraped("adopted_spools") == 0 and bool(values) and values[1] == 24

        until(drained, every=0.001)
        assert seen == sorted(seen)
        for earlier, later in itertools.pairwise(seen):
            assert all(before <= now for before, now in zip(earlier, later, strict=True))
        running.agree()


def test_before_what_was_left_behind_is_found_no_counter_is_told(tmp_path):
    agent = Agent(tmp_path, [MemoryDestination()])
    settings = Settings(agent=AgentSettings(data_dir=tmp_path))
    service = Service(agent, settings, Access("token-of-tests", settings))
    with Served(Starlette(routes=metrics.routes(service))) as served:
        seen = Sidecar(served, service).scrape()
    assert seen("events_accepted_total", destination="memory") is None, "Prometheus would take it for a reset"
    assert seen("events_pending", destination="memory") == 0
    assert seen("ready") == 0
    assert not (tmp_path / "spools").exists()


# What is told


def test_trouble_shows_with_its_state_its_repeats_and_its_age(tmp_path):
    script = [Retry("HTTP 503: busy"), Retry("not sent: ConnectError: x"), Halt("wrong token")]
    script += [Retry("sent, no answer: ReadTimeout: x")]
    patient = DeliverySettings(backoff_initial=0.01, backoff_max=0.02)
    gate = Gate(script)
    gate.gate.set()
    with sidecar(Agent(tmp_path, [gate], delivery=patient)) as running:
        for reason in ("not_sent", "no_answer"):
            named = {"destination": "memory", "reason": reason}
            assert running.scrape()("delivery_retries_total", **named) == 0, "told before there is one"
        running.agent.add_activity("acme", "u-1", "active")
        assert running.agent.flush(30)
        seen = running.scrape()
        for reason in ("http_503", "not_sent", "no_answer", "halted"):
            assert seen("delivery_retries_total", destination="memory", reason=reason) == 1
        assert seen("destination_up", destination="memory") == 1
        assert seen("delivery_duration_seconds_count", destination="memory") == 5
        assert seen("delivery_batch_events_sum", destination="memory") == 5
        assert seen("delivery_duration_seconds_bucket", destination="memory", le="+Inf") == 5
        assert seen("seconds_since_delivery", destination="memory") < 60
        assert seen("spool_commits_total") >= 2
        assert seen("spool_up") == seen("ready") == 1
        assert seen("spool_bytes", spool="own") > 0
        assert seen("spool_limit_bytes") == SpoolSettings().max_bytes
        gate.gate.clear()
        running.agent.add_activity("acme", "u-2", "active")
        assert until(lambda: running.scrape()("oldest_pending_seconds", destination="memory")) < 60
        gate.gate.set()


def test_a_destination_in_trouble_is_not_up_and_each_state_is_told(tmp_path):
    halted = MemoryDestination([Halt("wrong token")], name="a")
    patient = DeliverySettings(backoff_initial=600, backoff_max=600)
    with sidecar(Agent(tmp_path, [halted], delivery=patient)) as running:
        running.agent.add_activity("acme", "u-1", "active")
        until(lambda: running.scrape()("destination_up", destination="a") == 0)
        running.agree()
        seen = running.scrape()
        states = {
            state: seen("destination_state", destination="a", state=state)
            for state in ("open", "retrying", "halted")
        }
        assert states == {"open": 0, "retrying": 0, "halted": 1}
        assert seen("destination_failures", destination="a") == 1
        assert seen("destination_concurrency", destination="a") >= 1
        running.agent.close(0)


def test_requests_are_counted_by_endpoint_and_class_of_status(tmp_path):
    with sidecar(Agent(tmp_path, [MemoryDestination()])) as running:
        times = running.service.times
        for status in (202, 202, 207, 503, 0):
            times.observe("/v1/events", status, 0.02)
        seen = running.scrape()
        for status, count in {"2xx": 3, "5xx": 1, "gone": 1}.items():
            labels = {"endpoint": "/v1/events", "status": status}
            assert seen("request_duration_seconds_count", **labels) == count
            assert seen("request_duration_seconds_sum", **labels) == pytest.approx(0.02 * count)
            assert seen("request_duration_seconds_bucket", le="0.01", **labels) == 0
            assert seen("request_duration_seconds_bucket", le="0.025", **labels) == count


def test_every_metric_says_what_it_is_and_both_formats_hold_the_same(tmp_path):
    with sidecar(Agent(tmp_path, [Picky({"u-1": Refused("no")})])) as running:
        for n in range(3):
            running.agent.add_activity("acme", f"u-{n}", "active")
        assert running.agent.flush(30)
        running.service.times.observe("/v1/events", 202, 0.001)
        until(lambda: running.agent.statistics().complete)
        plain, open_ = running.raw(), running.raw(OPENMETRICS)
        assert plain.all(b"content-type")[0].startswith(b"text/plain")
        assert open_.all(b"content-type")[0].startswith(b"application/openmetrics-text; version=1.0.0")
        seen = Scraped(plain.body.decode())
        strictly = {
            family.name: family for family in openmetrics.text_string_to_metric_families(open_.body.decode())
        }
        for family in strictly.values():
            assert family.documentation, family.name
            assert family.name.startswith(("per_agent_", "process_", "python_"))
        ours = [name for name in seen.families if name.startswith("per_agent_")]
        assert {name.removesuffix("_info") for name in ours} == {
            name for name in strictly if name.startswith("per_agent_")
        }
        assert seen("events_accepted_total", destination="memory") == 3
        assert "process_open_fds" in seen.families


def test_no_metric_tells_a_person_or_a_token(tmp_path):
    with sidecar(Agent(tmp_path, [MemoryDestination([Refused("u-secret is nobody")])])) as running:
        running.agent.add_activity("acme-secret", "u-secret", "active-secret")
        assert running.agent.flush(30)
        body = running.raw().body
        assert b"secret" not in body
        assert b"token-of-tests" not in body


def test_scrapes_stand_beside_threads_that_add_and_deliver(tmp_path):
    with sidecar(Agent(tmp_path, [MemoryDestination(concurrency=4, batch=7)])) as running:
        stop = threading.Event()

        def record() -> None:
            for n in range(5000):  # so that what is left is soon delivered, however long the scrapes take
                if n % 10 == 0 and stop.wait(0.001):
                    return
                running.agent.add_activity("acme", f"u-{n}", "active")

        threads = [threading.Thread(target=record) for _ in range(3)]
        for thread in threads:
            thread.start()
        last = -1.0
        for _ in range(100):
            now = running.scrape()("events_accepted_total", destination="memory")
            if now is not None:
                assert now >= last
                last = now
        stop.set()
        for thread in threads:
            thread.join(30)
        assert running.agent.flush(60)
        running.agree()


def test_times_of_requests_belong_to_their_endpoint_and_class():
    times = RequestTimes()
    times.observe("/v1/events", 202, 0.1)
    times.observe("/v1/events", 207, 0.1)
    times.observe("other", 404, 0.1)
    times.observe("other", 0, 0.1)
    assert {(endpoint, status): seen.count for endpoint, status, seen in times.look()} == {
        ("/v1/events", "2xx"): 2,
        ("other", "4xx"): 1,
        ("other", "gone"): 1,
    }


# The whole sidecar


def test_a_running_sidecar_is_scraped_and_goes_on_to_count_after_a_restart(
    tmp_path, upstream: UpstreamServer
):
    destination = f'[destinations.per]\ntype = "per"\nactivity_token = "t0ken-per"\nurl = "{upstream.url}"\n'
    event = {"billing_id": "acme", "user_id": "u-1", "activity_type_id": "active"}
    process = SidecarProcess(tmp_path, destination)
    for round_ in (1, 2):
        with process as running, running.client() as client:
            for _ in range(5):
                assert client.post("/v1/events?wait=stored", json=event).status_code == 202
            assert client.post("/v1/events", content=b"{").status_code == 400

            def seen(client=client) -> Scraped:
                return Scraped(client.get("/metrics").text)

            expected = 5 * round_
            until(lambda n=expected: seen()("events_delivered_total", destination="per") == n)
            scraped, books = seen(), client.get("/v1/books").json()["destinations"]["per"]
            assert scraped("events_accepted_total", destination="per") == books["accepted"] == expected
            status = {"endpoint": "/v1/events", "status": "2xx"}
            assert scraped("request_duration_seconds_count", **status) == 5
            assert scraped("request_duration_seconds_count", endpoint="/v1/events", status="4xx") == 1
            assert "t0ken-per" not in client.get("/metrics").text
