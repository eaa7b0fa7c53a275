"""A process that records planned events through an `Agent`, and notes in a mapped file which calls returned.

`python tests/soak producer TASK`, TASK being a `Task` in JSON. Thread N notes at 8 * N how many of its calls have
returned. On stdin: `calm` ends the flood (one slow thread goes on, without poison), `leave` closes the agent in
haste, `quit` delivers first; the end of stdin is the end of the process.
"""

import itertools
import json
import mmap
import os
import random
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from per_agent import Agent, DeliverySettings, IntakeSettings, Ledger, PaymentKit, Per, Sidecar, SpoolSettings
from soak import plan

DELIVERY = DeliverySettings(
    backoff_initial=0.1, backoff_max=1.0, retry_after_max=2.0, probe_interval=0.5, window_blocks=4
)
TIMEOUT = 1.5  # seconds for a request


@dataclass(frozen=True)
class Task:
    """What one process is to do. *upstream* is the oracle's URL, or `unix:` and a sidecar's socket."""

    seed: int
    data_dir: str
    notes: str
    prefix: str
    threads: int
    rate: float  # events a second of one thread
    upstream: str
    linger: float = 0.05  # seconds: the longer, the more is in the journal alone when death comes

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def agent_for(data_dir: str | Path, upstream: str, linger: float = 0.05) -> Agent:
    """An agent as all producers have it."""
    destinations: list[Any]
    if upstream.startswith("unix:"):
        destinations = [Sidecar(upstream, timeout=3.0)]
    else:
        destinations = [
            Per("token", url=upstream, timeout=TIMEOUT),
            PaymentKit(upstream, "key", timeout=TIMEOUT),
            Ledger(),
        ]
    return Agent(
        data_dir,
        destinations,
        intake=IntakeSettings(overflow="block", buffer_events=10_000, linger=linger),
        spool=SpoolSettings(adopt_interval=1.0),
        delivery=DELIVERY,
    )


def add(agent: Agent, planned: plan.Planned) -> None:
    """Record *planned*."""
    fields = planned.fields
    if planned.kind == "activity":
        agent.add_activity(fields["billing"], planned.name, fields["type"], at=planned.at)
        return
    agent.add_meter_event(
        fields["event_name"],
        customer_id=fields["customer"],
        subscription_id=fields["subscription"],
        value=fields["value"],
        identifier=planned.identifier,
        timestamp=planned.at,
        metadata=fields["metadata"],
        source_data=fields["source_data"],
        livemode=fields["livemode"],
    )


class Producer:
    """Its threads and its notes."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.agent = agent_for(task.data_dir, task.upstream, task.linger)
        self._flood_over, self._over = threading.Event(), threading.Event()
        with Path(task.notes).open("r+b") as file:
            self._returned = memoryview(mmap.mmap(file.fileno(), 8 * plan.THREADS)).cast(
                "Q"
            )  # written in one step
        self._flood = [threading.Thread(target=self._record, args=(n,)) for n in range(task.threads)]
        self._calm = threading.Thread(target=self._record, args=(plan.CALM,))

    def _record(self, thread: int) -> None:
        task = self.task
        over = self._over if thread >= plan.CALM else self._flood_over
        draw = random.Random(f"{task.seed}/{task.prefix}/{thread}")
        burst = 0
        for n in itertools.count():
            if burst == 0 and over.wait(draw.expovariate(5.0 if thread >= plan.CALM else task.rate)):
                return
            if burst == 0 and draw.random() < 0.005:
                burst = 50
            burst = max(0, burst - 1)
            add(self.agent, plan.event(task.seed, f"{task.prefix}.{thread}.{n}"))
            self._returned[thread] = n + 1

    def run(self) -> None:
        for thread in self._flood:
            thread.start()
        for line in sys.stdin:
            match line.strip():
                case "calm":
                    self._flood_over.set()
                    self._calm.start()
                case "leave":
                    self._end(0.5)
                    return
                case "quit":
                    self._end(10.0)
                    return
        os._exit(1)  # who started it is gone

    def _end(self, seconds: float) -> None:
        self._flood_over.set()
        self._over.set()
        for thread in [*self._flood, self._calm]:
            if thread.ident is not None:
                thread.join()
        self.agent.close(timeout=seconds)


def main(task: str) -> None:
    Producer(Task(**json.loads(task))).run()
