"""Real processes that begin at once: Python forked from one that has imported everything, in the place of a new one.

Starting Python and importing is most of what a short process takes, and tests start thousands. Each is a process of
its own all the same, with its own arguments, environment and streams; it ends as Python ends.

As a program it is the one that they are forked from. On its stdin, a Unix socket, come `{"arguments": …, "environ":
…, "cwd": …}` and four files: the stdin, stdout and stderr of a process, and where to write its id and how it ended.
"""

import atexit
import contextlib
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = ("-m", "per_agent.cli")


class Forked:
    """`python -W error` with *arguments*: the path of a program, or `COMMAND` and its words.

    It is asked as a `subprocess.Popen` is. Where coverage is measured, what is *counted* is measured, too.
    """

    def __init__(
        self,
        *arguments: str,
        environ: Mapping[str, str] = os.environ,
        cwd: Path | None = None,
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
        counted: bool = False,
    ) -> None:
        asked = {"arguments": arguments, "environ": dict(environ), "cwd": str(cwd or Path.cwd())}
        self._end, told = os.pipe()
        try:
            forker = _forker("PER_AGENT_COVERAGE" in os.environ and counted)
            socket.send_fds(forker, [json.dumps(asked).encode()], [stdin, stdout, stderr, told])
        finally:
            os.close(told)
        self.returncode: int | None = None
        self.pid = self._told()

    def _told(self) -> int:
        """The next number that is written of it."""
        line = b""
        while not line.endswith(b"\n"):
            more = os.read(self._end, 1)
            assert more, "what forks has died"
            line += more
        return int(line)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            self.returncode = self._told()
            os.close(self._end)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _forker(counted: bool) -> socket.socket:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PER_", "PAYMENT_"))}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", __file__, *(("counted",) if counted else ())],
        stdin=its,
        stdout=subprocess.DEVNULL,  # as where there is no terminal
        env={**environ, "PYTHONPATH": str(ROOT), "COVERAGE_FILE": str(ROOT / ".coverage")},
    )
    its.close()

    def end() -> None:
        ours.close()
        process.wait(30)

    atexit.register(end)
    return ours


def main(counted: bool) -> None:
    ending = _measured() if counted else None
    import per_agent.sidecar.server  # noqa: F401, PLC0415  (for those that are forked)
    from per_agent.cli import app  # noqa: PLC0415

    with contextlib.redirect_stdout(io.StringIO()):
        app.build()(["books", "--help"], standalone_mode=False)
    if ending is not None:
        ending()
    gc.freeze()  # what is imported is garbage in no child: to look for it at its end is most of what a short one takes
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    with socket.socket(fileno=os.dup(0)) as asking:
        while True:
            asked, files, _, _ = socket.recv_fds(asking, 2**20, 4)
            if not asked:
                return
            if os.fork() == 0:
                asking.detach()
                _part(files)
                if counted:
                    atexit.register(_measured())
                _run(**json.loads(asked))
            for each in files:
                os.close(each)


def _measured() -> Callable[[], None]:
    """Begin to measure. What is given ends it; a process of its own keeps what it ran itself, which is soon written."""
    import coverage  # noqa: PLC0415  (only where it is asked for)

    measured = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"), data_suffix=True)
    measured.start()

    def end() -> None:
        measured.stop()
        measured.save()

    return end


def _part(files: list[int]) -> None:
    """Return in a new process that has its streams; that which forks it waits for its end, and tells."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, told = files
    child = os.fork()
    if child:
        for each in streams:
            os.close(each)
        os.write(told, b"%d\n" % child)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(told, b"%d\n" % ended)
        os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 256)


def _run(arguments: list[str], environ: dict[str, str], cwd: str) -> None:
    """Be Python with *arguments*. Does not return."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    if tuple(arguments[:2]) == COMMAND:
        sys.argv = ["per-agent", *arguments[2:]]
        runpy.run_module(COMMAND[1], run_name="__main__", alter_sys=False)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    main(counted=sys.argv[1:] == ["counted"])
