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
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

import msgspec

from per_agent import late
from per_agent.destinations.http.answer import SEND_LIMIT, Answer, NotAsked, Unanswered
from per_agent.errors import Refused, Unavailable
from per_agent.settings.secret import forms

if TYPE_CHECKING:
    from per_agent.destinations.http.client import Client

_MAX_WORDS: Final = 200


class _Access(msgspec.Struct, frozen=True):
    """What a service is asked with; replaced as a whole, so that no request mixes two."""

    token: str | None
    timeout: float
    total: float


class _Pool:
    """One process's connections. They are closed when it is retired and the last exchange is over.

    An exchange is not cut: an answer that is lost leaves an event of which nobody knows whether it counted.
    """

    def __init__(self, client: "Client", access: _Access) -> None:
        self.client = client
        self.access = access
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False

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
            self.client.close()

    def retire(self) -> None:
        with self._lock:
            idle = not self._retired and self._users == 0
            self._retired = True
        if idle:
            self.client.close()


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
        target = path + "?" + urlencode(query, quote_via=quote, safe="") if query else path
        with self._lease() as pool:
            try:
                return pool.client.ask(method, target, headers or {}, body, limit=limit)
            except Unanswered as error:
                raise Unavailable(self.name, f"{method} {path}", clip(self.hide(str(error)))) from error
            except NotAsked as error:
                raise Refused(self.name, f"{method} {path}", str(error)) from error

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

    def _connect(self, access: _Access) -> "Client":
        with late.here():
            from per_agent.destinations.http.client import Client  # noqa: PLC0415  (it loads httpx)

            return Client(  # httpx loads more for the first one
                self.url,
                access.token,
                timeout=access.timeout,
                total=access.total,
                # Two more than senders, for probes: who finds no free connection fails without having asked.
                connections=self._concurrency + 2,
                socket_path=self._socket_path,
                clock=self._clock,
            )

    @contextmanager
    def _lease(self) -> Iterator[_Pool]:
        while True:
            access = self._access
            # No lock: a fork could leave it locked in the child for ever. `setdefault` is atomic.
            pool = self._pools.get(os.getpid())
            if pool is None:
                made = _Pool(self._connect(access), access)
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


def clip(text: str) -> str:
    """*text* short enough for a log line, and without characters that would break one."""
    text = text if len(text) <= _MAX_WORDS else text[: _MAX_WORDS - 1] + "…"
    return "".join(char if char.isprintable() else " " for char in text)
