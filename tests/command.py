"""`per-agent` as a real process: what it prints, and the code that it ends with."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-W", "error", "-m", "per_agent.cli"]


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
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("PER_", "PAYMENT_", "XDG_"))}
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
            [*PROGRAM, *arguments], input=given, capture_output=True, env=self.environ, cwd=self.home, timeout=timeout
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def well(self, *arguments: str, stdin: str | bytes = b"") -> Done:
        """Run it; it must end with 0 and say nothing on stderr."""
        done = self(*arguments, stdin=stdin)
        assert (done.code, done.err) == (0, "")
        return done

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
