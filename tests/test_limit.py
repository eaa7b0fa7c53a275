"""How many requests are under way: as many as help the destination, against simulated upstreams and a real one."""

import heapq
import itertools
import math
import os
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage import QUICK
from waiting import until

from per_agent import Agent, Per
from per_agent.courier.limit import FIRST, Limit

Latency = Callable[[int, float], float | None]
"""Seconds that an answer takes, of how many are under way and of when; None: it is refused."""


class Simulation:
    """An upstream with this *latency*, and somebody who always has more to send. Time is the simulation's own.

    As with a destination's health: trouble counts once for all that met it together, and then a single request goes
    first until one is answered.
    """

    def __init__(self, most: int, latency: Latency) -> None:
        self.now = 0.0
        self.limit = Limit(most, 0.0)
        self.answers = 0
        self.refusals = 0
        self.limits: list[int] = []  # after each answer
        self._latency = latency
        self._numbers = itertools.count()
        self._epoch = 0
        self._well = True
        self._under_way: list[tuple[float, int, int, int, float | None]] = []

    def answer(self, count: int, *, wanted: bool = True) -> "Simulation":
        """Let *count* more answers come."""
        for _ in range(count):
            while len(self._under_way) < (self.limit.now if self._well else 1):
                took = self._latency(len(self._under_way) + 1, self.now)
                due = self.now + (0.001 if took is None else took)
                heapq.heappush(
                    self._under_way, (due, next(self._numbers), self.limit.round, self._epoch, took)
                )
            self.limit.wanted |= wanted
            self.now, _, sent_in, epoch, took = heapq.heappop(self._under_way)
            self.answers += 1
            if took is not None:
                self.limit.answered(sent_in, took, self.now)
                self._well = self._well or epoch == self._epoch
            else:
                self.refusals += 1
                if epoch == self._epoch:
                    self._epoch += 1
                    if self._well:
                        self.limit.refused(self.now)
                    self._well = False
            self.limits.append(self.limit.now)
        return self

    def till(self, limit: int, within: int) -> int:
        """The answers until the limit is as high as *limit*."""
        for taken in range(within):
            if self.limit.now >= limit:
                return taken
            self.answer(1)
        raise AssertionError(f"still at {self.limit.now} after {within} answers")


def constant(seconds: float) -> Latency:
    return lambda _under_way, _now: seconds


def queueing(capacity: int, seconds: float) -> Latency:
    """So many at once; further ones wait for them."""
    return lambda under_way, _now: seconds * max(1.0, under_way / capacity)


def refusing(capacity: int, seconds: float) -> Latency:
    return lambda under_way, _now: seconds if under_way <= capacity else None


def usual(limits: list[int]) -> float:
    return sum(limits) / len(limits)


@pytest.mark.parametrize("most", [1, 3, FIRST, 33, 64, 256])
@pytest.mark.parametrize("seconds", [0.0001, 0.1, 5.0])
def test_an_upstream_that_bears_it_gets_all_that_is_configured_soon(most: int, seconds: float) -> None:
    it = Simulation(most, constant(seconds))
    assert it.limit.now == min(FIRST, most)
    # Rounds of twice as many answers as requests, and what was under way before each; or of a tenth of a second.
    assert it.till(most, 8 * most + 20 * int(0.1 / seconds) * most) >= 0
    it.answer(1000)
    assert it.limit.now == most


@pytest.mark.parametrize("capacity", [8, 10, 20, 50, 100])
def test_where_more_only_wait_for_each_other_there_are_soon_not_many_more_than_help(capacity: int) -> None:
    it = Simulation(256, queueing(capacity, 0.1)).answer(20_000)
    late = it.limits[5_000:]
    assert max(late) <= 1.8 * capacity + 256 // 32
    assert usual(late) >= 0.8 * capacity


@pytest.mark.parametrize("capacity", [1, 5, 8, 20, 100])
def test_what_refuses_more_than_it_bears_is_seldom_asked_for_more(capacity: int) -> None:
    it = Simulation(256, refusing(capacity, 0.1)).answer(20_000)
    late = it.limits[5_000:]
    assert max(late) <= capacity + 256 // 32
    assert usual(late) >= 0.6 * capacity
    assert it.refusals <= 0.05 * it.answers if capacity > 1 else it.answers


def test_an_upstream_that_gets_slower_for_reasons_of_its_own_is_not_asked_for_less() -> None:
    it = Simulation(64, lambda _under_way, now: 0.1 if now < 10 else 0.4)
    it.till(64, 2000)
    it.answer(20_000)
    assert it.now > 20
    assert usual(it.limits[-10_000:]) > 60


def test_latencies_that_vary_are_no_trouble() -> None:
    seed = int(os.environ.get("PER_AGENT_TEST_SEED", random.randrange(2**32)))
    print(f"PER_AGENT_TEST_SEED={seed}")
    chance = random.Random(seed)
    it = Simulation(64, lambda _under_way, _now: chance.lognormvariate(math.log(0.05), 0.8)).answer(20_000)
    assert usual(it.limits[5_000:]) > 48


def test_requests_that_open_a_connection_take_longer_and_are_no_trouble() -> None:
    opened: set[int] = set()

    def latency(under_way: int, _now: float) -> float:
        first = under_way not in opened
        opened.add(under_way)
        return 0.3 if first else 0.1

    assert Simulation(64, latency).till(64, 800)


def test_after_an_outage_it_is_soon_what_it_was() -> None:
    it = Simulation(64, lambda _under_way, now: None if 5 < now < 6 else 0.1)
    it.till(64, 2000)
    it.answer(int(64 * (5.2 - it.now) / 0.1))
    assert it.refusals
    assert 1 < it.limit.now <= 32, "halved, and not by each failure of the outage"
    assert it.till(60, 6000)


def test_what_was_too_much_is_tried_again_after_a_while() -> None:
    it = Simulation(64, lambda under_way, now: 0.1 if under_way <= 16 or now > 60 else None)
    it.answer(5000)
    assert it.now < 60
    assert it.limit.now <= 18
    assert it.till(64, 40_000)


def test_who_sends_less_than_may_be_sent_learns_nothing_from_it() -> None:
    it = Simulation(64, constant(0.1)).answer(500, wanted=False)
    assert it.limit.now == FIRST


@given(
    st.integers(1, 256),
    st.lists(st.tuples(st.booleans(), st.integers(-1, 1), st.floats(0, 1e6), st.floats(0, 1)), max_size=300),
)
def test_whatever_happens_it_is_between_one_and_all(
    most: int, told: list[tuple[bool, int, float, float]]
) -> None:
    limit, now = Limit(most, 0.0), 0.0
    for well, shift, seconds, later in told:
        now += later
        limit.wanted = True
        if well:
            for _ in range(20):
                limit.answered(limit.round + shift, seconds, now)
        else:
            limit.refused(now)
        assert 1 <= limit.now <= most


# A real upstream


def concurrency(agent: Agent) -> int:
    found = agent.status()["destinations"]["per"]["concurrency"]
    delivery = agent.statistics().destinations["per"].delivery
    assert delivery is not None
    assert isinstance(found, int)
    return found


def test_an_upstream_that_answers_slowly_soon_gets_many_requests_at_once(tmp_path, upstream) -> None:
    upstream.rule(delay=0.1, counts=True, status=200, body={"ok": True})
    with Agent(tmp_path, [Per("token", url=upstream.url, concurrency=32)]) as agent:
        assert concurrency(agent) == FIRST
        for n in range(500):
            agent.add_activity("acme", f"u-{n}", "active")
        until(lambda: concurrency(agent) == 32)
        assert upstream.score().requests < 400
        assert agent.flush(30)
    assert Counter(upstream.score().users) == Counter(f"u-{n}" for n in range(500))
    assert upstream.score().connections <= 32


def test_an_upstream_that_refuses_more_than_it_bears_gets_about_what_it_bears(tmp_path, upstream) -> None:
    upstream.rule(capacity=5, delay=0.02, counts=True, status=200, body={"ok": True})
    seen: list[int] = []
    with Agent(tmp_path, [Per("token", url=upstream.url, concurrency=32)], delivery=QUICK) as agent:
        for n in range(600):
            agent.add_activity("acme", f"u-{n}", "active")
        until(lambda: seen.append(concurrency(agent)) or agent.books()["per"].delivered == 600)
    score = upstream.score()
    assert Counter(score.users) == Counter(f"u-{n}" for n in range(600)), "each once"
    assert 0 < score.statuses["503"] < 60
    assert max(seen[len(seen) // 2 :]) <= 7
    assert 2.5 < sum(seen) / len(seen) < 6
