"""Where a command looks: the running sidecar, or the data folder itself where none runs."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from per_agent.agent import Agent
from per_agent.agent.letters import Choice
from per_agent.agent.overview import overview
from per_agent.cli.call import Call
from per_agent.cli.finding import found, named_sidecar
from per_agent.cli.sidecar import Sidecar
from per_agent.settings import LedgerSettings
from per_agent.spool import DeadLetters, FiledLetter

Document = dict[str, Any]
_NOWHERE: Final = "/dev/null"  # the data folder of an agent that has nothing to keep


class Folder:
    """The data folder, looked into and changed beside whoever runs on it. Its documents are the sidecar's.

    Raises `SpoolError` when a spool cannot be read, or the process that holds it does not answer.
    """

    def __init__(self, data_dir: Path, configured: Sequence[str] | None) -> None:
        self.data_dir = data_dir
        self._configured = configured

    @property
    def name(self) -> str:
        return str(self.data_dir)

    def status(self) -> Document:
        return overview(self.data_dir, self._configured).as_dict(time.time())

    def books(self) -> Document:
        return overview(self.data_dir, self._configured).books_as_dict()

    def letters(self, choice: Choice) -> Iterator[Document]:
        return (letter.as_dict() for letter in choice.of(self.data_dir))

    def count(self, choice: Choice) -> int:
        return sum(1 for _ in choice.of(self.data_dir))

    def filed(self, choice: Choice, chosen: Sequence[Document]) -> list[FiledLetter]:
        """Where those of *chosen* lie that are still there; *chosen* are letters that *choice* gave."""
        places = {(each["spool"], each["destination"], each["number"]) for each in chosen}
        return [letter.filed for letter in choice.of(self.data_dir) if letter.place in places]

    def purge(self, choice: Choice, chosen: Sequence[Document]) -> int:
        return DeadLetters(self.data_dir).purge(self.filed(choice, chosen))


@contextmanager
def source(call: Call) -> Iterator[Sidecar | Folder]:
    """Where *call* looks. Raises as `found` and `Call.place` do."""
    sidecar = found(call)
    if sidecar is None:
        yield Folder(*call.place())
        return
    try:
        yield sidecar
    finally:
        sidecar.close()


@contextmanager
def upstreams(call: Call) -> Iterator[Agent]:
    """An agent for passthrough calls: nothing is started, and connections are given back at the end.

    They go through a sidecar that was named. They also go through one that was found where the settings at hand
    name no upstream: it has the credentials.
    """
    sidecar = named_sidecar(call)
    if sidecar is None:
        settings = call.settings()
        if all(isinstance(each, LedgerSettings) for each in settings.destinations.values()):
            sidecar = found(call)
    agent = Agent.from_settings(settings) if sidecar is None else Agent(_NOWHERE, [sidecar.destination])
    try:
        yield agent
    finally:
        for destination in agent.destinations:
            destination.close()
