"""Lives that tests end by SIGKILL: each a real process that records events, by the name of a function below.

As a program it imports once, and forks a process for each line of JSON on stdin: `{"life": …, "die_at": …,
"data_dir": …, "notes": …, "prefix": …, "url": …}`. It answers how that ended, as `os.waitstatus_to_exitcode` says.

In NOTES, a life writes `+NAME` before it records an event, `=NAME` when the call has returned, and `-NAME` when it
was refused. A name is `PREFIX:KIND:N`: the kind `seat` is an activity of that user, any other a meter event of that meter.
"""

import contextlib
import gc
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from upstream import UpstreamServer
from waiting import until

from per_agent import (
    Agent,
    BufferFull,
    DeliverySettings,
    IntakeSettings,
    Ledger,
    MemoryDestination,
    PaymentKit,
    Per,
    SpoolFull,
    SpoolSettings,
    UpstreamError,
)
from per_agent.destinations import Retry
from per_agent.settings import AgentSettings, Settings
from per_agent.sidecar.token import token_of
from per_agent.spool.salvage import DAMAGED

# Small, so that few events make many commits.
INTAKE = IntakeSettings(buffer_events=500, block_events=4, linger=0.01)
HOARD = IntakeSettings(buffer_events=500, linger=60.0)
SPOOL = SpoolSettings(adopt_interval=0.1)
DELIVERY = DeliverySettings(backoff_initial=0.05, backoff_max=0.2, probe_interval=0.1)
LONG = {"note": "x" * 1000}


class Life:
    """What a life is given, and how it records."""

    def __init__(self, data_dir: str, notes: str, prefix: str, url: str = "") -> None:
        self.data_dir = Path(data_dir)
        self.prefix = prefix
        self.url = url
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = itertools.count()

    def record(self, agent: Agent, kind: str = "seat", metadata: Any = None) -> Any:
        name = f"{self.prefix}:{kind}:{next(self._numbers)}"
        os.write(self._notes, f"+{name}\n".encode())
        try:
            if kind == "seat":
                receipt = agent.add_activity("acme", name, "active")
            else:
                receipt = agent.add_meter_event(
                    kind, customer_id="cus", value=1, identifier=name, metadata=metadata
                )
        except (BufferFull, SpoolFull):
            os.write(self._notes, f"-{name}\n".encode())
            raise
        os.write(self._notes, f"={name}\n".encode())
        return receipt

    def record_some(self, agent: Agent) -> None:
        """Three of each kind, of which one takes several slots of the journal."""
        for n in range(3):
            self.record(agent)
            self.record(agent, "calls", LONG if n == 1 else None)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def down() -> MemoryDestination:
    """A destination under the ledger's name that takes nothing."""
    return MemoryDestination(itertools.repeat(Retry("down")), name="ledger")


def standing(data_dir: Path) -> list[Path]:
    """The spools, and what is left of them; but not what was set aside as damaged."""
    return [path for path in (data_dir / "spools").iterdir() if path.suffix != DAMAGED]


def make_meter(agent: Agent, name: str) -> None:
    with contextlib.suppress(UpstreamError):  # it is there
        agent.meters.create(name=name, event_name=name, unit="calls")


# Lives


def plain(life: Life) -> None:
    """From the first event on an empty folder to an orderly end, with the embedded ledger."""
    agent = Agent(life.data_dir, [Ledger()], intake=INTAKE, spool=SPOOL, delivery=DELIVERY)
    life.record(agent)
    life.record(agent)
    make_meter(agent, "calls")
    for _ in range(4):
        life.record_some(agent)
        agent.flush(20)
    late = f"late-{life.prefix}"
    for n in range(1, 10):  # in blocks of their own, each parked by itself
        life.record(agent, late)
        until(lambda n=n: agent.statistics().destinations["ledger"].parked == n, every=0.002)
    make_meter(agent, late)
    agent.flush(20)
    life.record_some(agent)
    agent.close(20)


def heir(life: Life) -> None:
    """As `plain`, and it goes on until what others left is taken over."""
    agent = Agent(life.data_dir, [Ledger()], intake=INTAKE, spool=SPOOL, delivery=DELIVERY)
    make_meter(agent, "calls")
    life.record_some(agent)
    agent.flush(20)
    until(lambda: len(standing(life.data_dir)) == 1)
    life.record_some(agent)
    agent.close(20)


def upstream(life: Life) -> None:
    """To Per and Payment Kit, which refuses the meter `poison`; `late` is inactive until the end."""
    destinations = [Per("token", url=life.url), PaymentKit(life.url, "key")]
    agent = Agent(life.data_dir, destinations, intake=INTAKE, spool=SPOOL, delivery=DELIVERY)
    for n in range(1, 9):
        life.record_some(agent)
        life.record(agent, "poison")
        life.record(agent, "late")
        until(lambda n=n: agent.statistics().destinations["payment_kit"].parked >= n, every=0.005)
    activate(life.url)
    agent.flush(20)
    agent.close(20)


def activate(url: str) -> None:
    UpstreamServer(Path(), int(url.rpartition(":")[2])).settings(meters={"late": "active"})


def full(life: Life) -> None:
    """More than the spool may hold."""
    spool = SpoolSettings(max_bytes=1_000_000)
    agent = Agent(life.data_dir, [down()], intake=INTAKE, spool=spool, delivery=DELIVERY)
    while True:
        with contextlib.suppress(BufferFull, SpoolFull):
            for _ in range(100):
                life.record(agent, "calls", LONG)
        agent.flush(0.1)


def robbed(life: Life) -> None:
    """Its journal is deleted under it, several times."""
    agent = Agent(life.data_dir, [down()], intake=INTAKE, spool=SPOOL, delivery=DELIVERY)
    while True:
        for n in range(6):
            receipt = life.record(agent, "calls", LONG if n == 1 else None)
        receipt.stored(20)
        for journal in life.data_dir.rglob("*.journal"):
            journal.unlink()


def requeue(life: Life) -> None:
    """Dead letters are sent again by way of the agent that holds them."""
    agent = _holder(life)
    agent.dead_letters.requeue(list(agent.dead_letters))
    agent.flush(20)
    agent.close(20)


def purge(life: Life) -> None:
    """Dead letters are deleted by way of the agent that holds them."""
    agent = _holder(life)
    agent.dead_letters.purge(list(agent.dead_letters))
    agent.close(20)


def _holder(life: Life) -> Agent:
    agent = Agent(life.data_dir, [PaymentKit(life.url, "key")], delivery=DELIVERY)
    agent.start(wait=True)
    return agent


def token(life: Life) -> None:
    token_of(Settings(agent=AgentSettings(data_dir=life.data_dir)))


# What dead processes leave


def abandoned(life: Life) -> None:
    """Three spools, each with events on the disk and more in its journal."""
    agents = [Agent(life.data_dir, [down()], intake=HOARD) for _ in range(3)]
    for agent in agents:
        life.record_some(agent)
        life.record(agent).stored(20)
        life.record_some(agent)
    die()


def loose(life: Life) -> None:
    """A journal that never came into a spool, where no spool can be made."""
    agent = Agent(life.data_dir, [down()], intake=HOARD)
    life.record_some(agent)
    die()


LIVES = (plain, heir, upstream, full, robbed, requeue, purge, token, abandoned, loose)


def main() -> None:
    gc.freeze()  # what is imported is garbage in no life
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            if die_at := asked.pop("die_at"):
                os.environ["PER_AGENT_TEST_DIE_AT"] = die_at
            live = globals()[asked.pop("life")]
            live(Life(**asked))
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
