"""The way in: never in the way, full by the chosen policy, exact at the close, and receipts that cost little."""

import asyncio
import gc
import random
import signal
import threading
import time
from contextlib import suppress

import pytest
from waiting import until

from per_agent import (
    Agent,
    AgentClosed,
    BufferFull,
    DeliverySettings,
    IntakeSettings,
    InvalidEvent,
    MemoryDestination,
)
from per_agent.destinations import Delivered, Parked, Refused, Retry
from per_agent.errors import Refused as RefusedError
from per_agent.errors import SpoolFull
from per_agent.event import STEP, Activity, MeterEvent, Progress
from per_agent.intake import Intake
from per_agent.spool.inflow import Inflow

QUICK = DeliverySettings(backoff_initial=0.01, backoff_max=0.05, probe_interval=0.05)
NOWHERE = "a file in the way"


class Gate(MemoryDestination):
    """A destination that answers only while its gate is open."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.gate = threading.Event()

    def send(self, events):
        self.gate.wait(60)
        return super().send(events)


@pytest.fixture
def blocked(tmp_path):
    """A data folder that cannot be used until its `unlink`: events stay in the buffer."""
    place = tmp_path / "data"
    place.write_text(NOWHERE)
    return place


def add(agent: Agent, n: int = 0):
    return agent.add_activity("acme", f"u-{n}", "active")


def intake(**settings) -> Intake:
    """An intake that nobody empties."""
    return Intake(IntakeSettings(**settings), Progress(lambda: None), lambda: None)


def event(n: int = 0) -> Activity:
    return Activity(f"id-{n}", "acme", "u", "active", 1.0)


# Overflow


def test_an_event_that_is_refused_leaves_no_gap_in_the_numbers_of_those_that_are_stored():
    door = intake(buffer_events=2)
    first = door.accept(event(), ("m",))
    for _ in range(100):
        with suppress(BufferFull):
            last = door.accept(event(), ("m",))
    door.take(1)
    assert [each._number - first._number for each in (last, door.accept(event(), ("m",)))] == [STEP, 2 * STEP]


def test_who_comes_while_a_spooler_without_a_spool_leaves_is_told_that_the_agent_is_closed():
    def leave(_):
        inflow.finish()
        raise OSError("no journal can be made")

    door = Intake(IntakeSettings(), Progress(lambda: None), lambda: None, leave)
    inflow = Inflow(door, 100, time.time)
    with pytest.raises(AgentClosed):
        door.accept(event(), ("m",))
    assert door.waiting() == 0


def test_a_full_buffer_raises_where_that_was_chosen(blocked):
    agent = Agent(blocked, [MemoryDestination()], intake=IntakeSettings(buffer_events=3))
    receipts = [add(agent) for _ in range(3)]
    for _ in range(2):
        with pytest.raises(BufferFull, match="3 events wait for the disk: the event was not accepted"):
            add(agent)
    assert agent.status()["overflows"] == {"raised": 2, "blocked": 0, "dropped": 0}
    blocked.unlink()
    assert receipts[-1].stored(30)
    assert add(agent).stored(30), "and takes events again when there is room"
    assert agent.close()
    assert agent.books()["memory"].accepted == 4


def test_a_full_buffer_drops_the_new_event_where_that_was_chosen_and_the_books_know(blocked):
    destinations = [MemoryDestination(name="a"), MemoryDestination(name="b", takes=frozenset({MeterEvent}))]
    agent = Agent(blocked, destinations, intake=IntakeSettings(buffer_events=3, overflow="drop_newest"))
    receipts = [add(agent) for _ in range(8)]
    assert [receipt.dropped for receipt in receipts] == [False] * 3 + [True] * 5
    assert agent.status()["overflows"]["dropped"] == 5
    assert receipts[-1].stored() is False, "and nobody waits for what is given up"
    assert receipts[-1].delivered() is False
    assert asyncio.run(receipts[-1].stored_async()) is False
    assert asyncio.run(receipts[-1].delivered_async()) is False
    blocked.unlink()
    until(lambda: agent.books()["a"].dropped == 5)
    assert agent.close()
    books = agent.books()
    assert (books["a"].accepted, books["a"].delivered, books["a"].dropped) == (8, 3, 5)
    assert books["b"].accepted == 0
    assert books["a"].balanced


def test_a_full_buffer_holds_the_caller_up_where_that_was_chosen_until_there_is_room(blocked):
    agent = Agent(blocked, [MemoryDestination()], intake=IntakeSettings(buffer_events=3, overflow="block"))
    for _ in range(3):
        add(agent)
    late: list[object] = []
    caller = threading.Thread(target=lambda: late.append(add(agent)))
    caller.start()
    until(lambda: agent.status()["overflows"]["blocked"])
    assert caller.is_alive()
    blocked.unlink()
    caller.join(30)
    assert late
    assert agent.close()
    assert agent.books()["memory"].delivered == 4


def test_a_caller_that_is_held_up_learns_of_room_also_when_nothing_was_committed_meanwhile():
    waits = threading.Event()
    door = Intake(IntakeSettings(overflow="block"), Progress(waits.set), lambda: None)
    door.refuse(SpoolFull("the spool is full"))
    caller = threading.Thread(target=lambda: door.accept(event(), ("a",)), daemon=True)
    caller.start()
    assert waits.wait(30)
    caller.join(0.1)
    assert caller.is_alive()
    door.refuse(None)
    caller.join(30)
    assert not caller.is_alive()
    assert door.waiting() == 1


def test_a_caller_that_is_held_up_learns_of_the_close(blocked):
    agent = Agent(blocked, [MemoryDestination()], intake=IntakeSettings(buffer_events=1, overflow="block"))
    add(agent)
    told: list[BaseException] = []

    def record() -> None:
        try:
            add(agent)
        except AgentClosed as error:
            told.append(error)

    caller = threading.Thread(target=record)
    caller.start()
    until(lambda: agent.status()["overflows"]["blocked"])
    blocked.unlink()  # or else the close would wait for the disk
    agent.close()
    caller.join(30)
    assert not caller.is_alive()
    books = agent.books()["memory"]
    assert books.accepted == 2 - len(told)


def test_each_error_of_a_full_buffer_is_a_fresh_one():
    full = intake(buffer_events=1)
    full.accept(event(), ("a",))
    errors = []
    for _ in range(2):
        with pytest.raises(BufferFull) as caught:
            full.accept(event(), ("a",))
        errors.append(caught.value)
    assert errors[0] is not errors[1]


def test_an_invalid_event_is_refused_at_the_door_and_counted_nowhere(tmp_path):
    with Agent(tmp_path, [MemoryDestination()]) as agent:
        for bad in ("", "\ud800", "x" * 70_000):
            with pytest.raises(InvalidEvent):
                agent.add_activity("acme", bad, "active")
        add(agent)
        assert agent.flush(30)
        assert agent.books()["memory"].accepted == 1


def test_an_event_that_no_destination_takes_is_refused(tmp_path):
    with (
        Agent(tmp_path, [MemoryDestination(takes=frozenset({MeterEvent}))]) as agent,
        pytest.raises(InvalidEvent, match="no configured destination takes an activity"),
    ):
        add(agent)


# Closing


def test_a_closed_agent_takes_nothing(tmp_path):
    agent = Agent(tmp_path, [MemoryDestination()])
    add(agent)
    assert agent.close()
    for _ in range(2):
        with pytest.raises(AgentClosed):
            add(agent)
    with pytest.raises(AgentClosed):
        agent.start()
    assert agent.close(), "and may be closed again"


def test_an_agent_that_was_never_used_can_be_closed(tmp_path):
    agent = Agent(tmp_path / "data", [MemoryDestination()])
    assert agent.close()
    assert not (tmp_path / "data").exists()
    with pytest.raises(AgentClosed):
        add(agent)


@pytest.mark.parametrize("overflow", ["raise", "block", "drop_newest"])
def test_every_event_that_was_accepted_while_closing_is_stored_and_every_other_was_refused(
    tmp_path, overflow
):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for n in range(12):
        agent = Agent(
            tmp_path / str(n),
            [MemoryDestination()],
            intake=IntakeSettings(linger=0.0, buffer_events=200, overflow=overflow),
        )
        accepted = [0] * 6
        refused = [0] * 6
        dropped = [0] * 6
        going = threading.Barrier(7)

        def record(
            me: int, agent=agent, accepted=accepted, refused=refused, dropped=dropped, going=going
        ) -> None:
            going.wait()
            while True:
                try:
                    receipt = add(agent)
                except BufferFull:
                    continue
                except AgentClosed:
                    refused[me] += 1
                    return
                accepted[me] += 1
                dropped[me] += receipt.dropped

        threads = [threading.Thread(target=record, args=(me,)) for me in range(6)]
        for thread in threads:
            thread.start()
        going.wait()
        busy_until = time.monotonic() + moments.uniform(0, 0.05)
        while time.monotonic() < busy_until:
            pass
        agent.close(timeout=0)
        for thread in threads:
            thread.join(30)
        assert refused == [1] * 6
        books = agent.books()["memory"]
        assert books.balanced
        assert books.dropped == sum(dropped)
        assert books.accepted == sum(accepted), "each receipt that was given out is in the books"


def test_a_caller_that_slept_through_the_whole_close_is_told_or_its_event_is_stored():
    # The close, taken step by step: the moments at which a caller can come between its steps.
    taken: list[object] = []
    for caller_comes in range(4):
        door = intake()
        steps = [door.close, door.seal, lambda: taken.extend(door.take(10)), lambda: None]  # noqa: B023
        receipt = None
        for at, step in enumerate(steps):
            if at == caller_comes:
                with suppress(AgentClosed):
                    receipt = door.accept(event(at), ("a",))
            step()
        assert receipt is None or receipt in taken


def test_an_event_that_slipped_in_after_the_last_look_is_refused_and_not_forgotten():
    # A caller that looked for room before the close and came on after it: the look is not repeated.
    door = intake()
    door.close()
    door.seal()
    assert door.take(10) == []
    door._room = 10  # as this caller saw it
    for mark in (0, 2**62):  # also while another late caller is being attended to
        door._mark = mark
        with pytest.raises(AgentClosed):
            door.accept(event(), ("a",))
    assert door.waiting() == 0


# Interruptions


@pytest.fixture
def alarm():
    """Sets a handler for SIGALRM and a timer that raises it again and again; both are gone afterwards."""
    before = signal.getsignal(signal.SIGALRM)

    def start(handler, every: float) -> None:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, every, every)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.signals
@pytest.mark.parametrize("overflow", ["raise", "drop_newest", "block"])
def test_a_signal_handler_that_records_events_loses_and_doubles_nothing(tmp_path, alarm, overflow):
    destination = MemoryDestination()
    agent = Agent(
        tmp_path, [destination], intake=IntakeSettings(linger=0.0, buffer_events=50, overflow=overflow)
    )
    mine: list[str] = []
    handled = 0
    handling = False

    def record() -> None:
        try:
            receipt = add(agent)
        except BufferFull:
            return
        if not receipt.dropped:
            mine.append(receipt.id)

    def handler(*_: object) -> None:
        nonlocal handled, handling
        if handling:
            return  # a handler that waits for room would be interrupted ever more deeply
        handling = True
        for _ in range(5):
            record()
        handled += 1
        handling = False

    alarm(handler, 0.0003)
    while handled < 300:
        for _ in range(100):
            record()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert agent.flush(60)
    assert agent.close()
    books = agent.books()["memory"]
    assert books.balanced
    assert (books.accepted - books.dropped, books.delivered) == (len(mine), len(mine))
    assert sorted(one.id for one in destination.received) == sorted(mine)


class Interruption(Exception):
    pass


@pytest.mark.signals
def test_an_exception_in_the_middle_of_a_call_leaves_nothing_half_done(tmp_path, alarm):
    destination = MemoryDestination()
    # A buffer that this flood cannot fill, however fast the machine and slow the disk.
    agent = Agent(tmp_path, [destination], intake=IntakeSettings(linger=0.0, buffer_events=10_000_000))
    agent.start(wait=True)
    armed = False
    interrupted = 0
    receipts = []

    def handler(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False  # so that it strikes inside the `try` below and nowhere else
            raise Interruption

    alarm(handler, 0.0007)
    while interrupted < 300:
        try:
            armed = True
            while True:
                receipts.append(add(agent))
        except Interruption:
            interrupted += 1
    # Nobody wakes it, waits for it or adds anything more, and yet all is stored: no call left it asleep.
    until(lambda: agent._life.intake.waiting() == 0, timeout=10)
    assert agent.flush(60)
    assert agent.close()
    received = [one.id for one in destination.received]
    assert len(received) == len(set(received))
    assert {receipt.id for receipt in receipts} <= set(received)
    assert agent.books()["memory"].accepted == len(received)


def test_the_spooler_is_told_also_when_telling_it_is_interrupted():
    told: list[str] = []

    def wake() -> None:
        told.append("woken")
        if len(told) == 1:
            raise Interruption  # as by a signal handler

    door = Intake(IntakeSettings(), Progress(lambda: None), wake)
    with suppress(Interruption):
        door.accept(event(1), ("a",))
    door.accept(event(2), ("a",))
    assert len(told) >= 2
    assert door.waiting() == 2


class Interrupting(MemoryDestination):
    """A destination whose name, when it is asked for, has an event recorded: as a signal handler might."""

    on_name = None

    @property
    def name(self):
        if self.on_name is not None:
            self.on_name, call = None, self.on_name
            call()
        return "memory"

    @name.setter
    def name(self, _):
        pass


def test_an_event_that_is_recorded_while_the_agent_starts_does_not_start_it_twice(tmp_path):
    destination = Interrupting()
    agent = Agent(tmp_path, [destination])
    receipts = []
    destination.on_name = lambda: receipts.append(add(agent, 1))
    receipts.append(add(agent, 2))
    assert len(receipts) == 2
    assert agent.flush(30)
    spoolers = [thread for thread in threading.enumerate() if thread.name == "per_agent spooler"]
    assert len(spoolers) == 1
    assert agent.close()
    assert [thread for thread in spoolers if thread.is_alive()] == []
    assert {one.id for one in destination.received} == {receipt.id for receipt in receipts}


# Never in the way


def test_adding_does_not_wait_for_a_disk_that_cannot_be_used(blocked):
    agent = Agent(blocked, [MemoryDestination()])
    began = time.monotonic()
    receipts = [add(agent) for _ in range(5000)]
    assert time.monotonic() - began < 10
    assert not receipts[0].stored(0)
    books = agent.books()["memory"]
    assert (books.accepted, books.pending) == (5000, 5000), (
        "what waits in memory is pending, and in the books"
    )
    blocked.unlink()
    assert receipts[-1].stored(30)
    assert agent.close(30)
    assert agent.books()["memory"].delivered == 5000


def test_making_an_agent_starts_nothing_and_touches_nothing(tmp_path):
    before = threading.active_count()
    Agent(tmp_path / "data", [MemoryDestination()])
    assert threading.active_count() == before
    assert not (tmp_path / "data").exists()


# Receipts


def test_receipts_cost_the_garbage_collector_nothing(tmp_path):
    with Agent(tmp_path, [MemoryDestination()]) as agent:
        receipt = add(agent)
        assert not gc.is_tracked(receipt)
        assert receipt.delivered(30)
        assert not gc.is_tracked(receipt)


def test_a_receipt_tells_when_its_event_is_stored_and_when_it_is_delivered(tmp_path):
    destination = Gate()
    with Agent(tmp_path, [destination]) as agent:
        receipt = add(agent)
        assert receipt.stored(30)
        assert receipt.stored(0)
        assert not receipt.delivered(0.05)
        destination.gate.set()
        assert receipt.delivered(30)
        assert receipt.delivered(0)
        assert destination.received[0].id == receipt.id


def test_a_receipt_raises_what_the_destination_said_when_it_refused_for_good(tmp_path):
    with Agent(tmp_path, [MemoryDestination([Refused("no such customer")])]) as agent:
        receipt = add(agent)
        with pytest.raises(RefusedError, match="no such customer") as caught:
            receipt.delivered(30)
        assert caught.value.destination == "memory"
        assert receipt.stored(0)

        async def ask() -> None:
            with pytest.raises(RefusedError, match="no such customer"):
                await receipt.delivered_async()

        asyncio.run(ask())


def test_a_receipt_can_be_awaited(tmp_path):
    async def main() -> None:
        with Agent(tmp_path, [MemoryDestination()]) as agent:
            receipt = add(agent)
            assert await receipt is True
            assert receipt.stored(0)
            assert await receipt.stored_async() is True
            assert await receipt.delivered_async() is True

    asyncio.run(main())


def test_the_event_loop_goes_on_while_somebody_awaits_a_receipt(tmp_path):
    destination = Gate()

    async def main() -> None:
        with Agent(tmp_path, [destination]) as agent:
            waiting = asyncio.create_task(add(agent).delivered_async())
            for _ in range(50):
                await asyncio.sleep(0)
            assert not waiting.done()
            destination.gate.set()
            assert await asyncio.wait_for(waiting, 30)

    asyncio.run(main())


def test_many_coroutines_share_the_commits_that_they_wait_for(tmp_path):
    async def main() -> int:
        with Agent(tmp_path, [MemoryDestination()], intake=IntakeSettings(linger=60.0)) as agent:
            agent.start(wait=True)

            async def one(n: int) -> bool:
                return await add(agent, n)

            assert all(await asyncio.gather(*(one(n) for n in range(2000))))
            return agent._life.engine.spool.commits

    assert asyncio.run(main()) < 200


def test_many_threads_can_wait_for_the_same_receipt(tmp_path):
    destination = Gate()
    with Agent(tmp_path, [destination]) as agent:
        receipt = add(agent)
        answers: list[bool] = []
        threads = [threading.Thread(target=lambda: answers.append(receipt.delivered(30))) for _ in range(20)]
        for thread in threads:
            thread.start()
        destination.gate.set()
        for thread in threads:
            thread.join(30)
        assert answers == [True] * 20


def test_a_cancelled_wait_disturbs_nobody(tmp_path):
    destination = Gate()

    async def main() -> None:
        with Agent(tmp_path, [destination]) as agent:
            receipt = add(agent)
            assert await receipt
            cancelled, kept = (asyncio.create_task(receipt.delivered_async()) for _ in range(2))
            await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            destination.gate.set()
            assert await asyncio.wait_for(kept, 30)
            assert await add(agent).delivered_async()

    asyncio.run(main())


def test_a_loop_that_was_closed_over_a_wait_disturbs_nobody(tmp_path):
    destination = Gate()
    with Agent(tmp_path, [destination]) as agent:
        receipt = add(agent)
        loop = asyncio.new_event_loop()
        waiting = loop.create_task(receipt.delivered_async())
        loop.run_until_complete(asyncio.sleep(0))
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(waiting)
        loop.close()
        destination.gate.set()
        assert receipt.delivered(30)
        assert add(agent).delivered(30)


def test_a_wait_that_is_begun_just_as_the_thing_comes_about_is_answered():
    # The condition is looked at, then it comes about and is announced, then the waiter goes to sleep.
    progress = Progress(lambda: None)
    done = threading.Event()

    def come_about() -> None:
        done.set()
        progress.announce()

    looked = 0

    def reached() -> bool:
        nonlocal looked
        looked += 1
        if looked > 1:
            return done.is_set()
        announcer = threading.Thread(target=come_about)
        announcer.start()
        done.wait(30)
        announcer.join(0.2)
        return False

    async def main() -> None:
        assert await asyncio.wait_for(progress.wait_async(reached), 30)

    asyncio.run(main())
    looked = 0
    done.clear()
    assert progress.wait(reached, 30)


def test_nobody_waits_for_ever_for_an_agent_that_was_closed(tmp_path):
    agent = Agent(tmp_path, [MemoryDestination([Retry("down", after=200)])])
    receipt = add(agent)
    assert receipt.stored(30)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(receipt.delivered()))
    waiting.start()
    agent.close(timeout=0.1)
    waiting.join(30)
    assert answers == [False]

    async def ask() -> bool:
        return await receipt.delivered_async()

    assert asyncio.run(ask()) is False


def test_a_parked_event_is_delivered_for_its_receipt_too(tmp_path):
    script = [Delivered(), Parked("meter:a", "asleep"), Delivered()]
    with Agent(tmp_path, [MemoryDestination(script)], delivery=QUICK) as agent:
        receipts = [add(agent, n) for n in range(3)]
        assert all(receipt.delivered(30) for receipt in receipts)
