"""`per-agent` as a real process: what it prints, and the code that it ends with."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-W", "error", "-m", "per_agent.cli"]

# Starting Python and importing everything is most of what a short command takes: here once for many of them.
_MANY = """
import json, os, sys, tempfile
from per_agent.cli import main
for arguments in json.load(sys.stdin):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            sys.argv = ["per-agent", *arguments]
            main()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = [os.pread(file.fileno(), 2**20, 0).decode() for file in (out, err)]
    print(json.dumps([code, *said]), flush=True)
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
        keep = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PER_", "PAYMENT_", "XDG_"))
        }
        keep.pop("COLUMNS", None)
        self.environ = keep | {
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "PER_AGENT_DATA_DIR": str(self.data_dir),
            **environ,
        }

    def __call__(self, *arguments: str, stdin: str | bytes = b"", timeout: float = 60) -> Done:
        """Run it to its end."""
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [*PROGRAM, *arguments],
            input=given,
            capture_output=True,
            env=self.environ,
            cwd=self.home,
            timeout=timeout,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def well(self, *arguments: str, stdin: str | bytes = b"") -> Done:
        """Run it; it must end with 0 and say nothing on stderr."""
        done = self(*arguments, stdin=stdin)
        assert (done.code, done.err) == (0, "")
        return done

    def many(self, *commands: Sequence[str]) -> list[Done]:
        """Run *commands* one by one, each in a process of its own, by the entry point that is installed."""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", _MANY], input=json.dumps(commands).encode(), check=True,
            stdout=subprocess.PIPE, env=self.environ, cwd=self.home, timeout=120,
        )  # fmt: skip
        return [Done(*json.loads(line)) for line in done.stdout.splitlines()]

    def start(self, *arguments: str, **pipes: Any) -> "subprocess.Popen[bytes]":
        """Start it, with pipes."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | pipes
        return subprocess.Popen([*PROGRAM, *arguments], env=self.environ, cwd=self.home, **pipes)

    def python(self, program: str, *arguments: str) -> "subprocess.Popen[str]":
        """Start a Python program beside it."""
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, str(self.data_dir), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environ, cwd=self.home,
        )  # fmt: skip

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
