"""Identifiers of the last events: few are remembered for long, and none that somebody was told is dead."""

from types import SimpleNamespace

from per_agent.event import Activity, MeterEvent
from per_agent.sidecar.recent import Recent

STORED = SimpleNamespace(is_stored=True)


def test_the_last_are_remembered_and_those_before_them_are_not():
    recent = Recent(capacity=100).of(Activity)
    for number in range(1000):
        recent.add(str(number), STORED)
        kept = [str(each) in recent for each in range(number + 1)]
        assert all(kept[-50:])
        assert sum(kept) <= 100


def test_the_kinds_have_names_of_their_own():
    recent = Recent()
    recent.of(Activity).add("a", STORED)
    assert "a" in recent.of(Activity)
    assert "a" not in recent.of(MeterEvent)


def test_a_receipt_is_kept_until_its_event_is_stored_and_no_longer():
    recent = Recent(capacity=10).of(Activity)
    first = SimpleNamespace(is_stored=False)
    recent.add("first", first)
    for number in range(5):  # it belongs to the older generation now
        recent.add(str(number), SimpleNamespace(is_stored=False))
    assert recent.receipt("first") is first
    first.is_stored = True
    recent.add("last", STORED)
    assert recent.receipt("first") is None


def test_what_is_to_be_forgotten_is_in_either_generation():
    recent = Recent(capacity=10)
    for number in range(7):
        recent.of(Activity).add(str(number), SimpleNamespace(is_stored=False))
    recent.forget([(Activity, "0"), (Activity, "6"), (MeterEvent, "1"), (Activity, "never there")])
    assert [str(number) in recent.of(Activity) for number in range(7)] == [False, *[True] * 5, False]
    recent.of(Activity).add("0", STORED)
    assert "0" in recent.of(Activity)
