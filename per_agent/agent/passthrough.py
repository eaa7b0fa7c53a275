"""What an agent passes straight to an upstream: reports, meters, stored meter events. It touches no spool."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from per_agent.agent.build import meter_events_of, meters_of, reports_of
from per_agent.destinations import Destination
from per_agent.passthrough import MeterEvents, Meters


class Passthrough:
    """The calls of an agent with these *destinations* that are answered by an upstream."""

    destinations: Sequence[Destination]

    def get_report(self, start: datetime | str | None = None, end: datetime | str | None = None) -> Any:
        """Per's report of unique users, as its JSON says it. Straight to the upstream; raises `UpstreamError`."""
        return reports_of(self.destinations).get_report(start, end)

    async def get_report_async(
        self, start: datetime | str | None = None, end: datetime | str | None = None
    ) -> Any:
        """As `get_report`, without blocking the event loop."""
        return await reports_of(self.destinations).get_report_async(start, end)

    @property
    def meters(self) -> Meters:
        """Payment Kit's meters, else the ledger's. Raises `ConfigError` without either."""
        return meters_of(self.destinations)

    @property
    def meter_events(self) -> MeterEvents:
        """Payment Kit's stored meter events, or the ledger's. Raises `ConfigError` without either."""
        return meter_events_of(self.destinations)
