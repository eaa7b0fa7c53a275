"""Where the sidecar's socket and its token lie."""

from collections.abc import Mapping
from pathlib import Path

from per_agent.errors import ConfigError
from per_agent.settings.environment import default_data_dir
from per_agent.settings.sections import Settings


def socket_path(settings: Settings, environ: Mapping[str, str]) -> Path:
    """The sidecar's Unix socket; absolute where the settings' paths are.

    In this order: `sidecar.unix_socket`, `agent.sock` in the first folder of `RUNTIME_DIRECTORY` (which systemd
    sets for a unit with `RuntimeDirectory=`), `agent.sock` in the data folder. Raises `ConfigError` where that
    folder is neither in *settings* nor in *environ*. Whether the path is short enough is for the kernel to say.
    """
    if settings.sidecar.unix_socket is not None:
        return settings.sidecar.unix_socket
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(runtime or settings.agent.data_dir or default_data_dir(environ), "agent.sock")


def token_path(settings: Settings) -> Path:
    """The file of the token that the sidecar makes for itself. Raises `ConfigError` without a data folder."""
    if settings.agent.data_dir is None:
        raise ConfigError("agent.data_dir: is not set, so there is no place for the sidecar's token")
    return settings.agent.data_dir / "sidecar.token"
