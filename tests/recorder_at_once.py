"""A program that records as fast as it can until it is killed, and counts the calls that returned.

`python tests/recorder_at_once.py DATA_DIR COUNTS THREADS PREFIX LINGER`: thread N's calls make events named
`PREFIX-N-0`, `PREFIX-N-1` …, activities and meter events in turn; every hundredth is too long for one slot. In
COUNTS, a mapped file, stands how many of them have returned: 8 bytes for each thread. Says `ready` on stdout
when it is about to begin.
"""

import itertools
import mmap
import sys
import threading
from pathlib import Path

from per_agent import Agent, IntakeSettings

LONG = {"note": "x" * 3000}


def main(data_dir: str, counts: str, threads: str, prefix: str, linger: str) -> None:
    agent = Agent(data_dir, intake=IntakeSettings(overflow="block", linger=float(linger)))
    with Path(counts).open("r+b") as file:
        # A number is written in one step: `pack_into` would write zeros first, and die over them once in a while.
        returned = memoryview(mmap.mmap(file.fileno(), 8 * int(threads))).cast("Q")

    def record(thread: int) -> None:
        for n in itertools.count():
            name = f"{prefix}-{thread}-{n}"
            if n % 2:
                agent.add_activity("acme", name, "active")
            else:
                long = LONG if n % 100 == 0 else None
                agent.add_meter_event("calls", customer_id="cus", value="0.1", identifier=name, metadata=long)
            returned[thread] = n + 1

    print("ready", flush=True)
    for thread in range(int(threads)):
        threading.Thread(target=record, args=(thread,)).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
