"""`Client`: httpx, with the bounds that `Upstream` promises. Loaded late: httpx is the heaviest thing here."""

import encodings.idna  # noqa: F401  (the first connection to a name would load it, and then a fork must not come)
import time
from collections.abc import Callable, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx

from per_agent import failpoint
from per_agent.backoff import retry_after
from per_agent.destinations.http.answer import Answer, NotAsked, Unanswered
from per_agent.destinations.http.deadline import DeadlineTransport, heard, within
from per_agent.version import version

# Node's HTTP server closes an idle connection after 5 s, nginx after 60 s or more. A request on a connection
# that is just being closed fails in a way that leaves open whether it was received.
_KEEPALIVE: Final = 4.0

# What cannot have reached the upstream. All other failures may have happened after it took the request.
_NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
)


class Client:
    """One process's connections to one service, with one credential. Threads may share it."""

    def __init__(
        self,
        token: str | None,
        timeout: float,
        *,
        connections: int,
        socket_path: str | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": f"per-agent/{version()}",
        }
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        limits = httpx.Limits(
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=_KEEPALIVE,
        )
        self._client = httpx.Client(
            headers=headers,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx.Timeout(timeout),
            follow_redirects=False,
            trust_env=False,
            transport=DeadlineTransport(limits, socket_path),
            event_hooks={"response": [_answers]},
        )

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        limit: int,
        total: float,
    ) -> Answer:
        """The answer, within *total* seconds; of a longer one *limit* bytes. Raises `Unanswered`, `NotAsked`."""
        with within(total):
            try:
                with self._client.stream(method, url, headers=headers, content=body) as response:
                    failpoint.reach("request sent")  # and received, since an answer has begun
                    answer = self._read(response, limit)
                    failpoint.reach("answer read")
                    return answer
            except httpx.RequestError as error:
                raise Unanswered(_why(error)) from error
            except httpx.InvalidURL as error:
                # What is left to be invalid is the length: httpx takes 64 KiB, and servers less.
                raise NotAsked(f"not sent: {error}") from error

    def _read(self, response: httpx.Response, limit: int) -> Answer:
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > limit:
                break
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(
            response.status_code,
            headers,
            bytes(body[:limit]),
            retry_after(headers.get("retry-after"), self._clock()),
            overrun=len(body) > limit,
        )

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._client.is_closed

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _answers(response: httpx.Response) -> None:
    """Let *response* pass as the answer to what was asked, and as nothing else. Raises where it is another's.

    Without `Location`: httpx works out where a redirect leads even where it is not followed, and raises what it
    likes at one that leads nowhere, as if the address that was asked were wrong.
    """
    if not heard():
        raise httpx.RemoteProtocolError("what came was sent before the request: it answers another")
    response.headers.pop("location", None)


def _why(error: httpx.RequestError) -> str:
    sent = "not sent" if isinstance(error, _NOT_SENT) else "sent, no answer"
    return f"{sent}: {type(error).__name__}: {' '.join(str(error).split()) or 'no more is known'}"
