"""Spans and moments as people write them: `7d`, `2026-01-31`, `2026-01-31T12:00Z`."""

import re
from datetime import UTC, datetime, time, timedelta
from typing import Final

from per_agent.cli.exits import ExitCode, Stop

_SPAN: Final = re.compile(r"([0-9]{1,9}) ?(s|min|m|h|d|w)")
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_NUMBER: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,9})?")
_LAST_MOMENT: Final = time(23, 59, 59, 999_000, UTC)  # reports count in milliseconds, both ends included


def span(option: str, words: str) -> timedelta:
    """The span that *words* such as `7d`, `24h` or `2w` say. Raises `Stop` that names *option*."""
    match = _SPAN.fullmatch(words.strip().lower())
    if match is None or int(match[1]) == 0:
        raise Stop(ExitCode.USAGE, f"{option}: give a number and s, m, h, d or w, such as 7d, not {words!r}")
    try:
        return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
    except OverflowError:
        raise Stop(ExitCode.USAGE, f"{option}: {words!r} is too long") from None


def first_moment(option: str, words: str) -> datetime:
    """When *words*, a date or a moment in ISO 8601, begin; in UTC where they name no zone. Raises `Stop`."""
    try:
        parsed = datetime.fromisoformat(words)
    except ValueError:
        raise Stop(
            ExitCode.USAGE, f"{option}: give ISO 8601, such as 2026-01-31 or 2026-01-31T12:00Z, not {words!r}"
        ) from None
    return parsed if parsed.utcoffset() is not None else parsed.replace(tzinfo=UTC)


def last_moment(option: str, words: str) -> datetime:
    """As `first_moment`; but a date alone means its end: a window up to a day includes that day."""
    begin = first_moment(option, words)
    return datetime.combine(begin.date(), _LAST_MOMENT) if _DATE.fullmatch(words) else begin


def epoch(moment: str) -> float:
    """The epoch seconds of a *moment* as our documents write it."""
    return datetime.fromisoformat(moment).timestamp()


def of_event(option: str, words: str | None) -> datetime | float | None:
    """An event's time: digits are epoch seconds, the rest is ISO 8601 with a zone. Raises `Stop`.

    The zone is insisted on here: what is billed must not depend on where the command is run.
    """
    if words is None:
        return None
    if _NUMBER.fullmatch(words):
        return float(words)
    moment = first_moment(option, words)
    if datetime.fromisoformat(words).utcoffset() is None:
        raise Stop(ExitCode.USAGE, f"{option}: name the zone, such as 2026-01-31T12:00:00Z, in {words!r}")
    return moment
