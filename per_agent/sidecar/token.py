"""The sidecar's own token: the configured one, else one that is made once and kept in the data folder."""

import os
import secrets
from pathlib import Path
from typing import Final

from per_agent import failpoint, files
from per_agent.errors import ConfigError
from per_agent.log import Log
from per_agent.settings import Secret, Settings, token_path

_BYTES: Final = 32
_OTHERS: Final = 0o077
_LONGEST: Final = 4096  # bytes


def token_of(settings: Settings) -> str:
    """The token that TCP clients present. Raises `ConfigError` where it can be neither read nor kept."""
    configured = settings.sidecar.token
    if configured is not None:
        return configured.reveal()
    path = token_path(settings)
    try:
        return _read(path) or _make(path)
    except OSError as error:
        raise ConfigError(
            f"sidecar.token: is not set, and none can be kept in {path}: {error.strerror}"
        ) from None


def _read(path: Path) -> str | None:
    try:
        text = files.read(path, _LONGEST).decode("ascii", "replace").strip()
        if path.stat().st_mode & _OTHERS:
            Log().warning("the sidecar's token can be read by others: chmod 600 it", file=str(path))
        return Secret(text).reveal()
    except FileNotFoundError:
        return None
    except ConfigError as error:
        raise ConfigError(f"sidecar.token: {path} {error}; remove it to have a new one made") from None


def _make(path: Path) -> str:
    """Make a token and keep it for this user only. Another process may do so at the same time: the first wins."""
    files.make_folder(path.parent)
    made = secrets.token_urlsafe(_BYTES)
    partial = path.with_name(
        f"{path.name}.{secrets.token_hex(8)}"
    )  # a name that nobody could plant a link under
    with os.fdopen(files.create(partial), "w") as file:
        file.write(made + "\n")
        file.flush()
        os.fsync(file.fileno())
    failpoint.reach("token written")
    try:
        os.link(partial, path)
        failpoint.reach("token linked")
    except FileExistsError:
        return _read(path) or made
    finally:
        partial.unlink()
    return made
