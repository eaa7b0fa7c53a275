"""The house keeps its own rules: what is written about the code is checked against the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import per_agent

ROOT = Path(per_agent.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
README = (ROOT.parent / "README.md").read_text()
DESIGNED = {
    "Agent", "Ledger", "PaymentKit", "Per", "configure", "add_activity", "add_meter_event", "get_report",
    "PerAgentError", "ConfigError", "InvalidEvent", "BufferFull", "AgentClosed", "SpoolError", "SpoolFull",
    "SpoolCorrupt", "UpstreamError", "Unauthorized", "Refused", "RateLimited", "Unavailable",
}  # fmt: skip


GUEST = """
import logging, signal, sys, threading
before = (logging.root.handlers[:], signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
import per_agent
assert threading.active_count() == 1
after = (logging.root.handlers[:], signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
assert before == after
assert 'typer' not in sys.modules, 'only the command line needs it'
agent = per_agent.Agent('/nonexistent/folder')
assert threading.active_count() == 1, 'threads start with the first event'
"""


def test_the_public_names_are_there_and_each_says_what_it_is_for():
    assert set(per_agent.__all__) >= DESIGNED
    for name in per_agent.__all__:
        assert getattr(per_agent, name).__doc__, name


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_first_what_it_is_for_and_is_one_noun(module):
    source = module.read_text()
    said = ast.get_docstring(ast.parse(source))
    assert said, "its first line says what it is for"
    assert source.startswith('"""')
    # About 300 lines; one that outgrows them becomes a folder of the same noun.
    assert len(source.splitlines()) <= 310


def test_the_map_in_the_package_names_every_part():
    said = per_agent.__doc__ or ""
    parts = {path.stem for path in ROOT.iterdir() if path.stem not in ("__init__", "__pycache__", "py")}
    assert {part for part in parts if f"`{part}`" not in said} == set()


def test_importing_starts_nothing_and_leaves_the_host_as_it_was():
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            GUEST,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"per-agent ([a-z]+(?: [a-z]+)?)(?= |`|$)", README, re.MULTILINE)))
)
def test_a_command_that_the_readme_names_exists_and_teaches(command):
    words = [word for word in command.split() if word != "example"]
    done = subprocess.run(
        [sys.executable, "-m", "per_agent.cli", *words, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_readme_has_a_row_for_what_add_may_raise():
    for error in ("InvalidEvent", "BufferFull", "SpoolFull", "AgentClosed", "Unavailable", "SpoolError"):
        assert error in README


def test_each_row_of_what_can_happen_names_a_test_that_is_there():
    table = README.partition("## What can happen, and what you lose")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 15
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", row)
        assert named, row
        for file, test in named:
            source = (ROOT.parent / "tests" / file).read_text()
            assert f"def {test or 'test_'}" in source, (file, test)
