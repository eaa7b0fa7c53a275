"""`Meters`: what usage is counted against, managed at Payment Kit or in the embedded ledger."""

from typing import Any, Protocol

from msgspec import UNSET, UnsetType

from per_agent.destinations.http import segment
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.destinations.sidecar import Sidecar
from per_agent.passthrough.answers import PaymentKitCalls, given
from per_agent.passthrough.twin import in_thread


class MeterSource(Protocol):
    """What keeps meters; called with the fields that were given and no others. `Ledger.meters` is one."""

    def create(self, *args: Any, **fields: Any) -> Any: ...
    def retrieve(self, *args: Any, **fields: Any) -> Any: ...
    def update(self, *args: Any, **fields: Any) -> Any: ...
    def list(self, *args: Any, **fields: Any) -> Any: ...
    def activate(self, *args: Any, **fields: Any) -> Any: ...
    def deactivate(self, *args: Any, **fields: Any) -> Any: ...


class Meters:
    """Payment Kit's meter calls, with its own parameter names, giving its JSON unchanged.

    *livemode* None is the mode of the destination. All calls block, raise `UpstreamError` where the upstream
    says no or nothing, and have a twin `…_async` that runs in a thread of the loop's own executor.
    """

    def __init__(self, source: MeterSource) -> None:
        self._source = source

    def create(  # noqa: PLR0913  (upstream's own parameters)
        self,
        *,
        name: str,
        event_name: str,
        unit: str,
        aggregation_method: str | None = None,
        currency_id: str | None = None,
        description: str | None = None,
        metadata: dict[str, Any] | None = None,
        livemode: bool | None = None,
        **more: Any,
    ) -> Any:
        """Make a meter and give it. Without *currency_id*, a credit currency is made for it."""
        optional = given(
            aggregation_method=aggregation_method,
            currency_id=currency_id,
            description=description,
            metadata=metadata,
            livemode=livemode,
        )
        return self._source.create(name=name, event_name=event_name, unit=unit, **optional, **more)

    def retrieve(self, id: str, *, livemode: bool | None = None) -> Any:
        """The meter with this id or `event_name`."""
        return self._source.retrieve(id, **given(livemode=livemode))

    def update(
        self,
        id: str,
        *,
        name: str | UnsetType = UNSET,
        description: str | UnsetType | None = UNSET,
        unit: str | UnsetType = UNSET,
        status: str | UnsetType = UNSET,
        metadata: dict[str, Any] | UnsetType | None = UNSET,
        livemode: bool | None = None,
    ) -> Any:
        """Change the fields that are given, and give the meter. *metadata* replaces the whole object."""
        texts = {"name": name, "description": description, "unit": unit, "status": status}
        fields = {**texts, "metadata": metadata}
        changed = {field: value for field, value in fields.items() if value is not UNSET}
        return self._source.update(id, **changed, **given(livemode=livemode))

    def list(
        self,
        *,
        page: int | None = None,
        pageSize: int | None = None,  # noqa: N803  (upstream's name)
        event_name: str | None = None,
        livemode: bool | None = None,
        q: str | None = None,
    ) -> Any:
        """A page of meters, the newest first: `{"count", "list", "paging"}`. *q*: in name or description."""
        filters = given(page=page, pageSize=pageSize, event_name=event_name, livemode=livemode, q=q)
        return self._source.list(**filters)

    def activate(self, id: str, *, livemode: bool | None = None) -> Any:
        """Let the meter take events, and give it. Events that were parked for it go on by themselves."""
        return self._source.activate(id, **given(livemode=livemode))

    def deactivate(self, id: str, *, livemode: bool | None = None) -> Any:
        """Let the meter refuse events, and give it. Events for it are parked until it is active again."""
        return self._source.deactivate(id, **given(livemode=livemode))

    async def create_async(self, **fields: Any) -> Any:
        return await in_thread(self.create, **fields)

    async def retrieve_async(self, id: str, **fields: Any) -> Any:
        return await in_thread(self.retrieve, id, **fields)

    async def update_async(self, id: str, **fields: Any) -> Any:
        return await in_thread(self.update, id, **fields)

    async def list_async(self, **filters: Any) -> Any:
        return await in_thread(self.list, **filters)

    async def activate_async(self, id: str, **fields: Any) -> Any:
        return await in_thread(self.activate, id, **fields)

    async def deactivate_async(self, id: str, **fields: Any) -> Any:
        return await in_thread(self.deactivate, id, **fields)


class PaymentKitMeters:
    """Meters at a Payment Kit, or at a sidecar, which answers as Payment Kit does."""

    def __init__(self, kit: PaymentKit | Sidecar) -> None:
        self._calls = PaymentKitCalls(kit.management, kit.livemode)

    def create(self, **fields: Any) -> Any:
        return self._calls.post("/api/meters", fields)

    def retrieve(self, id: str, **fields: Any) -> Any:
        return self._calls.get(f"/api/meters/{segment(id)}", fields, call="GET /api/meters/{id}")

    def update(self, id: str, **fields: Any) -> Any:
        return self._calls.put(f"/api/meters/{segment(id)}", fields, call="PUT /api/meters/{id}")

    def list(self, **filters: Any) -> Any:
        return self._calls.get("/api/meters", filters)

    def activate(self, id: str, **fields: Any) -> Any:
        path = f"/api/meters/{segment(id)}/activate"
        return self._calls.put(path, fields, call="PUT /api/meters/{id}/activate")

    def deactivate(self, id: str, **fields: Any) -> Any:
        path = f"/api/meters/{segment(id)}/deactivate"
        return self._calls.put(path, fields, call="PUT /api/meters/{id}/deactivate")
