"""Many clients at once, an upstream that comes and goes: what was accepted is in the ledger, once."""

import asyncio
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest
from sidecar_process import SidecarProcess

from per_agent import Ledger

CLIENTS = 100
SECONDS = 60.0
PACE = 0.05  # seconds between two requests of one client
METER = "storm.tokens"


@dataclass
class Tally:
    """What the clients were told."""

    activities: list[str] = field(default_factory=list)
    meter_events: dict[str, Decimal] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0


class Client:
    """One keep-alive connection, and requests of all three wire forms on it."""

    def __init__(self, name: str, front: SidecarProcess, tally: Tally, draw: random.Random) -> None:
        self.name = name
        self.front = front
        self.tally = tally
        self.draw = draw
        self.sent = 0

    async def run(self, until: float) -> None:
        if self.draw.random() < 0.5:
            reader, writer = await asyncio.open_unix_connection(str(self.front.socket))
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.front.port)
        try:
            while time.monotonic() < until:
                await self.once(reader, writer)
                await asyncio.sleep(self.draw.uniform(0, 2 * PACE))
        except (ConnectionError, asyncio.IncompleteReadError):
            self.tally.broken += 1
        finally:
            writer.close()

    async def once(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sent += 1
        name = f"{self.name}-{self.sent}"
        form = self.draw.randrange(3)
        value = Decimal(self.draw.randrange(1, 10_000)) / 1000
        event = {"event_name": METER, "identifier": name}
        payload = {"customer_id": self.name, "value": str(value)}
        if form == 0:
            path, body = f"/activities.add?billingId=acme&userId={name}&activityTypeId=active-users", ""
        elif form == 1:
            path, body = "/api/meter-events?livemode=true", json.dumps({**event, "payload": payload})
        else:
            wait = "?wait=stored" if self.draw.random() < 0.2 else ""
            path, body = f"/v1/events{wait}", json.dumps({**event, **payload})
        status, answer = await self.ask(reader, writer, path, body)
        self.tally.statuses[status] += 1
        if status not in (200, 202):
            return
        if form == 0:
            self.tally.activities.append(answer["result"]["transactionId"])
        else:
            self.tally.meter_events[name] = value

    async def ask(self, reader, writer, path: str, body: str):
        method = "POST" if body else "GET"
        writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {self.front.token}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
        content = await reader.readexactly(length)
        return int(head.split(" ")[1]), json.loads(content)


async def flap(upstream: SidecarProcess, draw: random.Random, until: float) -> int:
    """Take the upstream away and bring it back, again and again. Returns how often."""
    times = 0
    while time.monotonic() < until - 5:
        await asyncio.sleep(draw.uniform(2, 6))
        if draw.random() < 0.5:
            upstream.kill()
        else:
            await asyncio.to_thread(upstream.stop)
        await asyncio.sleep(draw.uniform(0.5, 4))
        await asyncio.to_thread(upstream.start)
        times += 1
    return times


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hundred_clients_for_a_minute_while_the_upstream_flaps(tmp_path: Path) -> None:
    seed = int(os.environ.get("PER_AGENT_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed} (set PER_AGENT_TEST_SEED to repeat)")
    draw = random.Random(seed)
    tally = Tally()
    upstream = SidecarProcess(tmp_path / "upstream")
    front = SidecarProcess(
        tmp_path / "front",
        f'[delivery]\nbackoff_max = 1.0\n[destinations.up]\ntype = "sidecar"\nurl = "unix:{upstream.socket}"\n',
    )

    async def storm() -> int:
        until = time.monotonic() + SECONDS
        flapping = asyncio.create_task(flap(upstream, draw, until))
        clients = [Client(f"c{n}", front, tally, random.Random(draw.random())) for n in range(CLIENTS)]
        await asyncio.gather(*(client.run(until) for client in clients))
        return await flapping

    with upstream, front:
        with upstream.client() as asked:
            made = asked.post("/api/meters", json={"name": "T", "event_name": METER, "unit": "tokens"})
            assert made.status_code < 300, made.text
        outages = asyncio.run(storm())
        assert outages >= 3
        books = front.drained("up", timeout=120)
        upstream.drained("ledger", timeout=120)
    assert set(tally.statuses) <= {200, 202, 503}, tally.statuses
    assert tally.broken == 0, "keep-alive connections stay"
    accepted = len(tally.activities) + len(tally.meter_events)
    assert accepted > 10 * CLIENTS
    assert (books["delivered"], books["dead"], books["dropped"]) == (accepted, 0, 0)
    ledger = Ledger()
    ledger.open(upstream.data_dir)
    try:
        everything = [*tally.activities, *tally.meter_events]
        assert ledger.counted(everything) == set(everything)
        assert ledger.totals() == (len(tally.activities), len(tally.meter_events))
        meter = ledger.meters.retrieve(METER)
        stats = ledger.meter_events.stats(meter_id=meter["id"], start=0, end=2**40)
        total = sum(Decimal(each["total_value"]) for each in stats["list"])
        assert total == sum(tally.meter_events.values())
    finally:
        ledger.close()
    assert "Traceback" not in front.said()
