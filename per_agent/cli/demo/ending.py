"""The demo's end: what the upstream counted, the books of both sides and the verdict; for people, or as JSON."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from per_agent.cli.console import table
from per_agent.cli.demo.plan import METER, Plan
from per_agent.cli.demo.verdict import Verdict
from per_agent.cli.report import report_table, unique_users
from per_agent.cli.status import books_table


def show(console: Console, verdict: Verdict) -> None:
    """The whole of it, as tables, and a line for each check."""
    evidence = verdict.evidence
    events, total = evidence.usage
    rows = unique_users(evidence.answers.report)
    for shown in (
        report_table("Unique users, as the upstream's /reports.get answers", rows),
        table(f"The meter {METER}, as its /api answers", ("events#", "sum#"), [(events, f"{total:,}")]),
        books_table(evidence.application.books_as_dict(), "the application"),
        books_table(evidence.sidecar.books_as_dict(), "the upstream"),
        *_said_twice(verdict),
    ):
        console.print()
        console.print(shown, soft_wrap=not console.is_terminal)
    console.print()
    for check in verdict.checks:
        mark = Text(" yes ", "black on green") if check.kept else Text(" NO  ", "white on red")
        words = Text.assemble(mark, f" {check.promise}: {check.found}")
        console.print(words, soft_wrap=not console.is_terminal)
    console.print()


def _said_twice(verdict: Verdict) -> list[Text]:
    if not verdict.again:
        return []
    return [
        Text(
            f"Activities that came again: {verdict.again:,}. A kill hit before anybody was told that they are safe,"
            " so they were recorded or sent once more. Per's form carries no identifier: a repeat gets a new"
            " transaction id, and unique users, which is what Per counts, stay the same. Meter events carry one,"
            " and count once.",
            "dim",
        )
    ]


def as_dict(plan: Plan, folder: Path, verdict: Verdict) -> dict[str, Any]:
    """The whole of it, for JSON."""
    evidence, incidents = verdict.evidence, verdict.incidents
    return {
        "ok": verdict.kept,
        "events": plan.events,
        "seed": plan.seed,
        "data_dir": str(folder),
        "stored_before_the_kill": incidents.killed_at,
        "outage": {
            "seconds": round(incidents.gone, 3),
            "pending_at_most": incidents.most_waiting,
            "failed_attempts": incidents.retries,
        },
        "activities_repeated": verdict.again,
        "checks": [
            {"promise": each.promise, "kept": each.kept, "found": each.found} for each in verdict.checks
        ],
        "report": evidence.answers.report,
        "stats": evidence.answers.stats,
        "books": {
            side: {each.name: each.books.as_dict() for each in books.standings}
            for side, books in (("application", evidence.application), ("sidecar", evidence.sidecar))
        },
    }
