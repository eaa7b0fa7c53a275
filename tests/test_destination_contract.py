"""What the courier relies on, held against every destination that ships: one suite for all of them."""

import os
import threading
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
from sidecar_double import SidecarDouble

from per_agent.destinations import Delivered, Halt, Retry
from per_agent.destinations.local import Ledger
from per_agent.destinations.memory import MemoryDestination
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.destinations.per import Per
from per_agent.destinations.sidecar import Sidecar
from per_agent.event import Activity, MeterEvent

TOKEN = "t0ken-that-nobody-may-see"
OUTCOMES = ("Delivered", "Retry", "Parked", "Refused", "Halt")


class Bench:
    """One destination and what its upstream counted. `counts_once`: whether a repeat is not counted again."""

    kind: type = Activity
    over_http = True
    counts_once = True
    refusal = '{"error": "\\"x\\" must be y"}'

    @staticmethod
    def served_by(upstream, folder):
        """What answers the destination, as a context manager."""
        return nullcontext(upstream)

    def __init__(self, upstream, folder, timeout=5.0):
        self.upstream = upstream
        self.folder = folder
        self.timeout = timeout
        self.destination: Any = self.make()
        self.destination.open(folder)

    def event(self, number: int, text: str = "x"):
        if self.kind is Activity:
            return Activity(f"id-{number}", f"b-{text}", f"u-{number}-{text}", f"t-{text}", 1_700_000_000.0)
        return MeterEvent(f"id-{number}", "api.calls", f"c-{text}", "2", 1_700_000_000.0)

    def make(self):
        raise NotImplementedError

    def counted(self) -> Counter:
        """How often each event was counted, by something that tells them apart."""
        raise NotImplementedError


class PerBench(Bench):
    def make(self):
        return Per(TOKEN, TOKEN, url=self.upstream.url, timeout=self.timeout)

    def counted(self):  # unique users: that is what Per bills
        return Counter(set(self.upstream.score().users))


class PaymentKitBench(Bench):
    kind = MeterEvent

    def make(self):
        return PaymentKit(self.upstream.url, TOKEN, timeout=self.timeout)

    def counted(self):
        return Counter(self.upstream.score().identifiers)


class MemoryBench(Bench):
    over_http = False
    counts_once = False

    def make(self):
        return MemoryDestination()

    def counted(self):
        return Counter(event.id for event in self.destination.received)


class LedgerBench(Bench):
    kind = MeterEvent
    over_http = False

    def make(self):
        return Ledger()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.destination.meters.create(name="API calls", event_name="api.calls", unit="calls")

    def counted(self):
        found: Counter = Counter()
        page = 1
        while True:
            events = self.destination.meter_events.list(page=page, pageSize=100)["list"]
            if not events:
                return found
            found.update(event["identifier"] for event in events)
            page += 1


class LedgerActivityBench(LedgerBench):
    kind = Activity

    def counted(self):  # a report tells numbers, not names: each user is in a type of its own
        types = self.destination.get_report("2000-01-01T00:00:00Z")["result"]["activityTypes"]
        return Counter({name: each["billingIds"]["b"]["unique"] for name, each in types.items()})

    def event(self, number, text="x"):
        return Activity(f"id-{number}", "b", "u", f"t-{number}-{text}", 1_700_000_000.0)


class SidecarBench(Bench):
    refusal = '{"detail": "no", "rejected": [{"position": 0, "errors": {"x": "must be y"}}]}'

    @staticmethod
    def served_by(upstream, folder):
        return SidecarDouble(folder, TOKEN)

    def make(self):
        return Sidecar(self.upstream.address, TOKEN, timeout=self.timeout)

    def counted(self):
        return Counter(self.upstream.events.keys())


class SidecarOverTcpBench(SidecarBench):
    kind = MeterEvent

    def make(self):
        return Sidecar(self.upstream.url, TOKEN, timeout=self.timeout)


BENCHES = [
    PerBench,
    PaymentKitBench,
    MemoryBench,
    LedgerBench,
    LedgerActivityBench,
    SidecarBench,
    SidecarOverTcpBench,
]
HTTP = [bench for bench in BENCHES if bench.over_http]


@pytest.fixture
def bench(request, upstream, tmp_path):
    with request.param.served_by(upstream, tmp_path) as server:
        made = request.param(server, tmp_path)
        yield made
        made.destination.close()


every = pytest.mark.parametrize("bench", BENCHES, indirect=True, ids=lambda one: one.__name__)
every_http = pytest.mark.parametrize("bench", HTTP, indirect=True, ids=lambda one: one.__name__)


def deliver(bench, numbers):
    """Send the events of these numbers in batches, each of which must be delivered."""
    events = [bench.event(number) for number in numbers]
    size = bench.destination.batch
    for at in range(0, len(events), size):
        batch = events[at : at + size]
        assert list(bench.destination.send(batch)) == [Delivered()] * len(batch)


@every
def test_it_says_who_it_is_and_what_it_takes(bench):
    one = bench.destination
    assert isinstance(one.name, str)
    assert one.name
    assert bench.kind in one.takes
    assert one.takes <= {Activity, MeterEvent}
    assert one.batch >= 1
    assert one.concurrency >= 1
    assert one.counts_on_arrival in (True, False)


@every
def test_a_full_batch_has_one_outcome_for_each_event(bench):
    events = [bench.event(number) for number in range(bench.destination.batch)]
    assert list(bench.destination.send(events)) == [Delivered()] * len(events)
    assert sum(bench.counted().values()) == len(events)


@every
@pytest.mark.parametrize(
    "text", ["a b+c&d=e#f%41", "é/日本/🙂", "..", "'; DROP TABLE--", "\x00\n\t", "x" * 5000]
)
def test_ids_of_any_text_are_taken(bench, text):
    assert list(bench.destination.send([bench.event(1, text)])) == [Delivered()]
    assert sum(bench.counted().values()) == 1


@every
def test_the_same_event_again_is_delivered_again_and_counted_once(bench):
    for _ in range(3):
        deliver(bench, range(3))
    expected = 1 if bench.counts_once else 3
    assert list(bench.counted().values()) == [expected] * 3


@every
def test_close_may_come_at_any_time_and_sending_goes_on_after_it(bench):
    bench.destination.close()
    deliver(bench, [1])
    bench.destination.close()
    bench.destination.close()
    deliver(bench, [2])
    assert sum(bench.counted().values()) == 2


@every
def test_as_many_threads_as_it_allows_may_send_at_once(bench):
    problems = []

    def send(first):
        try:
            deliver(bench, range(first, first + 25))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=send, args=(25 * n,)) for n in range(bench.destination.concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert list(bench.counted().values()) == [1] * 25 * bench.destination.concurrency


@every
def test_parent_and_child_of_a_fork_both_send_and_get_their_own_answers(bench):
    deliver(bench, [1])
    with warnings.catch_warnings():
        # From 3.12 on Python warns of forking with threads, which is the point here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            bench.destination.open(bench.folder)
            deliver(bench, range(100, 150))
            os._exit(0)
        except BaseException:
            os._exit(1)
    deliver(bench, range(2, 50))
    assert os.waitpid(child, 0)[1] == 0
    deliver(bench, [50])
    if bench.destination.__class__ is not MemoryDestination:  # which has nothing that two processes share
        assert list(bench.counted().values()) == [1] * 100


@every
def test_a_probe_of_a_key_that_it_never_gave_does_not_raise(bench):
    for key in ("", "x", "meter", "meter:live", "meter:live:..", "customer:test:a/b"):
        assert bench.destination.probe(key) in (True, False)


@every
def test_nothing_is_shown_of_its_credentials(bench):
    assert TOKEN not in repr(bench.destination)
    assert TOKEN not in str(vars(bench.destination))


@every_http
def test_an_upstream_that_is_not_there_is_an_outcome_and_comes_back(bench):
    bench.upstream.stop()
    (outcome,) = bench.destination.send([bench.event(1)])
    assert isinstance(outcome, Retry)
    assert outcome.reason.startswith("not sent")
    assert bench.destination.probe("meter:live:api.calls") in (True, False)
    bench.upstream.start()
    deliver(bench, [1])


@every_http
def test_an_upstream_that_is_killed_between_two_sends_loses_and_doubles_nothing(bench):
    deliver(bench, range(10))
    bench.upstream.kill()
    bench.upstream.start()
    for number in range(20):
        outcome = None
        while outcome != Delivered():  # a connection that died with the upstream may cost one attempt
            (outcome,) = bench.destination.send([bench.event(number)])
            assert isinstance(outcome, Delivered | Retry)
    assert list(bench.counted().values()) == [1] * 20


@every_http
@pytest.mark.parametrize(
    "rule",
    [
        {"cut": "before"},
        {"cut": "after"},
        {"truncate": True},
        {"drip": 0.05},
        {"drip_headers": 0.05},
        {"endless": True},
        {"delay": 30},
        {"html": True},
        {"redirect": "/login"},
        {"redirect": "http://127.0.0.1:9/"},
        {"body": "[" * 50_000},
        {"body": '"\ud7ff'},
        {"body": "\x00"},
        {"body": {}},
        *[
            {"status": status}
            for status in (199, 201, 204, 206, 300, 304, 400, 401, 402, 403, 404, 405, 407, 408, 409)
        ],
        *[
            {"status": status}
            for status in (410, 411, 413, 414, 415, 418, 421, 422, 425, 426, 428, 429, 431, 451)
        ],
        *[{"status": status} for status in (500, 501, 502, 503, 504, 507, 511, 599)],
    ],
    ids=str,
)
def test_whatever_an_upstream_does_there_is_an_outcome_in_bounded_time(tmp_path, bench, rule):
    bench = type(bench)(bench.upstream, tmp_path, timeout=0.3)
    bench.upstream.rule(**({"body": {"error": f"echo of {TOKEN}", "n": "x" * 2000}} | rule))
    begun = time.monotonic()
    (outcome,) = bench.destination.send([bench.event(1)])
    assert bench.destination.probe("meter:live:api.calls") in (True, False)
    assert time.monotonic() - begun < 10
    bench.destination.close()
    assert type(outcome).__name__ in OUTCOMES
    assert TOKEN not in repr(outcome)
    if rule.get("status") != 409 or bench.kind is Activity:  # there it means a duplicate
        assert outcome != Delivered()


@every_http
def test_trouble_of_one_event_is_not_told_as_trouble_of_all(bench):
    bench.upstream.rule(status=400, body=bench.refusal, users=["u-1-x"])
    bench.upstream.rule(status=400, body=bench.refusal, method="POST", count=1)
    (bad,) = bench.destination.send([bench.event(1)])
    assert not isinstance(bad, Halt | Retry)
    deliver(bench, [2])


def test_the_double_plays_its_script_and_then_delivers():
    script = [Retry("down", 1.0), Delivered(), Halt("no")]
    double = MemoryDestination(iter(script), probes=[False])
    events = [Activity(str(n), "b", "u", "t", 0.0) for n in range(5)]
    assert double.send(events[:2]) == script[:2]
    assert double.send(events[2:]) == [Halt("no"), Delivered(), Delivered()]
    assert double.received == [events[1], events[3], events[4]]
    assert double.offered == events
    assert [double.probe("k"), double.probe("k")] == [False, True]
    assert double.probed == ["k", "k"]
