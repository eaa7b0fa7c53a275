"""`Upstream`: the sidecar that is the application's upstream; it is started, killed, started again and stopped."""

import signal
import subprocess
import time
from typing import Final

from per_agent.cli.demo.processes import Processes
from per_agent.cli.demo.stage import Stage, last_line
from per_agent.cli.exits import ExitCode, Stop
from per_agent.destinations.http import Upstream as Asked
from per_agent.errors import Unavailable

_READY: Final = 1.0  # seconds for the answer to one look
_STOP: Final = 30.0  # seconds; it stores and delivers first


class Upstream:
    """One sidecar process after the other, in the same place. *stage* says where; *processes* start it."""

    def __init__(self, processes: Processes, stage: Stage) -> None:
        self._processes = processes
        self._stage = stage
        self._asked = Asked("sidecar", stage.url, None, timeout=_READY, concurrency=1)
        self._process: subprocess.Popen[bytes] | None = None
        self._gone_since: float | None = None
        self._gone = 0.0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it; `is_ready` says when it answers."""
        self._process = self._processes.start(
            "run", "--config", str(self._stage.sidecar_config), log=self._stage.sidecar_log
        )

    def is_ready(self) -> bool:
        """Whether it takes events. Raises `Stop` where it has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise self._ended()
        try:
            if self._asked.ask("GET", "/readyz").status != 200:
                return False
        except Unavailable:
            return False
        self._asked.close()
        if self._gone_since is not None:
            self._gone += time.monotonic() - self._gone_since
            self._gone_since = None
        return True

    def kill(self) -> bool:
        """SIGKILL. Whether that is what ended it."""
        assert self._process is not None
        self._process.kill()
        self._gone_since = time.monotonic()
        return self._process.wait() == -signal.SIGKILL

    def stop(self) -> int | None:
        """SIGTERM, and wait until it is done. Its exit code, None where that takes too long."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(_STOP)
        except subprocess.TimeoutExpired:
            return None

    def must_live(self) -> None:
        """Raise `Stop` where it has ended, and was neither killed nor stopped here."""
        if self._process is not None and not self.is_gone and self._process.poll() is not None:
            raise self._ended()

    @property
    def is_gone(self) -> bool:
        """Whether it was killed and does not answer again yet."""
        return self._gone_since is not None

    @property
    def gone(self) -> float:
        """Seconds that it was gone until now, in all."""
        return self._gone + (0.0 if self._gone_since is None else time.monotonic() - self._gone_since)

    def _ended(self) -> Stop:
        assert self._process is not None
        return Stop(
            ExitCode.NO,
            f"the sidecar ended with {self._process.returncode}: {last_line(self._stage.sidecar_log)}",
        )
