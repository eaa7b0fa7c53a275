"""How fast the ledger takes events in and answers from many of them: `python benchmarks/ledger.py --rows 10000000`.

Sends activities, then meter events, in batches of 2000 through the destination, as the courier does; each
batch is one durable transaction. The events' times are spread evenly over 60 days, each up to two minutes late.
Making the events is not timed.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from per_agent.destinations.local import Ledger
from per_agent.event import Activity, Identifiers, MeterEvent

START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 60


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000, help="events of each kind")
    options.add_argument("--users", type=int, default=100_000, help="distinct users, and customers of meter events")
    options.add_argument("--billings", type=int, default=100, help="distinct billing IDs")
    options.add_argument("--kind", choices=("activity", "meter", "both"), default="both")
    options.add_argument("--folder", type=Path, default=None, help="where to make the file; it is removed afterwards")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        path = Path(folder) / "ledger.db"
        ledger = Ledger(path, clock=lambda: (START + timedelta(days=DAYS)).timestamp())
        ledger.meters.create(name="API calls", event_name="api.calls", unit="calls")
        print(f"{chosen.rows:,} events of each kind, {chosen.users:,} users, {chosen.billings:,} billing IDs, {DAYS} days")
        if chosen.kind != "meter":
            insert("activities", ledger, path, activities(chosen.rows, chosen.users, chosen.billings), chosen.rows)
            ask_activities(ledger)
        if chosen.kind != "activity":
            insert("meter events", ledger, path, meter_events(chosen.rows, chosen.users), chosen.rows)
            ask_meters(ledger, chosen.users)
        ledger.close()


def activities(rows: int, users: int, billings: int) -> Iterator[Activity]:
    dice, identifiers, step = random.Random(1), Identifiers(), DAYS * 86_400 / rows
    for row in range(rows):
        user = dice.randrange(users)
        at = START.timestamp() + row * step - dice.random() * 120
        yield Activity(identifiers(), f"acme-{user % billings}", f"user-{user}", "active-users", at)


def meter_events(rows: int, customers: int) -> Iterator[MeterEvent]:
    dice, identifiers, step = random.Random(2), Identifiers(), DAYS * 86_400 / rows
    for row in range(rows):
        at = START.timestamp() + row * step - dice.random() * 120
        customer = f"cus_{dice.randrange(customers):010d}"
        yield MeterEvent(identifiers(), "api.calls", customer, f"{dice.randrange(1, 10_000) / 1000}", at)


def insert(what: str, ledger: Ledger, path: Path, events: Iterator, rows: int) -> None:
    spent, batches, before = 0.0, [], path.stat().st_size
    processor = time.process_time
    used = 0.0
    while batch := list(islice(events, ledger.batch)):
        began, began_used = time.perf_counter(), processor()
        outcomes = ledger.send(batch)
        batches.append(time.perf_counter() - began)
        used += processor() - began_used
        spent += batches[-1]
        assert {type(outcome).__name__ for outcome in outcomes} == {"Delivered"}, outcomes[0]
    ledger.close()
    batches.sort()
    size = path.stat().st_size - before
    line(f"insert {what}", f"{rows / spent:,.0f} events/s, {used / rows * 1e6:.1f} us CPU each")
    line("  one batch of 2000", f"p50 {batches[len(batches) // 2] * 1e3:.1f} ms, p99 {batches[int(len(batches) * 0.99)] * 1e3:.1f} ms, max {batches[-1] * 1e3:.0f} ms")
    line("  file", f"{size / 1e6:,.0f} MB, {size / rows:.0f} bytes each")


def ask_activities(ledger: Ledger) -> None:
    odd = timedelta(hours=7, minutes=13, milliseconds=211)
    timed("report, previous month", ledger.get_report)
    timed("report, from January 3rd, open end", lambda: ledger.get_report(START + timedelta(days=2)))
    timed("report, 30 days at odd times", lambda: ledger.get_report(START + odd, START + timedelta(days=30) + odd * 2))
    timed("report, 20 hours over midnight", lambda: ledger.get_report(START + odd * 2, START + odd * 2 + timedelta(hours=20)))
    timed("report, everything", lambda: ledger.get_report(START - timedelta(days=1), START + timedelta(days=DAYS)))


def ask_meters(ledger: Ledger, customers: int) -> None:
    meter = ledger.meters.retrieve("api.calls")["id"]
    first, last = int(START.timestamp()) + 4711, int(START.timestamp()) + 30 * 86_400 + 815
    one = f"cus_{customers // 2:010d}"
    for granularity in ("day", "hour", "minute"):
        timed(f"stats, 30 odd days by {granularity}", lambda: ledger.meter_events.stats(meter_id=meter, start=first, end=last, granularity=granularity))  # noqa: B023
        timed(f"stats, the same of one customer", lambda: ledger.meter_events.stats(meter_id=meter, start=first, end=last, granularity=granularity, customer_id=one))  # noqa: B023
    timed("pending amount, all", ledger.meter_events.pending_amount)
    timed("pending amount, one customer", lambda: ledger.meter_events.pending_amount(customer_id=one))
    timed("list, first page", ledger.meter_events.list)
    timed("list, one customer", lambda: ledger.meter_events.list(customer_id=one))
    timed("list, one customer in one day", lambda: ledger.meter_events.list(customer_id=one, start=first, end=first + 86_400))


def timed(what: str, call: Callable[[], object]) -> None:
    spent = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    line(what, f"{spent[0] * 1e3:,.0f} ms at first, then {min(spent[1:]) * 1e3:,.0f} ms")


def line(what: str, found: str) -> None:
    print(f"{what:<40} {found}", flush=True)


if __name__ == "__main__":
    main()
