"""The spooler: group commits, questions and answers, a disk that is full, refuses or vanishes, and whose folder it is."""

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from base64 import b85encode
from contextlib import closing
from pathlib import Path

import pytest
from waiting import until

from per_agent.books import Books, total
from per_agent.errors import BufferFull, SpoolError, SpoolFull
from per_agent.event import Activity, Progress
from per_agent.intake import Intake
from per_agent.settings import IntakeSettings, SpoolSettings
from per_agent.spool import (
    Block,
    DeadLetter,
    DeadLetters,
    Parking,
    Settlement,
    Spool,
    abandoned,
    answer_requests,
    folder,
    own,
    snapshots,
)
from per_agent.spool.disk import FILE
from per_agent.spool.filed import letters as filed_letters

LANES = ("a",)
PATIENT = IntakeSettings(linger=60.0)  # seconds: what is committed sooner was not committed by the clock
QUICK = IntakeSettings(linger=0.0)
MIB = 2**20


class Bench:
    """A spool at work with a real intake in front of it, and what it committed."""

    def __init__(self, data_dir: Path, lanes=LANES, intake=QUICK, settings=SpoolSettings()) -> None:  # noqa: B008  (frozen)
        self.data_dir = data_dir
        self.progress = Progress(self._wake)
        self.intake = Intake(intake, self.progress, self._wake)
        self.spool = Spool(
            lambda unusable: own(data_dir, lanes, unusable),
            self.intake,
            self.progress,
            intake=intake,
            settings=settings,
        )
        self.replies: list[list[Block]] = []
        self._n = 0

    def _wake(self) -> None:
        self.spool.wake()

    def add(self, lanes=LANES, size=10):
        self._n += 1
        user = b85encode(random.Random(self._n).randbytes(size))[:size].decode()  # what hardly compresses
        return self.intake.accept(Activity(f"id-{self._n}", "acme", user, "active", 1.0), lanes)

    def ask(self, after=None, limit=100, lane="a") -> list[Block]:
        """The head of a lane; waits until there is one."""
        answer: list[list[Block]] = []
        self.spool.head(lane, after, limit, answer.append)
        return until(lambda: answer)[0]

    def settle(self, block: Block, **what) -> None:
        done = threading.Event()
        self.spool.settle(block, Settlement(**what), done.set, hurried=True)
        assert done.wait(30)

    def hold(self) -> threading.Event:
        """Hold the spooler up inside a transaction until the event is set."""
        held, go = threading.Event(), threading.Event()

        def change(_: object) -> None:
            held.set()
            go.wait(30)

        self.spool.post(change)
        assert held.wait(30)
        return go

    def books(self, lane="a") -> Books:
        return self.spool.books.get(lane, Books())


@pytest.fixture
def bench(tmp_path):
    """Makes benches, and stops their spools at the end."""
    made: list[Bench] = []

    def make(data_dir=tmp_path, **options) -> Bench:
        one = Bench(data_dir, **options)
        made.append(one)
        one.spool.start()
        one.spool.wait_opened(30)
        return one

    yield make
    for one in made:
        assert one.spool.stop(30)


def on_disk(data_dir: Path) -> dict[str, Books]:
    """The books over all spools, each recounted from its blocks first."""
    found = snapshots(data_dir)
    assert [problem for one in found for lane in one.lanes.values() for problem in lane.problems] == []
    return total({name: lane.books for name, lane in one.lanes.items()} for one in found)


def names(place: Path) -> list[str]:
    return [path.name for path in place.iterdir()]


# Commits


def test_an_event_is_stored_at_once_when_nothing_was_going_on(bench):
    spool = bench(intake=PATIENT)
    receipt = spool.add()
    until(lambda: spool.spool.commits == 1)  # nobody waits for the receipt, which would hurry the commit
    assert receipt.stored(0)


def test_events_share_a_commit_when_a_block_is_full(bench):
    spool = bench(intake=IntakeSettings(linger=60.0, block_events=10))
    spool.add()
    until(lambda: spool.spool.commits == 1)
    receipts = [spool.add() for _ in range(10)]
    until(lambda: receipts[-1].stored(0))
    assert spool.spool.commits == 2
    assert [block.count for block in spool.ask()] == [1, 10]


def test_somebody_who_waits_is_not_held_up_by_the_linger(bench):
    spool = bench(intake=PATIENT)
    spool.add()
    until(lambda: spool.spool.commits == 1)
    assert spool.add().stored(30)


def test_the_events_of_a_burst_share_few_commits(bench):
    spool = bench(intake=IntakeSettings(linger=0.05))
    receipts = [spool.add() for _ in range(20_000)]
    assert receipts[-1].stored(30)
    assert spool.spool.commits < 1000
    assert spool.books() == Books(20_000, pending=20_000)


def test_events_are_stored_in_the_order_in_which_they_were_accepted(bench):
    spool = bench(intake=IntakeSettings(linger=0.0, block_events=7))
    receipts = [spool.add() for _ in range(500)]
    assert receipts[-1].stored(30)
    assert [event for block in spool.ask(limit=1000) for event in block.events] == [
        one._encoded for one in receipts
    ]


def test_a_receipt_is_stored_only_after_the_commit(bench):
    spool = bench()
    go = spool.hold()
    receipt = spool.add()
    assert not receipt.stored(0.05)
    file = spool.spool.folder / FILE
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as other:
        question = "SELECT count(*) FROM Cache WHERE key LIKE 'l/a/b/%'"
        assert other.execute(question).fetchone() == (0,)
        go.set()
        assert receipt.stored(30)
        assert other.execute(question).fetchone() == (1,), "and then everybody can see it"


def test_an_event_for_two_lanes_is_committed_to_both_at_once(bench):
    spool = bench(lanes=("a", "b"))
    receipt = spool.add(lanes=("a", "b"))
    assert receipt.stored(30)
    assert spool.spool.commits == 1
    assert spool.ask(lane="a")[0].events == spool.ask(lane="b")[0].events
    assert on_disk(spool.data_dir) == {"a": Books(1, pending=1), "b": Books(1, pending=1)}


def test_events_and_settlements_share_a_commit(bench):
    spool = bench()
    spool.add().stored(30)
    (block,) = spool.ask()
    go = spool.hold()
    spool.spool.settle(block, Settlement(delivered=[0]), lambda: None)
    receipt = spool.add()
    before = spool.spool.commits
    go.set()
    assert receipt.stored(30)
    assert spool.spool.commits - before <= 1
    assert spool.books() == Books(2, 1, pending=1)


# Questions


def test_a_question_that_finds_nothing_is_answered_when_something_comes(bench):
    spool = bench()
    replies: list[list[Block]] = []
    spool.spool.head("a", None, 10, replies.append)
    spool.spool.look(lambda store: None)
    assert replies == []
    receipt = spool.add()
    until(lambda: replies)
    ((block,),) = replies
    assert list(block.events) == [receipt._encoded]


def test_a_fresh_block_is_handed_over_from_memory_and_not_read_back(bench):
    spool = bench()
    replies: list[list[Block]] = []
    spool.spool.head("a", None, 10, replies.append)
    spool.spool.look(lambda store: None)
    receipt = spool.add()
    until(lambda: replies)
    assert replies[0][0].events[0] is receipt._encoded


def test_fresh_blocks_beyond_what_was_asked_for_come_with_the_next_question(bench):
    spool = bench(intake=IntakeSettings(linger=0.0, block_events=1))
    replies: list[list[Block]] = []
    spool.spool.head("a", None, 2, replies.append)
    go = spool.hold()
    receipts = [spool.add() for _ in range(5)]
    go.set()
    (first,) = until(lambda: replies)
    rest = spool.ask(after=first[-1].id)
    assert [event for block in (*first, *rest) for event in block.events] == [
        one._encoded for one in receipts
    ]


def test_a_later_question_takes_the_place_of_the_one_that_is_open(bench):
    spool = bench()
    replies: list[str] = []
    spool.spool.head("a", None, 10, lambda _: replies.append("earlier"))
    spool.spool.head("a", None, 10, lambda _: replies.append("later"))
    spool.spool.look(lambda store: None)
    assert spool.add().stored(30)
    until(lambda: replies)
    spool.spool.look(lambda store: None)
    assert replies == ["later"]


def test_unparked_blocks_are_found_by_a_question_that_begins_anew(bench):
    spool = bench()
    spool.add().stored(30)
    (old,) = spool.ask()
    spool.add().stored(30)
    (new,) = spool.ask(after=old.id)
    spool.settle(old, parked=[(Parking("k", "asleep", 1.0), [0])])
    assert [block.id for block in spool.ask()] == [new.id]
    replies: list[list[Block]] = []
    spool.spool.head("a", new.id, 10, replies.append)
    assert spool.spool.run(lambda changes: changes.unpark("a", "k"))
    found = spool.ask()
    assert [block.id.seq for block in found] == [old.id.seq, new.id.seq]
    assert replies == [], "what lies before it is none of the open question's business"


def test_an_open_question_is_answered_with_what_was_requeued(bench):
    spool = bench()
    spool.add().stored(30)
    (block,) = spool.ask()
    spool.settle(block, dead=[(0, DeadLetter(block.events[0], "refused", "no", 1, 1.0))])
    replies: list[list[Block]] = []
    spool.spool.head("a", block.id, 10, replies.append)
    (filed,) = letters_of(spool)
    spool.spool.run(lambda changes: changes.requeue("a", [filed.number]))
    until(lambda: replies)
    assert list(replies[0][0].events) == list(block.events)


def letters_of(spool: Bench):
    return list(filed_letters(spool.spool.folder))


def test_a_damaged_block_is_set_aside_and_the_next_ones_go_on(bench):
    spool = bench(intake=IntakeSettings(linger=0.0, block_events=1))
    for _ in range(12):
        receipt = spool.add()
    assert receipt.stored(30)
    damaged = spool.ask()[:10]
    with closing(sqlite3.connect(spool.spool.folder / FILE, timeout=30)) as database, database:
        for block in damaged:
            database.execute(
                "UPDATE Cache SET value = CAST(replace(value, 'acme', 'evil') AS BLOB) WHERE key = ?",
                (f"l/a/b/{block.id}",),
            )
    assert len(spool.ask(limit=3)) == 2, "all that were asked for first are damaged, and yet it is answered"
    spool.spool.look(lambda store: None)  # the last of them leaves with the next commit, after the answer
    assert on_disk(spool.data_dir) == {"a": Books(12, dead=10, pending=2)}


def test_a_row_that_somebody_else_wrote_holds_nothing_up(bench):
    spool = bench(intake=IntakeSettings(linger=0.0, block_events=1))
    for _ in range(3):
        receipt = spool.add()
    assert receipt.stored(30)
    first = spool.ask()[0]
    with closing(sqlite3.connect(spool.spool.folder / FILE, timeout=30)) as database, database:
        database.execute("UPDATE Cache SET mode = 4 WHERE key = ?", (f"l/a/b/{first.id}",))
    assert len(spool.ask()) == 2
    assert spool.add().stored(30)
    assert spool.spool.trouble is None


# Changes


def test_a_change_that_fails_fails_alone(bench):
    spool = bench()
    spool.add().stored(30)
    (block,) = spool.ask()
    go = spool.hold()
    done = threading.Event()
    failed: list[BaseException] = []

    def fail(_: object) -> None:
        raise ZeroDivisionError("a defect")

    def ask() -> None:
        try:
            spool.spool.run(fail)
        except ZeroDivisionError as error:
            failed.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    spool.spool.settle(block, Settlement(delivered=[0]), done.set)
    receipt = spool.add()
    before = spool.spool.commits
    go.set()
    assert done.wait(30)
    asker.join(30)
    assert failed
    assert receipt.stored(30)
    assert spool.books() == Books(2, 1, pending=1)
    assert spool.spool.commits > before, "those who wait for commits hear of these too"
    assert spool.spool.trouble is None
    assert on_disk(spool.data_dir) == {"a": Books(2, 1, pending=1)}


def test_a_commit_is_counted_also_when_another_change_failed(bench):
    spool = bench()
    spool.add().stored(30)
    (block,) = spool.ask()
    go = spool.hold()
    spool.spool.post(lambda _: 1 / 0)
    done = threading.Event()
    spool.spool.settle(block, Settlement(delivered=[0]), done.set)
    go.set()
    before = 1
    assert done.wait(30)
    until(lambda: spool.spool.commits > before, timeout=5)


def test_what_a_change_met_on_the_disk_fails_that_change_and_not_the_disk(bench):
    spool = bench()
    spool.spool.run(lambda changes: changes.absorb("x", {}), timeout=30)
    with closing(sqlite3.connect(spool.spool.folder / FILE, timeout=30)) as database, database:
        assert database.execute("UPDATE Cache SET mode = 4 WHERE key = 'a/x'").rowcount == 1
    with pytest.raises(SpoolError):
        spool.spool.run(lambda changes: changes.absorb("x", {}), timeout=30)
    assert spool.add().stored(30)
    assert spool.spool.trouble is None


def test_a_change_answers_with_its_result_and_a_look_with_what_it_found(bench):
    spool = bench()
    assert spool.spool.run(lambda changes: 42) == 42
    seq = spool.spool.look(lambda store: store.seq)
    assert spool.add().stored(30)
    assert spool.spool.look(lambda store: store.seq) == seq + 1


def test_the_delivery_of_identical_events_is_told_to_each_of_their_receipts(bench):
    spool = bench()
    event = Activity("same-id", "acme", "u-1", "active", 1.0)
    go = spool.hold()
    one, other = (spool.intake.accept(event, LANES) for _ in range(2))
    go.set()
    assert one.stored(30)
    (block,) = spool.ask()
    assert block.count == 2
    spool.settle(block, parked=[(Parking("k", "asleep", 1.0), [0, 1])])
    spool.spool.run(lambda changes: changes.unpark("a", "k"))
    (again,) = spool.ask()
    spool.settle(again, delivered=[0, 1])
    assert one.delivered(5)
    assert other.delivered(5)


# Full

SMALL = SpoolSettings(max_bytes=MIB)


def fill(spool: Bench) -> int:
    """Add events until the spool is full. Returns how many were accepted."""
    accepted = 0

    def one_more() -> bool:
        nonlocal accepted
        try:
            spool.add(size=10_000)
        except SpoolFull:
            return True
        except BufferFull:
            return False
        accepted += 1
        return False

    until(one_more, every=0.0005)
    return accepted


def drain(spool: Bench, count: int) -> None:
    """Deliver *count* events."""
    while count:
        for block in spool.ask(limit=4):
            spool.settle(block, delivered=list(block.pending()))
            count -= block.count


def test_a_full_spool_refuses_new_events_by_name(bench):
    spool = bench(settings=SMALL)
    fill(spool)
    with pytest.raises(SpoolFull, match="its limit is 1048576"):
        spool.add()
    assert spool.spool.trouble == "full"
    assert spool.intake.overflows["raised"] >= 2


def test_a_full_spool_settles_what_it_holds_and_takes_new_events_by_itself_when_there_is_room(bench):
    spool = bench(settings=SMALL)
    accepted = fill(spool)
    drain(spool, accepted)

    def taken() -> bool:
        try:
            return spool.add().stored(30)
        except SpoolFull:
            return False

    until(taken)
    assert spool.spool.trouble is None
    books = spool.books()
    assert books.balanced
    assert (books.delivered, books.dropped) == (accepted, 0)


def test_a_spool_that_was_filled_by_its_only_block_takes_new_events_when_that_is_delivered(bench):
    spool = bench(settings=SpoolSettings(max_bytes=64 * 1024), intake=IntakeSettings(linger=60.0))
    go = spool.hold()
    receipts = [spool.add(size=50_000) for _ in range(3)]
    go.set()
    assert receipts[-1].stored(30)
    spool.spool.run(lambda changes: changes.note("a", b"{}"))  # the next commit notices that it is full
    until(lambda: spool.spool.trouble == "full")
    drain(spool, 3)
    until(lambda: spool.spool.trouble is None, timeout=10)
    assert spool.add().stored(30)


def test_a_caller_that_chose_to_wait_goes_on_when_a_full_spool_has_room(bench):
    spool = bench(settings=SMALL, intake=IntakeSettings(linger=0.0, overflow="block", buffer_events=10))
    count = 300
    receipts = []

    def record() -> None:
        receipts.extend(spool.add(size=10_000) for _ in range(count))

    caller = threading.Thread(target=record)
    caller.start()
    until(lambda: spool.intake.overflows["blocked"])
    assert caller.is_alive()
    drain(spool, count)
    caller.join(30)
    assert not caller.is_alive()
    assert receipts[-1].stored(30)
    assert on_disk(spool.data_dir)["a"].delivered == count


def test_a_full_spool_drops_new_events_where_that_was_chosen_and_counts_them(bench):
    spool = bench(settings=SMALL, intake=IntakeSettings(linger=0.0, overflow="drop_newest"))
    receipts = []
    until(lambda: receipts.append(spool.add(size=10_000)) or receipts[-1].dropped, every=0.0005)
    dropped = [spool.add() for _ in range(10)]
    assert all(receipt.dropped for receipt in dropped)
    assert not dropped[0].stored(0)
    until(lambda: spool.books().dropped == 11)
    assert spool.intake.overflows["dropped"] == 11
    assert (
        spool.books().accepted + spool.intake.waiting() + sum(spool.spool.in_memory().values())
        == len(receipts) + 10
    )
    assert spool.books().balanced


def test_a_full_spool_stores_at_its_stop_what_was_accepted_all_the_same(bench):
    spool = bench(settings=SMALL)
    accepted = fill(spool)
    assert spool.spool.stop(30)
    assert on_disk(spool.data_dir) == {"a": Books(accepted, pending=accepted)}


# Trouble of the disk

REFUSING = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_spool import Bench, on_disk
from waiting import until
from per_agent.spool import Settlement

spool = Bench(Path(sys.argv[1]))
spool.spool.start()
spool.spool.wait_opened(30)
assert spool.add().stored(30)
(block,) = spool.ask()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
used = max(path.stat().st_size for path in spool.spool.folder.glob("cache.db*"))
resource.setrlimit(resource.RLIMIT_FSIZE, (used + 8192, hard))

receipts = [spool.add(size=20_000) for _ in range(50)]
settled = []
spool.spool.settle(block, Settlement(delivered=[0]), lambda: settled.append(True))
until(lambda: spool.spool.trouble)
assert not receipts[-1].stored(0.3)
assert not settled
assert spool.intake.waiting() + sum(spool.spool.in_memory().values()) == 50
print(spool.spool.trouble)
receipts += [spool.add() for _ in range(5)]
if {heals}:
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert all(receipt.stored(30) for receipt in receipts)
    until(lambda: settled)
    assert spool.spool.trouble is None
    assert spool.spool.stop(30)
    print(on_disk(spool.data_dir)["a"].as_dict())
else:
    assert not spool.spool.stop(0.5) or spool.intake.waiting() + sum(spool.spool.in_memory().values()) == 55
    print("stopped")
"""


def refusing(tmp_path: Path, *, heals: bool) -> list[str]:
    program = REFUSING.replace("{heals}", str(heals))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "data"), str(Path(__file__).parent)],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


FULL_AND_REFUSING = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_spool import SMALL, Bench, fill
from waiting import until
from per_agent.spool import Settlement

spool = Bench(Path(sys.argv[1]), settings=SMALL)
spool.spool.start()
spool.spool.wait_opened(30)
accepted = fill(spool)
blocks = spool.ask(limit=1000)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
for block in blocks:
    spool.spool.settle(block, Settlement(delivered=range(block.count)), lambda: None)
until(lambda: spool.spool.trouble not in (None, "full"))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
until(lambda: spool.spool.trouble is None)
assert spool.add().stored(30)
assert spool.spool.stop(30)
"""


def test_a_full_spool_on_a_disk_that_refuses_for_a_while_goes_on_by_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_AND_REFUSING, str(tmp_path / "data"), str(Path(__file__).parent)],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_disk_that_refuses_to_write_costs_nothing_that_was_accepted(tmp_path):
    trouble, books = refusing(tmp_path, heals=True)
    assert "OperationalError" in trouble
    assert books == str(Books(56, 1, pending=55).as_dict())


def test_a_stop_does_not_wait_for_ever_for_a_disk_that_refuses(tmp_path):
    trouble, stopped = refusing(tmp_path, heals=False)
    assert "OperationalError" in trouble
    assert stopped == "stopped"
    assert on_disk(tmp_path / "data") == {"a": Books(1, pending=1)}, "and what was stored before is whole"


def test_a_database_that_somebody_holds_locked_is_waited_for(bench):
    spool = bench()
    with closing(sqlite3.connect(spool.spool.folder / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        receipt = spool.add()
        assert not receipt.stored(0.3)
        other.execute("COMMIT")
    assert receipt.stored(30)


@pytest.mark.parametrize("what", ["file", "folder", "spools", "data folder"])
def test_a_database_that_is_deleted_under_way_is_made_anew_and_takes_what_is_in_memory(bench, tmp_path, what):
    spool = bench(tmp_path / "data")
    assert spool.add().stored(30)
    (gone,) = spool.ask()
    go = spool.hold()
    receipts = [spool.add() for _ in range(5)]
    place = spool.spool.folder
    if what == "file":
        for path in place.glob(f"{FILE}*"):
            path.unlink()
    else:
        shutil.rmtree({"folder": place, "spools": place.parent, "data folder": place.parent.parent}[what])
    go.set()
    receipts += [spool.add() for _ in range(5)]
    # Those that were being committed while it was deleted went into a file without a name; the others did not.
    assert receipts[-1].stored(30)
    receipts.append(spool.add())
    assert receipts[-1].stored(30)
    assert spool.spool.trouble is None
    found = spool.ask(after=gone.id)
    events = [event for block in found for event in block.events]
    assert events == [receipt._encoded for receipt in receipts[-len(events) :]]
    assert len(events) >= 6
    spool.settle(gone, delivered=[0])
    spool.settle(found[0], delivered=list(found[0].pending()))
    # Where only the file is gone, the witness beside it still knows of the event that was lost with it.
    lost = 1 if what == "file" else 0
    assert on_disk(tmp_path / "data") == {
        "a": Books(len(events) + lost, found[0].count, dead=lost, pending=len(events) - found[0].count)
    }


def test_a_folder_that_cannot_be_used_is_said_and_tried_again(bench, tmp_path):
    (tmp_path / "data").write_text("in the way")
    spool = Bench(tmp_path / "data")
    spool.spool.start()
    try:
        with pytest.raises(SpoolError, match="cannot keep a spool here"):
            spool.spool.wait_opened(30)
        receipt = spool.add()
        assert not receipt.stored(0.1)
        assert spool.spool.trouble
        (tmp_path / "data").unlink()
        assert receipt.stored(30)
        assert spool.spool.trouble is None
    finally:
        assert spool.spool.stop(30)


# Stopping


def test_a_stop_stores_everything_that_was_accepted(bench):
    spool = bench(intake=PATIENT)
    receipts = [spool.add() for _ in range(5000)]
    assert spool.spool.stop(30)
    assert all(receipt.stored(0) for receipt in receipts)
    assert on_disk(spool.data_dir) == {"a": Books(5000, pending=5000)}


def test_after_a_stop_changes_are_refused_and_nobody_waits_for_ever(bench):
    spool = bench()
    receipt = spool.add()
    assert receipt.stored(30)
    assert spool.spool.stop(30)
    with pytest.raises(SpoolError, match="closed"):
        spool.spool.run(lambda changes: None)
    assert receipt.delivered() is False


def test_a_stop_before_the_start_is_no_problem(tmp_path):
    assert Bench(tmp_path).spool.stop(1)


def test_a_stop_that_comes_while_the_spool_cannot_be_opened_ends_the_thread(tmp_path):
    (tmp_path / "data").write_text("in the way")
    spool = Bench(tmp_path / "data")
    spool.spool.start()
    until(lambda: spool.spool.trouble)
    assert spool.spool.stop(30)


def test_a_stop_ends_the_thread_also_when_the_folder_is_gone_and_cannot_be_made_again(tmp_path):
    spool = Bench(tmp_path / "data")
    spool.spool.start()
    spool.spool.wait_opened(30)
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "data").write_text("in the way")
    receipt = spool.add()
    until(lambda: spool.spool.trouble)
    spool.spool.stop(0.5)
    assert not receipt.stored(0)
    until(lambda: not spool.spool._thread.is_alive(), timeout=10)


# Whose folder it is

HOLDING = """
import sys
from pathlib import Path
from per_agent.spool import folder
folder.prepare(Path(sys.argv[1]))
claim = folder.create(Path(sys.argv[1]))
print(claim.id, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds a spool of its own under the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.spool_id = process.stdout.readline().strip()  # type: ignore[attr-defined]
    yield process
    process.kill()
    process.wait(30)
    process.stdin.close()
    process.stdout.close()


def test_a_spool_that_another_process_holds_cannot_be_taken_until_that_process_died(tmp_path, other_process):
    place = tmp_path / "spools" / other_process.spool_id
    assert folder.claim(place) is None
    assert folder.held(place)
    assert own(tmp_path, LANES).id != other_process.spool_id
    other_process.kill()
    other_process.wait(30)
    assert not folder.held(place)
    taken = own(tmp_path, LANES)
    assert taken.id == other_process.spool_id
    assert folder.claim(place) is None, "and now it is ours"
    taken.release()


def test_a_spool_can_be_held_once_within_a_process_too(tmp_path):
    folder.prepare(tmp_path)
    claim = folder.create(tmp_path)
    assert folder.claim(claim.folder) is None
    claim.release()
    claim.release()
    again = folder.claim(claim.folder)
    assert again is not None
    again.release()


def test_folders_are_for_their_owner_only(bench, tmp_path):
    before = os.umask(0)
    try:
        spool = bench(tmp_path / "data")
        assert spool.add().stored(30)
        answer_requests(spool.spool.folder, spool.spool.post)
        for path in (tmp_path / "data", *(tmp_path / "data").rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    finally:
        os.umask(before)


def test_a_folder_that_is_removed_while_it_is_being_claimed_is_not_claimed(tmp_path):
    folder.prepare(tmp_path)
    claim = folder.create(tmp_path)
    claim.remove()
    assert folder.claim(claim.folder) is None
    assert not folder.held(claim.folder)
    assert folder.spools(tmp_path) == []


def test_a_program_that_runs_again_and_again_keeps_one_spool(bench, tmp_path):
    ids = set()
    for _ in range(3):
        spool = bench()
        assert spool.add().stored(30)
        ids.add(spool.spool.id)
        assert spool.spool.stop(30)
    assert len(ids) == 1
    assert on_disk(tmp_path) == {"a": Books(3, pending=3)}


def test_two_agents_at_once_have_a_spool_each(bench, tmp_path):
    one, other = bench(), bench()
    assert one.add().stored(30)
    assert other.add().stored(30)
    assert one.spool.id != other.spool.id
    assert on_disk(tmp_path) == {"a": Books(2, pending=2)}


def test_a_spool_with_events_for_a_destination_that_is_not_ours_is_left_alone(bench, tmp_path):
    theirs = bench(lanes=("a", "b"))
    assert theirs.add(lanes=("a", "b")).stored(30)
    assert theirs.spool.stop(30)
    ours = bench(lanes=("a",))
    assert ours.spool.id != theirs.spool.id
    assert [claim.id for claim in abandoned(tmp_path, ("a",))] == []
    back = bench(lanes=("b", "a", "c"))
    assert back.spool.id == theirs.spool.id


def test_a_spool_whose_foreign_lane_is_drained_may_be_taken(bench):
    theirs = bench(lanes=("a", "b"))
    assert theirs.add(lanes=("a", "b")).stored(30)
    (block,) = theirs.ask(lane="b")
    theirs.settle(block, delivered=[0])
    assert theirs.spool.stop(30)
    assert bench(lanes=("a",)).spool.id == theirs.spool.id


def test_abandoned_spools_are_taken_one_by_one_and_only_those_that_nobody_holds(tmp_path):
    folder.prepare(tmp_path)
    claims = [folder.create(tmp_path) for _ in range(4)]
    for claim in (claims[0], claims[2], claims[3]):
        claim.release()
    taken = abandoned(tmp_path, LANES)
    first = next(taken)
    assert first.id == claims[0].id, "the oldest one"
    assert not folder.held(claims[2].folder), "the next is not taken before it is asked for"
    assert [claim.id for claim in taken] == [claims[2].id, claims[3].id]


def test_what_is_left_of_a_removed_spool_is_swept_away(bench, tmp_path):
    spool = bench()
    assert spool.add().stored(30)
    assert spool.spool.stop(30)
    (place,) = folder.spools(tmp_path)
    place.rename(place.with_name(place.name + ".going"))  # as far as a remover came that died over it
    assert snapshots(tmp_path) == []
    fresh = bench()
    assert names(tmp_path / "spools") == [fresh.spool.id]


def retired(bench, tmp_path) -> folder.Claim:
    """A spool that was drained and given up, as its adopter holds it before it absorbs it."""
    spool = bench()
    assert spool.add().stored(30)
    (block,) = spool.ask()
    spool.settle(block, delivered=[0])
    claim = until(spool.spool.retire)
    assert folder.held(claim.folder), "the folder stays held"
    return claim


def test_the_books_of_an_absorbed_spool_count_once_at_every_moment(bench, tmp_path):
    claim = retired(bench, tmp_path)
    books = {"a": Books(1, 1)}
    assert on_disk(tmp_path) == books
    heir = bench()
    assert on_disk(tmp_path) == books
    heir.spool.run(lambda changes: changes.absorb(claim.id, books))
    assert on_disk(tmp_path) == books, "they are in the heir's, and the folder is still there"
    claim.remove()
    assert on_disk(tmp_path) == books
    heir.spool.run(lambda changes: changes.forget(claim.id))
    assert on_disk(tmp_path) == books
    assert names(tmp_path / "spools") == [heir.spool.id]


def test_an_adopter_that_dies_between_absorbing_and_removing_leaves_books_that_count_once(bench, tmp_path):
    claim = retired(bench, tmp_path)
    books = {"a": Books(1, 1)}
    heir = bench()
    heir.spool.run(lambda changes: changes.absorb(claim.id, books))
    assert heir.spool.stop(30)
    claim.release()  # the process is dead
    assert on_disk(tmp_path) == books
    successor = bench()
    list(abandoned(tmp_path, LANES))
    assert on_disk(tmp_path) == books
    assert names(tmp_path / "spools") == [successor.spool.id]
    successor.spool.run(lambda changes: changes.absorb(claim.id, books))
    assert on_disk(tmp_path) == books, "and absorbing it again adds nothing"


# Requests about dead letters, from outside


def dead_letter(spool: Bench) -> None:
    assert spool.add().stored(30)
    (block,) = spool.ask()
    spool.settle(block, dead=[(0, DeadLetter(block.events[0], "refused", "no", 1, 1.0))])


def test_a_holder_requeues_what_another_process_asks_for(bench, tmp_path):
    spool = bench()
    dead_letter(spool)
    letters = DeadLetters(tmp_path)
    stop = threading.Event()

    def tend() -> None:
        while not stop.wait(0.01):
            answer_requests(spool.spool.folder, spool.spool.post)

    tending = threading.Thread(target=tend)
    tending.start()
    try:
        listed = list(letters)
        assert letters.requeue(listed) == 1
        assert letters.requeue(listed) == 0, "it is there no more"
    finally:
        stop.set()
        tending.join(30)
    assert spool.books() == Books(1, pending=1)
    assert names(spool.spool.folder / "requests") == []


def test_letters_of_a_spool_that_nobody_holds_are_changed_at_once(bench, tmp_path):
    spool = bench()
    dead_letter(spool)
    assert spool.spool.stop(30)
    letters = DeadLetters(tmp_path)
    assert letters.purge(letters) == 1
    assert on_disk(tmp_path) == {"a": Books(1, dead=1, purged=1)}
    assert list(letters) == []


def test_a_request_that_makes_no_sense_is_passed_over(bench):
    spool = bench()
    requests = spool.spool.folder / "requests"
    requests.mkdir()
    (requests / "1.ask").write_text("{not json")
    (requests / "2.ask").write_text('{"what":"destroy","lane":"a","numbers":[1]}')
    (requests / "notes.txt").write_text("hello")
    answer_requests(spool.spool.folder, spool.spool.post)
    assert spool.add().stored(30)
