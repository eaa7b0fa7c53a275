"""`add`: what is stored, what is told, and how it ends."""

import json
from pathlib import Path

import pytest
from command import Command
from upstream import UpstreamServer
from waiting import until

ACTIVITY = '{"billing_id": "acme", "user_id": "%s", "activity_type_id": "t"}\n'


@pytest.fixture
def per_agent(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_an_activity_is_stored_delivered_and_in_the_report(per_agent: Command) -> None:
    added, dated, counted = per_agent.many(
        ["add", "activity", "acme", "u-17", "active-users"],
        ["add", "activity", "acme", "u-18", "active-users", "--at", "2026-01-31T23:59:59Z", "--wait", "delivered", "--json"],
        ["report", "--start", "2026-01-01", "--end", "2026-01-31", "--json"],
    )  # fmt: skip
    assert (added.code, added.err) == (0, "")
    assert len(added.out.strip()) == 36
    assert dated.code == 0
    assert dated.json.items() >= {"stored": True, "delivered": True, "refused": None}.items()
    assert counted.json["result"]["activityTypes"] == {
        "active-users": {"billingIds": {"acme": {"unique": 1}}}
    }


def test_a_meter_event_without_a_meter_is_stored_and_says_that_it_waits(per_agent: Command) -> None:
    meter = ["add", "meter", "tokens", "--customer", "cus_9", "--value", "0.25", "--identifier", "call-81"]
    stored, waited, made, gone, repeated = per_agent.many(
        meter,
        [*meter, "--wait", "delivered", "--timeout", "0.1", "--json"],
        ["meters", "create", "--name", "Tokens", "--event-name", "tokens", "--unit", "tokens"],
        ["add", "meter", "tokens", "--customer", "cus_9", "--value", "1", "--timestamp", "1700000000",
         "--subscription", "sub_1", "--metadata", '{"a": 0.10}', "--source-data", "[1]", "--livemode",
         "--wait", "delivered"],
        [*meter, "--wait", "delivered"],
    )  # fmt: skip
    assert (stored.code, stored.out) == (0, "call-81\n")
    assert "no meter 'tokens' in live mode" in stored.problems[0]
    assert waited.code == 1
    assert waited.json == {"id": "call-81", "stored": True, "delivered": False, "refused": None}
    assert made.code == gone.code == repeated.code == 0
    books = per_agent.books()
    assert (books["accepted"], books["delivered"], books["pending"]) == (4, 4, 0)


def test_what_is_wrong_with_an_event_is_told_in_one_line_and_nothing_is_recorded(per_agent: Command) -> None:
    wrong = [
        (["activity", "", "u", "t"], "billing_id"),
        (["activity", "acme", "u", "t", "--at", "2026-01-31T12:00:00"], "zone"),
        (["activity", "acme", "u", "t", "--at", "noon"], "--at"),
        (["activity", "acme", "u", "t", "--at", "1769860800000"], "milliseconds"),
        (["meter", "m", "--customer", "c", "--value", "1e3"], "value"),
        (["meter", "m", "--customer", "c", "--value", "3", "--metadata", "{"], "--metadata"),
        (["meter", "m", "--customer", "c", "--value", "3", "--metadata", "[]"], "metadata"),
        (["nowhere.ndjson"], "no such file"),
    ]
    for (words, says), done in zip(
        wrong, per_agent.many(*(["add", *words] for words, _ in wrong)), strict=True
    ):
        assert (done.code, done.out) == (2, ""), words
        assert len(done.problems) == 1, words
        assert says in done.problems[0], words
    assert per_agent.books()["accepted"] == 0


def test_bad_lines_are_named_by_their_number_and_the_good_ones_are_kept(per_agent: Command) -> None:
    lines = [
        b"\xef\xbb\xbf" + (ACTIVITY % "u-1").encode(),
        b"\n",
        b'{"billing_id": "acme"}\n',
        b"not json\r\n",
        b'  {"type": "activity", "id": "mine", "billing_id": "acme", "user_id": "u-2", "activity_type_id": "t"}\r\n',
        b'{"billing_id": "\xff"}\n',
        b"[1]\n",
        b'{"type": "other"}\n',
        b'"' + b"x" * 3_000_000 + b'"\n',
        b"[" * 100_000 + b"\n",
        b'{"event_name": "m", "customer_id": "c", "value": 1e999999999}\n',
        (ACTIVITY % "u-3").encode().rstrip(),
    ]
    done = per_agent("add", "-", stdin=b"".join(lines))
    assert (done.code, done.out) == (1, "3 events stored, 8 bad lines\n")
    assert [line.split(":")[0] for line in done.problems] == [f"line {n}" for n in (3, 4, 6, 7, 8, 9, 10, 11)]
    assert "user_id: is missing; activity_type_id: is missing" in done.problems[0]
    assert "is not UTF-8" in done.problems[2]
    assert "longer than" in done.problems[5]
    assert per_agent.books()["delivered"] == 3


def test_the_summary_of_a_file_is_there_in_json(per_agent: Command, tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_text(ACTIVITY % "u-1" + "{}\n" + ACTIVITY % "u-2")
    done = per_agent("add", "events.ndjson", "--wait", "delivered", "--json")
    assert done.code == 1
    assert len(done.problems) == 1
    (problem,) = done.json.pop("problems")
    assert problem["line"] == 2
    assert done.json | {"problems": []} == {
        "accepted": 2, "stored": 2, "bad": 1, "problems": [], "delivered": 2, "refused": 0, "pending": {},
    }  # fmt: skip


def test_a_long_input_is_stored_whole_through_a_buffer_that_is_far_smaller(per_agent: Command) -> None:
    per_agent.configure("[intake]\nbuffer_events = 100\nblock_events = 50\n")
    text = "".join(ACTIVITY % f"u-{n}" for n in range(20_000))
    done = per_agent.well("add", "file", "-", "--wait", "delivered", stdin=text)
    assert done.out == "20,000 events stored, 0 bad lines\n"
    books = per_agent.books()
    assert (books["accepted"], books["delivered"], books["dropped"]) == (20_000, 20_000, 0)


def test_an_upstream_that_is_down_costs_nothing_but_the_wait(
    per_agent: Command, upstream: UpstreamServer
) -> None:
    per_agent.configure(f'[destinations.per]\ntype = "per"\nactivity_token = "tok"\nurl = "{upstream.url}"\n')
    upstream.stop()
    activity = ["add", "activity", "acme", "u", "t"]
    stored, waited = per_agent.many(activity, [*activity, "--wait", "delivered", "--timeout", "0.5"])
    assert stored.code == 0
    assert "refused" in stored.problems[0]
    assert waited.code == 3
    assert "2 events for per (retrying" in waited.problems[0]
    upstream.start()
    assert per_agent.well(*activity, "--wait", "delivered").code == 0
    # What earlier calls left goes along as time allows.
    until(lambda: per_agent("add", "-").code == 0 and per_agent.books("per")["pending"] == 0)
    assert set(upstream.score().users) == {"u"}


def test_an_event_that_is_refused_for_good_is_told_and_kept(
    per_agent: Command, upstream: UpstreamServer
) -> None:
    per_agent.configure(
        f'[destinations.kit]\ntype = "payment_kit"\naccess_key = "key"\nurl = "{upstream.url}"\n'
    )
    upstream.rule(path="*/meter-events", status=413, body={"error": "far\ntoo \u001b[31mlarge"})
    event = {"event_name": "m", "customer_id": "c", "value": 3}
    meter = ["add", "meter", "m", "--customer", "c", "--value", "3"]
    stored, waited = per_agent.many([*meter, "--identifier", "a"], [*meter, "--wait", "delivered", "--json"])
    assert (stored.code, stored.out) == (0, "a\n")
    assert len(stored.problems) == 1
    assert "far too" in stored.problems[0].replace("  ", " ")
    assert "\x1b" not in stored.err + waited.out
    assert waited.code == 1
    assert "413" in waited.json["refused"]
    lines = "".join(json.dumps(event | {"identifier": f"e-{n}"}) + "\n" for n in range(20))
    bulk = per_agent("add", "-", "--wait", "delivered", "--json", stdin=lines)
    assert bulk.code == 1
    assert (bulk.json["stored"], bulk.json["refused"], bulk.json["pending"]) == (20, 20, {})
    assert len(bulk.problems) == 11  # the first ten by name, and how many there are
    assert per_agent.books("kit")["dead"] == 22
