"""What a spool takes of its disk and of its holder's time at the start, however much lies in it."""

import itertools
import random
import string
from base64 import b64encode
from contextlib import closing
from pathlib import Path

import pytest
from test_disk import hide
from waiting import until

from per_agent import Agent, IntakeSettings, MemoryDestination
from per_agent.destinations import Retry
from per_agent.event import Activity, encode
from per_agent.log import Log
from per_agent.spool import Store, folder
from per_agent.spool.disk import FILE, Disk
from per_agent.spool.salvage import reports
from per_agent.spool.sweep import Sweep
from per_agent.spool.transaction import LAYOUT
from per_agent.spool.work import Work

ACTIVITIES = 20_000


def on_disk(data: Path) -> int:
    """Bytes of the spools' databases and of their logs."""
    return sum(file.stat().st_size for file in data.glob(f"spools/*/{FILE}*") if file.suffix != ".db-shm")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A data folder in which activities wait, of users that come by chance and with identifiers of 8 characters."""
    data = tmp_path_factory.mktemp("filled")
    dice = random.Random(8)
    users = ["".join(dice.choices(string.ascii_letters + string.digits, k=8)) for _ in range(5000)]
    dead = MemoryDestination(itertools.repeat(Retry("down")), name="m")
    with Agent(data, [dead], intake=IntakeSettings(overflow="block"), exit_timeout=0) as agent:
        receipts = [agent.add_activity("acme-inc", dice.choice(users), "activity") for _ in range(ACTIVITIES)]
        assert receipts[-1].stored(60)
        agent.close(0)
    return data


def test_an_activity_takes_no_more_than_64_bytes_and_gives_them_back_when_it_is_delivered(filled):
    full = on_disk(filled)
    print(full / ACTIVITIES, "bytes for an activity")
    assert full <= 64 * ACTIVITIES
    with Agent(filled, [MemoryDestination(name="m", batch=500)]) as agent:
        until(lambda: agent.books().get("m") and agent.books()["m"].delivered == ACTIVITIES)
        until(lambda: agent.books()["m"].pending == 0)
    assert on_disk(filled) <= full // 10


def large(data: Path) -> tuple[Path, set[str]]:
    """A spool that is too large to be read through at a start, and the identifiers of the events in it."""
    folder.prepare(data)
    claim = folder.create(data)
    dice = random.Random(1)
    events = [
        Activity(f"id-{n}", "acme", b64encode(dice.randbytes(45_000)).decode(), "active", 1.0)
        for n in range(675)
    ]
    with closing(Store(claim.folder)) as store:
        for at in range(0, len(events), 75):
            with store.transaction() as changes:
                changes.append(["m"], [encode(event) for event in events[at : at + 75]], 1.0)
    claim.release()
    return claim.folder, {event.id for event in events}


@pytest.mark.slow
def test_a_row_of_a_large_spool_that_no_index_names_is_found_behind_the_start(tmp_path):
    spool, events = large(tmp_path)
    with closing(Store(spool)) as store:
        hidden = store.head("m", None, 3)[0][2].id
    hide(spool, f"l/m/b/{hidden}")
    with closing(Store(spool)) as store:
        assert store.damage(None) is None, "to read it through would take too long"
    destination = MemoryDestination(name="m")
    with Agent(tmp_path, [destination]) as agent:
        events.add(agent.add_activity("acme", "u", "active").id)
        until(lambda: reports(tmp_path))
        until(lambda: len(destination.received) == len(events))
        until(lambda: agent.books()["m"].pending == 0)
    assert {event.id for event in destination.received} == events
    (report,) = reports(tmp_path)
    assert "missing from the index" in report.why
    assert report.lost == {"m": 0}


def test_a_sweep_looks_at_every_row_there_was_in_portions_and_ends(tmp_path):
    with closing(Store(tmp_path / "spool")) as store:
        with store.transaction() as changes:
            for n in range(700):
                changes.note(f"{n}", b"{}")
        asked: list[Work] = []
        sweep = Sweep(700, asked.append)
        looked = 0
        works = [sweep.work]
        while works:
            with store.transaction() as changes:
                more = works[0].apply(changes)
            works[0].tell(more, Log())
            works, looked = asked[:], looked + 1
            asked.clear()
        assert looked == 3


def test_a_spool_of_the_layout_before_is_read_and_says_with_the_next_block_that_it_is_one_of_ours(tmp_path):
    place = tmp_path / "spool"
    disk = Disk(place)
    disk.set(LAYOUT, b"\x01")
    disk.disconnect()
    with closing(Store(place)) as store:
        assert store._disk.get(LAYOUT) == b"\x01", "an older version may still have it"
        with store.transaction() as changes:
            changes.append(["m"], [b"event"] * 100, 1.0)
        assert store._disk.get(LAYOUT) == b"\x02", "which would take a compressed block for a damaged one"
