"""The sidecar's log lines on stderr: JSON for machines, a console's form for people, levels that journald knows.

Only a process that is a sidecar and nothing else is configured like this. A line is written whole or not at all,
and a stderr that is broken, or that nobody reads, is not felt by the code that logged. No token is ever handed
to a log call; should a library put one into an error's words all the same, it is blotted out of the finished line.
"""

import logging
import os
import select
import time
from collections.abc import Iterable, Mapping
from typing import IO, Any, Final, Literal

import structlog

from per_agent.settings import Settings, SidecarSettings, secrets_of
from per_agent.settings.secret import forms

Form = Literal["console", "json", "journal"]

_LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_PRIORITIES: Final = ((logging.ERROR, "<3>"), (logging.WARNING, "<4>"), (logging.INFO, "<6>"), (0, "<7>"))
_LIBRARIES: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "httpx", "httpcore", "asyncio")
_HIDDEN: Final = "[hidden]"
_json: Final = structlog.processors.JSONRenderer(ensure_ascii=True)

_hidden: set[str] = set()  # of this process: a token that a reload has replaced is still nobody's to read


def configure(settings: Settings, stream: IO[str], environ: Mapping[str, str]) -> None:
    """Write this process's log lines to *stream* from now on, as `[sidecar] log_format` and `log_level` say.

    May be called again, after a reload. Never raises because of *stream*, and no log call does afterwards.
    """
    hide(*secrets_of(settings))
    handler = _Handler(stream)
    handler.setFormatter(_Formatter(_form(settings.sidecar, stream, environ), colors=_is_terminal(stream)))
    root, ours = logging.getLogger(), logging.getLogger("per_agent")
    for logger in (root, ours):  # the latter has one of the command line's, which is for commands that end
        for before in logger.handlers[:]:
            logger.removeHandler(before)
    root.addHandler(handler)
    level = _LEVELS[settings.sidecar.log_level]
    root.setLevel(level)
    ours.setLevel(level)
    ours.propagate = True
    for name in _LIBRARIES:  # what they say below a warning is about single requests
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False  # a broken stderr is nobody's failure


def hide(*secrets: str) -> None:
    """Blot *secrets* out of all lines of this process from now on, however they are escaped there."""
    for secret in secrets:
        _hidden.update(forms(secret))


def _form(settings: SidecarSettings, stream: IO[str], environ: Mapping[str, str]) -> Form:
    if settings.log_format != "auto":
        return settings.log_format
    if _is_journal(stream, environ):
        return "journal"
    return "console" if _is_terminal(stream) else "json"


def _is_journal(stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Whether *stream* is the journal's own: the variable is inherited also by those whose stderr is another."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _is_terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # it is closed
        return False


class _Handler(logging.StreamHandler[IO[str]]):
    """Writes where there is room at once. Lines for which there is none are counted, and the count is told later.

    To write to a pipe or a terminal that nobody reads is to wait, and whoever logs next waits for the lock: the
    event loop, and with it all callers.
    """

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self._lost = 0
        self._room: select.poll | None = select.poll()
        try:
            self._room.register(stream, select.POLLOUT)
        except (OSError, ValueError):  # it is no file, or a closed one
            self._room = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*, or count it."""
        if self._room is not None and not self._room.poll(0):
            self._lost += 1
            return
        if self._lost:
            lost = logging.makeLogRecord(
                {"name": "per_agent", "levelno": logging.WARNING, "levelname": "WARNING"}
            )
            lost.facts = {"event": "lines of this log were lost: nobody read them", "lines": self._lost}
            self._lost = 0
            super().emit(lost)
        super().emit(record)


class _Formatter(logging.Formatter):
    """One line for each record; of the console's form, a defect's traceback has some more."""

    converter = staticmethod(time.gmtime)

    def __init__(self, form: Form, *, colors: bool) -> None:
        super().__init__()
        self._form = form
        self._console = structlog.dev.ConsoleRenderer(
            colors=colors, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )

    def format(self, record: logging.LogRecord) -> str:
        facts = self._facts(record)
        if self._form == "console":
            line = str(self._console(None, record.levelname.lower(), _printable(facts)))
        else:
            line = str(_json(None, "", facts))
        for secret in sorted(_hidden, key=len, reverse=True):
            line = line.replace(secret, _HIDDEN)
        if self._form != "journal":
            return line
        return next(prefix for level, prefix in _PRIORITIES if record.levelno >= level) + line

    def _facts(self, record: logging.LogRecord) -> dict[str, Any]:
        """What the line holds: ours bring their facts, those of libraries have words only."""
        said: dict[str, Any] | None = getattr(record, "facts", None)
        facts = {
            "timestamp": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            **({"event": record.getMessage(), "logger": record.name} if said is None else said),
        }
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return facts


def _printable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """*facts* without what a terminal would obey: words of an upstream must not move its cursor."""
    return {name: _text(value, "\n\t" if name == "exception" else "") for name, value in facts.items()}


def _text(value: Any, kept: Iterable[str]) -> Any:
    if not isinstance(value, str):
        return value if isinstance(value, int | float | None) else _text(str(value), kept)
    return "".join(
        char if char.isprintable() or char in kept else "\N{REPLACEMENT CHARACTER}" for char in value
    )
