"""`dead`: the events that a destination refused for good; listed, sent again, taken out, deleted."""

import sys
import time
from itertools import islice
from typing import Annotated, Any, Final

import typer

from per_agent.agent.letters import Choice
from per_agent.cli.call import Call, command, group
from per_agent.cli.console import count, moment, say, show, show_json, show_record, stdout, table
from per_agent.cli.exits import ExitCode, Stop
from per_agent.cli.letters import Resent, change_there, resend, resend_there
from per_agent.cli.sidecar import Sidecar
from per_agent.cli.source import Document, Folder, source
from per_agent.cli.times import epoch, span

_SHOWN: Final = 100  # letters in a table
_NOT_THERE: Final = "no dead letter that fits has the identifier {}"

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Identifiers of events.")]
Destination = Annotated[str | None, typer.Option(metavar="NAME", help="Refused by this destination.")]
Reason = Annotated[
    str | None, typer.Option(metavar="TEXT", help="With this in the reason or the upstream's words.")
]
Meter = Annotated[str | None, typer.Option(metavar="NAME", help="Meter events of this event name.")]
OlderThan = Annotated[str | None, typer.Option(metavar="SPAN", help="Dead for longer: 24h, 7d, 2w.")]
NewerThan = Annotated[str | None, typer.Option(metavar="SPAN", help="Dead for no longer: 1h, 7d.")]
All = Annotated[bool, typer.Option("--all", help="All of them; without it, say which.")]


def register(app: typer.Typer) -> None:
    """Add `dead` to the program."""
    dead = group(
        app,
        "dead",
        "Look after dead letters: events that a destination refused for good, kept with the reason.",
        "per-agent dead list",
        "per-agent dead requeue --destination payment_kit --reason 'unknown customer'",
        "per-agent dead export > dead.ndjson",
    )
    command(dead, "list", "per-agent dead list", "per-agent dead list --older-than 7d --json")(_list)
    command(dead, "show", "per-agent dead show 019a0b6c-…")(_show)
    command(
        dead, "requeue", "per-agent dead requeue 019a0b6c-…", "per-agent dead requeue --meter api.calls.v1",
        "per-agent dead requeue --newer-than 1h", "per-agent dead requeue --all --timeout 60",
    )(_requeue)  # fmt: skip
    command(
        dead,
        "export",
        "per-agent dead export > dead.ndjson",
        "per-agent dead export --meter tokens | per-agent add -",
    )(_export)
    command(dead, "purge", "per-agent dead purge --older-than 90d", "per-agent dead purge --all --yes")(
        _purge
    )


def _list(
    call: Call,
    *,
    destination: Destination = None,
    reason: Reason = None,
    meter: Meter = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Letters shown. Default: 100, in JSON all.")
    ] = None,
) -> None:
    """List dead letters, the oldest of each spool first."""
    choice = _choice(None, destination, reason, meter, (older_than, newer_than))
    with source(call) as place:
        found = place.letters(choice)
        if call.as_json:
            show_json(list(islice(found, limit)))
            return
        shown = list(islice(found, limit or _SHOWN))
        more = 0 if next(found, None) is None else place.count(choice) - len(shown)
    stdout().print(
        table(
            f"Dead letters: {len(shown) + more:,}",
            ("id", "destination", "event", "reason", "upstream's words", "tries#", "since"),
            map(_row, shown),
            footing=f"and {more:,} more; see --limit" if more else "",
        )
    )


def _show(
    call: Call,
    *,
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The event's identifier.")],
) -> ExitCode:
    """Show one dead letter whole: the event, the reason, the upstream's words."""
    with source(call) as place:
        found = list(place.letters(Choice(ids=frozenset({identifier}))))
    if call.as_json:
        show_json(found)
    for letter in found if not call.as_json else ():
        fields = {**letter, "number": str(letter["number"])}  # a name, not a quantity
        event = fields.pop("event") or {}
        rows = [*fields.items(), *((f"event.{field}", value) for field, value in event.items())]
        stdout().print(table(f"Dead letter {identifier}", ("field", "value"), rows))
    if not found:
        say(f"no dead letter has the identifier {identifier}; see per-agent dead list")
        return ExitCode.NO
    return ExitCode.WELL


def _requeue(  # noqa: PLR0913  (one for each way to choose)
    call: Call,
    *,
    ids: Ids = None,
    destination: Destination = None,
    reason: Reason = None,
    meter: Meter = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    everything: All = False,
    deliver: Annotated[
        bool, typer.Option("--deliver/--no-deliver", help="Deliver them now, where no running agent does.")
    ] = True,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="S", help="Seconds to wait for them, at most.")
    ] = 10.0,
) -> ExitCode:
    """Send dead letters again, each under its identifier: who has the event already counts it once."""
    choice = _choice(ids, destination, reason, meter, (older_than, newer_than))
    _insist(choice, everything=everything)
    with source(call) as place:
        chosen = _chosen(choice, place)
        if isinstance(place, Sidecar):
            resent = resend_there(place, choice, chosen, timeout if deliver else 0.0)
        else:
            settings = call.settings() if deliver else None
            resent = resend(place.data_dir, place.filed(choice, chosen), settings, timeout)
    if call.as_json:
        show_json({field: getattr(resent, field) for field in resent.__struct_fields__})
    else:
        show(_told(resent))
    return ExitCode.NO if resent.dead_again else ExitCode.WELL


def _told(resent: Resent) -> str:
    words = [f"{count(resent.requeued, 'event')} requeued", f"{resent.delivered:,} delivered"]
    if resent.dead_again:
        words.append(f"{resent.dead_again:,} refused again: see per-agent dead list")
    if resent.waiting:
        who = (
            "the running agent delivers them"
            if resent.with_running_agents
            else "the next agent delivers them"
        )
        words.append(f"{resent.waiting:,} waiting: {who}; see per-agent status")
    return ", ".join(words)


def _export(
    call: Call,
    *,
    ids: Ids = None,
    destination: Destination = None,
    reason: Reason = None,
    meter: Meter = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
) -> ExitCode:
    """Print the events of dead letters as NDJSON, as `add -` reads them. They stay where they are.

    Each keeps its identifier. It is NDJSON with --json and without.
    """
    choice = _choice(ids, destination, reason, meter, (older_than, newer_than))
    unreadable = 0
    missing = set(choice.ids)
    with source(call) as place:
        for letter in place.letters(choice):
            missing.discard(letter["id"])
            if letter["event"] is None:
                unreadable += 1
                where = f"spool {letter['spool']}, letter {letter['number']}"
                say(f"{where}: not readable by this version, left out")
            else:
                show_record(letter["event"])
    sys.stdout.flush()
    for each in sorted(missing):
        say(_NOT_THERE.format(each))
    return ExitCode.NO if unreadable or missing else ExitCode.WELL


def _purge(  # noqa: PLR0913  (one for each way to choose)
    call: Call,
    *,
    ids: Ids = None,
    destination: Destination = None,
    reason: Reason = None,
    meter: Meter = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    everything: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> ExitCode:
    """Delete dead letters for good. The books go on to count them, as dead and purged."""
    choice = _choice(ids, destination, reason, meter, (older_than, newer_than))
    _insist(choice, everything=everything)
    with source(call) as place:
        chosen = _chosen(choice, place)
        if chosen and not yes and not _confirmed(len(chosen)):
            say("nothing was deleted")
            return ExitCode.NO
        if isinstance(place, Sidecar):
            purged = change_there(place, "purge", choice, chosen)
        else:
            purged = place.purge(choice, chosen)
    if call.as_json:
        show_json({"purged": purged})
    else:
        show(f"{count(purged, 'dead letter')} deleted")
    return ExitCode.WELL


def _choice(
    ids: list[str] | None,
    destination: str | None,
    reason: str | None,
    meter: str | None,
    ages: tuple[str | None, str | None],
) -> Choice:
    for option, words in (("--destination", destination), ("--reason", reason), ("--meter", meter)):
        if words == "":  # of a script's empty variable; as a reason it would fit all letters
            raise Stop(ExitCode.USAGE, f"{option}: is empty")
    before, since = (
        None if words is None else time.time() - span(option, words).total_seconds()
        for option, words in zip(("--older-than", "--newer-than"), ages, strict=True)
    )
    return Choice(
        ids=frozenset(ids or ()),
        destination=destination,
        reason=reason,
        meter=meter,
        before=before,
        since=since,
    )


def _insist(choice: Choice, *, everything: bool) -> None:
    """What changes letters must be told which: an argument that a script left empty must not mean all."""
    if choice.empty and not everything:
        raise Stop(
            ExitCode.USAGE,
            "say which: IDs, --destination, --reason, --meter, --older-than, --newer-than, or --all",
        )
    if everything and not choice.empty:
        raise Stop(ExitCode.USAGE, "--all is all of them: give it, or say which")


def _chosen(choice: Choice, place: Sidecar | Folder) -> list[Document]:
    """The letters that are meant, without their events. Raises `Stop` where one that was named is not there."""
    chosen = [{**letter, "event": None} for letter in place.letters(choice)]
    missing = set(choice.ids) - {letter["id"] for letter in chosen}
    if missing:
        lines = [_NOT_THERE.format(each) for each in sorted(missing)]
        raise Stop(ExitCode.NO, *lines, "nothing was changed; see per-agent dead list")
    return chosen


def _confirmed(letters: int) -> bool:
    if not sys.stdin.isatty():
        raise Stop(
            ExitCode.USAGE, f"would delete {count(letters, 'dead letter')}; add --yes to do so unasked"
        )
    sys.stderr.write(f"Delete {count(letters, 'dead letter')} for good? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _row(letter: Document) -> list[Any]:
    what, since = _what(letter["event"]), moment(epoch(letter["at"]))
    said = [letter["reason"], letter["words"], letter["attempts"], since]
    return [letter["id"], letter["destination"], what, *said]


def _what(event: Document | None) -> str:
    """An event's record in a few words."""
    if event is None:
        return "not readable by this version"
    if event["type"] == "meter":
        return f"{event['value']} of {event['event_name']} by {event['customer_id']}"
    return f"{event['activity_type_id']}: {event['user_id']} of {event['billing_id']}"
