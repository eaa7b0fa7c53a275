"""`status` and `books`: right beside running agents, after a kill, and where there is nothing yet."""

import os
import signal
import sqlite3
from pathlib import Path

import pytest
from command import Command
from upstream import UpstreamServer
from waiting import until

# Records without end; says so when the first events are stored.
RECORDER = """
import itertools, sys, time
from per_agent import Agent, IntakeSettings
agent = Agent(sys.argv[1], intake=IntakeSettings(overflow="block", buffer_events=2000, block_events=50))
for n in itertools.count():
    receipt = agent.add_activity("acme", f"u-{n}", "t")
    if n % 3 == 0:
        agent.add_meter_event("nowhere", customer_id="c", value=1)
    if n % 100 == 0:
        time.sleep(0.01)  # leaves some of the machine to the tests
    if n == 500:
        receipt.stored()
        print("recording", flush=True)
"""


@pytest.fixture
def per_agent(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_before_anything_is_recorded_all_is_zero_and_nothing_is_made(per_agent: Command) -> None:
    table, books, status = per_agent.many(["books"], ["books", "--json"], ["status", "--json"])
    assert table.code == 0
    zeros = {
        "accepted": 0,
        "delivered": 0,
        "dead": 0,
        "dropped": 0,
        "pending": 0,
        "purged": 0,
        "balanced": True,
    }
    assert books.json == {
        "balanced": True,
        "destinations": {"ledger": zeros},
        "problems": [],
        "set_aside": [],
        "spools": 0,
    }
    assert status.json["destinations"]["ledger"]["state"] is None
    assert not per_agent.data_dir.exists()


def test_a_spool_that_is_just_being_made_is_no_trouble(per_agent: Command) -> None:
    for name in ("0-empty", "1-file", "2-table"):
        (per_agent.data_dir / "spools" / name).mkdir(parents=True)
    (per_agent.data_dir / "spools" / "1-file" / "cache.db").touch()
    with sqlite3.connect(per_agent.data_dir / "spools" / "2-table" / "cache.db") as database:
        database.execute("PRAGMA journal_mode = wal")
        database.execute("CREATE TABLE Settings (key TEXT)")
    database.close()
    books, status, dead = per_agent.many(["books", "--json"], ["status"], ["dead", "list", "--json"])
    assert (books.code, status.code, dead.code) == (0, 0, 0)
    assert books.json["balanced"] is True
    assert dead.json == []


def test_the_books_balance_while_an_agent_records_and_after_it_was_killed(per_agent: Command) -> None:
    recorder = per_agent.python(RECORDER)
    with recorder:
        try:
            assert recorder.stdout is not None
            assert recorder.stdout.readline() == "recording\n"
            while_recording = per_agent.many(*[["books", "--json"]] * 10, ["status", "--json"])
        finally:
            recorder.kill()
    assert recorder.returncode == -signal.SIGKILL
    *books, status = while_recording
    assert [done.code for done in while_recording] == [0] * 11
    accepted = [done.json["destinations"]["ledger"]["accepted"] for done in books]
    assert accepted == sorted(accepted)
    assert accepted[0] < accepted[-1]
    (spool,) = status.json["spools"]
    assert spool["held"] is True
    assert status.json["destinations"]["ledger"]["live"] is True

    after, table, seen = per_agent.many(["books", "--json"], ["books"], ["status", "--json"])
    assert (after.code, table.code) == (0, 0)
    counts = after.json["destinations"]["ledger"]
    assert counts["accepted"] == counts["delivered"] + counts["pending"] >= accepted[-1]
    ledger = seen.json["destinations"]["ledger"]
    assert seen.json["spools"][0]["held"] is False
    assert ledger["parked"] > 0
    assert ledger["parkings"][0]["key"] == "meter:live:nowhere"
    assert ledger["parkings"][0]["reason"] == "no meter 'nowhere' in live mode"
    assert ledger["waiting"] + ledger["parked"] == counts["pending"]
    assert ledger["oldest_pending_seconds"] >= 0


def test_books_that_do_not_balance_end_with_1_and_name_what_is_off(per_agent: Command) -> None:
    per_agent("add", "meter", "nowhere", "--customer", "c", "--value", "1")
    (file,) = per_agent.data_dir.glob("spools/*/cache.db")
    with sqlite3.connect(file) as database:
        assert database.execute("DELETE FROM Cache WHERE key LIKE 'l/ledger/p/%'").rowcount == 1
    database.close()
    table, in_json, status = per_agent.many(["books"], ["books", "--json"], ["status"])
    assert (table.code, in_json.code, status.code) == (1, 1, 0)
    assert "1 are pending by the books, 0 lie in blocks" in table.problems[0]
    assert "NO" in table.out
    assert in_json.json["balanced"] is False
    assert in_json.json["destinations"]["ledger"]["balanced"] is False
    assert len(in_json.json["problems"]) == 1
    assert "Does not balance" in status.out


def test_a_damaged_spool_is_told_in_a_line_beside_all_the_others(per_agent: Command) -> None:
    per_agent("add", "meter", "nowhere", "--customer", "c", "--value", "1")
    (file,) = per_agent.data_dir.glob("spools/*/cache.db")
    os.truncate(file, 5000)
    books, status, letters = per_agent.many(["books"], ["status"], ["dead", "list"])
    assert (books.code, status.code, letters.code) == (1, 0, 0)
    assert len(books.problems) == 1
    assert str(file) in books.problems[0]
    assert "is damaged" in books.problems[0]
    assert "is damaged" in " ".join(status.out.split())


def test_status_tells_what_keeps_a_destination_and_what_waits_for_one_that_is_gone(
    per_agent: Command, upstream: UpstreamServer
) -> None:
    per_agent.configure(f'[destinations.per]\ntype = "per"\nactivity_token = "tok"\nurl = "{upstream.url}"\n')
    upstream.stop()
    added, as_json, table = per_agent.many(
        ["add", "activity", "acme", "u", "t"], ["status", "--json"], ["status"]
    )
    assert added.code == 0
    per = as_json.json["destinations"]["per"]
    assert per.items() >= {"state": "retrying", "live": False, "waiting": 1, "configured": True}.items()
    assert per["failures"] >= 1
    assert "refused" in per["reason"]
    assert "refused" in table.out
    assert as_json.json["warnings"] == []

    del per_agent.environ["PER_AGENT_CONFIG"]
    gone, table = per_agent.many(["status", "--json"], ["status"])
    (warning,) = gone.json["warnings"]
    assert warning.startswith("1 event waits for destination 'per', which is not configured")
    assert list(gone.json["destinations"]) == ["ledger", "per"]
    assert warning in table.out


def test_several_agents_on_one_folder_are_one_set_of_books(per_agent: Command) -> None:
    recorders = [per_agent.python(RECORDER) for _ in range(2)]
    try:
        for recorder in recorders:
            assert recorder.stdout is not None
            assert recorder.stdout.readline() == "recording\n"
        books, status = per_agent.many(["books", "--json"], ["status", "--json"])
        assert books.code == 0
        assert books.json["spools"] == 2
        assert [spool["held"] for spool in status.json["spools"]] == [True, True]
        assert books.json["destinations"]["ledger"]["accepted"] > 1000
    finally:
        for recorder in recorders:
            recorder.kill()
            recorder.communicate()
    assert until(lambda: per_agent("books").code == 0)
