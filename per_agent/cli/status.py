"""`status` and `books`: what waits, what went, what is dead; read from the folder, in nobody's way."""

import sys
import time
from typing import Annotated, Any, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from per_agent.books import Books
from per_agent.cli.call import Call, command
from per_agent.cli.console import (
    Sheet,
    count,
    moment,
    plain,
    say,
    show_json,
    show_record,
    size,
    span,
    stdout,
    table,
)
from per_agent.cli.exits import ExitCode
from per_agent.cli.overview import Overview, Standing, overview

_EVERY: Final = 1.0  # seconds
_STYLES: Final = {"open": "green", "retrying": "yellow", "halted": "red"}
_COUNTS: Final = ("accepted", "delivered", "dead", "dropped", "pending", "purged")


def register(app: typer.Typer) -> None:
    """Add `status` and `books` to the program."""
    command(
        app,
        "status",
        "per-agent status",
        "per-agent status --watch",
        "per-agent status --data-dir /var/lib/per-agent --json",
    )(_status)
    command(app, "books", "per-agent books", "per-agent books --json", "per-agent books || alert")(_books)


def _status(
    call: Call,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Look again every second, until Ctrl-C.")
    ] = False,
) -> None:
    """Show how each destination is doing and what waits for it. Only looks; works beside running agents."""
    data_dir, configured = call.place()
    if not watch:
        seen = overview(data_dir, configured)
        if call.as_json:
            show_json(_as_dict(seen))
        else:
            stdout().print(status_view(seen))
    elif call.as_json:
        while True:
            show_record(_as_dict(overview(data_dir, configured)))
            sys.stdout.flush()
            time.sleep(_EVERY)
    else:
        first = status_view(overview(data_dir, configured))
        with Live(first, console=stdout(), auto_refresh=False) as live:
            while True:
                time.sleep(_EVERY)
                live.update(status_view(overview(data_dir, configured)), refresh=True)


def _books(call: Call) -> ExitCode:
    """Show the books, recounted from what lies on the disk. Ends with 1 where they do not balance.

    For each destination: accepted = delivered + dead + dropped + pending, at any moment and after any crash.
    Purged events are those of the dead whose letters were deleted.
    """
    seen = overview(*call.place())
    if call.as_json:
        show_json(
            {
                "balanced": not seen.problems,
                "destinations": {
                    each.name: {**each.books.as_dict(), "balanced": not each.problems}
                    for each in seen.standings
                },
                "problems": seen.problems,
                "spools": len(seen.spools),
            }
        )
    else:
        stdout().print(books_table(seen))
    for problem in seen.problems if not call.as_json else ():
        say(f"does not balance: {problem}")
    return ExitCode.NO if seen.problems else ExitCode.WELL


def books_table(seen: Overview) -> Sheet:
    """The books of all destinations, with their sum where there are several."""
    made = table(
        f"Books of {seen.data_dir}",
        ("destination", *(f"{name}#" for name in _COUNTS), "balanced"),
        [_books_row(each.name, each.books, balanced=not each.problems) for each in seen.standings],
    )
    if len(seen.standings) > 1:
        made.add_section()
        everything = sum((each.books for each in seen.standings), Books())
        made.row(*_books_row("all", everything, balanced=not seen.problems), style="bold")
    return made


def _books_row(name: str, books: Books, *, balanced: bool) -> list[object]:
    verdict = Text("yes", "green") if balanced else Text("NO", "bold red")
    counts = books.as_dict()
    return [name, *(counts[each] for each in _COUNTS), verdict]


def status_view(seen: Overview) -> Group:
    """All of it for people: destinations, what is parked, spools, warnings."""
    now = time.time()
    parts: list[Any] = [
        table(
            f"Destinations of {seen.data_dir}",
            (
                "destination",
                "state",
                "pending#",
                "oldest",
                "parked#",
                "dead letters#",
                "delivered#",
                "dropped#",
            ),
            [_status_row(each, now) for each in seen.standings],
        )
    ]
    parkings = [
        (each.name, parking.key, parking.reason, f"{moment(parking.since)}, {span(now - parking.since)} ago")
        for each in seen.standings
        for parking in each.parkings
    ]
    if parkings:
        parts.append(table("Parked until", ("destination", "waits for", "because", "since"), parkings))
    if seen.spools:
        held = sum(spool.held for spool in seen.spools)
        parts.append(
            table(
                f"{count(len(seen.spools), 'spool')}, {held} in use, {size(seen.bytes_used)}",
                ("spool", "held by", "size#", "pending#", "dead letters#"),
                [
                    (
                        spool.id,
                        "a running process" if spool.held else "nobody",
                        size(spool.bytes_used),
                        sum(lane.books.pending for lane in spool.lanes.values()),
                        sum(lane.letters for lane in spool.lanes.values()),
                    )
                    for spool in seen.spools
                ],
            )
        )
    else:
        parts.append(Text("no spool yet: nothing was recorded here"))
    parts += [Text(f"Warning: {each}", "yellow") for each in seen.warnings]
    parts += [Text(f"Does not balance: {each}", "bold red") for each in seen.problems]
    return Group(*parts)


def _status_row(each: Standing, now: float) -> list[object]:
    oldest = "-" if each.oldest is None else span(now - each.oldest)
    books = each.books
    waits = [books.pending, oldest, each.parked]
    return [each.name, _state(each, now), *waits, each.letters, books.delivered, books.dropped]


def _state(each: Standing, now: float) -> Text:
    condition = each.condition
    if condition is None:
        return Text("no agent was here yet" if each.configured is not False else "not configured")
    words = Text(condition.state, _STYLES[condition.state])
    if condition.state != "open":
        lasts = f" for {span(now - condition.since)}, {count(condition.failures, 'failure')}: "
        words.append(f"{lasts}{plain(condition.reason)}", "default")
    if not each.live:
        words.append(" (when an agent last ran)", "dim")
    if each.configured is False:
        words.append(" (not configured)", "yellow")
    return words


def _as_dict(seen: Overview) -> dict[str, Any]:
    now = time.time()
    return {
        "data_dir": str(seen.data_dir),
        "bytes_used": seen.bytes_used,
        "destinations": {each.name: each.as_dict(now) for each in seen.standings},
        "spools": [
            {"id": each.id, "folder": str(each.folder), "held": each.held, "bytes_used": each.bytes_used}
            for each in seen.spools
        ],
        "warnings": seen.warnings,
        "problems": seen.problems,
    }
