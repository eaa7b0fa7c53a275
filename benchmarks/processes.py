"""The processes of a benchmark: children that measure, the sink that they talk to, and which processor is whose."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
_CPUS = sorted(os.sched_getaffinity(0))
SERVERS = _CPUS[0]
"""The processor of what is talked to."""
CLIENTS = _CPUS[-1]
"""The processor of what is measured; with a single one, figures are of both together."""

_ENVIRON = {
    name: value
    for name, value in os.environ.items()
    # An installed package is compiled already: what compiling takes is not its import's.
    if not name.startswith(("PER_", "PAYMENT_KIT_", "OTEL_", "PYTHONDONTWRITEBYTECODE"))
} | {"PYTHONPATH": str(ROOT)}


def measured(function: str, *, timeout: float = 180.0, **arguments: Any) -> dict[str, Any]:
    """What *function* (`module:name`) returns in a process of its own. Never raises for what happens there.

    `failed` holds the last words of one that failed or took more than *timeout* seconds; `exit_ms` how long a
    process took from the end of its program to its own.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.child", function, json.dumps(arguments)],
        cwd=ROOT,
        env=_ENVIRON,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.sched_setaffinity(child.pid, {CLIENTS})
    try:
        said, errors = child.communicate(timeout=timeout)
        ended = time.monotonic()
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {timeout:.0f} s"}
    finally:
        if child.returncode is None:
            child.kill()
            child.communicate()
    if child.returncode != 0:
        return {"failed": (errors.strip().splitlines() or [f"exit code {child.returncode}"])[-1][:200]}
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return found | {"exit_ms": (ended - found.pop("ended_at")) * 1000}


class Server:
    """A server process on the other processor, which says on its first line where it listens."""

    def __init__(self, *command: str) -> None:
        self._command = command

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *self._command],
            cwd=ROOT,
            env=_ENVIRON,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        os.sched_setaffinity(self._process.pid, {SERVERS})
        assert self._process.stdout is not None
        self.said = self._process.stdout.readline()
        if not self.said:
            raise RuntimeError(f"it did not start: {' '.join(self._command)}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # what it holds is nobody's
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def processor(self) -> float:
        """Seconds of processor time that it has taken, all threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Sink(Server):
    """An HTTP server that takes everything, after *delay* seconds; None: it takes requests and never answers."""

    def __init__(self, delay: float | None = 0.0) -> None:
        super().__init__("benchmarks.sink", "never" if delay is None else str(delay))

    @property
    def port(self) -> int:
        return int(self.said)

    def events(self) -> int:
        """How many events it has seen."""
        return events_at(self.port)


def events_at(port: int) -> int:
    """How many events the sink at *port* has seen."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/seen", timeout=10) as answer:
        return int(answer.read())
