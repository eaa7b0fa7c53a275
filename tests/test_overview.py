"""`Overview`: what a data folder's documents say, for whoever asks."""

import time
from pathlib import Path

import pytest

from per_agent import Agent, MemoryDestination
from per_agent.agent.overview import overview
from per_agent.destinations.outcome import Delivered, Refused, Retry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three events: one delivered, one refused for good, one that waits."""
    answers = [Delivered(), Refused("too old"), Retry("away", after=3600.0)]
    with Agent(tmp_path, [MemoryDestination(answers, name="here")]) as agent:
        for number in range(3):
            agent.add_activity("acme", f"u-{number}", "t").stored()
            if number < 2:
                agent.flush(10)
        agent.close(0.0)
    return tmp_path


def test_the_document_of_status_counts_up_to_the_moment_that_it_is_asked_for(folder: Path) -> None:
    seen = overview(folder, ["here", "there"])
    now = time.time()
    document, later = seen.as_dict(now), seen.as_dict(now + 100)
    here, there = document["destinations"]["here"], document["destinations"]["there"]
    assert (here["books"]["accepted"], here["waiting"], here["dead_letters"]) == (3, 1, 1)
    assert here["oldest_waiting_seconds"] == here["oldest_pending_seconds"]
    assert later["destinations"]["here"]["oldest_waiting_seconds"] == pytest.approx(
        here["oldest_waiting_seconds"] + 100, abs=0.01
    )
    assert (there["books"]["accepted"], there["state"], there["oldest_waiting_seconds"]) == (0, None, None)
    (spool,) = document["spools"]
    assert (spool["pending"], spool["dead_letters"], spool["held"]) == (1, 1, False)
    assert document["data_dir"] == str(folder)


def test_the_document_of_books_is_the_same_without_what_waits(folder: Path) -> None:
    books = overview(folder, ["here"]).books_as_dict()
    assert books == {
        "balanced": True,
        "destinations": {
            "here": {
                "accepted": 3, "delivered": 1, "dead": 1, "dropped": 0, "pending": 1, "purged": 0, "balanced": True,
            }
        },
        "problems": [],
        "set_aside": [],
        "spools": 1,
    }  # fmt: skip


def test_what_is_parked_is_pending_and_does_not_wait_for_time(tmp_path: Path) -> None:
    with Agent(tmp_path) as agent:
        agent.add_meter_event("nowhere", customer_id="c", value=1).stored()
        assert not agent.flush(1.0)
    here = overview(tmp_path, ["ledger"]).as_dict(time.time())["destinations"]["ledger"]
    assert (here["parked"], here["waiting"]) == (1, 0)
    assert here["oldest_pending_seconds"] >= 0
    assert here["oldest_waiting_seconds"] is None


def test_what_waits_for_a_destination_that_is_gone_is_a_warning(folder: Path) -> None:
    gone = overview(folder, ["ledger"])
    assert gone.warnings == [
        "1 event waits for destination 'here', which is not configured: no agent with this configuration delivers them"
    ]
    assert gone.as_dict(time.time())["warnings"] == gone.warnings
    assert overview(folder, None).warnings == []
