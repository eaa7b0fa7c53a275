"""Reports and meter management: straight to the upstream and straight back, nothing stored, errors raised.

`Reports`, `Meters` and `MeterEvents` are what callers hold. Behind each stands a source: `PerReports`,
`PaymentKitMeters` and `PaymentKitMeterEvents` ask an upstream, or a sidecar, over HTTP; an embedded ledger is
a source by itself: `Reports(ledger)`, `Meters(ledger.meters)`, `MeterEvents(ledger.meter_events)`.
"""

from per_agent.passthrough.meter_events import MeterEvents, MeterEventSource, PaymentKitMeterEvents
from per_agent.passthrough.meters import Meters, MeterSource, PaymentKitMeters
from per_agent.passthrough.reports import PerReports, Reports, ReportSource

__all__ = [
    "MeterEventSource",
    "MeterEvents",
    "MeterSource",
    "Meters",
    "PaymentKitMeterEvents",
    "PaymentKitMeters",
    "PerReports",
    "ReportSource",
    "Reports",
]
