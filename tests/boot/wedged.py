"""A sidecar whose courier deadlocks, once, when the file `wedge` is in its folder: to see it started again."""

import os
import sys
import threading
from pathlib import Path

from per_agent import Agent, Ledger
from per_agent.settings import load
from per_agent.sidecar.server import serve


class Deadlocking(Ledger):
    """The ledger; but the courier's thread, when it asks how much may be sent at once, waits for ever for a lock."""

    def __init__(self, wedge: Path) -> None:
        super().__init__()
        self._wedge = wedge
        self._held = threading.Lock()

    @property
    def batch(self) -> int:
        if self._wedge.exists():
            self._wedge.unlink()
            self._held.acquire()
            self._held.acquire()
        return 100


if __name__ == "__main__":
    settings = load(Path("/etc/per-agent/config.toml"), os.environ)
    assert settings.agent.data_dir is not None
    agent = Agent(settings.agent.data_dir, [Deadlocking(settings.agent.data_dir / "wedge")])
    sys.exit(serve(agent, settings, os.environ))
