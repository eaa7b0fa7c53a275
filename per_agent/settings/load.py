"""Loads the settings: the file over the environment, the environment over the defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from per_agent import late
from per_agent.errors import ConfigError
from per_agent.settings.environment import (
    DESTINATION_VARIABLES,
    default_data_dir,
    destinations_from,
    variable,
)
from per_agent.settings.reader import Reader, exposed
from per_agent.settings.secret import HIDDEN, Secret
from per_agent.settings.sections import AgentSettings, Settings


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings from the file at *path*, else at `PER_AGENT_CONFIG`, else from the environment alone.

    Secrets are looked up, relative paths in the file are relative to its folder, and `agent.data_dir` is
    filled in. With a file, destinations come from the file only. Raises `ConfigError` with every problem
    that was found, each with its dotted key or its variable, and never quotes a secret. Reads files, and
    writes and logs nothing: what works but should not be so is in `Settings.warnings`.
    """
    if path is None:
        named = variable(environ, "PER_AGENT_CONFIG")
        path = None if named is None else Path(named)
    problems: list[str] = []
    warnings: list[str] = []
    parts: dict[str, Any]
    if path is None:
        parts = {"destinations": destinations_from(environ, problems, warnings)}
    else:
        tables, readable_by_others = _tables(path)
        reader = Reader(environ, path.absolute().parent, exposed=readable_by_others)
        parts = reader.read(tables)
        problems += (f"{path}: {problem}" for problem in reader.problems)
        warnings += (f"{path}: {warning}" for warning in reader.warnings)
        if not tables.get("destinations"):
            warnings += _unused(path, environ)

    agent = parts.get("agent", AgentSettings())
    if agent is not None and agent.data_dir is None:
        try:
            parts["agent"] = msgspec.structs.replace(agent, data_dir=default_data_dir(environ))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return Settings(**parts, warnings=tuple(warnings))


def _tables(path: Path) -> tuple[dict[str, Any], bool]:
    """What the TOML file at *path* holds, and whether others can read it. Raises `ConfigError`."""
    with late.here():
        import tomllib  # noqa: PLC0415  (only for who has a file)
    try:
        with path.open("rb") as file:
            return tomllib.load(file), exposed(file.fileno())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8, as TOML must be") from None
    except (ValueError, RecursionError) as error:  # tomllib says what, and at which line and column
        raise ConfigError(f"{path}: is not TOML: {error}") from None


def _unused(path: Path, environ: Mapping[str, str]) -> list[str]:
    """A warning where the environment names destinations and *path*, which names none, wins over it."""
    given = ", ".join(name for name in DESTINATION_VARIABLES if name in environ)
    warning = (
        f"{path}: names no destination, so events go to the ledger; {given} in the environment counts only"
        ' without a file, or where the file asks for it with { env = "NAME" }'
    )
    return [warning] if given else []


def show(settings: Settings) -> dict[str, Any]:
    """The effective settings as plain values for JSON, secrets hidden, `warnings` left out."""
    shown: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=_plain)
    del shown["warnings"]
    return shown


def _plain(value: object) -> str:
    return HIDDEN if isinstance(value, Secret) else str(value)


def example() -> str:
    """The text of `config.example.toml`: every key with its default and one line of why."""
    with late.here():
        from importlib.resources import files  # noqa: PLC0415  (only the command line asks for this)
    # The wheel carries a copy inside the package; in a checkout the one at the top is the only one.
    shipped = files("per_agent") / "config.example.toml"
    if shipped.is_file():
        return shipped.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "config.example.toml").read_text(encoding="utf-8")


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """All secrets in *settings*, to be blotted out of whatever is written down."""
    sections = [settings.sidecar, *settings.destinations.values()]
    values = [getattr(section, field) for section in sections for field in section.__struct_fields__]
    return tuple(value.reveal() for value in values if isinstance(value, Secret))
