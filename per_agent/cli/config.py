"""`config`: is the configuration right, what is in force, and what could stand in it."""

import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import typer

from per_agent.agent import Agent
from per_agent.cli.call import Call, command, group
from per_agent.cli.console import count, say, show, show_json
from per_agent.cli.exits import ExitCode, told
from per_agent.errors import ConfigError
from per_agent.settings import Settings, example
from per_agent.settings import show as shown


def register(app: typer.Typer) -> None:
    """Add `config` to the program."""
    config = group(
        app,
        "config",
        "The configuration: a TOML file, else the environment, else the embedded ledger.",
        "per-agent config example > config.toml",
        "per-agent config check --config config.toml",
        "per-agent config show",
    )
    command(config, "check", "per-agent config check --config config.toml")(_check)
    command(config, "show", "per-agent config show", "per-agent config show --json")(_show)
    command(config, "example", "per-agent config example > config.toml")(_example)


def _check(call: Call) -> ExitCode:
    """Say whether the configuration is right; where it is not, every problem, one a line. Sends nothing."""
    try:
        settings = call.settings()
        Agent.from_settings(settings)  # whether the destinations fit together; touches nothing
    except ConfigError as error:
        if not call.as_json:
            raise
        show_json({"ok": False, "problems": error.problems, "warnings": []})
        return told(error)[0]
    if call.as_json:
        show_json({"ok": True, "problems": [], "warnings": settings.warnings})
        return ExitCode.WELL
    for warning in settings.warnings:
        say(f"warning: {warning}")
    names = ", ".join(settings.destinations)
    show(f"OK: {_source(call)}; {count(len(settings.destinations), 'destination')}: {names}")
    return ExitCode.WELL


def _show(call: Call) -> None:
    """Show the settings in force, defaults filled in and secrets hidden, in the form of the file."""
    settings = call.settings()
    if call.as_json:
        show_json(shown(settings))
        return
    for line in _lines(call, settings):
        show(line)


def _example(call: Call) -> None:
    """Print a configuration file with every setting, its default, and one line of why."""
    if call.as_json:
        show_json({"example": example()})
    else:
        sys.stdout.write(example())


def _source(call: Call) -> str:
    path = call.config or call.environ.get("PER_AGENT_CONFIG")
    return f"from {path}" if path else "from the environment and the defaults, without a file"


def _lines(call: Call, settings: Settings) -> Iterator[str]:
    data_dir = settings.agent.data_dir
    there = data_dir is not None and data_dir.exists()
    yield f"# {_source(call)}"
    yield f"# the data folder {'is there' if there else 'is made when the first event is stored'}: {data_dir}"
    for warning in settings.warnings:
        yield f"# warning: {warning}"
    every = shown(settings)
    destinations = every.pop("destinations")
    for name, values in [
        *every.items(),
        *((f"destinations.{name}", each) for name, each in destinations.items()),
    ]:
        yield ""
        yield f"[{name}]"
        for key, value in values.items():
            yield f"#{key} =" if value is None else f"{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    """*value* as TOML writes it: numbers, truth and text look as in JSON."""
    return msgspec.json.encode(value).decode()
