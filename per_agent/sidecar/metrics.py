"""`GET /metrics`: what the agent and the sidecar know of themselves, for Prometheus.

Everything is read at the scrape, from counters that are kept anyway: no request and no event waits for a metric.

Decision. Prometheus takes a counter that falls for one that began again at zero, and adds all of it once more. So
the counters of events are the persisted books, which go on over restarts and crashes; what is only in memory
yet shows in gauges. They are not told before what earlier processes left was looked for, and they stand still
while books move from one spool to another. `dead` is a gauge: a dead letter that is sent again is not dead.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from per_agent.courier import Delivery
from per_agent.histogram import Distribution
from per_agent.sidecar.service import Service
from per_agent.version import version

_Destinations = Mapping[str, DestinationStatistics]
_Told = Sequence[tuple[str, str, Callable[[DestinationStatistics], float | None]]]

_STATES: Final = ("open", "retrying", "halted")
_COUNTERS: Final[_Told] = (
    ("accepted", "Events taken in and stored.", lambda each: each.stored.accepted),
    ("delivered", "Events that the destination has taken.", lambda each: each.stored.delivered),
    ("dropped", "Events given up by the overflow policy.", lambda each: each.stored.dropped),
    (
        "late",
        "Events that a destination which counts them when they arrive has taken more than an hour after they happened.",
        lambda each: each.late_total,
    ),
    (
        "period_crossed",
        "Events that such a destination has taken in another UTC month than they happened, and counts there.",
        lambda each: each.period_crossed_total,
    ),
)
_GAUGES: Final[_Told] = (
    ("events_pending", "Events to be delivered, parked ones included.", lambda each: each.books.pending),
    ("events_parked", "Pending events that wait for something other than time.", lambda each: each.parked),
    ("events_in_memory", "Pending events that are not on the disk yet.", lambda each: each.in_memory),
    (
        "events_dead",
        "Events that were refused for good, less those sent again; purged ones stay counted.",
        lambda each: each.stored.dead,
    ),
    ("dead_letters", "Dead letters that lie there.", lambda each: each.dead_letters),
)


def routes(service: Service) -> list[BaseRoute]:
    """The scrape's endpoint, in the text format or in OpenMetrics, as the client likes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service))
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)

    async def scrape(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    return [Route("/metrics", scrape, methods=["GET"])]


class _Collector(Collector):
    """One sidecar's metrics. For the event loop's thread."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._highest: dict[tuple[str, str], float] = {}

    def describe(self) -> list[Metric]:
        """Nothing: what there is shows at the scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        service = self._service
        seen = service.agent.statistics()
        ready = service.agent.unready is None and not service.draining
        yield InfoMetricFamily("per_agent_build", "Which per-agent this is.", {"version": version()})
        yield _gauge(
            "per_agent_start_time_seconds", "When it was started, in epoch seconds.", service.started_at
        )
        yield _gauge("per_agent_ready", "1 while it accepts and stores events.", ready)
        if seen.complete:
            yield from self._counters(seen.destinations)
        yield from _gauges(seen.destinations, time.time())
        deliveries = {
            name: each.delivery for name, each in seen.destinations.items() if each.delivery is not None
        }
        yield from _conditions(deliveries)
        yield from _attempts(deliveries)
        yield from _storage(seen, service.settings.spool.max_bytes)
        yield self._requests()

    def _counters(self, destinations: _Destinations) -> Iterator[Metric]:
        for name, words, of in _COUNTERS:
            family = CounterMetricFamily(f"per_agent_events_{name}", words, labels=("destination",))
            for destination, each in destinations.items():
                # While books move from an adopted spool into the agent's own, they are in neither.
                now = of(each)
                if now is None:
                    continue
                highest = max(now, self._highest.get((name, destination), 0))
                self._highest[name, destination] = highest
                family.add_metric((destination,), highest)
            yield family

    def _requests(self) -> Metric:
        family = HistogramMetricFamily(
            "per_agent_request_duration_seconds",
            "Requests to the sidecar, from their head to the end of the answer.",
            labels=("endpoint", "status"),
        )
        for endpoint, status, times in self._service.times.look():
            _add(family, (endpoint, status), times)
        return family


def _gauges(destinations: _Destinations, now: float) -> Iterator[Metric]:
    def age(each: DestinationStatistics) -> float | None:
        if not each.books.pending:
            return 0.0
        return None if each.oldest is None else max(0.0, now - each.oldest)

    oldest = "Age of the oldest pending event; 0 where nothing is pending."
    for name, words, of in (*_GAUGES, ("oldest_pending_seconds", oldest, age)):
        family = GaugeMetricFamily(f"per_agent_{name}", words, labels=("destination",))
        for destination, each in destinations.items():
            value = of(each)
            if value is not None:
                family.add_metric((destination,), value)
        yield family


def _conditions(deliveries: Mapping[str, Delivery]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "per_agent_destination_up",
        "1 while the destination takes events, 0 while it is paused after trouble.",
        labels=("destination",),
    )
    state = GaugeMetricFamily(
        "per_agent_destination_state",
        "1 for the state that the destination is in: halted is trouble that a person must heal.",
        labels=("destination", "state"),
    )
    failures = GaugeMetricFamily(
        "per_agent_destination_failures", "How often it failed in a row.", labels=("destination",)
    )
    idle = GaugeMetricFamily(
        "per_agent_seconds_since_delivery",
        "Since an event was last delivered, or since the start.",
        labels=("destination",),
    )
    concurrency = GaugeMetricFamily(
        "per_agent_destination_concurrency",
        "How many requests may be under way: as many as help the destination, up to what is configured.",
        labels=("destination",),
    )
    for name, each in deliveries.items():
        condition = each.condition
        up.add_metric((name,), condition.state == "open")
        for possible in _STATES:
            state.add_metric((name, possible), condition.state == possible)
        failures.add_metric((name,), condition.failures)
        idle.add_metric((name,), each.idle_seconds)
        concurrency.add_metric((name,), each.concurrency)
    yield from (up, state, failures, idle, concurrency)


def _attempts(deliveries: Mapping[str, Delivery]) -> Iterator[Metric]:
    retries = CounterMetricFamily(
        "per_agent_delivery_retries",
        "Offers of an event that are to be repeated, by what went wrong; no_answer: sent, and perhaps taken.",
        labels=("destination", "reason"),
    )
    seconds = HistogramMetricFamily(
        "per_agent_delivery_duration_seconds", "Attempts to deliver.", labels=("destination",)
    )
    events = HistogramMetricFamily(
        "per_agent_delivery_batch_events", "Events offered in one attempt.", labels=("destination",)
    )
    for name, each in deliveries.items():
        for reason, count in ({"not_sent": 0, "no_answer": 0} | each.retries).items():
            retries.add_metric((name, reason), count)
        _add(seconds, (name,), each.seconds)
        _add(events, (name,), each.events)
    yield from (retries, seconds, events)


def _storage(seen: Statistics, limit: int) -> Iterator[Metric]:
    yield _gauge(
        "per_agent_intake_waiting_events", "Events in the buffer before the spool.", seen.intake.waiting
    )
    overflows = CounterMetricFamily(
        "per_agent_intake_overflows",
        "Events for which the buffer or the spool was full, by what was done.",
        labels=("outcome",),
    )
    for outcome, count in seen.intake.overflows.items():
        overflows.add_metric((outcome,), count)
    yield overflows
    yield _gauge(
        "per_agent_adopted_spools", "Spools of dead processes that it looks after.", len(seen.adopted)
    )
    if seen.spool is None:
        return
    used = GaugeMetricFamily("per_agent_spool_bytes", "Bytes on the disk.", labels=("spool",))
    used.add_metric(("own",), seen.spool.bytes_used)
    used.add_metric(("adopted",), sum(each.bytes_used for each in seen.adopted))
    yield used
    yield _gauge("per_agent_spool_limit_bytes", "The most that the agent's own spool may hold.", limit)
    well = seen.spool.trouble is None
    yield _gauge("per_agent_spool_up", "1 while the agent's own spool takes events.", well)
    yield _gauge(
        "per_agent_seconds_since_commit",
        "Since something was last changed on the disk, or since the start.",
        seen.spool.idle_seconds,
    )
    yield CounterMetricFamily(
        "per_agent_spool_commits", "Commits since the start, one fsync each.", seen.spool.commits
    )


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value)


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], seen: Distribution) -> None:
    bounds = [*map(str, seen.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, map(float, seen.cumulative()), strict=True)), seen.total)
