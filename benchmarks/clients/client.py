"""`Client`: the one face of all that is measured, and `Place`, where it works."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Call = Callable[[str, str, str], object]
ROOM = 2_000_000
"""Events that a queue takes where nothing may be dropped."""


@dataclass(frozen=True)
class Place:
    """Where a client works: the sink's *port*, and a *folder* for those that keep files."""

    port: int
    folder: Path
    roomy: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Client:
    """*call* records one event; *flush* returns when all are where they should be; *took* reads a call's answer."""

    call: Call
    flush: Callable[[], object] = lambda: None
    took: Callable[[object], bool] = lambda _: True
