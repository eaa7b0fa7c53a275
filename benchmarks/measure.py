"""What all areas measure with: quantiles, processor time, memory, and bytes on the disk."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self


def quantiles(took: Sequence[int]) -> dict[str, float]:
    """*took*, in nanoseconds, as microseconds in order of size."""
    ordered = sorted(took)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000

    return {"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1)}


class Spent:
    """The time and the processor time of this process, all threads, between `with` and its end."""

    def __enter__(self) -> Self:
        self.seconds, self.processor = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter()
        self.processor += time.process_time()

    def per(self, events: int) -> dict[str, float]:
        """What *events* of them make: a rate, and processor seconds for a million."""
        return {"rate": events / self.seconds, "processor": self.processor / max(1, events) * 1e6}


def resident() -> float:
    """Megabytes of memory that this process holds now."""
    return _status("VmRSS")


def peak() -> float:
    """The most that it ever held, in megabytes."""
    return _status("VmHWM")


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def written() -> int:
    """Bytes that this process caused to be written to disks until now."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


def on_disk(folder: Path, but: str = "journal") -> int:
    """Bytes that the files in *folder* take, less those with *but* in the name: a journal's size is fixed."""
    files = [path for path in folder.rglob("*") if path.is_file() and but not in path.name]
    return sum(path.stat().st_blocks * 512 for path in files)
