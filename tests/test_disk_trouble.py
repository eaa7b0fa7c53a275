"""A disk in trouble: full, used up, read-only, forbidden, locked, slow. What was accepted is kept, and it goes on by itself."""

import itertools

import pytest
from small_disk import fill_up, free_bytes, make_room, small_disk
from test_spool import Bench, on_disk
from waiting import until

from per_agent import Agent, MemoryDestination
from per_agent.destinations import Retry
from per_agent.spool import DeadLetter, Parking, ballast, snapshots
from per_agent.spool.disk import FILE

KIB, MIB = 2**10, 2**20
FULL = "the disk is full"


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 8) as place:
        yield place


@pytest.fixture
def bench(disk):
    """A spool on the small disk."""
    one = Bench(disk / "data")
    one.spool.start()
    one.spool.wait_opened(30)
    yield one
    make_room(disk)
    assert one.spool.stop(30)


def waiting_in_memory(spool: Bench) -> int:
    return spool.intake.waiting() + sum(spool.spool.in_memory().values())


def settle_all(spool: Bench) -> list[bytes]:
    """Deliver all that lies on the disk. What was delivered."""
    delivered = []
    while spool.books().pending:
        for block in spool.ask(limit=4):
            spool.settle(block, delivered=list(block.pending()))
            delivered += block.events
    return delivered


# A full disk


def test_on_a_full_disk_events_wait_in_memory_while_what_was_delivered_is_settled(bench, disk):
    receipts = [bench.add(size=2000) for _ in range(300)]
    assert receipts[-1].stored(30)
    fill_up(disk)
    receipts += [bench.add(size=2000) for _ in range(200)]
    until(lambda: fill_up(disk) or FULL in (bench.spool.trouble or ""))
    assert not receipts[-1].stored(0.3)
    stored = 500 - waiting_in_memory(bench)  # some of them went into what the log had taken of the disk
    assert 300 <= stored < 500
    delivered = settle_all(bench)
    assert delivered[:stored] == [receipt._encoded for receipt in receipts[:stored]]
    make_room(disk)
    assert all(receipt.stored(30) for receipt in receipts), "without a restart"
    until(lambda: bench.spool.trouble is None)
    delivered += settle_all(bench)
    assert delivered == [receipt._encoded for receipt in receipts]
    assert bench.books() == on_disk(disk / "data")["a"]


def test_a_spool_that_fills_its_disk_by_itself_can_be_drained_and_goes_on(bench):
    receipts = []

    def full() -> bool:
        receipts.extend(bench.add(size=2000) for _ in range(50))
        return bench.spool.trouble is not None

    until(full, every=0.002)
    assert FULL in bench.spool.trouble
    delivered = []
    while len(delivered) < len(receipts):
        delivered += settle_all(bench)
    assert delivered == [receipt._encoded for receipt in receipts]
    until(lambda: bench.spool.trouble is None)
    assert bench.books().delivered == len(receipts)


def test_on_a_full_disk_dead_letters_parkings_and_notes_are_committed(bench, disk):
    receipts = [bench.add() for _ in range(30)]
    assert receipts[-1].stored(30)
    fill_up(disk)
    receipts += [bench.add() for _ in range(30)]
    until(lambda: fill_up(disk) or FULL in (bench.spool.trouble or ""))
    block, *others = bench.ask()
    letter = DeadLetter(block.events[0], "refused", "no " * 500, 1, 1.0)
    bench.settle(block, dead=[(0, letter)])
    for one in others:
        bench.settle(one, parked=[(Parking("k", "asleep", 1.0), list(range(one.count)))])
    bench.spool.run(lambda changes: changes.note("a", b"{}"), 30)
    books = on_disk(disk / "data")["a"]
    assert (books.dead, books.accepted) == (1, 30)
    make_room(disk)
    assert all(receipt.stored(30) for receipt in receipts)


def test_a_process_that_starts_on_a_full_disk_delivers_what_an_earlier_one_left(disk):
    with Agent(disk / "data", [MemoryDestination(itertools.repeat(Retry("down")), name="m")]) as agent:
        receipts = [agent.add_activity("acme", f"u-{n}", "active") for n in range(3000)]
    fill_up(disk)
    assert free_bytes(disk) == 0
    destination = MemoryDestination(name="m")
    with Agent(disk / "data", [destination]) as agent:
        until(lambda: agent.books()["m"].pending == 0)
        assert sorted(event.id for event in destination.received) == sorted(each.id for each in receipts)
        fill_up(disk)
        late = agent.add_activity("acme", "late", "active")
        until(lambda: fill_up(disk) or FULL in (agent.status()["spool"]["trouble"] or ""))
        assert FULL in agent.unready
        assert not late.stored(0)
        make_room(disk)
        assert late.delivered(30)
        until(lambda: agent.unready is None)
        assert agent.books()["m"].delivered == 3001


def test_a_stop_on_a_full_disk_stores_what_was_accepted_in_the_room_that_was_kept(disk):
    spool = Bench(disk / "data")
    spool.spool.start()
    spool.spool.wait_opened(30)
    fill_up(disk)
    receipts = [spool.add(size=500) for _ in range(200)]
    until(lambda: fill_up(disk) or FULL in (spool.spool.trouble or ""))
    assert spool.spool.stop(30)
    assert all(receipt.stored(0) for receipt in receipts)
    destination = MemoryDestination(name="a")
    with Agent(disk / "data", [destination]) as agent:  # and the next one gets it out
        until(lambda: len(destination.received) == 200)
        until(lambda: agent.books()["a"].pending == 0)


def test_a_disk_that_is_nearly_full_takes_nothing_new_until_the_room_is_there_that_status_names(disk):
    fill_up(disk, leave=MIB + 600 * KIB)  # a ballast here has 1 MiB
    with Agent(disk / "data", [MemoryDestination(name="m")]) as agent:
        receipt = agent.add_activity("acme", "u-1", "active")
        until(lambda: "until 2 MiB are free" in (agent.unready or ""))
        assert not receipt.stored(0)
        make_room(disk)
        assert receipt.delivered(30)


# The ballast


def test_the_ballast_takes_real_room_and_counts_towards_nothing(bench, disk):
    assert bench.add().stored(30)
    place = bench.spool.folder
    kept = place / ballast.FILE
    found = kept.stat()
    assert found.st_size == MIB == found.st_blocks * 512, "an eighth of this disk"
    assert found.st_mode & 0o777 == 0o600
    (seen,) = snapshots(disk / "data")
    database = sum(path.stat().st_size for path in place.glob(f"{FILE}*"))
    assert seen.bytes_used == database
    assert bench.spool.statistics().bytes_used < database < MIB


def test_a_ballast_that_was_given_up_or_cut_short_is_made_again(bench, disk):
    kept = bench.spool.folder / ballast.FILE
    kept.write_bytes(b"")
    one = ballast.Ballast(kept.parent)
    assert not one.there
    assert one.make()
    assert one.there
    assert one.release()
    assert not one.release()
    fill_up(disk, leave=MIB + 4 * KIB)
    assert not one.make(), "it needs as much again beside it"
    assert not kept.exists(), "and half of it would be of no use"
    make_room(disk)
    assert one.make()


def test_on_a_big_disk_the_ballast_has_6_mib(tmp_path):
    assert ballast.size_on(tmp_path) == 6 * MIB
