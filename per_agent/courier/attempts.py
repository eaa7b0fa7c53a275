"""How the attempts at one destination went: counted by what went wrong, and timed.

Why an event must be offered again is said in words, for people; metrics need a few kinds. The words begin as
`Upstream` writes them, the same for every destination that speaks HTTP; a test holds that ground.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from per_agent.courier.health import Condition
from per_agent.histogram import Distribution, Histogram

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds for the time of an exchange: from a Unix socket's to the longest that one may take by default."""
_EVENTS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
_STATUS: Final = re.compile(r"HTTP (\d{3}): ")
_OTHERS: Final = ("halted", "refused_uncertain")
_NAMED: Final = frozenset({"408", "425", "429", "500", "502", "503", "504"})

Trouble = Literal["retry", "halted", "refused_uncertain"]


def kind(words: str) -> str:
    """One of a few kinds for the *words* of a `Retry`."""
    answered = _STATUS.match(words)
    if answered is not None:
        status = answered[1]
        return f"http_{status}" if status in _NAMED else f"http_{status[0]}xx"
    for beginning, named in (
        ("not sent: ", "not_sent"),
        ("sent, no answer: ", "no_answer"),
        ("answered, and a look-up failed: ", "look_up"),
        ("a defect in per_agent: ", "defect"),
    ):
        if words.startswith(beginning):
            return named
    return "other"


def writable(words: str) -> str:
    """*words* of a destination as they can be kept: without what has no UTF-8 form."""
    return words.encode(errors="replace").decode()


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """How delivering to one destination goes, at one moment.

    Attributes:
        retries: offers of an event that are to be repeated since the agent started, by kind: `not_sent`,
            `no_answer`, `look_up`, `http_429` and other statuses, `halted`, `refused_uncertain`, `defect`, `other`.
        seconds: how long attempts took.
        events: how many events were offered in each attempt.
        oldest: since when something that is stored has been pending, in epoch seconds; None where nothing is
            known to be. Of parked events: since when they are parked.
        counts_on_arrival: whether it counts events when they reach it; see `Destination`.
        idle_seconds: since an event was last delivered, or since the agent started.
        concurrency: how many requests may be under way now; see `courier.limit`.
    """

    condition: Condition
    retries: dict[str, int]
    seconds: Distribution
    events: Distribution
    oldest: float | None
    counts_on_arrival: bool
    idle_seconds: float
    concurrency: int

    @property
    def no_answer(self) -> int:
        """Offers of an event that were sent, or begun to be, and not answered: each may have been taken."""
        return self.retries.get("no_answer", 0)


class Attempts:
    """The counters of one destination. For the courier's thread, but for `look` and what is read only."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._retries: Counter[str] = Counter()
        self._seconds = Histogram(SECONDS)
        self._events = Histogram(_EVENTS)
        self._delivered_at = clock()

    def ended(self, events: int, seconds: float) -> None:
        """An attempt with *events* took *seconds*."""
        self._seconds.observe(seconds)
        self._events.observe(events)

    def delivered(self) -> None:
        """An event was delivered."""
        self._delivered_at = self._clock()

    def failed(self, trouble: Trouble, words: str = "") -> None:
        """An event is to be offered again."""
        self._retries[kind(words) if trouble == "retry" else trouble] += 1

    @property
    def retries(self) -> int:
        """Offers of an event that met passing trouble of the destination."""
        return sum(count for kind, count in dict(self._retries).items() if kind not in _OTHERS)

    @property
    def no_answer(self) -> int:
        """As `Delivery.no_answer`."""
        return self._retries["no_answer"]

    def look(
        self, condition: Condition, oldest: float | None, concurrency: int, *, counts_on_arrival: bool
    ) -> Delivery:
        return Delivery(
            condition=condition,
            retries=dict(self._retries),
            seconds=self._seconds.look(),
            events=self._events.look(),
            oldest=oldest,
            counts_on_arrival=counts_on_arrival,
            idle_seconds=max(0.0, self._clock() - self._delivered_at),
            concurrency=concurrency,
        )
