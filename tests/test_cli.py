"""The command line as a whole: help, exit codes, settings, signals, pipes."""

import json
import os
import select
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest
from command import ROOT, Command
from waiting import until

COMMANDS = [
    (), ("demo",), ("run",), ("add",), ("add", "activity"), ("add", "meter"), ("add", "file"), ("report",), ("meters",),
    ("meters", "list"), ("meters", "show"), ("meters", "create"), ("meters", "update"), ("meters", "activate"),
    ("meters", "deactivate"), ("status",), ("books",), ("dead",), ("dead", "list"), ("dead", "show"),
    ("dead", "requeue"), ("dead", "export"), ("dead", "purge"), ("config",), ("config", "check"),
    ("config", "show"), ("config", "example"),
]  # fmt: skip


@pytest.fixture
def per_agent(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_every_help_teaches_by_example(per_agent: Command) -> None:
    for words, done in zip(
        COMMANDS, per_agent.many(*([*words, "--help"] for words in COMMANDS)), strict=True
    ):
        assert (done.code, done.err) == (0, ""), words
        assert "Examples" in done.out, words
        assert " ".join(["per-agent", *words]) in done.out, words
        assert "demo-recorder" not in done.out


def test_the_version_is_that_of_the_project(per_agent: Command) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert per_agent.well("--version").out == f"per-agent {project['version']}\n"


WRONG = [
    (("nonsense",), "No such command 'nonsense'"),
    (("report", "--nonsense"), "No such option"),
    (("add", "activity", "acme"), "Missing argument"),
    (("add", "meter", "m", "--customer", "c"), "Missing option"),
    (("add", "meter", "m", "--customer", "c", "--value", "3", "--wait", "long"), "--wait"),
    (("meters", "update", "m"), "nothing to change"),
    (("dead", "requeue"), "say which"),
    (("dead", "purge", "--all", "--meter", "m"), "--all"),
    (("dead", "list", "--older-than", "soon"), "--older-than"),
    (("dead", "purge", "--reason", ""), "--reason"),
    (("report", "--last", "7x"), "--last"),
    (("report", "--last", "7d", "--start", "2026-01-01"), "--last"),
    (("report", "--end", "2026-01-01"), "--start"),
    (("report", "--start", "yesterday"), "--start"),
    (("report", "--start", "2026-02-01", "--end", "2026-01-01"), "--start"),
    (("report", "--csv", "--json"), "--csv"),
    (("books", "--data-dir", ""), "--data-dir"),
    (("books", "--config", ""), "--config"),
    (
        ("meters", "create", "--name", "n", "--event-name", "e", "--unit", "u", "--metadata", "[]"),
        "--metadata",
    ),
]


def test_a_wrong_command_line_ends_with_2_and_one_line_that_names_what_is_wrong(per_agent: Command) -> None:
    for (arguments, says), done in zip(WRONG, per_agent.many(*(words for words, _ in WRONG)), strict=True):
        assert (done.code, done.out) == (2, ""), arguments
        assert len(done.problems) == 1, arguments
        assert says in done.problems[0], arguments


def test_half_a_command_shows_its_help_and_ends_with_2(per_agent: Command) -> None:
    for done in per_agent.many([], ["dead"], ["meters"], ["config"]):
        assert (done.code, done.err) == (2, "")
        assert "Commands" in done.out


def test_options_that_stand_anywhere_may_stand_before_the_command_too(
    per_agent: Command, tmp_path: Path
) -> None:
    before = per_agent.well("--json", "--data-dir", str(tmp_path / "other"), "status").json
    after = per_agent.well("status", "--json", "--data-dir", str(tmp_path / "other")).json
    assert before == after
    assert before["data_dir"] == str(tmp_path / "other")


def test_config_check_names_every_problem_on_a_line_of_its_own(per_agent: Command) -> None:
    per_agent.configure('[spool]\nmax_bytes = "ten"\n[agnet]\nx = 1\n[destinations.per]\ntype = "per"\n')
    done = per_agent("config", "check")
    assert (done.code, done.out) == (2, "")
    assert [problem.partition(": ")[2].partition(":")[0] for problem in done.problems] == [
        "agnet", "spool.max_bytes", "destinations.per.activity_token",
    ]  # fmt: skip
    asked = per_agent("config", "check", "--json")
    assert (asked.code, asked.err) == (2, "")
    assert asked.json == {"ok": False, "problems": done.problems, "warnings": []}


def test_config_check_says_ok_and_warns(per_agent: Command) -> None:
    path = per_agent.configure('[destinations.per]\ntype = "per"\nactivity_token = "tok-en"\n')
    assert per_agent.well("config", "check").out == f"OK: from {path}; 1 destination: per\n"
    path.chmod(0o644)
    warned = per_agent("config", "check")
    assert warned.code == 0
    assert ["others can read" in line for line in warned.problems] == [True]
    assert per_agent.well("config", "check", "--json").json["warnings"]


def test_config_show_is_a_configuration_itself_and_hides_secrets(per_agent: Command) -> None:
    path = per_agent.configure(
        '[intake]\nlinger = 0.25\n[destinations.p]\ntype = "per"\nactivity_token = "tok-en"\n'
    )
    shown = per_agent.well("config", "show").out
    assert "tok-en" not in shown
    assert str(path) in shown
    settings = tomllib.loads(shown)
    assert settings["intake"]["linger"] == 0.25
    assert settings["agent"]["data_dir"] == str(per_agent.data_dir)
    assert settings["destinations"]["p"]["activity_token"] == "********"
    in_json = per_agent.well("config", "show", "--json").json
    assert in_json["destinations"]["p"].items() >= settings["destinations"]["p"].items()


def test_config_example_is_the_example_file(per_agent: Command) -> None:
    assert per_agent.well("config", "example").out == (ROOT / "config.example.toml").read_text()


def test_a_missing_configuration_ends_with_2_but_a_named_folder_can_be_looked_into(
    per_agent: Command, tmp_path: Path
) -> None:
    done = per_agent("books", "--config", "nowhere.toml")
    assert done.code == 2
    assert "nowhere.toml: cannot be read" in done.problems[0]
    assert "--data-dir" in done.problems[-1]
    looked = per_agent("books", "--config", "nowhere.toml", "--data-dir", str(tmp_path), "--json")
    assert looked.code == 0
    assert looked.json["balanced"] is True
    assert len(looked.problems) == 1


def test_a_reader_that_goes_away_is_no_error(per_agent: Command) -> None:
    read, write = os.pipe()
    os.close(read)
    running = [per_agent.start(*words, stdout=write) for words in (["books"], ["config", "show", "--json"])]
    os.close(write)
    for process in running:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (141, b"")


def test_ctrl_c_ends_it_quietly_with_130(per_agent: Command) -> None:
    process = per_agent.start("status", "--watch", "--json")
    assert process.stdout is not None
    for _ in range(2):
        assert json.loads(process.stdout.readline())["spools"] == []
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


def test_ctrl_c_while_events_come_in_keeps_those_that_were_taken(per_agent: Command) -> None:
    process = per_agent.start("add", "-")
    assert process.stdin is not None
    process.stdin.write(b'{"billing_id": "acme", "user_id": "u", "activity_type_id": "t"}\n')
    process.stdin.flush()
    until(lambda: per_agent.books()["accepted"], every=0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert per_agent.books()["accepted"] == 1


def test_the_agents_log_is_shown_on_demand_only(per_agent: Command) -> None:
    add = ["add", "meter", "m", "--customer", "c", "--value", "1"]
    quiet, verbose = per_agent.many(add, [*add, "--verbose", "--data-dir", "elsewhere"])
    assert ["event=" in line for line in quiet.problems] == [False]
    assert any('event="events are parked"' in line for line in verbose.problems)


def test_a_data_folder_that_cannot_be_used_is_told_in_a_line(per_agent: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = per_agent("add", "activity", "acme", "u", "t", "--data-dir", str(tmp_path / "file"))
    assert (done.code, done.out) == (1, "")
    assert len(done.problems) == 1
    assert "--data-dir" in done.problems[0]


def test_on_a_terminal_status_is_drawn_again_until_ctrl_c(per_agent: Command) -> None:
    per_agent.environ["COLUMNS"] = "150"
    ours, theirs = os.openpty()
    process = per_agent.start("status", "--watch", stdin=subprocess.DEVNULL, stdout=theirs)
    os.close(theirs)
    seen = b""
    while seen.count(b"no agent was here yet") < 2:
        assert select.select([ours], [], [], 30)[0], seen
        seen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    os.close(ours)
    assert (process.returncode, err) == (130, b"")
