"""A program that records as fast as it can until it is killed, and notes what it was told is stored.

`python tests/recorder.py DATA_DIR NOTES THREADS PREFIX`: each line of NOTES is `a USER_ID` or `m IDENTIFIER`,
written after the receipt said *stored*. Says `ready` on stdout when it has begun.
"""

import itertools
import os
import sys
import threading

from per_agent import Agent, IntakeSettings

BATCH = 20


def main(data_dir: str, notes: str, threads: str, prefix: str) -> None:
    agent = Agent(data_dir, intake=IntakeSettings(overflow="block"))
    fd = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def record(n: int) -> None:
        for i in itertools.count():
            receipts = []
            for j in range(BATCH):
                user = f"{prefix}-{n}-{i}-{j}"
                receipts.append(("a", user, agent.add_activity("acme", user, "active")))
                meter = agent.add_meter_event("api.calls", customer_id=f"cus-{j}", value="0.1")
                receipts.append(("m", meter.id, meter))
            if all(receipt.stored(60) for _, _, receipt in receipts):
                os.write(fd, "".join(f"{kind} {name}\n" for kind, name, _ in receipts).encode())
            if n == 0 and i == 0:
                print("ready", flush=True)

    for n in range(int(threads)):
        threading.Thread(target=record, args=(n,)).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
