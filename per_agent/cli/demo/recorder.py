"""The process that records the demo's events, and is killed while it does; and the notes that it takes."""

import os
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import typer

from per_agent.agent import Agent
from per_agent.cli.call import Call
from per_agent.cli.demo.plan import Plan, identifier
from per_agent.event import Receipt

COMMAND: Final = "demo-recorder"
_BATCH: Final = 20  # events between two breaths
_UNDER_WAY: Final = 40  # receipts not yet stored: those are what the kill is about
_DELIVER: Final = 120.0  # seconds at the end
_BREATH: Final = 0.5  # seconds of it between two notes


class Notes:
    """The identifiers of the events whose receipts were *stored*, one a line, in a file; beside it, the attempts.

    It is the demo's own memory of what it was promised, apart from the program that made the promise.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0  # bytes, in which `_counted` lines end
        self._counted = 0

    def read(self) -> list[str]:
        """What was noted. A last line that the kill cut short was not."""
        try:
            return self._file.read_text(encoding="ascii").split("\n")[:-1]
        except FileNotFoundError:
            return []

    def count(self) -> int:
        """How much was noted. Reads what is new since the last call only."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return 0
        if whole:
            self._read += len(whole) + 1
            self._counted += whole.count(b"\n") + 1
        return self._counted

    def mend(self) -> None:
        """Take away a last line that the kill cut short."""
        if self._file.exists():
            whole = self._file.read_bytes().rpartition(b"\n")
            os.truncate(self._file, len(whole[0]) + len(whole[1]))

    def add(self, receipts: Sequence[Receipt]) -> None:
        """Note *receipts*, which must be stored."""
        with self._file.open("a", encoding="ascii") as file:
            file.write("".join(f"{receipt.id}\n" for receipt in receipts))

    def retried(self, attempts: int) -> None:
        """Note how many *attempts* of this process failed until now, and are repeated."""
        mine = self._file.with_name(f"{self._file.stem}-retries-{os.getpid()}")
        fresh = mine.with_suffix(".new")
        fresh.write_text(f"{attempts}\n", encoding="ascii")
        fresh.replace(mine)  # the kill leaves the old number or the new one

    def retries(self) -> int:
        """The attempts that failed and were repeated, of all processes."""
        found = self._file.parent.glob(f"{self._file.stem}-retries-*")
        return sum(int(each.read_text(encoding="ascii")) for each in found if each.suffix != ".new")


def record(
    call: Call,
    *,
    events: Annotated[int, typer.Option()],
    seed: Annotated[int, typer.Option()],
    begin: Annotated[float, typer.Option()],
    seconds: Annotated[float, typer.Option()],
    notes: Annotated[Path, typer.Option()],
) -> None:
    """Record what the notes do not say is stored yet, evenly over the given seconds; then deliver it all."""
    kept = Notes(notes)
    kept.mend()
    done = set(kept.read())
    plan = Plan(seed, events, begin)
    left = (each for each in plan.records() if identifier(each) not in done)
    pause = seconds * _BATCH / max(1, events)
    agent = Agent.from_settings(call.settings())
    agent.start(wait=True)
    under_way: deque[Receipt] = deque()
    while batch := list(islice(left, _BATCH)):
        began = time.monotonic()
        under_way.extend(agent.add_record(each) for each in batch)
        _note_stored(kept, under_way, _UNDER_WAY)
        kept.retried(_retries(agent))
        time.sleep(max(0.0, pause - (time.monotonic() - began)))
    _note_stored(kept, under_way, 0)
    deadline = time.monotonic() + _DELIVER
    while not agent.flush(_BREATH) and time.monotonic() < deadline:
        kept.retried(_retries(agent))
    kept.retried(_retries(agent))
    agent.close()


def _note_stored(notes: Notes, under_way: deque[Receipt], keep: int) -> None:
    """Note the oldest of *under_way* as they are stored, until no more than *keep* are left."""
    stored = []
    while len(under_way) > keep:
        under_way[0].stored(None)
        stored.append(under_way.popleft())
    if stored:
        notes.add(stored)


def _retries(agent: Agent) -> int:
    return sum(each["retries"] for each in agent.status()["destinations"].values())


def words(plan: Plan, config: Path, seconds: float, notes: Path) -> list[str]:
    """The command line of a recorder of *plan*, with the agent that *config* describes."""
    arguments = {
        "--config": str(config),
        "--events": str(plan.events),
        "--seed": str(plan.seed),
        "--begin": repr(plan.begin),
        "--seconds": repr(seconds),
        "--notes": str(notes),
    }
    return [COMMAND, *(word for pair in arguments.items() for word in pair)]
