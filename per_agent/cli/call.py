"""What every command is given: the options that may stand anywhere, the settings, an agent.

`command` registers a function as a command. Its first parameter is the `Call`; the others are its own
arguments and options. The options of the `Call` are taken before the command's name and after it.
"""

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.markup import escape

from per_agent.agent import Agent
from per_agent.cli.console import say
from per_agent.cli.exits import EXPECTED, ExitCode, Stop, told
from per_agent.errors import ConfigError, SpoolError
from per_agent.settings import Settings, default_data_dir, load

_PANEL: Final = "Everywhere"
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration. Default: $PER_AGENT_CONFIG, else the environment.",
        rich_help_panel=_PANEL,
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="The folder of the spools, whatever the configuration says.",
        rich_help_panel=_PANEL,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.", rich_help_panel=_PANEL)]
SidecarAt = Annotated[
    str | None,
    typer.Option(
        "--sidecar",
        metavar="ADDRESS",
        help="Speak to this sidecar: unix:/path or http://host:port. Default: $PER_AGENT_SIDECAR, else the one"
        " that runs on the folder.",
        rich_help_panel=_PANEL,
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the agent's own log.", rich_help_panel=_PANEL)
]
_SHARED: Final[Mapping[str, tuple[Any, Any]]] = {
    "config": (Config, None),
    "data_dir": (DataDir, None),
    "sidecar": (SidecarAt, None),
    "as_json": (AsJson, False),
    "verbose": (Verbose, False),
}

QUIET: Final = logging.CRITICAL + 1
"""The level of the agent's log while no agent is at work, and without --verbose."""
_INTERRUPTED_TIMEOUT: Final = 0.2  # seconds that delivering may still take after Ctrl-C


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of the program: what was asked for, whatever the command."""

    config: str | None = None
    data_dir: str | None = None
    sidecar: str | None = None
    as_json: bool = False
    verbose: bool = False
    environ: Mapping[str, str] = msgspec.field(default_factory=lambda: os.environ)

    def over(self, before: "Call") -> "Call":
        """This call's options, and *before*'s where it has none."""
        return Call(
            config=before.config if self.config is None else self.config,
            data_dir=before.data_dir if self.data_dir is None else self.data_dir,
            sidecar=before.sidecar if self.sidecar is None else self.sidecar,
            as_json=self.as_json or before.as_json,
            verbose=self.verbose or before.verbose,
            environ=before.environ,
        )

    @property
    def named_folder(self) -> Path | None:
        """The folder that `--data-dir` names."""
        if self.data_dir == "":
            raise Stop(ExitCode.USAGE, "--data-dir: name a folder")
        return None if self.data_dir is None else Path(self.data_dir).absolute()

    def settings(self) -> Settings:
        """The settings in force. Raises `ConfigError`."""
        if self.config == "":
            raise Stop(ExitCode.USAGE, "--config: name a file")
        environ, folder = self.environ, self.named_folder
        if folder is not None:  # so that it is not asked for elsewhere, and then over the file's
            environ = {**environ, "PER_AGENT_DATA_DIR": str(folder)}
        settings = load(None if self.config is None else Path(self.config), environ)
        if folder is None:
            return settings
        return msgspec.structs.replace(
            settings, agent=msgspec.structs.replace(settings.agent, data_dir=folder)
        )

    def place(self) -> tuple[Path, tuple[str, ...] | None]:
        """The data folder and the names of the destinations, None where they are not known.

        Whoever only looks into a folder that `--data-dir` names needs no configuration: its secrets may be
        out of reach, as those of a service are. Raises `ConfigError` where no folder is named.
        """
        folder = self.named_folder
        try:
            settings = self.settings()
        except ConfigError as error:
            if folder is None:
                raise ConfigError(
                    [
                        *error.problems,
                        "to look into a folder without a configuration, name it with --data-dir",
                    ]
                ) from None
            say(f"the configuration cannot be read, so destinations are not known: {error.problems[0]}")
            return folder, None
        return settings.agent.data_dir or default_data_dir(self.environ), tuple(settings.destinations)


@contextmanager
def running(settings: Settings) -> Iterator[Agent]:
    """An agent at work. The command closes it; where that fails or is interrupted, this does.

    What it has to say of trouble with the disk goes to stderr meanwhile. Raises `SpoolError` when no spool
    can be opened.
    """
    agent = Agent.from_settings(settings)
    log = logging.getLogger("per_agent")
    quiet = log.level
    try:
        try:
            agent.start(wait=True)
        except SpoolError as error:
            raise SpoolError(f"{error}; name another folder with --data-dir") from error
        log.setLevel(min(quiet, logging.ERROR))
        yield agent
    finally:
        agent.close(_INTERRUPTED_TIMEOUT)
        log.setLevel(quiet)


def command(
    app: typer.Typer,
    name: str,
    *examples: str,
    hidden: bool = False,
) -> Callable[[Callable[..., ExitCode | None]], Callable[..., ExitCode | None]]:
    """Register a function as the command *name*; *examples* are shown in its help."""

    def register(function: Callable[..., ExitCode | None]) -> Callable[..., ExitCode | None]:
        signature = inspect.signature(function, eval_str=True)
        own = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for each in list(signature.parameters.values())[1:]
        ]

        def run(context: typer.Context, **given: Any) -> None:
            call = call_of(context, given)
            code = guarded(lambda: function(call, **given))
            if code:
                raise typer.Exit(code)

        kinds = {"context": typer.Context} | {each.name: each.annotation for each in own}
        parameters = [
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *own,
        ]
        for option, (kind, default) in _SHARED.items():
            kinds[option] = kind
            parameters.append(
                inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            )
        # Typer reads what a command takes from these two.
        run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]  # functions take it, their type does not say so
        run.__annotations__ = kinds
        app.command(name, help=taught(function.__doc__ or "", examples), hidden=hidden)(run)
        return function

    return register


def taught(words: str, examples: tuple[str, ...]) -> str:
    """A help text: *words* and *examples*, in Rich's markup."""
    shown = escape(inspect.cleandoc(words))
    if examples:
        # Typer keeps the lines of a paragraph that begins with a backspace, which it does not print.
        lines = "\n".join(f"  [cyan]{escape(example)}[/]" for example in examples)
        shown += f"\n\n[bold]Examples[/]\n\n\b{lines}"
    return shown


def call_of(context: typer.Context, given: dict[str, Any]) -> Call:
    """The call, with the options taken out of *given*, over those that stood before the command's name."""
    call = Call(**{option: given.pop(option) for option in _SHARED})
    if isinstance(context.obj, Call):
        call = call.over(context.obj)
    context.obj = call
    if call.verbose:
        logging.getLogger("per_agent").setLevel(logging.INFO)
    return call


def guarded(work: Callable[[], ExitCode | None]) -> ExitCode | None:
    """*work*'s exit code; an expected error becomes its line and its exit code."""
    try:
        return work()
    except EXPECTED as error:
        code, lines = told(error)
        for line in lines:
            say(line)
        return code


class Group(typer.core.TyperGroup):
    """A group of commands that shows its help when no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer's; but a group by itself is half a command, so its help ends with the code for usage."""
        if args:
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, ["--help"])
        except typer.Exit:
            raise typer.Exit(ExitCode.USAGE) from None


def group(app: typer.Typer, name: str, words: str, *examples: str, kind: type[Group] = Group) -> typer.Typer:
    """A new group of commands within *app*."""
    made = typer.Typer(cls=kind, help=taught(words, examples))
    app.add_typer(made, name=name)
    return made
