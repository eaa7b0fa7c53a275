"""Damaged files: what is damaged is set aside and told, all else is delivered once, and the agent starts."""

import itertools
import os
import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest
from programs import start
from scarce import few_descriptors
from waiting import until

from per_agent import Agent, MemoryDestination, SpoolSettings
from per_agent.agent.overview import overview
from per_agent.destinations import Retry
from per_agent.spool import Store, audit, damage, folder, reports, salvage, wal
from per_agent.spool.disk import FILE
from per_agent.spool.witness import Witness

WRITER = """
from per_agent.destinations import Retry
import itertools
agent = Agent(data_dir, [MemoryDestination(itertools.repeat(Retry("down")), name="m")], intake=IntakeSettings(linger=0.0))
for i in range(40):
    receipts = [agent.add_activity("acme", f"u-{i}-{j}-{'x' * 60}", "active") for j in range(5)]
    receipts[-1].stored()
    print(*(f"{receipt.id} u-{i}-{j}-{'x' * 60}" for j, receipt in enumerate(receipts)), sep="\\n", flush=True)
print("done", flush=True)
sys.stdin.readline()
if sys.argv[2] == "killed":
    os._exit(0)
agent.close(0)
"""
PAGE_EVENTS = 60  # of the events below, no more lie in one page


@pytest.fixture(scope="module", params=["killed", "closed"])
def written(request, tmp_path_factory):
    """A data folder that a process left, and the users of its events by their identifiers."""
    place = tmp_path_factory.mktemp(request.param)
    program = start(WRITER, place, request.param)
    events = {}
    for line in program.stdout:
        if line == "done\n":
            break
        identifier, user = line.split()
        events[identifier] = user
    program.communicate("end\n", timeout=60)
    assert len(events) == 200
    return place, events


def copied(written, tmp_path: Path) -> tuple[Path, Path, dict[str, str]]:
    """A copy of it: the data folder, its only spool, and the events."""
    place, events = written
    data = tmp_path / "data"
    shutil.copytree(place, data)
    (spool,) = (data / "spools").iterdir()
    return data, spool, events


def delivered_from(data: Path) -> dict[str, str]:
    """What an agent on the folder delivers: nothing twice, nothing that is left pending."""
    destination = MemoryDestination(name="m")
    with Agent(data, [destination]) as agent:
        new = agent.add_activity("acme", "new", "active")
        assert new.delivered(30), "an agent starts on it"
        assert agent.flush(30)
        books = agent.books()["m"]
        assert books.balanced
        # A block whose head is damaged does not say how many are lost with it: then the books say that they
        # do not add up.
        assert books.pending == 0 or overview(data, ["m"]).problems
    received = Counter(event.id for event in destination.received)
    assert set(received.values()) == {1}
    return {event.id: event.user_id for event in destination.received if event.id != new.id}


def judge(data: Path, events: dict[str, str], *, may_lose: int) -> int:
    """Deliver what is left in *data*; nothing is invented or changed, and what is lost is told. How many are lost."""
    found = delivered_from(data)
    assert found.items() <= events.items()
    lost = len(events) - len(found)
    assert lost <= may_lose
    seen = overview(data, ["m"])
    if seen.problems:
        assert "pending by the books" in seen.problems[0]
        assert lost > 0
        return lost
    told = sum(count or 0 for report in reports(data) for count in report.lost.values())
    damaged = sum(standing.damaged for standing in seen.standings)
    assert max(told, damaged) == lost
    return lost


@pytest.mark.parametrize("file", [FILE, f"{FILE}-wal"])
def test_a_flipped_byte_anywhere_costs_no_more_than_what_lies_there(written, tmp_path, file):
    seed = int(os.environ.get("PER_AGENT_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed} (set PER_AGENT_TEST_SEED to repeat)")
    positions = random.Random(seed)
    if not list(written[0].glob(f"spools/*/{file}")):
        pytest.skip("a log is there only after a kill")
    for n in range(8):
        data, spool, events = copied(written, tmp_path / str(n))
        content = bytearray((spool / file).read_bytes())
        at = positions.randrange(len(content))
        content[at] ^= 1 << positions.randrange(8)
        (spool / file).write_bytes(content)
        print(file, "flipped at", at)
        judge(data, events, may_lose=PAGE_EVENTS)


@pytest.mark.parametrize("at", [0, 16, 18, 20, 100, 105, 4096 + 3])
def test_the_head_of_the_database_may_be_damaged_and_nothing_is_lost(written, tmp_path, at):
    data, spool, events = copied(written, tmp_path)
    content = bytearray((spool / FILE).read_bytes())
    content[at : at + 2] = b"\xff\xfe"
    (spool / FILE).write_bytes(content)
    assert judge(data, events, may_lose=0) == 0


@pytest.mark.parametrize("what", ["emptied", "deleted", "cut"])
def test_a_database_that_is_gone_is_told_with_the_number_of_the_lost(written, tmp_path, what):
    data, spool, events = copied(written, tmp_path)
    if what == "deleted":
        (spool / FILE).unlink()
    else:
        os.truncate(spool / FILE, 0 if what == "emptied" else (spool / FILE).stat().st_size // 2)
    lost = judge(data, events, may_lose=200)
    if not lost and what == "cut":
        return  # all of it was still in the log, too
    (report,) = reports(data)
    assert report.spool == spool.name
    assert (spool.parent / f"{spool.name}.damaged").stat().st_mode & 0o777 == 0o700


def test_the_log_of_an_emptied_database_outlives_a_look_and_is_salvaged(written, tmp_path):
    data, spool, events = copied(written, tmp_path)
    if not (spool / f"{FILE}-wal").exists():
        pytest.skip("a log is there only after a kill")
    os.truncate(spool / FILE, 0)
    (problem,) = overview(data, ["m"]).problems
    assert "is damaged" in problem
    assert judge(data, events, may_lose=0) == 0


def test_a_log_that_was_deleted_is_told(written, tmp_path):
    data, spool, events = copied(written, tmp_path)
    if not (spool / f"{FILE}-wal").exists():
        pytest.skip("a log is there only after a kill")
    (spool / f"{FILE}-wal").unlink()
    assert judge(data, events, may_lose=200) > 0


def test_what_can_be_missed_may_be_missing(written, tmp_path):
    data, spool, events = copied(written, tmp_path)
    (spool / f"{FILE}-shm").unlink(missing_ok=True)
    (spool / "owner.lock").unlink()
    assert judge(data, events, may_lose=0) == 0
    assert reports(data) == []


def test_sqlite_forgets_what_follows_a_damaged_frame_and_the_salvage_does_not(written, tmp_path):
    data, spool, events = copied(written, tmp_path)
    log = spool / f"{FILE}-wal"
    if not log.exists():
        pytest.skip("a log is there only after a kill")
    content = bytearray(log.read_bytes())
    assert wal.read(bytes(content)).damage is None
    content[32 + 24 + 100] ^= 1  # in the first page
    log.write_bytes(content)
    assert "1 pages of its log" in (wal.read(bytes(content)).damage or "")
    copy = tmp_path / "copy"
    shutil.copytree(spool, copy)
    with closing(sqlite3.connect(copy / FILE)) as database:
        rows = 0
        with suppress(sqlite3.Error):
            (rows,) = database.execute("SELECT count(*) FROM Cache WHERE key LIKE 'l/m/b/%'").fetchone()
    assert rows < 40, "the experiment's own control"
    judge(data, events, may_lose=PAGE_EVENTS)


def left_by_a_kill(place: Path) -> Path:
    """A spool with 202 pending events whose log was used twice: the newest pages lie before older ones."""
    written, left = place / "written", place / "left"
    written.mkdir(parents=True)
    store = Store(written)

    for block in range(0, 200, 5):
        with store.transaction() as changes:
            changes.append(["m"], [b"%3d %s" % (n, b"x" * 300) for n in range(block, block + 5)], 1.0)
    with closing(sqlite3.connect(written / FILE)) as database:
        database.execute("PRAGMA wal_checkpoint(PASSIVE)")  # the next commit begins at the head of the log
    with store.transaction() as changes:
        for lane in ("m", "n"):
            changes.append([lane], [b"the newest"], 1.0)
    shutil.copytree(written, left)
    store.close()
    return left


def test_pages_of_an_earlier_use_of_the_log_are_no_part_of_it(tmp_path):
    spool = left_by_a_kill(tmp_path)
    content = (spool / f"{FILE}-wal").read_bytes()
    salts = [content[at + 8 : at + 16] for at in range(32, len(content) - 4119, 4120)]
    newest = salts.count(content[16:24])
    assert 0 < newest < len(salts) - 2, "the experiment's own control"
    found = wal.read(content)
    assert found.damage is None
    assert max(found.pages.values()) < 32 + newest * 4120, "and none of them counts"


def test_a_salvage_of_a_log_that_was_used_twice_loses_nothing(tmp_path):
    spool = left_by_a_kill(tmp_path)
    report = salvage.replace(spool, "by a test", None)
    assert report.pending == {"m": 201, "n": 1}
    with closing(Store(spool)) as store:
        assert store.books["m"].pending == 201


def test_damage_that_is_met_under_way_is_set_aside_without_a_restart(tmp_path):
    destination = MemoryDestination(itertools.repeat(Retry("down"), 3), name="m")
    with Agent(tmp_path, [destination]) as agent:
        receipts = [agent.add_activity("acme", f"u-{n}", "active") for n in range(50)]
        assert receipts[-1].stored(30)
        (spool,) = (tmp_path / "spools").iterdir()
        with closing(sqlite3.connect(spool / FILE)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = bytearray((spool / FILE).read_bytes())
        for page in range(2, len(content) // 4096):  # the index: its pages begin with 0x0a
            if content[page * 4096] == 0x0A:
                content[page * 4096 : page * 4096 + 8] = b"\xff" * 8
        with (spool / FILE).open("r+b") as file:
            file.write(content)
        late = [agent.add_activity("acme", f"late-{n}", "active") for n in range(20)]
        assert late[-1].stored(30)
        until(lambda: len({event.id for event in destination.received}) == 70)
        until(lambda: agent.books()["m"].pending == 0)
        assert len(destination.received) == 70, "and nothing twice"
    (report,) = reports(tmp_path)
    assert report.lost == {"m": 0}


def test_a_salvage_that_was_cut_off_is_finished_also_where_its_report_is_damaged(tmp_path):
    with Agent(tmp_path, [MemoryDestination(itertools.repeat(Retry("down")), name="m")]) as agent:
        assert [agent.add_activity("acme", f"u-{n}", "active") for n in range(3)][-1].stored(30)
        agent.close(0)
    (spool,) = (tmp_path / "spools").iterdir()
    built = spool / "salvaged"
    built.mkdir()
    (spool / FILE).rename(built / FILE)
    (spool / FILE).write_bytes(b"damaged")
    (built / "report.json").write_bytes(b"\0" * 1000)
    destination = MemoryDestination(name="m")
    with Agent(tmp_path, [destination]) as agent:
        assert agent.add_activity("acme", "new", "active").stored(30)
        assert agent.flush(30)
    assert {event.user_id for event in destination.received} == {"u-0", "u-1", "u-2", "new"}
    assert not built.exists()
    (report,) = reports(tmp_path)
    assert report.pending == {"m": 3}
    assert "it is not known how many" in report.words
    assert (Path(report.aside) / FILE).read_bytes() == b"damaged"


def test_a_sound_spool_that_takes_the_place_of_a_damaged_one_is_not_set_aside(tmp_path):
    down = itertools.repeat(Retry("down"))
    with Agent(tmp_path, [MemoryDestination(name="m")]) as agent:
        assert agent.add_activity("acme", "first", "active").delivered(30)
    (damaged,) = (tmp_path / "spools").iterdir()
    seldom = SpoolSettings(adopt_interval=60.0)
    with Agent(tmp_path, [MemoryDestination(down, name="m")], spool=seldom) as agent:
        assert agent.add_activity("acme", "before", "active").stored(30)
        sound = folder.create(tmp_path)
        Store(sound.folder).close()
        with closing(sqlite3.connect(damaged / FILE)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = bytearray((damaged / FILE).read_bytes())
        with (damaged / FILE).open("r+b") as file:
            file.write(content[:4096] + b"\xff" * (len(content) - 4096))
        (damaged / "salvage").touch()  # so that it cannot be salvaged
        sound.release()
        assert agent.add_activity("acme", "after", "active").stored(30)
        assert reports(tmp_path) == []
        assert audit.pending(sound.folder) == {"m": 1}, "and it is in use"


def test_what_may_pass_is_not_taken_for_damage(tmp_path):
    folder.prepare(tmp_path)
    claim = folder.create(tmp_path)
    store = Store(claim.folder)
    with store.transaction() as changes:
        changes.append(["m"], [b"event"], 1.0)
    with closing(sqlite3.connect(claim.folder / FILE)) as database:
        database.execute("PRAGMA wal_checkpoint(PASSIVE)")
    spool = tmp_path / "copy"
    shutil.copytree(claim.folder, spool)
    seen = Witness(store.seq, store.books)
    store.close()
    claim.release()
    log = spool / f"{FILE}-wal"
    content = bytearray(log.read_bytes())
    content[32 + 24 + 100] ^= 1
    log.write_bytes(content)
    assert wal.read(bytes(content)).damage is not None
    refused = 0
    for free in range(1, 6):
        copy = tmp_path / str(free)
        shutil.copytree(spool, copy)
        with few_descriptors(free):
            try:
                found = damage.before_opening(copy, seen)
            except (OSError, sqlite3.Error):
                refused += 1
            else:
                assert found is None, "all of it is in the database"
    assert 0 < refused < 5


def test_a_spool_of_a_newer_version_is_left_alone_and_told(tmp_path):
    folder.prepare(tmp_path)
    claim = folder.create(tmp_path)
    store = Store(claim.folder)
    with store.transaction() as changes:
        changes.append(["m"], [b"event"], 1.0)
    with store.transaction() as changes:
        changes._disk.set("m/layout", b"\x03")
    store.close()
    claim.release()
    before = (claim.folder / FILE).read_bytes()
    with Agent(tmp_path, [MemoryDestination(name="m")]) as agent:
        assert agent.add_activity("acme", "u", "active").delivered(30)
        assert agent.books()["m"].delivered == 1, "the others' books are there"
    assert (claim.folder / FILE).read_bytes() == before
    (problem,) = overview(tmp_path, ["m"]).problems
    assert claim.id in problem
    assert "newer version" in problem
    assert reports(tmp_path) == []
