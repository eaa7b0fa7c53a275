"""An event that was sent and not answered: told apart, sent again under its identifier, and counted once."""

import itertools
import socket
from pathlib import Path

import pytest
from command import Command
from stage import NAMES, QUICK, Stage
from test_upstream_faults import answers, reset_after_it_was_taken, silent_after_it_was_taken
from upstream import UpstreamServer
from waiting import until

from per_agent import Agent, DeliverySettings, MemoryDestination, Per
from per_agent.courier.attempts import kind
from per_agent.destinations import Retry
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.destinations.sidecar import Sidecar
from per_agent.event import Activity, MeterEvent

NO_ANSWER = Retry("sent, no answer: ReadTimeout: timed out")
SOON = DeliverySettings(backoff_initial=0.02, backoff_max=0.1)
AND_WAIT = Retry(NO_ANSWER.reason, after=200)


def in_status(agent: Agent) -> dict[str, int]:
    return {name: each["no_answer"] for name, each in agent.status()["destinations"].items()}


def in_statistics(agent: Agent) -> dict[str, int]:
    destinations = agent.statistics().destinations
    return {name: each.delivery.no_answer for name, each in destinations.items() if each.delivery}


def in_command(command: Command) -> dict[str, int | None]:
    destinations = command.well("status", "--json").json["destinations"]
    return {name: each["no_answer"] for name, each in destinations.items()}


# What an upstream took, and did not say


@pytest.mark.parametrize("fault", [silent_after_it_was_taken, reset_after_it_was_taken])
def test_what_was_taken_and_not_answered_is_told_apart_sent_again_and_counted_once(
    stage: Stage, fault
) -> None:
    with stage.agent(timeout=0.3) as agent:
        stage.fault(fault)
        stage.record(agent, 5)
        until(lambda: min(in_status(agent).values()) >= 5)
        assert [counts.delivered + counts.dead for counts in agent.books().values()] == [0, 0, 0]
        until(lambda: stage.upstream.score().identifiers and stage.upstream.score().users)
        assert stage.double.events, "all of them have some of it, and nobody knows"
        stage.fault(None)
        assert agent.flush(30)
        stage.check(agent)
        score = stage.upstream.score()
        assert score.duplicates > 0, "Payment Kit said that it had it already, and that was as good"
        assert set(score.offered) >= set(stage.meter_events), "each time under the same identifier"
        assert max(stage.double.offered.values()) > 1
        assert len(score.users) > len(set(score.users)), "Per counted calls twice"
        report = agent.get_report("2000-01-01T00:00:00Z")["result"]["activityTypes"]
        assert report == {"active": {"billingIds": {"acme": {"unique": 5}}}}, "and users once"
        assert in_status(agent) == in_statistics(agent)
        assert all(in_status(agent).values()), "what happened stays told"


def test_what_is_answered_is_not_in_doubt(stage: Stage) -> None:
    stage.fault(answers(503))
    with stage.agent(timeout=10.0) as agent:
        stage.record(agent, 3)
        until(lambda: all(each["failures"] > 1 for each in agent.status()["destinations"].values()))
        stage.fault(None)
        assert agent.flush(30)
        assert in_status(agent) == in_statistics(agent) == dict.fromkeys(NAMES, 0)


def test_what_finds_nobody_was_not_sent_and_is_not_in_doubt(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen: no other process can
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        destinations = [Per("token-1", url=url), PaymentKit(url, "key-1"), Sidecar(url, "token-1")]
        with Agent(tmp_path, destinations, delivery=QUICK) as agent:
            agent.add_activity("acme", "u-1", "active")
            agent.add_meter_event("api.calls", customer_id="cus-1", value=1)
            until(lambda: min(each["retries"] for each in agent.status()["destinations"].values()) > 2)
            assert in_status(agent) == in_statistics(agent) == dict.fromkeys(NAMES, 0)
            agent.close(0)


# Where it is told


def test_the_command_tells_it_beside_the_agent_and_after_it(tmp_path: Path) -> None:
    command = Command(tmp_path)
    agent = Agent(command.data_dir, [MemoryDestination([NO_ANSWER] * 2 + [AND_WAIT])], delivery=SOON)
    agent.add_activity("acme", "u-1", "active")
    until(lambda: in_command(command).get("memory") == 3)
    assert "3 times sent and not answered" in _flat(command.well("status").out)
    assert in_status(agent) == in_statistics(agent) == {"memory": 3}
    agent.close(0)
    assert in_command(command)["memory"] == 3
    assert "3 times sent and not answered" in _flat(command.well("status").out)
    with Agent(command.data_dir, [MemoryDestination()]) as agent:
        assert agent.flush(30)
        until(lambda: in_command(command)["memory"] == 0)
        assert "not answered" not in command.well("status").out, "it is counted since the agent started"


def test_several_agents_are_added_up_and_none_is_counted_twice(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with (
        Agent(command.data_dir, [MemoryDestination([NO_ANSWER] * 2)]) as one,
        Agent(command.data_dir, [MemoryDestination([NO_ANSWER])]) as other,
    ):
        for agent in (one, other):
            agent.add_activity("acme", "u-1", "active")
            assert agent.flush(30)
        until(lambda: in_command(command)["memory"] == 3)


def test_an_agent_that_has_spools_of_the_dead_tells_its_number_once(tmp_path: Path) -> None:
    command = Command(tmp_path)
    agents = [Agent(command.data_dir, [MemoryDestination(itertools.repeat(AND_WAIT))]) for _ in range(2)]
    for agent in agents:
        agent.add_activity("acme", "u-1", "active")
        until(lambda agent=agent: agent.status()["destinations"]["memory"]["state"] == "retrying")
    for agent in agents:
        agent.close(0)
    with Agent(command.data_dir, [MemoryDestination(itertools.repeat(AND_WAIT))], delivery=SOON) as agent:
        agent.start(wait=True)
        until(lambda: len(agent.statistics().adopted) == 1)
        until(lambda: agent.settled and in_status(agent)["memory"])
        for _ in range(3):  # it is noted in one spool after the other
            last = command.well("status", "--json").json
        assert len(last["spools"]) == 2
        assert last["destinations"]["memory"]["no_answer"] == in_status(agent)["memory"]
        agent.close(0)


# What is in doubt, and what is not


@pytest.mark.parametrize(
    ("refusal", "asked"),
    [
        ({"status": 400, "body": {"error": "E1042"}}, "*/meter-events"),
        ({"status": 404, "html": True}, "*/meters/*"),
        ({"status": 400, "body": {"error": "Customer not found"}}, "*/customers/*"),
    ],
    ids=["whether it is stored", "its meter", "its customer"],
)
def test_an_event_that_was_answered_is_not_in_doubt_where_a_look_up_is(
    upstream: UpstreamServer, refusal: dict[str, object], asked: str
) -> None:
    upstream.rule(method="POST", path="*/meter-events", **refusal)
    upstream.rule(method="GET", path=asked, cut="before")
    kit = PaymentKit(upstream.url, "key-1", timeout=5.0)
    (outcome,) = kit.send([MeterEvent("id-1", "api.calls", "cus-1", "1", 1_700_000_000.0)])
    kit.close()
    assert isinstance(outcome, Retry)
    assert outcome.reason.startswith("answered, and a look-up failed: sent, no answer: ")
    assert kind(outcome.reason) == "look_up"


def test_of_a_long_batch_only_what_was_in_the_request_without_an_answer_is_in_doubt(stage: Stage) -> None:
    stage.double.rule(cut="after", count=1)
    sidecar = Sidecar(stage.double.address)
    events = [Activity(f"id-{n}", "y" * 60_000, "u", "t", 1.0) for n in range(50)]
    outcomes = sidecar.send(events)
    sidecar.close()
    in_doubt = set(stage.double.events)
    assert 0 < len(in_doubt) < 50
    for event, outcome in zip(events, outcomes, strict=True):
        assert isinstance(outcome, Retry)
        assert kind(outcome.reason) == ("no_answer" if event.id in in_doubt else "not_sent")


def _flat(text: str) -> str:
    """*text* of a table as if its columns had been wide enough."""
    return " ".join(text.replace("│", " ").split())
