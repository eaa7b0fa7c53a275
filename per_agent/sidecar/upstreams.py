"""`Upstreams`: who answers what the sidecar does not answer itself: an upstream, another sidecar, or the ledger."""

from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from per_agent.destinations.local import Ledger
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.destinations.per import REPORTING, Per
from per_agent.destinations.sidecar import Sidecar
from per_agent.settings import PaymentKitSettings, PerSettings, SidecarDestinationSettings
from per_agent.sidecar.local import Local
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.proxy import Proxy
from per_agent.sidecar.service import Service

_Destination = TypeVar("_Destination", Per, PaymentKit, Sidecar, Ledger)
_Settings = TypeVar("_Settings", PerSettings, PaymentKitSettings, SidecarDestinationSettings)


class Upstreams:
    """The passthrough of one sidecar: `reports` and `api` are ASGI applications for `/reports.get` and `/api/…`.

    Per's reports come from Per, Payment Kit's calls go to Payment Kit; else to a sidecar that is a destination;
    else the embedded ledger answers. Which there are is the agent's, from its making on. Credentials are looked
    up in the settings for each request, so that they follow a reload; where the settings do not know a
    destination, because the agent was made without them, the destination's own is used.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._per = self._first(Per)
        self._kit = self._first(PaymentKit)
        self._sidecar = self._first(Sidecar)
        ledger = self._first(Ledger)
        self._local = None if ledger is None else Local(ledger)
        self._to_per = None if self._per is None else self._proxy_to_per(self._per)
        self._to_kit = None if self._kit is None else self._proxy_to_kit(self._kit)
        self._to_sidecar = None if self._sidecar is None else self._proxy_to_sidecar(self._sidecar)

    async def reports(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a report. Raises `Problem`, 404 where nobody could."""
        await self._reporter(scope)(scope, receive, send)

    async def api(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call of Payment Kit's. Raises `Problem`, 404 where nobody could."""
        answers = self._to_kit or self._to_sidecar
        if answers is None and self._local is not None:
            await self._local.api(scope, receive, send)
        elif answers is None:
            raise Problem(
                404,
                "no destination answers Payment Kit's calls: configure a Payment Kit (PAYMENT_KIT_URL and"
                " PAYMENT_KIT_ACCESS_KEY), or the embedded ledger",
            )
        else:
            await answers(scope, receive, send)

    async def close(self) -> None:
        """Give back the connections."""
        for proxy in (self._to_per, self._to_kit, self._to_sidecar):
            if proxy is not None:
                await proxy.close()

    def _reporter(self, scope: Scope) -> ASGIApp:
        """Who answers the report that *scope* asks for."""
        # Without a reporting token, Per still answers a caller who brings one.
        if self._to_per is not None and (self._reporting_token() is not None or _brings_token(scope)):
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

    def _proxy_to_per(self, per: Per) -> Proxy | None:
        """None where only counting is known of Per: neither where it reports, nor with which token."""
        reporting, settings = per.reporting, self._settings(PerSettings, per.name)
        if reporting is not None:
            return Proxy(per.name, reporting.url, self._reporting_token, timeout=lambda: reporting.total)
        if settings is not None:
            seconds = settings.timeout * REPORTING
            return Proxy(per.name, settings.url, self._reporting_token, timeout=lambda: seconds)
        return None

    def _proxy_to_kit(self, kit: PaymentKit) -> Proxy:
        upstream = kit.management
        return Proxy(kit.name, upstream.url, self._access_key, timeout=lambda: upstream.total)

    def _proxy_to_sidecar(self, sidecar: Sidecar) -> Proxy:
        return Proxy(
            sidecar.name,
            sidecar.address,
            self._sidecar_token,
            timeout=lambda: sidecar.management.total,
            presented="proxy-authorization",
        )

    def _reporting_token(self) -> str | None:
        assert self._per is not None
        settings = self._settings(PerSettings, self._per.name)
        if settings is not None:
            return None if settings.reporting_token is None else settings.reporting_token.reveal()
        return None if self._per.reporting is None else self._per.reporting.token

    def _access_key(self) -> str | None:
        assert self._kit is not None
        settings = self._settings(PaymentKitSettings, self._kit.name)
        return self._kit.management.token if settings is None else settings.access_key.reveal()

    def _sidecar_token(self) -> str | None:
        assert self._sidecar is not None
        settings = self._settings(SidecarDestinationSettings, self._sidecar.name)
        if settings is not None:
            return None if settings.token is None else settings.token.reveal()
        return self._sidecar.management.token

    def _first(self, kind: type[_Destination]) -> _Destination | None:
        return next((each for each in self._service.agent.destinations if isinstance(each, kind)), None)

    def _settings(self, kind: type[_Settings], name: str) -> _Settings | None:
        found = self._service.settings.destinations.get(name)
        return found if isinstance(found, kind) else None


def _brings_token(scope: Scope) -> bool:
    """Whether the caller's own `Authorization` is there to be passed on."""
    if scope["state"]["authorized_by"] == "header":
        return False
    return any(name == b"authorization" for name, _ in scope["headers"])
