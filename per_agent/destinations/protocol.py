"""What the courier asks of a destination, and all that it knows of one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from per_agent.destinations.outcome import Outcome
from per_agent.event import Event


class Destination(Protocol):
    """One configured upstream.

    Threads: `send` and `probe` are called from several sender threads at once, at most `concurrency` of
    them. Forks: a destination made before a fork must work in the child without sharing a connection.
    """

    name: str
    """The lane's name in the spool: stable over restarts, unique within an agent."""
    takes: frozenset[type[Event]]
    """The kinds of event that go to this destination."""
    batch: int
    """The most events that one `send` takes; 1 where the upstream has no batch call."""
    concurrency: int
    """The most `send` calls that may be under way at once."""
    counts_on_arrival: bool
    """Whether the upstream counts an event when it arrives, because it takes no time: then a late one is counted
    in another period than it happened. False where the event's own time goes along, however far: also where
    it is only handed on."""

    def open(self, data_dir: Path) -> None:
        """Get ready for this process: called before the first `send`, again after a fork.

        *data_dir* is the agent's folder, where a destination may keep files of its own.
        """
        ...

    def send(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Offer 1 to `batch` *events* once: one outcome for each, in their order.

        Never raises for what the network or the upstream did: the outcome says it. Returns within a
        bounded time. Sends each event under its own identifier, the same on every attempt.
        """
        ...

    def probe(self, key: str) -> bool:
        """Whether the events that were parked under *key* may go on. Never raises for what the network did."""
        ...

    def parking_keys(self, event: Event) -> Sequence[str]:
        """The keys under which `send` could park *event*, so that those known to wait need not be offered."""
        ...

    def close(self) -> None:
        """Give back connections. `send` may be called again afterwards, and opens new ones."""
        ...
