"""From settings to destinations, from destinations to lanes, and which of them answers passthrough calls."""

from collections.abc import Collection
from typing import TypeVar

from per_agent.destinations import Destination
from per_agent.destinations.local import Ledger
from per_agent.destinations.payment_kit import PaymentKit
from per_agent.destinations.per import Per
from per_agent.destinations.sidecar import Sidecar
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
from per_agent.settings import (
    LANE,
    DestinationSettings,
    LedgerSettings,
    PaymentKitSettings,
    PerSettings,
    SidecarDestinationSettings,
)

_Upstream = TypeVar("_Upstream", Per, PaymentKit)


def lanes_of(destinations: Collection[Destination]) -> dict[type[Event], tuple[str, ...]]:
    """For each kind of event the lanes that it goes to. Raises `ConfigError` where a name cannot be one."""
    names = [destination.name for destination in destinations]
    unfit = [name for name in dict.fromkeys(names) if LANE.fullmatch(name) is None]
    twice = sorted({name for name in names if names.count(name) > 1})
    if unfit or twice:
        raise ConfigError(
            [
                *(
                    f"a destination is named {name!r}: a name is up to 64 letters, digits, _ and -,"
                    " and begins with a letter or a digit"
                    for name in unfit
                ),
                *(f"two destinations are named {name!r}: each needs its own lane" for name in twice),
            ]
        )
    activity, meter = (
        tuple(d.name for d in destinations if kind in d.takes) for kind in (Activity, MeterEvent)
    )
    # One object where they are equal: the journal knows the lanes of most events by their identity.
    return {Activity: activity, MeterEvent: activity if activity == meter else meter}


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
        case SidecarDestinationSettings():
            return Sidecar(
                settings.url,
                None if settings.token is None else settings.token.reveal(),
                name=name,
                timeout=settings.timeout,
                concurrency=settings.concurrency,
            )


def reports_of(destinations: Collection[Destination]) -> Reports:
    """Per's reports, else those behind a sidecar, else the ledger's. Raises `ConfigError` where there is none."""
    match _source(destinations, Per, "reports"):
        case Ledger() as ledger:
            return Reports(ledger)
        case upstream:
            return Reports(PerReports(upstream))


def meters_of(destinations: Collection[Destination]) -> Meters:
    """Payment Kit's meters, else those behind a sidecar, else the ledger's. Raises `ConfigError` as above."""
    match _source(destinations, PaymentKit, "meters"):
        case Ledger() as ledger:
            return Meters(ledger.meters)
        case upstream:
            return Meters(PaymentKitMeters(upstream))


def meter_events_of(destinations: Collection[Destination]) -> MeterEvents:
    """Payment Kit's stored meter events, else a sidecar's, else the ledger's. Raises `ConfigError` as above."""
    match _source(destinations, PaymentKit, "meter events"):
        case Ledger() as ledger:
            return MeterEvents(ledger.meter_events)
        case upstream:
            return MeterEvents(PaymentKitMeterEvents(upstream))


def _source(
    destinations: Collection[Destination], kind: type[_Upstream], what: str
) -> _Upstream | Sidecar | Ledger:
    for wanted in (kind, Sidecar, Ledger):
        for destination in destinations:
            if isinstance(destination, wanted):
                return destination
    raise ConfigError(f"no destination is configured that has {what}")
