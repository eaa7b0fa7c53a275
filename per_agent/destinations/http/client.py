"""`Client`: httpx, with the bounds that `Upstream` promises. Loaded late: httpx is the heaviest thing here."""

import encodings.idna  # noqa: F401  (the first connection to a name would load it, and then a fork must not come)
import time
from collections.abc import Callable, Mapping
from typing import Final

import httpx

from per_agent.backoff import retry_after
from per_agent.destinations.http.answer import Answer, NotAsked, Unanswered
from per_agent.destinations.http.connection import Deadline
from per_agent.destinations.http.transport import KeepAliveTransport
from per_agent.version import version

_MAX_TARGET: Final = 64 * 1024  # characters; servers take less
_WITH_LENGTH: Final = frozenset({"POST", "PUT"})  # without a body, too: some servers insist

# What cannot have reached the upstream. All other failures may have happened after it took the request.
_NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
)


class Client:
    """One process's connections to the service at *url*, with one credential. Threads may share it.

    *timeout* is for each step of an exchange, *total* for all of it; in seconds.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        timeout: float,
        total: float,
        connections: int,
        socket_path: str | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._origin = httpx.URL(url)
        self._base = self._origin.raw_path.decode().rstrip("/")
        self._timeout = timeout
        self._total = total
        self._clock = clock
        self._headers = [
            (b"host", self._origin.netloc),
            (b"accept", b"application/json"),
            (b"accept-encoding", b"identity"),
            (b"user-agent", f"per-agent/{version()}".encode()),
        ]
        if token is not None:
            self._headers.append((b"authorization", f"Bearer {token}".encode()))
        self._transport = KeepAliveTransport(self._origin, connections, socket_path)

    def ask(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, *, limit: int
    ) -> Answer:
        """The answer to what is asked of *target* below the service's address; of a longer one *limit* bytes.

        Raises `Unanswered` and `NotAsked`.
        """
        target = self._base + target
        if len(target) > _MAX_TARGET:
            raise NotAsked("not sent: the address is too long")
        sent = {} if body is None else {"content-type": "application/json"}
        if body is not None or method in _WITH_LENGTH:
            sent["content-length"] = str(len(body or b""))
        more = [(name.encode(), value.encode()) for name, value in {**sent, **headers}.items()]
        request = httpx.Request(
            method,
            self._origin,
            headers=self._headers + more,
            stream=httpx.ByteStream(body or b""),
            extensions={
                "target": target.encode(),
                "deadline": Deadline(self._timeout, self._total),
                "limit": limit,
            },
        )
        try:
            response = self._transport.handle_request(request)
        except httpx.RequestError as error:
            raise Unanswered(_why(error)) from error
        answered = b"".join(response.iter_raw())
        return Answer(
            response.status_code,
            answered[:limit],
            retry_after(response.headers.get("retry-after"), self._clock()),
            overrun=len(answered) > limit,
        )

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


def _why(error: httpx.RequestError) -> str:
    sent = "not sent" if isinstance(error, _NOT_SENT) else "sent, no answer"
    return f"{sent}: {type(error).__name__}: {' '.join(str(error).split()) or 'no more is known'}"
