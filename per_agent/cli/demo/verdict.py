"""What must be true at the end of the demo, checked against the ledger and the books."""

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from per_agent.agent.overview import Overview, overview
from per_agent.cli.demo.plan import Plan, identifier
from per_agent.cli.report import unique_users
from per_agent.destinations.local import Ledger
from per_agent.event import iso


class Check(msgspec.Struct, frozen=True):
    """One thing that must be true, and whether it is; *found* says it in numbers."""

    promise: str
    kept: bool
    found: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The checks, and what they were made on. *counted*: activities and meter events in the ledger."""

    checks: list[Check]
    report: Any
    stats: Any
    counted: tuple[int, int]
    books: Overview

    @property
    def kept(self) -> bool:
        return all(check.kept for check in self.checks)


def judge(plan: Plan, data_dir: Path, meter_id: str, noted: Sequence[str], *, killed: bool) -> Verdict:
    """Ask the ledger and the spools in *data_dir* what became of *plan*. *noted*: what was to be stored."""
    ledger = Ledger()
    ledger.open(data_dir)
    try:
        begin = int(plan.begin)
        stats = ledger.meter_events.stats(meter_id=meter_id, start=begin - 60, end=begin + 60)
        report = ledger.get_report(iso(plan.begin - 60))
        everything = {identifier(record) for record in plan.records()}
        counted, totals = ledger.counted(everything.union(noted)), ledger.totals()
    finally:
        ledger.close()
    books = overview(data_dir, ("ledger",))
    missing = len(set(noted) - counted)
    extra = sum(totals) - len(counted & everything)
    expected, reported = plan.unique_users(), unique_users(report)
    events, amount = plan.usage()
    found_events = sum(each["event_count"] for each in stats["list"])
    found_amount = sum((Decimal(each["total_value"]) for each in stats["list"]), Decimal())
    off = [f"{each}" for each in expected if each not in reported]
    problems = books.problems or [f"{lane}: {left} pending" for lane, left in books.pending().items()]
    checks = [
        Check("the recording process was killed with SIGKILL", killed, "once" if killed else "it was not"),
        Check(
            "every event was stored in the end",
            set(noted) == everything,
            f"{len(set(noted)):,} of {len(everything):,}",
        ),
        Check("every stored event is in the ledger", not missing, f"{missing:,} missing"),
        Check("no event is counted twice", not extra, f"{sum(totals):,} counted, {extra:,} too many"),
        Check(
            "unique users are those that were recorded",
            expected == reported,
            f"{sum(row[2] for row in reported):,} of {sum(row[2] for row in expected):,}"
            + (f", off: {off[0]}" if off else ""),
        ),
        Check(
            "the meter's sum is what was recorded",
            (found_events, found_amount) == (events, amount),
            f"{found_amount:,} of {amount:,} in {found_events:,} of {events:,} events",
        ),
        Check("the books balance and nothing waits", not problems, problems[0] if problems else "yes"),
    ]
    return Verdict(checks=checks, report=report, stats=stats, counted=totals, books=books)
