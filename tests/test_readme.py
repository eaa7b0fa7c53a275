"""The README's code runs as it is written there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"(<!-- not run[^\n]*-->\n)?```(python|sh)\n(.*?)```", README, re.DOTALL)
INSTALLS = [code.strip() for _, language, code in BLOCKS if language == "sh" and "pip install" in code]
RUN = [(language, code) for skipped, language, code in BLOCKS if not skipped and "pip install" not in code]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A person's environment: per-agent on the path, and a data folder of its own."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PER_", "PAYMENT_KIT_"))
    }
    return clean | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PER_AGENT_DATA_DIR": str(tmp_path_factory.mktemp("readme")),
    }


def test_the_two_commands_are_each_one_line():
    assert len(INSTALLS) == 2
    assert all("\n" not in command for command in INSTALLS)


@pytest.mark.parametrize(
    ("language", "code"), RUN, ids=[f"{language}-{n}" for n, (language, _) in enumerate(RUN)]
)
def test_a_block_runs_as_it_stands(environment, tmp_path, language, code):
    command = (
        [sys.executable, "-W", "error", "-c", code]
        if language == "python"
        else ["bash", "-euo", "pipefail", "-c", code]
    )
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    if language == "python":
        assert "'unique': 1" in done.stdout
    else:
        assert "active-users" in done.stdout


def test_blocks_that_are_not_run_are_python_all_the_same():
    skipped = [code for mark, language, code in BLOCKS if mark and language == "python"]
    assert skipped
    for code in skipped:
        compile(code, "README.md", "exec")
