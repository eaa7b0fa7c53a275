"""Abandoned spools: who may take them, what must not stop a new agent, and books that are counted once."""

import sqlite3

import pytest
from programs import run, start
from waiting import until

from per_agent import Agent, ConfigError, DeliverySettings, MemoryDestination, SpoolSettings
from per_agent.destinations import Retry
from per_agent.spool import DeadLetter, Settlement, Store, snapshots
from per_agent.spool.filed import letters as filed_letters

SOON = SpoolSettings(adopt_interval=0.2)
LEAVE_BEHIND = """
from per_agent.destinations import Retry
import itertools
agent = Agent(data_dir, [MemoryDestination(itertools.repeat(Retry("down")), name="m")])
agent.start(wait=True)
for i in range(int(sys.argv[2])):
    receipt = agent.add_activity("acme", f"u-{i}", "active")
receipt.stored()
print(agent.status()["spool"]["id"], flush=True)
sys.stdin.readline()
os._exit(0)
"""


def _leave_behind(data_dir, *counts):
    """Spools of processes that lived side by side and died, with so many events pending in each."""
    programs = []
    names = []
    for count in counts:
        program = start(LEAVE_BEHIND, data_dir, str(count))
        names.append(program.stdout.readline().strip())
        programs.append(program)
    for program in programs:
        program.communicate("die\n", timeout=30)
    return [data_dir / "spools" / name for name in names]


@pytest.mark.parametrize("name", ["eu/m", "", "-m", "m" * 65, "m\n", "\x7f", "ü"])
def test_a_destination_whose_name_cannot_be_that_of_a_lane_is_refused_as_in_a_file(tmp_path, name):
    with pytest.raises(ConfigError) as refused:
        Agent(tmp_path, [MemoryDestination(name=name), MemoryDestination(name="m")])
    (problem,) = refused.value.problems
    assert problem.startswith(f"a destination is named {name!r}: a name is up to 64 letters")


@pytest.mark.parametrize("damage", ["not a database", "unreadable books"])
def test_a_damaged_spool_does_not_keep_a_new_agent_from_storing(tmp_path, damage):
    (spool,) = _leave_behind(tmp_path, 3)
    if damage == "not a database":
        (spool / "cache.db").write_bytes(b"x" * 8192)
        for name in ("cache.db-wal", "cache.db-shm"):
            (spool / name).unlink(missing_ok=True)
    else:
        database = sqlite3.connect(spool / "cache.db")
        assert database.execute("UPDATE Cache SET value = x'c1' WHERE key = 'l/m/n'").rowcount == 1
        database.commit()
        database.close()
    with Agent(tmp_path, [MemoryDestination(name="m")]) as agent:
        assert agent.add_activity("acme", "u-new", "active").delivered(20)
        assert agent.flush(30)
        books = agent.books()["m"]
    lost = 3 if damage == "not a database" else 0
    assert books.balanced
    assert (books.accepted, books.delivered, books.dead) == (4, 4 - lost, lost)
    assert (spool.with_name(f"{spool.name}.damaged") / "cache.db").exists(), "it is kept for a person"


def test_a_flush_right_after_the_start_waits_for_what_all_dead_processes_left(tmp_path):
    _leave_behind(tmp_path, 10, 10, 10)
    destination = MemoryDestination(name="m")
    with Agent(tmp_path, [destination]) as agent:
        assert agent.flush(30)
        assert len(destination.received) == 30
        assert agent.books()["m"].delivered == 30


def test_books_are_counted_once_when_a_process_dies_between_absorbing_and_removing(tmp_path):
    first, second = _leave_behind(tmp_path, 10, 100)
    for spool in (first, second):  # both are drained by now
        store = Store(spool)
        block_list, _ = store.head("m", None, 1000)
        with store.transaction() as changes:
            for block in block_list:
                changes.settle(block, Settlement(delivered=range(block.count)))
        store.close()
    absorbing, absorbed = Store(first), Store(second)
    with absorbing.transaction() as changes:
        changes.absorb(second.name, dict(absorbed.books))
    absorbing.close()
    absorbed.close()

    def accepted():
        return sum(
            lane.books.accepted for snapshot in snapshots(tmp_path) for lane in snapshot.lanes.values()
        )

    assert accepted() == 110
    with Agent(tmp_path, [MemoryDestination(name="m")], spool=SOON) as agent:
        until(lambda: len(list((tmp_path / "spools").iterdir())) == 1)
        assert agent.books()["m"].accepted == 110
    with Agent(tmp_path, [MemoryDestination(name="m")], spool=SOON) as agent:
        assert agent.books()["m"].accepted == 110


def test_a_spool_that_was_used_after_it_was_absorbed_is_delivered_and_not_removed(tmp_path):
    absorbing, used = _leave_behind(tmp_path, 1, 20)
    store = Store(absorbing)
    with store.transaction() as changes:
        changes.absorb(used.name, {})
    store.close()
    destination = MemoryDestination(name="m")
    with Agent(tmp_path, [destination], spool=SOON) as agent:
        assert agent.flush(30)
        assert len(destination.received) == 21
        until(lambda: len(list((tmp_path / "spools").iterdir())) == 1)


def test_a_dead_letter_is_not_removed_with_a_spool_that_was_absorbed(tmp_path):
    absorbing, used = _leave_behind(tmp_path, 1, 1)
    store = Store(used)
    (block,), _ = store.head("m", None, 1)
    letter = DeadLetter(block.events[0], "refused", "no such customer", 1, 1.0)
    with store.transaction() as changes:
        changes.settle(block, Settlement(dead=[(0, letter)]))
    store.close()
    store = Store(absorbing)
    with store.transaction() as changes:
        changes.absorb(used.name, {})
    store.close()
    with Agent(tmp_path, [MemoryDestination(name="m")], spool=SOON) as agent:
        assert agent.flush(30)
    assert len(list(filed_letters(used))) == 1


def test_poison_events_that_would_fill_the_window_do_not_stop_the_others(tmp_path):
    class Upstream(MemoryDestination):
        def send(self, events):
            return [Retry("500") if events[0].billing_id == "broken" else super().send(events)[0]]

    destination = Upstream(name="m", batch=1, concurrency=4)
    delivery = DeliverySettings(backoff_initial=0.02, backoff_max=0.2, window_blocks=4)
    with Agent(tmp_path, [destination], delivery=delivery) as agent:
        for i in range(40):  # each in a block of its own, and more poison than blocks in the window
            agent.add_activity("broken", f"u-{i}", "active").stored()
        for i in range(40):
            agent.add_activity("acme", f"u-{i}", "active").stored()
        until(lambda: agent.books()["m"].delivered == 40, timeout=60)
        books = agent.books()["m"]
        assert (books.delivered, books.dead, books.pending) == (40, 0, 40)


def test_words_that_cannot_be_written_do_not_stop_a_destination(tmp_path):
    destination = MemoryDestination([Retry("half a character: \ud800")], name="m")
    with Agent(tmp_path, [destination], delivery=DeliverySettings(backoff_initial=0.05)) as agent:
        assert agent.add_activity("acme", "u-1", "active").delivered(30)


def test_a_receipt_of_the_parent_is_not_waited_for_in_a_child(tmp_path):
    out = run(
        """
        from per_agent.destinations import Retry
        agent = Agent(data_dir, [MemoryDestination([Retry("down", after=300)], name="m")])
        receipt = agent.add_activity("acme", "u-1", "active")
        receipt.stored()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if receipt.delivered() is False else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
        tmp_path,
    )
    assert out.strip() == "0"
