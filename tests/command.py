"""`per-agent` as a real process: what it prints, and the code that it ends with."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked import COMMAND, ROOT, Forked

PROGRAM = [sys.executable, "-W", "error", *COMMAND]


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
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            said = [stdin.encode() if isinstance(stdin, str) else stdin, b"", b""]
            paths = [Path(folder, name) for name in ("in", "out", "err")]
            for path, text in zip(paths, said, strict=True):
                path.write_bytes(text)
            streams = [stack.enter_context(path.open("r+b")).fileno() for path in paths]
            process = Forked(
                *COMMAND,
                *arguments,
                environ=self.environ,
                cwd=self.home,
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                counted=True,
            )
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            return Done(code, *(path.read_bytes().decode() for path in paths[1:]))

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
