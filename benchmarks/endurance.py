"""Whether memory stays flat: a program records for an hour, its agent delivers to a sidecar, that to its ledger.

    python -m benchmarks.endurance                          an hour, 2,000 events a second
    python -m benchmarks.endurance --minutes 5 --rate 500

Each event has a user of its own, one in ten is a meter event, so that whatever remembers something has more and
more to remember. A line each minute; then whether the last quarter of the time held more memory, descriptors or
threads than the second one (the first is for what is made once). Exit code 0: none of them grew; 1: something did.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks import sidecar
from benchmarks.processes import Server

_TOLERANCE = 1.02
_SLACK = 1.0  # MB, or descriptors, or threads
_TICK = 0.01  # seconds
_SAMPLES = 60  # in all


@dataclass(frozen=True)
class Process:
    """What a process holds at one moment."""

    resident: float  # MB
    descriptors: float
    threads: float

    @classmethod
    def look(cls, pid: int | str) -> "Process":
        place = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        return cls(
            int(status["VmRSS"].split()[0]) * 1024 / 1e6,
            len(list((place / "fd").iterdir())),
            int(status["Threads"]),
        )


def main() -> int:
    chosen = _options()
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="per-agent-endurance-") as folder:
        place = Path(folder)
        (place / "sidecar").mkdir()
        with sidecar.delivering(place / "sidecar") as server:
            looks = _record(place, server, chosen.minutes * 60, chosen.rate)
    grew = False
    for who, some in looks.items():
        for name, before, after in compared(some):
            grows = after > before * _TOLERANCE + _SLACK
            grew |= grows
            words = "GREW" if grows else "flat"
            print(f"{words}  {who}: {name} {before:g} in the second quarter, {after:g} in the last")
    return 1 if grew else 0


def _options() -> argparse.Namespace:
    about = __doc__.splitlines()[0] if __doc__ else ""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=about)
    parser.add_argument("--minutes", type=float, default=60, help="how long it records; default 60")
    parser.add_argument("--rate", type=int, default=2000, help="events a second; default 2000")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="default /var/tmp")
    return parser.parse_args()


def _record(place: Path, server: Server, seconds: float, rate: int) -> dict[str, list[Process]]:
    """Record for *seconds*, *rate* events in each. Returns what the two processes held meanwhile."""
    from per_agent import Agent, Sidecar

    looks: dict[str, list[Process]] = {"program": [], "sidecar": []}
    target = Sidecar(f"unix:{place}/sidecar/s", sidecar.TOKEN)
    print("minutes     events  pending  program: MB  fd threads  sidecar: MB  fd threads", flush=True)
    with Agent(place / "data", [target]) as agent:
        began, count, look_at = time.monotonic(), 0, 0.0
        while (now := time.monotonic() - began) < seconds:
            while count < now * rate:
                _one(agent, count)
                count += 1
            if now >= look_at:
                look_at += seconds / _SAMPLES
                looks["program"].append(Process.look("self"))
                looks["sidecar"].append(Process.look(server.pid))
                _tell(now, count, agent, *(looks[who][-1] for who in looks))
            time.sleep(_TICK)
        if not agent.flush(60):
            raise SystemExit(f"not delivered within 60 s: {agent.status()}")
        books = agent.books()["sidecar"]
    if books.accepted != count or books.delivered != count:
        raise SystemExit(f"{count} events were recorded, and the books say {books}")
    return looks


def _one(agent: Any, n: int) -> None:
    if n % 10:
        agent.add_activity(f"customer-{n % 1000:03}", f"user-{n:09}", "active-users")
    else:
        agent.add_meter_event("api.calls", customer_id=f"customer-{n % 1000:03}", value=n % 7 + 1)


def _tell(now: float, count: int, agent: Any, program: Process, beside: Process) -> None:
    pending = agent.books()["sidecar"].pending
    cells = "".join(f"{one.resident:13.1f} {one.descriptors:3} {one.threads:7}" for one in (program, beside))
    print(f"{now / 60:7.1f} {count:10,} {pending:8,}{cells}", flush=True)


def compared(looks: list[Process]) -> list[tuple[str, float, float]]:
    """Of what a process holds: the name, and the medians of the second and of the last quarter of *looks*."""
    quarter = len(looks) // 4
    second, last = looks[quarter : 2 * quarter], looks[-quarter:]

    def median(some: list[Process], name: str) -> float:
        return round(statistics.median(getattr(one, name) for one in some), 1)

    return [(field.name, median(second, field.name), median(last, field.name)) for field in fields(Process)]


if __name__ == "__main__":
    sys.exit(main())
