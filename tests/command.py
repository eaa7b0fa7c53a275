"""`per-agent` as a real process: what it prints, and the code that it ends with."""

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-W", "error", "-m", "per_agent.cli"]

# Starting Python and importing everything is most of what a short command takes, and the tests run hundreds.
# This imports once, and forks for each: a process of its own all the same, by the entry point that is installed.
_WARM = """
import contextlib, io, json, os, sys
from per_agent.cli.app import build, main
with contextlib.redirect_stdout(io.StringIO()):
    build()(["books", "--help"], standalone_mode=False)
left = b""
while True:
    while b"\\n" not in left:
        more = os.read(0, 65536)
        if not more:
            sys.exit()
        left += more
    line, _, left = left.partition(b"\\n")
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["environ"])
        for number, path in enumerate(asked["streams"]):
            opened = os.open(path, os.O_RDWR | os.O_CREAT)
            os.dup2(opened, number)
            os.close(opened)
        sys.argv = ["per-agent", *asked["arguments"]]
        main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def problems(self) -> list[str]:
        """The lines on stderr, each of which must be ours: a traceback's are not."""
        lines = self.err.splitlines()
        assert all(line.startswith("per-agent: ") for line in lines), self.err
        return [line.removeprefix("per-agent: ") for line in lines]


class Command:
    """The command, with an environment of its own and a data folder."""

    def __init__(self, home: Path, **environ: str) -> None:
        self.home = home
        self.data_dir = home / "data"
        ours = ("PER_", "PAYMENT_", "XDG_", "COLUMNS")
        keep = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environ = keep | {
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "PER_AGENT_DATA_DIR": str(self.data_dir),
            **environ,
        }

    def __call__(self, *arguments: str, stdin: str | bytes = b"", timeout: float = 120) -> Done:
        """Run it to its end."""
        with tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder, name) for name in ("in", "out", "err")]
            streams[0].write_bytes(stdin.encode() if isinstance(stdin, str) else stdin)
            code = _run_warm(
                {
                    "arguments": arguments,
                    "cwd": str(self.home),
                    "environ": self.environ,
                    "streams": [str(stream) for stream in streams],
                },
                timeout,
            )
            return Done(code, *(stream.read_bytes().decode() for stream in streams[1:]))

    def well(self, *arguments: str, stdin: str | bytes = b"") -> Done:
        """Run it; it must end with 0 and say nothing on stderr."""
        done = self(*arguments, stdin=stdin)
        assert (done.code, done.err) == (0, "")
        return done

    def many(self, *commands: Sequence[str]) -> list[Done]:
        """Run *commands* one after the other."""
        return [self(*words) for words in commands]

    def start(self, *arguments: str, **pipes: Any) -> "subprocess.Popen[bytes]":
        """Start it as a shell does, with pipes."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | pipes
        return subprocess.Popen([*PROGRAM, *arguments], env=self.environ, cwd=self.home, **pipes)

    def python(self, program: str, *arguments: str) -> "subprocess.Popen[str]":
        """Start a Python program beside it."""
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, str(self.data_dir), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environ,
            cwd=self.home,
        )

    def configure(self, text: str) -> Path:
        """Use a configuration file with *text*, for this user only."""
        path = self.home / "config.toml"
        path.touch(mode=0o600)
        path.write_text(text)
        self.environ["PER_AGENT_CONFIG"] = str(path)
        return path

    def books(self, destination: str = "ledger") -> dict[str, Any]:
        books: dict[str, Any] = self("books", "--json").json["destinations"][destination]
        return books


@cache
def _warm() -> "subprocess.Popen[bytes]":
    program = ["-c", _WARM]
    if "PER_AGENT_COVERAGE" in os.environ:  # then what is forked is worth counting: it runs nowhere else
        file = Path(tempfile.mkdtemp()) / "warm.py"
        file.write_text(_WARM)
        program = [
            "-m",
            "coverage",
            "run",
            "--parallel-mode",
            f"--rcfile={ROOT / 'pyproject.toml'}",
            str(file),
        ]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COVERAGE_FILE": str(ROOT / ".coverage")},
        bufsize=0,
    )
    atexit.register(process.communicate)
    return process


def _run_warm(asked: dict[str, Any], timeout: float) -> int:
    warm = _warm()
    assert warm.stdin is not None
    assert warm.stdout is not None
    warm.stdin.write(json.dumps(asked).encode() + b"\n")
    if not select.select([warm.stdout], [], [], timeout)[0]:
        warm.kill()
        _warm.cache_clear()
        raise TimeoutError(f"per-agent {' '.join(asked['arguments'])} did not end within {timeout} s")
    return int(warm.stdout.readline())
