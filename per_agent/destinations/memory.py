"""`MemoryDestination`: the shipped double. It plays a script of outcomes, then takes and keeps everything."""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from per_agent.destinations.outcome import Delivered, Outcome
from per_agent.event import Activity, Event, MeterEvent

_BOTH: Final[frozenset[type[Event]]] = frozenset({Activity, MeterEvent})


class MemoryDestination:
    """A destination without an upstream, for tests of an application and for ours.

    *script* holds one outcome for each event offered, in the order of offering; it may be endless
    (`itertools.repeat(Retry("down"))`). When it is over, every event is delivered. *probes* holds the answers
    to `probe` likewise; when it is over, the answer is True. Repeats are kept, so that a test can see them.
    """

    def __init__(
        self,
        script: Iterable[Outcome] = (),
        *,
        name: str = "memory",
        takes: frozenset[type[Event]] = _BOTH,
        batch: int = 100,
        concurrency: int = 1,
        counts_on_arrival: bool = False,
        probes: Iterable[bool] = (),
    ) -> None:
        self.name = name
        self.takes = takes
        self.batch = batch
        self.concurrency = concurrency
        self.counts_on_arrival = counts_on_arrival
        self._script = iter(script)
        self._probes = iter(probes)
        self._lock = threading.Lock()
        self._offered: list[Event] = []
        self._received: list[Event] = []
        self._probed: list[str] = []

    @property
    def received(self) -> list[Event]:
        """The events that were delivered, in their order."""
        with self._lock:
            return list(self._received)

    @property
    def offered(self) -> list[Event]:
        """Every event at every attempt, whatever became of it."""
        with self._lock:
            return list(self._offered)

    @property
    def probed(self) -> list[str]:
        """The keys that were probed."""
        with self._lock:
            return list(self._probed)

    def open(self, data_dir: Path) -> None:  # noqa: ARG002  (the protocol's own parameter)
        self._lock = threading.Lock()  # after a fork, the inherited one may be held by a thread that is gone

    def send(self, events: Sequence[Event]) -> Sequence[Outcome]:
        with self._lock:
            return [self._play(event) for event in events]

    def _play(self, event: Event) -> Outcome:
        self._offered.append(event)
        outcome = next(self._script, Delivered())
        if isinstance(outcome, Delivered):
            self._received.append(event)
        return outcome

    def probe(self, key: str) -> bool:
        with self._lock:
            self._probed.append(key)
            return next(self._probes, True)

    def parking_keys(self, event: Event) -> Sequence[str]:  # noqa: ARG002  (the protocol's own parameter)
        """None that could be told from an event: the script parks as it likes."""
        return ()

    def close(self) -> None:
        """Nothing to give back; what was received stays."""
