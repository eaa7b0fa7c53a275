"""What must be true at the end of the demo, checked against the answers, the ledger and both sides' books."""

from collections.abc import Sequence
from decimal import Decimal

import msgspec

from per_agent.agent.overview import Overview
from per_agent.cli.console import count
from per_agent.cli.demo.plan import Plan, identifier
from per_agent.cli.demo.stage import Stage
from per_agent.cli.demo.story import Answers, Incidents
from per_agent.cli.report import unique_users
from per_agent.destinations.local import Ledger


class Check(msgspec.Struct, frozen=True):
    """One thing that must be true, and whether it is; *found* says it in numbers."""

    promise: str
    kept: bool
    found: str


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at the end.

    Attributes:
        noted: the identifiers that were reported as stored.
        counted: those of the plan's identifiers that are in the ledger; activities come there with others.
        totals: the activities and the meter events in the ledger.
        application: the books of the application's disk.
        sidecar: those of the upstream's.
    """

    answers: Answers
    noted: Sequence[str]
    counted: set[str]
    totals: tuple[int, int]
    application: Overview
    sidecar: Overview

    @property
    def usage(self) -> tuple[int, Decimal]:
        """The meter events and their sum, as the upstream answered."""
        buckets = self.answers.stats["list"]
        total = sum((Decimal(each["total_value"]) for each in buckets), Decimal())
        return sum(each["event_count"] for each in buckets), total


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The checks, and what they were made on."""

    checks: list[Check]
    evidence: Evidence
    incidents: Incidents
    again: int
    """Activities that came to the upstream more than once."""

    @property
    def kept(self) -> bool:
        return all(check.kept for check in self.checks)


def gather(plan: Plan, stage: Stage, answers: Answers, noted: Sequence[str]) -> Evidence:
    """Look at what lies on both disks, when nobody is at work there any more. *noted*: what was to be stored."""
    ledger = Ledger()
    ledger.open(stage.sidecar)
    try:
        planned = {identifier(record) for record in plan.records()}
        counted, totals = ledger.counted(planned.union(noted)), ledger.totals()
    finally:
        ledger.close()
    application, sidecar = stage.overviews()
    return Evidence(
        answers=answers,
        noted=noted,
        counted=counted,
        totals=totals,
        application=application,
        sidecar=sidecar,
    )


def judge(plan: Plan, evidence: Evidence, incidents: Incidents) -> Verdict:
    """Hold *evidence* against what *plan* says."""
    planned = {identifier(record) for record in plan.records()}
    noted = set(evidence.noted)
    checks = [
        *_incidents(incidents),
        Check(
            "every event was stored in the end",
            noted == planned,
            f"{len(noted):,} of {len(planned):,}",
        ),
        *_arrivals(plan, evidence),
        *_sums(plan, evidence),
        *(
            _books(side, books)
            for side, books in (("application", evidence.application), ("upstream", evidence.sidecar))
        ),
    ]
    again = max(0, evidence.totals[0] - _activities(plan))
    return Verdict(checks=checks, evidence=evidence, incidents=incidents, again=again)


def _incidents(incidents: Incidents) -> list[Check]:
    killed, felt = incidents.killed_at is not None, incidents.most_waiting > 0 and incidents.retries > 0
    return [
        Check(
            "the upstream was killed with SIGKILL, and came back",
            incidents.upstream_killed and incidents.stopped == 0,
            f"gone for {incidents.gone:.1f} s"
            if incidents.upstream_killed and incidents.stopped == 0
            else f"the second one ended with {incidents.stopped}",
        ),
        Check(
            "the application was killed with SIGKILL, and came back",
            killed,
            "once" if killed else "it was not",
        ),
        Check(
            "the outage was felt",
            felt,
            f"{count(incidents.most_waiting, 'event')} waited, {count(incidents.retries, 'attempt')} failed",
        ),
    ]


def _arrivals(plan: Plan, evidence: Evidence) -> list[Check]:
    activities, metered = evidence.totals
    wanted = {identifier(record) for record in plan.records() if "value" in record}
    missing = len(wanted - evidence.counted)
    absent = max(0, _activities(plan) - activities)
    extra = metered - len(wanted & evidence.counted)
    return [
        Check("every stored event arrived", not missing + absent, f"{missing + absent:,} missing"),
        Check(
            "no meter event is counted twice, by its identifier",
            not extra,
            f"{metered:,} counted, {extra:,} too many",
        ),
    ]


def _sums(plan: Plan, evidence: Evidence) -> list[Check]:
    expected, reported = plan.unique_users(), unique_users(evidence.answers.report)
    off = [f"{each}" for each in expected if each not in reported]
    events, amount = plan.usage()
    found_events, found_amount = evidence.usage
    return [
        Check(
            "unique users are those that were recorded",
            expected == reported,
            f"{sum(row[2] for row in reported):,} of {sum(row[2] for row in expected):,}"
            + (f", off: {off[0]}" if off else ""),
        ),
        Check(
            "the meter's sum is what was recorded, to the last digit",
            (found_events, found_amount) == (events, amount),
            f"{found_amount:,} of {amount:,} in {found_events:,} of {events:,} events",
        ),
    ]


def _books(side: str, books: Overview) -> Check:
    problems = books.problems or [f"{lane}: {left} pending" for lane, left in books.pending().items()]
    problems += [f"{each.name}: {each.letters} dead" for each in books.standings if each.letters]
    accepted = sum(each.books.accepted for each in books.standings)
    delivered = sum(each.books.delivered for each in books.standings)
    return Check(
        f"the books of the {side} balance, nothing waits and nothing is dead",
        not problems,
        problems[0] if problems else f"{delivered:,} delivered of {accepted:,}",
    )


def _activities(plan: Plan) -> int:
    return plan.events - plan.usage()[0]
