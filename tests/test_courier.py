"""The courier: what each outcome leads to, who waits for whom, and that no trouble loses an event."""

import itertools
import logging
import threading
import time
from collections import Counter

import pytest
from waiting import until

from per_agent import Agent, DeliverySettings, IntakeSettings, MemoryDestination, RateLimited, SpoolSettings
from per_agent import Refused as RefusedError
from per_agent.backoff import Backoff
from per_agent.books import Books
from per_agent.courier.health import Condition, Health
from per_agent.courier.limit import FIRST
from per_agent.courier.senders import Senders
from per_agent.courier.window import Window
from per_agent.destinations import Delivered, Halt, Parked, Refused, Retry
from per_agent.event import Activity, MeterEvent, encode
from per_agent.spool import Block, BlockId, DeadLetter, Parking, Settlement, snapshots

QUICK = DeliverySettings(backoff_initial=0.01, backoff_max=0.05, probe_interval=0.02)
SINGLE = IntakeSettings(linger=0.0, block_events=1)  # a block for each event


def add(agent: Agent, n: object = 0):
    return agent.add_activity("acme", f"u-{n}", "active")


def users(events) -> list[str]:
    return [event.user_id for event in events]


def books_of(agent: Agent, name: str = "memory") -> Books:
    """The books, balanced, and recounted from the blocks and letters themselves."""
    assert [
        problem
        for one in snapshots(agent.data_dir)
        for lane in one.lanes.values()
        for problem in lane.problems
    ] == []
    books = agent.books()[name]
    assert books.balanced
    return books


def condition(agent: Agent, name: str = "memory") -> dict:
    return agent.status()["destinations"][name]


class Gate(MemoryDestination):
    """Answers only while its gate is open, and knows how many requests were with it at once."""

    def __init__(self, script=(), **options) -> None:
        super().__init__(script, **options)
        self.gate = threading.Event()
        self.inside = 0
        self.most = 0
        self.calls: list[int] = []
        self._counting = threading.Lock()

    def send(self, events):
        with self._counting:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.calls.append(len(events))
        try:
            self.gate.wait(60)
            return super().send(events)
        finally:
            with self._counting:
                self.inside -= 1


class Picky(MemoryDestination):
    """Some users have an outcome of their own; all others are delivered."""

    def __init__(self, own, **options) -> None:
        super().__init__(**options)
        self.own = own

    def _play(self, event):
        self._offered.append(event)
        outcome = self.own.get(event.user_id, Delivered())
        if isinstance(outcome, Delivered):
            self._received.append(event)
        return outcome


# Outcomes


@pytest.mark.parametrize(
    ("script", "books", "attempts"),
    [
        ([Delivered()], Books(1, 1), 1),
        ([Retry("down")] * 3, Books(1, 1), 4),
        ([Halt("wrong token")] * 2, Books(1, 1), 3),
        ([Parked("meter:a", "asleep")] * 2, Books(1, 1), 3),
        ([Refused("no such customer")], Books(1, dead=1), 1),
        ([Refused("odd words", certain=False)] * 4, Books(1, 1), 5),
        ([Retry("down", after=0.0)], Books(1, 1), 2),
    ],
    ids=["delivered", "retry", "halt", "parked", "refused", "perhaps refused", "retry at once"],
)
def test_each_outcome_leads_where_it_should(tmp_path, script, books, attempts):
    destination = MemoryDestination(script)
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        receipt = add(agent)
        assert agent.flush(30)
        assert books_of(agent) == books
        assert len(destination.offered) == attempts
        assert {event.id for event in destination.offered} == {receipt.id}, "one identifier at every attempt"
        assert condition(agent)["state"] == "open"


def test_an_event_goes_as_it_was_recorded(tmp_path):
    destination = MemoryDestination()
    with Agent(tmp_path, [destination]) as agent:
        agent.add_meter_event(
            "api.calls",
            customer_id="c",
            value="0.10",
            metadata={"a": [1]},
            timestamp=5,
            livemode=False,
            identifier="own",
        )
        assert agent.flush(30)
    assert destination.received == [
        MeterEvent("own", "api.calls", "c", "0.10", 5.0, None, '{"a":[1]}', None, False)
    ]


def test_a_refused_event_is_in_the_dead_letters_with_the_reason_and_its_receipt_says_so(tmp_path):
    with Agent(tmp_path, [Picky({"u-7": Refused("no such customer")})]) as agent:
        receipts = [add(agent, n) for n in range(20)]
        assert agent.flush(30)
        (filed,) = agent.dead_letters
        assert filed.lane == "memory"
        assert filed.letter.words == "no such customer"
        assert filed.letter.attempts == 1
        with pytest.raises(RefusedError, match="no such customer"):
            receipts[7].delivered(30)
        assert all(receipt.delivered(30) for n, receipt in enumerate(receipts) if n != 7)
        assert books_of(agent) == Books(20, 19, 1)


def test_a_requeued_dead_letter_is_delivered(tmp_path):
    destination = MemoryDestination([Refused("no such customer")])
    with Agent(tmp_path, [destination]) as agent:
        receipt = add(agent)
        assert agent.flush(30)
        assert agent.dead_letters.requeue(agent.dead_letters) == 1
        assert agent.flush(30)
        assert [event.id for event in destination.received] == [receipt.id]
        assert books_of(agent) == Books(1, 1)


def test_words_that_are_not_certain_bury_an_event_only_when_others_were_delivered_meanwhile(tmp_path):
    destination = Picky({"u-odd": Refused("odd words", certain=False)})
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        odd = add(agent, "odd")
        until(lambda: destination.offered)
        until(lambda: [add(agent, "well").delivered(30), list(agent.dead_letters)][1])
        with pytest.raises(RefusedError, match="odd words"):
            odd.delivered(30)
        (filed,) = agent.dead_letters
        assert filed.letter.attempts >= DeliverySettings().refusal_attempts


def test_words_that_are_not_certain_and_meet_every_event_stop_the_destination_and_bury_nothing(tmp_path):
    destination = MemoryDestination(itertools.repeat(Refused("odd words", certain=False)))
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        for n in range(10):
            add(agent, n)
        until(lambda: condition(agent)["state"] == "halted")
        assert "odd words" in condition(agent)["reason"]
        until(lambda: len(destination.offered) > 100)
        assert books_of(agent) == Books(10, pending=10)


# Pauses


class Wave(MemoryDestination):
    """The first *size* requests come in together before any is answered; all of them meet trouble."""

    def __init__(self, size: int, *, later=()) -> None:
        super().__init__(batch=1, concurrency=size)
        self._wave = threading.Barrier(size)
        self._left = size
        self._later = iter(later)
        self._counting = threading.Lock()
        self.inside = 0
        self.most_later = 0

    def send(self, events):
        with self._counting:
            first = self._left > 0
            self._left -= 1
        if first:
            self._wave.wait(60)
            return [Retry("down", after=0.05)] * len(events)
        with self._counting:
            self.inside += 1
            outcome = next(self._later, None)
            if outcome is not None:
                self.most_later = max(self.most_later, self.inside)
        try:
            time.sleep(0.02)  # long enough that another request would be seen beside this one
            return super().send(events) if outcome is None else [outcome] * len(events)
        finally:
            with self._counting:
                self.inside -= 1


def test_trouble_that_meets_many_requests_at_once_counts_once(tmp_path):
    destination = Wave(8, later=[Retry("down", after=200)])
    with Agent(tmp_path, [destination], intake=IntakeSettings(linger=0.0), delivery=QUICK) as agent:
        for n in range(8):
            add(agent, n)
        # Eight failed together, and then a single one: two pauses, not nine.
        until(lambda: condition(agent)["failures"] == 2)
        assert condition(agent)["retries"] == 9
        agent.close(0)


def test_after_a_pause_a_single_request_goes_first_until_one_is_answered(tmp_path):
    destination = Wave(6, later=[Retry("down")] * 5)
    with Agent(tmp_path, [destination], intake=IntakeSettings(linger=0.0), delivery=QUICK) as agent:
        for n in range(30):
            add(agent, n)
        assert agent.flush(30)
        assert destination.most_later == 1
        assert sorted(users(destination.received)) == sorted(f"u-{n}" for n in range(30))


def longest(_: float, high: float) -> float:
    return high


def health(concurrency: int = 4) -> Health:
    return Health(Backoff(initial=1.0, ceiling=8.0, uniform=longest), concurrency)


def test_a_healthy_destination_may_have_all_its_requests_in_flight():
    assert health(4).allowed(0.0) == 4
    assert health().resumes_in(0.0) is None
    assert health().condition == Condition()


def test_a_pause_lasts_as_long_as_the_backoff_says_and_grows_with_each_failure():
    one = health()
    now = 100.0
    for failures, wait in enumerate([1, 2, 4, 8, 8], start=1):
        assert one.failed("retrying", "down", one.epoch, now, 5.0) is (failures == 1)
        assert one.allowed(now + wait - 0.01) == 0
        assert one.resumes_in(now) == wait
        assert one.allowed(now + wait) == 1
        assert one.resumes_in(now + wait) is None
        assert one.condition == Condition("retrying", "down", 5.0, failures)
        now += wait


def test_what_the_upstream_asked_for_is_waited_at_least():
    one = health()
    one.failed("retrying", "slow down", one.epoch, 0.0, 5.0, after=30.0)
    assert one.allowed(29.99) == 0
    assert one.allowed(33.0) == 1, "with at most a tenth more"


def test_requests_of_an_epoch_that_is_over_change_nothing():
    one = health()
    old = one.epoch
    one.failed("retrying", "down", old, 0.0, 5.0)
    for _ in range(7):
        assert not one.failed("halted", "other words", old, 0.5, 6.0)
    assert not one.answered(old, 6.0), "an answer from before the trouble does not end the pause"
    assert one.condition == Condition("retrying", "down", 5.0, 1)
    assert one.answered(one.epoch, 7.0)
    assert one.condition == Condition(since=7.0)
    assert one.allowed(0.0) == 4


def test_the_time_of_a_trouble_is_when_it_began():
    one = health()
    one.failed("retrying", "down", one.epoch, 0.0, 5.0)
    one.failed("retrying", "still down", one.epoch, 0.0, 6.0)
    assert (one.condition.since, one.condition.reason) == (5.0, "still down")
    one.failed("halted", "wrong token", one.epoch, 0.0, 7.0)
    assert one.condition == Condition("halted", "wrong token", 7.0, 3)


def test_stop_interrupts_a_long_backoff_and_keeps_the_events(tmp_path):
    destination = MemoryDestination(itertools.repeat(Retry("down", after=200)))
    agent = Agent(tmp_path, [destination])
    for n in range(5):
        add(agent, n)
    until(lambda: condition(agent)["state"] == "retrying")
    began = time.monotonic()
    assert agent.close(60) is False
    assert time.monotonic() - began < 30
    assert books_of(agent) == Books(5, pending=5)
    with Agent(tmp_path, [MemoryDestination()]) as agent:
        assert agent.flush(30)
        assert books_of(agent) == Books(5, 5)


def test_stop_does_not_wait_longer_than_it_may_for_a_request_in_flight(tmp_path):
    destination = Gate()
    agent = Agent(tmp_path, [destination])
    add(agent)
    until(lambda: destination.inside)
    began = time.monotonic()
    assert agent.close(0.2) is False
    assert time.monotonic() - began < 20
    destination.gate.set()


def test_stop_does_not_wait_for_a_destination_that_is_in_trouble_again_with_the_same_words(tmp_path):
    destination = Gate(itertools.repeat(Retry("down", after=0.2)))
    destination.gate.set()
    agent = Agent(tmp_path, [destination], delivery=DeliverySettings(backoff_initial=5.0))
    add(agent)
    until(lambda: condition(agent)["failures"] == 1)
    destination.gate.clear()
    until(lambda: destination.inside)  # it tries again, and nobody knows yet how that ends
    closed: list[bool] = []
    closing = threading.Thread(target=lambda: closed.append(agent.close(100)))
    closing.start()
    until(lambda: agent._life.progress.awaited)
    destination.gate.set()
    closing.join(50)
    assert closed == [False]


def test_what_is_answered_while_stopping_is_settled(tmp_path):
    destination = Gate()
    agent = Agent(tmp_path, [destination])
    add(agent)
    until(lambda: destination.inside)
    threading.Timer(0.2, destination.gate.set).start()
    assert agent.close(30)
    assert books_of(agent) == Books(1, 1)


def test_a_pause_is_said_and_so_is_its_end(tmp_path, caplog):
    caplog.set_level(logging.INFO, "per_agent")
    with Agent(tmp_path, [MemoryDestination([Retry("connection refused")] * 3)], delivery=QUICK) as agent:
        add(agent)
        assert agent.flush(30)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("in trouble" in line and "connection refused" in line for line in lines) == 1, (
        "once, not at each attempt"
    )
    assert sum("well again" in line for line in lines) == 1


# Batches and concurrency


def test_events_go_in_their_order_and_in_batches_no_larger_than_asked_for(tmp_path):
    destination = Gate(batch=7)
    with Agent(tmp_path, [destination], intake=IntakeSettings(linger=0.0, block_events=10)) as agent:
        for n in range(100):
            add(agent, n)
        until(lambda: destination.inside)
        destination.gate.set()
        assert agent.flush(30)
        assert users(destination.received) == [f"u-{n}" for n in range(100)]
        assert max(destination.calls) == 7
        assert sum(destination.calls) == 100


@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_no_more_requests_are_in_flight_than_the_destination_allows(tmp_path, concurrency):
    destination = Gate(batch=1, concurrency=concurrency)
    with Agent(tmp_path, [destination]) as agent:
        for n in range(60):
            add(agent, n)
        until(lambda: destination.inside == min(concurrency, FIRST))
        destination.gate.set()
        assert agent.flush(30)
        assert min(concurrency, FIRST) <= destination.most <= concurrency
        assert sorted(users(destination.received)) == sorted(f"u-{n}" for n in range(60))
        assert books_of(agent) == Books(60, 60)


def test_a_burst_of_trouble_in_the_middle_of_batches_delivers_each_event_once(tmp_path):
    script = ([Delivered()] * 5 + [Retry("down")] + [Delivered()] * 3 + [Refused("bad")]) * 20
    destination = MemoryDestination(script, batch=8, concurrency=3)
    with Agent(
        tmp_path, [destination], intake=IntakeSettings(linger=0.0, block_events=9), delivery=QUICK
    ) as agent:
        for n in range(150):
            add(agent, n)
        assert agent.flush(60)
        received = Counter(users(destination.received))
        assert max(received.values()) == 1
        books = books_of(agent)
        assert (books.accepted, books.delivered, books.pending) == (150, len(received), 0)
        assert books.dead == len(list(agent.dead_letters)) == 150 - len(received)


# Memory


def test_a_backlog_is_read_a_bounded_number_of_blocks_at_a_time(tmp_path):
    destination = Gate(batch=1, concurrency=50)
    with Agent(tmp_path, [destination], intake=SINGLE, delivery=DeliverySettings(window_blocks=4)) as agent:
        for n in range(150):
            receipt = add(agent, n)
        assert receipt.stored(30)
        until(lambda: destination.inside == 4)
        assert agent.books()["memory"].pending == 150
        destination.gate.set()
        assert agent.flush(60)
        assert destination.most <= 4, "each block held one event, so no more than four were ever in memory"
        assert Counter(users(destination.received)) == Counter(f"u-{n}" for n in range(150))
        assert books_of(agent) == Books(150, 150)


def test_a_backlog_of_a_dead_process_is_delivered_in_order(tmp_path):
    with Agent(tmp_path, [MemoryDestination(itertools.repeat(Halt("wrong token")))], intake=SINGLE) as agent:
        for n in range(120):
            receipt = add(agent, n)
        assert receipt.stored(30)
    destination = MemoryDestination(batch=5)
    with Agent(tmp_path, [destination], delivery=DeliverySettings(window_blocks=3)) as agent:
        assert agent.flush(60)
        assert users(destination.received) == [f"u-{n}" for n in range(120)]
        assert books_of(agent) == Books(120, 120)


class RecordingSpool:
    """Stands in for the spool where only its answers matter: keeps what it was asked to settle."""

    def __init__(self) -> None:
        self.settled: list[tuple[Settlement, object]] = []
        self.asked: list[tuple[BlockId | None, int, object]] = []

    def settle(self, block, what, then, *, hurried=False):
        self.settled.append((what, then))

    def head(self, lane, after, limit, reply):
        self.asked.append((after, limit, reply))


def block(seq: int, count: int = 1, settled: int = 0) -> Block:
    return Block(
        "memory",
        BlockId(seq),
        [encode(Activity(f"{seq}-{n}", "a", "u", "t", 1.0)) for n in range(count)],
        1.0,
        settled,
    )


@pytest.fixture
def window():
    spool = RecordingSpool()
    arrived: list[tuple[int, list[Block]]] = []
    made = Window(spool, "memory", 3, lambda _, turn, blocks: arrived.append((turn, blocks)), lambda _: None)  # type: ignore[arg-type]
    made.recorded = spool  # type: ignore[attr-defined]
    made.arrived_blocks = arrived  # type: ignore[attr-defined]
    return made


def now(call) -> None:
    """Runs what is to be done in the courier's thread at once."""
    call()


def test_one_settlement_of_a_block_is_under_way_at_a_time_and_the_next_takes_all_that_came_meanwhile(window):
    (loaded,) = window.take(0, [block(1, 6)], 1.0)
    spool = window.recorded
    loaded.delivered(0)
    loaded.late(0)
    loaded.settle(now, hurried=False)
    for at in (1, 2):
        loaded.delivered(at)
        loaded.settle(now, hurried=False)
    loaded.late(2)
    loaded.crossed(2)
    loaded.dead(3, DeadLetter(b"", "refused", "", 1, 1.0))
    loaded.parked(4, Parking("k", "asleep", 1.0))
    loaded.settle(now, hurried=False)
    assert len(spool.settled) == 1
    spool.settled[0][1]()
    assert len(spool.settled) == 2
    what = spool.settled[1][0]
    assert (what.delivered, [at for at, _ in what.dead], [ats for _, ats in what.parked]) == (
        [1, 2],
        [3],
        [[4]],
    )
    assert (spool.settled[0][0].late, what.late, what.crossed) == ([0], [2], [2])
    loaded.delivered(5)
    assert list(window) == [loaded]
    spool.settled[1][1]()
    assert len(spool.settled) == 3
    spool.settled[2][1]()
    assert list(window) == [], "and the block is out of memory when all of it is settled"


def test_a_block_that_was_half_settled_before_waits_for_the_other_half_only(window):
    (loaded,) = window.take(0, [block(1, 4, settled=0b0101)], 1.0)
    assert loaded.left == 2
    loaded.delivered(1)
    loaded.delivered(3)
    loaded.settle(now, hurried=True)
    window.recorded.settled[0][1]()
    assert list(window) == []


def test_a_window_asks_once_and_takes_no_more_blocks_than_there_is_room_for(window):
    spool = window.recorded
    window.ask()
    window.ask()
    assert [(after, limit) for after, limit, _ in spool.asked] == [(None, 3)]
    window.take(0, [block(1), block(2)], 1.0)
    window.ask()
    assert [after for after, _, _ in spool.asked[1:]] == [BlockId(2)]
    (third,) = window.take(0, [block(3), block(4), block(5)], 1.0)
    window.ask()
    assert len(spool.asked) == 2, "it is full"
    third.delivered(0)
    third.settle(now, hurried=True)
    spool.settled[0][1]()
    window.ask()
    assert [after for after, _, _ in spool.asked[2:]] == [BlockId(3)], (
        "what there was no room for is asked for again"
    )


def test_a_window_that_began_anew_passes_over_what_it_holds_and_takes_what_is_older(window):
    spool = window.recorded
    window.ask()
    window.take(0, [block(5), block(6)], 1.0)
    window.rewind()
    assert window.take(0, [block(7)], 1.0) == [], "the answer to a question that was withdrawn"
    window.ask()
    assert [(after, limit) for after, limit, _ in spool.asked[1:]] == [(None, 3)]
    fresh = window.take(1, [block(2), block(5), block(6), block(7)], 1.0)
    assert [loaded.block.id.seq for loaded in fresh] == [2]
    assert len(list(window)) == 3, "no more than its size"


# Parking


def test_a_parked_event_goes_on_when_a_probe_says_so(tmp_path):
    destination = MemoryDestination([Parked("meter:a", "asleep")], probes=[False, False, True])
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        receipt = add(agent)
        assert receipt.delivered(30)
        assert destination.probed == ["meter:a"] * 3
        assert books_of(agent) == Books(1, 1)
        assert condition(agent)["parked_for"] == []


def test_parked_events_are_pending_and_hold_up_no_others(tmp_path):
    destination = Picky({"u-3": Parked("meter:a", "asleep")}, probes=itertools.repeat(False))
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        receipts = [add(agent, n) for n in range(20)]
        assert all(receipt.delivered(30) for n, receipt in enumerate(receipts) if n != 3)
        until(lambda: condition(agent)["parked_for"] == ["meter:a"])
        assert not agent.flush(0.1)
        assert books_of(agent) == Books(20, 19, pending=1)
        (snapshot,) = snapshots(tmp_path)
        assert snapshot.lanes["memory"].parked == 1
        assert [parking.reason for parking in snapshot.lanes["memory"].parkings] == ["asleep"]


def test_parked_events_wait_on_the_disk_and_not_in_memory(tmp_path):
    parked = {f"u-{n}": Parked("meter:a", "asleep") for n in range(100)}
    destination = Picky(parked, probes=itertools.repeat(False))
    with Agent(
        tmp_path,
        [destination],
        intake=SINGLE,
        delivery=DeliverySettings(window_blocks=2, probe_interval=60.0),
    ) as agent:
        for n in range(100):
            add(agent, n)
        assert add(agent, "well").delivered(30), "a window full of parked events would never come to this one"
        assert books_of(agent) == Books(101, 1, pending=100)


def test_parked_events_are_probed_and_delivered_after_a_restart(tmp_path):
    with Agent(
        tmp_path,
        [MemoryDestination([Parked("meter:a", "asleep")] * 5, probes=itertools.repeat(False))],
        delivery=QUICK,
    ) as agent:
        for n in range(5):
            add(agent, n)
        until(
            lambda: (
                [snapshot.lanes["memory"].parked for snapshot in snapshots(tmp_path) if snapshot.lanes] == [5]
            )
        )
    destination = MemoryDestination(probes=[False, True])
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        assert agent.flush(30)
        assert destination.probed[:2] == ["meter:a"] * 2
        assert users(destination.received) == [f"u-{n}" for n in range(5)]
        assert books_of(agent) == Books(5, 5)


def test_many_keys_park_and_go_on_each_by_its_own_probe(tmp_path):
    own = {f"u-{n}": Parked(f"meter:{n % 10}", "asleep") for n in range(50)}

    class Waking(Picky):
        def probe(self, key):
            super().probe(key)
            awake = len(self.probed) > 20
            if awake:
                for user in [
                    user for user, outcome in self.own.items() if getattr(outcome, "key", None) == key
                ]:
                    self.own[user] = Delivered()
            return awake

    destination = Waking(own, concurrency=2)
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        for n in range(50):
            add(agent, n)
        assert agent.flush(60)
        assert Counter(users(destination.received)) == Counter(f"u-{n}" for n in range(50))
        assert set(destination.probed) == {f"meter:{n}" for n in range(10)}
        assert books_of(agent) == Books(50, 50)


# Defects of a destination


class Defective(MemoryDestination):
    """Meets a defect a number of times, of one kind or another."""

    def __init__(self, defects, **options) -> None:
        super().__init__(**options)
        self._defects = iter(defects)

    def send(self, events):
        defect = next(self._defects, None)
        return super().send(events) if defect is None else defect(events)


def raises(_):
    raise ZeroDivisionError("a defect")


def upstream_error(_):
    raise RateLimited("memory", "POST /", "an error where an outcome belongs")


@pytest.mark.parametrize(
    "defect",
    [
        raises,
        upstream_error,
        lambda events: [],
        lambda events: [Delivered()] * (len(events) + 1),
        lambda events: None,
    ],
    ids=["raises", "raises ours", "too few outcomes", "too many outcomes", "no outcomes"],
)
def test_a_defect_in_a_destination_loses_and_doubles_nothing(tmp_path, defect):
    destination = Defective([defect] * 3, batch=4)
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        for n in range(10):
            add(agent, n)
        assert agent.flush(30)
        assert Counter(users(destination.received)) == Counter(f"u-{n}" for n in range(10))
        assert books_of(agent) == Books(10, 10)


def test_a_defect_in_a_probe_keeps_events_parked_until_the_next(tmp_path):
    class Stumbling(MemoryDestination):
        stumbles = 2

        def probe(self, key):
            self.stumbles -= 1
            if self.stumbles >= 0:
                raise ZeroDivisionError
            return super().probe(key)

    with Agent(tmp_path, [Stumbling([Parked("meter:a", "asleep")])], delivery=QUICK) as agent:
        assert add(agent).delivered(30)


def test_bytes_that_this_version_cannot_read_go_to_the_dead_letters_and_hold_nothing_up(tmp_path):
    with Agent(tmp_path, [MemoryDestination([Halt("wrong token")])]) as agent:
        add(agent).stored(30)
        agent._life.engine.spool.run(
            lambda changes: changes.append(
                ("memory",), [b"from the future", encode(Activity("x", "a", "u-x", "t", 1.0))], 1.0
            )
        )
    destination = MemoryDestination()
    with Agent(tmp_path, [destination]) as agent:
        assert agent.flush(30)
        assert users(destination.received) == ["u-0", "u-x"]
        (filed,) = agent.dead_letters
        assert filed.letter.event == b"from the future"
        assert "cannot be read by this version" in filed.letter.reason
        assert books_of(agent) == Books(3, 2, 1)


def test_the_threads_of_a_destination_end_when_they_are_told(tmp_path):
    senders = Senders(MemoryDestination(concurrency=3), 3)
    senders.stop()
    assert senders.join(lambda: 1.0), "also when they were never begun"
    senders = Senders(MemoryDestination(concurrency=3), 3)
    senders.start()
    answers: list[object] = []
    senders.send([Activity("1", "a", "u", "t", 1.0)], lambda outcomes, _: answers.append(outcomes))
    senders.stop()
    assert senders.join(lambda: 30.0)
    assert answers == [[Delivered()]]


# Several destinations


def test_each_kind_of_event_goes_to_the_destinations_that_take_it(tmp_path):
    activities = MemoryDestination(name="activities", takes=frozenset({Activity}))
    meters = MemoryDestination(name="meters", takes=frozenset({MeterEvent}))
    both = MemoryDestination(name="both")
    with Agent(tmp_path, [activities, meters, both]) as agent:
        add(agent, 1)
        agent.add_meter_event("api.calls", customer_id="c", value=1)
        assert agent.flush(30)
        assert [type(event) for event in activities.received] == [Activity]
        assert [type(event) for event in meters.received] == [MeterEvent]
        assert {type(event) for event in both.received} == {Activity, MeterEvent}
        assert [books_of(agent, name) for name in ("activities", "meters", "both")] == [
            Books(1, 1),
            Books(1, 1),
            Books(2, 2),
        ]


def test_two_destinations_settle_independently_of_each_other(tmp_path):
    one = MemoryDestination(name="one", takes=frozenset({Activity}))
    other = MemoryDestination(
        itertools.repeat(Halt("wrong token")), name="other", takes=frozenset({MeterEvent})
    )
    with Agent(tmp_path, [one, other], delivery=QUICK) as agent:
        waiting = agent.add_meter_event("api.calls", customer_id="c", value=1)
        assert add(agent).delivered(30)
        assert not waiting.delivered(0)
        until(lambda: condition(agent, "other")["state"] == "halted")
        assert condition(agent, "one")["state"] == "open"
        assert books_of(agent, "one") == Books(1, 1)
        assert books_of(agent, "other") == Books(1, pending=1)


def test_an_event_for_two_destinations_is_delivered_when_both_have_it(tmp_path):
    quick, slow = MemoryDestination(name="quick"), Gate(name="slow")
    with Agent(tmp_path, [quick, slow]) as agent:
        receipt = add(agent)
        until(lambda: agent.books()["quick"].delivered == 1)
        assert not receipt.delivered(0.05)
        assert books_of(agent, "slow") == Books(1, pending=1)
        slow.gate.set()
        assert receipt.delivered(30)
        assert [event.id for event in quick.received] == [event.id for event in slow.received] == [receipt.id]


def test_an_event_that_one_of_two_destinations_refused_says_which(tmp_path):
    with Agent(
        tmp_path, [MemoryDestination(name="well"), MemoryDestination([Refused("bad")], name="picky")]
    ) as agent:
        receipt = add(agent)
        assert agent.flush(30)
        with pytest.raises(RefusedError) as caught:
            receipt.delivered(30)
        assert (caught.value.destination, caught.value.words) == ("picky", "bad")
        assert (books_of(agent, "well"), books_of(agent, "picky")) == (Books(1, 1), Books(1, dead=1))


def test_a_destination_that_never_answers_delays_no_other(tmp_path):
    wedged, well = Gate(name="wedged"), MemoryDestination(name="well")
    with Agent(tmp_path, [wedged, well], intake=SINGLE) as agent:
        for n in range(100):
            add(agent, n)
        until(lambda: agent.books()["well"].delivered == 100)
        assert agent.books()["wedged"].pending == 100
        wedged.gate.set()
        assert agent.flush(30)


# Poison


def test_an_event_that_always_fails_costs_the_others_a_moment_and_not_their_turn(tmp_path):
    destination = Picky({"u-3": Retry("it kills the request")}, batch=1, concurrency=4)
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        receipts = [add(agent, n) for n in range(200)]
        assert all(receipt.delivered(60) for n, receipt in enumerate(receipts) if n != 3)
        assert books_of(agent) == Books(200, 199, pending=1)
        destination.own.clear()
        assert agent.flush(30)


# Adoption


def test_what_a_dead_agent_left_is_delivered_by_a_running_one_and_its_books_are_inherited(tmp_path):
    eager = SpoolSettings(adopt_interval=0.05)
    running = MemoryDestination()
    with Agent(tmp_path, [running], spool=eager) as agent:
        assert add(agent, "own").delivered(30)
        dying = Agent(tmp_path, [MemoryDestination(itertools.repeat(Retry("down", after=200)))])
        for n in range(20):
            receipt = add(dying, n)
        assert receipt.stored(30)
        dying.close(0)
        until(lambda: len(running.received) == 21)
        until(lambda: len(list((tmp_path / "spools").iterdir())) == 1)
        assert books_of(agent) == Books(21, 21)
        assert agent.flush(30)


def test_a_dead_letter_keeps_its_spool_and_can_be_requeued_there(tmp_path):
    with Agent(tmp_path, [MemoryDestination()], spool=SpoolSettings(adopt_interval=0.05)) as agent:
        assert add(agent, "own").delivered(30)
        with Agent(tmp_path, [MemoryDestination([Refused("bad")])]) as dying:
            add(dying, "dead")
            assert dying.flush(30)
        until(lambda: all(snapshot.held for snapshot in snapshots(tmp_path)))
        (filed,) = agent.dead_letters
        assert agent.dead_letters.requeue([filed]) == 1
        assert agent.flush(30)
        until(lambda: len(list((tmp_path / "spools").iterdir())) == 1)
        assert books_of(agent) == Books(2, 2)


def test_what_is_delivered_while_more_comes_is_settled_in_the_commits_of_what_comes(tmp_path):
    linger = 0.05
    with Agent(tmp_path, [MemoryDestination()], intake=IntakeSettings(linger=linger)) as agent:
        agent.start(wait=True)
        began = time.monotonic()
        for n in range(200):
            add(agent, n)
            time.sleep(0.003)
        commits, lasted = agent._life.engine.spool.commits, time.monotonic() - began
        assert agent.flush(30)
    assert commits <= lasted / linger + 2  # one every so often, as if nothing were delivered
    assert books_of(agent) == Books(200, 200)


def test_an_outage_pauses_a_destination_also_when_each_event_in_memory_was_refused_before(tmp_path):
    refusals = [Refused("E1", certain=False)] * 5
    destination = MemoryDestination(
        itertools.chain(refusals, itertools.repeat(Retry("slow down", after=60.0)))
    )
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        for n in range(5):
            add(agent, n)
        until(lambda: agent.status()["destinations"]["memory"]["state"] == "retrying")
        asked = len(destination.offered)
        assert not agent.flush(0.2)
        assert len(destination.offered) == asked


def test_a_backlog_does_not_wait_for_company_however_long_new_events_may(tmp_path):
    with Agent(tmp_path, [MemoryDestination(itertools.repeat(Retry("down", after=60.0)))]) as agent:
        for n in range(3000):
            receipt = add(agent, n)
        assert receipt.stored(30)
        agent.close(0.0)
    destination = MemoryDestination(batch=20, concurrency=4)
    delivery = DeliverySettings(window_blocks=2)
    with Agent(tmp_path, [destination], intake=IntakeSettings(linger=60.0), delivery=delivery):
        until(lambda: len(destination.received) == 3000)


def test_what_is_delivered_is_pending_no_more_soon_however_long_new_events_may_linger(tmp_path):
    with Agent(tmp_path, [MemoryDestination()], intake=IntakeSettings(linger=60.0)) as agent:
        assert add(agent).stored(30)
        until(lambda: agent.books()["memory"] == Books(1, 1))
