"""`report` and `meters`: the upstream's own answers, and its own words when it says no."""

import csv
from pathlib import Path

import pytest
from command import Command
from upstream import UpstreamServer

BOTH = """
[destinations.per]
type = "per"
url = "{0}"
activity_token = "tok"
reporting_token = "tok-2"
[destinations.kit]
type = "payment_kit"
url = "{0}"
access_key = "key"
"""


@pytest.fixture
def per_agent(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_a_report_is_a_table_a_csv_or_the_upstreams_json(per_agent: Command) -> None:
    lines = "".join(
        f'{{"billing_id": "{customer}", "user_id": "{user}", "activity_type_id": "{kind}"}}\n'
        for customer, user, kind in [
            ("b", 1, "t"),
            ("a", 1, "t"),
            ("a", 2, "t"),
            ("a", 2, "t"),
            ("a,c", 1, "s"),
        ]
    )
    per_agent.well("add", "-", "--wait", "delivered", stdin=lines)
    table, as_csv, as_json, default = per_agent.many(
        ["report", "--last", "24h"], ["report", "--last", "1h", "--csv"], ["report", "--last", "1w", "--json"], ["report"]
    )  # fmt: skip
    rows = [("s", "a,c", "1"), ("t", "a", "2"), ("t", "b", "1")]
    shown = [
        tuple(cell.strip() for cell in line.split("│")[1:-1])
        for line in table.out.splitlines()
        if "│" in line
    ]
    assert shown == [*rows, ("s, all", "", "1"), ("t, all", "", "3")]
    header, *values = csv.reader(as_csv.out.splitlines())
    assert header == ["activity_type", "billing_id", "unique_users"]
    assert [tuple(value) for value in values] == rows
    assert as_json.json["ok"] is True
    assert as_json.json["result"]["activityTypes"]["t"]["billingIds"] == {
        "a": {"unique": 2},
        "b": {"unique": 1},
    }
    assert "the previous month in UTC, which is the default" in default.out
    assert "nobody was active" in default.out


def test_a_window_is_passed_on_whole(per_agent: Command, upstream: UpstreamServer) -> None:
    per_agent.configure(BOTH.format(upstream.url))
    for done in per_agent.many(
        ["report", "--start", "2026-01-01", "--end", "2026-01-31"], ["report", "--start", "2026-01-01T01:00+01:00"], ["report"]
    ):  # fmt: skip
        assert (done.code, done.err) == (0, "")
    assert [asked["query"] for asked in upstream.score().last] == [
        {"start": "2026-01-01T00:00:00.000Z", "end": "2026-01-31T23:59:59.999Z"},
        {"start": "2026-01-01T00:00:00.000Z"},
        {},
    ]


def test_meters_are_managed_in_the_ledger(per_agent: Command) -> None:
    made, table, page, off, updated, again, shown, missing, twice, refused = per_agent.many(
        ["meters", "create", "--name", "API", "--event-name", "api", "--unit", "calls", "--metadata", '{"a": 1.5}', "--json"],
        ["meters", "list"],
        ["meters", "list", "--page", "2", "--page-size", "1", "--testmode", "--json"],
        ["meters", "deactivate", "api", "--json"],
        ["meters", "update", "api", "--name", "All", "--description", "d", "--json"],
        ["meters", "activate", "api", "--json"],
        ["meters", "show", "api"],
        ["meters", "show", "none"],
        ["meters", "create", "--name", "API", "--event-name", "api", "--unit", "calls"],
        ["meters", "update", "api", "--status", "asleep"],
    )  # fmt: skip
    assert made.json.items() >= {"event_name": "api", "status": "active", "metadata": {"a": 1.5}}.items()
    assert [cell.strip() for line in table.out.splitlines() if "mtr_" in line for cell in line.split("│")[1:-1]] == [
        made.json["id"], "api", "API", "calls", "active", "live", made.json["created_at"],
    ]  # fmt: skip
    assert page.json == {"count": 0, "list": [], "paging": {"page": 2, "pageSize": 1}}
    assert off.json["status"] == "inactive"
    assert updated.json.items() >= {"name": "All", "description": "d", "unit": "calls"}.items()
    assert again.json["status"] == "active"
    assert "All" in shown.out
    for done, words in (
        (missing, "no meter 'none'"),
        (twice, "already exists"),
        (refused, '"active" or "inactive"'),
    ):
        assert (done.code, done.out) == (1, "")
        assert len(done.problems) == 1
        assert words in done.problems[0]


def test_a_no_ends_with_1_in_the_upstreams_words_and_silence_with_3(
    per_agent: Command, upstream: UpstreamServer
) -> None:
    per_agent.configure(BOTH.format(upstream.url))
    calls = (["report"], ["meters", "list"])
    for status, words in (
        (401, "no such key"),
        (422, "not like this"),
        (429, "slow down"),
        (503, "out to lunch"),
    ):
        upstream.control(reset=True)
        upstream.rule(status=status, body={"error": words})
        for done in per_agent.many(*calls):
            assert (done.code, done.out) == (3 if status == 503 else 1, "")
            assert len(done.problems) == 1
            assert words in done.problems[0]
            assert str(status) in done.problems[0]
    upstream.stop()
    for done in per_agent.many(*calls):
        assert (done.code, done.out) == (3, "")
        assert len(done.problems) == 1


def test_a_report_without_anybody_to_ask_is_a_matter_of_configuration(per_agent: Command) -> None:
    per_agent.configure(
        '[destinations.kit]\ntype = "payment_kit"\nurl = "https://kit.example"\naccess_key = "k"\n'
    )
    nobody = per_agent("report")
    per_agent.configure('[destinations.per]\ntype = "per"\nactivity_token = "tok"\n')
    no_token = per_agent("report")
    assert (nobody.code, no_token.code) == (2, 2)
    assert "no destination is configured that has reports" in nobody.problems[0]
    assert "reporting_token" in no_token.problems[0]
