"""Whose fault a refusal is that may as well concern everybody: the event's own, or the destination's.

A refusal in words that nobody documented is tried again, and it speaks against the event only where others go
through. Context: an upstream in trouble may well answer 400 to all, begin and end with it while requests are
under way, or do it again an hour later. Choice: what counts is the refusals themselves, not the attempts that
a timeout or a 503 ended, and only what was offered after an event's first refusal, or beside its last one, can
testify against it; when it turns out that all are refused, its refusals until then count no more. Given up: an
upstream half of whose backends refuse may refuse one event that often by chance. It is then a dead letter, and
not lost.
"""

from collections.abc import Sequence
from enum import Enum, auto

from per_agent.courier.window import Item
from per_agent.destinations import Delivered, Outcome


class Verdict(Enum):
    """What a refusal that is not certain leads to."""

    AGAIN = auto()
    """It is too early to tell: the event is to be tried again."""
    EVENT = auto()
    """The event is at fault: others went through meanwhile."""
    ALL = auto()
    """Every event is refused: it is trouble of the destination."""


class Refusals:
    """For the courier's thread. Offers are numbered in the order in which they were sent."""

    def __init__(self) -> None:
        self._offers = 0
        self._went = 0  # the last offer of which something was delivered

    def offered(self) -> int:
        """An offer is sent. Returns its number."""
        self._offers += 1
        return self._offers

    def answered(self, offer: int, outcomes: Sequence[Outcome]) -> None:
        """These *outcomes* came of this *offer*."""
        if Delivered() in outcomes:
            self._went = max(self._went, offer)

    def judge(self, item: Item, offer: int, enough: int) -> Verdict:
        """*item* of this *offer* was refused; *enough* refusals in a row of these are enough to tell why."""
        if not item.refusals:
            item.refused_since = self._offers
        item.refusals += 1
        if item.refusals < enough:
            return Verdict.AGAIN
        if self._went > item.refused_since or self._went >= offer:
            return Verdict.EVENT if item.refusals - item.refused_like_all >= enough else Verdict.AGAIN
        item.refused_like_all = item.refusals
        item.refused_since = self._offers
        return Verdict.ALL
