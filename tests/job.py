"""A short job: records some events and ends by itself, if nobody ends it before. Notes each call that returned.

`python tests/job.py DATA_DIR COUNT PREFIX EVENTS [AGENTS]`: events are named `PREFIX-0`, `PREFIX-1` … and go
through the job's agents in turn. In COUNT, a mapped file of 8 bytes, stands how many calls have returned. Says
`ready` when it is about to begin.
"""

import mmap
import sys
from pathlib import Path

from per_agent import Agent, IntakeSettings


def main(data_dir: str, count: str, prefix: str, events: str, agents: str = "1") -> None:
    with Path(count).open("r+b") as file:
        returned = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")  # written in one step
    several = [Agent(data_dir, intake=IntakeSettings(overflow="block")) for _ in range(int(agents))]
    print("ready", flush=True)
    for n in range(int(events)):
        several[n % len(several)].add_activity("acme", f"{prefix}-{n}", "active")
        returned[0] = n + 1


if __name__ == "__main__":
    main(*sys.argv[1:])
