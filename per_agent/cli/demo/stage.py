"""`Stage`: the folder where the demo plays: the application's side and the sidecar's, each with a configuration."""

import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from per_agent.agent import Agent
from per_agent.agent.overview import Overview, overview
from per_agent.cli.exits import ExitCode, Stop
from per_agent.errors import ConfigError, UpstreamError
from per_agent.settings.address import check_socket

DESTINATIONS: Final = ("per", "payment_kit")
"""The application's; the sidecar has the ledger."""

# Below the ports that the kernel gives to outgoing connections: the application goes on connecting while nobody
# listens, and could otherwise be given that very port, and so talk to itself.
_PORTS: Final = range(20_000, 32_000)
_PREFIX: Final = "per-agent-demo-"
_SHORT: Final = "/tmp"  # noqa: S108  (the folder in it is made for this user only)
_TRIES: Final = 100
_LOG_LINE: Final = 300  # characters of a log that are shown

_APPLICATION: Final = """\
# The demo's application: an agent whose Per and whose Payment Kit are the sidecar beside it.
[agent]
data_dir = "app"

[delivery]
# Two seconds, where a minute is the default: nobody wants to wait that long for the demo's recovery.
backoff_max = 2.0

[destinations.per]
type = "per"
url = "http://127.0.0.1:{port}"
activity_token = "{token}"
reporting_token = "{token}"

[destinations.payment_kit]
type = "payment_kit"
url = "http://127.0.0.1:{port}"
access_key = "{token}"
"""
_SIDECAR: Final = """\
# The demo's upstream: `per-agent run` with a ledger, which answers as Per and as Payment Kit do.
[agent]
data_dir = "sidecar"

[sidecar]
listen = "127.0.0.1:{port}"
token = "{token}"
# The application forgets what was answered; so nothing is answered that kill -9 could take.
answer_when = "stored"

[destinations.ledger]
type = "ledger"
"""


class Stage:
    """The demo's *folder*, which must be empty: what lies where in it, and what runs on which port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.application = folder / "app"
        self.sidecar = folder / "sidecar"
        self.application_config = folder / "app.toml"
        self.sidecar_config = folder / "sidecar.toml"
        self.notes = folder / "notes.txt"
        self.application_log = folder / "app.log"
        self.sidecar_log = folder / "sidecar.log"
        self._port = _free_port()
        token = secrets.token_urlsafe(24)
        _write(self.application_config, _APPLICATION.format(port=self._port, token=token))
        _write(self.sidecar_config, _SIDECAR.format(port=self._port, token=token))

    @property
    def url(self) -> str:
        """Where the sidecar listens."""
        return f"http://127.0.0.1:{self._port}"

    @contextmanager
    def upstreams(self) -> Iterator[Agent]:
        """An agent for the application's passthrough calls, which go to the sidecar over HTTP. Starts nothing.

        Raises `Stop` where the sidecar does not answer one within the block, or says no.
        """
        agent = Agent.from_config(self.application_config, {})
        try:
            yield agent
        except UpstreamError as error:
            raise Stop(ExitCode.NO, f"the sidecar does not answer as it should: {error}") from error
        finally:
            agent.close(0)

    def overviews(self) -> tuple[Overview, Overview]:
        """What lies on the disk of the application, and of the sidecar. Raises `SpoolError`."""
        return overview(self.application, DESTINATIONS), overview(self.sidecar, ("ledger",))


def last_line(log: Path) -> str:
    """The last line of *log*, for a person who wants to know why a process ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1][:_LOG_LINE] if lines else "it said nothing"


@contextmanager
def folder(named: Path | None, *, keep: bool) -> Iterator[Path]:
    """An empty folder for the demo: *named*, which stays, else a new one, which goes unless it is to be kept."""
    if named is not None:
        if named.exists() and (not named.is_dir() or any(named.iterdir())):
            raise Stop(ExitCode.USAGE, f"--data-dir: {named} is in use; the demo wants a folder of its own")
        problem = _socket_problem(named)
        if problem is not None:
            raise Stop(ExitCode.USAGE, f"--data-dir: a Unix socket is to lie in it: {problem}")
        named.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield named
        return
    made = Path(tempfile.mkdtemp(prefix=_PREFIX))
    if _socket_problem(made) is not None:
        made.rmdir()
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_SHORT))
    try:
        yield made
    finally:
        if not keep:
            shutil.rmtree(made, ignore_errors=True)


def _socket_problem(place: Path) -> str | None:
    """What keeps the sidecar's socket from lying in *place*: its path may be too long for the kernel."""
    try:
        check_socket(place / "sidecar" / "agent.sock")
    except ConfigError as error:
        return str(error)
    return None


def _write(path: Path, content: str) -> None:
    path.touch(mode=0o600)  # a token stands in it
    path.write_text(content, encoding="utf-8")


def _free_port() -> int:
    for _ in range(_TRIES):
        port = _PORTS.start + secrets.randbelow(len(_PORTS))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise Stop(ExitCode.NO, f"no free port was found between {_PORTS.start} and {_PORTS.stop}")
