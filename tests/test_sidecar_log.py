"""The sidecar's log lines: for a console, for a machine, for the journal; never a secret, never an error of its own."""

import json
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = r"""
import io, logging, os, sys, warnings
from per_agent.log import Log
from per_agent.settings import PerSettings, Secret, Settings, SidecarSettings
from per_agent.sidecar import log

def settings(token="hidden-token-1", **fields):
    return Settings(
        sidecar=SidecarSettings(token=Secret("sidecar-token-1"), **fields),
        destinations={"per": PerSettings(activity_token=Secret(token), reporting_token=Secret('odd"to\\ken'))},
    )

"""


def run(program: str, *, stderr=subprocess.PIPE, environ: dict[str, str] | None = None) -> list[str]:
    """The lines on the stderr of a process that was configured as the sidecar's is; its stdout stays empty."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, **(environ or {})},
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return (done.stderr or "").splitlines()


def in_json(program: str, **options) -> list[dict]:
    return [json.loads(line) for line in run(program, **options)]


def test_a_line_for_a_machine_is_one_json_object_with_the_facts_by_name():
    (line,) = in_json("""
        log.configure(settings(), sys.stderr, {})
        Log(destination="per").warning("the destination is in trouble", reason="HTTP 503: busy", failures=3)
    """)
    moment = line.pop("timestamp")
    assert moment[10] == "T"
    assert moment.endswith("Z")
    assert line == {
        "level": "warning",
        "event": "the destination is in trouble",
        "destination": "per",
        "reason": "HTTP 503: busy",
        "failures": 3,
    }


def test_a_line_for_a_machine_stays_one_line_whatever_is_in_it():
    lines = in_json("""
        log.configure(settings(), sys.stderr, {})
        Log().error("words", words="first\\n<0>forged\\r\\x1b[2Jsecond \\ud800 é", raw=b"\\xff", what=object)
        try:
            1 / 0
        except ZeroDivisionError:
            Log().bug("a defect")
    """)
    assert lines[0]["words"].startswith("first\n<0>forged\r\x1b[2Jsecond")
    assert "ZeroDivisionError" in lines[1]["exception"]


def test_the_journal_is_told_the_level_of_each_line(tmp_path: Path):
    place = tmp_path / "journal"
    with place.open("w") as journal:
        found = os.fstat(journal.fileno())
        run(
            """
            log.configure(settings(log_level="debug"), sys.stderr, os.environ)
            Log().error("a"); Log().warning("b"); Log().info("c"); Log().debug("d")
            """,
            stderr=journal.fileno(),
            environ={"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"},
        )
    lines = place.read_text().splitlines()
    assert [line[:3] for line in lines] == ["<3>", "<4>", "<6>", "<7>"]
    assert [json.loads(line[3:])["event"] for line in lines] == ["a", "b", "c", "d"]


def test_a_stderr_that_is_not_the_journal_gets_no_prefix_though_its_parent_had_one():
    lines = run(
        """
        log.configure(settings(), sys.stderr, os.environ)
        Log().error("a")
        """,
        environ={"JOURNAL_STREAM": "1:2"},
    )
    assert json.loads(lines[0])["event"] == "a"


@pytest.mark.parametrize(("level", "expected"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_what_is_below_the_chosen_level_is_not_written(level, expected):
    lines = in_json(f"""
        log.configure(settings(log_level="{level}"), sys.stderr, {{}})
        Log().error("a"); Log().warning("b"); Log().info("c"); Log().debug("d")
    """)
    assert len(lines) == expected


def on_terminal(program: str) -> str:
    """What the process writes to a terminal."""
    leader, follower = pty.openpty()
    try:
        run(program, stderr=follower)
        os.close(follower)
        said = b""
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # the other side is closed: how a terminal ends
                break
            if not chunk:
                break
            said += chunk
    finally:
        os.close(leader)
    return said.decode()


def test_a_person_at_a_terminal_reads_words_and_words_cannot_move_the_cursor():
    said = on_terminal("""
        log.configure(settings(), sys.stderr, {})
        Log(destination="per").info("the destination is well again", words="x\\x1b[2Jy\\nz")
    """)
    assert "the destination is well again" in said
    assert "{" not in said
    assert "\x1b[2J" not in said
    assert len(said.strip().splitlines()) == 1


def test_the_form_can_be_chosen_against_what_stderr_is():
    (line,) = run("""
        log.configure(settings(log_format="console"), sys.stderr, {})
        Log(destination="per").info("the destination is well again")
    """)
    assert "the destination is well again" in line
    assert "\x1b" not in line, "colours are for terminals"
    assert (
        json.loads(
            on_terminal("""
        log.configure(settings(log_format="json"), sys.stderr, {})
        Log().info("a")
    """)
        )["event"]
        == "a"
    )


# Secrets


@pytest.mark.parametrize("form", ["json", "console"])
def test_configured_secrets_are_blotted_out_wherever_they_stand(form):
    lines = run(f"""
        log.configure(settings(log_format="{form}"), sys.stderr, {{}})
        odd = settings().destinations["per"].reporting_token.reveal()
        Log(token="hidden-token-1").error("with hidden-token-1", a=["hidden-token-1"], b={{"hidden-token-1": odd}})
        Log().error("as it stands", odd=odd, shown=repr(odd), url="/?token=odd%22to%5Cken")
        logging.getLogger("httpx").error("GET /?token=%s", "sidecar-token-1")
        try:
            raise RuntimeError("hidden-token-1 " + odd)
        except RuntimeError:
            Log().bug("a defect")
            logging.getLogger("asyncio").exception("sidecar-token-1")
    """)
    said = "\n".join(lines)
    for part in ("hidden-token", "sidecar-token", "odd%22", "ken"):
        assert part not in (said.replace("token", "") if part == "ken" else said)
    assert said.count("[hidden]") >= 8
    if form == "json":
        assert all(json.loads(line) for line in lines)


def test_a_token_that_a_reload_replaced_and_one_that_was_made_stay_hidden():
    said = "\n".join(
        run("""
        log.configure(settings("first-secret"), sys.stderr, {})
        log.configure(settings("second-secret"), sys.stderr, {})
        log.hide("made-secret")
        Log().error("first-secret second-secret made-secret")
    """)
    )
    assert "secret" not in said
    assert said.count("[hidden]") == 3


# The process


def test_a_reload_takes_effect_and_no_line_is_written_twice():
    lines = run("""
        log.configure(settings(log_level="error"), sys.stderr, {})
        Log().info("before")
        log.configure(settings(log_level="debug", log_format="console"), sys.stderr, {})
        Log().debug("after")
    """)
    assert len(lines) == 1
    assert "after" in lines[0]


def test_libraries_are_heard_from_a_warning_on_with_their_name():
    lines = in_json("""
        log.configure(settings(log_level="debug"), sys.stderr, {})
        for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "httpx", "asyncio"):
            logging.getLogger(name).info("chatter about a request")
        logging.getLogger("uvicorn.error").warning("trouble with %s", "a socket")
        warnings.simplefilter("always")
        warnings.warn("odd")
    """)
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("uvicorn.error", "warning"),
        ("py.warnings", "warning"),
    ]
    assert lines[0]["event"] == "trouble with a socket"


def test_what_the_command_line_had_hung_on_our_logger_is_gone():
    lines = run("""
        ours = logging.getLogger("per_agent")
        ours.addHandler(logging.StreamHandler(sys.stderr))
        log.configure(settings(), sys.stderr, {})
        Log().error("once")
    """)
    assert len(lines) == 1


@pytest.mark.parametrize(
    "breaking",
    [
        "os.close(2)",
        "sys.stderr.close()",
        "read, write = os.pipe(); os.dup2(write, 2); os.close(write); os.close(read)",
    ],
    ids=["closed below", "closed above", "nobody reads"],
)
def test_a_broken_stderr_is_not_felt(breaking, tmp_path):
    place = tmp_path / "well"
    run(f"""
        import signal
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        stderr = sys.stderr
        log.configure(settings(), stderr, {{}})
        {breaking}
        for n in range(1000):
            Log().error("nobody reads this", n=n)
        Log().bug("nor this")
        logging.getLogger("uvicorn.error").error("nor %d", "this")
        log.configure(settings(log_format="auto"), stderr, {{"JOURNAL_STREAM": "1:2"}})
        open({str(place)!r}, "w").close()
        os._exit(0)
    """)
    assert place.exists()


def test_a_value_that_cannot_be_written_costs_its_line_and_no_more():
    lines = in_json("""
        class Unprintable:
            def __repr__(self): raise RuntimeError("no words")
            __str__ = __repr__
        log.configure(settings(), sys.stderr, {})
        Log().error("trouble", value=Unprintable())
        logging.getLogger("uvicorn.error").error("%s", Unprintable())
        Log().error("and then")
    """)
    assert lines[-1]["event"] == "and then"
