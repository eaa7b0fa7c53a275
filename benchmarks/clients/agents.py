"""per_agent itself, towards the upstreams that it is measured with."""

from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks.clients.client import Client, Place


def _agent(destination: Callable[[Place], Any], **intake: Any) -> Callable[[Place], Client]:
    def make(place: Place) -> Client:
        from per_agent import Agent, IntakeSettings

        if place.roomy:
            intake["overflow"] = "block"
        settings = IntakeSettings(**intake)
        agent = Agent(place.folder, [destination(place)], intake=settings)
        agent.start()
        return Client(agent.add_activity, lambda: _flush(agent))

    return make


def _flush(agent: Any) -> None:
    if not agent.flush(90):
        raise TimeoutError(f"not delivered within 90 s: {agent.status()['destinations']}")


def _sidecar(place: Place) -> Any:
    from per_agent import Sidecar

    return Sidecar(place.url, "token")


def _ledger(_: Place) -> Any:
    from per_agent import Ledger

    return Ledger()


def _nowhere(_: Place) -> Any:
    return Nowhere()


class Nowhere:
    """An upstream that takes every batch at once and forgets it."""

    name, batch, concurrency, counts_on_arrival = "nowhere", 500, 1, False

    def __init__(self) -> None:
        from per_agent import Activity, MeterEvent
        from per_agent.destinations.outcome import Delivered

        self.takes = frozenset({Activity, MeterEvent})
        self._delivered = Delivered()
        self.count = 0

    def open(self, data_dir: Path) -> None: ...

    def send(self, events: Sequence[Any]) -> Sequence[Any]:
        self.count += len(events)
        return [self._delivered] * len(events)

    def probe(self, key: str) -> bool:  # noqa: ARG002  (the protocol's own parameter)
        return True

    def parking_keys(self, event: Any) -> Sequence[str]:  # noqa: ARG002  (the protocol's own parameter)
        return ()

    def close(self) -> None: ...


def away() -> Any:
    """An upstream that is down for as long as anybody asks."""
    from per_agent import MemoryDestination
    from per_agent.destinations.outcome import Retry

    return MemoryDestination(repeat(Retry("down", after=300)), name="nowhere", batch=500)


def _agent_to_disk(place: Place) -> Client:
    from per_agent import Agent, IntakeSettings

    agent = Agent(place.folder, [away()], intake=IntakeSettings(overflow="block"))
    agent.start()

    def flush() -> None:
        if not agent.add_activity("acme", "user-last", "active-users").stored(60):
            raise TimeoutError("not stored within 60 s")

    return Client(agent.add_activity, flush)


MAKERS: dict[str, Callable[[Place], Client]] = {
    "per_agent": _agent(_sidecar),
    "per_agent, no journal": _agent(_sidecar, journal=False),
    "per_agent, embedded ledger": _agent(_ledger),
    "per_agent, to nowhere": _agent(_nowhere),
    "per_agent, to the disk": _agent_to_disk,
}
