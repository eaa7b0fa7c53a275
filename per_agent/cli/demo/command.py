"""`demo` itself: its options, where it plays, and the code that it ends with."""

import importlib.util
import time
from typing import Annotated, Final

import typer

from per_agent.cli.call import Call, command
from per_agent.cli.console import say, show_json, stderr, stdout
from per_agent.cli.demo import ending, recorder
from per_agent.cli.demo.plan import Plan
from per_agent.cli.demo.processes import Processes
from per_agent.cli.demo.stage import Stage, folder
from per_agent.cli.demo.story import Story
from per_agent.cli.demo.teller import Teller
from per_agent.cli.demo.verdict import Verdict, gather, judge
from per_agent.cli.exits import ExitCode, Stop

_NEEDED: Final = ("starlette", "uvicorn", "httptools", "uvloop", "prometheus_client")


def register(app: typer.Typer) -> None:
    """Add `demo` to the program, and the hidden command of the process that it kills."""
    command(app, "demo", "per-agent demo", "per-agent demo --events 20000", "per-agent demo --keep --json")(
        _demo
    )
    command(app, recorder.COMMAND, hidden=True)(recorder.record)


def _demo(
    call: Call,
    *,
    events: Annotated[int, typer.Option(min=100, max=100_000, help="Events to record.")] = 5000,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Seconds that recording takes.")] = 22.0,
    seed: Annotated[int, typer.Option(min=0, help="Another one draws other events.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder to look into.")] = False,
) -> ExitCode:
    """Show in half a minute what is promised: the upstream fails, processes are killed, and nothing is lost.

    A sidecar with a ledger stands for Per and for Payment Kit; an application records events and sends them there
    by HTTP. Both are killed in the middle of it, and both come back. Needs no configuration, no account and no
    network. Ends with 0 when every number is right, and with 1 when one is off.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise Stop(
            ExitCode.USAGE,
            f"the demo runs a sidecar, which needs {', '.join(missing)}: pip install 'per-agent[sidecar]'",
        )
    teller = Teller(stderr() if call.as_json else stdout())
    with folder(call.named_folder, keep=keep) as place:
        plan = Plan(seed, events, float(int(time.time())))
        stage = Stage(place)
        with Processes(call.environ) as processes:
            incidents, answers = Story(stage, plan, seconds, processes, teller).play()
        noted = recorder.Notes(stage.notes).read()
        verdict = judge(plan, gather(plan, stage, answers, noted), incidents)
        if call.as_json:
            show_json(ending.as_dict(plan, place, verdict))
        else:
            ending.show(teller.console, verdict)
            _say_where(teller, stage, is_kept=keep or call.named_folder is not None)
    return _told(verdict)


def _say_where(teller: Teller, stage: Stage, *, is_kept: bool) -> None:
    if is_kept:
        teller.note(f"Look around: per-agent --config {stage.application_config} status")
        teller.note(f"             per-agent --config {stage.sidecar_config} report --last 1d")
    else:
        teller.note("The folder with all of this is removed; --keep keeps it.")


def _told(verdict: Verdict) -> ExitCode:
    for check in verdict.checks:
        if not check.kept:
            say(f"NOT so: {check.promise}: {check.found}")
    return ExitCode.WELL if verdict.kept else ExitCode.NO
