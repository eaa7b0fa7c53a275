"""The histogram: every value in its place, and a look at it costs nothing but the copy."""

import bisect
import math

from hypothesis import given
from hypothesis import strategies as st

from per_agent.histogram import Distribution, Histogram

BOUNDS = (0.01, 0.1, 1.0)


def test_a_value_belongs_to_the_first_bound_that_is_not_below_it():
    histogram = Histogram(BOUNDS)
    for value in (0.0, 0.01, 0.011, 0.1, 1.0, 1.001, 1e9):
        histogram.observe(value)
    seen = histogram.look()
    assert seen.counts == (2, 2, 1, 2)
    assert seen.cumulative() == (2, 4, 5, 7)
    assert seen.count == 7


def test_what_was_looked_at_does_not_change_with_what_comes():
    histogram = Histogram(BOUNDS)
    before = histogram.look()
    histogram.observe(0.5)
    assert before == Distribution(BOUNDS, (0, 0, 0, 0), 0.0)
    assert histogram.look() == Distribution(BOUNDS, (0, 0, 1, 0), 0.5)


@given(
    st.lists(st.floats(0, 100), unique=True, min_size=1).map(sorted),
    st.lists(st.floats(0, 200)),
)
def test_the_counts_under_each_bound_are_those_of_the_sorted_values(bounds, values):
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    seen = histogram.look()
    ordered = sorted(values)
    assert list(seen.cumulative()) == [bisect.bisect_right(ordered, bound) for bound in bounds] + [
        len(values)
    ]
    assert math.isclose(seen.total, sum(values), abs_tol=1e-6)
