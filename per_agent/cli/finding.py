"""Which sidecar a command is for: the one that is named, else the one that runs on the folder."""

import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from per_agent import files
from per_agent.cli.call import Call
from per_agent.cli.exits import ExitCode, Stop
from per_agent.cli.sidecar import REMEDY, TOKEN, Sidecar
from per_agent.errors import ConfigError
from per_agent.settings import Settings, socket_path, token_path
from per_agent.settings.address import socket_of
from per_agent.settings.environment import variable

_SERVICE: Final = Path("/run/per-agent/agent.sock")
"""Where the systemd service listens."""
_CONNECT: Final = 2.0  # seconds
_LONGEST: Final = 4096  # bytes of a token's file


def found(call: Call) -> Sidecar | None:
    """The sidecar that *call* is for: the named one, else the one that runs on the folder; None without one.

    A folder or a configuration that the command line names is never answered for by another's sidecar.
    Raises `Stop` where a named one cannot be reached, and `ConfigError` where its address is none.
    """
    named = named_sidecar(call)
    if named is not None:
        return named
    settings = _settings(call)
    own = _own(call, settings)
    if own is not None or _is_particular(call):
        return own
    try:
        return _over(_SERVICE) if _listens(_SERVICE) else None
    except PermissionError:
        raise Stop(
            ExitCode.USAGE,
            f"the sidecar's socket {_SERVICE} is not for this user: join its group, or name a folder of your"
            " own with --data-dir",
        ) from None


def named_sidecar(call: Call) -> Sidecar | None:
    """The sidecar that the option names, else the environment. Raises as `found` does."""
    option, address = "--sidecar", call.sidecar
    if address is None and call.config is None and call.data_dir is None:
        option, address = "PER_AGENT_SIDECAR", variable(call.environ, "PER_AGENT_SIDECAR")
    if address is None:
        return None
    try:
        path = socket_of(address)
    except ConfigError as error:
        raise ConfigError([f"{option}: {problem}" for problem in error.problems]) from None
    try:
        reached = _listens(path) if path is not None else _accepts(address)
    except (OSError, UnicodeError) as error:  # a name may be none that the resolver takes
        words = getattr(error, "strerror", None) or str(error)
    else:
        words = "" if reached else "nobody listens there"
    if words:
        raise Stop(ExitCode.UNREACHABLE, f"the sidecar at {address} cannot be reached: {words}; {REMEDY}")
    return Sidecar(address, _token(call) if path is None else None)


def _own(call: Call, settings: Settings | None) -> Sidecar | None:
    """The sidecar that runs on the folder of *settings*."""
    if settings is None:
        folder = call.named_folder  # then there is nothing else to go by
        path = None if folder is None else folder / "agent.sock"
    else:
        folder, path = settings.agent.data_dir, socket_path(settings, call.environ)
    if folder is None or path is None:
        return None
    try:
        if not _listens(path):
            return None
    except PermissionError:
        return None  # whoever may not open the socket is told of the folder
    sidecar = _over(path)
    if path.parent == folder:
        return sidecar
    # A socket elsewhere may be that of another folder: `--data-dir` goes over what a configuration says.
    if Path(sidecar.status()["data_dir"]).resolve() == folder.resolve():
        return sidecar
    sidecar.close()
    return None


def _over(path: Path) -> Sidecar:
    return Sidecar(f"unix:{path}", None)


def _is_particular(call: Call) -> bool:
    """Whether something says which folder or which configuration is meant."""
    named = ("PER_AGENT_CONFIG", "PER_AGENT_DATA_DIR")
    return call.config is not None or call.data_dir is not None or any(each in call.environ for each in named)


def _settings(call: Call) -> Settings | None:
    try:
        return call.settings()
    except ConfigError:
        return None  # whoever needs them is told


def _token(call: Call) -> str | None:
    """What to show on TCP: the variable, else what the sidecar of this folder asks for. Raises `Stop`."""
    token = variable(call.environ, TOKEN) or _kept(_settings(call))
    if token is not None and not all("!" <= char <= "~" for char in token):
        raise Stop(ExitCode.USAGE, f"{TOKEN}: holds white space or characters that no token has")
    return token


def _kept(settings: Settings | None) -> str | None:
    if settings is None:
        return None
    if settings.sidecar.token is not None:
        return settings.sidecar.token.reveal()
    try:
        return files.read(token_path(settings), _LONGEST).decode("ascii", "replace").strip() or None
    except OSError:
        return None


def _listens(path: Path) -> bool:
    """Whether somebody listens on the Unix socket *path*. Raises `PermissionError` where one may not ask."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT)
        try:
            probe.connect(str(path))
        except PermissionError:
            raise
        except BlockingIOError:
            return True  # so many want to talk to it that this one has to wait
        except OSError:
            return False
    return True


def _accepts(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.create_connection((parts.hostname or "", port), _CONNECT):
        return True
