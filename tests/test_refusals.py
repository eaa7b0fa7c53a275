"""Refusals that are not certain: an event is at fault only where others go through, and outages do not count."""

from collections.abc import Callable
from pathlib import Path

import pytest

from per_agent import Agent, DeliverySettings, MemoryDestination
from per_agent.books import Books
from per_agent.courier.refusals import Offer, Refusals, Verdict
from per_agent.courier.window import Item
from per_agent.destinations import Delivered, Outcome, Refused, Retry
from per_agent.event import Activity, Event

QUICK = DeliverySettings(backoff_initial=0.01, backoff_max=0.05, probe_interval=0.02)
ENOUGH = 5
ODD = Refused("odd words", certain=False)


class Ground:
    """What is offered, and what becomes of it."""

    def __init__(self) -> None:
        self.refusals = Refusals()

    def event(self) -> Item:
        return Item(None, 0, Activity("id", "b", "u", "t", 1.0))  # type: ignore[arg-type]  # its block is not looked at

    def refused(self, item: Item, offer: Offer | None = None) -> Verdict:
        offer = offer or self.refusals.offered()
        self.refusals.answered(offer, [ODD])
        return self.refusals.judge(item, offer, ENOUGH)

    def delivered(self, offer: Offer | None = None) -> None:
        self.refusals.answered(offer or self.refusals.offered(), [Delivered()])


@pytest.fixture
def ground() -> Ground:
    return Ground()


def test_an_event_that_is_refused_often_enough_while_others_go_through_is_at_fault(ground: Ground) -> None:
    poison = ground.event()
    for _ in range(ENOUGH - 1):
        assert ground.refused(poison) is Verdict.AGAIN
        ground.delivered()
    assert ground.refused(poison) is Verdict.EVENT


def test_so_is_one_that_is_left_alone_after_others_went_through(ground: Ground) -> None:
    poison = ground.event()
    ground.refused(poison)
    ground.delivered()
    assert [ground.refused(poison) for _ in range(4)] == [Verdict.AGAIN] * 3 + [Verdict.EVENT]


def test_several_at_fault_do_not_shield_each_other(ground: Ground) -> None:
    poison = [ground.event() for _ in range(3)]
    for each in poison:
        ground.refused(each)
    ground.delivered()
    for _ in range(ENOUGH - 2):
        assert [ground.refused(each) for each in poison] == [Verdict.AGAIN] * 3
    assert [ground.refused(each) for each in poison] == [Verdict.EVENT] * 3


def test_others_of_the_same_batch_that_are_delivered_speak_against_it(ground: Ground) -> None:
    poison, batch = ground.event(), ground.refusals.offered()
    ground.refusals.answered(batch, [Delivered(), ODD])
    ground.refusals.judge(poison, batch, ENOUGH)
    assert [ground.refused(poison) for _ in range(4)][-1] is Verdict.EVENT


def test_where_every_event_is_refused_none_is_at_fault(ground: Ground) -> None:
    events = [ground.event() for _ in range(3)]
    verdicts = [ground.refused(each) for _ in range(20) for each in events]
    assert set(verdicts) == {Verdict.AGAIN, Verdict.ALL}
    assert verdicts.index(Verdict.ALL) == 3 * (ENOUGH - 1)


def test_what_was_answered_when_the_trouble_began_does_not_speak_against_an_event(ground: Ground) -> None:
    event, (first, beside) = ground.event(), (ground.refusals.offered(), ground.refusals.offered())
    ground.refused(event, first)
    ground.delivered(beside)
    assert [ground.refused(event) for _ in range(ENOUGH)][-1] is Verdict.ALL


def test_nor_does_what_goes_through_when_it_ends_while_the_last_try_is_under_way(ground: Ground) -> None:
    event = ground.event()
    for _ in range(ENOUGH - 1):
        ground.refused(event)
    last = ground.refusals.offered()
    ground.delivered()
    assert ground.refused(event, last) is Verdict.ALL
    ground.delivered()
    assert ground.refused(event) is Verdict.AGAIN, "what it was refused until then does not count any more"


def test_trouble_that_comes_back_does_not_add_up_to_a_fault_of_the_event(ground: Ground) -> None:
    event = ground.event()
    for _ in range(10):
        ground.refused(event)
        ground.delivered()
        for _ in range(4):
            assert ground.refused(ground.event()) is Verdict.AGAIN
            assert ground.refused(event) is not Verdict.EVENT


def test_when_all_are_refused_what_spoke_against_an_event_is_forgotten(ground: Ground) -> None:
    event = ground.event()
    ground.refused(event)
    ground.delivered()
    assert [ground.refused(event) for _ in range(ENOUGH - 2)] == [Verdict.AGAIN] * (ENOUGH - 2)
    ground.refused(ground.event())
    assert ground.refused(event) is Verdict.ALL
    ground.delivered()
    assert [ground.refused(event) for _ in range(ENOUGH - 1)] == [
        *[Verdict.AGAIN] * (ENOUGH - 2),
        Verdict.EVENT,
    ]


class Steered(MemoryDestination):
    """*say* has the outcome of an event, given how many were offered and delivered before."""

    def __init__(self, say: Callable[[Event, int, int], Outcome]) -> None:
        super().__init__(batch=1)
        self._say = say

    def _play(self, event: Event) -> Outcome:
        outcome = self._say(event, len(self._offered), len(self._received))
        self._offered.append(event)
        if isinstance(outcome, Delivered):
            self._received.append(event)
        return outcome


def test_after_a_long_outage_one_refusal_buries_no_event(tmp_path: Path) -> None:
    def say(event: Event, offered: int, delivered: int) -> Outcome:
        assert isinstance(event, Activity)
        if offered < 60:
            return Retry("down")
        if event.user_id == "odd" and not delivered:
            return Retry("still down, for this one")
        if event.user_id == "odd" and not refused:
            refused.append(event)
            return ODD
        return Delivered()

    refused: list[Event] = []
    destination = Steered(say)
    with Agent(tmp_path, [destination], delivery=QUICK) as agent:
        for user in ("odd", "well", "well, too"):
            agent.add_activity("acme", user, "active")
        assert agent.flush(30)
        assert agent.books()["memory"] == Books(3, 3)
    assert refused
    assert sum(event.id == refused[0].id for event in destination.offered) > ENOUGH
