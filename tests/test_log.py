"""The agent's log lines: never an error in the code that logged, never a change of the host's logging."""

import logging
import subprocess
import sys

import pytest
import structlog

from per_agent.log import Log


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


class BrokenHandler(logging.Handler):
    def emit(self, record):
        raise BrokenPipeError


def test_a_line_is_a_sentence_and_its_facts(caplog):
    with caplog.at_level(logging.INFO, "per_agent"):
        Log(spool="s-1").info("the spool has room again", bytes=7)
    (record,) = caplog.records
    assert record.name == "per_agent"
    assert record.levelno == logging.INFO
    assert record.getMessage() == 'event="the spool has room again" spool=s-1 bytes=7'


def test_a_record_carries_its_facts_beside_the_line(caplog):
    with caplog.at_level(logging.INFO, "per_agent"):
        Log(spool="s-1").info("the spool has room again", bytes=7, lost={"a": 1})
    (record,) = caplog.records
    assert record.facts == {
        "event": "the spool has room again",
        "spool": "s-1",
        "bytes": 7,
        "lost": {"a": 1},
    }
    assert record.getMessage().startswith('event="the spool has room again" '), "which hosts see, as ever"


@pytest.mark.parametrize(
    ("method", "level"),
    [
        ("debug", logging.DEBUG),
        ("info", logging.INFO),
        ("warning", logging.WARNING),
        ("error", logging.ERROR),
    ],
)
def test_a_line_has_the_level_of_its_method(caplog, method, level):
    with caplog.at_level(logging.DEBUG, "per_agent"):
        getattr(Log(), method)("something")
    assert [record.levelno for record in caplog.records] == [level]


def test_a_line_stays_one_line(caplog):
    with caplog.at_level(logging.INFO, "per_agent"):
        Log().error("trouble", words="first\n<0>forged second")
    (record,) = caplog.records
    assert "\n" not in record.getMessage()


def test_a_defect_comes_with_its_traceback(caplog):
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        Log().bug("the courier met a defect and goes on")
    (record,) = caplog.records
    assert "ZeroDivisionError" in record.getMessage()
    assert record.facts["exception"].startswith("Traceback")


@pytest.mark.parametrize(
    "value",
    [Unprintable(), "\ud800", b"\xff", {1: Unprintable()}, [Unprintable()]],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_written_is_not_felt_by_the_code_that_logged_it(tmp_path, monkeypatch, value):
    sink = logging.getLogger("per_agent")
    monkeypatch.setattr(sink, "propagate", False)  # pytest itself could not write it either
    monkeypatch.setattr(logging, "raiseExceptions", False)  # as a host in production has it
    file = logging.FileHandler(tmp_path / "log", encoding="utf-8")
    sink.addHandler(file)
    try:
        Log().error("trouble", value=value)
        Log().error("and then")
    finally:
        sink.removeHandler(file)
        file.close()
    assert "and then" in (tmp_path / "log").read_text()


def test_a_fact_with_an_impossible_name_is_not_felt_by_the_code_that_logged_it():
    Log().error("trouble", **{"not a name": 1, "a=b": 2})


def test_a_sink_that_is_broken_is_not_felt_by_the_code_that_logged():
    sink, broken = logging.getLogger("per_agent"), BrokenHandler()
    sink.addHandler(broken)
    try:
        Log().error("trouble")
    finally:
        sink.removeHandler(broken)


def test_nothing_is_configured_for_the_host():
    Log(a=1).error("trouble")
    assert not structlog.is_configured()


QUIET = """
import logging, structlog
before = (logging.root.level, list(logging.root.handlers), logging.getLevelName(1), structlog.is_configured())
import per_agent
from per_agent.log import Log
Log().info("a"); Log().warning("b")
assert (logging.root.level, list(logging.root.handlers), logging.getLevelName(1), structlog.is_configured()) == before
mine = logging.getLogger("per_agent")
assert mine.level == logging.NOTSET and mine.propagate
assert [type(h) for h in mine.handlers] == [logging.NullHandler]
"""


def test_a_host_that_configured_no_logging_sees_nothing_and_keeps_its_logging():
    done = subprocess.run(
        [sys.executable, "-c", QUIET], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


CHOSEN = """
import structlog
structlog.configure(processors=[structlog.processors.JSONRenderer()])
from per_agent.log import Log
Log().error("ours")
structlog.get_logger().info("theirs")
"""


def test_the_hosts_own_structlog_goes_on_as_it_was_configured():
    done = subprocess.run(
        [sys.executable, "-c", CHOSEN], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, '{"event": "theirs"}\n')


WITHOUT_FILES = """
import logging, resource, os, sys
from contextlib import suppress
from per_agent.backoff import Backoff
from per_agent.log import Log
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
held = []
with suppress(OSError):
    while True:
        held.append(os.open("/", os.O_RDONLY))
Log(spool="s-1").error("the disk is in trouble", reason="Too many open files")
try:
    raise ValueError("of ours")
except ValueError:
    Log().bug("a defect")
assert "structlog" not in sys.modules and "tenacity" not in sys.modules
waits = [Backoff(initial=1.0, ceiling=8.0).wait(attempt) for attempt in range(1, 9)]
assert all(0.1 * longest <= wait <= longest for wait, longest in zip(waits, [1, 2, 4, 8, 8, 8, 8, 8])), waits
"""


def test_where_no_file_can_be_opened_a_line_is_written_and_a_wait_is_told_all_the_same():
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 64; exec "$0" -c "$1"', sys.executable, WITHOUT_FILES],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    first, second, *traceback = done.stdout.splitlines()
    assert first == 'ERROR event="the disk is in trouble" spool=s-1 reason=Too many open files'
    assert second == 'ERROR event="a defect"'
    assert traceback[-1] == "ValueError: of ours"
