"""A sidecar whose courier deadlocks, once, when the file `wedge` is in its folder: to see it started again."""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from per_agent import Agent, Ledger
from per_agent.event import Event
from per_agent.settings import load
from per_agent.sidecar.server import serve


class Deadlocking(Ledger):
    """The ledger; but its courier's thread waits for a lock that nobody will release."""

    def __init__(self, wedge: Path) -> None:
        super().__init__()
        self._wedge = wedge
        self._held = threading.Lock()

    def parking_keys(self, event: Event) -> Sequence[str]:
        if self._wedge.exists():
            self._wedge.unlink()
            self._held.acquire()
            self._held.acquire()
        return super().parking_keys(event)


if __name__ == "__main__":
    settings = load(Path("/etc/per-agent/config.toml"), os.environ)
    assert settings.agent.data_dir is not None
    agent = Agent(settings.agent.data_dir, [Deadlocking(settings.agent.data_dir / "wedge")])
    sys.exit(serve(agent, settings, os.environ))
