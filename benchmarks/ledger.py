"""How fast the ledger takes events in and answers from many: `python benchmarks/ledger.py --rows 10000000`.

Sends activities, then meter events, in batches of 2000 through the destination, as the courier does; each
batch is one durable transaction. The events' times are spread evenly over 60 days, each event up to two
minutes late. Making the events is not timed.
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
from per_agent.event import Activity, Event, Identifiers, MeterEvent

START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 60


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000, help="events of each kind")
    options.add_argument("--users", type=int, default=100_000, help="distinct users, and distinct customers")
    options.add_argument("--billings", type=int, default=100, help="distinct billing IDs")
    options.add_argument("--kind", choices=("activity", "meter", "both"), default="both")
    options.add_argument("--folder", type=Path, help="where to make the file; it is removed afterwards")
    chosen = options.parse_args()
    sizes = f"{chosen.users:,} users, {chosen.billings:,} billing IDs"
    print(f"{chosen.rows:,} events of each kind in {DAYS} days, {sizes}")
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        path = Path(folder) / "ledger.db"
        ledger = Ledger(path, clock=(START + timedelta(days=DAYS)).timestamp)
        ledger.meters.create(name="API calls", event_name="api.calls", unit="calls")
        ledger.close()
        if chosen.kind != "meter":
            insert("activities", ledger, path, activities(chosen.rows, chosen.users, chosen.billings))
            ask_for_reports(ledger)
        if chosen.kind != "activity":
            insert("meter events", ledger, path, meter_events(chosen.rows, chosen.users))
            ask_for_usage(ledger, chosen.users)
        ledger.close()


def times(rows: int, dice: random.Random) -> Iterator[float]:
    step = DAYS * 86_400 / rows
    return (START.timestamp() + row * step - dice.random() * 120 for row in range(rows))


def activities(rows: int, users: int, billings: int) -> Iterator[Activity]:
    dice, identifiers = random.Random(1), Identifiers()
    for at in times(rows, dice):
        user = dice.randrange(users)
        yield Activity(identifiers.new(at), f"acme-{user % billings}", f"user-{user}", "active-users", at)


def meter_events(rows: int, customers: int) -> Iterator[MeterEvent]:
    dice, identifiers = random.Random(2), Identifiers()
    for at in times(rows, dice):
        value = f"{dice.randrange(1, 10_000) / 1000}"
        yield MeterEvent(identifiers.new(at), "api.calls", f"cus_{dice.randrange(customers):010d}", value, at)


def insert(what: str, ledger: Ledger, path: Path, events: Iterator[Event]) -> None:
    size_before, rows, processor, batches = path.stat().st_size, 0, 0.0, []
    while batch := list(islice(events, ledger.batch)):
        began, began_processor = time.perf_counter(), time.process_time()
        outcomes = ledger.send(batch)
        batches.append(time.perf_counter() - began)
        processor += time.process_time() - began_processor
        rows += len(batch)
        assert {type(outcome).__name__ for outcome in outcomes} == {"Delivered"}, outcomes[0]
    ledger.close()
    size = path.stat().st_size - size_before
    line(f"insert {what}", f"{rows / sum(batches):,.0f} events/s, {processor / rows * 1e6:.1f} us CPU each")
    batches.sort()
    p50, p99 = (batches[int(len(batches) * share)] * 1e3 for share in (0.5, 0.99))
    line("  one batch of 2000", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {batches[-1] * 1e3:.0f} ms")
    line("  file", f"{size / 1e6:,.0f} MB, {size / rows:.0f} bytes each")


def ask_for_reports(ledger: Ledger) -> None:
    odd = START + timedelta(hours=7, minutes=13, milliseconds=211)
    windows = {
        "previous month": (),
        "from January 3rd, open end": (START + timedelta(days=2),),
        "30 days at odd times": (odd, odd + timedelta(days=30, hours=5)),
        "20 hours over midnight": (odd, odd + timedelta(hours=20)),
        "everything": (START - timedelta(days=1), START + timedelta(days=DAYS)),
    }
    for what, window in windows.items():
        timed(f"report, {what}", lambda window=window: ledger.get_report(*window))


def ask_for_usage(ledger: Ledger, customers: int) -> None:
    events = ledger.meter_events
    first = int(START.timestamp()) + 4711
    meter_id = ledger.meters.retrieve("api.calls")["id"]
    window = {"start": first, "end": first + 30 * 86_400 + 815, "meter_id": meter_id}
    one = f"cus_{customers // 2:010d}"
    for step in ("day", "hour", "minute"):
        timed(f"stats, 30 days by {step}", lambda step=step: events.stats(**window, granularity=step))
        timed(
            "  of one customer", lambda step=step: events.stats(**window, granularity=step, customer_id=one)
        )
    timed("pending amount", events.pending_amount)
    timed("  of one customer", lambda: events.pending_amount(customer_id=one))
    timed("list, first page", events.list)
    timed("  of one customer", lambda: events.list(customer_id=one))
    day = {"start": first, "end": first + 86_400}
    timed("  of one customer in one day", lambda: events.list(customer_id=one, **day))


def timed(what: str, call: Callable[[], object]) -> None:
    spent = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        spent.append((time.perf_counter() - began) * 1e3)
    line(what, f"{spent[0]:,.0f} ms at first, then {min(spent[1:]):,.0f} ms")


def line(what: str, found: str) -> None:
    print(f"{what:<36} {found}", flush=True)


if __name__ == "__main__":
    main()
