"""`Processes`: those that the demo starts, none of which outlives it, however it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

import per_agent

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OURS: Final = ("PER_", "PAYMENT_KIT_", "LISTEN_", "NOTIFY_", "WATCHDOG_", "JOURNAL_")
"""The demo is not what the environment configures, nor a service of the service manager."""
_FOLDERS: Final = ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY")
_REAPED: Final = 10.0  # seconds that the kernel may take to end a killed process


class Processes:
    """Starts commands of this very program. At the end of the `with` block they are killed, all of them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        # The child must run the package that is running here, wherever that is and wherever it is called from.
        path = [str(Path(per_agent.__file__).parents[1]), environ.get("PYTHONPATH", "")]
        self._environ = {
            name: value
            for name, value in environ.items()
            if not name.startswith(_OURS) and name not in _FOLDERS
        } | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        self._started: list[subprocess.Popen[bytes]] = []
        self._starting = False
        self._told: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._signalled) for number in _ENDING}
        return self

    def start(self, *words: str, log: Path) -> "subprocess.Popen[bytes]":
        """Start `per-agent` with *words*. What it prints is added to *log*."""
        self._starting = True  # a signal must not come between the process and our knowing of it
        try:
            with log.open("ab") as file:
                process = subprocess.Popen(  # noqa: S603  (ourselves)
                    [sys.executable, "-P", "-m", "per_agent.cli", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=self._environ,
                )
            self._started.append(process)
        finally:
            self._starting = False
        if self._told is not None:
            self._end(self._told)
        return process

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number in _ENDING:  # whoever presses Ctrl-C twice must not leave half of them behind
            signal.signal(number, signal.SIG_IGN)
        for process in self._started:
            process.kill()
        for process in self._started:
            process.wait(_REAPED)
        for changed, handler in self._before.items():
            signal.signal(changed, handler)  # type: ignore[arg-type]  # it is what signal() gave

    def _signalled(self, number: int, _: FrameType | None) -> None:
        self._told = number
        if not self._starting:
            self._end(number)

    def _end(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
