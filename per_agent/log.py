"""The agent's own log lines: structlog, handed to the host's `logging` under the name `per_agent`.

A guest leaves the host's logging as it is: nothing is configured globally, nothing is printed unless the
host wants it, and a log call never raises into the code that made it. State changes are logged, never
events, payloads, ids of people or tokens.

A record's message is one line of logfmt; its attribute `facts` holds the same as a dict, for a handler that
writes another form, such as the sidecar's JSON.
"""

import _thread
import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from functools import cache
from typing import Any, Final

from per_agent import late

_sink = logging.getLogger("per_agent")
_sink.addHandler(logging.NullHandler())

_METHODS: Final = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
}


@cache
def _structured() -> Any:
    """What writes the lines. structlog is heavy, and most processes never have a line to write."""
    with late.here():
        import structlog  # noqa: PLC0415  (as above)
    logfmt = structlog.processors.LogfmtRenderer(key_order=["event"], drop_missing=True)

    def as_record(
        logger: Any, name: str, facts: MutableMapping[str, Any]
    ) -> tuple[tuple[str], dict[str, Any]]:
        """What `logging` is called with: the line, and the facts beside it."""
        return (str(logfmt(logger, name, dict(facts))),), {"extra": {"facts": dict(facts)}}

    return structlog.wrap_logger(
        _sink,
        processors=[structlog.processors.format_exc_info, as_record],
        wrapper_class=structlog.BoundLogger,
    )


class Log:
    """One part's logger. Each line is a sentence and the facts that belong to it."""

    __slots__ = ("_facts",)

    def __init__(self, **facts: Any) -> None:
        self._facts = facts

    def debug(self, event: str, **facts: Any) -> None:
        self._write(logging.DEBUG, event, facts)

    def info(self, event: str, **facts: Any) -> None:
        self._write(logging.INFO, event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        self._write(logging.WARNING, event, facts)

    def error(self, event: str, **facts: Any) -> None:
        self._write(logging.ERROR, event, facts)

    def bug(self, event: str, **facts: Any) -> None:
        """A defect of ours, with its traceback."""
        self._write(logging.ERROR, event, facts | {"exc_info": True})

    def aside(self, event: str, **facts: Any) -> None:
        """An error, told from the host's own thread, which must not wait until structlog is loaded."""
        if not _structured.cache_info().currsize:
            with suppress(RuntimeError):  # no thread can be started: then it must wait after all
                _thread.start_new_thread(self._write, (logging.ERROR, event, facts))
                return
        self._write(logging.ERROR, event, facts)

    def _write(self, level: int, event: str, facts: dict[str, Any]) -> None:
        if not _sink.isEnabledFor(level):
            return
        facts, defect = self._facts | facts, sys.exc_info()
        # structlog raises for a value that cannot be written and for a broken pipe; the host must not feel it.
        with suppress(Exception):  # a log line is never worth an event
            try:
                line = getattr(_structured(), _METHODS[level])
            except Exception:  # noqa: BLE001  (no file can be opened just now, perhaps, and this line is to tell it)
                _write_plainly(level, event, facts, defect)
            else:
                line(event, **facts)


def _write_plainly(level: int, event: str, facts: dict[str, Any], defect: Any) -> None:
    """The same without structlog, which could not be loaded."""
    said = {name: fact for name, fact in facts.items() if name != "exc_info"}
    words = " ".join([f'event="{event}"', *(f"{name}={fact!s}" for name, fact in said.items())])
    _sink.log(
        level,
        words,
        exc_info=defect if "exc_info" in facts else None,
        extra={"facts": {"event": event, **said}},
    )
