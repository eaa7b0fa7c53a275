"""`Upstream`: asking one HTTP service, bounded in time and in memory, and forming no opinion of its answer.

What is deliberately not done: no proxies, netrc or certificates from the environment, no redirects (httpx
turns a redirected POST into a GET without a body, and a login page answers 200), no cookies (Payment Kit's
gateway refuses a token that stands in two places, and asks for a CSRF token once it sees a cookie), no
compression (a small answer could unpack to gigabytes), no retries (the courier retries, by identifier).
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote, urlencode

import httpx
import msgspec

from per_agent.backoff import retry_after
from per_agent.destinations.http.answer import SEND_LIMIT, Answer
from per_agent.destinations.http.connection import Deadline
from per_agent.destinations.http.transport import KeepAliveTransport
from per_agent.errors import Refused, Unavailable
from per_agent.settings.secret import forms
from per_agent.version import version

_MAX_TARGET: Final = 64 * 1024  # characters; servers take less
_WITH_LENGTH: Final = frozenset({"POST", "PUT"})  # without a body, too: some servers insist
_MAX_WORDS: Final = 200

# What cannot have reached the upstream. All other failures may have happened after it took the request.
_NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
)


class _Access(msgspec.Struct, frozen=True):
    """What a service is asked with; replaced as a whole, so that no request mixes two."""

    token: str | None
    timeout: float
    total: float


class _Pool:
    """One process's connections. They are closed when it is retired and the last exchange is over.

    An exchange is not cut: an answer that is lost leaves an event of which nobody knows whether it counted.
    """

    def __init__(self, origin: httpx.URL, access: _Access, most: int, path: str | None) -> None:
        self.transport = KeepAliveTransport(origin, most, path)
        self.access = access
        self._origin = origin
        self._headers = [
            (b"host", origin.netloc),
            (b"accept", b"application/json"),
            (b"accept-encoding", b"identity"),
            (b"user-agent", f"per-agent/{version()}".encode()),
        ]
        if access.token is not None:
            self._headers.append((b"authorization", f"Bearer {access.token}".encode()))
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False

    def request(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], limit: int
    ) -> httpx.Request:
        """What is to be asked, with the credential, and until when."""
        sent = {} if body is None else {"content-type": "application/json"}
        if body is not None or method in _WITH_LENGTH:
            sent["content-length"] = str(len(body or b""))
        more = [(name.encode(), value.encode()) for name, value in {**sent, **headers}.items()]
        deadline = Deadline(self.access.timeout, self.access.total)
        return httpx.Request(
            method,
            self._origin,
            headers=self._headers + more,
            stream=httpx.ByteStream(body or b""),
            extensions={"target": target.encode(), "deadline": deadline, "limit": limit},
        )

    def enter(self) -> bool:
        """Whether the pool may be used; each True wants one `leave`."""
        with self._lock:
            self._users += not self._retired
            return not self._retired

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._retired and self._users == 0
        if last:
            self.transport.close()

    def retire(self) -> None:
        with self._lock:
            idle = not self._retired and self._users == 0
            self._retired = True
        if idle:
            self.transport.close()


class Upstream:
    """One HTTP service and the one credential for it.

    *timeout* is for each step of an exchange (a connection, a read), *total* for all of it; in seconds.

    Threads may share it. Forks may: each process makes its own connections at its first request, and those
    of its parent are neither used nor closed: on one connection both would read each other's answers.
    """

    def __init__(  # noqa: PLR0913  (a service, a credential, and its four bounds)
        self,
        name: str,
        url: str,
        token: str | None,
        *,
        timeout: float,
        concurrency: int,
        total: float | None = None,
        socket_path: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.url = url.rstrip("/")
        self._origin = httpx.URL(self.url)
        self._base = self._origin.raw_path.decode().rstrip("/")
        self._access = _Access(token, timeout, timeout if total is None else total)
        self._secrets = _blotted(token)
        self._concurrency = concurrency
        self._socket_path = socket_path
        self._clock = clock
        self._pools: dict[int, _Pool] = {}

    def __repr__(self) -> str:
        return f"Upstream({self.name!r}, {self.url!r})"

    @property
    def token(self) -> str | None:
        """The credential, for who asks the service in another way. Never to be shown."""
        return self._access.token

    @property
    def total(self) -> float:
        """Seconds that one exchange may take."""
        return self._access.total

    def authorize(self, token: str | None, *, timeout: float, total: float | None = None) -> None:
        """Go on with another credential and other bounds. Exchanges under way end as they began."""
        self._secrets |= _blotted(token)  # the old one may still be echoed
        self._access = _Access(token, timeout, timeout if total is None else total)
        self.close()

    def ask(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        limit: int = SEND_LIMIT,
    ) -> Answer:
        """Ask once and give the answer, whatever its status, within `total` seconds.

        *path* begins with a slash and is encoded already (`segment`); *query* is not. *body* is JSON where
        *headers*, which have lower-case names, do not say otherwise. Of a longer answer *limit* bytes are read.
        Raises `Unavailable` where there is no answer, its words saying whether the request may have been
        received, and `Refused` where the address is too long to be asked.
        """
        target = self._base + path
        if query:
            target += "?" + urlencode(query, quote_via=quote, safe="")
        if len(target) > _MAX_TARGET:
            raise Refused(self.name, f"{method} {path}", "not sent: the address is too long")
        with self._lease() as pool:
            try:
                response = pool.transport.handle_request(
                    pool.request(method, target, body, headers or {}, limit)
                )
            except httpx.RequestError as error:
                raise Unavailable(self.name, f"{method} {path}", clip(self.hide(_why(error)))) from error
        return self._answer(response, limit)

    def _answer(self, response: httpx.Response, limit: int) -> Answer:
        body = b"".join(response.iter_raw())
        return Answer(
            response.status_code,
            body[:limit],
            retry_after(response.headers.get("retry-after"), self._clock()),
            overrun=len(body) > limit,
        )

    def words(self, answer: Answer) -> str:
        """What *answer* says, for a person: short, in one line, without the credential."""
        return clip(self.hide(answer.text)) or "an empty answer"

    def reason(self, answer: Answer) -> str:
        """`words` with the status before them."""
        return f"HTTP {answer.status}: {self.words(answer)}"

    def hide(self, text: str) -> str:
        """*text* without the credential, which some services echo."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "[hidden]")
        return text

    def close(self) -> None:
        """Give back this process's connections; exchanges under way end first. `ask` opens new ones."""
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.retire()

    @contextmanager
    def _lease(self) -> Iterator[_Pool]:
        while True:
            access = self._access
            # No lock: a fork could leave it locked in the child for ever. `setdefault` is atomic.
            pool = self._pools.get(os.getpid())
            if pool is None:
                # Two more than senders, for probes: who finds no free connection fails without having asked.
                made = _Pool(self._origin, access, self._concurrency + 2, self._socket_path)
                pool = self._pools.setdefault(os.getpid(), made)
                if pool is not made:
                    made.retire()
            if pool.access is not access:
                self.close()  # it was made while the credential was changed
            elif pool.enter():
                break
        try:
            yield pool
        finally:
            pool.leave()


def _blotted(token: str | None) -> frozenset[str]:
    """The texts to be hidden when *token* is used."""
    return frozenset() if token is None else forms(token)


def _why(error: httpx.RequestError) -> str:
    sent = "not sent" if isinstance(error, _NOT_SENT) else "sent, no answer"
    return f"{sent}: {type(error).__name__}: {' '.join(str(error).split()) or 'no more is known'}"


def clip(text: str) -> str:
    """*text* short enough for a log line, and without characters that would break one."""
    text = text if len(text) <= _MAX_WORDS else text[: _MAX_WORDS - 1] + "…"
    return "".join(char if char.isprintable() else " " for char in text)
