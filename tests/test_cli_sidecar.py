"""The command beside a running sidecar: whom it speaks to, and that nothing is lost or doubled on the way."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from command import ROOT, Command
from sidecar_double import SidecarDouble
from sidecar_process import SidecarProcess
from upstream import UpstreamServer
from waiting import until

from per_agent import Ledger

ACTIVITY = '{"billing_id": "acme", "user_id": "%s", "activity_type_id": "t"}\n'
USAGE = '{"event_name": "m", "customer_id": "c", "value": 1}\n'
KIT = '[destinations.kit]\ntype = "payment_kit"\naccess_key = "key-1"\nurl = "{0}"\n'


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path / "service") as running:
        yield running


@pytest.fixture
def per_agent(tmp_path: Path) -> Command:
    return Command(tmp_path)


def beside(per_agent: Command, sidecar: SidecarProcess) -> Command:
    """The command with the sidecar's own configuration."""
    per_agent.environ["PER_AGENT_CONFIG"] = str(sidecar.config)
    del per_agent.environ["PER_AGENT_DATA_DIR"]
    return per_agent


def pid(sidecar: SidecarProcess) -> int:
    assert sidecar.process is not None
    return sidecar.process.pid


# Whom it speaks to


def test_the_sidecar_of_the_settings_is_asked_where_it_runs_and_else_the_folder(
    sidecar: SidecarProcess, per_agent: Command
) -> None:
    beside(per_agent, sidecar)
    added = per_agent.well("add", "activity", "acme", "u-1", "t", "--wait", "delivered", "--json").json
    assert added == {"id": added["id"], "stored": True, "delivered": True, "refused": None}
    status, shown, books, table = per_agent.many(
        ["status", "--json"], ["status"], ["books", "--json"], ["books"]
    )
    assert status.json["sidecar"]["pid"] == pid(sidecar)
    assert f"listens on unix:{sidecar.socket} and {sidecar.url}: ready" in shown.out
    assert "a running process" in shown.out
    assert f"Books of the sidecar at unix:{sidecar.socket}" in table.out
    assert books.json["destinations"]["ledger"]["delivered"] == 1
    assert len(status.json["spools"]) == 1

    assert sidecar.stop() == 0
    alone, same = per_agent.many(["status", "--json"], ["books", "--json"])
    assert "sidecar" not in alone.json
    assert same.json == books.json
    assert per_agent("books").out.startswith(f"Books of {sidecar.data_dir}\n")


def test_the_sidecar_of_a_folder_is_found_by_the_folder(tmp_path: Path, per_agent: Command) -> None:
    settings = {"unix_socket": f'"{tmp_path / "service" / "data" / "agent.sock"}"', "listen": '""'}
    running = SidecarProcess(tmp_path / "service", sidecar=settings)
    running.socket = running.data_dir / "agent.sock"
    with running:
        seen = per_agent.well("status", "--json", "--data-dir", str(running.data_dir)).json
        assert seen["sidecar"]["pid"] == pid(running)


def test_a_folder_that_is_named_is_never_answered_for_by_the_sidecar_of_another(
    sidecar: SidecarProcess, per_agent: Command, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    per_agent.environ["PER_AGENT_SIDECAR"] = f"unix:{sidecar.socket}"
    beside(per_agent, sidecar)
    added, theirs, ours = per_agent.many(
        ["add", "activity", "acme", "u-1", "t", "--data-dir", str(other)],
        ["books", "--json", "--data-dir", str(other)],
        ["books", "--json"],
    )
    assert (added.code, added.err) == (0, "")
    assert theirs.json["destinations"]["ledger"]["accepted"] == 1
    assert ours.json["destinations"]["ledger"]["accepted"] == 0
    status = per_agent.well("status", "--json", "--data-dir", str(other)).json
    assert (status["data_dir"], "sidecar" in status) == (str(other), False)
    config = tmp_path / "own.toml"
    config.write_text(f'[agent]\ndata_dir = "{other}"\n')
    assert "sidecar" not in per_agent.well("status", "--json", "--config", str(config)).json


def test_a_sidecar_that_is_named_is_asked_whatever_the_settings_say(
    sidecar: SidecarProcess, per_agent: Command
) -> None:
    address = f"unix:{sidecar.socket}"
    before = per_agent.well("--sidecar", address, "status", "--json").json
    per_agent.environ["PER_AGENT_SIDECAR"] = address
    assert before["sidecar"]["pid"] == per_agent.well("status", "--json").json["sidecar"]["pid"]
    broken = per_agent.home / "broken.toml"
    broken.write_text("nonsense")
    for words in (
        ["status"],
        ["books"],
        ["add", "activity", "acme", "u", "t"],
        ["report"],
        ["meters", "list"],
    ):
        assert per_agent(*words, "--config", str(broken), "--sidecar", address).code == 0, words
    assert not per_agent.data_dir.exists()


def test_one_that_is_named_and_away_ends_with_3_and_what_to_do(per_agent: Command, tmp_path: Path) -> None:
    away = [["--sidecar", "unix:/nowhere/agent.sock"], ["--sidecar", "http://127.0.0.1:1"]]
    for words in (["status"], ["add", "activity", "acme", "u", "t"], ["dead", "list"], ["report"]):
        for done in per_agent.many(*([*words, *option] for option in away)):
            assert (done.code, done.out) == (3, ""), words
            assert len(done.problems) == 1
            assert "cannot be reached" in done.problems[0]
            assert "per-agent run" in done.problems[0]
    for address in ("", "agent.sock", "unix:agent.sock", "ftp://host", "http://"):
        done = per_agent("status", "--sidecar", address)
        assert (done.code, done.out) == (2, ""), address
        assert done.problems[0].startswith("--sidecar: expected")
    per_agent.environ["PER_AGENT_SIDECAR"] = "nonsense"
    assert per_agent("status").problems[0].startswith("PER_AGENT_SIDECAR: expected")


def test_on_tcp_the_token_is_that_of_the_variable_or_of_the_settings(
    sidecar: SidecarProcess, per_agent: Command
) -> None:
    tcp = ["--sidecar", sidecar.url]
    commands = (
        ["status", *tcp], ["add", "activity", "acme", "u", "t", *tcp], ["dead", "purge", "--all", *tcp],
        ["add", "-", "--wait", "delivered", *tcp],
    )  # fmt: skip
    for token in (None, "wrong"):
        per_agent.environ |= {} if token is None else {"PER_AGENT_SIDECAR_TOKEN": token}
        for words in commands:
            done = per_agent(*words, stdin=ACTIVITY % "u")
            assert (done.code, done.out) == (2, ""), words
            assert len(done.problems) == 1, words
            assert "token" in done.problems[0]
            assert "wrong" not in done.problems[0] or token is None or "missing or wrong" in done.problems[0]
    per_agent.environ["PER_AGENT_SIDECAR_TOKEN"] = sidecar.token
    for words in (
        ["status"],
        ["add", "activity", "acme", "u", "t"],
        ["report", "--last", "1d"],
        ["dead", "list"],
    ):
        assert per_agent(*words, *tcp).code == 0, words
    del per_agent.environ["PER_AGENT_SIDECAR_TOKEN"]
    assert per_agent("status", "--config", str(sidecar.config), *tcp).code == 0


def test_the_token_that_a_sidecar_made_for_itself_is_found_beside_its_data(
    tmp_path: Path, per_agent: Command
) -> None:
    running = SidecarProcess(tmp_path / "service")
    del running.settings["token"]
    running.write()
    with running:
        assert per_agent("status", "--sidecar", running.url).code == 2
        beside(per_agent, running)
        assert per_agent("status", "--sidecar", running.url).code == 0


def test_what_listens_and_is_no_sidecar_is_told_as_such(per_agent: Command, upstream: UpstreamServer) -> None:
    for words in (["status"], ["books"], ["dead", "list"], ["add", "activity", "acme", "u", "t"]):
        done = per_agent(*words, "--sidecar", upstream.url)
        assert (done.code, done.out) == (2, ""), words
        assert "sidecar" in done.problems[0]


def test_reports_and_meters_go_through_the_sidecar_where_only_it_has_the_credentials(
    tmp_path: Path, per_agent: Command, upstream: UpstreamServer
) -> None:
    per = f'[destinations.per]\ntype = "per"\nurl = "{upstream.url}"\nactivity_token = "t"\nreporting_token = "tok-2"\n'
    upstream.rule(path="*/meters", body={"count": 0, "list": [], "from": "upstream"})
    upstream.rule(path="*/meters/none", status=404, body={"error": "Meter not found"})
    with SidecarProcess(tmp_path / "service", per + KIT.format(upstream.url)) as running:
        per_agent.environ["PER_AGENT_SIDECAR"] = f"unix:{running.socket}"
        report, listed, missing = per_agent.many(
            ["report", "--start", "2026-01-01", "--json"],
            ["meters", "list", "--json"],
            ["meters", "show", "none"],
        )
        assert report.json["ok"] is True
        assert listed.json["from"] == "upstream"
        assert (missing.code, missing.out) == (1, "")
        assert "Meter not found" in missing.problems[0]
        asked = {each["path"]: each["headers"]["authorization"] for each in upstream.score().last}
        assert asked["/reports.get"] == "Bearer tok-2"
        assert asked["/api/meters"] == "Bearer key-1"
        assert not per_agent.data_dir.exists()
        # Whoever names the configuration asks the upstream with its own credentials.
        del per_agent.environ["PER_AGENT_SIDECAR"]
        own = per_agent.configure(per.replace("tok-2", "own-token"))
        assert per_agent("report", "--config", str(own)).code == 0
    assert upstream.score().last[-1]["headers"]["authorization"] == "Bearer own-token"


# Events


def test_bad_lines_are_named_by_their_number_whoever_finds_them(
    tmp_path: Path, per_agent: Command, upstream: UpstreamServer
) -> None:
    with SidecarProcess(tmp_path / "service", KIT.format(upstream.url)) as running:
        beside(per_agent, running)
        lines = USAGE + "nonsense\n\n" + ACTIVITY % "u-1" + USAGE + '{"event_name": "m"}\n'
        done = per_agent("add", "-", "--json", stdin=lines)
        assert done.code == 1
        assert sorted(line.split(":")[0] for line in done.problems) == ["line 2", "line 4", "line 6"]
        assert (done.json["accepted"], done.json["stored"], done.json["bad"]) == (2, 2, 3)
        assert sorted(problem["line"] for problem in done.json["problems"]) == [2, 4, 6]
        single = per_agent("add", "activity", "acme", "u-1", "t")
        assert (single.code, single.out) == (2, "")
        assert "no configured destination takes" in single.problems[0]
        assert running.books("kit")["accepted"] == 2


@pytest.mark.parametrize("strike", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_in_the_middle_of_a_file_neither_loses_nor_doubles(
    sidecar: SidecarProcess, per_agent: Command, strike: signal.Signals
) -> None:
    beside(per_agent, sidecar)
    per_agent.well("meters", "create", "--name", "M", "--event-name", "m", "--unit", "u")
    with per_agent.start("add", "-", "--json") as process:
        assert process.stdin is not None
        for number in range(6000):
            process.stdin.write((USAGE if number % 2 else ACTIVITY % f"u-{number}").encode())
            if number in (2000, 4000):
                process.stdin.flush()
                until(lambda: sidecar.books()["accepted"] > 100)
                sidecar.signal(strike)
                sidecar.wait()
                sidecar.start()
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out)["stored"] == 6000
    sidecar.drained()
    assert per_agent("books").code == 0
    report = per_agent.well("report", "--last", "1d", "--json").json
    assert report["result"]["activityTypes"]["t"]["billingIds"]["acme"]["unique"] == 3000
    assert sidecar.stop() == 0
    ledger = Ledger()
    ledger.open(sidecar.data_dir)
    assert ledger.totals() == (3000, 3000)
    ledger.close()


def test_where_there_is_no_room_it_waits_until_there_is(per_agent: Command, tmp_path: Path) -> None:
    with SidecarDouble(tmp_path) as double:
        double.limit(room=700)
        with per_agent.start("add", "-", "--json", "--sidecar", double.address) as process:
            assert process.stdin is not None
            process.stdin.write("".join(ACTIVITY % f"u-{n}" for n in range(1500)).encode())
            process.stdin.flush()
            until(lambda: any(asked["status"] == 503 for asked in double.requests))
            double.limit()
            out, err = process.communicate(timeout=60)
        assert (process.returncode, err, json.loads(out)["stored"]) == (0, b"", 1500)
        assert len(double.events) == 1500


def test_a_connection_that_breaks_is_made_again_and_the_events_keep_their_identifiers(
    per_agent: Command, tmp_path: Path
) -> None:
    with SidecarDouble(tmp_path) as double:
        double.rule(path="/v1/events", cut="after", count=2)
        done = per_agent.well("add", "activity", "acme", "u", "t", "--sidecar", double.address)
        assert list(double.events) == [done.out.strip()]
        assert double.offered[done.out.strip()] == 3


def test_an_event_that_stays_is_told_with_why_and_one_that_is_refused_with_the_upstreams_words(
    tmp_path: Path, per_agent: Command, upstream: UpstreamServer
) -> None:
    meter = ["add", "meter", "m", "--customer", "c", "--value", "3"]
    with SidecarProcess(tmp_path / "service", KIT.format(upstream.url)) as running:
        beside(per_agent, running)
        upstream.stop()
        stored, waited = per_agent.many(meter, [*meter, "--wait", "delivered", "--timeout", "1"])
        assert (stored.code, stored.err) == (0, "")
        assert waited.code == 3
        assert "2 events for kit (retrying" in waited.problems[0]
        assert f"the sidecar at unix:{running.socket} goes on with it" in waited.problems[0]
        upstream.start()
        running.drained("kit")
        assert per_agent.well(*meter, "--wait", "delivered").out
        upstream.rule(path="*/meter-events", status=413, body={"error": "far too large"})
        refused = per_agent(*meter, "--identifier", "a", "--wait", "delivered", "--json")
        assert refused.code == 1
        assert refused.json.items() >= {"id": "a", "stored": True, "delivered": False}.items()
        assert "413" in refused.json["refused"]
        assert "per-agent dead show a" in refused.problems[0]
        bulk = per_agent("add", "-", "--wait", "delivered", "--json", stdin=USAGE * 20)
        assert bulk.code == 1
        assert (bulk.json["stored"], bulk.json["refused"], bulk.json["delivered"]) == (20, 20, 0)
        assert len(bulk.problems) == 1


def test_an_event_that_is_parked_is_not_delivered(sidecar: SidecarProcess, per_agent: Command) -> None:
    beside(per_agent, sidecar)
    lines = USAGE + ACTIVITY % "u-1"
    done = per_agent("add", "-", "--wait", "delivered", "--timeout", "1", "--json", stdin=lines)
    assert (done.code, done.json["delivered"], done.json["pending"]) == (1, 1, {"ledger": 1})
    assert "parked: no meter 'm'" in done.problems[0]
    # What was parked before does not keep others from being seen delivered.
    assert per_agent("add", "activity", "acme", "u-2", "t", "--wait", "delivered").code == 0


def test_ctrl_c_keeps_what_was_read(sidecar: SidecarProcess, per_agent: Command) -> None:
    beside(per_agent, sidecar)
    with per_agent.start("add", "-") as process:
        assert process.stdin is not None
        process.stdin.write((ACTIVITY % "u").encode())
        process.stdin.flush()
        until(lambda: sidecar.books()["accepted"] == 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")


# Dead letters


@pytest.fixture
def buried(tmp_path: Path, per_agent: Command, upstream: UpstreamServer) -> Iterator[SidecarProcess]:
    """A sidecar whose destination has refused `a`, `b` and, of another meter, `c`."""
    upstream.rule(path="*/meter-events", method="POST", status=413, body={"error": "too large by far"})
    line = (
        '{"event_name": "%s", "customer_id": "c", "value": 0.10, "identifier": "%s",'
        ' "metadata": {"n": 0.1000000000000000000001}}\n'
    )
    with SidecarProcess(tmp_path / "service", KIT.format(upstream.url)) as running:
        beside(per_agent, running)
        lines = "".join(line % each for each in (("m", "a"), ("m", "b"), ("other", "c")))
        done = per_agent("add", "-", "--wait", "delivered", stdin=lines)
        assert done.code == 1
        yield running
        books = per_agent("books")
        assert (books.code, books.problems) == (0, [])


def letters(per_agent: Command, *filters: str) -> list[str]:
    return sorted(letter["id"] for letter in per_agent.well("dead", "list", "--json", *filters).json)


def test_dead_letters_look_the_same_from_the_sidecar_as_from_the_folder(
    buried: SidecarProcess, per_agent: Command
) -> None:
    commands = (
        ["dead", "list"], ["dead", "list", "--limit", "2"], ["dead", "list", "--json"], ["dead", "show", "a"],
        ["dead", "show", "a", "--json"], ["dead", "show", "none"], ["dead", "export"], ["dead", "list", "--meter", "m"],
        ["dead", "list", "--older-than", "1h"], ["dead", "export", "b", "c"], ["dead", "requeue"],
        ["dead", "requeue", "none"], ["dead", "purge", "--all"],
    )  # fmt: skip
    there = per_agent.many(*commands)
    assert letters(per_agent, "--destination", "kit", "--reason", "TOO LARGE") == ["a", "b", "c"]
    assert letters(per_agent, "--reason", "too small") == []
    (exported,) = per_agent.well("dead", "export", "a").out.splitlines()
    assert '"n":0.1000000000000000000001' in exported
    assert msgspec.json.decode(exported)["value"] == "0.10"
    assert buried.stop() == 0
    here = per_agent.many(*commands)
    for words, theirs, ours in zip(commands, there, here, strict=True):
        assert theirs == ours, words
    buried.start()


def test_letters_are_sent_again_by_the_sidecar_and_what_becomes_of_them_is_seen(
    buried: SidecarProcess, per_agent: Command, upstream: UpstreamServer
) -> None:
    again = per_agent("dead", "requeue", "a", "--json")
    assert again.code == 1
    assert again.json == {
        "requeued": 1, "delivered": 0, "dead_again": 1, "waiting": 0, "with_running_agents": 1,
    }  # fmt: skip
    upstream.clear_rules()
    done = per_agent.well("dead", "requeue", "--meter", "m")
    assert done.out == "2 events requeued, 2 delivered\n"
    upstream.stop()
    kept = per_agent("dead", "requeue", "--all", "--no-deliver")
    assert (kept.code, kept.err) == (0, "")
    assert kept.out.startswith("1 event requeued, 0 delivered, 1 waiting: the running agent delivers them")
    upstream.start()
    buried.drained("kit")
    assert sorted(upstream.score().identifiers) == ["a", "b", "c"]
    assert letters(per_agent) == []
    assert per_agent.well("dead", "requeue", "--all").out == "0 events requeued, 0 delivered\n"


def test_letters_are_purged_by_the_sidecar_when_that_is_confirmed(
    buried: SidecarProcess, per_agent: Command
) -> None:
    unasked = per_agent("dead", "purge", "--meter", "m")
    assert (unasked.code, unasked.out) == (2, "")
    assert "--yes" in unasked.problems[0]
    assert per_agent.well("dead", "purge", "--meter", "m", "--yes").out == "2 dead letters deleted\n"
    assert letters(per_agent) == ["c"]
    assert per_agent.well("dead", "purge", "--all", "--yes", "--json").json == {"purged": 1}
    assert per_agent.well("dead", "purge", "--all", "--yes", "--json").json == {"purged": 0}
    books = buried.books("kit")
    assert (books["dead"], books["purged"]) == (3, 3)


def test_more_letters_than_a_page_holds_are_all_there(buried: SidecarProcess, per_agent: Command) -> None:
    line = '{"event_name": "m", "customer_id": "c", "value": 1, "identifier": "e-%04d-%s"}\n'
    lines = "".join(line % (n, "x" * 200) for n in range(1100))
    assert per_agent("add", "-", "--wait", "delivered", stdin=lines).code == 1
    assert len(letters(per_agent)) == 1103
    assert "and 1,003 more" in per_agent.well("dead", "list").out
    assert len(per_agent.well("dead", "export").out.splitlines()) == 1103
    some = [each for each in letters(per_agent) if each.startswith("e-")][:60]
    assert per_agent.well("dead", "purge", *some, "--yes").out == "60 dead letters deleted\n"
    assert per_agent.well("dead", "purge", "--all", "--yes").out == "1,043 dead letters deleted\n"


# Watching, and running


def test_who_watches_goes_on_watching_while_the_sidecar_is_restarted(
    sidecar: SidecarProcess, per_agent: Command
) -> None:
    watch = ["status", "--watch", "--json", "--sidecar", f"unix:{sidecar.socket}"]
    with per_agent.start(*watch) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            before = json.loads(process.stdout.readline())["sidecar"]["pid"]
            sidecar.stop()
            assert b"cannot be reached" in process.stderr.readline()
            sidecar.start()
            while json.loads(process.stdout.readline())["sidecar"]["pid"] == before:
                pass
        finally:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


def said(log: Path, event: str) -> dict[str, Any] | None:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return next((line for line in lines if line["event"] == event), None)


def test_what_the_command_line_says_goes_over_the_configuration_and_is_checked(
    tmp_path: Path, per_agent: Command
) -> None:
    wrong = {
        ("--listen", "everywhere"): "sidecar.listen",
        ("--listen", "0.0.0.0:4737"): "sidecar.listen",
        ("--socket", ""): "--socket",
        ("--socket", "x" * 200): "sidecar.unix_socket",
        ("--log-format", "xml"): "sidecar.log_format",
        ("--log-level", "loud"): "sidecar.log_level",
        ("--config", "nowhere.toml"): "nowhere.toml",
    }
    for (words, named), done in zip(
        wrong.items(), per_agent.many(*(["run", *each] for each in wrong)), strict=True
    ):
        assert (done.code, done.out) == (2, ""), words
        assert len(done.problems) == 1
        assert named in done.problems[0]
    socket = tmp_path / "over.sock"
    over = ["--listen", "", "--socket", "over.sock", "--log-format", "json", "--log-level", "info"]
    with (tmp_path / "log").open("wb") as log, per_agent.start("run", *over, stderr=log) as process:
        try:
            until(lambda: per_agent("status", "--sidecar", f"unix:{socket}").code == 0, every=0.1)
            status = per_agent.well("status", "--json", "--sidecar", f"unix:{socket}").json
            assert status["sidecar"]["listeners"] == [f"unix:{socket}"]
            process.send_signal(signal.SIGHUP)
            read_again = until(lambda: said(tmp_path / "log", "the configuration was read again"))
            assert "needs_a_restart" not in read_again  # it does not forget what the command line said
        finally:
            process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert str(socket).encode() in out


def test_without_the_sidecars_libraries_it_says_what_to_install(per_agent: Command) -> None:
    program = "import sys; sys.modules['uvicorn'] = None; from per_agent.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, "run"],
        env={**per_agent.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'per-agent[sidecar]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
