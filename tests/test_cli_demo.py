"""`demo`: a process is killed, and every number is right; a number that is off is found."""

from pathlib import Path

import pytest
from command import Command

from per_agent import Agent
from per_agent.cli.demo.plan import METER, Plan, identifier
from per_agent.cli.demo.verdict import judge


@pytest.fixture
def per_agent(tmp_path: Path) -> Command:
    (tmp_path / "tmp").mkdir()
    return Command(
        tmp_path, TMPDIR=str(tmp_path / "tmp"), PER_ACTIVITY_TOKEN="tok", PER_AGENT_CONFIG="nowhere.toml"
    )


def test_the_demo_needs_no_configuration_keeps_its_promises_and_leaves_nothing(per_agent: Command) -> None:
    done = per_agent("demo", "--events", "300", "--seconds", "2", "--json")
    assert done.code == 0, done.err
    assert done.json["ok"] is True
    assert all(check["kept"] for check in done.json["checks"])
    assert 120 <= done.json["stored_before_the_kill"] < 300
    books = done.json["books"]["ledger"]
    assert books["accepted"] == books["delivered"] >= 300
    assert "kill -9" in done.err
    assert list((per_agent.home / "tmp").iterdir()) == []
    assert not per_agent.data_dir.exists()


def test_a_folder_of_its_own_is_kept_to_look_into(per_agent: Command, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = per_agent("--data-dir", str(folder), "demo", "--events", "100", "--seconds", "1")
    assert (done.code, done.err) == (0, "")
    assert "the books balance and nothing waits: yes" in done.out
    assert f"per-agent --data-dir {folder} status" in done.out
    again = per_agent("demo", "--data-dir", str(folder))
    assert (again.code, again.out) == (2, "")
    assert "a folder of its own" in again.problems[0]


def test_the_demo_says_what_is_off(tmp_path: Path) -> None:
    """The judge, on a ledger in which one event is missing and a stranger counts."""
    plan = Plan(seed=7, events=100, begin=1_700_000_000.0)
    records = list(plan.records())
    with Agent(tmp_path) as agent:
        meter = agent.meters.create(name="n", event_name=METER, unit="u")
        for record in records[:-1]:
            agent.add_record(record)
        agent.add_record(records[0] | {"identifier": "another"})
        assert agent.flush(30)
    verdict = judge(plan, tmp_path, meter["id"], [identifier(record) for record in records], killed=False)
    assert not verdict.kept
    off = {check.promise: check.found for check in verdict.checks if not check.kept}
    assert off["every stored event is in the ledger"] == "1 missing"
    assert off["the recording process was killed with SIGKILL"] == "it was not"
    assert "the meter's sum is what was recorded" in off
    assert off["no event is counted twice"] == "100 counted, 1 too many"
