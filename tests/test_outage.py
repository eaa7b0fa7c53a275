"""A real upstream in trouble: nothing is lost, nothing is doubled where it can be told, nobody is held up."""

import resource
import threading
import time

import pytest
from command import Command
from upstream import UpstreamServer
from waiting import until

from per_agent import Agent, DeliverySettings, PaymentKit, Per, Unavailable

QUICK = DeliverySettings(backoff_initial=0.1, backoff_max=1.0, probe_interval=0.2)


def _balanced(agent):
    """The agent's books; they balance, and so says the command, which recounts what lies on the disk."""
    books = agent.books()
    assert all(counts.balanced for counts in books.values()), books
    done = Command(agent.data_dir.parent)("books", "--json", "--data-dir", str(agent.data_dir))
    assert done.code == 0, done.out + done.err
    assert done.json["balanced"] is True
    return books


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_outage_and_a_rate_limit_lose_nothing_and_hold_up_no_caller(tmp_path, upstream: UpstreamServer):
    threads, each = 8, 2500
    upstream.rule(path="/activities.add", for_seconds=20, status=503)
    slowest = [0.0] * threads
    with Agent(tmp_path, [Per("token", url=upstream.url)], delivery=QUICK) as agent:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def record(n: int) -> None:
            for i in range(each):
                began = time.perf_counter()
                agent.add_activity("acme", f"user-{n}-{i}", "active")
                slowest[n] = max(slowest[n], time.perf_counter() - began)

        began = time.monotonic()
        recorders = [threading.Thread(target=record, args=(n,)) for n in range(threads)]
        for recorder in recorders:
            recorder.start()
        for recorder in recorders:
            recorder.join()
        recorded_in = time.monotonic() - began
        assert recorded_in < 20, "the callers were done before the outage was"
        books = _balanced(agent)["per"]
        assert books.accepted == threads * each
        assert books.delivered == 0, "the upstream was down: the callers did not wait for it"
        until(lambda: agent.status()["destinations"]["per"]["state"] == "retrying")
        assert agent.status()["destinations"]["per"]["reason"]

        # Down for 20 s, then a rate limit that names its time, then well.
        until(lambda: time.monotonic() - began > 20, timeout=30)
        upstream.clear_rules()
        upstream.rule(path="/activities.add", count=3, status=429, headers={"Retry-After": "2"})
        assert agent.flush(120)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        books = _balanced(agent)["per"]

    assert (books.delivered, books.dead, books.dropped, books.pending) == (threads * each, 0, 0, 0)
    score = upstream.score()
    assert set(score.users) == {f"user-{n}-{i}" for n in range(threads) for i in range(each)}
    assert len(score.activities) == threads * each, "nothing that was answered was sent again"
    assert int(score.statuses["429"]) == 3
    assert after - before < 64 * 1024, f"{after - before} KiB more for 20,000 waiting events"
    print(
        f"recorded in {recorded_in:.2f} s, slowest call {max(slowest) * 1000:.2f} ms, {after - before} KiB more"
    )


def test_one_poison_event_among_two_thousand_is_alone_in_the_dead_letters(tmp_path, upstream: UpstreamServer):
    upstream.settings(meters={"api.calls": "active"})
    upstream.rule(
        path="*/meter-events",
        customers=["poison"],
        status=400,
        body={"error": '"payload.value" must be a positive number'},
    )
    with Agent(tmp_path, [PaymentKit(upstream.url, "key")], delivery=QUICK) as agent:
        for i in range(2000):
            if i == 1000:
                bad = agent.add_meter_event("api.calls", customer_id="poison", value="1")
            else:
                agent.add_meter_event("api.calls", customer_id=f"cus-{i % 7}", value="1")
        assert agent.flush(120)
        books = _balanced(agent)["payment_kit"]
        assert (books.delivered, books.dead) == (1999, 1)
        (letter,) = agent.dead_letters
        assert "must be a positive number" in letter.letter.words
        assert letter.letter.attempts == 1

        upstream.clear_rules()
        assert agent.dead_letters.requeue([letter]) == 1
        assert agent.flush(30)
        books = _balanced(agent)["payment_kit"]
        assert (books.delivered, books.dead) == (2000, 0)
    identifiers = upstream.score().identifiers
    assert len(identifiers) == len(set(identifiers)) == 2000
    assert identifiers[-1] == bad.id, "it was sent again under the identifier that it always had"


def test_a_poison_event_that_per_refuses_in_words_nobody_documented_dies_alone(
    tmp_path, upstream: UpstreamServer
):
    upstream.rule(path="/activities.add", users=["poison"], ok_false="user_unwanted")
    with Agent(tmp_path, [Per("token", url=upstream.url)], delivery=QUICK) as agent:
        for i in range(1000):
            agent.add_activity("acme", "poison" if i == 500 else f"u-{i}", "active")
        assert agent.flush(60)
        books = _balanced(agent)["per"]
        assert (books.delivered, books.dead) == (999, 1)
        (letter,) = agent.dead_letters
        assert "user_unwanted" in letter.letter.words
        assert letter.letter.attempts == DeliverySettings().refusal_attempts


def test_when_every_event_is_refused_alike_the_destination_pauses_and_none_dies(
    tmp_path, upstream: UpstreamServer
):
    upstream.rule(path="/activities.add", ok_false="unknown_activity_type")
    with Agent(tmp_path, [Per("token", url=upstream.url)], delivery=QUICK) as agent:
        for i in range(200):
            agent.add_activity("acme", f"u-{i}", "no-such-type")
        status = until(
            lambda: (s := agent.status()["destinations"]["per"])["state"] == "halted" and s, timeout=60
        )
        assert "unknown_activity_type" in status["reason"]
        assert _balanced(agent)["per"].dead == 0
        upstream.clear_rules()
        assert agent.flush(60)
        books = _balanced(agent)["per"]
        assert (books.delivered, books.dead) == (200, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_minute_of_401_neither_loses_nor_buries_an_event(tmp_path, upstream: UpstreamServer):
    upstream.rule(
        path="/activities.add",
        for_seconds=60,
        status=401,
        body={"ok": False, "message": "invalid_auth_token"},
    )
    with Agent(tmp_path, [Per("token", url=upstream.url)], delivery=QUICK) as agent:
        began = time.monotonic()
        n = 0
        while time.monotonic() - began < 61:
            receipt = agent.add_activity("acme", f"u-{n}", "active")
            n += 1
            time.sleep(0.01)
            # To look takes seconds on a busy machine: the last look begins well before the minute is over.
            if n % 500 == 0 and time.monotonic() - began < 45:
                assert receipt.stored(10)  # what is being committed while it is looked may be seen twice
                books = _balanced(agent)["per"]
                assert (books.accepted, books.delivered, books.dead) == (n, 0, 0)
                assert agent.status()["destinations"]["per"]["state"] == "halted"
        assert agent.flush(60)
        books = _balanced(agent)["per"]
        assert (books.delivered, books.dead, books.pending) == (n, 0, 0)
    assert len(upstream.score().users) == n


def test_a_report_from_an_upstream_that_is_down_is_unavailable_while_events_are_accepted(
    tmp_path, upstream: UpstreamServer
):
    upstream.kill()
    with Agent(tmp_path, [Per("token", "token", url=upstream.url, timeout=2.0)], delivery=QUICK) as agent:
        began = time.monotonic()
        with pytest.raises(Unavailable) as raised:
            agent.get_report("2026-01-01T00:00:00Z")
        assert time.monotonic() - began < 10, "refused at once, and bounded by the timeout in any case"
        assert "token" not in str(raised.value)
        receipt = agent.add_activity("acme", "u-1", "active")
        assert receipt.stored(10)
        assert not receipt.delivered(0.1)
        upstream.start()
        assert receipt.delivered(30)


def test_a_dead_destination_delays_no_other(tmp_path, upstream: UpstreamServer):
    upstream.settings(meters={"api.calls": "active"})
    upstream.rule(path="/activities.add", status=500)
    destinations = [Per("token", url=upstream.url), PaymentKit(upstream.url, "key")]
    with Agent(tmp_path, destinations, delivery=QUICK) as agent:
        activity = agent.add_activity("acme", "u-1", "active")
        meter_event = agent.add_meter_event("api.calls", customer_id="cus-1", value=1)
        assert meter_event.delivered(30)
        assert not activity.delivered(0.2)
        upstream.clear_rules()
        assert activity.delivered(30)


def test_an_event_that_kills_its_request_delays_the_others_a_moment_and_not_for_ever(
    tmp_path, upstream: UpstreamServer
):
    upstream.rule(path="/activities.add", users=["poison"], status=500)
    with Agent(tmp_path, [Per("token", url=upstream.url)], delivery=QUICK) as agent:
        poison = agent.add_activity("acme", "poison", "active")
        receipts = [agent.add_activity("acme", f"u-{i}", "active") for i in range(300)]
        assert all(receipt.delivered(60) for receipt in receipts)
        assert not poison.delivered(0.1)
        upstream.clear_rules()
        assert poison.delivered(30)


def test_events_of_an_inactive_meter_wait_and_go_on_by_themselves(tmp_path, upstream: UpstreamServer):
    upstream.settings(meters={"good": "active", "asleep": "inactive"})
    with Agent(tmp_path, [PaymentKit(upstream.url, "key")], delivery=QUICK) as agent:
        waiting = [agent.add_meter_event("asleep", customer_id="cus-1", value=i + 1) for i in range(50)]
        going = [agent.add_meter_event("good", customer_id="cus-1", value=1) for _ in range(50)]
        assert all(receipt.delivered(30) for receipt in going)
        until(lambda: agent.status()["destinations"]["payment_kit"]["parked_for"])
        books = _balanced(agent)["payment_kit"]
        assert (books.delivered, books.dead, books.pending) == (50, 0, 50)
        assert not agent.flush(0.5)
        upstream.settings(meters={"good": "active", "asleep": "active"})
        assert all(receipt.delivered(30) for receipt in waiting)
        assert agent.flush(10)
    assert len(set(upstream.score().identifiers)) == 100


def test_parked_events_are_found_again_after_a_restart(tmp_path, upstream: UpstreamServer):
    upstream.settings(meters={"asleep": "inactive"})
    with Agent(tmp_path, [PaymentKit(upstream.url, "key")], delivery=QUICK) as agent:
        for i in range(5):
            agent.add_meter_event("asleep", customer_id="cus-1", value=i)
        until(lambda: agent.status()["destinations"]["payment_kit"]["parked_for"])
    upstream.settings(meters={"asleep": "active"})
    with Agent(tmp_path, [PaymentKit(upstream.url, "key")], delivery=QUICK) as agent:
        assert agent.flush(30)
        assert _balanced(agent)["payment_kit"].delivered == 5


def test_a_restart_sends_nothing_that_is_known_to_be_delivered(tmp_path, upstream: UpstreamServer):
    upstream.rule(path="/activities.add", delay=0.002, counts=True)
    with Agent(tmp_path, [Per("token", url=upstream.url)], delivery=QUICK) as agent:
        for i in range(2000):
            agent.add_activity("acme", f"u-{i}", "active")
        until(lambda: len(upstream.score().activities) > 300)
        agent.close(timeout=0)
        half = agent.books()["per"]
        assert 0 < half.pending < 2000, "it was closed in the middle of a block"
    with Agent(tmp_path, [Per("token", url=upstream.url)], delivery=QUICK) as agent:
        assert agent.flush(60)
        assert _balanced(agent)["per"].delivered == 2000
    counted = upstream.score().users
    assert len(set(counted)) == 2000
    # A request that was in flight when time ran out may be repeated: its answer never came.
    assert len(counted) <= 2000 + Per("token").concurrency
