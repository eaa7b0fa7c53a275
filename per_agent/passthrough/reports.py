"""`Reports`: unique users by activity type and billing ID, from Per or from the embedded ledger."""

from datetime import datetime
from typing import Any, Protocol

from per_agent.destinations.http import REPORT_LIMIT
from per_agent.destinations.per import Per
from per_agent.destinations.sidecar import Sidecar
from per_agent.errors import ConfigError, Refused, Unauthorized, Unavailable
from per_agent.event import iso
from per_agent.passthrough.answers import value_of
from per_agent.passthrough.twin import in_thread


class ReportSource(Protocol):
    """What answers reports. The embedded ledger is one."""

    def get_report(self, start: str | None = None, end: str | None = None) -> Any: ...


class Reports:
    """Reports, as the source gives them."""

    def __init__(self, source: ReportSource) -> None:
        self._source = source

    def get_report(self, start: datetime | str | None = None, end: datetime | str | None = None) -> Any:
        """Per's report, `{"ok": true, "result": {"start", "end", "activityTypes"}}`, unchanged.

        *start* and *end* are datetimes with a zone, or ISO 8601 text, which is passed on as it is. Without
        either, Per reports the whole *previous* month and nothing of this one; without *end*, all since
        *start*. Blocks. Raises `ValueError` where *end* has no *start* or a datetime no zone, before anything
        is sent; `ConfigError` where no reporting token is set; `UpstreamError` where Per says no, or nothing.
        """
        if start is None and end is not None:
            raise ValueError("end needs a start: Per reports no window without one")
        return self._source.get_report(_moment("start", start), _moment("end", end))

    async def get_report_async(
        self, start: datetime | str | None = None, end: datetime | str | None = None
    ) -> Any:
        """`get_report` in a thread of the running loop's own executor."""
        return await in_thread(self.get_report, start, end)


class PerReports:
    """Reports from Per, with the reporting token, or from a sidecar, which answers as Per does."""

    def __init__(self, per: Per | Sidecar) -> None:
        self._per = per

    def get_report(self, start: str | None = None, end: str | None = None) -> Any:
        upstream = self._per.reporting
        if upstream is None:
            raise ConfigError(f"{self._per.name}: reporting_token (PER_REPORTING_TOKEN) is not set")
        call = "GET /reports.get"
        query = [(name, value) for name, value in (("start", start), ("end", end)) if value is not None]
        answer = upstream.ask("GET", "/reports.get", query, limit=REPORT_LIMIT)
        report = value_of(answer, upstream, call)
        match report.get("ok") if isinstance(report, dict) else None:
            case True:
                return report
            case False:
                bad = "invalid_auth_token" in (report.get("error"), report.get("message"))
                kind = Unauthorized if bad else Refused
                raise kind(upstream.name, call, upstream.words(answer), status=answer.status)
        words = f"what answered is not Per: {upstream.words(answer)}"
        raise Unavailable(upstream.name, call, words, status=answer.status)


def _moment(name: str, given: datetime | str | None) -> str | None:
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, datetime):
        raise ValueError(f"{name} must be a datetime or ISO 8601 text, not {type(given).__name__}")  # noqa: TRY004  (one kind of error for one bad argument)
    if given.utcoffset() is None:
        raise ValueError(f"{name} is a datetime without a zone: give it one, such as datetime.now(UTC)")
    return iso(given.timestamp())
