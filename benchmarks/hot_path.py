"""What one `add_activity` costs, told in ways that do not depend on what else the machine does: two counts and a ratio.

    python -m benchmarks.hot_path            shows them beside the record
    python -m benchmarks.hot_path --renew    records them in hot_path.json, in the place of all that is there
    python -m benchmarks.hot_path --add      records them beside what is there of other versions of Python

*instructions* are those of the interpreter, *calls* are calls of functions written in C, both of one call when it
has nothing else to do; they are the same on every machine and under any load. They do not see what a C function costs,
so there is *ratio*, of the fastest of many short rounds of calls to the fastest of a fixed piece of work of the same
kind, taken in turns. `tests/test_hot_path.py` fails where one has grown by more than a quarter.
"""

import gc
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

RECORD = Path(__file__).parent / "hot_path.json"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

_ROUND = 10  # calls: short enough to end undisturbed, mostly
_ROUNDS = 5000
_PATIENCE = 3.0  # seconds for them
_COUNTED = 60  # calls: some wake the spooler; the least that one takes is the path of nearly all
_TOOL = 4  # one that `sys.monitoring` names for nobody

GROWTH = 1.25
"""By what a figure may grow before somebody has to say that it should."""


def grown(found: Mapping[str, float], record: Mapping[str, float]) -> dict[str, str]:
    """What of *found* is more than `GROWTH` times what *record* says, in words."""
    return {
        name: f"{value:g}, recorded are {record[name]:g}"
        for name, value in found.items()
        if value > record[name] * GROWTH
    }


def measured(call: Callable[[], object]) -> dict[str, float]:
    """The three figures of *call*, by name."""
    for _ in range(500):
        call()
    return {
        "instructions": min(_instructions(call) for _ in range(_COUNTED)),
        "calls": min(_calls(call) for _ in range(_COUNTED)),
        "ratio": round(_ratio(call), 3),
    }


def of_the_agent(beside: Callable[[], object] | None = None) -> dict[str, float]:
    """The figures of `Agent.add_activity`, with a journal and the embedded ledger; with *beside* done after it."""
    from per_agent import Agent

    with tempfile.TemporaryDirectory() as folder, Agent(folder) as agent:
        add = agent.add_activity

        def more() -> None:
            add("acme", "user-000001", "active-users")
            beside()

        figures = measured(more if beside else lambda: add("acme", "user-000001", "active-users"))
        agent.close(0.0)  # what is not delivered yet need not be
        return figures


def recorded() -> dict[str, float] | None:
    """What is recorded for this version of Python; None where nothing is."""
    found: dict[str, float] | None = json.loads(RECORD.read_text()).get(VERSION)
    return found


def record(figures: Mapping[str, float], beside: Mapping[str, Any]) -> None:
    """Record *figures* for this version of Python, and *beside* them those of others."""
    RECORD.write_text(json.dumps({**beside, VERSION: figures}, indent=2, sort_keys=True) + "\n")


def _instructions(call: Callable[[], object]) -> int:
    if sys.version_info >= (3, 12):
        return _monitored(call)
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def _monitored(call: Callable[[], object]) -> int:
    """From 3.12 on, where a tracer is not told of a frame's first steps, and sometimes of none."""
    monitoring, me, count = sys.monitoring, threading.get_ident(), 0

    def step(*_: Any) -> None:
        nonlocal count
        count += threading.get_ident() == me

    monitoring.use_tool_id(_TOOL, "hot path")
    monitoring.register_callback(_TOOL, monitoring.events.INSTRUCTION, step)
    monitoring.set_events(_TOOL, monitoring.events.INSTRUCTION)
    try:
        call()
    finally:
        monitoring.set_events(_TOOL, 0)
        monitoring.free_tool_id(_TOOL)
    return count


def _calls(call: Callable[[], object]) -> int:
    count = 0

    def profile(_: FrameType, event: str, __: Any) -> None:
        nonlocal count
        count += event == "c_call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return count - 1  # that of `setprofile`


def _ratio(call: Callable[[], object]) -> float:
    known = _Known()
    with _undisturbed():
        rounds, end = [(_round(call), _round(known.call))], time.monotonic() + _PATIENCE
        while len(rounds) < _ROUNDS and time.monotonic() < end:
            rounds.append((_round(call), _round(known.call)))
    return min(took for took, _ in rounds) / min(took for _, took in rounds)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the garbage collector, and without a tracer: one that measures coverage slows one side alone."""
    tracer, collected = sys.gettrace(), gc.isenabled()
    gc.collect()
    gc.disable()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
        if collected:
            gc.enable()


def _round(call: Callable[[], object]) -> int:
    began = time.perf_counter_ns()
    for _ in range(_ROUND):
        call()
    return time.perf_counter_ns() - began


class _Known:
    """The fixed piece of work: an event is encoded, copied into a buffer, and kept with an object of its own."""

    __slots__ = ("_buffer", "_encode", "_kept", "_number")

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(65536))
        self._encode = msgspec.msgpack.Encoder().encode
        self._kept: deque[object] = deque(maxlen=1000)
        self._number = 0

    def call(self) -> object:
        now = time.time()
        self._number += 1
        identifier = f"{self._number:016x}"
        encoded = self._encode(("a", identifier, "acme", "user-000001", "active-users", now))
        at = self._number % 200 * 320
        self._buffer[at : at + len(encoded)] = encoded
        entry = _Entry(identifier, encoded, at)
        self._kept.append(entry)
        return entry


class _Entry:
    __slots__ = ("at", "encoded", "identifier")

    def __init__(self, identifier: str, encoded: bytes, at: int) -> None:
        self.identifier = identifier
        self.encoded = encoded
        self.at = at


def main() -> None:
    before, tries = recorded() or {}, [of_the_agent() for _ in range(3)]
    found = {name: statistics.median(one[name] for one in tries) for name in tries[0]}
    for name, value in found.items():
        print(f"{name:<14}{value:>10}   recorded for Python {VERSION}: {before.get(name, 'nothing')}")
    match sys.argv[1:]:
        case ["--renew"]:
            record(found, beside={})
        case ["--add"]:
            record(found, beside=json.loads(RECORD.read_text()))


if __name__ == "__main__":
    main()
