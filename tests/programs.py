"""Small programs that tests run as real processes, to see what becomes of events when they end or fork."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

PRELUDE = """
import os, sys, time, threading, signal
from per_agent import *
data_dir = sys.argv[1]
"""


def run(
    program: str,
    data_dir: Path,
    *arguments: str,
    timeout: float = 60,
    python: str = sys.executable,
    world: str = "",
) -> str:
    """Run *program* (after `PRELUDE`) to its end. Gives its stdout; fails when it says anything on stderr."""
    done = start(program, data_dir, *arguments, python=python, world=world)
    try:
        out, err = done.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, signal.SIGKILL)  # its children, too: one that hangs must not outlive the test
        done.communicate()
        raise
    assert done.returncode == 0, err
    assert not err, err
    return out


def start(
    program: str, data_dir: Path, *arguments: str, python: str = sys.executable, world: str = ""
) -> subprocess.Popen[str]:
    """Start *program*. *world* is run before all else: what it does to the standard library is there for all."""
    code = textwrap.dedent(world) + textwrap.dedent(PRELUDE) + textwrap.dedent(program)
    return subprocess.Popen(
        [python, "-W", "error", "-c", code, str(data_dir), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
