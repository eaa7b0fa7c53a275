"""Whose fault a refusal is that may as well concern everybody: the event's own, or the destination's.

A refusal in words that nobody documented is tried again, and it speaks against the event only where others go
through. Context: an upstream in trouble may well answer 400 to all, begin and end with it while requests are
under way, and do it again a minute later. Choice: only refusals count, not the attempts that a timeout or a 503
ended; and only those of offers that were sent when another event, offered after the first refusal, had been
delivered, and none had been refused since that nothing speaks against. When it turns out that all are refused,
what was counted counts no more. Given up: an upstream half of whose backends refuse may refuse one event that
often by chance. It is then a dead letter, and not lost.
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

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


class Offer(NamedTuple):
    """One offer of some events.

    Attributes:
        number: in the order in which they were sent, from 1 on.
        went: the last one of which something was known to be delivered when this one was sent.
    """

    number: int
    went: int


class Refusals:
    """What the offers to one destination say about a refusal. For the courier's thread."""

    def __init__(self) -> None:
        self._offers = 0
        self._went = 0  # the last offer of which something was delivered
        self._unclear = 0  # the last offer of which an event was refused that nothing speaks against

    def offered(self) -> Offer:
        """An offer is sent."""
        self._offers += 1
        return Offer(self._offers, self._went)

    def answered(self, offer: Offer, outcomes: Sequence[Outcome]) -> None:
        """These *outcomes* came of this *offer*."""
        if Delivered() in outcomes:
            self._went = max(self._went, offer.number)

    def judge(self, item: Item, offer: Offer, enough: int) -> Verdict:
        """*item* of this *offer* was refused; *enough* refusals of one event tell why."""
        if not item.refusals:
            # Others of the same offer that were delivered testify, too.
            item.refused_since = offer.number - 1 if self._went == offer.number else self._offers
        item.refusals += 1
        if item.refused_since < offer.went > self._unclear:
            item.refused_alone += 1
            return Verdict.EVENT if item.refused_alone + 1 >= enough else Verdict.AGAIN
        if self._went != offer.number:
            self._unclear = max(self._unclear, offer.number)
        if item.refusals < enough:
            return Verdict.AGAIN
        item.refused_alone, item.refused_since = 0, self._offers
        return Verdict.ALL
