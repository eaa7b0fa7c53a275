"""No token is anywhere but where its owner put it: not in a file, a line, an error, a metric or a process's title."""

import base64
import html
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from command import ROOT, Command
from sidecar_process import SidecarProcess
from upstream import UpstreamServer
from waiting import until

from per_agent.cli.app import build
from per_agent.settings.secret import forms

# With characters that a URL, JSON, HTML and a shell each write in another way.
TOKENS = {
    kind: f"""{kind}-"q"\\b\\<k'&%/+=7f3a{kind[::-1]}9c1e"""
    for kind in ("activity", "reporting", "access", "sidecar")
}
CONFIG = """
[spool]
adopt_interval = 60
[delivery]
backoff_initial = 0.01
backoff_max = 0.05
[destinations.per]
type = "per"
activity_token = {{ env = "MY_ACTIVITY_TOKEN" }}
reporting_token = {{ file = "{folder}/reporting" }}
url = "{url}"
[destinations.kit]
type = "payment_kit"
access_key = {{ credential = "access" }}
url = "{url}"
"""


def looks(token: str) -> Iterator[bytes]:
    """How *token* may stand in a text, as others than the code under test would write it."""
    yield token.encode()
    yield quote(token, safe="").encode()
    yield quote(token).encode()
    yield json.dumps(token)[1:-1].encode()
    yield json.dumps(json.dumps(token))[3:-3].encode()
    yield repr(token)[1:-1].encode()
    yield html.escape(token).encode()
    for before in (b"", b"x", b"xx", b"Bearer ", b"user:"):
        encoded = base64.b64encode(before + token.encode()).rstrip(b"=")
        yield encoded[(len(before) * 4 + 2) // 3 :][:-1]
    yield token.partition("-")[2].encode()  # part of one is as good as all


def leaks(name: str, text: bytes | str) -> list[str]:
    content = text.encode() if isinstance(text, str) else text
    return [
        f"{kind} token in {name}: …{content[max(0, content.find(look) - 60) : content.find(look) + 80]!r}"
        for kind, token in TOKENS.items()
        for look in looks(token)
        if look in content
    ]


def echoes(upstream: UpstreamServer, path: str, status: int, token: str, **rule: object) -> None:
    """Have *path* answer with *token* in the body, as it is and in other forms, and in headers."""
    said = f"bad {token} or {quote(token, safe='')} or {base64.b64encode(token.encode()).decode()}"
    body = {"error": said, "message": said, "detail": said, "headers": {"authorization": f"Bearer {token}"}}
    headers = {"www-authenticate": f"Bearer {quote(token)}", "x-echo": quote(token)}
    upstream.rule(**{"path": path, "status": status, "body": body, "headers": headers, **rule})


@pytest.fixture
def sidecar(tmp_path: Path, upstream: UpstreamServer) -> Iterator[SidecarProcess]:
    (tmp_path / "reporting").write_text(TOKENS["reporting"])
    (tmp_path / "credentials").mkdir(mode=0o700)
    (tmp_path / "credentials" / "access").write_text(TOKENS["access"])
    for secret in (tmp_path / "reporting", tmp_path / "credentials" / "access"):
        secret.chmod(0o600)
    running = SidecarProcess(
        tmp_path,
        CONFIG.format(folder=tmp_path, url=upstream.url),
        {"token": json.dumps(TOKENS["sidecar"]), "log_level": '"debug"'},
        forked=False,  # its command line is looked at
        MY_ACTIVITY_TOKEN=TOKENS["activity"],
        CREDENTIALS_DIRECTORY=str(tmp_path / "credentials"),
    )
    running.token = TOKENS["sidecar"]
    with running:
        yield running


def everything_under(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()


def titles(pid: int) -> Iterator[tuple[str, bytes]]:
    yield "its command line", Path(f"/proc/{pid}/cmdline").read_bytes()
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield "its title", (task / "comm").read_bytes()


def activity(n: int) -> dict[str, str]:
    return {"billing_id": "acme", "user_id": f"u-{n}", "activity_type_id": "active"}


def usage(n: int) -> dict[str, object]:
    return {"event_name": "m", "customer_id": "c", "value": 1, "identifier": f"e-{n}"}


PER_TROUBLE: list[tuple[int, dict[str, object]]] = [
    (401, {}), (403, {}), (500, {}), (429, {}), (200, {}),
    (302, {"redirect": "{echo}"}), (502, {"body": "{page}"}), (400, {"body": "{echo}"}),
]  # fmt: skip


def troubles(
    upstream: UpstreamServer, sidecar: SidecarProcess, path: str, kind: str
) -> Iterator[dict[str, object]]:
    """Let *path* fail in one way after the other, with its token in each; gives the status in the middle of each."""
    token = TOKENS[kind]
    places = {
        "{echo}": f"http://127.0.0.1:9/?token={quote(token, safe='')}",
        "{page}": f"<html><title>{html.escape(token)}</title>{token}</html>",
    }
    for status, rule in PER_TROUBLE:
        upstream.clear_rules()
        echoes(
            upstream,
            path,
            status,
            token,
            **{name: places.get(str(value), value) for name, value in rule.items()},
        )
        before = upstream.score().requests
        yield {}
        until(lambda before=before: upstream.score().requests > before + 1)
        yield sidecar.get("/v1/status")


def test_tokens_are_nowhere_but_where_they_were_put(
    tmp_path: Path, sidecar: SidecarProcess, upstream: UpstreamServer
) -> None:
    found: list[str] = []

    def look(name: str, text: bytes | str) -> None:
        found.extend(leaks(name, text))

    with sidecar.client() as client, sidecar.tcp() as tcp, sidecar.tcp("wrong") as stranger:
        assert tcp.post("/v1/events?wait=stored", json=activity(0)).status_code == 202
        assert client.post("/v1/events?wait=stored", json=usage(0)).status_code == 202
        until(lambda: len(upstream.score().identifiers) == len(upstream.score().users) == 1)
        sent = json.dumps(upstream.score().last)
        assert json.dumps(TOKENS["activity"])[1:-1] in sent
        assert json.dumps(TOKENS["access"])[1:-1] in sent, "else this would show nothing"

        number = 1
        for path, kind, event in (
            ("/activities.add", "activity", activity),
            ("*/meter-events", "access", usage),
        ):
            for status in troubles(upstream, sidecar, path, kind):
                if not status:
                    number += 1
                    assert client.post("/v1/events?wait=stored", json=event(number)).status_code == 202
                look("/v1/status", json.dumps(status))
        upstream.clear_rules()
        echoes(upstream, "*/meter-events", 413, TOKENS["access"])
        client.post("/v1/events?wait=stored", json=usage(999))
        until(lambda: client.get("/v1/dead-letters").json()["total"] >= 1)
        echoes(upstream, "/reports.get", 401, TOKENS["reporting"])
        for path in (
            "/v1/status",
            "/v1/books",
            "/v1/dead-letters",
            "/metrics",
            "/readyz",
            "/healthz",
            "/openapi.json",
        ):
            answer = tcp.get(path)
            assert answer.status_code == 200
            look(path, answer.content + repr(answer.headers).encode())
        for answer in (
            stranger.get("/v1/status"),
            tcp.get("/v1/nothing"),
            tcp.get(f"/v1/dead-letters?reason={quote(TOKENS['sidecar'])}&limit=x"),
            tcp.post("/v1/events", content=b"{"),
            stranger.post("/api/meter-events", json=usage(1)),
        ):
            assert 400 <= answer.status_code < 500
            look(str(answer.url), answer.content + repr(answer.headers).encode())
        assert sidecar.process is not None
        for name, title in titles(sidecar.process.pid):
            look(name, title)

        command = Command(
            tmp_path,
            **{name: sidecar.environ[name] for name in ("MY_ACTIVITY_TOKEN", "CREDENTIALS_DIRECTORY")},
        )
        command.environ["PER_AGENT_CONFIG"] = str(sidecar.config)
        command.environ["PER_AGENT_SIDECAR_TOKEN"] = TOKENS["sidecar"]
        for words in (
            ["config", "show"], ["config", "show", "--json"], ["config", "check"], ["status", "--json"], ["status"], ["books", "--json"],
            ["dead", "list"], ["dead", "list", "--json"], ["dead", "show", "e-999"], ["dead", "show", "e-999", "--json"], ["dead", "export"],
            ["dead", "requeue", "e-999", "--json"], ["report", "--last", "1d", "-v"],
            ["meters", "list", "-v"], ["status", "--json", "--sidecar", sidecar.url, "-v"], ["add", "-", "--wait", "delivered", "--timeout", "0.1", "-v"],
        ):  # fmt: skip
            done = command(*words, stdin=json.dumps(usage(998)))
            assert "Traceback" not in done.err
            look(" ".join(words), done.out + done.err)
    look("the log", sidecar.said())
    for name, content in everything_under(sidecar.data_dir):
        look(name, content)
    assert sidecar.stop() == 0
    look("the log at the end", sidecar.said())
    for name, content in everything_under(sidecar.data_dir):
        look(name, content)
    assert found == []
    assert "[hidden]" in sidecar.said(), "the upstreams did echo them"


IN_PROCESS = """
import json, logging, sys, traceback
import per_agent
from per_agent import Agent, DeliverySettings, PaymentKit, Per, Sidecar
from per_agent.settings import load, Secret
data_dir, url, tokens = sys.argv[1], sys.argv[2], json.loads(sys.stdin.read())
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
logging.getLogger("per_agent").setLevel(logging.DEBUG)
per, kit = Per(tokens["activity"], tokens["reporting"], url), PaymentKit(url, tokens["access"])
errors = []

def attempt(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except Exception as error:
        errors.append(error)

with Agent(data_dir, [per, kit], delivery=DeliverySettings(backoff_initial=0.01, backoff_max=0.02)) as agent:
    agent.add_activity("acme", "u", "active")
    receipt = agent.add_meter_event("m", customer_id="c", value=1)
    attempt(receipt.delivered, 20)
    attempt(agent.get_report)
    attempt(agent.meters.list)
    attempt(agent.meter_events.retrieve, "x")
    print(agent.status(), agent.statistics(), agent.books(), list(agent.dead_letters), agent, per, kit, receipt)
    agent.close(0.5)
for token in tokens.values():
    attempt(Per, token + " ", url="x")
    attempt(Secret, token + "\\n")
    attempt(PaymentKit, f"http://{token}@host:99999999", token)
    attempt(Sidecar, "unix:relative", token)
assert len(errors) > 10, errors
for error in errors:
    print(str(error), repr(error), error.args, vars(error))
    traceback.print_exception(error)
"""


def test_an_agent_in_a_process_shows_none_of_its_tokens_in_errors_tracebacks_or_lines(
    tmp_path: Path, upstream: UpstreamServer
) -> None:
    echoes(upstream, "/activities.add", 401, TOKENS["activity"])
    echoes(upstream, "*/meter-events", 413, TOKENS["access"], method="POST")
    echoes(upstream, "/reports.get", 401, TOKENS["reporting"])
    echoes(upstream, "*/meters", 500, TOKENS["access"])
    echoes(upstream, "*/meter-events/x", 403, TOKENS["access"])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_PROCESS, str(tmp_path / "data"), upstream.url],
        input=json.dumps(TOKENS), capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Unauthorized" in done.stderr
    assert "[hidden]" in done.stderr
    found = leaks("stdout", done.stdout) + leaks("stderr", done.stderr)
    for name, content in everything_under(tmp_path / "data"):
        found += leaks(name, content)
    assert found == []


def test_a_defect_of_the_command_is_shown_without_the_values_of_its_variables() -> None:
    assert build().pretty_exceptions_enable is False, "Rich would show what each variable holds"


@pytest.mark.parametrize("kind", TOKENS)
def test_however_a_token_was_written_down_it_is_blotted_out(kind: str) -> None:
    token = TOKENS[kind]
    coded = [base64.b64encode(before + token.encode()).decode() for before in (b"", b"x", b"xx", b"Bearer ")]
    for text in (f"bad {token}!", quote(f"?t={token}"), json.dumps([[token]]), json.dumps(json.dumps(token)), repr([token]),
                 html.escape(token), *coded):  # fmt: skip
        assert leaks("it", text), text
        hidden = text
        for form in sorted(forms(token), key=len, reverse=True):
            hidden = hidden.replace(form, "[hidden]")
        assert leaks("it", hidden) == []
