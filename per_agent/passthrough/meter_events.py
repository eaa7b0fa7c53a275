"""`MeterEvents`: stored usage, looked at where it is stored: at Payment Kit or in the embedded ledger."""

from typing import Any, Protocol

from per_agent.destinations.http import segment
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.destinations.sidecar import Sidecar
from per_agent.passthrough.answers import PaymentKitCalls, given
from per_agent.passthrough.twin import in_thread


class MeterEventSource(Protocol):
    """What keeps meter events; called with the fields that were given only. `Ledger.meter_events` is one."""

    def create(self, *args: Any, **fields: Any) -> Any: ...
    def retrieve(self, *args: Any, **fields: Any) -> Any: ...
    def list(self, *args: Any, **fields: Any) -> Any: ...
    def stats(self, *args: Any, **fields: Any) -> Any: ...
    def pending_amount(self, *args: Any, **fields: Any) -> Any: ...


class MeterEvents:
    """Payment Kit's meter event calls, with its own parameter names, giving its JSON unchanged.

    *start* and *end* are in epoch seconds; *livemode* None is the mode of the destination. All calls block,
    raise `UpstreamError` where the upstream says no or nothing, and have a twin `…_async` that runs in a
    thread of the loop's own executor.
    """

    def __init__(self, source: MeterEventSource) -> None:
        self._source = source

    def create(
        self,
        *,
        event_name: str,
        identifier: str,
        payload: dict[str, Any],
        timestamp: int | None = None,
        metadata: dict[str, Any] | None = None,
        source_data: Any = None,
        livemode: bool | None = None,
    ) -> Any:
        """Store one event now, past the spool: nothing keeps it, or sends it again, if this raises."""
        optional = given(timestamp=timestamp, metadata=metadata, source_data=source_data, livemode=livemode)
        return self._source.create(event_name=event_name, identifier=identifier, payload=payload, **optional)

    def retrieve(self, id: str, *, livemode: bool | None = None) -> Any:
        """The event with this id, which the upstream gave it; its identifier does not serve."""
        return self._source.retrieve(id, **given(livemode=livemode))

    def list(  # noqa: PLR0913  (upstream's own parameters)
        self,
        *,
        page: int | None = None,
        pageSize: int | None = None,  # noqa: N803  (upstream's name)
        event_name: str | None = None,
        meter_id: str | None = None,
        customer_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
        livemode: bool | None = None,
        q: str | None = None,
    ) -> Any:
        """A page of events: `{"count", "list", "paging"}`."""
        filters = given(
            page=page,
            pageSize=pageSize,
            event_name=event_name,
            meter_id=meter_id,
            customer_id=customer_id,
            start=start,
            end=end,
            livemode=livemode,
            q=q,
        )
        return self._source.list(**filters)

    def stats(
        self,
        *,
        meter_id: str,
        start: int,
        end: int,
        customer_id: str | None = None,
        granularity: str | None = None,
        livemode: bool | None = None,
    ) -> Any:
        """Counts and sums of a meter by *granularity* (`minute`, `hour`, `day`)."""
        optional = given(customer_id=customer_id, granularity=granularity, livemode=livemode)
        return self._source.stats(meter_id=meter_id, start=start, end=end, **optional)

    def pending_amount(
        self,
        *,
        subscription_id: str | None = None,
        customer_id: str | None = None,
        currency_id: str | None = None,
        livemode: bool | None = None,
    ) -> Any:
        """What is stored and not yet deducted, `{currency_id: amount}`, in the currency's smallest unit."""
        filters = given(
            subscription_id=subscription_id,
            customer_id=customer_id,
            currency_id=currency_id,
            livemode=livemode,
        )
        return self._source.pending_amount(**filters)

    async def create_async(self, **fields: Any) -> Any:
        return await in_thread(self.create, **fields)

    async def retrieve_async(self, id: str, **fields: Any) -> Any:
        return await in_thread(self.retrieve, id, **fields)

    async def list_async(self, **filters: Any) -> Any:
        return await in_thread(self.list, **filters)

    async def stats_async(self, **filters: Any) -> Any:
        return await in_thread(self.stats, **filters)

    async def pending_amount_async(self, **filters: Any) -> Any:
        return await in_thread(self.pending_amount, **filters)


class PaymentKitMeterEvents:
    """Meter events at a Payment Kit, or at a sidecar, which answers as Payment Kit does."""

    def __init__(self, kit: PaymentKit | Sidecar) -> None:
        self._calls = PaymentKitCalls(kit.management, kit.livemode)

    def create(self, **fields: Any) -> Any:
        return self._calls.post("/api/meter-events", fields)

    def retrieve(self, id: str, **fields: Any) -> Any:
        return self._calls.get(f"/api/meter-events/{segment(id)}", fields, call="GET /api/meter-events/{id}")

    def list(self, **filters: Any) -> Any:
        return self._calls.get("/api/meter-events", filters)

    def stats(self, **filters: Any) -> Any:
        return self._calls.get("/api/meter-events/stats", filters)

    def pending_amount(self, **filters: Any) -> Any:
        return self._calls.get("/api/meter-events/pending-amount", filters)
