"""`demo`: both ends are killed, and every number is right; a number that is off is found; nothing is left behind."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from waiting import until

from per_agent import Agent
from per_agent.cli.demo.plan import METER, Plan, identifier
from per_agent.cli.demo.recorder import Notes, words
from per_agent.cli.demo.stage import Stage
from per_agent.cli.demo.story import Answers, Incidents
from per_agent.cli.demo.verdict import gather, judge
from per_agent.cli.demo.watch import Watch
from per_agent.cli.exits import Stop

MARK = "PYTEST_DEMO_MARK"
WITHOUT = """
import sys
sys.modules["uvloop"] = None
sys.argv = ["per-agent", "demo"]
from per_agent.cli import main
main()
"""


@pytest.fixture
def per_agent(tmp_path: Path) -> Iterator[Command]:
    """The command, in an environment that configures something else, by whose mark its children are known."""
    with tempfile.TemporaryDirectory() as folder:  # a short path: a Unix socket is to lie in it
        yield Command(
            tmp_path,
            TMPDIR=folder,
            PER_ACTIVITY_TOKEN="tok",
            PER_AGENT_CONFIG="nowhere.toml",
            NOTIFY_SOCKET="/nowhere",
            **{MARK: str(tmp_path)},
        )


def children(per_agent: Command) -> dict[int, str]:
    """The demo's processes that run, by their command lines."""
    wanted = f"{MARK}={per_agent.home}\0".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it ended, or is another user's
    return found


def pid_of(per_agent: Command, words: str) -> int | None:
    return next((pid for pid, line in children(per_agent).items() if words in line), None)


def left(per_agent: Command) -> list[str]:
    """What is still there: processes and files."""
    return [*children(per_agent).values(), *map(str, Path(per_agent.environ["TMPDIR"]).iterdir())]


def test_the_demo_needs_no_configuration_keeps_its_promises_and_leaves_nothing(per_agent: Command) -> None:
    done = per_agent("demo", "--events", "300", "--seconds", "2", "--json")
    assert done.code == 0, done.err
    assert done.json["ok"] is True
    assert all(check["kept"] for check in done.json["checks"])
    assert 120 <= done.json["stored_before_the_kill"] <= 300
    outage = done.json["outage"]
    assert outage["seconds"] > 0
    assert outage["pending_at_most"] > 0
    assert outage["failed_attempts"] > 0
    books = done.json["books"]
    application = books["application"]
    assert application["per"]["accepted"] == application["per"]["delivered"] >= 200
    assert application["payment_kit"]["accepted"] == application["payment_kit"]["delivered"] >= 100
    # A meter event that came again is accepted again, too; the ledger knows it by its identifier.
    ledger = books["sidecar"]["ledger"]
    assert ledger["accepted"] == ledger["delivered"] >= 300 + done.json["activities_repeated"]
    assert done.json["stats"]["list"][0]["event_count"] == 100
    assert "kill -9: the upstream is gone" in done.err
    assert left(per_agent) == []
    assert not per_agent.data_dir.exists()


def test_a_folder_of_its_own_is_kept_to_look_into(per_agent: Command, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = per_agent("--data-dir", str(folder), "demo", "--events", "100", "--seconds", "1")
    assert (done.code, done.err) == (0, "")
    assert re.findall(r"^(\d+)\. ", done.out, re.MULTILINE) == [f"{n}" for n in range(1, 10)]
    assert "\x1b" not in done.out, "it is no terminal"
    assert "Books of the application" in done.out
    assert "Books of the upstream" in done.out
    for config, command in re.findall(r"per-agent --config (\S+) (.+)", done.out):
        looked = per_agent.well("--config", config, *command.split())
        assert "payment_kit" in looked.out if command == "status" else "active-users" in looked.out
    for secret in ("app.toml", "sidecar.toml"):
        assert (folder / secret).stat().st_mode & 0o077 == 0
    again = per_agent("demo", "--data-dir", str(folder))
    assert (again.code, again.out) == (2, "")
    assert "a folder of its own" in again.problems[0]


def test_on_a_terminal_the_queue_is_seen_to_grow_and_ctrl_c_leaves_nothing(per_agent: Command) -> None:
    mine, its = pty.openpty()
    process = per_agent.start("demo", "--seconds", "12", stdout=its, stderr=its, stdin=subprocess.DEVNULL)
    os.close(its)
    seen = ""
    try:
        deadline = time.monotonic() + 90
        while not ("killed" in seen and "retrying" in seen):
            assert time.monotonic() < deadline, seen
            if select.select([mine], [], [], 1)[0]:
                seen += os.read(mine, 65536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        while select.select([mine], [], [], 60)[0]:
            try:
                seen += os.read(mine, 65536).decode(errors="replace")
            except OSError:
                break  # nobody holds the other end any more
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(mine)
    assert "application: payment_kit" in seen
    assert "Traceback" not in seen
    assert left(per_agent) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_told_to_end_leaves_nothing(per_agent: Command, number: signal.Signals) -> None:
    with per_agent.start("demo", stdin=subprocess.DEVNULL) as process:
        until(lambda: pid_of(per_agent, "demo-recorder"))
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, b"")
    assert left(per_agent) == []


def test_a_sidecar_that_ends_by_itself_ends_the_demo(per_agent: Command) -> None:
    with per_agent.start("demo", "--seconds", "60", stdin=subprocess.DEVNULL) as process:
        until(lambda: pid_of(per_agent, "demo-recorder"))
        sidecar = pid_of(per_agent, " run ")
        assert sidecar is not None
        os.kill(sidecar, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith(b"per-agent: the sidecar ended with 0: ")
    assert left(per_agent) == []


def test_what_does_not_come_about_is_not_waited_for_without_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    watch = Watch(stage, Notes(stage.notes), time.monotonic(), lambda *_: None)
    with pytest.raises(Stop, match="the queue's draining took too long"):
        watch.until(lambda look: bool(look.waiting), "the queue's draining")


def test_the_application_notes_its_failed_attempts_also_when_all_is_recorded(
    per_agent: Command, tmp_path: Path
) -> None:
    stage, plan = Stage(tmp_path), Plan(seed=1, events=100, begin=1_700_000_000.0)
    notes = Notes(stage.notes)
    process = per_agent.start(*words(plan, stage.application_config, 0.1, stage.notes))
    try:
        until(lambda: notes.count() == 100)
        assert sorted(notes.read()) == sorted(map(identifier, plan.records()))
        before = notes.retries()
        until(lambda: notes.retries() > before)
    finally:
        process.kill()
        process.communicate()


def test_without_the_libraries_of_the_sidecar_it_says_what_to_install(per_agent: Command) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT],
        env=per_agent.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "uvloop: pip install 'per-agent[sidecar]'" in done.stderr


def test_the_demo_says_what_is_off(tmp_path: Path) -> None:
    """The judge, on a ledger in which one event is missing and a stranger counts."""
    plan, stage = Plan(seed=7, events=100, begin=1_700_000_000.0), Stage(tmp_path)
    records = list(plan.records())
    with Agent(stage.sidecar) as agent:
        meter = agent.meters.create(name="n", event_name=METER, unit="u")
        for record in records[:-1]:
            agent.add_record(record)
        agent.add_record(records[0] | {"identifier": "another"})
        assert agent.flush(30)
        answers = Answers(
            agent.get_report("2023-11-14T00:00:00Z"),
            agent.meter_events.stats(meter_id=meter["id"], start=1_699_999_000, end=1_700_001_000),
        )
    quiet = Incidents(
        upstream_killed=False, killed_at=None, gone=0.0, most_waiting=0, retries=0, stopped=None
    )
    noted = [identifier(record) for record in records]
    verdict = judge(plan, gather(plan, stage, answers, noted), quiet)
    assert not verdict.kept
    off = {check.promise: check.found for check in verdict.checks if not check.kept}
    assert off == {
        "the upstream was killed with SIGKILL, and came back": "the second one ended with None",
        "the application was killed with SIGKILL, and came back": "it was not",
        "the outage was felt": "0 events waited, 0 attempts failed",
        "every stored event arrived": "1 missing",
        "no meter event is counted twice, by its identifier": "34 counted, 1 too many",
        "the meter's sum is what was recorded, to the last digit": off[
            "the meter's sum is what was recorded, to the last digit"
        ],
    }
    shutil.rmtree(stage.sidecar)
