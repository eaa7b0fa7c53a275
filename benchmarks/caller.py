"""What one call costs the caller, while what it recorded is stored and delivered to an upstream in another process.

A reading by itself tells little, on a shared machine above all: compare the rows. Each holds the cost of asking
the clock twice, which is the row `nothing`. Queues on the disk deliver nothing here; the others' workers do.
"""

import gc
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.clients import made
from benchmarks.clients.client import Client, Place
from benchmarks.measure import quantiles
from benchmarks.plan import Column, Plan, Row, Table, row
from benchmarks.processes import Sink, measured

_BURST = 20  # calls, one after another, as a request handler makes them
_BEHIND = 0.05  # seconds that a caller may fall behind its pace before what it missed is left out
_FLAT = 50_000  # calls back to back: what the smallest default queue here holds five times over

_ALL = (
    "per_agent",
    "per_agent, no journal",
    "per_agent, embedded ledger",
    "posthog",
    "segment",
    "opentelemetry logs",
    "sentry",
    "amberflo",
    "datadog statsd",
    "persist-queue",
    "litequeue",
    "diskcache.Deque",
    "queue.Queue",
    "httpx.post",
    "nothing",
)
_COST = (Column("p50", "p50 µs", 2), Column("p99", "p99 µs", 1), Column("p999", "p99.9 µs", 1))
_MAX = Column("max", "max µs")
_LATE = Column("late_p99", "timer late, p99 ms", 2)
_RATE = Column("rate", "calls/s")
_REFUSED = Column("refused", "refused")

TABLES = (
    Table(
        "caller.paced",
        "One call, 20,000 a second",
        "Bursts of 20 each millisecond, one thread, while the worker delivers. The timer is the caller's own.",
        (*_COST, _MAX, _LATE, _RATE, _REFUSED),
    ),
    Table(
        "caller.slow",
        "One call, 2,000 a second",
        "Bursts of 2 each millisecond: what a caller pays that does much else, and how late its timer is.",
        (*_COST, _MAX, _LATE, _RATE),
    ),
    Table(
        "caller.busy",
        "One call, 20,000 a second, beside a thread that computes without end",
        "Such a thread holds the interpreter for 5 ms at a time, whoever calls.",
        (*_COST, _MAX, _RATE),
    ),
    Table(
        "caller.threads",
        "One call, 20,000 a second from 8 threads",
        "Each makes 20 calls every 8 milliseconds.",
        (*_COST, _MAX, _RATE),
    ),
    Table(
        "caller.flat",
        "One call after another, one thread",
        f"{_FLAT:,} calls, or what the time allows. Refused: the call itself said that its event was not taken.",
        (*_COST, _MAX, _RATE, _REFUSED),
    ),
    Table(
        "caller.flat8",
        "One call after another, 8 threads",
        f"{_FLAT:,} calls in all, or what the time allows.",
        (*_COST, _MAX, _RATE, _REFUSED),
    ),
)
_WAYS: tuple[dict[str, Any], ...] = (
    {"per_tick": _BURST},
    {"per_tick": _BURST // 10},
    {"per_tick": _BURST, "busy": True},
    {"per_tick": _BURST, "threads": 8},
    {},
    {"threads": 8},
)
"""How each of `TABLES` is measured."""


def run(plan: Plan) -> Iterator[Row]:
    with Sink() as sink:
        for name in _ALL:
            for table, way in zip(TABLES, _WAYS, strict=True):
                plan.tell(f"{name}: {table.title}")
                yield row(table, name, _measured(plan, sink, name, way))
        plan.tell("per_agent: no garbage collection")
        found = _measured(plan, sink, "per_agent", _WAYS[0] | {"collected": False})
        yield row(TABLES[0], "per_agent, no garbage collection", found)


def _measured(plan: Plan, sink: Sink, name: str, way: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
        return measured(
            "caller:measure", name=name, port=sink.port, folder=folder, seconds=plan.seconds, **way
        )


# In the child


def measure(
    *,
    name: str,
    port: int,
    folder: str,
    seconds: float,
    per_tick: int = 0,
    threads: int = 1,
    busy: bool = False,
    collected: bool = True,
) -> dict[str, float]:
    """One row: *per_tick* calls each millisecond, or, where that is 0, one after another."""
    client = made(name, Place(port, Path(folder)))
    for n in range(20 if name in ("sentry", "httpx.post") else 500):
        client.call("acme", f"user-{n:06}", "active-users")
    client.flush()
    callers = [_Caller(client, seconds, per_tick, threads, at) for at in range(threads)]
    stop = threading.Event()
    rival = threading.Thread(target=_compute, args=(stop,))
    if busy:
        rival.start()
    if not collected:
        gc.disable()
    began = time.perf_counter()
    for each in callers[1:]:
        each.start()
    callers[0].run()
    for each in callers[1:]:
        each.join()
    lasted = time.perf_counter() - began
    stop.set()
    if busy:
        rival.join()
    took = [one for each in callers for one in each.took]
    refused = sum(each.refused for each in callers)
    if refused == len(took):
        raise RuntimeError(callers[0].trouble or "every call was refused")
    late = sorted(one for each in callers for one in each.late) or [0.0]
    return quantiles(took) | {
        "late_p99": late[int(len(late) * 0.99)] * 1000,
        "rate": len(took) / lasted,
        "refused": refused,
    }


class _Caller(threading.Thread):
    """One of *threads* that call, the *at*-th. Keeps what each call took, and how late its timer was."""

    def __init__(self, client: Client, seconds: float, per_tick: int, threads: int, at: int) -> None:
        super().__init__()
        self._client = client
        self._seconds = seconds
        self._per_tick = per_tick
        self._tick = threads / 1000
        self._offset = at / 1000
        self._most = _FLAT // threads
        self._users = cycle([f"user-{n:06}" for n in range(5000)])
        self.took: list[int] = []
        self.late: list[float] = []
        self.refused = 0
        self.trouble = ""

    def run(self) -> None:
        now = time.perf_counter
        due = now() + self._offset
        end = due + self._seconds
        if not self._per_tick:
            while now() < end and len(self.took) < self._most:
                self._burst(50)
            return
        while due < end and now() < end:
            self._burst(self._per_tick)
            due += self._tick
            time.sleep(max(0.0, due - now()))
            late = now() - due
            self.late.append(late)
            if late > _BEHIND:
                due = now()

    def _burst(self, count: int) -> None:
        clock, call, took = time.perf_counter_ns, self._client.call, self._client.took
        for _ in range(count):
            user = next(self._users)
            began = clock()
            try:
                answer = call("acme", user, "active-users")
            except Exception as error:  # noqa: BLE001  (of any library)
                self.took.append(clock() - began)
                self.refused += 1
                self.trouble = f"{type(error).__name__}: {error}"
                continue
            self.took.append(clock() - began)
            if not took(answer):
                self.refused += 1


def _compute(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))
