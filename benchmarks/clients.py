"""per_agent and its peers under one face: `made(NAME, place)` is a `Client` of a running library, ready to be called.

Each is set up as its documentation says, and records the same thing: which user of which customer did what. Only
where events are counted at the other end (`roomy`) a queue is made larger than its default, so that nothing is
dropped. An import that fails is left to the caller.
"""

import json
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

Call = Callable[[str, str, str], object]
_ROOM = 2_000_000  # events


@dataclass(frozen=True)
class Place:
    """Where a client works: the sink's *port*, and a *folder* for those that keep files."""

    port: int
    folder: Path
    roomy: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Client:
    """*call* records one event; *flush* returns when all are where they should be; *took* reads a call's answer."""

    call: Call
    flush: Callable[[], object] = lambda: None
    took: Callable[[object], bool] = lambda _: True


def made(name: str, place: Place) -> Client:
    logging.disable()  # a line for each event that is dropped would be what is measured
    return CLIENTS[name](place)


# per_agent


def _agent(destination: Callable[[Place], Any], **intake: Any) -> Callable[[Place], Client]:
    def make(place: Place) -> Client:
        from per_agent import Agent, IntakeSettings

        settings = IntakeSettings(**intake, **({"overflow": "block"} if place.roomy else {}))
        agent = Agent(place.folder, [destination(place)], intake=settings)
        agent.start(wait=True)
        return Client(agent.add_activity, lambda: _flush(agent))

    return make


def _flush(agent: Any) -> None:
    if not agent.flush(90):
        raise TimeoutError(f"not delivered within 90 s: {agent.status()['destinations']}")


def _sidecar(place: Place) -> Any:
    from per_agent import Sidecar

    return Sidecar(place.url, "token")


def _ledger(_: Place) -> Any:
    from per_agent import Ledger

    return Ledger()


def _nowhere(_: Place) -> Any:
    return Nowhere()


class Nowhere:
    """An upstream that takes every batch at once and forgets it."""

    name, batch, concurrency, counts_on_arrival = "nowhere", 500, 1, False

    def __init__(self) -> None:
        from per_agent import Activity, MeterEvent
        from per_agent.destinations.outcome import Delivered

        self.takes = frozenset({Activity, MeterEvent})
        self._delivered = Delivered()
        self.count = 0

    def open(self, data_dir: Path) -> None: ...

    def send(self, events: Sequence[Any]) -> Sequence[Any]:
        self.count += len(events)
        return [self._delivered] * len(events)

    def probe(self, key: str) -> bool:  # noqa: ARG002  (the protocol's own parameter)
        return True

    def parking_keys(self, event: Any) -> Sequence[str]:  # noqa: ARG002  (the protocol's own parameter)
        return ()

    def close(self) -> None: ...


def away() -> Any:
    """An upstream that is down for as long as anybody asks."""
    from per_agent import MemoryDestination
    from per_agent.destinations.outcome import Retry

    return MemoryDestination(repeat(Retry("down", after=300)), name="nowhere", batch=500)


def _agent_to_disk(place: Place) -> Client:
    from per_agent import Agent, IntakeSettings

    agent = Agent(place.folder, [away()], intake=IntakeSettings(overflow="block"))
    agent.start(wait=True)
    return Client(agent.add_activity, lambda: agent.add_activity("acme", "user-last", "active").stored(60))


# Peers that deliver in the background


def _posthog(place: Place) -> Client:
    import posthog

    options: dict[str, Any] = {"max_queue_size": _ROOM} if place.roomy else {}
    client = posthog.Posthog("key", host=place.url, **options)

    def call(billing: str, user: str, kind: str) -> object:
        return client.capture(kind, distinct_id=user, properties={"billing": billing})

    return Client(call, client.flush, lambda answer: answer is not None)


def _segment(place: Place) -> Client:
    from segment.analytics import Client as Segment

    options: dict[str, Any] = {"max_queue_size": _ROOM} if place.roomy else {}
    client = Segment("key", host=place.url, **options)

    def call(billing: str, user: str, kind: str) -> object:
        return client.track(user, kind, {"billing": billing})

    return Client(call, client.flush, lambda answer: bool(answer[0]))  # type: ignore[index]


def _opentelemetry(place: Place) -> Client:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    options: dict[str, Any] = {"max_queue_size": _ROOM} if place.roomy else {}
    provider = LoggerProvider()
    exporter = OTLPLogExporter(endpoint=f"{place.url}/v1/logs")
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, **options))
    logger = provider.get_logger("benchmarks")

    def call(billing: str, user: str, kind: str) -> object:
        return logger.emit(timestamp=time.time_ns(), body=kind, attributes={"billing": billing, "user": user})

    return Client(call, provider.force_flush)


def _sentry(place: Place) -> Client:
    import sentry_sdk

    sentry_sdk.init(dsn=f"http://key@127.0.0.1:{place.port}/1")

    def call(billing: str, user: str, kind: str) -> object:
        return sentry_sdk.capture_event({"message": kind, "user": {"id": user}, "tags": {"billing": billing}})

    return Client(call, lambda: sentry_sdk.flush(60))


def _datadog(place: Place) -> Client:
    from datadog.dogstatsd import DogStatsd

    client = DogStatsd(host="127.0.0.1", port=place.port)

    def call(billing: str, user: str, kind: str) -> object:
        return client.increment(kind, tags=[f"billing:{billing}", f"user:{user}"])

    return Client(call, client.flush)


def _amberflo(place: Place) -> Client:
    from metering.ingest import create_ingest_client
    from metering.session.ingest_session import IngestSession

    IngestSession.root_url = place.url
    client = create_ingest_client(api_key="key", **({"max_queue_size": _ROOM} if place.roomy else {}))

    def call(billing: str, user: str, kind: str) -> object:
        return client.meter(kind, 1, time.time_ns() // 1_000_000, billing, {"user": user})

    return Client(call, client.flush, bool)


# Queues on the disk: nothing is delivered, the call alone is measured


def _persist_queue(place: Place) -> Client:
    from persistqueue import SQLiteAckQueue

    events = SQLiteAckQueue(str(place.folder), multithreading=True)
    return Client(lambda billing, user, kind: events.put({"billing": billing, "user": user, "kind": kind}))


def _litequeue(place: Place) -> Client:
    from litequeue import LiteQueue

    events = LiteQueue(str(place.folder / "queue.db"))
    return Client(
        lambda billing, user, kind: events.put(json.dumps({"billing": billing, "user": user, "kind": kind}))
    )


def _diskcache(place: Place) -> Client:
    import diskcache

    events = diskcache.Deque(directory=str(place.folder))
    return Client(lambda billing, user, kind: events.append({"billing": billing, "user": user, "kind": kind}))


def _sqlite(synchronous: str, group: int) -> Callable[[Place], Client]:
    """The least that a queue on SQLite could do: an insert, and a commit after every *group*."""

    def make(place: Place) -> Client:
        database = sqlite3.connect(place.folder / "events.db", isolation_level=None)
        database.execute("PRAGMA journal_mode=wal")
        database.execute(f"PRAGMA synchronous={synchronous}")
        database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, event TEXT)")
        count = 0

        def call(billing: str, user: str, kind: str) -> object:
            nonlocal count
            if not database.in_transaction:
                database.execute("BEGIN")
            event = json.dumps({"billing": billing, "user": user, "kind": kind, "at": time.time()})
            database.execute("INSERT INTO events (event) VALUES (?)", (event,))
            count += 1
            if count % group == 0:
                database.execute("COMMIT")
            return None

        return Client(call, lambda: database.in_transaction and database.execute("COMMIT"))

    return make


# What people write themselves


def _queue(place: Place) -> Client:
    """A queue in memory, and a thread that posts what is in it, a hundred at a time."""
    import httpx

    waiting: queue.Queue[dict[str, str]] = queue.Queue()

    def deliver() -> None:
        client = httpx.Client(trust_env=False)
        while True:
            batch = [waiting.get()]
            while len(batch) < 100 and not waiting.empty():
                batch.append(waiting.get_nowait())
            client.post(f"{place.url}/batch", json=batch)
            for _ in batch:
                waiting.task_done()

    threading.Thread(target=deliver, daemon=True).start()
    return Client(
        lambda billing, user, kind: waiting.put({"billing": billing, "user": user, "kind": kind}),
        waiting.join,
    )


def _httpx(place: Place) -> Client:
    import httpx

    return Client(
        lambda billing, user, kind: httpx.post(
            place.url, json={"billing": billing, "user": user, "kind": kind}
        )
    )


def _nothing(_: Place) -> Client:
    return Client(lambda *_: None)


CLIENTS: dict[str, Callable[[Place], Client]] = {
    "per_agent": _agent(_sidecar),
    "per_agent, no journal": _agent(_sidecar, journal=False),
    "per_agent, embedded ledger": _agent(_ledger),
    "per_agent, to nowhere": _agent(_nowhere),
    "per_agent, to the disk": _agent_to_disk,
    "posthog": _posthog,
    "segment": _segment,
    "opentelemetry logs": _opentelemetry,
    "sentry": _sentry,
    "amberflo": _amberflo,
    "datadog statsd": _datadog,
    "persist-queue": _persist_queue,
    "litequeue": _litequeue,
    "diskcache.Deque": _diskcache,
    "SQLite, 500 a commit, FULL": _sqlite("FULL", 500),
    "SQLite, one a commit, NORMAL": _sqlite("NORMAL", 1),
    "queue.Queue": _queue,
    "httpx.post": _httpx,
    "nothing": _nothing,
}
