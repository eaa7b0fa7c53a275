"""Who may talk to the sidecar, and under which name it may be called.

A Unix socket is guarded by its file's mode and group: whoever can open it may use it. On TCP any process of
the machine can connect, and so can a page in a browser: there a bearer token is asked for, and the `Host`
must be a name of ours, so that a name that an attacker's DNS points at the loopback address gets nowhere.

A client of Per's or Payment Kit's that was only given another base URL presents the credential that it has:
the configured token of the right scope, or the configured access key, is as good as the sidecar's own there.
"""

import hmac
import re
from collections.abc import Mapping
from typing import Final

from per_agent.settings import PaymentKitSettings, PerSettings, Settings
from per_agent.sidecar.asked import Asked, Proof
from per_agent.sidecar.problems import Problem

OPEN: Final = frozenset({"/healthz", "/readyz"})
"""Paths for probes, which bring no token."""

_ONCE: Final = frozenset(
    {b"host", b"authorization", b"proxy-authorization", b"content-type", b"content-encoding"}
)
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_LOOPBACK: Final = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
_REMEMBERED: Final = 64  # `Host` values found good; there are few, and a stranger's are not kept
_CHALLENGE: Final = {"www-authenticate": 'Bearer realm="per_agent"'}


class Access:
    """Admits requests. *token* is the sidecar's own; *settings* tell the names and the upstreams' credentials."""

    def __init__(self, token: str, settings: Settings) -> None:
        self._good_hosts: set[bytes] = set()
        self.renew(token, settings)

    def renew(self, token: str, settings: Settings) -> None:
        """From now on, these are the token and the settings."""
        own = [token.encode()]
        upstreams = settings.destinations.values()
        pers = [each for each in upstreams if isinstance(each, PerSettings)]
        kits = [each for each in upstreams if isinstance(each, PaymentKitSettings)]
        self._own = own
        self._counting = own + [each.activity_token.reveal().encode() for each in pers]
        self._reporting = own + [
            each.reporting_token.reveal().encode() for each in pers if each.reporting_token is not None
        ]
        self._metering = own + [each.access_key.reveal().encode() for each in kits]
        named = {name.lower().encode() for name in settings.sidecar.hosts}
        address = settings.sidecar.address
        if address is not None:
            named.add(_as_host(address[0]))
        self._names = _LOOPBACK | named
        self._good_hosts.clear()

    def admit(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], local: str | None, *, unix: bool
    ) -> Asked:
        """The request, if it may go on. Raises `Problem` where it may not.

        *unix*: it came by the Unix socket; *local*: else the address that it came to.
        """
        given = dict(headers)
        if len(given) < len(headers):
            _refuse_repeats(headers)
        if unix:
            proof = self.by_socket(path, given)
        else:
            self.check_host(given.get(b"host"), local)
            proof = self.by_token(path, given)
        kind = given.get(b"content-type", b"").partition(b";")[0].strip().lower()
        return Asked(method, path, given, kind, proof, request_id(given))

    def by_socket(self, path: str, given: Mapping[bytes, bytes]) -> Proof:
        """How a request on the Unix socket is let in: always; but a token of ours is known for one."""
        return "header" if self._knows(given.get(b"authorization"), self._for(path)) else "socket"

    def by_token(self, path: str, given: Mapping[bytes, bytes]) -> Proof:
        """How a request on TCP is let in. Raises `Problem` 401 where it brings no credential that is good here."""
        if path in OPEN:
            return "socket"
        if self._knows(given.get(b"authorization"), self._for(path)):
            return "header"
        if self._knows(given.get(b"proxy-authorization"), self._own):
            return "proxy-header"
        raise Problem(
            401,
            "the sidecar's token is missing or wrong: send it as 'Authorization: Bearer TOKEN', or as"
            " 'Proxy-Authorization: Bearer TOKEN' beside an upstream's own credential",
            headers=_CHALLENGE,
        )

    def check_host(self, host: bytes | None, local: str | None) -> None:
        """Raise `Problem` where a TCP request names a *host* that is not ours. *local*: the address that it came to."""
        if host in self._good_hosts:
            return
        if host is None:
            raise Problem(400, "the Host header is missing")
        name = host.lower()
        if not name.endswith(b"]"):
            head, colon, port = name.rpartition(b":")
            if colon and port.isdigit():
                name = head
        if name not in self._names and (local is None or name != _as_host(local)):
            raise Problem(421, "this host name is not the sidecar's; add it to [sidecar] hosts if it is")
        if len(self._good_hosts) < _REMEMBERED:
            self._good_hosts.add(host)

    def _for(self, path: str) -> list[bytes]:
        if path == "/activities.add":
            return self._counting
        if path == "/reports.get":
            return self._reporting
        return self._metering if path.startswith("/api/") else self._own

    def _knows(self, header: bytes | None, tokens: list[bytes]) -> bool:
        if header is None or header[:7].lower() != b"bearer ":
            return False
        token = header[7:].strip()
        known = False
        for each in tokens:  # all of them: how long it takes says nothing of which, or how much, was right
            known |= hmac.compare_digest(token, each)
        return known


def request_id(given: Mapping[bytes, bytes]) -> bytes:
    """The id that a client gave its request, if it is one to repeat in an answer and in the log."""
    brought = given.get(b"x-request-id", b"")
    return brought if _REQUEST_ID.fullmatch(brought) else b""


def _refuse_repeats(headers: list[tuple[bytes, bytes]]) -> None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and name in _ONCE:
            raise Problem(400, f"the header {name.decode('latin-1')} is given twice")
        seen.add(name)


def _as_host(address: str) -> bytes:
    """*address* as it stands in a `Host` header."""
    return (f"[{address}]" if ":" in address else address).lower().encode()
