"""`run`: the sidecar, in the foreground."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from per_agent.cli.call import Call, command
from per_agent.cli.exits import ExitCode, Stop
from per_agent.errors import ConfigError
from per_agent.settings import Settings

Listen = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="TCP: 127.0.0.1:4737, [::1]:4737; port 0 is any; '' is none."),
]
Socket = Annotated[str | None, typer.Option(metavar="PATH", help="The Unix socket.")]
LogFormat = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", help="auto, console or json; auto is console where somebody watches."),
]
LogLevel = Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")]


def register(app: typer.Typer) -> None:
    """Add `run` to the program."""
    command(
        app,
        "run",
        "per-agent run",
        "per-agent run --config /etc/per-agent/config.toml",
        "per-agent run --data-dir ./data --listen 127.0.0.1:4800",
        "per-agent run --listen '' --socket /tmp/agent.sock --log-format json",
    )(_run)


def _run(
    call: Call,
    *,
    listen: Listen = None,
    socket: Socket = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
) -> ExitCode | None:
    """Run the sidecar: other processes, in any language, hand it events over HTTP and have an answer at once.

    It listens on a Unix socket, for whoever may open its file, and on TCP on this machine, for whoever has its
    token; both are told when it is ready. Existing clients of Per and Payment Kit need only another base URL.
    SIGHUP reads the configuration again. SIGTERM and Ctrl-C stop it, and no event is lost.
    """
    if socket == "":
        raise Stop(ExitCode.USAGE, "--socket: name a path")
    every = {
        "listen": listen,
        "unix_socket": None if socket is None else Path(socket).absolute(),
        "log_format": log_format,
        "log_level": log_level,
    }
    given = {name: value for name, value in every.items() if value is not None}
    settings = _settings(call, given)
    try:
        from per_agent.sidecar import server  # noqa: PLC0415  (its libraries are for those who run one)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "per_agent":
            raise
        raise Stop(
            ExitCode.USAGE, f"the sidecar needs {error.name}: pip install 'per-agent[sidecar]'"
        ) from None
    _let_go_of_the_log()
    return ExitCode(server.run(settings, call.environ, lambda: _settings(call, given)))


def _settings(call: Call, given: Mapping[str, object]) -> Settings:
    """The settings, with what the command line says of the sidecar over them. Raises `ConfigError`."""
    settings = call.settings()
    try:
        sidecar = msgspec.structs.replace(settings.sidecar, **given)
    except ConfigError as error:
        raise ConfigError([f"sidecar.{problem}" for problem in error.problems]) from None
    return msgspec.structs.replace(settings, sidecar=sidecar)


def _let_go_of_the_log() -> None:
    """The sidecar has a log of its own; the command's few words on stderr are for the other commands."""
    log = logging.getLogger("per_agent")
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.setLevel(logging.NOTSET)
