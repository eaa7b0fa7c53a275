"""What it costs a program to have per_agent, or a peer, in it: import, memory, threads, idling, and the way out.

Import times are medians of fresh interpreters. The ways out are of a program that ends without closing anything,
with an upstream that takes requests and never answers, or that refuses connections; less what Python itself takes.
"""

import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.clients import made
from benchmarks.clients.client import Client, Place
from benchmarks.measure import resident
from benchmarks.plan import Column, Plan, Row, Table, row
from benchmarks.processes import Sink, measured

_FRESH = 7  # interpreters
_PENDING = 50  # events
_PATIENCE = 10.0  # seconds for a way out; some have no end
_KEPT: list[Client] = []
"""What a program holds until it ends."""

IMPORT = Table(
    "guest.import",
    "Import",
    f"Median of {_FRESH} fresh interpreters.",
    (
        Column("took", "ms", 1),
        Column("processor", "CPU ms", 1),
        Column("memory", "MB added", 1),
        Column("modules", "modules"),
    ),
)
HOST = Table(
    "guest.host",
    "A guest in a program",
    "With one event delivered, then nothing to do; memory with everything that was imported. First is from the "
    "import to the return of the first call.",
    (
        Column("first", "first event ms", 1),
        Column("memory", "MB added", 1),
        Column("threads", "threads"),
        Column("idle", "idle CPU %", 2),
    ),
)
EXIT = Table(
    "guest.exit",
    "The way out",
    f"From the program's last line to the end of its process. Pending: {_PENDING} events, recorded just before; with "
    f"nothing pending, the shortest of three. After {_PATIENCE * 1000:,.0f} ms it was killed.",
    (
        Column("nothing", "nothing pending, upstream away ms"),
        Column("refusing", "pending, upstream away ms"),
        Column("silent", "pending, upstream silent ms"),
    ),
)
TABLES = (IMPORT, HOST, EXIT)

_MODULES = {
    "per_agent": "per_agent",
    "httpx": "httpx",
    "posthog": "posthog",
    "segment": "segment.analytics",
    "opentelemetry logs": "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "sentry": "sentry_sdk",
    "amberflo": "metering.ingest",
    "datadog statsd": "datadog.dogstatsd",
}
_GUESTS = (
    "per_agent",
    "posthog",
    "segment",
    "opentelemetry logs",
    "sentry",
    "amberflo",
    "datadog statsd",
    "nothing",
)


def run(plan: Plan) -> Iterator[Row]:
    for name, module in _MODULES.items():
        plan.tell(f"{name}: import")
        measured("imported:imported", module=module)  # compiles it
        yield row(
            IMPORT, name, _median([measured("imported:imported", module=module) for _ in range(_FRESH)])
        )
    with Sink() as sink, Sink(None) as silent, socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        for name in _GUESTS:
            plan.tell(f"{name}: idling")
            yield row(HOST, name, _of(plan, "hosted", name=name, port=sink.port, seconds=plan.seconds * 2))
        base: dict[str, float] = {}
        for name in reversed(_GUESTS):
            plan.tell(f"{name}: the way out")
            port = refusing.getsockname()[1]
            ways = {
                "nothing": {"port": port, "pending": 0},
                "refusing": {"port": port, "pending": _PENDING},
                "silent": {"port": silent.port, "pending": _PENDING},
            }
            found = {way: _way_out(plan, name, **how) for way, how in ways.items()}
            if "not_installed" in found["nothing"]:
                yield row(EXIT, name, found["nothing"])
                continue
            took = {way: one.get("exit_ms", _PATIENCE * 1000) for way, one in found.items()}
            base = base or took
            yield row(EXIT, name, {way: max(0.0, took[way] - base[way]) for way in took})


def _of(plan: Plan, what: str, **arguments: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
        return measured(f"guest:{what}", folder=folder, **arguments)


def _way_out(plan: Plan, name: str, *, port: int, pending: int) -> dict[str, Any]:
    """The shortest of three, where nothing holds it up but the machine."""
    tries = 1 if pending else 3
    found = [
        _of(plan, "left", name=name, port=port, pending=pending, timeout=_PATIENCE) for _ in range(tries)
    ]
    return min(found, key=lambda one: one.get("exit_ms", _PATIENCE * 1000))


def _median(found: list[dict[str, Any]]) -> dict[str, Any]:
    if "took" not in found[0]:
        return found[0]
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


# In the child


def hosted(*, name: str, folder: str, port: int, seconds: float) -> dict[str, float]:
    """One event is delivered, and then nothing happens for *seconds*."""
    before, began = resident(), time.perf_counter()
    client = made(name, Place(port, Path(folder)))
    client.call("acme", "user-000001", "active-users")
    first = time.perf_counter() - began
    client.flush()
    time.sleep(1.0)
    idle, since = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    idle, lasted = time.process_time() - idle, time.perf_counter() - since
    return {
        "first": first * 1000,
        "memory": resident() - before,
        "threads": threading.active_count() - 1,
        "idle": idle / lasted * 100,
    }


def left(*, name: str, folder: str, port: int, pending: int) -> dict[str, float]:
    """The program records *pending* events and comes to its end; the parent sees how long that takes."""
    client = made(name, Place(port, Path(folder)))
    _KEPT.append(client)
    for n in range(pending):
        client.call("acme", f"user-{n:06}", "active-users")
    return {}
