"""The journal: what is written is read back, its few slots are used again, and each event comes in once, by whomever."""

import ctypes
import dis
import itertools
import os
import re
import signal
import sys
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from journals import make, write
from programs import run, start
from waiting import until

from per_agent import Agent, BufferFull, IntakeSettings, MemoryDestination, SpoolSettings
from per_agent.errors import AgentClosed
from per_agent.event import MAX_EVENT_BYTES, Activity, MeterEvent, Progress, encode
from per_agent.intake import Intake
from per_agent.journal import FOLDER, JournalFull, Stamps, is_abandoned, pending, read
from per_agent.journal.layout import HEAD, SLOT
from per_agent.spool import snapshots

ONE, BOTH = ("per",), ("per", "kit")
LATER = IntakeSettings(linger=60.0)


@pytest.fixture
def journal(tmp_path):
    made = make(tmp_path, 100)
    yield made
    made.let_go()


def found(journal) -> list[tuple[tuple[str, ...], bytes]]:
    left = read(journal.path)
    assert (left.cut, left.damaged, left.missing) == ([], [], 0)
    return [(event.lanes, event.encoded) for event in left.events]


def add(agent: Agent, name: str = "u"):
    return agent.add_activity("acme", name, "active")


def journals(data_dir):
    return sorted(data_dir.rglob("*.journal"))


# By itself


@examples(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([ONE, BOTH]), st.integers(0, 2000)), max_size=30))
def test_what_is_written_is_read_back_to_the_byte_in_order_and_with_its_lanes(tmp_path_factory, events):
    journal = make(tmp_path_factory.mktemp("journal"), 100)
    written = [(lanes, os.urandom(length) + b"\0") for lanes, length in events]
    for lanes, encoded in written:
        write(journal, encoded, lanes)
    assert found(journal) == written
    journal.remove()


@pytest.mark.parametrize("length", [177, 178, 179, 166 * 2, 166 * 2 + 1, MAX_EVENT_BYTES])
def test_an_event_of_any_length_comes_back_whole(journal, length):
    encoded = os.urandom(length)
    place = write(journal, encoded, BOTH)
    assert isinstance(place, int) is (length <= 178)
    assert found(journal) == [(BOTH, encoded)]
    assert set(pending(journal.path)) == set(BOTH)
    journal.release([place])
    assert found(journal) == []


def test_the_same_few_slots_are_used_however_many_events_go_through(journal):
    for n in range(5000):
        places = [write(journal, b"%d" % n, ONE), write(journal, bytes(1000), ONE)]
        journal.release(places)
    assert not any(journal.path.read_bytes()[HEAD + 16 * SLOT :])


def test_what_is_in_a_journal_stays_when_its_memory_is_given_back(journal):
    places = [write(journal, b"%d" % n, ONE) for n in range(100)]
    before = found(journal)
    journal.shrink()
    assert found(journal) == before
    journal.release(places[:50])
    assert [encoded for _, encoded in found(journal)] == [b"%d" % n for n in range(50, 100)]
    write(journal, b"another", BOTH)
    assert found(journal)[-1] == (BOTH, b"another")


def test_a_program_that_keeps_all_its_memory_does_not_disturb_a_journal(journal):
    write(journal, b"kept", ONE)
    libc, mapped = ctypes.CDLL(None, use_errno=True), (ctypes.c_char * HEAD).from_buffer(journal.slots.file)
    if libc.mlock(mapped, ctypes.c_size_t(HEAD)):
        pytest.skip("no memory can be locked here")
    del mapped
    journal.shrink()
    assert found(journal) == [(ONE, b"kept")]


def test_a_full_journal_says_so_and_takes_events_again_when_slots_are_freed(journal):
    places = [write(journal, b"event", ONE) for _ in range(100 + 25 + 512)]
    with pytest.raises(JournalFull):
        write(journal, b"event", ONE)
    journal.release(places[:400])
    assert journal.fits(bytes(60_000))
    journal.release([write(journal, bytes(60_000), ONE)])
    journal.release(places[400:410])
    for _ in range(410):
        write(journal, b"event", ONE)
    assert not journal.fits(b"event")
    assert len(found(journal)) == 637


def test_a_long_event_that_does_not_fit_leaves_nothing(journal):
    write(journal, bytes(MAX_EVENT_BYTES), ONE)
    with pytest.raises(JournalFull):
        write(journal, bytes(MAX_EVENT_BYTES), ONE)
    assert len(found(journal)) == 1
    places = [write(journal, b"event", ONE) for _ in range(637 - 395)]
    assert len(places) == 242, "every slot that it had taken came back"


BETWEEN = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME"}


def interrupted(call, at: int, interruption) -> bool:
    """Run *call*, and *interruption* at the moment number *at* at which the interpreter may run a signal handler, or
    another thread: after a call, at a turn of a loop, where a function begins. False: it had fewer."""
    steps = itertools.count()
    last: dict[object, str] = {}

    def trace(frame, event, _):
        frame.f_trace_opcodes = True
        if event == "opcode":
            before, last[frame] = last.get(frame), dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if before in BETWEEN and next(steps) == at:
                sys.settrace(None)
                interruption()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return next(steps) > at


@pytest.mark.signals
@pytest.mark.parametrize("length", [10, 500])
def test_an_event_that_comes_at_any_step_of_another_is_kept_beside_it_each_with_its_own_lanes(
    tmp_path, length
):
    for at in itertools.count():
        journal = make(tmp_path, 10)
        one, other = bytes([1]) * length, bytes([2]) * length
        struck = interrupted(
            lambda: write(journal, one, ONE),  # noqa: B023
            at,
            lambda: write(journal, other, BOTH),  # noqa: B023
        )
        assert sorted(found(journal)) == sorted([(ONE, one), *([(BOTH, other)] if struck else [])]), at
        journal.remove()
        if not struck:
            assert at > 10
            return


@pytest.mark.signals
@pytest.mark.parametrize("length", [10, 500])
def test_the_file_may_be_replaced_at_any_step_of_a_call(tmp_path, length):
    for at in itertools.count():
        journal = make(tmp_path, 10)
        encoded = bytes([1]) * length

        def replace(journal=journal):
            journal.path.unlink()
            journal.move(tmp_path)

        struck = interrupted(lambda: write(journal, encoded, ONE), at, replace)  # noqa: B023
        assert found(journal) == [(ONE, encoded)], at
        journal.remove()
        if not struck:
            return


@pytest.mark.signals
@pytest.mark.parametrize("length", [10, 500])
def test_a_journal_that_is_let_go_at_any_step_of_a_call_is_not_written_to_any_more(tmp_path, length):
    # As in a child that a signal handler made: what the call writes afterwards must go nowhere.
    for at in itertools.count():
        journal = make(tmp_path, 10)
        seen = []

        def let_go(journal=journal, seen=seen):
            journal.let_go()
            seen.append(journal.path.read_bytes())

        struck = interrupted(lambda: write(journal, bytes([1]) * length, ONE), at, let_go)  # noqa: B023
        if not struck:
            return
        after = journal.path.read_bytes()
        # A route that is being written just then is the one thing that may still go there, as the same bytes.
        assert after[HEAD:] == seen[0][HEAD:], at
        journal.path.unlink()


def test_an_event_of_a_process_that_died_has_the_identifier_that_its_receipt_told(tmp_path):
    told = run(
        """
        agent = Agent(data_dir, intake=IntakeSettings(linger=60.0))
        agent.add_activity("acme", "first", "active").stored(30)
        receipts = [agent.add_activity("acme", f"u-{n}" + "x" * 300 * (n % 2), "active") for n in range(50)]
        print(*(receipt.id for receipt in receipts), flush=True)
        os._exit(0)
        """,
        tmp_path,
    )
    destination = MemoryDestination(name="ledger")
    with Agent(tmp_path, [destination]) as agent:
        assert agent.flush(30)
    delivered = [event.id for event in destination.received if event.user_id != "first"]
    assert delivered == told.split()


def resident(name: str) -> int:
    """KiB of memory that the mappings of files with that suffix take."""
    mappings = Path("/proc/self/smaps").read_text().split("VmFlags")
    return sum(int(re.search(r"Rss: +(\d+) kB", each)[1]) for each in mappings if name in each)


def test_a_rush_leaves_no_memory_behind(tmp_path):
    with Agent(tmp_path, [MemoryDestination()], intake=IntakeSettings(linger=60.0)) as agent:
        add(agent).stored(30)
        for n in range(60_000):
            add(agent, f"u-{n}")
        assert resident(".journal") > 1024, "some of them waited"
        assert agent.flush(60)
        until(lambda: resident(".journal") < 1024 or not add(agent).stored(30))


# Stamps


@given(st.lists(st.lists(st.integers(1, 200), max_size=20), max_size=20))
def test_stamps_are_a_set_of_numbers(groups):
    stamps, model = Stamps(), set()
    for group in groups:
        stamps = stamps.plus(group)
        model |= set(group)
        assert Stamps.decode(stamps.encode()) == stamps
        assert {number for number in range(202) if number in stamps} == model
    assert list(stamps.ranges) == sorted(stamps.ranges)
    assert all(this[1] + 1 < following[0] for this, following in itertools.pairwise(stamps.ranges))


def test_the_ranges_of_stamps_are_bounded_and_the_oldest_gaps_close():
    stamps = Stamps().plus(range(0, 20_000, 2))
    assert len(stamps.ranges) == 4096
    assert 1 in stamps
    assert 19_997 not in stamps
    assert 19_998 in stamps


# In front of an agent


def test_a_clean_end_leaves_no_journal(tmp_path):
    with Agent(tmp_path, [MemoryDestination()], intake=LATER) as agent:
        receipt = add(agent)
        (path,) = journals(tmp_path)
        until(lambda: journals(tmp_path) and journals(tmp_path)[0].parent.parent.name == "spools")
        assert path.name == journals(tmp_path)[0].name
    assert receipt.is_stored
    assert journals(tmp_path) == []


def test_a_program_that_ends_without_close_leaves_no_journal(tmp_path):
    run('Agent(data_dir, [MemoryDestination()]).add_activity("acme", "u", "active")', tmp_path)
    assert journals(tmp_path) == []
    assert sum(lane.books.accepted for each in snapshots(tmp_path) for lane in each.lanes.values()) == 1


def test_without_a_journal_no_file_is_made(tmp_path):
    with Agent(tmp_path, [MemoryDestination()], intake=IntakeSettings(journal=False)) as agent:
        assert add(agent).stored(30)
        assert not (tmp_path / FOLDER).exists()
        assert agent.status()["journal"] == {"id": None, "trouble": None}


def test_where_no_journal_can_be_made_events_are_in_memory_and_it_is_said_until_one_can(tmp_path, caplog):
    (tmp_path / FOLDER).write_text("a file in the way")
    with Agent(tmp_path, [MemoryDestination()]) as agent:
        assert add(agent).delivered(30)
        assert add(agent).delivered(30)
        assert "there is no journal" in agent.status()["journal"]["trouble"]
        assert agent.unready is None, "events are accepted and stored"
        until(lambda: sum("there is no journal" in line for line in caplog.messages) == 1)
        (tmp_path / FOLDER).unlink()
        until(lambda: add(agent).delivered(30) and agent.status()["journal"]["id"])
        assert agent.status()["journal"]["trouble"] is None
        assert len(journals(tmp_path)) == 1


def test_a_disk_that_has_no_room_for_a_journal_does_not_keep_events_from_being_stored(tmp_path):
    out = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, 2 * 2**20))
        agent = Agent(data_dir, [MemoryDestination()])
        print(agent.add_activity("acme", "u", "active").delivered(30), agent.status()["journal"]["id"])
        agent.close()
        """,
        tmp_path,
    )
    assert out.split() == ["True", "None"]
    assert journals(tmp_path) == []


def door(data_dir, **settings) -> Intake:
    """An intake with a journal that nobody empties."""
    chosen = IntakeSettings(**settings)
    return Intake(
        chosen, Progress(lambda: None), lambda: None, lambda _: make(data_dir, chosen.buffer_events)
    )


def long_event(n: int = 0) -> MeterEvent:
    return MeterEvent(f"id-{n}", "calls", "cus", "1", 1.0, metadata="x" * 60_000)


def test_a_full_journal_raises_or_drops_as_a_full_buffer_does(tmp_path):
    full = door(tmp_path / "a", buffer_events=10)
    full.accept(long_event(), ONE)
    with pytest.raises(BufferFull):
        full.accept(long_event(), ONE)
    assert full.overflows["raised"] == 1
    dropping = door(tmp_path / "b", buffer_events=10, overflow="drop_newest")
    assert [dropping.accept(long_event(), BOTH).dropped for _ in range(3)] == [False, True, True]
    assert dropping.take_dropped() == {"per": 2, "kit": 2}


def test_a_caller_that_a_full_journal_holds_up_goes_on_when_there_is_room(tmp_path):
    full = door(tmp_path, buffer_events=10, overflow="block")
    first = full.accept(long_event(), ONE)
    caller = threading.Thread(target=lambda: full.accept(long_event(1), ONE), daemon=True)
    caller.start()
    until(lambda: full.overflows["blocked"])
    caller.join(0.2)
    assert caller.is_alive()
    full.take(1)
    full.journal.release([first._place])
    full._progress.announce()
    caller.join(30)
    assert not caller.is_alive()
    assert full.overflows["blocked"] == 1, "it slept meanwhile"
    assert [event.encoded[:10] for event in read(full.journal.path).events]


def test_an_event_of_a_late_caller_that_was_refused_is_not_in_the_journal(tmp_path):
    late = door(tmp_path)
    late.accept(Activity("id", "acme", "u", "active", 1.0), ONE)
    late.take(10)
    late.seal()
    late._room = 10  # as a caller saw it that looked before the close
    with pytest.raises(AgentClosed):
        late.accept(Activity("late", "acme", "u", "active", 1.0), ONE)
    assert len(read(late.journal.path).events) == 1


def test_two_threads_that_race_for_the_first_event_make_one_journal(tmp_path):
    for n in range(10):
        place = tmp_path / str(n)
        racing = door(place)
        begin = threading.Barrier(4)

        def record(racing=racing, begin=begin):
            begin.wait()
            racing.accept(Activity("id", "acme", "u", "active", 1.0), ONE)

        threads = [threading.Thread(target=record) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        (path,) = journals(place)
        assert len(read(path).events) == 4


# What the dead left

DIE = """
import itertools
from per_agent.destinations import Retry
down = [MemoryDestination(itertools.repeat(Retry("down")), name=name) for name in sys.argv[2].split()]
agent = Agent(data_dir, down, intake=IntakeSettings(linger=60.0))
agent.add_activity("acme", "first", "active").stored()
for n in range(int(sys.argv[3])):
    agent.add_activity("acme", f"u-{n}", "active")
print("recorded", flush=True)
sys.stdin.readline()
"""
LOOSE = 'PER_AGENT = open(data_dir + "/spools", "w")\n'  # no spool can be made: the journal stays where it was made


def killed(data_dir, lanes="m", count=20, *, spool=True):
    """A process that accepted *count* events more than it stored, and was killed."""
    data_dir.mkdir(exist_ok=True)
    program = DIE if spool else LOOSE + DIE.replace(".stored()", "")
    process = start(program, data_dir, lanes, str(count))
    assert process.stdout.readline() == "recorded\n", process.stderr.read()
    process.kill()
    process.communicate()
    if not spool:
        (data_dir / "spools").unlink()


@pytest.mark.parametrize("spool", [True, False])
def test_what_a_killed_process_accepted_is_in_the_books_before_anybody_recovers_it(tmp_path, spool):
    killed(tmp_path, spool=spool)
    agent = Agent(tmp_path, [MemoryDestination(name="m")])
    assert agent.books()["m"].accepted == 21
    destination = MemoryDestination(name="m")
    with Agent(tmp_path, [destination]) as agent:
        assert agent.flush(30)
        names = sorted(event.user_id for event in destination.received)
        assert names == sorted(["first", *(f"u-{n}" for n in range(20))])
        assert agent.books()["m"].accepted == 21
        assert agent.books()["m"].balanced
    assert journals(tmp_path) == []


@pytest.mark.parametrize("spool", [True, False])
def test_a_running_agent_takes_over_what_another_left(tmp_path, spool):
    destination = MemoryDestination(name="m")
    if not spool:
        killed(tmp_path, spool=False)
    with Agent(tmp_path, [destination], spool=SpoolSettings(adopt_interval=0.1)) as agent:
        agent.start(wait=True)
        if spool:
            killed(tmp_path)
        until(lambda: agent.books()["m"].pending == 0 and agent.books()["m"].accepted == 21)
        until(lambda: [path.stem for path in journals(tmp_path)] == [agent.status()["journal"]["id"]])
    assert len(destination.received) == 21


def test_two_agents_that_race_for_what_was_left_store_it_once(tmp_path):
    killed(tmp_path, spool=False)
    destinations = [MemoryDestination(name="m") for _ in range(2)]
    agents = [Agent(tmp_path, [each], spool=SpoolSettings(adopt_interval=0.1)) for each in destinations]
    for agent in agents:
        agent.start()
    until(lambda: sum(len(each.received) for each in destinations) >= 21)
    assert all(agent.close() for agent in agents)
    names = [event.user_id for each in destinations for event in each.received]
    assert len(names) == len(set(names)) == 21
    assert agents[0].books()["m"].accepted == 21


def test_a_journal_of_lanes_that_an_agent_does_not_have_waits_for_one_that_has_them(tmp_path):
    killed(tmp_path, lanes="m n", spool=False)
    with Agent(tmp_path, [MemoryDestination(name="m")]) as agent:
        agent.flush(5)
        assert len(journals(tmp_path / FOLDER)) == 1
        assert agent.books()["n"].pending == 21
    both = [MemoryDestination(name="m"), MemoryDestination(name="n")]
    with Agent(tmp_path, both) as agent:
        assert agent.flush(30)
    assert [len(each.received) for each in both] == [21, 21]


def test_a_deleted_journal_is_made_anew_and_what_comes_then_survives_a_kill(tmp_path):
    process = start(
        """
        from pathlib import Path
        agent = Agent(data_dir, [MemoryDestination(name="m")], intake=IntakeSettings(linger=0.5))
        agent.add_activity("acme", "first", "active").stored()
        for path in Path(data_dir).rglob("*.journal"):
            path.unlink()
        agent.add_activity("acme", "second", "active").stored()
        agent._life.engine.spool.tune(IntakeSettings(linger=60.0))
        for n in range(10):
            agent.add_activity("acme", f"u-{n}", "active")
        print("recorded", flush=True)
        sys.stdin.readline()
        """,
        tmp_path,
    )
    assert process.stdout.readline() == "recorded\n", process.stderr.read()
    process.kill()
    process.communicate()
    assert Agent(tmp_path, [MemoryDestination(name="m")]).books()["m"].accepted == 12


def test_a_journal_whose_process_lives_is_left_to_it_wherever_it_lies(tmp_path):
    with Agent(tmp_path, [MemoryDestination(name="m")]) as agent:
        assert add(agent, "first").delivered(30)
    (spool,) = (tmp_path / "spools").iterdir()
    living = make(tmp_path, 10)
    write(living, encode(Activity("its-own", "acme", "theirs", "active", 1.0)), ("m",))
    living.move(spool)
    destination = MemoryDestination(name="m")
    with Agent(tmp_path, [destination], spool=SpoolSettings(adopt_interval=0.1)) as agent:
        assert add(agent, "ours").delivered(30)
        assert agent.flush(30)
        assert [event.user_id for event in destination.received] == ["ours"]
        assert living.path.exists()
        living.let_go()
        until(lambda: len(destination.received) == 2)
        assert agent.flush(30)
        until(lambda: not living.path.exists())
        assert agent.books()["m"].delivered == 3


@pytest.mark.parametrize("format", [1, 3])
def test_a_journal_of_another_version_is_left_alone_told_and_harms_nobody(tmp_path, format):
    killed(tmp_path)
    (path,) = journals(tmp_path)
    content = bytearray(path.read_bytes())
    content[4:6] = format.to_bytes(2, "little")
    content[20:24] = zlib.crc32(content[:20]).to_bytes(4, "little")
    path.write_bytes(content)
    for _ in range(2):
        with Agent(tmp_path, [MemoryDestination(name="m")], spool=SpoolSettings(adopt_interval=0.1)) as agent:
            assert add(agent).delivered(30)
            assert agent.flush(30)
            assert agent.books()["m"].balanced
        assert path.exists()
    assert [each.unknown for each in snapshots(tmp_path)] == [1]


# Forks

FORK = """
open(data_dir + "/spools", "w")  # no spool can be made: the journals stay where they are made
agent = Agent(data_dir, [MemoryDestination(name="m")])
for n in range(10):
    agent.add_activity("acme", f"u-{n}", "active")
print(agent.status()["journal"]["id"], flush=True)
BEFORE
pid = os.fork()
if pid == 0:
    agent.add_activity("acme", "child", "active")
    print(os.getpid(), agent.status()["journal"]["id"], flush=True)
time.sleep(60)
"""
# A thread that is in the middle of using the journal when the process forks: it is never let go of in the child.
HOLDING = """
held = threading.Event()
def hold(mapped):
    held.set()
    time.sleep(60)
threading.Thread(target=hold, args=(agent._life.intake.journal.slots.file,), daemon=True).start()
held.wait()
"""


@pytest.mark.parametrize("before", ["", HOLDING])
def test_a_child_has_its_own_journal_and_does_not_hold_that_of_its_dead_parent(tmp_path, before):
    process = start(FORK.replace("BEFORE", before), tmp_path)
    parents = tmp_path / FOLDER / f"{process.stdout.readline().strip()}.journal"
    child, name = process.stdout.readline().split()
    try:
        process.kill()
        process.wait()
        childs = tmp_path / FOLDER / f"{name}.journal"
        assert journals(tmp_path) == sorted([parents, childs])
        assert is_abandoned(parents)
        assert not is_abandoned(childs)
        assert (len(read(parents).events), len(read(childs).events)) == (10, 1)
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.communicate()


def test_a_fork_while_the_journal_is_made_leaves_it_to_the_parent(tmp_path):
    made = []
    place = tmp_path / "data"
    orphaned = Intake(
        IntakeSettings(), Progress(lambda: None), lambda: None,
        lambda _: (made.append(make(place, 10)), orphaned.orphan())[1] or made[0],
    )  # fmt: skip
    orphaned.accept(Activity("id", "acme", "u", "active", 1.0), ONE)
    assert read(made[0].path).events == []
