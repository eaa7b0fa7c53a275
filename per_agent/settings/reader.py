"""Reads the tables of a configuration file into settings, and collects all that is wrong on the way."""

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import msgspec

from per_agent.errors import ConfigError
from per_agent.settings.address import in_the_clear
from per_agent.settings.kinds import Size, expected, fit, found, leaves, parse_size, sort_of
from per_agent.settings.secret import Secret
from per_agent.settings.sections import SECTIONS
from per_agent.settings.upstreams import DESTINATIONS, DestinationSettings, LedgerSettings

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
LANE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A destination's name, which is also that of its lane in the spool: part of keys there, between slashes."""
_MAX_SECRET_BYTES: Final = 8192
_OTHERS_READ: Final = stat.S_IRGRP | stat.S_IROTH


class Reader:
    """Reads tables. Nothing raises: `problems` and `warnings` say it, each with its dotted key.

    Args:
        environ: where `{ env = "NAME" }` and systemd's `CREDENTIALS_DIRECTORY` are looked up.
        folder: what relative paths are relative to; absolute.
        exposed: whether the tables come from a file that others than its owner can read.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path, *, exposed: bool) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._environ = environ
        self._folder = folder
        self._exposed = exposed

    def read(self, tables: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments for `Settings`, as far as *tables* are right."""
        for name in tables:
            if name not in SECTIONS and name != "destinations":
                homes = [section for section, kind in SECTIONS.items() if name in kind.__struct_fields__]
                hint = _did_you_mean(name, [*SECTIONS, "destinations"])
                self.problems.append(
                    f"{_key(name)}: unknown section; "
                    + (f"did you mean {homes[0]}.{name}?" if homes else hint)
                )
        parts: dict[str, Any] = {
            name: self._struct(name, tables[name], kind) for name, kind in SECTIONS.items() if name in tables
        }
        destinations = self._destinations(tables.get("destinations", {}))
        return parts | {"destinations": destinations}

    def _destinations(self, tables: object) -> dict[str, DestinationSettings]:
        if not isinstance(tables, dict):
            self.problems.append(
                f"destinations: expected a table for each destination, found {found(tables)}"
            )
            return {}
        destinations = {}
        for name, table in tables.items():
            destination = self._destination(f"destinations.{_key(name)}", table)
            if LANE.fullmatch(name) is None:
                self.problems.append(
                    f"destinations.{_key(name)}: a destination's name is up to 64 letters, digits, _ and -"
                )
            destinations[name] = destination
        return destinations or {"ledger": LedgerSettings()}

    def _destination(self, key: str, table: object) -> Any:
        if not isinstance(table, dict):
            self.problems.append(f"{key}: expected a table, found {found(table)}")
            return None
        fields = dict(table)
        tag = fields.pop("type", None)
        kind = DESTINATIONS.get(tag) if isinstance(tag, str) else None
        if kind is None:
            choices = ", ".join(f'"{name}"' for name in DESTINATIONS)
            hint = _did_you_mean(tag, DESTINATIONS) if isinstance(tag, str) else ""
            self.problems.append(
                f"{key}.type: expected one of {choices}, found {found(tag)}" + (f"; {hint}" if hint else "")
            )
            return None
        destination = self._struct(key, fields, kind)
        url = getattr(destination, "url", None)
        if url is not None and in_the_clear(url):
            self.warnings.append(f"{key}.url: http:// sends the credentials in the clear; use https://")
        return destination

    def _struct(self, key: str, table: object, kind: type[msgspec.Struct]) -> Any:
        """A *kind* with what *table* holds, or None where there was a problem."""
        if not isinstance(table, dict):
            self.problems.append(f"{key}: expected a table, found {found(table)}")
            return None
        problems_before = len(self.problems)
        for name in table:
            if name not in kind.__struct_fields__:
                hint = _did_you_mean(name, kind.__struct_fields__)
                self.problems.append(f"{key}.{_key(name)}: unknown key; {hint}")
        values = {}
        for field in msgspec.structs.fields(kind):
            at = f"{key}.{field.name}"
            if field.name not in table:
                if field.required:
                    self.problems.append(f"{at}: is missing; expected {expected(field.type)}")
                continue
            try:
                values[field.name] = fit(self._prepare(at, field.type, table[field.name]), field.type)
            except ConfigError as error:
                self.problems += (f"{at}: {problem}" for problem in error.problems)
        if len(self.problems) > problems_before:
            return None
        try:
            return kind(**values)
        except ConfigError as error:  # each value is well by itself, and not beside the others
            self.problems += (f"{key}.{problem}" for problem in error.problems)
            return None

    def _prepare(self, at: str, kind: Any, raw: Any) -> Any:
        """*raw*, in the form in which TOML holds a value of *kind*, as that value. Raises `ConfigError`."""
        if Secret in leaves(kind):
            return self._secret(at, raw)
        if kind == Size and isinstance(raw, str):
            return parse_size(raw)
        if Path in leaves(kind) and isinstance(raw, str):
            return self._path(raw)
        return raw

    def _path(self, raw: str) -> Path:
        if not raw or "\0" in raw:
            raise ConfigError(f"expected a path, found {'an empty string' if not raw else 'a NUL in it'}")
        home = self._environ.get("HOME")
        if raw == "~" or raw.startswith("~/"):
            if not home:
                raise ConfigError("~ stands for $HOME, which is not set")
            raw = f"{home}/{raw[2:]}"
        return self._folder / raw  # an absolute path replaces the folder

    def _secret(self, at: str, raw: object) -> Secret:
        """The token that *raw* holds or names. Raises `ConfigError` that never quotes it."""
        if isinstance(raw, str):
            if self._exposed:
                self.warnings.append(
                    f"{at}: a token in a file that others can read: chmod 600 it, or name a source"
                )
            return Secret(raw)
        match list(raw.items()) if isinstance(raw, dict) else None:
            case [("env", str(name))]:
                return self._secret_from_environment(name)
            case [("file", str(name))]:
                path = self._path(name)
                return self._secret_from_file(path, f"the file {_shown(path)}", warn_as=at)
            case [("credential", str(name))]:
                return self._secret_from_credential(name)
        keys = f" with {', '.join(map(_key, raw)) or 'nothing in it'}" if isinstance(raw, dict) else ""
        raise ConfigError(f"expected {expected(Secret)}, found {sort_of(raw)}{keys}")

    def _secret_from_environment(self, name: str) -> Secret:
        text = self._environ.get(name)
        if text is None:
            raise ConfigError(f"the environment variable {_key(name)} is not set")
        return _secret(text, f"the environment variable {_key(name)}")

    def _secret_from_credential(self, name: str) -> Secret:
        if not name or name in {".", ".."} or "/" in name or "\0" in name:
            raise ConfigError("a credential's name is a file name, without a folder")
        folder = self._environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise ConfigError(
                f"the credential {_key(name)} cannot be looked up: $CREDENTIALS_DIRECTORY is not set;"
                " systemd sets it for a unit with LoadCredential="
            )
        return self._secret_from_file(Path(folder, name), f"the credential {_key(name)} in {folder}")

    def _secret_from_file(self, path: Path, source: str, *, warn_as: str | None = None) -> Secret:
        try:
            with path.open("rb") as file:
                readable_by_others = exposed(file.fileno())
                content = file.read(_MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{source} cannot be read: {error.strerror}") from None
        if len(content) > _MAX_SECRET_BYTES:
            raise ConfigError(f"{source} is longer than {_MAX_SECRET_BYTES} bytes, and so holds no token")
        if warn_as is not None and readable_by_others:
            self.warnings.append(f"{warn_as}: {_shown(path)} can be read by others: chmod 600 it")
        # Editors and `echo` end a file with a newline; more than one is not theirs.
        return _secret(content.decode("ascii", "replace").removesuffix("\n").removesuffix("\r"), source)


def exposed(descriptor: int) -> bool:
    """Whether others than its owner can read the file that is open as *descriptor*."""
    return bool(os.fstat(descriptor).st_mode & _OTHERS_READ)


def _secret(text: str, source: str) -> Secret:
    try:
        return Secret(text)
    except ConfigError as error:
        raise ConfigError(f"{source} {error}") from None


def _did_you_mean(name: str, choices: Iterable[str]) -> str:
    choices = tuple(choices)
    close = get_close_matches(name.lower(), choices, n=1)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(choices)}"


def _shown(path: Path) -> str:
    return str(path) if str(path).isprintable() else repr(str(path))


def _key(name: str) -> str:
    """*name* as TOML writes a key: what is not a bare word is quoted, so that no message can be forged."""
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name)
