"""What one call costs the caller, while the events are stored and delivered: with the journal, and without.

    python benchmarks/caller.py [--seconds 10] [--folder /var/tmp]

A thread calls `add_activity` 20,000 times a second, in bursts at each millisecond as a request handler does;
once on a quiet machine and once beside a thread that computes without end. The cost of asking the clock twice
is measured in the same run and is not taken off. A reading on a shared machine tells little by itself: compare
the rows. The last row is the same with the garbage collector off, as its pauses are the process's own.
"""

import argparse
import gc
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

from per_agent import Agent, IntakeSettings

_PER_TICK = 20
_TICK = 0.001


def measure(call: Callable[[str, str, str], object], seconds: float) -> list[int]:
    """The nanoseconds that each call took, in order of size."""
    clock = time.perf_counter_ns
    users = cycle([f"user-{n:06}" for n in range(5000)])
    took: list[int] = []
    keep = took.append
    due = time.perf_counter()
    end = due + seconds
    while due < end:
        for user in islice(users, _PER_TICK):
            began = clock()
            call("acme", user, "active-users")
            keep(clock() - began)
        due += _TICK
        time.sleep(max(0.0, due - time.perf_counter()))
    took.sort()
    return took


def row(name: str, took: list[int]) -> None:
    def at(share: float) -> float:
        return took[min(len(took) - 1, int(len(took) * share))] / 1000

    print(
        f"{name:44} {at(0.5):8.2f} {at(0.99):8.2f} {at(0.999):8.2f} {at(1):10.1f}   {len(took):,} calls",
        flush=True,
    )


def recording(folder: str, *, journal: bool) -> Agent:
    agent = Agent(folder, intake=IntakeSettings(journal=journal))
    for n in range(1000):
        agent.add_activity("acme", f"user-{n:06}", "active-users")
    agent.flush(30)
    return agent


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--seconds", type=float, default=10.0, help="for each row")
    options.add_argument("--folder", type=Path, default=None, help="on the disk to measure on")
    chosen = options.parse_args()
    print(f"{'microseconds':44} {'p50':>8} {'p99':>8} {'p99.9':>8} {'max':>10}")
    row("nothing: the clock, asked twice", measure(lambda *_: None, min(2.0, chosen.seconds)))
    for journal in (True, False):
        for busy in (False, True):
            with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
                _row(folder, chosen.seconds, journal=journal, busy=busy)
    gc.disable()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        _row(folder, chosen.seconds, journal=True, busy=False)


def _row(folder: str, seconds: float, *, journal: bool, busy: bool) -> None:
    agent = recording(folder, journal=journal)
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    other = threading.Thread(target=compute)
    if busy:
        other.start()
    took = measure(agent.add_activity, seconds)
    stop.set()
    if busy:
        other.join()
    words = f"journal {'on' if journal else 'off'}, {'beside a busy thread' if busy else 'quiet'}"
    row(words if gc.isenabled() else f"{words}, no garbage collector", took)
    agent.close(30)


if __name__ == "__main__":
    main()
