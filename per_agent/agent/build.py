"""From settings to destinations, from destinations to lanes, and which of them answers passthrough calls."""

from collections.abc import Collection
from typing import TypeVar

from per_agent.destinations import Destination
from per_agent.destinations.local import Ledger
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.destinations.per import Per
from per_agent.errors import ConfigError
from per_agent.event import Activity, Event, MeterEvent
from per_agent.passthrough import (
    MeterEvents,
    Meters,
    PaymentKitMeterEvents,
    PaymentKitMeters,
    PerReports,
    Reports,
)
from per_agent.settings import DestinationSettings, LedgerSettings, PaymentKitSettings, PerSettings

_Upstream = TypeVar("_Upstream", Per, PaymentKit)


def lanes_of(destinations: Collection[Destination]) -> dict[type[Event], tuple[str, ...]]:
    """For each kind of event the lanes that it goes to. Raises `ConfigError` where two share a name."""
    names = [destination.name for destination in destinations]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError([f"two destinations are named {name!r}: each needs its own lane" for name in twice])
    return {kind: tuple(d.name for d in destinations if kind in d.takes) for kind in (Activity, MeterEvent)}


def destination_of(name: str, settings: DestinationSettings) -> Destination:
    """The destination that *settings* describe, with the lane *name*."""
    match settings:
        case PerSettings():
            reporting = settings.reporting_token
            return Per(
                settings.activity_token.reveal(),
                None if reporting is None else reporting.reveal(),
                settings.url,
                name=name,
                timeout=settings.timeout,
                concurrency=settings.concurrency,
            )
        case PaymentKitSettings():
            return PaymentKit(
                settings.url,
                settings.access_key.reveal(),
                settings.livemode,
                name=name,
                timeout=settings.timeout,
                concurrency=settings.concurrency,
            )
        case LedgerSettings():
            return Ledger(settings.path, name=name)


def reports_of(destinations: Collection[Destination]) -> Reports:
    """Per's reports, else the ledger's. Raises `ConfigError` where there is neither."""
    match _upstream(destinations, Per, "reports"):
        case Per() as per:
            return Reports(PerReports(per))
        case ledger:
            return Reports(ledger)


def meters_of(destinations: Collection[Destination]) -> Meters:
    """Payment Kit's meters, else the ledger's. Raises `ConfigError` where there is neither."""
    match _upstream(destinations, PaymentKit, "meters"):
        case PaymentKit() as kit:
            return Meters(PaymentKitMeters(kit))
        case ledger:
            return Meters(ledger.meters)


def meter_events_of(destinations: Collection[Destination]) -> MeterEvents:
    """Payment Kit's stored meter events, else the ledger's. Raises `ConfigError` where there is neither."""
    match _upstream(destinations, PaymentKit, "meter events"):
        case PaymentKit() as kit:
            return MeterEvents(PaymentKitMeterEvents(kit))
        case ledger:
            return MeterEvents(ledger.meter_events)


def _upstream(destinations: Collection[Destination], kind: type[_Upstream], what: str) -> _Upstream | Ledger:
    for wanted in (kind, Ledger):
        for destination in destinations:
            if isinstance(destination, wanted):
                return destination
    raise ConfigError(f"no destination is configured that has {what}")
