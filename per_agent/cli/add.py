"""`add`: hands events to the running sidecar, else straight to the spool."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import IO, Annotated, Any, Final

import msgspec
import typer

from per_agent.cli.call import Call, Group, command, group
from per_agent.cli.console import count, say, show, show_json
from per_agent.cli.exits import ExitCode, Stop
from per_agent.cli.finding import found
from per_agent.cli.handover import Handover
from per_agent.cli.records import lines, opened, progress
from per_agent.cli.status import pending, pending_words
from per_agent.cli.straight import Straight, straight
from per_agent.cli.tally import Outcome, Wait
from per_agent.cli.times import of_event
from per_agent.errors import InvalidEvent
from per_agent.event import RECORDS
from per_agent.settings import Settings

_STORE: Final = 30.0  # seconds that a disk may take before one event is given up
_TOLD: Final = 1000  # bad lines kept for the summary
_NAMED: Final = 10  # refused events named one by one
_EVERY: Final = 500  # records between two looks at the progress bar


WaitFor = Annotated[
    Wait, typer.Option("--wait", help="stored: safe on the disk. delivered: the destination has it.")
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0, metavar="S", help="Seconds to wait for delivered, at most.")
]


class _Add(Group):
    """`add FILE` and `add -` are `add file FILE` and `add file -`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["file", *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add `add` to the program."""
    add = group(
        app,
        "add",
        "Record events. They are safe on the disk when this ends well, whatever the upstream does.",
        "per-agent add activity acme u-17 active-users",
        "per-agent add meter api.calls.v1 --customer cus_9 --value 3",
        "per-agent add - < events.ndjson",
        kind=_Add,
    )
    command(
        add,
        "activity",
        "per-agent add activity acme u-17 active-users",
        "per-agent add activity acme u-17 active-users --at 2026-01-31T12:00:00Z --wait delivered",
    )(_activity)
    command(
        add,
        "meter",
        "per-agent add meter api.calls.v1 --customer cus_9 --value 3",
        'per-agent add meter tokens --customer cus_9 --value 0.25 --metadata \'{"model": "m"}\'',
    )(_meter)
    command(
        add,
        "file",
        "per-agent add - < events.ndjson",
        "per-agent add events.ndjson --wait delivered --timeout 60",
        """echo '{"event_name": "api.calls", "customer_id": "cus_9", "value": 3}' | per-agent add -""",
        "per-agent dead export | per-agent add -",
    )(_file)


def _activity(
    call: Call,
    *,
    billing_id: Annotated[str, typer.Argument(metavar="BILLING_ID", help="The customer that is billed.")],
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Who was active.")],
    activity_type_id: Annotated[str, typer.Argument(metavar="ACTIVITY_TYPE_ID", help="In what way.")],
    at: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="When: ISO 8601 with a zone, or epoch seconds. Default: now."),
    ] = None,
    wait: WaitFor = Wait.STORED,
    timeout: Timeout = 30.0,
) -> ExitCode:
    """Record that a user of a billed customer was active. Prints the event's identifier."""
    moment = of_event("--at", at)
    record = {
        "type": "activity",
        "billing_id": billing_id,
        "user_id": user_id,
        "activity_type_id": activity_type_id,
        "at": moment,
    }
    return _add_one(call, record, wait, timeout)


def _meter(  # noqa: PLR0913  (the event's own fields)
    call: Call,
    *,
    event_name: Annotated[str, typer.Argument(metavar="EVENT_NAME", help="The meter's event name.")],
    customer: Annotated[str, typer.Option(metavar="ID", help="The customer that is billed.")],
    value: Annotated[str, typer.Option(metavar="DECIMAL", help="How much, exactly: 3, 0.001.")],
    subscription: Annotated[
        str | None, typer.Option(metavar="ID", help="The customer's subscription.")
    ] = None,
    identifier: Annotated[
        str | None, typer.Option(metavar="ID", help="What duplicates are told by. Default: a new one.")
    ] = None,
    timestamp: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="When: ISO 8601 with a zone, or epoch seconds. Default: now."),
    ] = None,
    metadata: Annotated[str | None, typer.Option(metavar="JSON", help="A JSON object of labels.")] = None,
    source_data: Annotated[str | None, typer.Option(metavar="JSON", help="A JSON object or list.")] = None,
    livemode: Annotated[
        bool | None, typer.Option("--livemode/--testmode", help="Default: the destination's mode.")
    ] = None,
    wait: WaitFor = Wait.STORED,
    timeout: Timeout = 30.0,
) -> ExitCode:
    """Record metered usage of a customer. Prints the event's identifier."""
    labels, source = json_option("--metadata", metadata), json_option("--source-data", source_data)
    moment = of_event("--timestamp", timestamp)
    record = {
        "type": "meter",
        "event_name": event_name,
        "customer_id": customer,
        "value": value,
        "subscription_id": subscription,
        "identifier": identifier,
        "timestamp": moment,
        "metadata": labels,
        "source_data": source,
        "livemode": livemode,
    }
    return _add_one(call, record, wait, timeout)


def json_option(option: str, words: str | None) -> Any:
    """The value of an option that is written in JSON, its numbers exact. Raises `Stop`."""
    try:
        return None if words is None else RECORDS.decode(words)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ArithmeticError) as error:
        raise Stop(ExitCode.USAGE, f"{option}: is not JSON: {error}") from None


@contextmanager
def _taker(call: Call, wait: Wait, timeout: float, *, store: float | None) -> Iterator[Straight | Handover]:
    """Who takes the events of *call*. *timeout* is for delivering, *store* for the disk, in seconds."""
    sidecar = found(call)
    if sidecar is not None:
        with closing(sidecar), Handover(sidecar, wait, timeout) as handover:
            yield handover
        return
    settings = call.settings()
    if store is None:
        settings = _patient(settings)
    with straight(settings, wait, timeout if wait is Wait.DELIVERED else store) as taker:
        yield taker


def _patient(settings: Settings) -> Settings:
    """*settings* for a reader that can wait, so that nothing is refused for want of room."""
    intake = msgspec.structs.replace(settings.intake, overflow="block")
    return msgspec.structs.replace(settings, intake=intake)


def _add_one(call: Call, record: dict[str, Any], wait: Wait, timeout: float) -> ExitCode:
    with _taker(call, wait, timeout, store=_STORE) as taker:
        identifier = taker.add(0, record)
        outcome = taker.finish()
        for _, problem in taker.rejected():
            raise Stop(ExitCode.USAGE, problem)
    if call.as_json:
        answer = {"id": identifier, "stored": bool(outcome.stored), "delivered": bool(outcome.delivered)}
        show_json({**answer, "refused": outcome.refusals[0][1] if outcome.refusals else None})
    elif outcome.stored:
        show(identifier)
    return _ending(outcome, wait)


def _file(
    call: Call,
    *,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A file with one JSON object a line; - for stdin.")
    ],
    wait: WaitFor = Wait.STORED,
    timeout: Timeout = 30.0,
) -> ExitCode:
    """Record the events of a file, one JSON object a line (NDJSON). Bad lines are named, good ones are kept.

    An activity has billing_id, user_id, activity_type_id, and if need be at and id. A meter event has
    event_name, customer_id, value, and if need be identifier, timestamp, subscription_id, metadata,
    source_data and livemode.
    """
    bad = _BadLines()
    with opened(file) as source, _taker(call, wait, timeout, store=None) as taker:
        _add_all(taker, source, bad)
        outcome = taker.finish()
        bad.note(taker.rejected())
    if call.as_json:
        show_json(
            {
                "accepted": outcome.accepted,
                "stored": outcome.stored,
                "bad": bad.count,
                "problems": bad.first,
                "delivered": outcome.delivered if wait is Wait.DELIVERED else None,
                "refused": outcome.refused,
                "pending": None if outcome.seen is None else pending(outcome.seen),
            }
        )
    else:
        show(f"{count(outcome.stored, 'event')} stored, {count(bad.count, 'bad line')}")
    code = _ending(outcome, wait)
    return ExitCode.NO if bad.count and code == ExitCode.WELL else code


class _BadLines:
    """The lines that are no events: each is told, the first are kept for the summary."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[dict[str, Any]] = []

    def note(self, lines: Iterable[tuple[int, str]]) -> None:
        for number, problem in lines:
            self.count += 1
            say(f"line {number}: {problem}")
            if len(self.first) < _TOLD:
                self.first.append({"line": number, "problem": problem})


def _add_all(taker: Straight | Handover, source: IO[bytes], bad: _BadLines) -> None:
    """Record all lines of *source*."""
    with progress(source) as advanced:
        for line in lines(source):
            problem = line.problem
            if problem is None:
                try:
                    taker.add(line.number, line.record)
                except InvalidEvent as error:
                    problem = str(error)
            if problem is not None:
                bad.note([(line.number, problem)])
            if line.number % _EVERY == 0:
                bad.note(taker.rejected())
                advanced(line.number, line.end)


def _ending(outcome: Outcome, wait: Wait) -> ExitCode:
    """Say on stderr what is not as it should be, and judge."""
    lost = outcome.accepted - outcome.stored
    if lost:
        trouble = outcome.trouble or "the disk did not answer in time"
        say(f"{count(lost, 'event')} NOT stored: {trouble}; add again")
        return ExitCode.NO
    for identifier, words in outcome.refusals[:_NAMED]:
        say(f"{identifier}: refused for good by {words}; it is kept: per-agent dead show {identifier}")
    if outcome.refused > min(len(outcome.refusals), _NAMED):
        say(f"{outcome.refused:,} were refused for good; they are kept: per-agent dead list")
    undecided = outcome.stored - (outcome.delivered or 0) - outcome.refused
    if wait is Wait.STORED and outcome.delivered is None:
        return ExitCode.WELL  # the sidecar delivers: whether it has by now says nothing
    seen = outcome.seen
    waiting = "it could not be asked" if seen is None else pending_words(seen)
    if undecided and waiting:
        say(f"stored, and not delivered yet: {waiting}; {outcome.keeper} goes on with it")
    if wait is Wait.STORED:
        return ExitCode.WELL
    if outcome.refused:
        return ExitCode.NO
    if not undecided:
        return ExitCode.WELL
    unreachable = seen is None or any(each["state"] == "retrying" for each in seen["destinations"].values())
    return ExitCode.UNREACHABLE if unreachable else ExitCode.NO
