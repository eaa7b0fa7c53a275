"""`Results`: what one run found, on what machine, with which versions; kept as JSON."""

import os
import platform
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import msgspec

from benchmarks.plan import Row

_PACKAGES = (
    "per-agent", "httpx", "uvicorn", "uvloop", "httptools", "diskcache", "msgspec",
    "posthog", "segment-analytics-python", "opentelemetry-sdk", "sentry-sdk", "datadog", "amberflo-metering-python",
    "persist-queue", "litequeue", "httpx-aiohttp",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """One run. *rows* in the order of measuring."""

    date: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    rows: Sequence[Row]

    @classmethod
    def of(cls, rows: Sequence[Row], machine: Mapping[str, Any], **options: Any) -> Self:
        return cls(f"{datetime.now(UTC):%Y-%m-%d %H:%M}Z", machine, _versions(), options, rows)

    @classmethod
    def load(cls, path: Path) -> Self:
        return msgspec.json.decode(path.read_bytes(), type=cls)

    def save(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(self)), indent=1) + b"\n")

    def of_table(self, key: str) -> list[Row]:
        return [each for each in self.rows if each.table == key]

    def figure(self, table: str, subject: str, column: str) -> float | None:
        """One figure, where it was measured. *subject* is what a row's begins with."""
        for each in self.of_table(table):
            if each.subject == subject or (subject.endswith("…") and each.subject.startswith(subject[:-1])):
                return each.figures.get(column)
        return None


def machine() -> dict[str, Any]:
    """What the figures depend on. `load` is what others did on it at the beginning."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "processor": model,
        "processors": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load": round(os.getloadavg()[0], 1),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
