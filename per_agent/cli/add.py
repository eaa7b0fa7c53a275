"""`add`: hands events straight to the spool, and delivers what can be delivered in a short time."""

from collections.abc import Callable
from enum import StrEnum
from typing import IO, Annotated, Any, Final

import msgspec
import typer

from per_agent.agent import Agent
from per_agent.cli.call import Call, Group, command, group, running
from per_agent.cli.console import count, say, show, show_json
from per_agent.cli.exits import ExitCode, Stop
from per_agent.cli.overview import Overview, overview
from per_agent.cli.records import lines, opened, progress
from per_agent.cli.tally import Tally
from per_agent.cli.times import of_event
from per_agent.errors import InvalidEvent, SpoolError
from per_agent.event import RECORDS, Receipt
from per_agent.settings import Settings

_CLOSE: Final = 2.0  # seconds that delivering may take, once the events are stored
_STORE: Final = 30.0  # seconds that a disk may take before one event is given up
_TOLD: Final = 1000  # bad lines kept for the summary
_NAMED: Final = 10  # refused events named one by one
_EVERY: Final = 500  # records between two looks at the progress bar


class Wait(StrEnum):
    """What to wait for."""

    STORED = "stored"
    DELIVERED = "delivered"


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
    return _add_one(
        call,
        lambda agent: agent.add_activity(billing_id, user_id, activity_type_id, moment),
        wait,
        timeout,
    )


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
    return _add_one(
        call,
        lambda agent: agent.add_meter_event(
            event_name,
            customer_id=customer,
            value=value,
            subscription_id=subscription,
            identifier=identifier,
            timestamp=moment,
            metadata=labels,
            source_data=source,
            livemode=livemode,
        ),
        wait,
        timeout,
    )


def json_option(option: str, words: str | None) -> Any:
    """The value of an option that is written in JSON, its numbers exact. Raises `Stop`."""
    try:
        return None if words is None else RECORDS.decode(words)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ArithmeticError) as error:
        raise Stop(ExitCode.USAGE, f"{option}: is not JSON: {error}") from None


def _add_one(call: Call, add: Callable[[Agent], Receipt], wait: Wait, timeout: float) -> ExitCode:
    settings = call.settings()
    patience = timeout if wait is Wait.DELIVERED else _STORE
    with running(settings) as agent:
        receipt = add(agent)
        tally = Tally(Receipt.delivered if wait is Wait.DELIVERED else Receipt.stored, patience)
        tally.add(receipt)
        tally.settle()
        trouble = (agent.status().get("spool") or {}).get("trouble")
        agent.close(0.0 if wait is Wait.DELIVERED else _CLOSE)
        tally.close()
    seen = _look(settings)
    if call.as_json:
        answer = {"id": receipt.id, "stored": bool(tally.stored), "delivered": bool(tally.delivered)}
        show_json({**answer, "refused": tally.refusals[0][1] if tally.refusals else None})
    elif tally.stored:
        show(receipt.id)
    return _ending(tally, wait, seen, trouble)


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
    settings = call.settings()
    # The reader can wait, so nothing is refused for want of room.
    intake = msgspec.structs.replace(settings.intake, overflow="block")
    patient = msgspec.structs.replace(settings, intake=intake)
    tally = Tally(
        Receipt.delivered if wait is Wait.DELIVERED else Receipt.stored,
        timeout if wait is Wait.DELIVERED else None,
    )
    bad: list[dict[str, Any]] = []
    with opened(file) as source, running(patient) as agent:
        bad_lines = _add_all(agent, source, tally, bad)
        tally.settle()
        trouble = (agent.status().get("spool") or {}).get("trouble")
        agent.close(0.0 if wait is Wait.DELIVERED else _CLOSE)
        tally.close()
    seen = _look(settings)
    if call.as_json:
        show_json(
            {
                "accepted": tally.accepted,
                "stored": tally.stored,
                "bad": bad_lines,
                "problems": bad,
                "delivered": tally.delivered if wait is Wait.DELIVERED else None,
                "refused": tally.refused,
                "pending": None if seen is None else seen.pending(),
            }
        )
    else:
        show(f"{count(tally.stored, 'event')} stored, {count(bad_lines, 'bad line')}")
    code = _ending(tally, wait, seen, trouble)
    return ExitCode.NO if bad_lines and code == ExitCode.WELL else code


def _add_all(agent: Agent, source: IO[bytes], tally: Tally, bad: list[dict[str, Any]]) -> int:
    """Record all lines of *source*. Returns the number of bad ones, the first of which go to *bad*."""
    bad_lines = 0
    with progress(source) as advanced:
        for line in lines(source):
            problem = line.problem
            if problem is None:
                try:
                    tally.add(agent.add_record(line.record))
                except InvalidEvent as error:
                    problem = str(error)
            if problem is not None:
                bad_lines += 1
                say(f"line {line.number}: {problem}")
                if len(bad) < _TOLD:
                    bad.append({"line": line.number, "problem": problem})
            if line.number % _EVERY == 0:
                advanced(line.number, line.end)
    return bad_lines


def _look(settings: Settings) -> Overview | None:
    assert settings.agent.data_dir is not None  # `load` has filled it in
    try:
        return overview(settings.agent.data_dir, tuple(settings.destinations))
    except SpoolError as error:  # another one than ours: the events are stored all the same
        say(str(error))
        return None


def _ending(tally: Tally, wait: Wait, seen: Overview | None, trouble: str | None) -> ExitCode:
    """Say on stderr what is not as it should be, and judge."""
    lost = tally.accepted - tally.stored
    if lost:
        say(f"{count(lost, 'event')} NOT stored: {trouble or 'the disk did not answer in time'}; add again")
        return ExitCode.NO
    for identifier, words in tally.refusals[:_NAMED]:
        say(f"{identifier}: refused for good by {words}; it is kept: per-agent dead show {identifier}")
    if tally.refused > _NAMED:
        say(f"{tally.refused:,} were refused for good; they are kept: per-agent dead list")
    waiting = "" if seen is None else seen.pending_words()
    undecided = tally.stored - tally.delivered - tally.refused
    if undecided and waiting:
        say(f"stored, and not delivered yet: {waiting}; the next agent on this folder goes on with it")
    if wait is Wait.STORED:
        return ExitCode.WELL
    if tally.refused:
        return ExitCode.NO
    if not undecided:
        return ExitCode.WELL
    unreachable = seen is not None and any(
        each.condition is not None and each.condition.state == "retrying" for each in seen.standings
    )
    return ExitCode.UNREACHABLE if unreachable else ExitCode.NO
