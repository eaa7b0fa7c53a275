"""`report`: unique active users, straight from the upstream."""

import csv
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from per_agent.cli.call import Call, command
from per_agent.cli.console import Sheet, show_json, stdout, table
from per_agent.cli.exits import ExitCode, Stop
from per_agent.cli.source import upstreams
from per_agent.cli.times import first_moment, last_moment, span


def register(app: typer.Typer) -> None:
    """Add `report` to the program."""
    command(
        app,
        "report",
        "per-agent report",
        "per-agent report --last 7d",
        "per-agent report --start 2026-01-01 --end 2026-01-31 --csv > january.csv",
        "per-agent report --last 24h --json",
    )(_report)


def _report(
    call: Call,
    *,
    last: Annotated[str | None, typer.Option(metavar="SPAN", help="Up to now: 24h, 7d, 2w.")] = None,
    start: Annotated[
        str | None, typer.Option(metavar="WHEN", help="ISO 8601; in UTC where it names no zone.")
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="As --start; a date alone includes that day. Default: now."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Answer in CSV.")] = False,
) -> ExitCode | None:
    """Show the unique active users, by activity type and billing ID.

    Without a window it is the upstream's default: the whole previous month in UTC, and nothing of this one.
    """
    if as_csv and call.as_json:
        raise Stop(ExitCode.USAGE, "--csv and --json: choose one")
    first, until = _window(last, start, end)
    with upstreams(call) as agent:
        report = agent.get_report(first, until)
    if call.as_json:
        show_json(report)
        return None
    rows = unique_users(report)
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("activity_type", "billing_id", "unique_users"))
        writer.writerows(rows)
        return None
    result = report.get("result") or {}
    which = "the previous month in UTC, which is the default" if first is None else "both ends included"
    title = f"Unique active users, {result.get('start')} to {result.get('end') or 'now'} ({which})"
    stdout().print(report_table(title, rows))
    return None


def _window(last: str | None, start: str | None, end: str | None) -> tuple[datetime | None, datetime | None]:
    if last is not None:
        if start is not None or end is not None:
            raise Stop(ExitCode.USAGE, "--last is a window by itself: give it, or --start and --end")
        try:
            return datetime.now(UTC) - span("--last", last), None
        except OverflowError:
            raise Stop(ExitCode.USAGE, f"--last: {last!r} is too long") from None
    if start is None:
        if end is not None:
            raise Stop(
                ExitCode.USAGE, "--end needs --start: without one, the report is that of the previous month"
            )
        return None, None
    first = first_moment("--start", start)
    until = None if end is None else last_moment("--end", end)
    if until is not None and first > until:
        raise Stop(ExitCode.USAGE, "--start is after --end")
    return first, until


def unique_users(report: Any) -> list[tuple[str, str, int]]:
    """(activity type, billing ID, unique users) of Per's report, in this order."""
    types = (report.get("result") or {}).get("activityTypes") or {}
    return sorted(
        (activity_type, billing_id, counts.get("unique", 0))
        for activity_type, by_billing_id in types.items()
        for billing_id, counts in (by_billing_id.get("billingIds") or {}).items()
    )


def report_table(title: str, rows: list[tuple[str, str, int]]) -> Sheet:
    """The report as a table, with the sum of each activity type where there is more than one row of it."""
    made = table(title, ("activity type", "billing id", "unique users#"), rows)
    if not rows:
        made.row("nobody was active", "", "")
        return made
    made.add_section()
    for activity_type in sorted({row[0] for row in rows}):
        total = sum(row[2] for row in rows if row[0] == activity_type)
        made.row(f"{activity_type}, all", "", total, style="bold")
    return made
