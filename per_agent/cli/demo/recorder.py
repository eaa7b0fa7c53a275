"""The process that records the demo's events, and is killed while it does; and the notes that it takes."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import typer

import per_agent
from per_agent.agent import Agent
from per_agent.cli.call import Call
from per_agent.cli.demo.plan import Plan, identifier
from per_agent.event import Receipt

COMMAND: Final = "demo-recorder"
_BATCH: Final = 20  # events between two breaths
_UNDER_WAY: Final = 40  # receipts not yet stored: those are what the kill is about
_DELIVER: Final = 60.0  # seconds at the end


class Notes:
    """The identifiers of the events whose receipts were *stored*, one a line, in a file.

    It is the demo's own memory of what it was promised, apart from the program that made the promise.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> list[str]:
        """What was noted. A last line that the kill cut short was not."""
        try:
            return self._file.read_text(encoding="ascii").split("\n")[:-1]
        except FileNotFoundError:
            return []

    def mend(self) -> None:
        """Take away a last line that the kill cut short."""
        if self._file.exists():
            whole = self._file.read_bytes().rpartition(b"\n")
            os.truncate(self._file, len(whole[0]) + len(whole[1]))

    def add(self, receipts: Sequence[Receipt]) -> None:
        """Note *receipts*, which must be stored."""
        with self._file.open("a", encoding="ascii") as file:
            file.write("".join(f"{receipt.id}\n" for receipt in receipts))


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
    agent = Agent(call.named_folder)
    under_way: deque[Receipt] = deque()
    while batch := list(islice(left, _BATCH)):
        began = time.monotonic()
        under_way.extend(agent.add_record(each) for each in batch)
        _note_stored(kept, under_way, _UNDER_WAY)
        time.sleep(max(0.0, pause - (time.monotonic() - began)))
    _note_stored(kept, under_way, 0)
    agent.close(_DELIVER)


def _note_stored(notes: Notes, under_way: deque[Receipt], keep: int) -> None:
    """Note the oldest of *under_way* as they are stored, until no more than *keep* are left."""
    stored = []
    while len(under_way) > keep:
        under_way[0].stored(None)
        stored.append(under_way.popleft())
    if stored:
        notes.add(stored)


def spawn(plan: Plan, data_dir: Path, seconds: float, notes: Path) -> "subprocess.Popen[bytes]":
    """A recorder in a process of its own: this very program, by a hidden command."""
    # The child must run the package that is running here, wherever that is and wherever it is called from.
    path = [str(Path(per_agent.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    arguments = {
        "--data-dir": str(data_dir),
        "--events": str(plan.events),
        "--seed": str(plan.seed),
        "--begin": repr(plan.begin),
        "--seconds": repr(seconds),
        "--notes": str(notes),
    }
    return subprocess.Popen(  # noqa: S603  (ourselves)
        [
            sys.executable,
            "-P",
            "-m",
            "per_agent.cli",
            COMMAND,
            *(word for pair in arguments.items() for word in pair),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )
