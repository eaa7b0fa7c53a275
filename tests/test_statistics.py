"""How a running agent is doing: numbers from memory that agree with the disk, and signs of life of its threads."""

import itertools
import threading
import time
from contextlib import suppress

import pytest
from programs import start
from test_adoption import LEAVE_BEHIND
from test_courier import Gate, Picky, add
from upstream import UpstreamServer
from waiting import until

from per_agent import (
    Agent,
    BufferFull,
    DeliverySettings,
    IntakeSettings,
    MemoryDestination,
    Per,
    SpoolFull,
    SpoolSettings,
)
from per_agent.agent.overview import overview
from per_agent.books import Books
from per_agent.courier.attempts import kind
from per_agent.destinations import Halt, Parked, Refused, Retry
from per_agent.spool import DeadLetters

QUICK = DeliverySettings(backoff_initial=0.01, backoff_max=0.05, probe_interval=0.02)
PATIENT = DeliverySettings(backoff_initial=600, backoff_max=600, probe_interval=600)
SOON = SpoolSettings(adopt_interval=0.2)
SMALL = SpoolSettings(max_bytes=2**20)


def of(agent: Agent, name: str = "memory"):
    return agent.statistics().destinations[name]


def agrees(agent: Agent) -> None:
    """What is known in memory is what lies on the disk."""
    seen = overview(agent.data_dir, [each.name for each in agent.destinations])
    found = agent.statistics()
    assert {each.name for each in seen.standings} == set(found.destinations)
    for each in seen.standings:
        assert each.problems == ()
        known = found.destinations[each.name]
        assert known.books == known.stored == each.books
        assert (known.parked, known.dead_letters, known.damaged) == (each.parked, each.letters, each.damaged)
        assert (known.oldest is None) == (each.oldest is None)
        if each.oldest is not None:
            assert known.oldest == pytest.approx(each.oldest, abs=0.002), "a block keeps milliseconds"


# Numbers


def fill(agent: Agent) -> None:
    """Record until the spool takes no more. Where the disk is slower than that, the buffer is full now and then."""
    with suppress(SpoolFull):
        while True:
            with suppress(BufferFull):
                agent.add_activity("acme", "u" * 10_000, "active")


def test_before_the_first_event_all_is_nothing(tmp_path):
    agent = Agent(tmp_path / "none", [MemoryDestination()])
    seen = agent.statistics()
    assert of(agent).books == Books()
    assert (seen.spool, seen.adopted, seen.complete, seen.intake.waiting) == (None, (), False, 0)
    assert agent.settled
    assert agent.pulse() == []
    assert agent.unready == "the agent is not started"
    assert not (tmp_path / "none").exists(), "to look starts nothing"


def test_numbers_in_memory_are_those_on_the_disk_whatever_became_of_the_events(tmp_path):
    own = {"u-1": Refused("no such user"), "u-2": Refused("no such user"), "u-3": Parked("meter:m", "asleep")}
    destination = Picky(own, probes=itertools.repeat(False))
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        for n in range(50):
            add(agent, n)
        until(lambda: of(agent).books == Books(50, 47, dead=2, pending=1))
        until(lambda: of(agent).parked == 1)
        agrees(agent)
        first, _ = agent.dead_letters
        agent.dead_letters.purge([first])
        until(lambda: of(agent).stored.purged == 1)
        assert of(agent).dead_letters == 1
        agrees(agent)
        del own["u-2"]
        agent.dead_letters.requeue(agent.dead_letters)
        until(lambda: of(agent).books == Books(50, 48, dead=1, pending=1, purged=1))
        agrees(agent)
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        agent.start(wait=True)
        until(lambda: of(agent).oldest is not None)
        agrees(agent)
        assert of(agent).parked == 1, "the count of parked events is kept on the disk"
        destination._probes = itertools.repeat(True)
        del own["u-3"]
        assert agent.flush(30)
        agrees(agent)
        assert of(agent).books == Books(50, 49, dead=1, purged=1)


def test_the_age_of_the_oldest_is_since_it_was_stored_and_gone_when_it_is_delivered(tmp_path):
    destination = Gate()
    with Agent(tmp_path, [destination], intake=IntakeSettings(linger=0.0)) as agent:
        before = time.time()
        assert add(agent).stored(30)
        stored = time.time()
        for n in range(20):
            assert add(agent, n).stored(30)
        until(lambda: of(agent).oldest is not None)
        assert before - 0.002 <= of(agent).oldest <= stored
        agrees(agent)
        destination.gate.set()
        assert agent.flush(30)
        assert of(agent).oldest is None


def test_events_that_cannot_be_stored_count_as_accepted_and_pending_since_they_are_in_memory(tmp_path):
    (tmp_path / "data").write_text("a file in the way")
    agent = Agent(tmp_path / "data", [MemoryDestination()])
    before = time.time()
    for n in range(7):
        add(agent, n)
    seen = of(agent)
    assert (seen.stored, seen.in_memory, seen.books) == (Books(), 7, Books(7, pending=7))
    assert before <= until(lambda: of(agent).oldest) <= time.time()
    until(lambda: agent.unready != "the spool is not open yet")
    assert agent.unready.startswith("the spool cannot be written: ")
    (tmp_path / "data").unlink()
    assert agent.flush(30)
    assert (of(agent).books, of(agent).in_memory, agent.unready) == (Books(7, 7), 0, None)
    assert agent.close()


def test_what_waits_for_room_counts_as_in_memory(tmp_path):
    agent = Agent(
        tmp_path, [Gate()], spool=SMALL, intake=IntakeSettings(linger=0.0), delivery=DeliverySettings()
    )
    fill(agent)
    until(lambda: agent.statistics().spool.trouble == "full")
    assert "its limit is 1048576" in agent.unready
    assert agent.statistics().spool.bytes_used >= SMALL.max_bytes
    seen = of(agent)
    assert seen.books.pending == seen.stored.pending + seen.in_memory
    assert agent.statistics().intake.overflows["raised"] >= 1
    agent.destinations[0].gate.set()
    assert agent.flush(60)
    until(lambda: agent.unready is None)
    assert agent.close()


def test_spools_of_dead_processes_count_from_their_adoption_on(tmp_path):
    program = start(LEAVE_BEHIND, tmp_path, "5")
    program.stdout.readline()
    other = start(LEAVE_BEHIND, tmp_path, "7")
    other.stdout.readline()
    for each in (program, other):
        each.communicate("die\n", timeout=30)
    gate = Gate(name="m")
    with Agent(tmp_path, [gate], spool=SOON) as agent:
        until(lambda: agent.statistics().complete)
        until(lambda: of(agent, "m").books == Books(12, pending=12))
        assert len(agent.statistics().adopted) == 1
        agrees(agent)
        gate.gate.set()
        until(lambda: not agent.statistics().adopted)
        until(lambda: of(agent, "m").books == Books(12, 12))
        agrees(agent)


def test_a_spool_that_is_kept_for_its_dead_letters_goes_on_to_count(tmp_path):
    programs = [start(LEAVE_BEHIND, tmp_path, "3") for _ in range(2)]
    for program in programs:
        program.stdout.readline()
    for program in programs:
        program.communicate("die\n", timeout=30)
    with Agent(tmp_path, [MemoryDestination([Refused("no")] * 6, name="m")], spool=SOON) as agent:
        assert agent.flush(30)
        until(lambda: of(agent, "m").books == Books(6, dead=6))
        assert of(agent, "m").dead_letters == 6
        agrees(agent)
    letters = DeadLetters(tmp_path)
    assert letters.purge(list(letters)[:2]) == 2
    with Agent(tmp_path, [MemoryDestination(name="m")], spool=SOON) as agent:
        until(lambda: agent.statistics().complete)
        assert of(agent, "m").books == Books(6, dead=6, purged=2)
        agrees(agent)


def test_attempts_are_timed_and_counted_by_how_many_events_they_carry(tmp_path):
    destination = Gate(batch=10)
    with Agent(tmp_path, [destination]) as agent:
        receipts = [add(agent, n) for n in range(95)]
        assert receipts[-1].stored(30)
        idle = of(agent).delivery.idle_seconds
        until(lambda: of(agent).delivery.idle_seconds > idle)
        destination.gate.set()
        assert agent.flush(30)
        seen = of(agent).delivery
        assert seen.seconds.count == seen.events.count == len(destination.calls)
        assert seen.events.total == 95
        assert seen.retries == {}
        assert agent.statistics().spool.commits >= 1


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"status": 429}, "http_429"),
        ({"status": 503}, "http_503"),
        ({"status": 599}, "http_5xx"),
        ({"status": 408}, "http_408"),
        ({"cut": "before"}, "no_answer"),
        ({"status": 401}, "halted"),
        ({"ok_false": "who knows"}, "refused_uncertain"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_repeats_are_counted_by_what_went_wrong(tmp_path, upstream: UpstreamServer, rule, expected):
    upstream.rule(path="/activities.add", count=3, **rule)
    with Agent(tmp_path, [Per("secret", url=upstream.url)], delivery=QUICK) as agent:
        add(agent)
        assert agent.flush(30)
        assert of(agent, "per").delivery.retries == {expected: 3}


def test_an_upstream_that_is_away_was_not_sent_to(tmp_path):
    with Agent(tmp_path, [Per("secret", url="http://127.0.0.1:9")], delivery=QUICK) as agent:
        add(agent)
        until(lambda: of(agent, "per").delivery.retries.get("not_sent", 0) > 2)
        assert set(of(agent, "per").delivery.retries) == {"not_sent"}
        agent.close(0)


def test_whatever_an_upstream_says_the_kinds_are_few():
    said = ["", "odd", *(f"HTTP {status}: words" for status in range(600)), "a defect in per_agent: E()"]
    assert len({kind(words) for words in said}) < 20


# Whether it is settled


def test_an_agent_is_settled_when_nothing_more_can_be_delivered_for_now(tmp_path):
    gate = Gate([Retry("down")])
    with Agent(tmp_path, [gate], delivery=PATIENT) as agent:
        assert add(agent).stored(30)
        until(lambda: gate.inside)
        assert not agent.settled, "a request is under way"
        gate.gate.set()
        until(lambda: agent.settled)
        assert of(agent).books.pending == 1, "it waits for the pause to be over"
        agent.close(0)
    with Agent(tmp_path, [MemoryDestination()]) as agent:
        assert agent.flush(30)
        assert agent.settled


def test_an_agent_whose_disk_refuses_is_settled(tmp_path):
    (tmp_path / "data").write_text("a file in the way")
    agent = Agent(tmp_path / "data", [MemoryDestination()])
    add(agent)
    until(lambda: agent.settled)
    (tmp_path / "data").unlink()
    agent.close()
    assert agent.books()["memory"] == Books(1, pending=1), "at the end it tries once more"


# Whether it is ready


def test_an_agent_is_ready_from_its_opening_to_its_end(tmp_path):
    agent = Agent(tmp_path, [MemoryDestination()])
    agent.start(wait=True)
    assert agent.unready is None
    agent.close()
    assert agent.unready == "the agent is closed"


def test_an_agent_whose_buffer_is_full_is_not_ready(tmp_path):
    agent = Agent(
        tmp_path, [MemoryDestination()], intake=IntakeSettings(buffer_events=2, overflow="drop_newest")
    )
    agent.start(wait=True)
    go = threading.Event()
    held = threading.Event()
    agent._life.engine.spool.post(lambda _: (held.set(), go.wait(60)))
    assert held.wait(30)
    receipts = [add(agent, n) for n in range(3)]
    assert receipts[-1].dropped
    assert agent.unready == "2 events wait for the disk"
    go.set()
    assert agent.close()


# Signs of life


def alive(agent: Agent) -> None:
    """Every thread answers what it is asked from here on."""
    agent.pulse()
    until(lambda: not agent.pulse())
    until(lambda: not agent.pulse())


def test_threads_that_go_on_give_a_sign_of_life(tmp_path):
    with Agent(tmp_path, [MemoryDestination()]) as agent:
        agent.start(wait=True)
        assert agent.pulse() == [], "nobody was asked before"
        alive(agent)


@pytest.mark.parametrize("part", ["spooler", "courier"])
def test_a_thread_that_hangs_is_named_until_it_goes_on(tmp_path, part):
    with Agent(tmp_path, [MemoryDestination()]) as agent:
        agent.start(wait=True)
        engine = agent._life.engine
        wedge, hanging = threading.Event(), engine.spool if part == "spooler" else engine.courier
        hanging.call(wedge.wait)
        until(lambda: agent.pulse() == [part])
        for _ in range(5):
            assert part in agent.pulse()
        wedge.set()
        alive(agent)


def test_an_upstream_that_never_answers_is_not_a_thread_that_hangs(tmp_path):
    gate = Gate()
    with Agent(tmp_path, [gate]) as agent:
        add(agent)
        until(lambda: gate.inside)
        alive(agent)
        gate.gate.set()


def test_a_disk_that_refuses_is_not_a_thread_that_hangs(tmp_path):
    (tmp_path / "data").write_text("a file in the way")
    agent = Agent(tmp_path / "data", [MemoryDestination()])
    add(agent)
    # From the eighth failure on, tries lie seconds apart: signs come in between.
    until(lambda: agent._life.engine.spool._spooler.disk.failures >= 3)
    alive(agent)
    began = time.monotonic()
    for _ in range(20):
        alive(agent)
    assert time.monotonic() - began < 30
    (tmp_path / "data").unlink()
    assert agent.flush(30), "what was asked meanwhile was kept"
    assert agent.close()


def test_a_full_spool_is_not_a_thread_that_hangs(tmp_path):
    gate = Gate()
    agent = Agent(tmp_path, [gate], spool=SMALL, intake=IntakeSettings(linger=0.0))
    fill(agent)
    alive(agent)
    gate.gate.set()
    agent.close(0)


def test_spools_that_were_adopted_are_asked_too(tmp_path):
    programs = [start(LEAVE_BEHIND, tmp_path, "2") for _ in range(2)]
    names = [program.stdout.readline().strip() for program in programs]
    for program in programs:
        program.communicate("die\n", timeout=30)
    gate = Gate(name="m")
    with Agent(tmp_path, [gate], spool=SOON) as agent:
        until(lambda: len(agent._life.engine.spools) == 2)
        own, adopted = agent._life.engine.spools
        until(lambda: adopted.id)
        assert {own.id, adopted.id} == set(names)
        alive(agent)
        wedge = threading.Event()
        adopted.call(wedge.wait)
        until(lambda: agent.pulse() == [f"spooler of {adopted.id}"])
        wedge.set()
        gate.gate.set()
        until(lambda: len(agent._life.engine.spools) == 1)
        alive(agent)


def test_halted_destinations_are_told_with_what_they_say(tmp_path):
    with Agent(tmp_path, [MemoryDestination([Halt("wrong token")])], delivery=PATIENT) as agent:
        add(agent)
        until(lambda: of(agent).delivery.condition.state == "halted")
        seen = of(agent).delivery
        assert (seen.condition.reason, seen.condition.failures) == ("wrong token", 1)
        assert seen.retries == {"halted": 1}
        agent.close(0)
