"""The sockets that a sidecar listens on: inherited from systemd, or made here."""

import errno
import os
import resource
import shutil
import socket
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from per_agent import files
from per_agent.errors import ConfigError
from per_agent.settings import Settings, SidecarSettings, socket_path

_MAX_PATH: Final = 107  # bytes that the kernel takes for the path of a Unix socket
_WAYS: Final = 2  # in: by Unix socket, by TCP
BACKLOG: Final = 4096
_FILES: Final = 256  # open files beside the connections: spools, the ledger, upstreams


def make_room(connections: int) -> int:
    """Let this process have as many open files as that many *connections* need by each way, as far as it may.

    Returns how many there can be by each way. More would take the files that the spools need.
    """
    wanted = _WAYS * connections + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a sandbox may forbid it: then there are as many as there are
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return connections
    return min(connections, max(1, max(allowed - _FILES, allowed // 2) // _WAYS))


def opened(settings: Settings, environ: Mapping[str, str]) -> list[socket.socket]:
    """The listening sockets that *settings* want. Raises `ConfigError` with what keeps one from being made."""
    made = []
    try:
        made.append(_unix(socket_path(settings, environ), settings.sidecar))
        address = settings.sidecar.address
        if address is not None:
            made.append(_tcp(*address))
    except BaseException:
        close(made)
        raise
    return made


def close(sockets: Iterable[socket.socket]) -> None:
    """Close *sockets*, and remove the files of those that were made here. May be called again."""
    for each in sockets:
        _remove_file(each)
        each.close()


def made_here(sockets: Iterable[socket.socket]) -> list[socket.socket]:
    """Those of *sockets* that no successor gets: who connects to them while nobody accepts waits in vain."""
    return [each for each in sockets if isinstance(each, _Made)]


def name(listener: socket.socket) -> str:
    """Where it listens, as clients write it."""
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        path = os.fsdecode(address)
        return f"unix:{path}" if not path.startswith("\0") else f"unix:@{path[1:]}"
    host, port = address[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


class _Made(socket.socket):
    """A listener that was made here, and not inherited."""


class _Unix(_Made):
    """A Unix socket whose file is ours to remove: it was made here, and is still the one that was made."""

    made: os.stat_result


def _unix(path: Path, settings: SidecarSettings) -> socket.socket:
    if len(os.fsencode(path)) > _MAX_PATH:
        raise ConfigError(
            f"sidecar.unix_socket: {path} is longer than the {_MAX_PATH} bytes that a Unix socket's path may have;"
            " name a shorter one"
        )
    _remove_stale(path)
    made = _Unix(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        files.make_folder(path.parent)
        _bind(made, path)
    except OSError as error:
        made.close()
        raise ConfigError(f"sidecar.unix_socket: cannot listen on {path}: {error.strerror}") from None
    try:
        if settings.unix_group is not None:
            shutil.chown(path, group=settings.unix_group)
        path.chmod(int(settings.unix_mode, 8))
        made.made = path.stat()
        made.listen(BACKLOG)
    except (OSError, LookupError) as error:
        made.close()
        path.unlink(missing_ok=True)
        raise ConfigError(
            f"sidecar.unix_group: {settings.unix_group!r} cannot be given {path}: {error}"
        ) from None
    return made


def _bind(made: socket.socket, path: Path) -> None:
    umask = os.umask(0o177)  # from its first moment, the file is for nobody else
    try:
        made.bind(os.fspath(path))
    finally:
        os.umask(umask)


def _remove_stale(path: Path) -> None:
    """Remove the socket file of a process that is gone. Raises `ConfigError` where somebody listens there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"sidecar.unix_socket: {path} is there and is no socket; name another")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(f"sidecar.unix_socket: {path} cannot be tried: {error.strerror}") from None
    raise ConfigError(
        f"sidecar.unix_socket: another sidecar listens on {path}; stop it, or give this one another socket or data_dir"
    )


def _remove_file(listener: socket.socket) -> None:
    if not isinstance(listener, _Unix) or listener.fileno() < 0:
        return
    path = Path(os.fsdecode(listener.getsockname()))
    try:
        if os.path.samestat(path.stat(), listener.made):
            path.unlink()
    except OSError:
        return  # it is gone, or another took its place


def _tcp(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"sidecar.listen: {host} cannot be looked up: {error.strerror}") from None
    family, kind, protocol, _, address = found[0]
    made = _Made(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        hint = (
            "; another process listens there: name another port, or none"
            if error.errno == errno.EADDRINUSE
            else ""
        )
        raise ConfigError(f"sidecar.listen: cannot listen on {host}:{port}: {error.strerror}{hint}") from None
    return made
