"""What the parked events of one destination wait for, and when to look whether they may go on."""

import itertools
from collections.abc import Callable, Iterator
from typing import Final

from per_agent.settings import DeliverySettings

TROUBLED: Final = "trouble"
"""The key of events that keep failing while others are delivered: time alone lets them go on."""


class ParkingLot:
    """The keys that events are parked under. Times are monotonic."""

    def __init__(self, settings: DeliverySettings, clock: Callable[[], float], lookers: int) -> None:
        self._settings = settings
        self._clock = clock
        self._lookers = lookers  # looks that may be under way at once
        self._due: dict[str, float] = {}
        self._since: dict[str, float] = {}
        self._looking: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._due

    def __bool__(self) -> bool:
        return bool(self._due)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._due))

    @property
    def oldest(self) -> float | None:
        """Since when something has been parked, in epoch seconds."""
        return min(tuple(self._since.values()), default=None)

    def add(self, key: str, since: float) -> bool:
        """Events wait for *key*, *since* then (epoch seconds). True when none did before."""
        self._since[key] = min(since, self._since.get(key, since))
        if key in self._due:
            return False
        self._wait(key)
        return True

    def tune(self, settings: DeliverySettings) -> None:
        """Look as often as *settings* say, from the next look on."""
        self._settings = settings

    def looked(self, key: str, *, may_go_on: bool) -> None:
        """A look at *key* was answered."""
        self._looking.discard(key)
        if may_go_on:
            self._due.pop(key, None)
            self._since.pop(key, None)
        else:
            self._wait(key)

    def due(self) -> list[str]:
        """The keys to look at now; they count as being looked at."""
        now = self._clock()
        free = self._lookers - len(self._looking)
        keys = (key for key, due in self._due.items() if due <= now and key not in self._looking)
        found = list(itertools.islice(keys, max(0, free)))
        self._looking.update(found)
        return found

    def next_look_in(self) -> float | None:
        """Seconds until the next key is due; None when none will be by time alone."""
        now = self._clock()
        waits = (max(0.0, due - now) for key, due in self._due.items() if key not in self._looking)
        return min(waits, default=None)

    def _wait(self, key: str) -> None:
        every = self._settings.backoff_max if key == TROUBLED else self._settings.probe_interval
        self._due[key] = self._clock() + every
