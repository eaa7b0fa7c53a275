"""SIGKILL at random moments while threads record as fast as they can: what `add_*` returned for is delivered, once."""

import os
import random
import sqlite3
import struct
import time
from contextlib import closing
from pathlib import Path

import pytest
from forked import Forked

from per_agent import Agent, DeliverySettings, Ledger

RECORDER = Path(__file__).with_name("recorder_at_once.py")
THREADS = 4
KILLS = int(os.environ.get("PER_AGENT_TEST_KILLS", "200"))


def record_and_kill(
    data_dir: Path, counts: Path, prefix: str, linger: float, moments: random.Random
) -> list[int]:
    """Run the recorder, kill it at a random moment of its life, and give the calls of each thread that returned."""
    counts.write_bytes(bytes(8 * THREADS))
    reader, writer = os.pipe()
    words = (str(data_dir), str(counts), str(THREADS), prefix, str(linger))
    recorder = Forked(str(RECORDER), *words, stdout=writer)
    os.close(writer)
    try:
        with os.fdopen(reader) as said:
            if moments.random() < 0.7:  # else death comes over recovery, too
                assert said.readline() == "ready\n"
            # The moment of death is the experiment, not a condition that is waited for.
            time.sleep(moments.uniform(0, 0.15))
    finally:
        recorder.kill()
        recorder.wait(30)
    return list(struct.unpack(f"<{THREADS}Q", counts.read_bytes()))


def in_the_ledger(data_dir: Path) -> tuple[set[str], set[str]]:
    """The users and the identifiers of meter events that were counted."""
    with closing(sqlite3.connect(data_dir / "ledger.db")) as database:
        users = {user for (user,) in database.execute("SELECT user_id FROM member")}
        events = {
            name if isinstance(name, str) else name.decode()
            for (name,) in database.execute("SELECT identifier FROM meter_event")
        }
    return users, events


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("linger", [0.05, 5.0])
def test_what_add_returned_for_is_delivered_exactly_once_however_often_the_process_is_killed(
    tmp_path, linger
):
    seed = int(os.environ.get("PER_AGENT_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed} (set PER_AGENT_TEST_SEED to repeat)")
    moments = random.Random(seed)
    data_dir, counts = tmp_path / "data", tmp_path / "counts"
    with Agent(data_dir) as agent:
        agent.meters.create(name="Calls", event_name="calls", unit="calls")

    returned: dict[str, int] = {}
    for kill in range(KILLS):
        for thread, count in enumerate(record_and_kill(data_dir, counts, f"k{kill}", linger, moments)):
            returned[f"k{kill}-{thread}"] = count

    ledger = Ledger()
    with Agent(data_dir, [ledger], delivery=DeliverySettings(backoff_max=1.0)) as agent:
        assert agent.flush(300)
        books = agent.books()["ledger"]
        activities, meter_events = ledger.totals()
    users, events = in_the_ledger(data_dir)

    missing = [
        f"{prefix}-{n}"
        for prefix, count in returned.items()
        for n in range(count)
        if f"{prefix}-{n}" not in (users if n % 2 else events)
    ]
    assert missing == []
    # What was written when the call had not returned yet is delivered too: at most one event for each thread.
    last: dict[str, int] = {}
    for name in users | events:
        prefix, _, n = name.rpartition("-")
        last[prefix] = max(last.get(prefix, 0), int(n))
    invented = {prefix: (n, returned[prefix]) for prefix, n in last.items() if n > returned[prefix]}
    assert invented == {}, "the last that was delivered, and how many calls had returned"
    assert (activities, meter_events) == (len(users), len(events)), "each was counted once"
    assert books.balanced
    assert (books.pending, books.dead, books.dropped) == (0, 0, 0)
    assert books.accepted == books.delivered == activities + meter_events, "and entered in the books once"
    assert not list(data_dir.rglob("*.journal")), "nothing is left of the dead"
    total = sum(returned.values())
    assert total > 0
    print(f"{total} calls returned, {books.delivered} events delivered, after {KILLS} kills")
