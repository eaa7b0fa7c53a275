"""The sidecar's log lines on stderr: JSON for machines, a console's form for people, levels that journald knows.

Only a process that is a sidecar and nothing else is configured like this. A line is written whole or not at all,
a broken stderr is not felt by the code that logged, and configured secrets are blotted out of whatever a
library may have put into an error's words.
"""

import logging
import sys
import time
from collections.abc import Mapping
from typing import IO, Any, Final

import structlog

from per_agent.settings import Settings, SidecarSettings, secrets_of

_LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_PRIORITIES: Final = ((logging.ERROR, "<3>"), (logging.WARNING, "<4>"), (logging.INFO, "<6>"), (0, "<7>"))
_LIBRARIES: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "httpx", "httpcore", "asyncio")
_HIDDEN: Final = "[hidden]"
_SHORTEST: Final = 4  # what is shorter is no secret, and blotting it out would garble every line
_RENDER_JSON: Final = structlog.processors.JSONRenderer(ensure_ascii=True)


def configure(settings: Settings, stream: IO[str], environ: Mapping[str, str]) -> None:
    """Write this process's log lines to *stream* from now on, as `[sidecar] log_format` and `log_level` say.

    May be called again, after a reload. Never raises because of *stream*.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(_form(settings.sidecar, stream, environ), secrets_of(settings)))
    root = logging.getLogger()
    for before in root.handlers[:]:
        root.removeHandler(before)
    root.addHandler(handler)
    level = _LEVELS[settings.sidecar.log_level]
    root.setLevel(level)
    ours = logging.getLogger("per_agent")
    ours.setLevel(level)
    for before in ours.handlers[:]:  # the command line's own, which is for commands that end
        ours.removeHandler(before)
    ours.propagate = True
    for name in _LIBRARIES:  # what they say below a warning is about single requests
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.raiseExceptions = False  # a broken stderr is nobody's failure


def _form(settings: SidecarSettings, stream: IO[str], environ: Mapping[str, str]) -> str:
    if settings.log_format != "auto":
        return settings.log_format
    if "JOURNAL_STREAM" in environ:
        return "journal"
    return "console" if stream.isatty() else "json"


class _Formatter(logging.Formatter):
    """One line for each record."""

    converter = staticmethod(time.gmtime)

    def __init__(self, form: str, secrets: tuple[str, ...]) -> None:
        super().__init__()
        self._form = form
        self._secrets = tuple(each for each in secrets if len(each) >= _SHORTEST)
        self._console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)

    def format(self, record: logging.LogRecord) -> str:
        facts = self._facts(record)
        if self._form == "console":
            line = str(self._console(None, record.levelname.lower(), facts)).replace("\n", "\n    ")
        else:
            line = str(_RENDER_JSON(None, "", facts))
        for secret in self._secrets:
            line = line.replace(secret, _HIDDEN)
        if self._form != "journal":
            return line
        return next(prefix for level, prefix in _PRIORITIES if record.levelno >= level) + line

    def _facts(self, record: logging.LogRecord) -> dict[str, Any]:
        """What the line holds: ours bring their facts, those of libraries have words only."""
        said: dict[str, Any] = getattr(record, "facts", None) or {"event": record.getMessage()}
        facts = {
            "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": said.get("event"),
            **said,
        }
        if not hasattr(record, "facts"):
            facts["logger"] = record.name
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return facts
