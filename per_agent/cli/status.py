"""`status` and `books`: what waits, what went, what is dead; asked of the sidecar, else read beside all owners.

What is shown is made of the documents that `--json` prints, whoever made them.
"""

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

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
from per_agent.cli.exits import ExitCode, Stop
from per_agent.cli.source import Document, source
from per_agent.cli.times import epoch

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
    looks = _looks(call)
    first = next(looks)
    assert not isinstance(first, Stop)
    if watch and call.as_json:
        _record(first, looks)
    elif call.as_json:
        show_json(first)
    elif not watch:
        stdout().print(status_view(first))
    else:
        with Live(status_view(first), console=stdout(), auto_refresh=False) as live:
            last = first
            for seen in looks:
                last = last if isinstance(seen, Stop) else seen
                trouble = [Text(seen.lines[0], "red")] if isinstance(seen, Stop) else []
                live.update(Group(status_view(last), *trouble), refresh=True)


def _record(first: Document, looks: Iterator[Document | Stop]) -> None:
    """Print one document a line; say once of each outage that there is one."""
    show_record(first)
    sys.stdout.flush()
    away = False
    for seen in looks:
        if not isinstance(seen, Stop):
            show_record(seen)
            sys.stdout.flush()
        elif not away:
            say(seen.lines[0])
        away = isinstance(seen, Stop)


def _looks(call: Call) -> Iterator[Document | Stop]:
    """Looks, a second apart, without end. After the first, a sidecar that does not answer is waited for."""
    yield _look(call)
    while True:
        time.sleep(_EVERY)
        try:
            yield _look(call)
        except Stop as stop:
            if stop.code != ExitCode.UNREACHABLE:
                raise
            yield stop


def _look(call: Call) -> Document:
    with source(call) as place:
        return place.status()


def _books(call: Call) -> ExitCode:
    """Show the books, recounted from what lies on the disk. Ends with 1 where they do not balance.

    For each destination: accepted = delivered + dead + dropped + pending, at any moment and after any crash.
    Purged events are those of the dead whose letters were deleted.
    """
    with source(call) as place:
        seen = place.books()
    if call.as_json:
        show_json(seen)
    else:
        stdout().print(books_table(seen, place.name))
    for problem in seen["problems"] if not call.as_json else ():
        say(f"does not balance: {problem}")
    for words in seen["set_aside"] if not call.as_json else ():
        say(f"set aside: {words}")
    return ExitCode.WELL if seen["balanced"] else ExitCode.NO


def books_table(books: Document, of: str) -> Sheet:
    """The *books*, a document of theirs, of all destinations, with their sum where there are several."""
    destinations: dict[str, Document] = books["destinations"]
    made = table(
        f"Books of {of}",
        ("destination", *(f"{name}#" for name in _COUNTS), "balanced"),
        [_books_row(name, each) for name, each in destinations.items()],
    )
    if len(destinations) > 1:
        made.add_section()
        everything = {name: sum(each[name] for each in destinations.values()) for name in _COUNTS}
        made.row(*_books_row("all", {**everything, "balanced": books["balanced"]}), style="bold")
    return made


def _books_row(name: str, books: Document) -> list[object]:
    verdict = Text("yes", "green") if books["balanced"] else Text("NO", "bold red")
    return [name, *(books[each] for each in _COUNTS), verdict]


def pending(seen: Document) -> dict[str, int]:
    """For each destination that events wait for by *seen*, a document of `status`, how many."""
    return {
        name: each["books"]["pending"]
        for name, each in seen["destinations"].items()
        if each["books"]["pending"]
    }


def pending_words(seen: Document) -> str:
    """What waits and why by *seen*, in words; empty where nothing does."""
    troubles = {name: _trouble(each) for name, each in seen["destinations"].items()}
    return "; ".join(
        f"{count(waiting, 'event')} for {name}" + (f" ({troubles[name]})" if troubles[name] else "")
        for name, waiting in pending(seen).items()
    )


def _trouble(each: Document) -> str:
    """Why something may be waiting, in words; empty where nothing is known to be wrong."""
    if each["state"] not in (None, "open"):
        return f"{each['state']}: {each['reason']}"
    if each["parked"]:
        return f"parked: {'; '.join(parking['reason'] for parking in each['parkings'])}"
    return ""


def status_view(seen: Document) -> Group:
    """*seen*, a document of `status`, for people: destinations, what is parked, spools, warnings."""
    now = time.time()
    destinations: dict[str, Document] = seen["destinations"]
    parts: list[Any] = [
        table(
            f"Destinations of {seen['data_dir']}",
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
            [_status_row(name, each, now) for name, each in destinations.items()],
        )
    ]
    parkings = [
        (name, parking["key"], parking["reason"], f"{moment(since)}, {span(now - since)} ago")
        for name, each in destinations.items()
        for parking in each["parkings"]
        for since in [epoch(parking["since"])]
    ]
    if parkings:
        parts.append(table("Parked until", ("destination", "waits for", "because", "since"), parkings))
    spools: list[Document] = seen["spools"]
    if spools:
        held = sum(spool["held"] for spool in spools)
        parts.append(
            table(
                f"{count(len(spools), 'spool')}, {held} in use, {size(seen['bytes_used'])}",
                ("spool", "held by", "size#", "pending#", "dead letters#"),
                [
                    (
                        spool["id"],
                        "a running process" if spool["held"] else "nobody",
                        size(spool["bytes_used"]),
                        spool["pending"],
                        spool["dead_letters"],
                    )
                    for spool in spools
                ],
            )
        )
    else:
        parts.append(Text("no spool yet: nothing was recorded here"))
    parts += [line for name, each in destinations.items() for line in _arrival_lines(name, each)]
    if seen.get("sidecar"):
        parts.append(_sidecar_line(seen["sidecar"], now))
    parts += [Text(f"Warning: {each}", "yellow") for each in seen["warnings"]]
    parts += [Text(f"Does not balance: {each}", "bold red") for each in seen["problems"]]
    return Group(*parts)


def _arrival_lines(name: str, each: Document) -> Iterator[Text]:
    """What came too late to a destination that counts by arrival, and what may still do so."""
    ending: Document | None = each.get("month_end")  # a sidecar of an earlier version does not say
    if ending is None:
        return
    month, missed, left = ending["month"], ending["missed"], ending["pending"]
    if missed:
        yield Text(
            f"{plain(name)}: {count(missed, 'pending event')} recorded before {month} missed the end of"
            f" {'its' if missed == 1 else 'their'} month, and will be counted when"
            f" {'it arrives' if missed == 1 else 'they arrive'}",
            "yellow",
        )
    if left:
        within = f"within {span(ending['seconds_left'])} (by {moment(epoch(ending['ends_at']))})"
        yield Text(f"{plain(name)}: {count(left, 'pending event')} of {month} must arrive {within}")
    late, crossed = each["late_total"], each["period_crossed_total"]
    if late or crossed:
        yield Text(
            f"{plain(name)}: {count(late, 'event')} arrived more than an hour after happening,"
            f" {crossed:,} in another month"
        )


def _sidecar_line(sidecar: Document, now: float) -> Text:
    runs = f"The sidecar has run for {span(now - epoch(sidecar['started_at']))} as process {sidecar['pid']}"
    where = " and ".join(sidecar["listeners"])
    words = Text(plain(f"{runs}, and listens on {where}: "))
    if sidecar["ready"]:
        words.append("ready", "green")
    else:
        words.append(plain(f"{sidecar['trouble']}"), "red")
    trouble = sidecar.get("journal_trouble")  # a sidecar of an older version does not say it
    return words if trouble is None else words.append(plain(f"; {trouble}"), "yellow")


def _status_row(name: str, each: Document, now: float) -> list[object]:
    age, books = each["oldest_pending_seconds"], each["books"]
    waits = [books["pending"], "-" if age is None else span(age), each["parked"]]
    return [name, _state(each, now), *waits, each["dead_letters"], books["delivered"], books["dropped"]]


def _state(each: Document, now: float) -> Text:
    state = each["state"]
    if state is None:
        return Text("no agent was here yet" if each["configured"] is not False else "not configured")
    words = Text(state, _STYLES.get(state, ""))
    if state != "open":
        lasts = f" for {span(now - epoch(each['since']))}, " if each["since"] else " "
        words.append(f"{lasts}{count(each['failures'], 'failure')}: {plain(each['reason'])}", "default")
    if each.get("no_answer"):  # a sidecar of an earlier version does not tell
        words.append(f"; {count(each['no_answer'], 'time')} sent and not answered", "default")
    if not each["live"]:
        words.append(" (when an agent last ran)", "dim")
    if each["configured"] is False:
        words.append(" (not configured)", "yellow")
    return words
