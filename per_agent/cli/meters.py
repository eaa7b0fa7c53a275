"""`meters`: what usage is counted against, straight at the upstream."""

import json
from typing import Annotated, Any, Final

import typer
from msgspec import UNSET

from per_agent.cli.call import Call, command, group
from per_agent.cli.console import show_json, stdout, table
from per_agent.cli.exits import ExitCode, Stop
from per_agent.cli.source import upstreams

_SHOWN: Final = ("id", "event_name", "name", "unit", "status", "mode", "created")

Id = Annotated[str, typer.Argument(metavar="METER", help="The meter's id or its event name.")]
Livemode = Annotated[
    bool | None, typer.Option("--livemode/--testmode", help="Default: the destination's mode.")
]
Metadata = Annotated[str | None, typer.Option(metavar="JSON", help="A JSON object of labels.")]


def register(app: typer.Typer) -> None:
    """Add `meters` to the program."""
    meters = group(
        app,
        "meters",
        "Manage the meters that usage is counted against: at Payment Kit, else in the embedded ledger.",
        "per-agent meters create --name 'API calls' --event-name api.calls.v1 --unit calls",
        "per-agent meters list",
        "per-agent meters deactivate api.calls.v1",
    )
    command(meters, "list", "per-agent meters list", "per-agent meters list --q api --page-size 50 --json")(
        _list
    )
    command(meters, "show", "per-agent meters show api.calls.v1")(_show)
    command(
        meters, "create", "per-agent meters create --name 'API calls' --event-name api.calls.v1 --unit calls"
    )(_create)
    command(meters, "update", "per-agent meters update api.calls.v1 --name 'All API calls'")(_update)
    command(meters, "activate", "per-agent meters activate api.calls.v1")(_activate)
    command(meters, "deactivate", "per-agent meters deactivate api.calls.v1")(_deactivate)


def _list(
    call: Call,
    *,
    page: Annotated[int | None, typer.Option(min=1, help="From 1.")] = None,
    page_size: Annotated[int | None, typer.Option(min=1, help="Meters on a page.")] = None,
    event_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The one with this event name.")
    ] = None,
    livemode: Livemode = None,
    q: Annotated[str | None, typer.Option(metavar="TEXT", help="Part of the name or description.")] = None,
) -> None:
    """List the meters, the newest first, a page at a time."""
    with upstreams(call) as agent:
        answer = agent.meters.list(
            page=page, pageSize=page_size, event_name=event_name, livemode=livemode, q=q
        )
    if call.as_json or not isinstance(answer, dict) or not isinstance(answer.get("list"), list):
        show_json(answer)
        return
    found, total = answer["list"], answer.get("count")
    more = "" if len(found) == total else f"{len(found)} of {total}; see --page and --page-size"
    stdout().print(table(f"Meters: {total}", _SHOWN, map(_row, found), footing=more))


def _show(call: Call, meter: Id, livemode: Livemode = None) -> None:
    """Show one meter."""
    with upstreams(call) as agent:
        _print(call, agent.meters.retrieve(meter, livemode=livemode))


def _create(  # noqa: PLR0913  (the upstream's own parameters)
    call: Call,
    *,
    name: Annotated[str, typer.Option(metavar="TEXT", help="For people.")],
    event_name: Annotated[str, typer.Option(metavar="NAME", help="What events call it; unique in its mode.")],
    unit: Annotated[str, typer.Option(metavar="TEXT", help="What is counted: calls, GB.")],
    aggregation_method: Annotated[str | None, typer.Option(metavar="sum", help="Default: sum.")] = None,
    currency_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Default: a credit currency is made for it.")
    ] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    metadata: Metadata = None,
    livemode: Livemode = None,
) -> None:
    """Make a meter, active at once. Events that were parked for it go on by themselves."""
    labels = _labels(metadata)
    with upstreams(call) as agent:
        made = agent.meters.create(
            name=name,
            event_name=event_name,
            unit=unit,
            aggregation_method=aggregation_method,
            currency_id=currency_id,
            description=description,
            metadata=labels,
            livemode=livemode,
        )
    _print(call, made)


def _update(  # noqa: PLR0913  (the upstream's own parameters)
    call: Call,
    *,
    meter: Id,
    name: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    unit: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    status: Annotated[str | None, typer.Option(metavar="STATUS", help="active or inactive.")] = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="A JSON object; it replaces all labels that are there.")
    ] = None,
    livemode: Livemode = None,
) -> None:
    """Change what is given of a meter, and leave the rest."""
    given = {
        "name": name,
        "description": description,
        "unit": unit,
        "status": status,
        "metadata": _labels(metadata),
    }
    changes: dict[str, Any] = {field: UNSET if value is None else value for field, value in given.items()}
    if all(value is UNSET for value in changes.values()):
        raise Stop(
            ExitCode.USAGE, "nothing to change: give --name, --description, --unit, --status or --metadata"
        )
    with upstreams(call) as agent:
        _print(call, agent.meters.update(meter, **changes, livemode=livemode))


def _activate(call: Call, meter: Id, livemode: Livemode = None) -> None:
    """Let a meter take events. Those that were parked for it go on by themselves."""
    with upstreams(call) as agent:
        _print(call, agent.meters.activate(meter, livemode=livemode))


def _deactivate(call: Call, meter: Id, livemode: Livemode = None) -> None:
    """Let a meter refuse events. Those for it are parked until it is active again; none is lost."""
    with upstreams(call) as agent:
        _print(call, agent.meters.deactivate(meter, livemode=livemode))


def _labels(words: str | None) -> Any:
    """Metadata as it goes to the upstream. Raises `Stop` where it is no JSON object."""
    if words is None:
        return None
    try:
        labels = json.loads(words)
    except (ValueError, RecursionError) as error:
        raise Stop(ExitCode.USAGE, f"--metadata: is not JSON: {error}") from None
    if not isinstance(labels, dict):
        raise Stop(ExitCode.USAGE, '--metadata: must be a JSON object such as \'{"team": "api"}\'')
    return labels


def _print(call: Call, meter: Any) -> None:
    if call.as_json or not isinstance(meter, dict):
        show_json(meter)
        return
    rows = {**{field: meter.get(field) for field in ("id", "event_name", "name", "description", "unit")}}
    rows |= {
        "status": meter.get("status"),
        "mode": _mode(meter),
        "aggregation": meter.get("aggregation_method"),
    }
    rows |= {"currency": meter.get("currency_id"), "metadata": json.dumps(meter.get("metadata"))}
    rows |= {"created": meter.get("created_at"), "updated": meter.get("updated_at")}
    stdout().print(table(f"Meter {meter.get('event_name')}", ("field", "value"), rows.items()))


def _row(meter: dict[str, Any]) -> list[object]:
    return [*(meter.get(field) for field in _SHOWN[:5]), _mode(meter), meter.get("created_at")]


def _mode(meter: dict[str, Any]) -> str | None:
    livemode = meter.get("livemode")
    return None if livemode is None else ("live" if livemode else "test")
