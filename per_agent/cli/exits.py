"""The exit codes, and which error means which: an expected one is told in a line, never as a traceback."""

import enum
from typing import Final

from per_agent.errors import (
    ConfigError,
    InvalidEvent,
    PerAgentError,
    SpoolFull,
    Unauthorized,
    Unavailable,
)


class ExitCode(enum.IntEnum):
    """How a command ended."""

    WELL = 0
    NO = 1
    """The answer is no: not balanced, refused, not stored, not found."""
    USAGE = 2
    """The command line or the configuration is wrong."""
    UNREACHABLE = 3
    """The sidecar or the upstream cannot be reached."""
    INTERRUPTED = 130  # as shells count Ctrl-C: 128 + SIGINT
    BROKEN_PIPE = 141  # 128 + SIGPIPE: who read the output went away


class Stop(Exception):
    """Ends a command with *code*, after telling *lines* on stderr."""

    def __init__(self, code: ExitCode, *lines: str) -> None:
        super().__init__(*lines)
        self.code = code
        self.lines = lines


EXPECTED: Final = (Stop, PerAgentError, OSError)
"""What ends a command in one line. Anything else is a defect of ours, and its traceback is wanted."""


def told(error: BaseException) -> tuple[ExitCode, tuple[str, ...]]:  # noqa: PLR0911  (a table)
    """What an `EXPECTED` error means: the exit code, and the lines that say what to do."""
    match error:
        case Stop():
            return error.code, error.lines
        case ConfigError():
            return ExitCode.USAGE, error.problems
        case InvalidEvent():
            return ExitCode.USAGE, (f"{error}",)
        case Unavailable():
            return ExitCode.UNREACHABLE, (f"{error}",)
        case Unauthorized():
            return ExitCode.NO, (f"{error}; look at the credentials: per-agent config show",)
        case SpoolFull():
            return ExitCode.NO, (f"{error}; look what is stuck: per-agent status",)
        case BrokenPipeError():
            return ExitCode.BROKEN_PIPE, ()
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return ExitCode.USAGE, (f"{where}{error.strerror or error}",)
    return ExitCode.NO, (f"{error}",)
