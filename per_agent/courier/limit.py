"""How many requests may be under way to one destination: as many as help it, found out by trying.

Context. What an upstream can do at once is not known, and changes. Too few requests under way leave it idle, at
100 ms of latency a request at a time is ten events in a second; too many make all of them slow, or are refused.

Choice. Additive increase, multiplicative decrease, after a slow start: the limit doubles with each round, until
there is a first sign of trouble, and grows by a step from then on. A refusal (429, 503, a timeout, a failed
connection) halves it, and where it was refused it comes back to only after a while. So does latency, but only
where it is the limit's doing: upstreams get slower for reasons of their own, and then fewer requests help nobody.
So a round that is slow is followed by one with half as many; when that is as slow, the limit was not at fault:
it is what it was, and the latency is the new normal.

A round is judged by its median: requests that open a connection take longer, and an upstream has its moods. The
two thresholds belong together: an upstream that does K requests at once and lets others wait is slow, by the first,
from 1.7 K on, and half as many then take 1/1.7 of the time, which is below the second. Above that one the half would
cost more than a sixth of the throughput, which no latency is worth.
"""

import math
from typing import Final

FIRST: Final = 8
"""Requests that may be under way at first."""

_ROUND: Final = 2  # answers for each request that may be under way, in one round
_LEAST_ROUND: Final = 16  # answers; fewer say nothing
_SHORTEST_ROUND: Final = 0.1  # seconds; in a shorter time whoever has the CPU decides how slow a round is
_SLOW: Final = 1.7  # times the smallest latency, from which on a round is slow
_SLACK: Final = 0.010  # seconds more: what the threads of a busy process wait for each other
_FELL: Final = 0.6  # of the latency of a slow round, below which that of half as many has fallen
_LEAST: Final = 4  # what latency alone brings the limit down to
_PATIENCE: Final = 50  # rounds just below what was too much, until it is tried again
_STEPS: Final = 32  # that the additive increase takes from nothing to all


class Limit:
    """The limit of one destination, of which *most* is the highest. For one thread, but for what is read only.

    *at* is now, on the monotonic clock.

    Attributes:
        now: how many requests may be under way.
        round: what is sent now belongs to this round; to be given back with its answer.
        wanted: whether more would have been sent in it than might be; for the one who sends to say.
    """

    def __init__(self, most: int, at: float) -> None:
        self.now = min(FIRST, most)
        self.round = 0
        self.wanted = False
        self._most = most
        self._step = max(1, most // _STEPS)
        self._doubles = True
        self._too_much: float = math.inf
        self._held = 0  # rounds for which it was held below that
        self._normal = math.inf  # seconds: the smallest latency
        self._begun_at = at
        self._seconds: list[float] = []
        self._suspect: tuple[int, float] | None = None  # a slow round's limit and latency

    def answered(self, sent_in: int, seconds: float, at: float) -> None:
        """A request of the round *sent_in* was answered after *seconds*."""
        if sent_in != self.round or self._most == 1:
            return
        self._seconds.append(seconds)
        if (
            len(self._seconds) >= max(self.now * _ROUND, _LEAST_ROUND)
            and at - self._begun_at >= _SHORTEST_ROUND
        ):
            self._judge(sorted(self._seconds)[len(self._seconds) // 2], at)

    def refused(self, at: float) -> None:
        """The destination did not take what was asked of it, or not in time."""
        self._be_too_much(self.now)
        self._begin(max(1, self.now // 2), at)

    def _judge(self, seconds: float, at: float) -> None:
        if self._suspect is not None:
            suspect, slow = self._suspect
            if seconds > slow * _FELL:
                self._normal = seconds
                self._begin(suspect, at)
                return
            self._be_too_much(suspect)
        self._normal = min(self._normal, seconds)
        if seconds > self._normal * _SLOW + _SLACK and self.now > _LEAST:
            suspect = self.now
            self._begin(max(_LEAST, suspect // 2), at)
            self._suspect = (suspect, seconds)
        else:
            self._begin(self._grown() if self.wanted else self.now, at)

    def _grown(self) -> int:
        grown = min(self._most, self.now * 2 if self._doubles else self.now + self._step)
        if grown < self._too_much:
            return grown
        self._held += 1
        if self._held > _PATIENCE:
            self._too_much, self._held = math.inf, 0
            return grown
        return max(self.now, int(self._too_much) - 1)

    def _be_too_much(self, limit: int) -> None:
        self._doubles = False
        self._too_much, self._held = limit, 0

    def _begin(self, limit: int, at: float) -> None:
        """Begin a round with this *limit*."""
        self._begun_at = at
        self.now = limit
        self.round += 1
        self.wanted = False
        self._seconds.clear()
        self._suspect = None
