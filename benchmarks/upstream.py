"""Per takes one event in each request: how near the agent comes to what httpx does by itself at the same concurrency.

Requests are counted at the upstream, over some seconds after the first second. The best httpx client is the
yardstick of each row: `Client` in threads, `AsyncClient`, and that on aiohttp's transport.
"""

import asyncio
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.plan import Column, Plan, Row, Table, row
from benchmarks.processes import Sink, events_at, measured

_PATH = "/activities.add?billingId=acme&userId=user-000001&activityTypeId=active-users"
_WARM = 1.0  # seconds

PER = Table(
    "upstream.per",
    "One request for each event, as Per wants it",
    "Requests a second that arrive at an upstream which takes so long to answer, by so many at once.",
    (
        Column("rate", "requests/s"),
        Column("processor", "CPU s per million", 0),
        Column("share", "% of the best httpx", 1),
    ),
)
TABLES = (PER,)

_CLIENTS = ("httpx.Client in threads", "httpx.AsyncClient", "httpx.AsyncClient on aiohttp")
_LATENCIES = (0.001, 0.1)  # seconds
_CONCURRENCIES = (8, 64)


def run(plan: Plan) -> Iterator[Row]:
    for latency in _LATENCIES:
        with Sink(latency) as sink:
            for concurrency in _CONCURRENCIES:
                yield from _side_by_side(
                    plan, sink, concurrency, f"{latency * 1000:.0f} ms, {concurrency} at once"
                )


def _side_by_side(plan: Plan, sink: Sink, concurrency: int, how: str) -> Iterator[Row]:
    best = 0.0
    for name in (*_CLIENTS, "per_agent"):
        plan.tell(f"{name}: {how}")
        with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
            found = measured(
                "upstream:measure",
                name=name,
                port=sink.port,
                folder=folder,
                concurrency=concurrency,
                seconds=plan.seconds,
            )
        if name in _CLIENTS:
            best = max(best, found.get("rate", 0.0))
        elif best and "rate" in found:
            found["share"] = found["rate"] / best * 100
        yield row(PER, f"{name}, {how}", found)


# In the child


def measure(*, name: str, port: int, folder: str, concurrency: int, seconds: float) -> dict[str, float]:
    """One row: the requests that arrive in *seconds*, once *name* is well under way."""
    stop = _STARTERS[name](f"http://127.0.0.1:{port}", Path(folder), concurrency)
    time.sleep(_WARM)
    seen, began, processor = events_at(port), time.perf_counter(), time.process_time()
    time.sleep(seconds)
    arrived, lasted = events_at(port) - seen, time.perf_counter() - began
    spent = time.process_time() - processor
    stop()
    if not arrived:
        raise RuntimeError("no request arrived")
    return {"rate": arrived / lasted, "processor": spent / arrived * 1e6}


def _agent(url: str, folder: Path, concurrency: int) -> Callable[[], object]:
    from per_agent import Agent, Per

    agent = Agent(folder, [Per("token", url=url, concurrency=concurrency)])
    for n in range(50_000):
        agent.add_activity("acme", f"user-{n:06}", "active-users")
    return lambda: agent.close(0.0)


def _threads(url: str, _: Path, concurrency: int) -> Callable[[], object]:
    import httpx

    stop = threading.Event()
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    client = httpx.Client(base_url=url, trust_env=False, limits=limits)

    def send() -> None:
        while not stop.is_set():
            client.get(_PATH)

    senders = [threading.Thread(target=send) for _ in range(concurrency)]
    for each in senders:
        each.start()
    return stop.set


def _loop(transport: Callable[[int], Any]) -> Callable[[str, Path, int], Callable[[], object]]:
    def start(url: str, _: Path, concurrency: int) -> Callable[[], object]:
        import httpx

        stop = threading.Event()

        async def send(get: Callable[[str], Awaitable[object]]) -> None:
            while not stop.is_set():
                await get(_PATH)

        async def serve() -> None:
            async with httpx.AsyncClient(
                base_url=url, trust_env=False, transport=transport(concurrency)
            ) as client:
                await asyncio.gather(*(send(client.get) for _ in range(concurrency)))

        threading.Thread(target=lambda: asyncio.run(serve())).start()
        return stop.set

    return start


def _own(concurrency: int) -> Any:
    import httpx

    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    return httpx.AsyncHTTPTransport(limits=limits)


def _aiohttp(concurrency: int) -> Any:
    import httpx
    from httpx_aiohttp import AiohttpTransport

    return AiohttpTransport(limits=httpx.Limits(max_connections=concurrency))


_STARTERS: dict[str, Callable[[str, Path, int], Callable[[], object]]] = {
    "per_agent": _agent,
    "httpx.Client in threads": _threads,
    "httpx.AsyncClient": _loop(_own),
    "httpx.AsyncClient on aiohttp": _loop(_aiohttp),
}
