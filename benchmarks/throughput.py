"""Events a second, from the call to the disk and from the call to an upstream, and what a million of them costs.

The caller records as fast as it can and is held up where nothing more fits; the clock stops when the last event is
stored, or delivered. One processor for all threads of the client, another for the upstream.
"""

import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.clients import made
from benchmarks.clients.client import Place
from benchmarks.measure import Spent, on_disk, peak, resident, written
from benchmarks.plan import Column, Plan, Row, Table, row
from benchmarks.processes import Sink, events_at, measured

_COST = (Column("rate", "events/s"), Column("processor", "CPU s per million", 1))
_MEMORY = (Column("added", "MB added"), Column("peak", "peak MB"))

DURABLE = Table(
    "throughput.durable",
    "From the call to the disk",
    "per_agent until the last event's receipt says stored (fsync), with its upstream down; the others until "
    "their call returns. Only FULL and persist-queue sync to the disk as well.",
    (
        *_COST,
        Column("written", "bytes written per event"),
        Column("size", "bytes on disk per event"),
        *_MEMORY,
    ),
)
DELIVERED = Table(
    "throughput.delivered",
    "From the call to the upstream",
    "Over HTTP on loopback, in batches; until the client says that all is flushed. Peers keep all in memory, in "
    "queues made large enough. Arrived is what the upstream saw.",
    (*_COST, Column("arrived", "arrived %", 1), *_MEMORY),
)
TABLES = (DURABLE, DELIVERED)

_TO_DISK = {
    "per_agent, to the disk": 400_000,
    "SQLite, 500 a commit, FULL": 400_000,
    "SQLite, one a commit, NORMAL": 100_000,
    "persist-queue": 20_000,
    "litequeue": 50_000,
    "diskcache.Deque": 50_000,
}
_TO_UPSTREAM = {
    "per_agent": 400_000,
    "per_agent, no journal": 400_000,
    "per_agent, to nowhere": 400_000,
    "per_agent, embedded ledger": 200_000,
    "amberflo": 100_000,
    "segment": 50_000,
    "opentelemetry logs": 50_000,
    "posthog": 30_000,
    "queue.Queue": 50_000,
}


def run(plan: Plan) -> Iterator[Row]:
    for name, events in _TO_DISK.items():
        plan.tell(f"{name}: to the disk")
        yield row(DURABLE, name, _measured(plan, name, plan.count(events)))
    with Sink() as sink:
        for name, events in _TO_UPSTREAM.items():
            plan.tell(f"{name}: to an upstream")
            yield row(DELIVERED, name, _measured(plan, name, plan.count(events), sink.port))


def _measured(plan: Plan, name: str, events: int, port: int | None = None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
        return measured("throughput:measure", name=name, folder=folder, events=events, port=port)


def measure(*, name: str, folder: str, events: int, port: int | None) -> dict[str, float]:
    """In the child: one row. Stops after 20 seconds, however few *events* were recorded by then."""
    place = Place(port or 0, Path(folder), roomy=True)
    client = made(name, place)
    call, users = client.call, cycle([f"user-{n:06}" for n in range(5000)])
    for _ in range(50):
        call("acme", next(users), "active-users")
    client.flush()
    seen = 0 if port is None else events_at(port)
    before, bytes_before, size_before = resident(), written(), on_disk(place.folder)
    end, count = time.perf_counter() + 20, 0
    with Spent() as spent:
        while count < events and time.perf_counter() < end:
            for _ in range(100):
                call("acme", next(users), "active-users")
            count += 100
        client.flush()
    counted_elsewhere = port is not None and name in ("per_agent, to nowhere", "per_agent, embedded ledger")
    arrived = {} if port is None or counted_elsewhere else {"arrived": (events_at(port) - seen) / count * 100}
    return (
        spent.per(count)
        | arrived
        | {
            "written": (written() - bytes_before) / count,
            "size": (on_disk(place.folder) - size_before) / count,
            "added": resident() - before,
            "peak": peak(),
        }
    )
