"""The service as an administrator sees it: systemctl, the configuration, the files that it keeps."""

import os
import sqlite3
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import clients

CONFIG = Path("/etc/per-agent/config.toml")
DATA = Path("/var/lib/per-agent")
DROP_INS = Path("/etc/systemd/system/per-agent.service.d")
COMMAND = "/opt/per-agent/bin/per-agent"


def run(*arguments: object, status: int | None = 0) -> str:
    """What a command says. Raises where it does not end with *status*; None takes any."""
    environ = os.environ | {"HOME": "/root"}  # as who installs it has
    done = subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, timeout=120, check=False, env=environ
    )
    if status is not None and done.returncode != status:
        raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def shown(*properties: str, unit: str = "per-agent.service") -> dict[str, str]:
    """Properties of the unit."""
    lines = run("systemctl", "show", unit, *(f"--property={each}" for each in properties)).splitlines()
    return dict(line.split("=", 1) for line in lines if line)


def pid() -> int:
    return int(shown("MainPID")["MainPID"])


def restarts() -> int:
    return int(shown("NRestarts")["NRestarts"])


def configure(text: str) -> None:
    CONFIG.write_text(text)


@contextmanager
def drop_in(text: str):
    """The service, started again with *text* in its unit; and again without it at the end."""
    file = DROP_INS / "scenario.conf"
    DROP_INS.mkdir(exist_ok=True)
    file.write_text(f"[Service]\n{text}\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "per-agent.service")
    try:
        yield
    finally:
        file.unlink()
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", "per-agent.service")


def until(condition, timeout: float = 60):
    """The first true value of *condition*."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"did not come about within {timeout} s; last seen: {value!r}")
        time.sleep(0.05)
    return value


def ask(path: str):
    """The JSON at *path*."""
    return clients.once(clients.unix(), "GET", path)[1]


def pending(destination: str) -> int:
    return ask("/v1/books")["destinations"][destination]["pending"]


def token() -> str:
    """The token that was made at the first start."""
    return (DATA / "sidecar.token").read_text().strip()


def counted() -> set[str]:
    """The users in the ledger, once nothing waits for it."""
    until(lambda: pending("ledger") == 0)
    file = DATA / "ledger.db"
    ledger = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        return {user for (user,) in ledger.execute("SELECT user_id FROM member")}
    finally:
        ledger.close()


def process(number: int) -> dict[str, str]:
    """What the kernel says of the process."""
    lines = Path(f"/proc/{number}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {name: fields[name].strip() for name in ("Uid", "NoNewPrivs", "Seccomp", "CapEff", "CapBnd")}


def as_client(*arguments: str, groups: str) -> str:
    """What a command of another user says and how it ended; that user is nobody, in *groups*."""
    groups = f"--groups={groups}" if groups else "--clear-groups"
    return run("setpriv", "--reuid=65534", "--regid=65534", groups, "--", *arguments, status=None)


def journal() -> str:
    return run("journalctl", "--boot", "--no-pager", "--output=short-monotonic", status=None)


def mode(path: str) -> str:
    return f"{Path(path).stat().st_mode & 0o7777:o}"
