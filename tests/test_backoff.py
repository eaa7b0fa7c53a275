"""The arithmetic of waiting: bounds that hold for every input, and a sleep that lets go."""

import random
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
import tenacity
from hypothesis import example, given
from hypothesis import strategies as st

from per_agent.backoff import MAX_RETRY_AFTER, Backoff, retry_after

NOW = 1_700_000_000.0
seconds = st.floats(min_value=0.001, max_value=3600.0)


# Retry-After


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        ("  7 ", 7.0),
        ("1.5", 1.5),
        ("00000000000000000000042", 42.0),
        ("301", MAX_RETRY_AFTER),
        ("9" * 400, MAX_RETRY_AFTER),
        ("9" * 100_000, MAX_RETRY_AFTER),
        ("-1", None),
        ("-0", None),
        ("+5", None),
        ("1e9", None),
        ("nan", None),
        ("inf", None),
        ("5 seconds", None),
        ("5, 5", None),
        ("٣", None),  # an Arabic three, which int() would take
        ("²", None),
        ("1_0", None),
        ("\x00", None),
        ("soon " * 10_000, None),
        ("Tue, 99 Foo 2023 99:99:99 GMT", None),
        ("Tue, 14 Nov 2023 22:13:20 +9999999999", None),
    ],
)
def test_a_header_is_seconds_within_bounds_or_nothing(header, expected):
    assert retry_after(header, NOW) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tuesday, 14-Nov-23 22:14:20 GMT", 60.0),
        ("Tue Nov 14 22:14:20 2023", 60.0),
        ("Tue, 14 Nov 2023 22:14:20 -0000", 60.0),
        ("Tue, 14 Nov 2023 23:14:20 +0100", 60.0),
        ("Tue, 14 Nov 2023 22:13:00 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
    ],
)
def test_every_form_of_http_date_is_seconds_from_now(header, expected):
    assert retry_after(header, NOW) == expected


@given(
    st.one_of(st.text(), st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,5} [A-Z][a-z]{2} [0-9:+ -]{0,30}[A-Z]{0,4}"))
)
@example("Mon, 1 Jan 99999 00:00:00 GMT")
@example("Mon, 1 Jan 0 00:00:00 GMT")
@example("(" * 60)
def test_no_header_raises_or_leaves_the_bounds(header):
    wait = retry_after(header, NOW)
    assert wait is None or 0.0 <= wait <= MAX_RETRY_AFTER


@given(st.floats(min_value=-(10**6), max_value=10**6))
def test_a_date_is_understood_to_the_second(ahead):
    moment = datetime.fromtimestamp(NOW + ahead, UTC)
    wait = retry_after(format_datetime(moment, usegmt=True), NOW)
    assert wait == pytest.approx(min(max(ahead, 0.0), MAX_RETRY_AFTER), abs=1.0)


def test_a_clock_that_is_no_number_gives_no_wait():
    assert retry_after("Tue, 14 Nov 2023 22:14:20 GMT", float("nan")) is None


# Backoff


@given(
    attempt=st.integers(min_value=-5, max_value=10**12), initial=seconds, ceiling=seconds, seed=st.integers()
)
def test_a_wait_lies_between_a_tenth_and_the_whole_of_the_exponential(attempt, initial, ceiling, seed):
    backoff = Backoff(initial=initial, ceiling=ceiling, uniform=random.Random(seed).uniform)
    widest = min(initial * 2.0 ** min(max(attempt - 1, 0), 1000), ceiling)
    wait = backoff.wait(attempt)
    assert wait <= widest * (1 + 1e-9)
    assert wait >= widest * 0.1 * (1 - 1e-9)


@given(
    after=st.floats(allow_nan=False),
    attempt=st.integers(min_value=1),
    cap=seconds,
    initial=seconds,
    seed=st.integers(),
)
def test_what_the_upstream_asked_for_is_waited_out_and_little_more(after, attempt, cap, initial, seed):
    backoff = Backoff(initial=initial, retry_after_ceiling=cap, uniform=random.Random(seed).uniform)
    asked = min(max(after, 0.0), cap)
    assert asked < backoff.wait(attempt, after) <= asked + max(asked * 0.1, initial)


def test_an_upstream_that_always_says_zero_is_not_asked_in_a_hot_loop():
    backoff = Backoff(uniform=random.Random(0).uniform)
    assert min(backoff.wait(attempt, 0.0) for attempt in range(1, 1000)) >= 0.05


def test_a_wait_that_is_no_number_is_as_if_none_had_been_asked_for():
    backoff = Backoff(uniform=lambda _low, high: high)
    assert backoff.wait(3, float("nan")) == backoff.wait(3) == 2.0


def test_waits_double_up_to_the_ceiling():
    backoff = Backoff(uniform=lambda _low, high: high)
    waits = [backoff.wait(attempt) for attempt in range(1, 11)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


@pytest.mark.parametrize("attempt", [1_000, 5_000, 10**9])
def test_a_huge_attempt_neither_overflows_nor_takes_long(attempt):
    began = time.monotonic()
    assert 6.0 <= Backoff().wait(attempt) <= 60.0
    assert time.monotonic() - began < 1.0


def test_the_same_source_gives_the_same_waits():
    def waits(seed):
        backoff = Backoff(uniform=random.Random(seed).uniform)
        return [backoff.wait(attempt) for attempt in range(1, 20)]

    assert waits(1) == waits(1) != waits(2)


def test_waits_at_the_ceiling_are_spread_so_that_there_is_no_herd():
    backoff = Backoff(uniform=random.Random(7).uniform)
    waits = sorted(backoff.wait(20) for _ in range(500))
    assert waits[50] < 15.0
    assert waits[-50] > 50.0


def test_tenacity_still_draws_its_jitter_from_the_global_source():
    """Why the jitter is our own. Should tenacity ever take a source, this module can become shorter."""
    strategy = tenacity.wait_random_exponential(multiplier=0.5, max=60.0)
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = 5
    random.seed(3)
    expected = random.uniform(0, 8.0)
    random.seed(3)
    assert strategy(state) == expected
