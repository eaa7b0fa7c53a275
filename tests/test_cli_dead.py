"""`dead`: letters listed, sent again, taken out and deleted, whoever holds the spool that they lie in."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from command import Command
from upstream import UpstreamServer
from waiting import until

KIT = '[destinations.kit]\ntype = "payment_kit"\naccess_key = "key"\nurl = "{0}"\n'

# An agent that goes on running, and holds the spool, until it is told to end.
HOLDER = """
import sys
from per_agent import Agent, Refused
agent = Agent.from_config()
try:
    agent.add_meter_event("m", customer_id="held", value=1, identifier="held-1").delivered()
except Refused:
    print("refused", flush=True)
sys.stdin.read()
agent.close()
"""


@pytest.fixture
def per_agent(tmp_path: Path, upstream: UpstreamServer) -> Iterator[Command]:
    command = Command(tmp_path)
    command.configure(KIT.format(upstream.url))
    refuse(upstream)
    yield command
    books = command("books")
    assert (books.code, books.problems) == (0, [])


def refuse(upstream: UpstreamServer) -> None:
    upstream.rule(path="*/meter-events", method="POST", status=413, body={"error": "too large by far"})


def bury(per_agent: Command, *identifiers: str, meter: str = "m") -> None:
    lines = "".join(
        f'{{"event_name": "{meter}", "customer_id": "c", "value": 0.10, "identifier": "{each}",'
        f' "metadata": {{"n": 0.1000000000000000000001}}}}\n'
        for each in identifiers
    )
    done = per_agent("add", "-", "--wait", "delivered", "--json", stdin=lines)
    assert (done.code, done.json["refused"]) == (1, len(identifiers))


def letters(per_agent: Command, *filters: str) -> list[str]:
    return sorted(letter["id"] for letter in per_agent.well("dead", "list", "--json", *filters).json)


def test_letters_are_listed_and_chosen_by_what_they_say(per_agent: Command) -> None:
    bury(per_agent, "a", "b")
    bury(per_agent, "c", meter="other")
    filters = {
        (): ["a", "b", "c"],
        ("--meter", "other"): ["c"],
        ("--destination", "kit", "--reason", "TOO LARGE"): ["a", "b", "c"],
        ("--reason", "too small"): [],
        ("--destination", "per"): [],
        ("--older-than", "1h"): [],
    }
    for words, done in zip(
        filters, per_agent.many(*(["dead", "list", "--json", *each] for each in filters)), strict=True
    ):
        assert sorted(letter["id"] for letter in done.json) == filters[words], words
    table, shown, missing, in_json = per_agent.many(
        ["dead", "list", "--limit", "2"], ["dead", "show", "a"], ["dead", "show", "z"], ["dead", "show", "a", "--json"]
    )  # fmt: skip
    assert "Dead letters: 3" in table.out
    assert "and 1 more" in table.out
    assert "too large by far" in shown.out
    assert missing.code == 1
    assert "z" in missing.problems[0]
    (letter,) = in_json.json
    assert letter.items() >= {"destination": "kit", "attempts": 1, "id": "a"}.items()
    assert letter["event"].items() >= {"type": "meter", "identifier": "a", "value": "0.10"}.items()


def test_requeued_letters_of_an_abandoned_spool_are_delivered_under_their_identifiers(
    per_agent: Command, upstream: UpstreamServer
) -> None:
    bury(per_agent, "a", "b")
    again = per_agent("dead", "requeue", "a", "--json")
    assert again.code == 1
    assert again.json.items() >= {"requeued": 1, "delivered": 0, "dead_again": 1, "waiting": 0}.items()
    upstream.clear_rules()
    done = per_agent.well("dead", "requeue", "--meter", "m")
    assert done.out == "2 events requeued, 2 delivered\n"
    assert sorted(upstream.score().identifiers) == ["a", "b"]
    assert letters(per_agent) == []
    assert per_agent.books("kit")["delivered"] == 2
    unknown, nothing = per_agent.many(["dead", "requeue", "a"], ["dead", "requeue", "--all"])
    assert (unknown.code, unknown.out) == (1, "")
    assert (nothing.code, nothing.out) == (0, "0 events requeued, 0 delivered\n")


def test_requeued_letters_wait_where_the_upstream_is_down_or_nobody_is_to_deliver(
    per_agent: Command, upstream: UpstreamServer
) -> None:
    bury(per_agent, "a", "b")
    upstream.stop()
    down, kept = per_agent.many(
        ["dead", "requeue", "a", "--timeout", "0.5", "--json"],
        ["dead", "requeue", "b", "--no-deliver", "--json"],
    )
    for done in (down, kept):
        assert done.code == 0
        assert (
            done.json.items()
            >= {"requeued": 1, "delivered": 0, "waiting": 1, "with_running_agents": 0}.items()
        )
    assert per_agent.books("kit")["pending"] == 2


def test_a_running_agent_that_holds_the_spool_delivers_what_is_requeued(
    per_agent: Command, upstream: UpstreamServer
) -> None:
    with per_agent.python(HOLDER) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "refused\n"
        assert letters(per_agent) == ["held-1"]
        upstream.clear_rules()
        done = per_agent("dead", "requeue", "held-1", "--json")
        assert (done.code, done.err) == (0, "")
        assert done.json == {
            "requeued": 1, "delivered": 1, "dead_again": 0, "waiting": 0, "with_running_agents": 1,
        }  # fmt: skip
        assert per_agent.well("status", "--json").json["spools"][0]["held"] is True
        holder.stdin.close()
        assert holder.wait(30) == 0
    assert upstream.score().identifiers == ["held-1"]


def test_letters_of_a_running_agent_can_be_purged_and_stay_in_the_books(per_agent: Command) -> None:
    with per_agent.python(HOLDER) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "refused\n"
        unasked = per_agent("dead", "purge", "--all")
        assert (unasked.code, unasked.out) == (2, "")
        assert "--yes" in unasked.problems[0]
        assert per_agent.well("dead", "purge", "--all", "--yes").out == "1 dead letter deleted\n"
        holder.stdin.close()
        assert holder.wait(30) == 0
    books = per_agent.books("kit")
    assert (books["dead"], books["purged"], books["pending"]) == (1, 1, 0)


def test_what_is_exported_can_be_added_again_as_it_was(per_agent: Command, upstream: UpstreamServer) -> None:
    bury(per_agent, "a", "b")
    exported = per_agent.well("dead", "export", "a")
    (line,) = exported.out.splitlines()
    assert '"n":0.1000000000000000000001' in line
    assert msgspec.json.decode(line)["value"] == "0.10"
    assert letters(per_agent) == ["a", "b"]
    upstream.clear_rules()
    assert per_agent("add", "-", "--wait", "delivered", stdin=exported.out).code == 0
    until(lambda: upstream.score().identifiers == ["a"])
    assert upstream.score().meter_events[0]["payload"]["value"] == "0.10"
    assert per_agent.well("dead", "purge", "a", "b", "--yes", "--json").json == {"purged": 2}


def test_more_letters_than_one_page_are_all_there(per_agent: Command) -> None:
    names = [f"e-{n:04}" for n in range(450)]
    bury(per_agent, *names)
    assert letters(per_agent) == names
    assert len(per_agent.well("dead", "export").out.splitlines()) == 450
    assert per_agent.well("dead", "purge", "--all", "--yes").out == "450 dead letters deleted\n"
