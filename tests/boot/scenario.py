"""What is done to the service on a booted machine, and what was seen: each part notes facts, and judges none.

`scenario.py RESULTS`, as root, after what the README says before `systemctl`: RESULTS/last-command is the rest of it.
RESULTS/seen.json then holds the facts of each part, RESULTS/journal.txt what the machine said.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import clients
import service
from stand_in import URL, Upstream, serve_names

RESULTS = Path(sys.argv[1])
CREDENTIALS = Path("/etc/credstore")
UPSTREAM = Upstream()
WITH_PER = f"""
[sidecar]
token = {{ credential = "sidecar-token" }}
[destinations.ledger]
type = "ledger"
[destinations.per]
type = "per"
url = "{URL}"
activity_token = {{ credential = "per-activity-token" }}
timeout = 60.0
[delivery]
backoff_max = 1.0
"""


def start() -> dict[str, object]:
    """The README's last command; no credential is there yet."""
    command = (RESULTS / "last-command").read_text()
    said = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, check=True, timeout=120)
    number = service.pid()
    return {
        "said": said.stdout + said.stderr,
        "unit": service.shown("ActiveState", "SubState", "Type", "StatusText", "NRestarts", "Result"),
        "enabled": service.run("systemctl", "is-enabled", "per-agent.service", "per-agent.socket").split(),
        "process": service.process(number),
        "listeners": service.ask("/v1/status")["sidecar"]["listeners"],
        "modes": {
            path: service.mode(path) for path in (clients.SOCKET, "/run/per-agent", "/var/lib/per-agent/")
        },
        "files": {path.name: service.mode(str(path)) for path in service.DATA.iterdir() if path.is_file()},
    }


def listeners() -> dict[str, object]:
    """Events over both listeners, by those who may and by those who may not."""
    curl = ("curl", "--silent", "--show-error", "--unix-socket", clients.SOCKET, "--data")
    event = json.dumps(clients.activity("by-group"))
    over_tcp = clients.activity("by-token")
    seen = {
        "of the group": service.as_client(
            *curl, event, "http://localhost/v1/events?wait=stored", groups="per-agent"
        ),
        "not of the group": service.as_client(*curl, event, "http://localhost/v1/events", groups=""),
        "with the token": clients.once(
            clients.tcp(), "POST", "/v1/events?wait=stored", over_tcp, service.token()
        ),
        "without a token": clients.once(clients.tcp(), "POST", "/v1/events", over_tcp)[0],
    }
    return seen | {
        "counted": sorted(service.counted()),
        "report": json.loads(service.run(service.COMMAND, "report", "--last", "1d", "--json")),
        "books": json.loads(service.run(service.COMMAND, "books", "--json")),
    }


def restart() -> dict[str, object]:
    """Restarts under a steady stream of requests."""
    pids = [service.pid()]
    with clients.Stream("restart", service.token()) as stream:
        for _ in range(3):
            stream.more(200)
            service.run("systemctl", "restart", "per-agent.service")
            pids.append(service.pid())
        stream.more(200)
    return _streamed(stream) | {"pids": pids}


def kill() -> dict[str, object]:
    """SIGKILL under a steady stream of requests."""
    pids, before = [service.pid()], service.restarts()
    with clients.Stream("kill", service.token()) as stream:
        stream.more(300)
        os.kill(pids[0], signal.SIGKILL)
        service.until(lambda: service.restarts() > before)
        stream.more(300)
        pids.append(service.pid())
    return _streamed(stream) | {"pids": pids, "restarts": service.restarts() - before}


def _streamed(stream: clients.Stream) -> dict[str, object]:
    counted = service.counted()
    return {
        "stored": len(stream.stored),
        "failed": stream.failed[:10],
        "broke": stream.broke[:10],
        "cut": stream.cut,
        "not counted": sorted(set(stream.stored) - counted)[:10],
    }


def credentials() -> dict[str, object]:
    """Tokens from files that only root can read, to the sidecar and to an upstream that is found by name, with TLS."""
    made = service.token()
    CREDENTIALS.mkdir(mode=0o700, exist_ok=True)
    for name in ("sidecar-token", "per-activity-token"):
        file = CREDENTIALS / f"per-agent.{name}"
        file.touch(mode=0o600)
        file.write_text(f"this-is-the-{name}\n")
    service.configure(WITH_PER)
    serve_names()
    UPSTREAM.begin()
    service.run("systemctl", "restart", "per-agent.service")
    event = clients.activity("by-credential")
    seen = {
        "with the credential": clients.once(
            clients.tcp(), "POST", "/v1/events", event, "this-is-the-sidecar-token"
        )[0],
        "with the one before": clients.once(clients.tcp(), "POST", "/v1/events", event, made)[0],
    }
    service.until(lambda: service.pending("per") == 0)
    return seen | {"authorizations": sorted(UPSTREAM.authorizations), "users": list(UPSTREAM.users)}


def silent_upstream() -> dict[str, object]:
    """An upstream that takes requests and never answers, for several times the watchdog's interval, and a restart."""
    with service.drop_in("WatchdogSec=5"):
        before = service.shown("MainPID", "NRestarts", "WatchdogUSec")
        UPSTREAM.silence()
        asked = UPSTREAM.asked
        for n in range(20):
            clients.once(clients.unix(), "POST", "/v1/events", clients.activity(f"silent-{n}"))
        service.until(lambda: UPSTREAM.asked > asked)
        time.sleep(16)  # the time is the experiment
        after = service.shown("MainPID", "NRestarts", "WatchdogUSec")
        pending = service.pending("per")
        began = time.monotonic()
        service.run("systemctl", "restart", "per-agent.service")
        took = time.monotonic() - began
        UPSTREAM.speak()
        service.until(lambda: service.pending("per") == 0)
    users = sorted({user for user in UPSTREAM.users if user.startswith("silent-")})
    return {"before": before, "after": after, "pending": pending, "took": took, "users": users}


def wedge() -> dict[str, object]:
    """A courier whose thread deadlocks."""
    program = "ExecStart=\nExecStart=/opt/per-agent/bin/python /srv/scenario/wedged.py"
    with service.drop_in(f"WatchdogSec=5\nBindReadOnlyPaths=/srv/scenario\n{program}"):
        before, number = service.restarts(), service.pid()
        (service.DATA / "wedge").touch()
        answer = clients.once(clients.unix(), "POST", "/v1/events?wait=stored", clients.activity("wedge"))
        service.until(lambda: service.restarts() > before)
        counted = "wedge" in service.counted()
        pids = [number, service.pid()]
    said = ("journalctl", "--boot", "--output=cat")
    return {
        "stored": answer,
        "counted": counted,
        "pids": pids,
        "said": service.run(*said, f"_PID={number}"),
        "judged": service.run(*said, "--unit=per-agent", "_PID=1"),
    }


def reload() -> dict[str, object]:
    """Another token with `systemctl reload`, and then a configuration that is wrong."""

    def admitted(token: str) -> int:
        return clients.once(clients.tcp(), "GET", "/v1/books", token=token)[0]

    changed = WITH_PER.replace('{ credential = "sidecar-token" }', '"changed"')
    number = service.pid()
    before = {token: admitted(token) for token in ("this-is-the-sidecar-token", "changed")}
    service.configure(changed)
    service.run("systemctl", "reload", "per-agent.service")
    service.until(lambda: admitted("changed") == 200)
    after = {token: admitted(token) for token in ("this-is-the-sidecar-token", "changed")}
    service.configure("[sidecar]\ntoken = 17\n")
    service.run("systemctl", "reload", "per-agent.service")
    service.until(lambda: "the old one stays" in service.journal())
    wrong = admitted("changed")
    service.configure(WITH_PER)
    service.run("systemctl", "reload", "per-agent.service")
    service.until(lambda: admitted("changed") == 401)
    return {
        "before": before,
        "after": after,
        "after a wrong one": wrong,
        "pids": [number, service.pid()],
        "unit": service.shown("ActiveState", "SubState"),
    }


def stop() -> dict[str, object]:
    """A stop while the upstream is down, with much that is only just accepted."""
    UPSTREAM.end()
    users = [f"stop-{n}" for n in range(500)]
    answers = [
        clients.once(
            clients.unix(), "POST", "/v1/events", [clients.activity(user) for user in users[at : at + 125]]
        )
        for at in range(0, len(users), 125)
    ]
    number, began = service.pid(), time.monotonic()
    service.run("systemctl", "stop", "per-agent.socket", "per-agent.service")
    took = time.monotonic() - began
    seen = {
        "accepted": [(status, len(answer["ids"])) for status, answer in answers],
        "took": took,
        "unit": service.shown("ActiveState", "Result", "ExecMainStatus", "ExecMainCode", "TimeoutStopUSec"),
        "gone": not Path(f"/proc/{number}").exists() and not Path(clients.SOCKET).exists(),
        "pending": json.loads(service.run(service.COMMAND, "books", "--json", "--data-dir", service.DATA))[
            "destinations"
        ]["per"]["pending"],
    }
    UPSTREAM.begin()
    service.run("systemctl", "start", "per-agent.service")
    service.until(lambda: service.pending("per") == 0)
    delivered = [user for user in UPSTREAM.users if user.startswith("stop-")]
    return seen | {
        "users": len(users),
        "not delivered": sorted(set(users) - set(delivered))[:10],
        "not counted": sorted(set(users) - service.counted())[:10],
    }


def units() -> dict[str, object]:
    """What systemd thinks of the units, as they are installed."""
    return {
        "verify": service.run(
            "systemd-analyze", "verify", "per-agent.service", "per-agent.socket", status=None
        ),
        "security": service.run(
            "systemd-analyze", "security", "--no-pager", "per-agent.service", status=None
        ),
        "threshold": subprocess.run(
            ["systemd-analyze", "security", "--threshold=12", "per-agent.service"],
            capture_output=True,
            check=False,
        ).returncode,
    }


PARTS = (start, units, listeners, restart, kill, credentials, silent_upstream, wedge, reload, stop)


def main() -> None:
    seen: dict[str, object] = {}
    for part in PARTS:
        began = time.monotonic()
        try:
            seen[part.__name__] = part()
        except Exception:  # what came before is worth knowing, and what comes after may still say something
            seen[part.__name__] = {
                "failed": traceback.format_exc(),
                "status": service.run(
                    "systemctl", "--no-pager", "status", "per-agent.service", "per-agent.socket", status=None
                ),
            }
        print(f"{part.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    with contextlib.suppress(Exception):
        (RESULTS / "journal.txt").write_text(service.journal())
    (RESULTS / "seen.json").write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
