"""`Upstreams`: who answers what the sidecar does not answer itself: an upstream, another sidecar, or the ledger."""

from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from per_agent.destinations.local import Ledger
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.destinations.per import Per
from per_agent.destinations.sidecar import Sidecar
from per_agent.sidecar.local import Local
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.proxy import Proxy
from per_agent.sidecar.service import Service

_Destination = TypeVar("_Destination", Per, PaymentKit, Sidecar, Ledger)


class Upstreams:
    """The passthrough of one sidecar: `reports` and `api` are ASGI applications for `/reports.get` and `/api/…`.

    Per's reports come from Per, Payment Kit's calls go to Payment Kit; else to a sidecar that is a destination;
    else the embedded ledger answers. Which of them there are is the agent's, from its making on; credentials and
    times are the destinations' own, asked for with each request, and so those that events are sent with, also
    after a reload.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._per = self._first(Per)
        self._to_per = None if self._per is None else _proxy_to_per(self._per)
        kit, sidecar, ledger = self._first(PaymentKit), self._first(Sidecar), self._first(Ledger)
        self._to_kit = None if kit is None else _proxy_to_kit(kit)
        self._to_sidecar = None if sidecar is None else _proxy_to_sidecar(sidecar)
        self._local = None if ledger is None else Local(ledger)

    async def reports(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a report. Raises `Problem`, 404 where nobody could; as `Proxy` and `Local` do."""
        await self._reporter(scope)(scope, receive, send)

    async def api(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call of Payment Kit's. Raises `Problem`, 404 where nobody could; as `Proxy` and `Local` do."""
        proxy = self._to_kit or self._to_sidecar
        if proxy is not None:
            await proxy(scope, receive, send)
        elif self._local is not None:
            await self._local.api(scope, receive, send)
        else:
            raise Problem(
                404,
                "no destination answers Payment Kit's calls: configure a Payment Kit (PAYMENT_KIT_URL and"
                " PAYMENT_KIT_ACCESS_KEY), or the embedded ledger",
            )

    async def close(self) -> None:
        """Give back the connections."""
        for proxy in (self._to_per, self._to_kit, self._to_sidecar):
            if proxy is not None:
                await proxy.close()

    def _reporter(self, scope: Scope) -> ASGIApp:
        """Who answers the report that *scope* asks for."""
        # Without a reporting token of ours, Per still answers a caller who brings one.
        if self._per is not None and (self._per.reporting is not None or _brings_token(scope)):
            assert self._to_per is not None
            return self._to_per
        if self._to_sidecar is not None:
            return self._to_sidecar
        if self._local is not None:
            return self._local.reports
        raise Problem(
            404,
            "no destination answers reports: configure Per's reporting_token (PER_REPORTING_TOKEN), or the"
            " embedded ledger",
        )

    def _first(self, kind: type[_Destination]) -> _Destination | None:
        return next((each for each in self._service.agent.destinations if isinstance(each, kind)), None)


def _proxy_to_per(per: Per) -> Proxy:
    def token() -> str | None:
        return None if per.reporting is None else per.reporting.token

    return Proxy(per.name, per.url, token, timeout=lambda: per.report_timeout)


def _proxy_to_kit(kit: PaymentKit) -> Proxy:
    upstream = kit.management
    return Proxy(kit.name, upstream.url, lambda: upstream.token, timeout=lambda: upstream.total)


def _proxy_to_sidecar(sidecar: Sidecar) -> Proxy:
    upstream = sidecar.management
    return Proxy(
        sidecar.name,
        sidecar.address,
        lambda: upstream.token,
        timeout=lambda: upstream.total,
        presented="proxy-authorization",
    )


def _brings_token(scope: Scope) -> bool:
    """Whether the caller's own `Authorization` is there to be passed on."""
    if scope["state"]["authorized_by"] == "header":
        return False
    return any(name == b"authorization" for name, _ in scope["headers"])
