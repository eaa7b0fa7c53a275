"""The order in which events of several spools are sent: the oldest first, and everybody in their turn."""

import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import start
from test_courier import RecordingSpool
from upstream import UpstreamServer
from waiting import until

from per_agent import Agent, DeliverySettings, IntakeSettings, Per, SpoolSettings
from per_agent.courier.queue import Queue
from per_agent.courier.window import Item, Window
from per_agent.event import Activity, encode
from per_agent.spool import Block, BlockId

NOW = 1_800_000_000.0
SINGLE = IntakeSettings(linger=0.0, block_events=1)  # a block for each event


class Lane:
    """A lane of a spool that is read into *queue*."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.window = Window(RecordingSpool(), "m", 1000, lambda *_: None, lambda _: None)  # type: ignore[arg-type]
        self._seqs = itertools.count(1)

    def load(self, made_at: float, *names: str, now: float = NOW, seq: int | None = None) -> None:
        events = [Activity(name, "acme", name, "active", made_at) for name in names]
        place = BlockId(next(self._seqs) if seq is None else seq)
        block = Block("m", place, [encode(event) for event in events], made_at)
        (loaded,) = self.window.take(self.window._turn, [block], now)
        self.queue.load([Item(loaded, at, event) for at, event in enumerate(events)])


@pytest.fixture
def queue() -> Queue:
    return Queue()


def names(items: Sequence[Item]) -> list[str]:
    return [item.event.id for item in items]


def everything(queue: Queue) -> list[str]:
    return names(queue.take(1_000_000))


def test_what_a_dead_process_left_goes_before_what_is_fresh(queue):
    own, left = Lane(queue), Lane(queue)
    own.load(100, "d")
    own.load(101, "e", "f")
    left.load(50, "a", "b")
    left.load(100.5, "dd")
    left.load(60, "c")
    assert names(queue.take(2)) == ["a", "b"]
    assert everything(queue) == ["d", "dd", "c", "e", "f"], (
        "a spool keeps its own order, whatever its clock did"
    )
    assert not queue.ready


def test_blocks_of_one_commit_which_were_made_at_the_same_time_keep_their_order(queue):
    own = Lane(queue)
    for n in range(20):
        own.load(100.0 if n % 2 else 100.0009, f"{n}")  # a disk keeps milliseconds, memory keeps more
    assert everything(queue) == [f"{n}" for n in range(20)]


def test_what_failed_goes_back_to_its_place_and_what_is_older_goes_before_it(queue):
    own, left = Lane(queue), Lane(queue)
    own.load(100, "d", "e", "f", "g")
    own.load(101, "h")
    d, e, f = queue.take(3)
    left.load(50, "a")
    for item in (f, d, e):  # as the answers of requests side by side come
        queue.put_back(item)
    assert everything(queue) == ["a", "d", "e", "f", "g", "h"]


def test_what_was_delayed_waits_for_its_own_spool_and_not_for_the_backlog_of_another(queue):
    own, left = Lane(queue), Lane(queue)
    left.load(50, "a", "b")
    left.load(51, "c")
    own.load(100, "x")
    (a,) = queue.take(1)
    queue.delay(a, 5.0)
    assert queue.due_in(4.0) == 1.0
    assert queue.due_in(5.0) is None
    left.load(52, "later")
    assert everything(queue) == ["b", "c", "a", "later", "x"]
    queue.delay(a, 6.0)
    assert not queue.ready
    assert not queue.empty
    assert queue.due_in(6.0) is None
    own.load(101, "y")
    assert everything(queue) == ["a", "y"]


def test_a_block_of_a_clock_that_ran_ahead_waits_for_nothing_that_comes_after_it(queue):
    own, left = Lane(queue), Lane(queue)
    own.load(NOW - 1, "before")
    left.load(NOW + 10**8, "from the future")
    for n in range(5):
        own.load(NOW + 1 + n, f"{n}", now=NOW + 10)
    assert everything(queue) == ["before", "from the future", "0", "1", "2", "3", "4"]


def test_parked_events_that_go_on_are_as_old_as_they_were(queue):
    own = Lane(queue)
    own.load(100, "c")
    own.window.rewind()
    own.load(50, "a", seq=0)
    own.load(101, "d")
    assert everything(queue) == ["a", "c", "d"]


def test_in_trouble_the_oldest_that_did_not_fail_is_tried_and_then_the_one_that_failed_least(queue):
    own = Lane(queue)
    own.load(100, "a", "b")
    own.load(101, "c")
    tried = []
    for _ in range(7):
        item = queue.take_to_find_out()
        item.attempts += 1
        item.seen_successes = 0
        tried.append(item.event.id)
        queue.put_back(item)
    assert tried == ["a", "b", "c", "a", "b", "c", "a"]
    assert everything(queue) == ["a", "b", "c"], "and none lost its place"


def test_what_is_withdrawn_is_in_order_and_the_rest_stays_in_order(queue):
    own, left = Lane(queue), Lane(queue)
    own.load(100, "x1", "y1", "x2")
    left.load(50, "x0", "y0")
    assert names(queue.withdraw(lambda item: item.event.id.startswith("x"))) == ["x0", "x1", "x2"]
    assert everything(queue) == ["y0", "y1"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("load"), st.integers(0, 2), st.integers(1, 4)),
            st.tuples(st.just("take"), st.integers(1, 6), st.just(0)),
            st.tuples(st.just("put back"), st.integers(0, 5), st.just(0)),
        ),
        max_size=60,
    )
)
def test_whatever_is_loaded_taken_and_put_back_the_oldest_that_is_there_comes_first(steps):
    queue = Queue()
    lanes = [Lane(queue) for _ in range(3)]
    clocks = [100.0, 100.0, 100.0]
    there: list[tuple[tuple[float, BlockId], int, str]] = []
    out: list[Item] = []
    numbers = itertools.count()
    for step, which, count in steps:
        if step == "load":
            clocks[which] += 1 + which / 10
            made = [f"{next(numbers)}" for _ in range(count)]
            lanes[which].load(clocks[which], *made)
            (*_, loaded) = lanes[which].window
            there += ((loaded.rank, at, name) for at, name in enumerate(made))
        elif step == "take":
            taken = queue.take(which)
            there.sort()
            assert names(taken) == [name for _, _, name in there[:which]]
            del there[:which]
            out += taken
        elif out:
            item = out.pop(which % len(out))
            queue.put_back(item)
            there.append((item.loaded.rank, item.at, item.event.id))
    assert everything(queue) == [name for _, _, name in sorted(there)]


# With a real upstream

LEAVE_BEHIND = """
agent = Agent(data_dir, [Per("token", url=sys.argv[2])], intake=IntakeSettings(linger=0.0, block_events=1))
agent.start(wait=True)
print("ready", flush=True)
for line in sys.stdin:
    assert agent.add_activity("acme", line.strip(), "active").stored(30)
    print("stored", flush=True)
os._exit(0)
"""


def test_after_an_outage_and_a_restart_the_oldest_goes_first_whichever_spool_it_lies_in(
    tmp_path, upstream: UpstreamServer
):
    upstream.stop()
    recorders = [start(LEAVE_BEHIND, tmp_path, upstream.url) for _ in range(3)]
    for recorder in recorders:
        assert recorder.stdout.readline() == "ready\n"
    expected = []
    for n in range(30):  # by turns, so that each spool holds some of the oldest and some of the youngest
        recorder = recorders[(n * 7 + n // 4) % 3]
        recorder.stdin.write(f"u-{n:02}\n")
        recorder.stdin.flush()
        assert recorder.stdout.readline() == "stored\n"
        expected.append(f"u-{n:02}")
        stored_at = time.time()
        until(lambda since=stored_at: time.time() > since + 0.001, every=0.001)  # a block keeps milliseconds
    for recorder in recorders:
        recorder.communicate(timeout=30)

    destination = Per("token", url=upstream.url, concurrency=1)
    # What is read ahead is what can be put in order: here all of it, since each event is in a block of its own.
    delivery = DeliverySettings(backoff_initial=0.05, backoff_max=0.3, window_blocks=100)
    with Agent(
        tmp_path, [destination], intake=SINGLE, spool=SpoolSettings(adopt_interval=0.2), delivery=delivery
    ) as agent:
        for n in range(30, 35):
            assert agent.add_activity("acme", f"u-{n:02}", "active").stored(30)
            expected.append(f"u-{n:02}")
        until(lambda: agent.statistics().complete and len(agent.statistics().adopted) == 2)
        (route,) = agent._life.engine.courier._routes
        until(lambda: sum(len(list(window)) for window in route._windows) == 35)
        until(lambda: agent.status()["destinations"]["per"]["failures"] >= 5)
        upstream.start()
        assert agent.flush(60)
    users = upstream.score().users
    # The one that was tried first after the outage was let through alone, whatever its place.
    assert [user for user in users[1:] if user != users[0]] == [user for user in expected if user != users[0]]
    assert sorted(users) == expected
