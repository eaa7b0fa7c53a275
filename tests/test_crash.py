"""Death of the process at random moments: what was said to be stored is delivered, once, and the books balance."""

import os
import random
import time
from decimal import Decimal
from pathlib import Path

import pytest
from command import Command
from forked import Forked

from per_agent import Agent, DeliverySettings

RECORDER = Path(__file__).with_name("recorder.py")
WIDE = {"start": 0, "end": 4_000_000_000}


def _record_and_kill(data_dir: Path, notes: Path, prefix: str, after: float) -> None:
    reader, writer = os.pipe()
    recorder = Forked(str(RECORDER), str(data_dir), str(notes), "4", prefix, stdout=writer)
    os.close(writer)
    try:
        with os.fdopen(reader) as said:
            assert said.readline() == "ready\n"
        time.sleep(after)  # the moment of death is the experiment, not a condition that is waited for
    finally:
        recorder.kill()
        recorder.wait(30)


def _identifiers(agent: Agent, meter_id: str) -> list[str]:
    found: list[str] = []
    page = 1
    while True:
        answer = agent.meter_events.list(meter_id=meter_id, page=page, pageSize=100)
        found += (event["identifier"] for event in answer["list"])
        if page * 100 >= answer["count"]:
            return found
        page += 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thirty_kills_lose_nothing_that_was_stored_and_double_nothing(tmp_path):
    seed = int(os.environ.get("PER_AGENT_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed} (set PER_AGENT_TEST_SEED to repeat)")
    moments = random.Random(seed)
    command = Command(tmp_path)
    data_dir, notes = command.data_dir, tmp_path / "notes"
    with Agent(data_dir) as agent:
        meter = agent.meters.create(name="Calls", event_name="api.calls", unit="calls")

    for n in range(30):
        _record_and_kill(data_dir, notes, f"k{n}", moments.uniform(0, 0.4))
        # Right after the kill, before anybody cleaned up.
        books = command("books", "--json")
        assert books.code == 0, books.out + books.err

    stored = [line.split() for line in notes.read_text().splitlines()]
    users = {name for kind, name in stored if kind == "a"}
    identifiers = {name for kind, name in stored if kind == "m"}
    assert users
    assert identifiers

    with Agent(data_dir, delivery=DeliverySettings(backoff_max=1.0)) as agent:
        assert agent.flush(120)
        books = agent.books()["ledger"]
        assert books.balanced
        assert (books.pending, books.dead, books.dropped) == (0, 0, 0)
        report = agent.get_report("2020-01-01T00:00:00Z")
        unique = report["result"]["activityTypes"]["active"]["billingIds"]["acme"]["unique"]
        delivered = _identifiers(agent, meter["id"])
        stats = agent.meter_events.stats(meter_id=meter["id"], granularity="day", **WIDE)

    assert identifiers <= set(delivered), "what was stored was delivered"
    assert len(delivered) == len(set(delivered)), "and nothing twice"
    assert unique >= len(users)
    # What was stored but not yet noted when the process died is delivered as well; the books know of it.
    assert books.delivered == unique + len(delivered)
    assert sum(Decimal(day["total_value"]) for day in stats["list"]) == Decimal("0.1") * len(delivered)
    print(f"{len(stored)} events noted as stored, {books.delivered} delivered, after 30 kills")
