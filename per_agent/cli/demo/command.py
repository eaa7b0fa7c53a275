"""The demo's steps, told as they go: record, kill, record on, deliver, and see whether anything is off."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from per_agent.agent.overview import overview
from per_agent.cli.call import Call, command
from per_agent.cli.console import count, say, show_json, stderr, stdout, table
from per_agent.cli.demo import recorder
from per_agent.cli.demo.plan import METER, Plan
from per_agent.cli.demo.verdict import Verdict, judge
from per_agent.cli.exits import ExitCode, Stop
from per_agent.cli.report import report_table, unique_users
from per_agent.cli.status import books_table
from per_agent.destinations.local import Ledger

_LOOK_EVERY: Final = 0.01  # seconds
_KILL_AT: Final = 0.4  # of the events noted as stored
_PATIENCE: Final = 120.0  # seconds that a recorder may take beyond its time


def register(app: typer.Typer) -> None:
    """Add `demo` to the program, and the hidden command of the process that it kills."""
    command(app, "demo", "per-agent demo", "per-agent demo --events 20000", "per-agent demo --keep --json")(
        _demo
    )
    command(app, recorder.COMMAND, hidden=True)(recorder.record)


def _demo(
    call: Call,
    *,
    events: Annotated[int, typer.Option(min=100, max=1_000_000, help="Events to record.")] = 4000,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Seconds that recording takes.")] = 15.0,
    seed: Annotated[int, typer.Option(min=0, help="Another one draws other events.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder to look into.")] = False,
) -> ExitCode:
    """Show in half a minute what is promised: a process that records events is killed, and nothing is lost.

    Needs no configuration, no account and no network: the events go to a ledger in a fresh folder.
    Ends with 0 when every number is right, and with 1 when one is off.
    """
    teller = _Teller(stderr() if call.as_json else stdout())
    with _folder(call.named_folder, keep=keep) as data_dir:
        plan = Plan(seed, events, float(int(time.time())))
        notes = recorder.Notes(data_dir / "demo-notes.txt")
        teller.step(f"A fresh folder, and a ledger in it: {data_dir}")
        meter_id = _make_meter(data_dir)
        teller.step(f"A meter for {METER} is made")
        killed_at = _record_and_kill(plan, data_dir, seconds, teller)
        _record_on(plan, data_dir, seconds, teller)
        left = sum(overview(data_dir, ("ledger",)).pending().values())
        teller.step(f"The second process is done: {count(left, 'event')} still to be delivered")
        verdict = judge(plan, data_dir, meter_id, notes.read(), killed=killed_at is not None)
        if call.as_json:
            show_json(_as_dict(plan, data_dir, verdict, killed_at))
        else:
            _show(teller.console, verdict)
            kept = keep or call.named_folder is not None
            teller.note(
                f"Look around: per-agent --data-dir {data_dir} status"
                if kept
                else "The folder is removed; --keep keeps it."
            )
    for check in verdict.checks:
        if not check.kept:
            say(f"NOT so: {check.promise}: {check.found}")
    return ExitCode.WELL if verdict.kept else ExitCode.NO


class _Teller:
    """Numbers the steps, and says them where they are read."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._steps = 0

    def step(self, words: str) -> None:
        self._steps += 1
        self.console.print(Text.assemble((f"{self._steps}. ", "bold cyan"), words), soft_wrap=True)

    def note(self, words: str) -> None:
        self.console.print(Text(f"   {words}", "dim"), soft_wrap=True)

    @contextmanager
    def progress(self, total: int) -> Iterator[Any]:
        """Gives a function that shows how many events are stored; on a terminal only."""
        if not self.console.is_terminal:
            yield lambda _: None
            return
        columns = (TextColumn("   {task.completed:,.0f} of {task.total:,.0f} stored"), BarColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda stored: bar.update(task, completed=stored)


@contextmanager
def _folder(named: Path | None, *, keep: bool) -> Iterator[Path]:
    if named is not None:
        if named.exists() and (not named.is_dir() or any(named.iterdir())):
            raise Stop(ExitCode.USAGE, f"--data-dir: {named} is in use; the demo wants a folder of its own")
        named.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield named
        return
    made = Path(tempfile.mkdtemp(prefix="per-agent-demo-"))
    try:
        yield made
    finally:
        if not keep:
            shutil.rmtree(made, ignore_errors=True)


def _make_meter(data_dir: Path) -> str:
    ledger = Ledger()
    ledger.open(data_dir)
    try:
        made: str = ledger.meters.create(name="Tokens", event_name=METER, unit="tokens")["id"]
        return made
    finally:
        ledger.close()


def _record_and_kill(plan: Plan, data_dir: Path, seconds: float, teller: _Teller) -> int | None:
    """Kill a recorder in the middle of its work. Returns how many events were noted; None if it got away."""
    file = data_dir / "demo-notes.txt"
    notes = recorder.Notes(file)
    process = recorder.spawn(plan, data_dir, seconds, file)
    teller.step(f"A process records {plan.events:,} events (process {process.pid})")
    try:
        _watch(process, notes, plan, teller, until=int(plan.events * _KILL_AT), seconds=seconds)
    finally:
        process.kill()
        process.wait()
    stored = len(notes.read())
    if process.returncode != -signal.SIGKILL:
        teller.step(f"It ended with {process.returncode} before it could be killed")
        return None
    teller.step(
        f"kill -9: it is gone in the middle of its work, after {stored:,} events were reported as stored"
    )
    return stored


def _record_on(plan: Plan, data_dir: Path, seconds: float, teller: _Teller) -> None:
    file = data_dir / "demo-notes.txt"
    notes = recorder.Notes(file)
    process = recorder.spawn(plan, data_dir, seconds, file)
    teller.step(
        f"A new process takes over the spool that was left, and records the rest (process {process.pid})"
    )
    teller.note(
        "What was under way when the kill hit was not promised yet, stored or not: it is recorded again under"
        " its identifier, and counts once."
    )
    try:
        _watch(process, notes, plan, teller, until=plan.events + 1, seconds=seconds)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _watch(
    process: "subprocess.Popen[bytes]",
    notes: recorder.Notes,
    plan: Plan,
    teller: _Teller,
    *,
    until: int,
    seconds: float,
) -> None:
    """Wait until *until* events are noted, or the process has ended."""
    deadline = time.monotonic() + seconds + _PATIENCE
    with teller.progress(plan.events) as shown:
        while process.poll() is None and time.monotonic() < deadline:
            stored = len(notes.read())
            shown(stored)
            if stored >= until:
                return
            time.sleep(_LOOK_EVERY)


def _show(console: Console, verdict: Verdict) -> None:
    console.print()
    console.print(report_table("The report of the ledger", unique_users(verdict.report)))
    console.print()
    buckets = verdict.stats["list"]
    total = sum((Decimal(each["total_value"]) for each in buckets), Decimal())
    events = sum(each["event_count"] for each in buckets)
    console.print(table(f"The meter {METER}", ("events#", "sum#"), [(events, f"{total:,}")]))
    console.print()
    console.print(books_table(verdict.books.books_as_dict(), str(verdict.books.data_dir)))
    console.print()
    twice = sum(each.books.accepted for each in verdict.books.standings) - sum(verdict.counted)
    if twice:
        console.print(
            Text(
                f"{count(twice, 'event')} went through twice: stored before the kill, but nobody was told,"
                " and recorded again. The ledger counts each once.",
                "dim",
            ),
            soft_wrap=True,
        )
        console.print()
    for check in verdict.checks:
        mark = Text(" yes ", "black on green") if check.kept else Text(" NO  ", "white on red")
        console.print(Text.assemble(mark, f" {check.promise}: {check.found}"), soft_wrap=True)
    console.print()


def _as_dict(plan: Plan, data_dir: Path, verdict: Verdict, killed_at: int | None) -> dict[str, Any]:
    return {
        "ok": verdict.kept,
        "events": plan.events,
        "seed": plan.seed,
        "data_dir": str(data_dir),
        "stored_before_the_kill": killed_at,
        "checks": [
            {"promise": each.promise, "kept": each.kept, "found": each.found} for each in verdict.checks
        ],
        "report": verdict.report,
        "stats": verdict.stats,
        "books": {each.name: each.books.as_dict() for each in verdict.books.standings},
    }
