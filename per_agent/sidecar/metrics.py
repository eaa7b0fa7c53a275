"""`GET /metrics`: what the agent and the sidecar know of themselves, for Prometheus.

Everything is read at the scrape, from counters that are kept anyway: no request and no event waits for a metric.
Counters of events come from the persisted books, and so go on over restarts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from per_agent.agent.statistics import DestinationStatistics, Statistics
from per_agent.histogram import Distribution
from per_agent.sidecar.service import Service
from per_agent.version import version

_STATES: Final = ("open", "retrying", "halted")
_BOOKS: Final = (
    ("accepted", "Events taken in."),
    ("delivered", "Events that the destination has taken."),
    ("dead", "Events that the destination refused for good; their letters may have been purged since."),
    ("dropped", "Events given up by the overflow policy."),
)


def routes(service: Service) -> list[BaseRoute]:
    """The scrape's endpoint."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service))
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)

    async def scrape(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    return [Route("/metrics", scrape, methods=["GET"])]


class _Collector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        """Nothing: what there is shows at the scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        seen = self._service.agent.statistics()
        yield InfoMetricFamily("per_agent", "The sidecar's version.", {"version": version()})
        yield _gauge("per_agent_start_time_seconds", "When it was started.", self._service.started_at)
        ready = self._service.agent.unready is None and not self._service.draining
        yield _gauge("per_agent_ready", "1 while it accepts and stores events.", float(ready))
        yield from _events(seen.destinations)
        yield from _standing(seen.destinations, time.time())
        yield from _deliveries(seen.destinations)
        yield from _storage(seen)
        yield self._requests()

    def _requests(self) -> Metric:
        family = HistogramMetricFamily(
            "per_agent_request_duration_seconds",
            "Requests to the sidecar, from their head to the end of the answer.",
            labels=("endpoint", "status"),
        )
        for endpoint, status, times in self._service.times.look():
            _add(family, (endpoint, status), times)
        return family


_Destinations = dict[str, DestinationStatistics]
_GAUGES: Final[Sequence[tuple[str, str, Callable[[DestinationStatistics], int]]]] = (
    (
        "events_pending",
        "Events that wait to be delivered, parked ones included.",
        lambda each: each.books.pending,
    ),
    ("events_parked", "Events that wait for something other than time.", lambda each: each.parked),
    ("dead_letters", "Dead letters that lie there.", lambda each: each.dead_letters),
)


def _events(destinations: _Destinations) -> Iterator[Metric]:
    for name, words in _BOOKS:
        family = CounterMetricFamily(f"per_agent_events_{name}", words, labels=("destination",))
        for destination, each in destinations.items():
            family.add_metric((destination,), getattr(each.books, name))
        yield family
    for name, words, of in _GAUGES:
        gauge = GaugeMetricFamily(f"per_agent_{name}", words, labels=("destination",))
        for destination, each in destinations.items():
            gauge.add_metric((destination,), of(each))
        yield gauge


def _standing(destinations: _Destinations, now: float) -> Iterator[Metric]:
    oldest = GaugeMetricFamily(
        "per_agent_oldest_pending_seconds",
        "Age of the oldest pending event; 0 where nothing is pending.",
        labels=("destination",),
    )
    idle = GaugeMetricFamily(
        "per_agent_seconds_since_delivery",
        "Since an event was last delivered, or since the start.",
        labels=("destination",),
    )
    state = GaugeMetricFamily(
        "per_agent_destination_state",
        "1 for the state that the destination is in.",
        labels=("destination", "state"),
    )
    for name, each in destinations.items():
        oldest.add_metric((name,), 0.0 if each.oldest is None else max(0.0, now - each.oldest))
        if each.delivery is None:
            continue
        idle.add_metric((name,), each.delivery.idle_seconds)
        for possible in _STATES:
            state.add_metric((name, possible), float(each.delivery.condition.state == possible))
    yield from (oldest, idle, state)


def _deliveries(destinations: _Destinations) -> Iterator[Metric]:
    retries = CounterMetricFamily(
        "per_agent_delivery_retries",
        "Offers of an event that are to be repeated, by what went wrong.",
        labels=("destination", "reason"),
    )
    seconds = HistogramMetricFamily(
        "per_agent_delivery_duration_seconds", "Attempts to deliver.", labels=("destination",)
    )
    batches = HistogramMetricFamily(
        "per_agent_delivery_events", "Events offered in one attempt.", labels=("destination",)
    )
    for name, each in destinations.items():
        if each.delivery is None:
            continue
        for reason, count in each.delivery.retries.items():
            retries.add_metric((name, reason), count)
        _add(seconds, (name,), each.delivery.seconds)
        _add(batches, (name,), each.delivery.events)
    yield from (retries, seconds, batches)


def _storage(seen: Statistics) -> Iterator[Metric]:
    yield _gauge("per_agent_spool_bytes", "Bytes that the spools take on the disk.", seen.bytes_used)
    yield _gauge("per_agent_buffer_events", "Events in memory, not yet on the disk.", seen.intake.waiting)
    overflows = CounterMetricFamily(
        "per_agent_buffer_overflows", "Events that did not fit, by what became of them.", labels=("what",)
    )
    for what, count in seen.intake.overflows.items():
        overflows.add_metric((what,), count)
    yield overflows
    if seen.spool is None:
        return
    yield _gauge(
        "per_agent_spool_healthy", "1 while the spool can be written.", float(not seen.spool.trouble)
    )
    yield _gauge(
        "per_agent_seconds_since_commit",
        "Since something was last changed on the disk.",
        seen.spool.idle_seconds,
    )
    commits = CounterMetricFamily("per_agent_spool_commits", "Commits since the start, one fsync each.")
    commits.add_metric((), seen.spool.commits)
    yield commits


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value)


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], seen: Distribution) -> None:
    bounds = [*map(str, seen.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, map(float, seen.cumulative()), strict=True)), seen.total)
