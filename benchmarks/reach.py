"""The goals, and whether a run reached them. Where a goal is a ratio, both of its figures are of the same run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.results import Results


@dataclass(frozen=True)
class Goal:
    """*what* is to be *bound* *limit*; *figure* is None where the run did not measure it."""

    what: str
    bound: Literal["≤", "≥"]
    limit: float
    unit: str
    figure: Callable[[Results], float | None]


@dataclass(frozen=True)
class Judged:
    goal: Goal
    found: float | None

    @property
    def is_reached(self) -> bool | None:
        """None: it was not measured."""
        if self.found is None:
            return None
        return self.found <= self.goal.limit if self.goal.bound == "≤" else self.found >= self.goal.limit

    @property
    def verdict(self) -> str:
        return {None: "not measured", True: "reached", False: "not reached"}[self.is_reached]


def judged(results: Results) -> list[Judged]:
    return [Judged(goal, goal.figure(results)) for goal in GOALS]


def _of(table: str, subject: str, column: str) -> Callable[[Results], float | None]:
    return lambda results: results.figure(table, subject, column)


def _least(table: str, begins: str, column: str) -> Callable[[Results], float | None]:
    """The least of the rows whose subject begins so."""
    return lambda results: min(_all(results, table, begins, column), default=None)


def _most(table: str, begins: str, column: str) -> Callable[[Results], float | None]:
    return lambda results: max(_all(results, table, begins, column), default=None)


def _all(results: Results, table: str, begins: str, column: str) -> Sequence[float]:
    rows = [each for each in results.of_table(table) if each.subject.startswith(begins)]
    return [each.figures[column] for each in rows if column in each.figures]


def _kept(with_many: str, with_none: str) -> Callable[[Results], float | None]:
    """The rate with many waiting in percent of that with none, where it is worst."""

    def figure(results: Results) -> float | None:
        rows = [each.figures for each in results.of_table("backlog.waiting")]
        return min((row[with_many] / row[with_none] * 100 for row in rows if with_none in row), default=None)

    return figure


_REPORT = "report, "
_ONE = "POST /v1/events, Unix, upstream away"
_ONE_TCP = "POST /v1/events, TCP, upstream away"

GOALS = (
    Goal("a call at 20,000/s, p50", "≤", 1.0, "µs", _of("caller.paced", "per_agent", "p50")),
    Goal("a call at 20,000/s, p99.9", "≤", 50, "µs", _of("caller.paced", "per_agent", "p999")),
    Goal("a call at 20,000/s, at most, without the garbage collector", "≤", 1000, "µs",
         _of("caller.paced", "per_agent, no garbage collection", "max")),
    Goal("the caller's timer at 2,000/s, late at p99", "≤", 0.4, "ms", _of("caller.slow", "per_agent", "late_p99")),
    Goal("accepted to stored", "≥", 300_000, "events/s", _of("throughput.durable", "per_agent, to the disk", "rate")),
    Goal("accepted to stored", "≤", 3, "CPU s per million",
         _of("throughput.durable", "per_agent, to the disk", "processor")),
    Goal("accepted to delivered, in batches", "≥", 150_000, "events/s",
         _of("throughput.delivered", "per_agent", "rate")),
    Goal("accepted to delivered, in batches", "≤", 8, "CPU s per million",
         _of("throughput.delivered", "per_agent", "processor")),
    Goal("one request for each event, 1 ms, 8 at once", "≥", 80, "% of the best httpx",
         _of("upstream.per", "per_agent, 1 ms, 8 at once", "share")),
    Goal("one request for each event, 1 ms, 64 at once", "≥", 80, "% of the best httpx",
         _of("upstream.per", "per_agent, 1 ms, 64 at once", "share")),
    Goal("one request for each event, 100 ms, 8 at once", "≥", 80, "% of the best httpx",
         _of("upstream.per", "per_agent, 100 ms, 8 at once", "share")),
    Goal("one request for each event, 100 ms, 64 at once", "≥", 80, "% of the best httpx",
         _of("upstream.per", "per_agent, 100 ms, 64 at once", "share")),
    Goal("sidecar, one event a request, on its socket", "≥", 20_000, "requests/s",
         _of("sidecar.requests", _ONE, "rate")),
    Goal("sidecar, one event a request, on its socket", "≥", 70, "% of an empty application",
         _of("sidecar.requests", _ONE, "share")),
    Goal("sidecar, one event a request, by TCP", "≥", 70, "% of an empty application",
         _of("sidecar.requests", _ONE_TCP, "share")),
    Goal("the same, by the processor time of both", "≥", 70, "% of an empty application",
         _of("sidecar.requests", _ONE_TCP, "by_processor")),
    Goal("sidecar, NDJSON of 500", "≥", 250_000, "events/s",
         _most("sidecar.requests", "POST /v1/events, NDJSON of 500", "events")),
    Goal("memory, with the most that waited", "≤", 80, "MB", _most("backlog.waiting", "", "memory")),
    Goal("memory of the next process, at its peak", "≤", 80, "MB", _most("backlog.waiting", "", "memory_next")),
    Goal("accepting, with the most that waited", "≥", 90, "% of none waiting", _kept("accept_all", "accept_none")),
    Goal("draining, with the most that waited", "≥", 90, "% of few waiting", _kept("drain_all", "drain_none")),
    Goal("start with a backlog", "≤", 1000, "ms", _most("backlog.waiting", "", "started")),
    Goal("disk, ids of 8 characters", "≤", 64, "bytes per activity", _most("backlog.waiting", "", "size")),
    Goal("disk, after a drain", "≥", 90, "% back", _least("backlog.waiting", "", "back")),
    Goal("import", "≤", 150, "ms", _of("guest.import", "per_agent", "took")),
    Goal("idling", "≤", 0.2, "% CPU", _of("guest.host", "per_agent", "idle")),
    Goal("way out, nothing pending, upstream away", "≤", 100, "ms", _of("guest.exit", "per_agent", "nothing")),
    Goal("ledger report, the slowest", "≤", 2000, "ms", _most("ledger.answers", _REPORT, "first")),
)  # fmt: skip
