"""The command line of the soak."""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from soak.course import Course, Options
from soak.evidence import gather
from soak.verdict import Verdict, judge

TEACHES = """
Everything is real: processes on one data folder and on their own, two sidecars with clients over Unix sockets and
TCP, and an upstream in a process of its own that answers as Per and Payment Kit do, or badly. Producers, a sidecar
and the upstream are killed, stopped and frozen at random moments. When the time is over the faults end, everything
drains, and what was accepted is compared with what arrived: every event, to its content, and the books.

Exit codes: 0 kept; 1 not kept, or the run (of 30 s or more) saw too little to prove anything.

examples:
  python -m tests.soak --seconds 60
  python -m tests.soak --seconds 3600 --seed 7 --keep /tmp/soak     # what it found lies there afterwards
  python -m tests.soak judge /tmp/soak                              # judge that once more
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.soak",
        description="Record events for a while, strike everything at random, and tell whether all was kept.",
        epilog=TEACHES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the storm lasts (default: 60)")
    parser.add_argument("--seed", type=int, help="repeats the faults of a run (default: a new one, printed)")
    parser.add_argument("--rate", type=float, default=150.0, help="events a second, about (default: 150)")
    parser.add_argument(
        "--patience", type=float, default=180.0, help="seconds that draining may take (default: 180)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder, and leave it")
    parser.add_argument("--still", action="store_true", help="without faults")
    parser.add_argument("--json", action="store_true", help="the verdict as JSON")
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="say every fault, and how it goes also where there is no terminal",
    )
    given = parser.parse_args(arguments)
    seed = random.randrange(2**32) if given.seed is None else given.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    if given.keep is not None and given.keep.exists() and any(given.keep.iterdir()):
        parser.error(f"{given.keep} is not empty")
    folder = Path(tempfile.mkdtemp(prefix="soak-")) if given.keep is None else given.keep
    began = time.monotonic()

    def say(words: str) -> None:
        if given.verbose or sys.stderr.isatty():
            print(f"{time.monotonic() - began:7.1f} s  {words}", file=sys.stderr, flush=True)

    def say_fault(words: str) -> None:
        if given.verbose:
            say(words)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left behind
    options = Options(given.seconds, seed, given.rate, given.patience, given.still)
    Course(folder, options, say, say_fault).run()
    verdict = judge(gather(folder))
    show(verdict, as_json=given.json)
    if given.keep is None and verdict.kept:
        shutil.rmtree(folder)
    elif not verdict.kept:
        print(f"all of it lies in {folder}", file=sys.stderr)
    return 0 if verdict.kept else 1


def judge_again(folder: Path) -> int:
    verdict = judge(gather(folder))
    show(verdict, as_json=False)
    return 0 if verdict.kept else 1


def show(verdict: Verdict, *, as_json: bool) -> None:
    """The findings, the first of many, and the verdict's line as the last."""
    if as_json:
        print(json.dumps(verdict.as_dict()))
        return
    for words in verdict.findings[:20]:
        print(f"  {words}")
    if len(verdict.findings) > 20:
        print(f"  and {len(verdict.findings) - 20:,} more")
    print(verdict.line)
