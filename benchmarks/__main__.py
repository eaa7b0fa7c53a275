"""`python -m benchmarks`: how fast per_agent is on this machine, beside its peers, and whether it reaches its goals."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks import plots, show
from benchmarks.plan import Plan, Row
from benchmarks.results import Results, machine

RESULTS = Path(__file__).parent / "results.json"
_ABOUT = """\
How fast per_agent is on this machine, beside its peers, and whether it reaches its goals.

Everything runs on this machine and over loopback; files go to a folder that is removed. Each measurement
is a process of its own, pinned to one processor, with what it talks to on another. Peers that are not
installed are rows that say so: pip install '.[bench]' has them all. Figures of a busy machine tell
little: stop what else runs, and compare rows of one run, never runs of two machines.
"""
_EXAMPLES = """\
examples:
  python -m benchmarks                        all of it, about ten minutes; writes benchmarks/results.json and *.svg
  python -m benchmarks --quick                a fifth of the events and a quarter of the time: a first look
  python -m benchmarks --only caller,ledger   two areas; results are written only where --out says
  python -m benchmarks --full                 20 million events waiting, 10 million in the ledger: half an hour
  python -m benchmarks --readme               the README's section from benchmarks/results.json, nothing is measured
  python -m benchmarks.hot_path               what one call costs in steps of the interpreter; --renew records it
  python -m benchmarks.endurance              whether memory stays flat: a program and a sidecar for an hour

areas:
"""


def main() -> int:
    chosen = _options()
    if chosen.list:
        print("\n".join(_areas()))
        return 0
    if chosen.readme:
        show.write_readme(Results.load(chosen.out or RESULTS))
        return 0
    out, err = Console(width=None if sys.stdout.isatty() else 160, highlight=False), Console(stderr=True)
    areas = chosen.only or list(show.AREAS)
    found = _measure(chosen, areas, out, err)
    if chosen.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    else:
        show.show_goals(out, found)
    target = chosen.out or (RESULTS if len(areas) == len(show.AREAS) and not chosen.quick else None)
    if target is not None:
        found.save(target)
        err.print(f"written: {target}")
    if target is not None and target.resolve() == RESULTS:
        try:
            err.print("drawn:", *plots.draw(found))
        except ImportError:
            err.print("nothing is drawn: matplotlib is not installed")
    failed = [row for row in found.rows if row.note.startswith("failed") and "per_agent" in row.subject]
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=_ABOUT,
        epilog=_EXAMPLES + "\n".join(f"  {line}" for line in _areas()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=_named, metavar="AREA,…", help="these areas")
    parser.add_argument("--quick", action="store_true", help="short and small: a look, not a measurement")
    parser.add_argument(
        "--full", action="store_true", help="with 20 million events waiting and 10 million in the ledger"
    )
    parser.add_argument(
        "--seconds", type=float, help="for each timed measurement; default 2, with --quick 0.5"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure; default /var/tmp"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where the results go, as JSON, or come from"
    )
    parser.add_argument("--json", action="store_true", help="the results on stdout as JSON, and no tables")
    parser.add_argument("--list", action="store_true", help="the areas, and what each measures")
    parser.add_argument("--readme", action="store_true", help="write the README's section from the results")
    return parser.parse_args()


def _areas() -> list[str]:
    firsts = {name: (area.__doc__ or "").splitlines()[0] for name, area in show.AREAS.items()}
    return [f"{name:<12}{first}" for name, first in firsts.items()]


def _named(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in show.AREAS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no area {', '.join(unknown)}; there are {', '.join(show.AREAS)}")
    return names


def _measure(chosen: argparse.Namespace, areas: list[str], out: Console, err: Console) -> Results:
    seconds = chosen.seconds or (0.5 if chosen.quick else 2.0)
    here, began = machine(), time.monotonic()
    err.print(
        f"{here['processors']} processors ({here['processor']}), Python {here['python']}, {here['system']}"
    )
    if here["load"] > 0.5:
        err.print(
            f"[yellow]this machine is busy (load {here['load']}): the figures will be worse than it could do"
        )
    if here["processors"] < 2:
        err.print("[yellow]there is one processor: what is measured shares it with what it talks to")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="per-agent-benchmarks-") as folder:
        for area in areas:
            with _telling(err, area, began) as tell:
                plan = Plan(seconds, chosen.quick, chosen.full, Path(folder), tell)
                measured = list(_rows(area, plan))
            rows += measured
            if not chosen.json:
                show.show_area(out, area, measured)
    took = round(time.monotonic() - began)
    return Results.of(
        rows, here, areas=areas, quick=chosen.quick, full=chosen.full, seconds=seconds, took=took
    )


def _rows(area: str, plan: Plan) -> Iterator[Row]:
    """The rows of *area*; where one of its servers did not start, a last one that says so."""
    try:
        yield from show.AREAS[area].run(plan)
    except RuntimeError as error:
        yield Row(show.AREAS[area].TABLES[0].key, "per_agent", note=f"failed: {error}")


@contextmanager
def _telling(err: Console, area: str, began: float) -> Iterator[Callable[[str], None]]:
    """What says what is under way: a line that changes on a terminal, a line for each elsewhere."""

    def words(what: str) -> str:
        return f"{time.monotonic() - began:4.0f} s  {area}: {what}"

    if not err.is_terminal:
        yield lambda what: err.print(words(what), soft_wrap=True, markup=False)
        return
    with err.status(area) as status:
        yield lambda what: status.update(words(what))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped: nothing was written")
