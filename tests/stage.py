"""An agent with every kind of HTTP destination, each behind a proxy that can misbehave, and a check that all arrived."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from sidecar_double import SidecarDouble
from unruly import Fault, UnrulyProxy
from upstream import UpstreamServer

from per_agent import Agent, DeliverySettings, PaymentKit, Per
from per_agent.books import Books
from per_agent.destinations.sidecar import Sidecar

QUICK = DeliverySettings(
    backoff_initial=0.02, backoff_max=0.1, retry_after_max=0.1, probe_interval=0.05, refusal_attempts=3
)
NAMES = ("per", "payment_kit", "sidecar")


class Stage:
    """An agent with every kind of HTTP destination, each behind an unruly proxy, and what their upstreams counted."""

    def __init__(self, folder: Path, upstream: UpstreamServer, double: SidecarDouble) -> None:
        self.folder = folder
        self.upstream = upstream
        self.double = double
        self.proxies = {
            "per": UnrulyProxy(upstream.port),
            "payment_kit": UnrulyProxy(upstream.port),
            "sidecar": UnrulyProxy(double.port),
        }
        self.activities: list[str] = []
        self.meter_events: list[str] = []
        self._numbers = itertools.count()

    def agent(self, timeout: float = 0.4, scheme: str = "http", **options: Any) -> Agent:
        """An agent on the stage's folder."""
        urls = {name: proxy.url.replace("http", scheme, 1) for name, proxy in self.proxies.items()}
        destinations = [
            Per("token-1", "token-2", urls["per"], timeout=timeout),
            PaymentKit(urls["payment_kit"], "key-1", timeout=timeout),
            Sidecar(urls["sidecar"], "sidecar-token-1", timeout=timeout),
        ]
        return Agent(self.folder / "data", destinations, **({"delivery": QUICK} | options))

    def fault(self, fault: Fault | None) -> None:
        """From now on every upstream has this *fault*, or none."""
        for proxy in self.proxies.values():
            proxy.fault, proxy.met = fault, 0

    def record(self, agent: Agent, count: int) -> None:
        """Record *count* of each kind of event."""
        for n in itertools.islice(self._numbers, count):
            agent.add_activity("acme", f"u-{n}", "active")
            self.activities.append(f"u-{n}")
            self.meter_events.append(agent.add_meter_event("api.calls", customer_id="cus-1", value=1).id)

    def met(self, times: int = 2) -> bool:
        """Whether each upstream's fault was met so often."""
        return all(proxy.met >= times for proxy in self.proxies.values())

    def check(self, agent: Agent) -> None:
        """All that was recorded arrived, once where that can be told, and the books say so."""
        recorded = len(self.activities)
        expected = {"per": recorded, "payment_kit": recorded, "sidecar": 2 * recorded}
        assert agent.books() == {name: Books(count, count) for name, count in expected.items()}
        score = self.upstream.score()
        assert set(score.users) == set(self.activities)
        assert Counter(score.identifiers) == Counter(self.meter_events)
        assert set(score.offered) == {
            *self.meter_events,
            *(f"acme/{user}/active" for user in self.activities),
        }
        assert len(self.double.events) == 2 * recorded
        assert set(self.meter_events) <= self.double.events.keys()


def troubles(agent: Agent) -> dict[str, Counter[str]]:
    """For each destination, how often what went wrong, as an operator is told."""
    found = {}
    for name, each in agent.statistics().destinations.items():
        assert each.delivery is not None
        assert agent.status()["destinations"][name]["no_answer"] >= each.delivery.no_answer
        found[name] = Counter(each.delivery.retries) + Counter(parked=each.parked)
    return found
