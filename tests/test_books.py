"""The books: counts that add up, and say so when they do not."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from per_agent.books import Books, total

counts = st.integers(min_value=0, max_value=2**62)
books = st.builds(Books, counts, counts, counts, counts, counts, counts)


def balanced(delivered: int, dead: int, dropped: int, pending: int) -> Books:
    return Books(delivered + dead + dropped + pending, delivered, dead, dropped, pending)


def test_new_books_are_empty_and_balanced():
    assert Books().balanced
    assert set(Books().as_dict().values()) == {0}


@given(counts, counts, counts, counts)
def test_books_balance_when_every_accepted_event_is_accounted_for(delivered, dead, dropped, pending):
    assert balanced(delivered, dead, dropped, pending).balanced


@pytest.mark.parametrize("field", ["accepted", "delivered", "dead", "dropped", "pending"])
def test_one_event_too_many_or_too_few_anywhere_is_noticed(field):
    sound = balanced(5, 4, 3, 2)
    for change in (1, -1):
        assert not msgspec.structs.replace(sound, **{field: getattr(sound, field) + change}).balanced


def test_purged_letters_stay_counted_as_dead_and_do_not_touch_the_balance():
    assert Books(accepted=3, dead=3, purged=2).balanced


@given(books, books)
def test_books_are_added_count_by_count(mine, theirs):
    both = (mine + theirs).as_dict()
    assert both == {name: mine.as_dict()[name] + theirs.as_dict()[name] for name in both}


@given(st.lists(st.tuples(counts, counts, counts, counts)))
def test_the_sum_of_balanced_books_is_balanced(several):
    assert total({"lane": balanced(*each)} for each in several).get("lane", Books()).balanced


def test_the_total_is_kept_for_each_destination():
    summed = total([{"a": Books(1, pending=1), "b": Books(2, 2)}, {}, {"a": Books(3, pending=3)}])
    assert summed == {"a": Books(4, pending=4), "b": Books(2, 2)}


def test_books_cannot_be_changed():
    with pytest.raises(AttributeError):
        Books().accepted = 1  # type: ignore[misc]


def test_the_counts_are_named_for_json():
    assert Books(1, 2, 3, 4, 5, 6).as_dict() == {
        "accepted": 1, "delivered": 2, "dead": 3, "dropped": 4, "pending": 5, "purged": 6,
    }  # fmt: skip
