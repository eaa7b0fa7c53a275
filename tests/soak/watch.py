"""What the processes that live on need of the machine, sampled over the run: memory, threads, open files."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Final

from per_agent.spool.ballast import FILE as BALLAST

SLACK: Final = {"KiB of memory": 48 * 1024, "threads": 12, "open files": 60}
"""What a last quarter may need beyond a first one: adopted spools come and go, and caches fill."""


class Watch(threading.Thread):
    """Samples *processes*, each named, every second; `samples` by process and by need."""

    def __init__(self, processes: Mapping[str, Callable[[], int]]) -> None:
        super().__init__(name="watch", daemon=True)
        self._processes = processes
        self.over = threading.Event()
        self.samples: dict[str, dict[str, list[int]]] = {
            name: {need: [] for need in SLACK} for name in processes
        }

    def run(self) -> None:
        while not self.over.wait(1.0):
            for name, pid in self._processes.items():
                for need, amount in needs(pid()).items():
                    self.samples[name][need].append(amount)


def needs(pid: int) -> dict[str, int]:
    """What process *pid* needs at this moment; nothing when it is gone."""
    try:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        return {
            "KiB of memory": int(status["VmRSS"].split()[0]),
            "threads": int(status["Threads"]),
            "open files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        }
    except (OSError, KeyError):
        return {}


def grown(samples: Mapping[str, Mapping[str, list[int]]]) -> list[str]:
    """What grew beyond bounds from the first quarter of the run to the last, in words."""
    found = []
    for name, each in samples.items():
        for need, values in each.items():
            quarter = len(values) // 4
            if quarter == 0:
                continue
            first, last = median(values[:quarter]), median(values[-quarter:])
            if last > first * 1.25 + SLACK[need]:
                found.append(f"{name} grew from {first:.0f} to {last:.0f} {need}")
    return found


def size(folder: Path) -> int:
    """Bytes of the spools and journals under a data folder, without the ballast that each spool has."""
    places = [folder / "spools", folder / "journals"]
    return sum(
        path.stat().st_size
        for place in places
        if place.exists()
        for path in place.rglob("*")
        if path.is_file() and path.name != BALLAST
    )
