"""`Per`: activities to useper.com, one request each, and nothing believed but its own `ok: true`.

The rules are those of Per's documentation v1 (https://useper.com/documentation/v1): HTTP 200 is not success,
`ok` is; a failed token is 401 with `message`, other failures are 200 with `error`. Its list of error names
is not public, so an unknown one is reported as uncertain and not as the event's own fault.

Per takes no identifier and no time. An event counts in the period in which it arrives; one that was sent and
not answered may have been taken, and is sent again with nothing that could tell Per so. That is harmless: Per
reports and bills unique users, and the same user of the same billing ID and activity type counts once in a
period. Only where the repeat arrives in the next period, the user counts in both.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from per_agent.destinations.http import Answer, Upstream, check_config
from per_agent.destinations.outcome import Delivered, Halt, Outcome, Refused, Retry
from per_agent.errors import Refused as NotSendable
from per_agent.errors import Unavailable
from per_agent.event import Activity, Event

# A GET that writes: nothing on the way may answer it from a cache.
_HEADERS: Final = {"cache-control": "no-store"}

_REPORTING: Final = 6  # timeouts that a report may take: it has no paging and may be megabytes long


class Per:
    """The Per service. *activity_token* counts, *reporting_token* (optional) reports; their scopes differ.

    *timeout* is in seconds, for one whole request. Raises `ConfigError`, which quotes no token.
    """

    takes: frozenset[type[Event]] = frozenset({Activity})
    batch: int = 1  # Per documents no batch call
    counts_on_arrival: bool = True

    def __init__(
        self,
        activity_token: str,
        reporting_token: str | None = None,
        url: str = "https://api.useper.com",
        *,
        name: str = "per",
        timeout: float = 10.0,
        concurrency: int = 64,
    ) -> None:
        check_config(name, url, _secrets(activity_token, reporting_token), timeout, concurrency)
        self.name = name
        self.concurrency = concurrency
        self._upstream = Upstream(name, url, activity_token, timeout=timeout, concurrency=concurrency)
        self.reporting: Upstream | None = None
        """For reports, with connections of its own: a long report takes none from the senders."""
        self._authorize_reporting(reporting_token, timeout)

    def __repr__(self) -> str:
        return f"Per(url={self._upstream.url!r}, name={self.name!r})"

    @property
    def url(self) -> str:
        """The base URL."""
        return self._upstream.url

    @property
    def report_timeout(self) -> float:
        """Seconds that a report may take, whosever token it is asked with."""
        return self._upstream.total * _REPORTING

    def authorize(self, activity_token: str, reporting_token: str | None, *, timeout: float) -> None:
        """Go on with other tokens and bounds; exchanges under way end as they began.

        Raises `ConfigError`, and then nothing has changed.
        """
        url, concurrency = self._upstream.url, self.concurrency
        check_config(self.name, url, _secrets(activity_token, reporting_token), timeout, concurrency)
        self._upstream.authorize(activity_token, timeout=timeout)
        self._authorize_reporting(reporting_token, timeout)

    def _authorize_reporting(self, token: str | None, timeout: float) -> None:
        total = timeout * _REPORTING
        if token is not None and self.reporting is not None:
            self.reporting.authorize(token, timeout=timeout, total=total)
        elif token is not None:
            self.reporting = Upstream(
                self.name,
                self._upstream.url,
                token,
                timeout=timeout,
                concurrency=self.concurrency,
                total=total,
            )
        elif self.reporting is not None:
            retired, self.reporting = self.reporting, None
            retired.close()

    def open(self, data_dir: Path) -> None:
        """Nothing to get ready: connections are made by the first request of each process."""

    def send(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Count each of *events* by one request. The time it takes is bounded by `timeout` for each."""
        return [self._send(event) for event in events]

    def _send(self, event: Event) -> Outcome:
        if not isinstance(event, Activity):
            raise TypeError(f"{self.name} takes activities, not {type(event).__name__}")
        query = (
            ("billingId", event.billing_id),
            ("userId", event.user_id),
            ("activityTypeId", event.activity_type_id),
        )
        try:
            answer = self._upstream.ask("GET", "/activities.add", query, headers=_HEADERS)
        except Unavailable as error:
            return Retry(error.words)
        except NotSendable as error:
            return Refused(error.words)
        return self._outcome(answer)

    def _outcome(self, answer: Answer) -> Outcome:
        fields = answer.object() or {}
        if answer.status == 200 and fields.get("ok") is True:
            return Delivered()
        reason = self._upstream.reason(answer)
        if answer.is_passing:
            return Retry(reason, answer.retry_after)
        if is_bad_token(answer):
            return Halt(f"the activity token is wrong or lacks the activity scope: {reason}")
        if answer.status == 200 and fields.get("ok") is not False:
            return Halt(f"what answered is not Per: {reason}")
        if answer.status in (403, 404, 407) or (answer.status < 400 and answer.status != 200):
            return Halt(f"the address is wrong, or a proxy answered: {reason}")
        return Refused(reason, certain=False)

    def probe(self, key: str) -> bool:  # noqa: ARG002  (the protocol's own parameter)
        """True: Per parks nothing, so what waits here may go on."""
        return True

    def parking_keys(self, event: Event) -> Sequence[str]:  # noqa: ARG002  (the protocol's own parameter)
        """None: Per parks nothing."""
        return ()

    def close(self) -> None:
        self._upstream.close()
        if self.reporting is not None:
            self.reporting.close()


def _secrets(activity_token: object, reporting_token: object) -> dict[str, object]:
    """The tokens that are given, by name, to be checked."""
    given = {"activity_token": activity_token, "reporting_token": reporting_token}
    return {name: token for name, token in given.items() if name == "activity_token" or token is not None}


def is_bad_token(answer: Answer) -> bool:
    """Whether Per refuses the token: 401, or `invalid_auth_token` under any status and in either field."""
    fields = answer.object() or {}
    named = "invalid_auth_token" in (fields.get("error"), fields.get("message"))
    return answer.status == 401 or (named and fields.get("ok") is False)
