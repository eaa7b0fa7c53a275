"""Queues, from which somebody else would have to deliver, and what people write themselves."""

import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable

from benchmarks.clients.client import Client, Place

# On the disk


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


MAKERS: dict[str, Callable[[Place], Client]] = {
    "persist-queue": _persist_queue,
    "litequeue": _litequeue,
    "diskcache.Deque": _diskcache,
    "SQLite, 500 a commit, FULL": _sqlite("FULL", 500),
    "SQLite, one a commit, NORMAL": _sqlite("NORMAL", 1),
    "queue.Queue": _queue,
    "httpx.post": _httpx,
    "nothing": _nothing,
}
