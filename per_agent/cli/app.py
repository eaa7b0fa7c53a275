"""The commands put together, and `main`: from argv to an exit code."""

import logging
import os
import sys
from typing import Annotated, Any, Final

import typer
import typer.core

from per_agent.cli import add, config, dead, demo, meters, report, run, status
from per_agent.cli.call import QUIET, AsJson, Config, DataDir, Group, SidecarAt, Verbose, call_of, taught
from per_agent.cli.console import plain, say
from per_agent.cli.exits import ExitCode
from per_agent.version import version

# Typer keeps Click inside itself in some releases and beside itself in others; both ways its
# `BadParameter` is a `UsageError`, which is a `ClickException`.
_CommandLineError: Final[Any] = typer.BadParameter.__mro__[2]

_HELP: Final = """Keeps billable usage events safe on disk, and delivers them.

They go to Per, to Payment Kit, or to an embedded ledger.

Nothing needs to be configured to begin: without a configuration, events go to the embedded ledger.
Exit codes: 0 well, 1 the answer is no, 2 usage or configuration, 3 the sidecar or the upstream cannot be reached.
"""
_EXAMPLES: Final = (
    "per-agent demo",
    "per-agent run",
    "per-agent add activity acme u-17 active-users",
    "per-agent report --last 7d",
    "per-agent status",
    "per-agent config example > config.toml",
)


def build() -> typer.Typer:
    """The whole program."""
    app = typer.Typer(
        name="per-agent",
        cls=Group,
        help=taught(_HELP, _EXAMPLES),
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
    )
    app.callback()(_everywhere)
    for module in (demo, run, add, report, meters, status, dead, config):
        module.register(app)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"per-agent {version()}\n")
        raise typer.Exit


def _everywhere(
    context: typer.Context,
    *,
    config: Config = None,
    data_dir: DataDir = None,
    sidecar: SidecarAt = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    version: Annotated[  # noqa: ARG001  (its callback has seen to it)
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    given = {"config": config, "data_dir": data_dir, "sidecar": sidecar, "as_json": as_json}
    call_of(context, {**given, "verbose": verbose})


_UNSAID: Final = (
    "an event is dead",  # the commands say it, with the identifier
    "the destination is in trouble: its events are kept",  # they say it, with what waits
    "events do not fit",  # whoever reads a file waits, and that is all there is to it
)


class _Once(logging.Handler):
    """The agent's log on stderr: with --verbose all of it, else once what the commands do not say themselves.

    That is trouble with the disk, mostly. What goes wrong for a million records goes wrong in one way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told = {f'event="{sentence}' for sentence in _UNSAID}

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if logging.getLogger("per_agent").level <= logging.INFO:
            say(line)
            return
        kind = line.partition('" ')[0]
        if kind not in self._told:
            self._told.add(kind)
            say(line)


def main() -> None:
    """The entry point: run the command of this process and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a message is never worth a traceback
    log = logging.getLogger("per_agent")
    log.addHandler(_Once())
    log.setLevel(QUIET)
    log.propagate = False
    try:
        code = build()(standalone_mode=False, prog_name="per-agent")
        sys.stdout.flush()
    except _CommandLineError as error:
        context = getattr(error, "ctx", None)
        where = "per-agent" if context is None else context.command_path
        say(f"{plain(error.format_message()).rstrip('.')}; see {where} --help")
        code = ExitCode.USAGE
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        code = ExitCode.BROKEN_PIPE
    if code == ExitCode.BROKEN_PIPE:
        # The interpreter flushes stdout at its end; there is nobody to flush it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code or ExitCode.WELL)
