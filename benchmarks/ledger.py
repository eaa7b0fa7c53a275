"""How fast the embedded ledger takes events in, and how fast it answers from many of them.

Activities, then meter events, in batches through the destination, as the courier does; each batch is one durable
transaction. Their times are spread evenly over 60 days, each up to two minutes late. Making them is not timed.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.plan import Column, Plan, Row, Table, row
from benchmarks.processes import measured

_START = datetime(2026, 1, 1, tzinfo=UTC)
_DAYS = 60
_USERS, _BILLINGS = 100_000, 100
_PATIENCE = 3600.0  # seconds for ten million of both kinds

INSERTS = Table(
    "ledger.inserts",
    "The ledger: events in",
    "A batch of 2,000 is one transaction with one fsync.",
    (
        Column("rate", "events/s"),
        Column("processor", "CPU s per million", 1),
        Column("p50", "batch p50 ms", 1),
        Column("p99", "batch p99 ms", 1),
        Column("size", "bytes each"),
    ),
)
ANSWERS = Table(
    "ledger.answers",
    "The ledger: answers",
    f"From so many activities of {_USERS:,} users under {_BILLINGS} billing IDs, and as many meter events.",
    (Column("first", "at first ms", 1), Column("again", "again ms", 1)),
)
TABLES = (INSERTS, ANSWERS)


def run(plan: Plan) -> Iterator[Row]:
    rows = plan.count(1_000_000, 10_000_000)
    plan.tell(f"{rows:,} events of each kind")
    with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
        found = measured("ledger:measure", folder=folder, rows=rows, timeout=_PATIENCE)
    if "failed" in found:
        yield row(INSERTS, "all", found)
        return
    for table in TABLES:
        for subject, figures in found[table.key].items():
            yield row(table, subject, figures)


# In the child


def measure(*, folder: str, rows: int) -> dict[str, Any]:
    """Both tables, each row by its subject."""
    from per_agent import Ledger

    path = Path(folder) / "ledger.db"
    ledger = Ledger(path, clock=(_START + timedelta(days=_DAYS)).timestamp)
    ledger.meters.create(name="API calls", event_name="api.calls", unit="calls")
    inserts = {f"{rows:,} activities": _insert(ledger, path, _activities(rows))}
    answers = {what: _timed(ask) for what, ask in _reports(ledger).items()}
    inserts[f"{rows:,} meter events"] = _insert(ledger, path, _meter_events(rows))
    answers |= {what: _timed(ask) for what, ask in _usage(ledger).items()}
    ledger.close()
    return {INSERTS.key: inserts, ANSWERS.key: answers}


def _times(rows: int, dice: random.Random) -> Iterator[float]:
    step = _DAYS * 86_400 / rows
    return (_START.timestamp() + row * step - dice.random() * 120 for row in range(rows))


def _activities(rows: int) -> Iterator[Any]:
    from per_agent import Activity
    from per_agent.event import Identifiers

    dice, identifiers = random.Random(1), Identifiers()
    for at in _times(rows, dice):
        user = dice.randrange(_USERS)
        yield Activity(identifiers.new(at), f"acme-{user % _BILLINGS}", f"user-{user}", "active-users", at)


def _meter_events(rows: int) -> Iterator[Any]:
    from per_agent import MeterEvent
    from per_agent.event import Identifiers

    dice, identifiers = random.Random(2), Identifiers()
    for at in _times(rows, dice):
        value = f"{dice.randrange(1, 10_000) / 1000}"
        customer = f"cus_{dice.randrange(_USERS):010d}"
        yield MeterEvent(identifiers.new(at), "api.calls", customer, value, at)


def _insert(ledger: Any, path: Path, events: Iterator[Any]) -> dict[str, float]:
    size_before, rows, processor = path.stat().st_size, 0, 0.0
    batches: list[float] = []
    while batch := list(islice(events, ledger.batch)):
        began, began_processor = time.perf_counter(), time.process_time()
        outcomes = ledger.send(batch)
        batches.append(time.perf_counter() - began)
        processor += time.process_time() - began_processor
        rows += len(batch)
        kinds = {type(outcome).__name__ for outcome in outcomes}
        if kinds != {"Delivered"}:
            raise RuntimeError(f"not delivered: {kinds}")
    ledger.close()
    batches.sort()
    p50, p99 = (batches[int(len(batches) * share)] * 1e3 for share in (0.5, 0.99))
    size = (path.stat().st_size - size_before) / rows
    return {
        "rate": rows / sum(batches),
        "processor": processor / rows * 1e6,
        "p50": p50,
        "p99": p99,
        "size": size,
    }


def _reports(ledger: Any) -> dict[str, Callable[[], object]]:
    odd = _START + timedelta(hours=7, minutes=13, milliseconds=211)
    windows: dict[str, tuple[datetime, ...]] = {
        "report, previous month": (),
        "report, 30 days at odd times": (odd, odd + timedelta(days=30, hours=5)),
        "report, 20 hours over midnight": (odd, odd + timedelta(hours=20)),
        "report, everything": (_START - timedelta(days=1), _START + timedelta(days=_DAYS)),
    }
    return {what: lambda window=window: ledger.get_report(*window) for what, window in windows.items()}


def _usage(ledger: Any) -> dict[str, Callable[[], object]]:
    events = ledger.meter_events
    begin = int(_START.timestamp()) + 4711
    window = {
        "start": begin,
        "end": begin + 30 * 86_400 + 815,
        "meter_id": ledger.meters.retrieve("api.calls")["id"],
    }
    one = f"cus_{_USERS // 2:010d}"
    asked: dict[str, Callable[[], object]] = {}
    for step in ("day", "hour", "minute"):
        asked[f"stats, 30 days by {step}"] = lambda step=step: events.stats(**window, granularity=step)
    asked["stats, 30 days by hour, one customer"] = lambda: events.stats(
        **window, granularity="hour", customer_id=one
    )
    asked["pending amount"] = events.pending_amount
    asked["pending amount, one customer"] = lambda: events.pending_amount(customer_id=one)
    asked["list, first page"] = events.list
    asked["list, first page, one customer"] = lambda: events.list(customer_id=one)
    return asked


def _timed(ask: Callable[[], object]) -> dict[str, float]:
    spent = []
    for _ in range(3):
        began = time.perf_counter()
        ask()
        spent.append((time.perf_counter() - began) * 1e3)
    return {"first": spent[0], "again": min(spent[1:])}
