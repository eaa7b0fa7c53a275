"""How long requests took, by endpoint and by the class of their status: counted in the hot path, told at a scrape."""

from collections.abc import Iterator
from typing import Final

from per_agent.histogram import Distribution, Histogram

SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Bounds: from what handing an event over takes to what waiting for a disk or an upstream may."""


class RequestTimes:
    """The requests of one sidecar. Belongs to the event loop's thread, and so needs no lock.

    The endpoints are those that `observe` is called with: labels, a few, never a path that a client made up.
    """

    def __init__(self) -> None:
        self._times: dict[tuple[str, int], Histogram] = {}

    def observe(self, endpoint: str, status: int, seconds: float) -> None:
        """A request of *endpoint* was answered with *status* (0: its client went away first) after *seconds*."""
        key = (endpoint, status // 100)
        times = self._times.get(key)
        if times is None:
            times = self._times[key] = Histogram(SECONDS)
        times.observe(seconds)

    def look(self) -> Iterator[tuple[str, str, Distribution]]:
        """Endpoint, class of status (`2xx`, or `gone`), and how long they took."""
        for (endpoint, kind), times in list(self._times.items()):
            yield endpoint, f"{kind}xx" if kind else "gone", times.look()
