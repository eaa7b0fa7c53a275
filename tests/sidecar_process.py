"""A real sidecar for tests: `per-agent run` as a process of its own, and clients for both of its listeners."""

import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx
from command import PROGRAM
from forked import COMMAND, ROOT, Forked
from waiting import until

# What httpx makes otherwise, for each client, reads the certificates of the whole world.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class SidecarProcess:
    """`per-agent run` on a folder of its own; a free port and a Unix socket. Starts and ends as often as wanted.

    *config* is TOML for what is beside `[agent]` and `[sidecar]`; *sidecar* holds keys of `[sidecar]` in TOML.
    It is *forked* from a process that has imported everything, where the test is not about how it begins.
    """

    def __init__(
        self,
        folder: Path,
        config: str = "",
        sidecar: Mapping[str, str] | None = None,
        *,
        forked: bool = True,
        **environ: str,
    ) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.socket = folder / "s"
        self.port = _free_port()
        self.token = "sidecar-token-for-tests"
        self.log = folder / "log"
        self.config = folder / "sidecar.toml"
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("PER_", "PAYMENT_"))
        } | {"HOME": str(folder), "PYTHONPATH": str(ROOT), **environ}
        self.settings = {
            "unix_socket": f'"{self.socket}"',
            "listen": f'"127.0.0.1:{self.port}"',
            "token": f'"{self.token}"',
            "log_format": '"json"',
            **(sidecar or {}),
        }
        self._forked = forked
        self._rest = config
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self.write()

    def write(self, rest: str | None = None) -> None:
        """Write the configuration file, with *rest* in the place of what was there."""
        self._rest = self._rest if rest is None else rest
        keys = "\n".join(f"{name} = {value}" for name, value in self.settings.items())
        self.folder.mkdir(exist_ok=True, parents=True)
        self.config.touch(mode=0o600)
        self.config.write_text(f'[agent]\ndata_dir = "{self.data_dir}"\n[sidecar]\n{keys}\n{self._rest}\n')

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> Self:
        """Start it; return when it is ready."""
        run = ["run", "--config", str(self.config)]
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            streams = {"stdin": nothing.fileno(), "stdout": log.fileno(), "stderr": log.fileno()}
            if self._forked:
                self.process = Forked(*COMMAND, *run, environ=self.environ, counted=True, **streams)
            else:
                self.process = subprocess.Popen([*PROGRAM, *run], env=self.environ, **streams)
        if wait:
            until(self._is_ready, 30)
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"it ended with {self.process.returncode}: {self.said()}")
        try:
            self.raw(unix=True).close()  # httpx leaves a Unix socket open that nobody listens on
            with self.client() as client:
                return client.get("/readyz").status_code == 200
        except (OSError, httpx.TransportError):
            return False

    def said(self) -> str:
        """All that it wrote to stdout and stderr."""
        return self.log.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """Its log lines."""
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]

    def signal(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM, and wait. Gives the exit code."""
        self.signal()
        return self.wait(timeout)

    def wait(self, timeout: float = 30) -> int:
        assert self.process is not None
        return self.process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def client(self, **options: Any) -> httpx.Client:
        """A client on the Unix socket."""
        transport = httpx.HTTPTransport(uds=str(self.socket), verify=_NO_TLS)
        return httpx.Client(transport=transport, base_url="http://localhost", **{"timeout": 30, **options})

    def tcp(self, token: str | None = "", **options: Any) -> httpx.Client:
        """A client on the TCP port; *token* None brings none, "" brings the right one."""
        headers = {} if token is None else {"authorization": f"Bearer {token or self.token}"}
        return httpx.Client(
            base_url=self.url, headers=headers, trust_env=False, verify=_NO_TLS, **{"timeout": 30, **options}
        )

    def raw(self, *, unix: bool = False) -> socket.socket:
        """A connected socket."""
        if unix:
            made = socket.socket(socket.AF_UNIX)
            try:
                made.connect(str(self.socket))
            except OSError:
                made.close()
                raise
        else:
            made = socket.create_connection(("127.0.0.1", self.port))
        made.settimeout(30)
        return made

    def get(self, path: str, **options: Any) -> Any:
        """The JSON at *path*."""
        with self.client() as client:
            answer = client.get(path, **options)
            answer.raise_for_status()
            return answer.json()

    def books(self, destination: str = "ledger") -> dict[str, Any]:
        books: dict[str, Any] = self.get("/v1/books")["destinations"][destination]
        return books

    def drained(self, destination: str = "ledger", timeout: float = 60) -> dict[str, Any]:
        """The books, once nothing is pending."""
        return until(lambda: (b := self.books(destination))["pending"] == 0 and b, timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


def answer_of(connection: socket.socket, timeout: float = 30) -> bytes:
    """All that comes until the other side closes, or until *timeout* seconds have passed."""
    deadline = time.monotonic() + timeout
    got = b""
    while time.monotonic() < deadline:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            more = connection.recv(65536)
        except (TimeoutError, ConnectionResetError):
            break
        if not more:
            break
        got += more
    return got


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
