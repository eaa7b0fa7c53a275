"""Months in UTC: where they begin and end, to the last representable moment."""

import math
from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from per_agent.month import ByMonth, Month

moments = st.floats(min_value=0, max_value=1e11, allow_nan=False)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("moment", "month"),
    [
        (0.0, (1970, 1)),
        (at("2026-01-31T23:59:59.999"), (2026, 1)),
        (at("2026-02-01T00:00:00"), (2026, 2)),
        (at("2026-02-28T23:59:59.999"), (2026, 2)),
        (at("2026-03-01T00:00:00"), (2026, 3)),
        (at("2028-02-29T00:00:00"), (2028, 2)),
        (at("2028-02-29T23:59:59.999"), (2028, 2)),
        (at("2100-02-28T23:59:59.999"), (2100, 2)),
        (at("2100-03-01T00:00:00"), (2100, 3)),
        (at("2026-12-31T23:59:59.999"), (2026, 12)),
        (at("2027-01-01T00:00:00"), (2027, 1)),
        (-5.0, (1970, 1)),
        (math.inf, (9998, 12)),
        (1e300, (9998, 12)),
    ],
)
def test_a_moment_lies_in_its_month(moment, month):
    assert Month.of(moment) == month


@given(moments)
def test_a_month_begins_at_or_before_its_moments_and_ends_after_them(moment):
    month = Month.of(moment)
    assert month.begin <= moment < month.end


@given(moments)
def test_a_month_ends_where_the_next_begins_and_its_last_moment_is_its_own(moment):
    month = Month.of(moment)
    following = Month.of(month.end)
    assert (following > month, following.begin) == (True, month.end)
    assert Month.of(math.nextafter(month.end, 0)) == month, "however close to midnight"
    assert 28 <= (month.end - month.begin) / 86_400 <= 31


def test_a_month_is_written_as_in_iso_8601():
    assert str(Month(2026, 2)) == "2026-02"
    assert str(Month.of(at("0987-01-01T00:00:00"))) == "1970-01"


@given(st.lists(st.tuples(st.one_of(moments, st.integers(0, 2**64).map(float)), st.integers(0, 1000))))
def test_counts_by_month_are_those_of_each_moment_whatever_their_order(several):
    by_month = ByMonth()
    expected: Counter[Month] = Counter()
    for moment, count in several:
        by_month.add(moment, count)
        expected[Month.of(moment)] += count
    assert by_month.counts == +expected
