"""What waits for an upstream that is down: what it slows, how much memory and disk it takes, and gives back.

One process records, with nothing waiting at first and with all waiting at the end; the next one starts on what it
left, with an upstream that takes everything. Identifiers of customers and users have 8 characters.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.clients.agents import Nowhere, away
from benchmarks.measure import on_disk, peak, resident
from benchmarks.plan import Column, Plan, Row, Table, row
from benchmarks.processes import measured

_USUAL, _FULL = 1_000_000, 20_000_000
_WINDOW = 100_000  # events of which a rate is taken
_PATIENCE = 900.0  # seconds for each process

WAITING = Table(
    "backlog.waiting",
    "Events that wait for an upstream that is down",
    "Rates over the first and the last events: to the disk while the upstream is down, and from it afterwards. "
    "Started is the next process's, first is its first delivery. Disk is counted beyond that of an empty spool.",
    (
        Column("accept_none", "accepted/s, none waiting"),
        Column("accept_all", "all waiting"),
        Column("drain_all", "drained/s, all waiting"),
        Column("drain_none", "few waiting"),
        Column("memory", "resident MB", 1),
        Column("memory_next", "next process MB", 1),
        Column("started", "started ms"),
        Column("first", "first ms"),
        Column("size", "bytes per activity", 1),
        Column("back", "disk back %", 1),
    ),
)
TABLES = (WAITING,)


def run(plan: Plan) -> Iterator[Row]:
    depths = [plan.count(_USUAL)] + ([_FULL] if plan.full else [])
    for depth in depths:
        plan.tell(f"{depth:,} events")
        with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
            found = measured("backlog:fill", folder=folder, events=depth, timeout=_PATIENCE)
            if "failed" not in found:
                found |= measured(
                    "backlog:drain", folder=folder, events=depth, empty=found["empty"], timeout=_PATIENCE
                )
        yield row(WAITING, f"{depth:,} waiting", found)


def fill(*, folder: str, events: int) -> dict[str, float]:
    """In the child: record *events* that cannot be delivered."""
    from per_agent import Agent, IntakeSettings

    place, window = Path(folder), min(_WINDOW, events // 4)
    with Agent(place, [away()], intake=IntakeSettings(overflow="block")) as agent:
        add = agent.add_activity

        def record(begin: int, end: int) -> float:
            """The rate at which these are recorded and stored."""
            began = time.perf_counter()
            for n in range(begin, end):
                receipt = add("acme0001", f"u{n:07}", "activity")
            if not receipt.stored(60):
                raise TimeoutError("not stored within 60 s")
            return (end - begin) / (time.perf_counter() - began)

        record(0, 1000)
        empty = on_disk(place)
        none = record(1000, window)
        record(window, events - window)
        full = record(events - window, events)
        memory = resident()
        agent.close(0.0)
    size = on_disk(place) - empty
    return {"accept_none": none, "accept_all": full, "memory": memory, "size": size / events, "empty": empty}


def drain(*, folder: str, events: int, empty: int) -> dict[str, float]:
    """In the child: start on what `fill` left, and deliver it."""
    from per_agent import Agent

    place, window, nowhere = Path(folder), min(_WINDOW, events // 4), Nowhere()
    full = on_disk(place)
    agent = Agent(place, [nowhere])
    began = time.perf_counter()
    agent.start(wait=True)
    started = time.perf_counter() - began
    first = _until(lambda: nowhere.count > 0) - began
    rates: dict[str, Any] = {}
    for name, begin in (("drain_all", nowhere.count), ("drain_none", events - window)):
        since = _until(lambda begin=begin: nowhere.count >= begin)
        count = nowhere.count
        until = _until(lambda count=count: nowhere.count >= min(events, count + window - 500))
        rates[name] = (nowhere.count - count) / (until - since)
    if not agent.flush(60):
        raise TimeoutError("not delivered within 60 s")
    agent.close(5.0)
    back = (full - on_disk(place)) / (full - empty) * 100
    return rates | {"memory_next": peak(), "started": started * 1000, "first": first * 1000, "back": back}


def _until(reached: Callable[[], bool]) -> float:
    """The moment when *reached*."""
    end = time.perf_counter() + _PATIENCE
    while not reached():
        if time.perf_counter() > end:
            raise TimeoutError(f"not reached within {_PATIENCE:.0f} s")
        time.sleep(0.001)
    return time.perf_counter()
