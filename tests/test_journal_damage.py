"""Damage to what dead processes left in journals: told and kept; all else is delivered once, and the agent starts."""

import os
import random

import pytest
from journals import make, write
from scarce import few_descriptors
from waiting import until

from per_agent import Agent, MemoryDestination, SpoolSettings
from per_agent.agent.overview import overview
from per_agent.event import Activity, encode
from per_agent.journal import is_abandoned, read
from per_agent.journal.layout import FREE, HEAD, SLOT, STATE_AT
from per_agent.spool import snapshots

EVENTS = 12
FILES = 15
# Of a slot: first byte and the one after the last.
CLASSES = {
    "checksum": (0, 4),
    "stamp": (4, 12),
    "length": (12, 14),
    "payload": (14, 60),
    "state": (STATE_AT, SLOT),
    "anywhere": (0, SLOT),
}


@pytest.fixture
def moments():
    seed = int(os.environ.get("PER_AGENT_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed} (set PER_AGENT_TEST_SEED to repeat)")
    return random.Random(seed)


def leave(data_dir, name: str = "j", long: int | None = None):
    """A journal of a dead process with some events, the one at *long* in several parts. Its path and theirs."""
    journal = make(data_dir, 10)
    places = []
    for n in range(EVENTS):
        users = f"{name}-{n}" + ("x" * 900 if n == long else "")
        places.append(write(journal, encode(Activity(f"{name}-{n}", "acme", users, "active", 1.0)), ("m",)))
    journal.let_go()
    return journal.path, places


def names(*files: str, without: tuple[str, ...] = ()) -> set[str]:
    return {f"{file}-{n}" for file in files for n in range(EVENTS)} - set(without)


def change(path, at: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(value)


def recovered(data_dir) -> set[str]:
    """What an agent delivers that starts on the folder, a new event besides: each once, in balanced books."""
    destination = MemoryDestination(name="m")
    with Agent(data_dir, [destination]) as agent:
        new = agent.add_activity("acme", "new", "active")
        assert new.delivered(30)
        assert agent.flush(30)
        books = agent.books()["m"]
    found = [event.id for event in destination.received]
    assert len(found) == len(set(found))
    assert (books.accepted, books.delivered, books.balanced) == (len(found), len(found), True)
    return set(found) - {new.id}


def told(data_dir) -> int:
    """How many slots an operator is told of, and that what they held is kept."""
    lost = sum(each.unreadable for each in snapshots(data_dir))
    assert bool(lost) is any("not what was written" in line for line in overview(data_dir, ["m"]).warnings)
    return lost


@pytest.mark.parametrize("part", CLASSES)
def test_a_changed_byte_costs_at_most_the_event_that_it_is_in_and_is_told(tmp_path, moments, part):
    hit = {}
    for file in range(FILES):
        path, places = leave(tmp_path, f"f{file}")
        n = moments.randrange(EVENTS)
        at = places[n] + moments.randrange(*CLASSES[part])
        before = path.read_bytes()[at]
        # A state that says free is what a slot is that was stored: that one value cannot be told from well.
        change(path, at, bytes([moments.choice([new for new in range(256) if new not in (before, FREE)])]))
        hit[f"f{file}-{n}"] = at
    every = names(*(f"f{file}" for file in range(FILES)))
    found = recovered(tmp_path)
    lost = every - found
    assert found <= every
    assert lost <= hit.keys()
    assert told(tmp_path) == len(lost)
    if part in ("checksum", "length", "state"):
        assert lost == hit.keys()


def test_every_single_bit_of_a_state_is_noticed(tmp_path):
    for bit in range(8):
        path, places = leave(tmp_path, f"f{bit}")
        at = places[3] + STATE_AT
        change(path, at, bytes([path.read_bytes()[at] ^ 1 << bit]))
    assert recovered(tmp_path) == names(
        *(f"f{n}" for n in range(8)), without=tuple(f"f{n}-3" for n in range(8))
    )
    assert told(tmp_path) == 8


def test_a_changed_byte_of_the_head_loses_nothing(tmp_path, moments):
    for file in range(FILES):
        path, _ = leave(tmp_path, f"f{file}")
        at = moments.randrange(24)
        change(path, at, bytes([path.read_bytes()[at] ^ moments.randrange(1, 256)]))
    assert recovered(tmp_path) == names(*(f"f{file}" for file in range(FILES)))
    assert told(tmp_path) == 0


def test_a_changed_byte_of_the_routes_keeps_the_events_for_a_person(tmp_path, moments):
    for file in range(FILES):
        path, _ = leave(tmp_path, f"f{file}")
        at = 64 + moments.randrange(6 + len('["m"]'))
        change(path, at, bytes([path.read_bytes()[at] ^ moments.randrange(1, 256)]))
    assert recovered(tmp_path) == set()
    assert told(tmp_path) == FILES * EVENTS


def test_a_head_that_is_all_zeros_does_not_make_the_journal_empty(tmp_path):
    path, _ = leave(tmp_path)
    change(path, 0, bytes(HEAD))
    assert recovered(tmp_path) == set()
    assert told(tmp_path) == EVENTS


def test_a_torn_slot_is_told(tmp_path):
    path, places = leave(tmp_path)
    change(path, places[5] + 20, bytes(SLOT - 21))
    assert recovered(tmp_path) == names("j", without=("j-5",))
    assert told(tmp_path) == 1


def test_what_is_left_of_an_event_in_parts_is_kept_with_the_part_that_is_damaged(tmp_path):
    path, places = leave(tmp_path, long=4)
    change(path, places[4][1] + 100, b"\0\1\2")
    assert recovered(tmp_path) == names("j", without=("j-4",))
    assert told(tmp_path) == len(places[4]) > 3


def test_an_event_that_a_process_died_over_was_never_accepted_and_is_no_damage(tmp_path):
    path, places = leave(tmp_path, long=4)
    change(path, places[4][-1], bytes(SLOT))
    assert recovered(tmp_path) == names("j", without=("j-4",))
    assert told(tmp_path) == 0


@pytest.mark.parametrize("kept", [0, 1, 7])
def test_a_file_that_was_cut_short_gives_what_is_there_and_says_what_is_missing(tmp_path, kept):
    path, places = leave(tmp_path)
    slots = (path.stat().st_size - HEAD) // SLOT
    os.truncate(path, places[kept] + 100)
    assert recovered(tmp_path) == {f"j-{n}" for n in range(kept)}
    assert told(tmp_path) == slots - kept


def test_a_file_that_was_cut_within_its_head_says_that_all_is_missing(tmp_path):
    path, _ = leave(tmp_path)
    slots = (path.stat().st_size - HEAD) // SLOT
    os.truncate(path, 3000)
    assert recovered(tmp_path) == set()
    assert told(tmp_path) == slots


def test_an_empty_file_is_one_that_its_maker_died_over(tmp_path):
    path, _ = leave(tmp_path)
    os.truncate(path, 0)
    assert recovered(tmp_path) == set()
    assert told(tmp_path) == 0


def test_a_file_that_grew_gives_its_events_and_tells_of_the_rest(tmp_path, moments):
    path, _ = leave(tmp_path)
    with path.open("ab") as file:
        file.write(bytes([*moments.randbytes(SLOT - 1), 1]) * 3 + b"\1\2\3")
    assert recovered(tmp_path) == names("j")
    assert told(tmp_path) == 3


def test_a_file_of_garbage_harms_nobody(tmp_path, moments):
    leave(tmp_path, "good")
    path, _ = leave(tmp_path, "bad")
    path.write_bytes(bytes(value or 1 for value in moments.randbytes(HEAD + 40 * SLOT)))
    assert recovered(tmp_path) == names("good")
    assert told(tmp_path) == 40


@pytest.mark.parametrize("kind", ["folder", "symlink", "fifo"])
def test_what_is_not_a_file_is_left_alone_and_told(tmp_path, kind):
    recovered(tmp_path)
    (spool,) = snapshots(tmp_path)
    path = spool.folder / "0-0.journal"
    if kind == "folder":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    destination = MemoryDestination(name="m")
    for _ in range(2):
        with Agent(tmp_path, [destination]) as agent:
            assert agent.add_activity("acme", "new", "active").delivered(30)
    assert os.path.lexists(path)
    assert [each.unknown for each in snapshots(tmp_path)] == [1]
    assert any("left alone" in line for line in overview(tmp_path, ["m"]).warnings)


def test_a_journal_that_no_file_can_be_opened_for_is_not_damaged_and_is_read_a_moment_later(tmp_path):
    path, _ = leave(tmp_path)
    for free in (0, 1):
        with few_descriptors(free), pytest.raises(OSError, match="Too many open files"):
            read(path)
    with few_descriptors(0):
        assert not is_abandoned(path), "it is not known yet"
    assert is_abandoned(path)
    assert recovered(tmp_path) == names("j")


def test_what_is_kept_of_a_damaged_journal_stays_when_its_spool_is_adopted_and_drained(tmp_path):
    path, places = leave(tmp_path)
    change(path, places[0], b"xxxx")
    recovered(tmp_path)
    (damaged,) = snapshots(tmp_path)
    assert damaged.unreadable == 1
    # Three agents at once: one has the damaged spool as its own, and when two end the third adopts theirs.
    first, clean, last = (
        Agent(tmp_path, [MemoryDestination(name="m")], spool=SpoolSettings(adopt_interval=0.1))
        for _ in range(3)
    )
    for agent in (first, clean, last):
        agent.start(wait=True)
    sound = tmp_path / "spools" / clean.status()["spool"]["id"]
    assert clean.close()
    assert first.close()
    until(lambda: len(last._life.engine.spools) == 2 and not sound.exists())
    assert damaged.folder.exists()
    assert last.close()
    assert told(tmp_path) == 1
