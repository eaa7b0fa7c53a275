"""Requests a second that a sidecar takes on one processor, over TCP and its Unix socket, beside an empty application.

The load comes from the other processor (`blaster`, 32 connections). The latencies are those at half the rate that was
reached at most. With its upstream away a sidecar accepts and stores; with the embedded ledger it delivers as well,
all on the same processor.
"""

import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.plan import Column, Plan, Row, Table, row
from benchmarks.processes import Server, measured

TOKEN = "token-of-the-benchmark"
_BATCH = 500

REQUESTS = Table(
    "sidecar.requests",
    "The sidecar",
    "Requests a second at most, and how long one takes at half of that. Events are what is in them. The load is not "
    "what limits it where its own processor is not busy. What the server's processor did for each does not depend on "
    "what else the machine does.",
    (
        Column("rate", "requests/s"),
        Column("events", "events/s"),
        Column("share", "% of the empty one"),
        Column("each", "CPU µs each", 1),
        Column("by_processor", "% by CPU"),
        Column("p50", "p50 µs"),
        Column("p99", "p99 µs"),
        Column("p999", "p99.9 µs"),
        Column("max", "max µs"),
        Column("own", "load's own CPU %"),
    ),
)
TABLES = (REQUESTS,)

_EVENT = '{"billing_id":"acme","user_id":"user-\0","activity_type_id":"active-users"}'
_ACTIVITY = '{"billingId":"acme","userId":"user-\0","activityTypeId":"active-users"}'
_METER = (
    '{"event_name":"api.calls","identifier":"id-\0","timestamp":1764000000,'
    '"payload":{"customer_id":"cus_1","value":"1"}}'
)
_LINES = "\n".join([_EVENT] + [_EVENT.replace("\0", f"{n:012}") for n in range(1, _BATCH)])
_QUERY = "billingId=acme&userId=user-\0&activityTypeId=active-users"
# A request has one "\0", which stands for twelve digits.
_FORMS = {
    "POST /v1/events": ("POST", "/v1/events", _EVENT, "application/json"),
    "POST /v1/events, NDJSON of 500": ("POST", "/v1/events", _LINES, "application/x-ndjson"),
    "POST /activities.add": ("POST", "/activities.add", _ACTIVITY, "application/json"),
    "GET /activities.add": ("GET", f"/activities.add?{_QUERY}", "", ""),
    "POST /api/meter-events": ("POST", "/api/meter-events", _METER, "application/json"),
}
_AWAY = '[destinations.away]\ntype = "sidecar"\nurl = "http://127.0.0.1:9"\ntoken = "none"'


def run(plan: Plan) -> Iterator[Row]:
    empty: dict[str, dict[str, float]] = {}
    for over in ("TCP", "Unix"):
        with tempfile.TemporaryDirectory(dir=plan.folder) as folder, _empty(Path(folder)) as server:
            plan.tell(f"empty application, {over}")
            address = int(server.said) if over == "TCP" else f"{folder}/s"
            empty[over] = _loaded(plan, server, address, "POST /v1/events")
        yield row(REQUESTS, f"empty application, {over}", empty[over])
    for form in _FORMS:
        ways = (
            [("TCP", True), ("TCP", False), ("Unix", True)]
            if form.startswith("POST /v1")
            else [("TCP", True)]
        )
        for over, is_away in ways:
            subject = f"{form}, {over}" + (", upstream away" if is_away else ", delivering to its ledger")
            plan.tell(subject)
            port = _free_port()
            with (
                tempfile.TemporaryDirectory(dir=plan.folder) as folder,
                _sidecar(Path(folder), port, _AWAY if is_away else "") as server,
            ):
                found = _loaded(plan, server, port if over == "TCP" else f"{folder}/s", form)
            if "NDJSON" not in form and "rate" in found and "rate" in empty[over]:
                found["share"] = found["rate"] / empty[over]["rate"] * 100
                found["by_processor"] = empty[over]["each"] / found["each"] * 100
            yield row(REQUESTS, subject, found)


def _loaded(plan: Plan, server: Server, address: str | int, form: str) -> dict[str, Any]:
    """The most that *server*, which listens at *address*, answers, and how long it takes at half of that."""
    before, _, after = _request(*_FORMS[form]).partition("\0")
    how: dict[str, Any] = {"address": address, "before": before, "after": after, "seconds": plan.seconds}
    processor = server.processor()
    most = measured("blaster:blast", **how)
    if "rate" not in most:
        return most
    each = (server.processor() - processor) / most["answers"] * 1e6
    half = measured("blaster:blast", rate=most["rate"] / 2, **how)
    events = most["rate"] * (_BATCH if "NDJSON" in form else 1)
    return half | {"rate": most["rate"], "own": most["own"], "each": each, "events": events}


def _request(method: str, target: str, body: str, kind: str) -> str:
    length = len(body.replace("\0", "0" * 12))
    headers = ["Host: 127.0.0.1", f"Authorization: Bearer {TOKEN}"]
    if body:
        headers += [f"Content-Type: {kind}", f"Content-Length: {length}"]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *headers, "", body])


def delivering(folder: Path) -> Server:
    """A sidecar with its embedded ledger, at the socket `s` in *folder*."""
    return _sidecar(folder, _free_port(), "")


def _empty(folder: Path) -> Server:
    return Server("benchmarks.empty", f"{folder}/s")


def _sidecar(folder: Path, port: int, destinations: str) -> Server:
    config = folder / "config.toml"
    config.touch(mode=0o600)
    values = {
        "unix_socket": f"{folder}/s",
        "listen": f"127.0.0.1:{port}",
        "token": TOKEN,
        "log_level": "error",
    }
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
    config.write_text(f'[agent]\ndata_dir = "{folder}/data"\n[sidecar]\n{lines}\n{destinations}\n')
    return Server("per_agent.cli", "run", "--config", str(config))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
